import subprocess
import sys
import threading
import unicodedata
from datetime import date

import argon2
import pytest

from domain import passwords
from domain.errors import Unavailable
from domain.passwords import check_new_password, hash_password, limit_hashing, needs_rehash, verify_password

PERSONAL = ("Maria da Silva Conceição", "maria.silva@exemplo.com.br", "52998224725", "123456/SP", date(1990, 5, 17))


@pytest.fixture(autouse=True)
def _own_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_turns", passwords._turns)


def test_only_the_password_that_was_hashed_is_accepted() -> None:
    stored = hash_password("uma senha boa")
    assert verify_password(stored, "uma senha boa")
    assert not verify_password(stored, "uma senha boa ")
    assert not verify_password(stored, "")


def test_a_hash_is_argon2id_with_the_parameters_that_owasp_states() -> None:
    parameters = argon2.extract_parameters(hash_password("uma senha boa"))
    assert parameters.type is argon2.low_level.Type.ID
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (19456, 2, 1)


def test_one_password_never_gives_the_same_hash_twice() -> None:
    assert hash_password("uma senha boa") != hash_password("uma senha boa")


def test_an_accent_is_the_same_letter_however_a_keyboard_writes_it() -> None:
    stored = hash_password(unicodedata.normalize("NFD", "coração feliz"))
    assert verify_password(stored, unicodedata.normalize("NFC", "coração feliz"))


def test_text_that_is_no_unicode_matches_nothing_and_breaks_nothing() -> None:
    assert not verify_password(hash_password("uma senha boa"), "uma senha \ud800")


def test_an_unknown_account_costs_what_a_known_one_costs_and_matches_nothing() -> None:
    known, nobody = (argon2.extract_parameters(each) for each in (hash_password("x"), passwords._NOBODYS_HASH))
    assert known == nobody
    assert not verify_password(None, "uma senha boa")
    assert not verify_password(None, "")


def test_a_hash_with_other_parameters_still_opens_and_is_due_for_another() -> None:
    old = argon2.PasswordHasher(memory_cost=8192, time_cost=1, parallelism=1).hash("uma senha boa")
    assert verify_password(old, "uma senha boa")
    assert needs_rehash(old)
    assert not needs_rehash(hash_password("uma senha boa"))


def test_a_damaged_hash_is_a_fault_and_no_wrong_password() -> None:
    with pytest.raises(argon2.exceptions.InvalidHashError):
        verify_password("damaged", "uma senha boa")


def test_no_more_passwords_are_hashed_at_once_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_hashing(2)
    two_inside, go_on = threading.Barrier(3), threading.Event()
    inside: list[None] = []

    def work(*_: object) -> str:
        inside.append(None)
        if len(inside) <= 2:
            two_inside.wait(5)
        assert go_on.wait(5)
        return "hash"

    monkeypatch.setattr(passwords, "_off_the_loop", work)
    threads = [threading.Thread(target=hash_password, args=("x",)) for _ in range(5)]
    for thread in threads:
        thread.start()
    two_inside.wait(5)
    monkeypatch.setattr(passwords, "WAIT_SECONDS", 0.05)
    with pytest.raises(Unavailable) as busy:
        verify_password(None, "x")
    assert len(inside) == 2
    assert busy.value.retry_after is not None
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert len(inside) == 5


def test_a_turn_comes_back_when_hashing_fails() -> None:
    limit_hashing(1)
    for _ in range(2):
        with pytest.raises(argon2.exceptions.InvalidHashError):
            verify_password("damaged", "x")


def test_hashing_under_gevent_stops_no_other_request() -> None:
    program = """
from gevent import monkey
monkey.patch_all()
import gevent
from domain.passwords import hash_password, limit_hashing, verify_password
limit_hashing(1)
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.001)
        ticks += 1
gevent.spawn(tick)
stored = hash_password("uma senha boa")
checks = [gevent.spawn(verify_password, stored, text) for text in ("uma senha boa", "outra", "uma senha boa")]
gevent.joinall(checks, raise_error=True)
print([check.value for check in checks], ticks > 10)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr) == ("[True, False, True] True\n", "")


@pytest.mark.parametrize(
    "password",
    [
        "0123-acima",
        "uma senha boa",
        "Maria gosta de pudim azul",
        "correct horse battery staple",
        "пароль из слов",
        "🦜🦜🌵🌵🪁🪁🧩🧩🪗🪗",
        "\t\0 \x7f quaisquer",
        "ç" * 127 + "!",
    ],
)
def test_any_characters_make_a_good_password(password: str) -> None:
    assert check_new_password(password, PERSONAL) == []


@pytest.mark.parametrize(
    "password",
    ["senha12345", "1234567890", "qwertyuiop", "corinthians", "flamengo2012", "Password123", "SenhaSegura123"],
)
def test_a_commonly_used_password_is_refused(password: str) -> None:
    assert check_new_password(password, ()) == [passwords._COMMON]


@pytest.mark.parametrize(
    "password",
    [
        "mariasilva24",
        "Maria-da-Silva",
        "Conceicao#1",
        "CONCEIÇÃO!!",
        "silva_MARIA_silva",
        "maria.silva@exemplo.com.br",
        "mariasilva@1",
        "52998224725",
        "529.982.247-25",
        "CRM 123456/SP",
        "123456-sp!",
        "17/05/1990",
        "1990-05-17",
        "170590-170590",
        "19900517 ok",
        "HealthMed2026!",
    ],
)
def test_a_password_made_of_the_persons_own_data_is_refused(password: str) -> None:
    assert passwords._PERSONAL in check_new_password(password, PERSONAL)


@pytest.mark.parametrize("personal", [(), ("Zé", "ze@b.co", ""), ("Ana Lu",)])
def test_short_names_forbid_nothing(personal: tuple[str, ...]) -> None:
    assert check_new_password("ze ana lu boa", personal) == []


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("ninechar!", passwords._TOO_SHORT),
        ("c\u0327" * 9, passwords._TOO_SHORT),
        ("", passwords._TOO_SHORT),
        ("x" * 129, passwords._TOO_LONG),
        ("boa senha \ud800", passwords._NOT_TEXT),
    ],
)
def test_lengths_are_counted_in_characters(password: str, problem: str) -> None:
    assert check_new_password(password, PERSONAL) == [problem]
