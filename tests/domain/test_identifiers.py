"""What people write to say who they are is read in every usual form, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.identifiers import STATES, Crm, Malformed, mask_cpf, name_key, normalise_email, parse_cpf, parse_crm

THOUSANDS = settings(max_examples=300, deadline=None)

crms = st.builds(
    Crm,
    number=st.integers(1, 9_999_999_999).map(str),
    suffix=st.sampled_from(["", "P", "A", "S"]),
    state=st.sampled_from(sorted(STATES)),
)


def thousands(number: str) -> str:
    return f"{int(number):,}".replace(",", ".")


CRM_FORMS = (
    lambda crm: f"{crm.number}{crm.suffix}/{crm.state}",
    lambda crm: f"{crm.number}{crm.suffix}-{crm.state}",
    lambda crm: f"{crm.number}{crm.suffix} {crm.state}",
    lambda crm: f"{crm.number}{crm.suffix} / {crm.state}",
    lambda crm: f"{crm.number}-{crm.suffix}/{crm.state}" if crm.suffix else f"{crm.number} - {crm.state}",
    lambda crm: f"{thousands(crm.number)}{crm.suffix}/{crm.state}",
    lambda crm: f"000{crm.number}{crm.suffix}/{crm.state}",
    lambda crm: f"CRM {crm.number}{crm.suffix} {crm.state}",
    lambda crm: f"CRM/{crm.state} {crm.number}{crm.suffix}",
    lambda crm: f"CRM-{crm.state} {crm.number}{crm.suffix}",
    lambda crm: f"CRM/{crm.state}: {thousands(crm.number)} {crm.suffix}",
    lambda crm: f"CRM {crm.state} nº {crm.number}{crm.suffix}",
    lambda crm: f"CRM{crm.state}{crm.number}{crm.suffix}",
    lambda crm: f"{crm.state}-{crm.number}{crm.suffix}",
)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("123456/SP", "123456/SP"),
        ("CRM/SP 123456", "123456/SP"),
        ("123456-SP", "123456/SP"),
        ("1.263/AL", "1263/AL"),
        ("52-12345-6/RJ", "52123456/RJ"),
        ("52.12345-6/RJ", "52123456/RJ"),
        ("CRM-SP 123456", "123456/SP"),
        ("CRM 123456 SP", "123456/SP"),
        ("crm/sp 123456", "123456/SP"),
        ("  123456 / sp  ", "123456/SP"),
        ("123456p/sp", "123456P/SP"),
        ("CRM/SP 123456-P", "123456P/SP"),
        ("123456 p sp", "123456P/SP"),
        ("0012/RN", "12/RN"),
        ("RN 12", "12/RN"),
        ("1/TO", "1/TO"),
        ("9999999999/AC", "9999999999/AC"),
    ],
)
def test_a_crm_is_read_in_the_forms_people_write(written: str, read: str) -> None:
    assert str(parse_crm(written)) == read


@THOUSANDS
@given(crm=crms, form=st.sampled_from(CRM_FORMS), lower=st.booleans())
def test_a_crm_is_the_same_however_it_was_written(crm, form, lower) -> None:
    written = form(crm)
    assert parse_crm(written.lower() if lower else written) == crm
    assert parse_crm(str(crm)) == crm


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "/",
        "CRM",
        "SP",
        "CRM/SP",
        "123456",
        "CRM 123456",
        "123456/XX",
        "123456/S",
        "123456/SPA/SP",
        "123456/SP/SP",
        "SP 123456 RJ",
        "0/SP",
        "000/SP",
        "12345678901/SP",
        "12 34/SP",
        "1..2/SP",
        "-1/SP",
        "1e3/SP",
        "123456PP/SP",
        "123456\n/SP",
        "123456/SP\n",
        "123456/SP\x00",
        "\x1f123456/SP",
        "123456\u00a0/SP",
        "\u0661\u0662\u0663/SP",  # Arabic-Indic digits
        "\uff11\uff12\uff13/SP",  # full-width digits
        "123\u00b2/SP",  # a superscript two: str.isdigit believes it
        "123/\u017fp",  # a long s: upper case makes it an S
        "123/\u0421\u0420",  # Cyrillic
        "\ud800/SP",
        "123456" + " " * 40 + "/SP",
        "1" * 100_000 + "/SP",
        "CRM" + "/" * 100_000,
    ],
)
def test_what_is_no_crm_is_refused(written: str) -> None:
    with pytest.raises(Malformed, match="CRM inválido"):
        parse_crm(written)


@THOUSANDS
@given(st.one_of(st.text(), st.text("CRMSPcrmsp0123456789./- nº\x00\n", max_size=45), crms.map(str)))
def test_garbage_is_refused_or_read_as_a_crm_in_its_one_form(text: str) -> None:
    try:
        crm = parse_crm(text)
    except Malformed:
        return
    assert crm.state in STATES
    assert crm.number.isascii()
    assert crm.number.isdigit()
    assert 1 <= len(crm.number) <= 10
    assert not crm.number.startswith("0")
    assert parse_crm(str(crm)) == crm


def test_there_are_27_states() -> None:
    assert len(STATES) == 27


def with_check_digits(nine: str) -> str:
    """A CPF by the tax authority's own words: modulus 11, where a remainder below 2 gives 0."""
    digits = [int(digit) for digit in nine]
    for _ in range(2):
        rest = sum(weight * digit for weight, digit in zip(range(len(digits) + 1, 1, -1), digits, strict=True)) % 11
        digits.append(0 if rest < 2 else 11 - rest)
    return "".join(map(str, digits))


