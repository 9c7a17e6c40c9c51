"""Guessing: how much of it is looked at in an hour, and that whoever owns the account gets in all the while.

The limits' clock is the test's own, so that an hour passes as fast as the guesses are sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pyotp
import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from api.attempts import Limit
from domain import credentials, passwords, second_factor
from domain.schedule import Role
from tests.factories import PASSWORD, Accounts, Someone

HOUR = 3600.0
MOST_EVALUATED = 100
HOME = "198.51.100.1"


@dataclass
class Clock:
    """A clock that goes on only when it is told to."""

    now: float

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which attempts are counted, on a broker that is waited for however busy the machine is."""
    monkeypatch.setattr("api.app.REDIS_SECONDS", 10)
    clock = Clock(time.time())
    monkeypatch.setattr("limits.storage.redis.time", clock)
    monkeypatch.setattr("api.attempts.time", SimpleNamespace(time=clock.time, monotonic=time.monotonic))
    return clock


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that were looked at."""
    seen: list[str] = []
    verify = passwords.verify_password

    def watched(stored: str | None, password: str) -> bool:
        seen.append(password)
        return verify(stored, password)

    monkeypatch.setattr(passwords, "verify_password", watched)
    return seen


def strangers() -> Iterator[str]:
    """Addresses that nobody logged in from, each another one."""
    yield from (f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(1, 1 << 24))


def log_in(client: FlaskClient, login: str, password: str, address: str) -> int:
    body = {"login": login, "password": password}
    return client.post("/api/v1/auth/patient", json=body, headers={"X-Forwarded-For": address}).status_code


def test_guesses_of_strangers_are_mostly_not_looked_at_while_the_owner_gets_in(
    limited: FlaskClient, accounts: Accounts, clock: Clock, evaluated: list[str], long: bool
) -> None:
    guesses = 10_000 if long else 400
    patient, addresses = accounts.patient(), strangers()
    assert log_in(limited, patient.login, PASSWORD, HOME) == 200
    evaluated.clear()
    answers: Counter[int] = Counter()
    for n in range(guesses):
        clock.now += HOUR / guesses
        answers[log_in(limited, patient.login, f"guess {n}", next(addresses))] += 1
        if n % (guesses // 20) == 0:
            assert log_in(limited, patient.login, PASSWORD, HOME) == 200
    looked_at = sum(password != PASSWORD for password in evaluated)
    assert answers.keys() == {401, 429}
    assert 10 <= looked_at == answers[401] <= MOST_EVALUATED
    clock.now += HOUR
    assert log_in(limited, patient.login, PASSWORD, next(addresses)) == 200  # nobody is locked out for good


def test_the_more_guesses_the_longer_the_wait(limited: FlaskClient, accounts: Accounts, clock: Clock) -> None:
    login, addresses = accounts.patient().login, strangers()
    waits = []
    for _ in range(6):
        while True:
            body = {"login": login, "password": "guess"}
            answer = limited.post("/api/v1/auth/patient", json=body, headers={"X-Forwarded-For": next(addresses)})
            if answer.status_code == 429:
                break
        waits.append(int(answer.headers["Retry-After"]))
        clock.now += waits[-1]
    after_5, after_10, after_30 = waits[0], waits[1], waits[5]
    assert after_5 <= 31 < after_10 <= 301 < after_30 == max(waits) <= HOUR + 1


def test_guesses_that_all_come_at_once_are_told_no_more(limited: FlaskClient, accounts: Accounts, clock: Clock) -> None:
    patient = accounts.patient()

    def guess(n: int) -> int:
        password = PASSWORD if n == 20 else f"guess {n}"  # somewhere among them, the right one
        return log_in(limited.application.test_client(), patient.login, password, f"10.0.1.{n}")

    with ThreadPoolExecutor(8) as threads:
        answers = Counter(threads.map(guess, range(40)))
    assert answers[401] <= 5
    assert answers[401] + answers[200] + answers[429] == 40


def test_one_address_does_not_go_through_many_accounts(
    limited: FlaskClient, clock: Clock, evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.proofs.FAILURES_FROM_ADDRESS", Limit.of("address", "10 per hour"))
    answers = [log_in(limited, f"alguem{n}@example.com", "uma senha comum", "203.0.113.7") for n in range(30)]
    assert (answers, len(evaluated)) == ([401] * 10 + [429] * 20, 10)
    assert log_in(limited, "alguem@example.com", "uma senha comum", "203.0.113.8") == 401


@pytest.mark.parametrize("through", ["sign in", "confirm"])
def test_whoever_knows_the_password_does_not_guess_the_code(
    limited: FlaskClient, accounts: Accounts, clock: Clock, long: bool, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    guesses = 10_000 if long else 400
    monkeypatch.setattr(passwords, "verify_password", lambda *_: True)  # it is known, and not what takes the time here
    tried: list[str] = []
    step = second_factor._step

    def watched(secret: str, code: str, now: object) -> int | None:
        tried.append(code)
        return None if code == "never" else step(secret, code, now)  # type: ignore[arg-type]

    monkeypatch.setattr(second_factor, "_step", watched)
    patient = accounts.patient()
    attempt = signing_in(limited, accounts, patient) if through == "sign in" else confirming(limited, accounts, patient)
    tried.clear()
    answers: Counter[int] = Counter()
    for n in range(guesses):
        clock.now += 24 * HOUR / guesses
        answers[attempt(f"{n:06}")] += 1
    assert answers.keys() <= {401, 422, 429}
    assert 5 <= len(tried) <= 50
    assert answers[429] == guesses - len(tried)


def signing_in(client: FlaskClient, accounts: Accounts, patient: Someone) -> Callable[[str], int]:
    """Tries codes at the log-in of somebody with a second factor, each from another address."""
    with accounts.engine.begin() as connection:
        made = credentials.enrol(connection, accounts.settings, patient.id)
        second_factor.confirm(connection, accounts.settings, patient.id, pyotp.TOTP(made.secret).now())
        connection.execute(text("update second_factors set secret = secret, last_step = 1 << 60"))  # chance can't be right
    addresses = strangers()

    def attempt(code: str) -> int:
        body = {"login": patient.login, "password": PASSWORD, "otp": code}
        return client.post("/api/v1/auth/patient", json=body, headers={"X-Forwarded-For": next(addresses)}).status_code

    return attempt


def confirming(client: FlaskClient, accounts: Accounts, patient: Someone) -> Callable[[str], int]:
    """Tries codes in a session of somebody who has begun to get a second factor."""
    with accounts.engine.begin() as connection:
        credentials.enrol(connection, accounts.settings, patient.id)
        connection.execute(text("update second_factors set last_step = 1 << 60"))
    who = accounts.logged_in(patient.id, Role.PATIENT, patient.login)

    def attempt(code: str) -> int:
        return client.post("/api/v1/me/totp/confirm", json={"otp": code}, headers=who.headers).status_code

    return attempt
