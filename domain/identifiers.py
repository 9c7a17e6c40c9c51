"""Reads what people write to say who they are (CRM, CPF, e-mail, name) into the one form that is looked up."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from stdnum.br import cpf as cpf_sums

STATES = frozenset("AC AL AM AP BA CE DF ES GO MA MG MS MT PA PB PE PI PR RJ RN RO RR RS SC SE SP TO".split())  # noqa: SIM905

_LONGEST_CRM = 40
_LONGEST_EMAIL = 254  # RFC 5321, section 4.5.3.1.3, without the angle brackets

# Only ASCII digits, letters and spaces: what looks like "1" or "S" in another script is not one.
_NUMBER = r"(?P<number>[0-9](?:[.-]?[0-9])*)(?:[ -]?(?P<suffix>[A-Z]))?"
_STATE = r"(?P<state>[A-Z]{2})"
_BETWEEN = r"[ /:.,-]*"
_NUMBER_SIGN = r"(?:N[ºo°]?\.?[ ]*)?"
_CRM = tuple(
    re.compile(rf"(?:CRM{_BETWEEN})?{form}", re.ASCII | re.IGNORECASE)
    for form in (
        rf"{_NUMBER_SIGN}{_NUMBER}{_BETWEEN}{_STATE}",
        rf"{_STATE}{_BETWEEN}{_NUMBER_SIGN}{_NUMBER}",
    )
)
_CPF = re.compile(r"[0-9]{11}|[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}|[0-9]{9}-[0-9]{2}", re.ASCII)
_EMAIL_ATOM = r'[^\s@<>()\[\]\\,;:"]'
_EMAIL_LABEL = r'[^\s@<>()\[\]\\,;:"./]'
_EMAIL = re.compile(rf"{_EMAIL_ATOM}{{1,64}}@{_EMAIL_LABEL}{{1,63}}(?:\.{_EMAIL_LABEL}{{1,63}})+")


class Malformed(ValueError):
    """A text can't be read as what it should be; the message says so in Portuguese, fit for a field's error."""


@dataclass(frozen=True, slots=True)
class Crm:
    """A doctor's registration with a state's council, unique by number and state: the suffix tells nobody apart."""

    number: str  # 1 to 10 digits, no leading zeros
    suffix: str  # one capital letter ("P": provisional) or ""
    state: str

    def __str__(self) -> str:
        return f"{self.number}{self.suffix}/{self.state}"


def parse_crm(text: str) -> Crm:
    """Read a CRM in the forms people write: `123456/SP`, `CRM/SP 123456`, `1.263/AL`, `52-12345-6/RJ`, lower case too.

    Nothing but the council can say whether a number was given out (there is no check digit), so this reads generously.
    Raises Malformed.
    """
    stripped = text.strip(" ")
    if len(stripped) <= _LONGEST_CRM:
        for form in _CRM:
            if found := form.fullmatch(stripped):
                return _crm(found["number"], found["suffix"] or "", found["state"].upper())
    raise Malformed("CRM inválido: escreva o número e o estado, como 123456/SP.")


def _crm(written: str, suffix: str, state: str) -> Crm:
    number = re.sub(r"[.-]", "", written).lstrip("0")
    if state not in STATES:
        raise Malformed("CRM inválido: o estado não existe.")
    if not 1 <= len(number) <= 10:
        raise Malformed("CRM inválido: o número tem de 1 a 10 dígitos.")
    return Crm(number, suffix.upper(), state)


def parse_cpf(text: str) -> str:
    """Read a CPF, bare or as `123.456.789-09`, into its 11 digits. Raises Malformed.

    The form, and so the length, is checked before the sums, which a padded number would pass, as equal digits do.
    """
    stripped = text.strip(" ")
    if not _CPF.fullmatch(stripped):
        raise Malformed("CPF inválido: escreva os 11 dígitos.")
    digits = re.sub(r"[.-]", "", stripped)
    if len(set(digits)) == 1 or not cpf_sums.is_valid(digits):
        raise Malformed("CPF inválido: os dígitos não conferem.")
    return digits


def mask_cpf(cpf: str) -> str:
    """Show a CPF of 11 digits as the tax authority does: `***.456.789-**`. It makes nobody anonymous."""
    return f"***.{cpf[3:6]}.{cpf[6:9]}-**"


def normalise_email(text: str) -> str:
    """The form of an e-mail address by which an account is looked up: no case, composed accents.

    Mail goes to the address as it was written. Raises Malformed for what can't be an address, control characters and
    lone surrogates included.
    """
    # Folded case of decomposed text, composed again, is Unicode's canonical caseless match (section 3.13, D145).
    email = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text.strip(" ")).casefold())
    if len(email) > _LONGEST_EMAIL or not email.isprintable() or not _EMAIL.fullmatch(email):
        raise Malformed("E-mail inválido.")
    return email


def name_key(text: str) -> str:
    """The form of a name that is searched: no case, no accents, single spaces. Raises Malformed if unprintable."""
    letters = (each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    key = " ".join("".join(letters).casefold().split())
    if not key.isprintable():
        raise Malformed("O texto tem caracteres inválidos.")
    return key