cpfs = st.from_regex(r"[0-9]{9}", fullmatch=True).map(with_check_digits).filter(lambda cpf: len(set(cpf)) > 1)


@THOUSANDS
@given(cpfs)
def test_a_cpf_is_the_same_however_it_was_written(cpf: str) -> None:
    written = f"{cpf[:3]}.{cpf[3:6]}.{cpf[6:9]}-{cpf[9:]}"
    assert parse_cpf(cpf) == parse_cpf(written) == parse_cpf(f" {cpf[:9]}-{cpf[9:]} ") == cpf


@THOUSANDS
@given(cpf=cpfs, place=st.integers(0, 10), shift=st.integers(1, 9))
def test_one_wrong_digit_is_never_a_cpf_unless_its_check_digits_agree(cpf: str, place: int, shift: int) -> None:
    wrong = cpf[:place] + str((int(cpf[place]) + shift) % 10) + cpf[place + 1 :]
    if with_check_digits(wrong[:9]) == wrong:  # both sums turn a remainder of 0 and of 1 into 0
        assert parse_cpf(wrong) == wrong
    else:
        with pytest.raises(Malformed):
            parse_cpf(wrong)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "191",  # padded to eleven digits it would pass the sums
        "00000000191"[1:],
        "052998224725",
        "52998224724",
        "529.982.24725",
        "529982.247-25",
        "529-982-247.25",
        "529 982 247 25",
        "52998224725\n",
        "52998224725\x00",
        "5299822472\u0665",
        "\uff15\uff12\uff19\uff19\uff18\uff12\uff12\uff14\uff17\uff12\uff15",
        "5299822472\ud800",
        *(digit * 11 for digit in "0123456789"),
        "5" * 100_000,
    ],
)
def test_what_is_no_cpf_is_refused(written: str) -> None:
    with pytest.raises(Malformed, match="CPF inválido"):
        parse_cpf(written)


@THOUSANDS
@given(st.text())
def test_garbage_is_no_cpf(text: str) -> None:
    try:
        cpf = parse_cpf(text)
    except Malformed:
        return
    assert with_check_digits(cpf[:9]) == cpf


def test_a_masked_cpf_shows_the_middle_as_the_tax_authority_does() -> None:
    assert mask_cpf("12345678909") == "***.456.789-**"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Ana.Souza@Exemplo.COM.BR", "ana.souza@exemplo.com.br"),
        ("  ana+consultas@exemplo.com ", "ana+consultas@exemplo.com"),
        ("JOSE\u0301@exemplo.com", "jos\u00e9@exemplo.com"),
        ("o'hara_1@sub.exemplo.com", "o'hara_1@sub.exemplo.com"),
    ],
)
def test_an_e_mail_is_looked_up_without_case_and_with_composed_accents(written: str, read: str) -> None:
    assert normalise_email(written) == read


@pytest.mark.parametrize(
    "written",
    [
        "",
        "@",
        "ana",
        "ana@",
        "@exemplo.com",
        "ana@exemplo",
        "ana@exemplo..com",
        "ana@.com",
        "ana@exemplo.com.",
        "ana@@exemplo.com",
        "ana@x@exemplo.com",
        "ana souza@exemplo.com",
        "Ana <ana@exemplo.com>",
        "ana@exemplo.com,bia@exemplo.com",
        "ana@exemplo.com\r\nBcc: bia@exemplo.com",
        "ana@exemplo.com\n",
        "ana\x00@exemplo.com",
        "ana\u200b@exemplo.com",
        "ana\u202e@exemplo.com",
        "ana\ud83d@exemplo.com",
        "a" * 65 + "@exemplo.com",
        "ana@" + "a." * 130 + "com",
        "a" * 1_000_000 + "@exemplo.com",
    ],
)
def test_what_can_not_be_an_e_mail_is_refused(written: str) -> None:
    with pytest.raises(Malformed, match="E-mail inválido"):
        normalise_email(written)


@THOUSANDS
@given(st.one_of(st.emails(), st.text(), st.tuples(st.text(min_size=1), st.text(min_size=1)).map("@e.".join)))
def test_a_normalised_e_mail_stays_as_it_is_and_can_be_stored(text: str) -> None:
    try:
        email = normalise_email(text)
    except Malformed:
        return
    assert normalise_email(email) == email
    assert normalise_email(text.upper()) == normalise_email(text.upper().lower())
    assert b"\x00" not in email.encode()


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("Conceição d'Ávila", "conceicao d'avila"),
        ("CONCEIC\u0327A\u0303O D'A\u0301VILA", "conceicao d'avila"),
        ("  Ana \u00a0 Lúcia\t", "ana lucia"),
        ("Müller-Ñandú", "muller-nandu"),
        ("Straße", "strasse"),
        ("", ""),
    ],
)
def test_a_name_is_searched_without_case_accents_and_spaces_too_many(written: str, key: str) -> None:
    assert name_key(written) == key


@pytest.mark.parametrize("text", ["Ana\x00", "Ana\x1bLúcia", "Ana \ud800", "Ana\u202eLúcia"])
def test_a_name_with_characters_that_can_not_be_printed_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        name_key(text)


@THOUSANDS
@given(st.text())
def test_the_key_of_a_name_is_its_own_key_and_can_be_stored(text: str) -> None:
    try:
        key = name_key(text)
    except Malformed:
        return
    assert name_key(key) == key
    assert b"\x00" not in key.encode()
