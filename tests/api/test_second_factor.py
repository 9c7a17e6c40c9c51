"""The second factor: enrolling, logging in with codes that are good once, recovery codes, and staff who must have one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from api.app import create_app
from api.attempts import Limit
from domain.schedule import Role
from domain.settings import Settings
from tests import letterbox
from tests.factories import PASSWORD, Accounts, Someone

ME = "/api/v1/me"
TOTP = "/api/v1/me/totp"
CONFIRM = "/api/v1/me/totp/confirm"
STEP = 30


@dataclass(frozen=True)
class Phone:
    """An app that somebody's second factor is in, and the codes for when it is lost."""

    secret: str
    recovery: list[str]

    def code(self, steps: int = 0) -> str:
        """The code of now, or of so many steps later."""
        return str(pyotp.TOTP(self.secret).at(int(time.time()) + steps * STEP))


def enrol(client: FlaskClient, who: Someone) -> dict[str, Any]:
    answer = client.post(TOTP, json={"password": PASSWORD}, headers=who.headers)
    assert answer.status_code == 201
    return dict(answer.json)


def phone_of(client: FlaskClient, accounts: Accounts, who: Someone) -> Phone:
    """Somebody's second factor, confirmed a while ago."""
    phone = Phone(enrol(client, who)["secret"], [])
    answer = client.post(CONFIRM, json={"otp": phone.code()}, headers=who.headers)
    assert answer.status_code == 200
    later(accounts)
    return replace(phone, recovery=answer.json["recovery_codes"])


def later(accounts: Accounts) -> None:
    """As if the codes that were used were of long ago."""
    with accounts.engine.begin() as connection:
        connection.execute(text("update second_factors set last_step = last_step - 100"))


def log_in(client: FlaskClient, who: Someone, otp: object = None, **more: Any) -> Any:
    body = {"crm": who.login, "password": PASSWORD, **({} if otp is None else {"otp": otp})}
    return client.post("/api/v1/auth/doctor", json=body, **more)


def test_a_second_factor_is_asked_for_once_it_is_confirmed(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor(email="bruno@example.com")
    other = accounts.logged_in(doctor.id, Role.DOCTOR, doctor.login)
    made = enrol(client, doctor)
    url = urlsplit(made["otpauth_url"])
    asked = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert (url.scheme, url.netloc, url.path) == ("otpauth", "totp", "/Health%26Med:bruno%40example.com")
    assert (asked["secret"], asked["issuer"]) == (made["secret"], "Health&Med")
    assert len(made["secret"]) == 32
    assert log_in(client, doctor).status_code == 200
    assert client.get(ME, headers=doctor.headers).json["totp"] is False

    phone = Phone(made["secret"], [])
    confirmed = client.post(CONFIRM, json={"otp": phone.code()}, headers=doctor.headers)
    assert confirmed.status_code == 200
    assert confirmed.headers["Cache-Control"] == "no-store"
    assert len(set(confirmed.json["recovery_codes"])) == 10
    assert client.get(ME, headers=doctor.headers).json["totp"] is True
    assert client.get(ME, headers=other.headers).status_code == 401

    without = log_in(client, doctor)
    assert (without.status_code, without.json["code"]) == (401, "otp_required")
    assert "WWW-Authenticate" in without.headers
    assert log_in(client, doctor, phone.code(1)).status_code == 200
    (mail,) = letterbox.mails(accounts.engine, accounts.settings)
    assert mail["Subject"] == "Health&Med: Verificação em duas etapas ativada"


@pytest.mark.parametrize("role", [Role.PATIENT, Role.STAFF])
def test_patients_and_staff_may_have_one_too(client: FlaskClient, accounts: Accounts, role: Role) -> None:
    who = accounts.patient() if role is Role.PATIENT else accounts.staff()
    phone = phone_of(client, accounts, who)
    body = {"login": who.login, "password": PASSWORD}
    for more, status in [({}, 401), ({"otp": "000000"}, 401), ({"otp": phone.code()}, 200)]:
        assert client.post(f"/api/v1/auth/{role}", json={**body, **more}).status_code == status


def test_a_code_is_good_once_and_for_a_short_while(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    phone = phone_of(client, accounts, doctor)
    code = phone.code()
    assert log_in(client, doctor, f"{code[:3]} {code[3:]}").status_code == 200
    again = log_in(client, doctor, code)
    assert (again.status_code, again.json["code"]) == (401, "invalid_otp")
    assert log_in(client, doctor, phone.code(-1)).status_code == 401  # nor is one from before it
    later(accounts)
    for wrong in (phone.code(-3), phone.code(3), "000000", "abcdef"):
        assert log_in(client, doctor, wrong).status_code == 401
    for malformed in ("abc", "١٢٣٤٥٦", "\x00" * 6, 123456):
        assert log_in(client, doctor, malformed).status_code == 422


def test_the_code_that_confirmed_is_used(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    phone = Phone(enrol(client, doctor)["secret"], [])
    code = phone.code()
    client.post(CONFIRM, json={"otp": code}, headers=doctor.headers)
    assert log_in(client, doctor, code).status_code == 401


@pytest.mark.parametrize("kind", ["app", "recovery"])
def test_of_many_who_bring_one_code_at_once_one_gets_in(app: Flask, client: FlaskClient, accounts: Accounts, kind: str) -> None:
    doctor = accounts.doctor()
    phone = phone_of(client, accounts, doctor)
    code = phone.code() if kind == "app" else phone.recovery[0]
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda _: log_in(app.test_client(), doctor, code).status_code, range(8)))
    assert sorted(statuses) == [200] + [401] * 7


def test_a_recovery_code_stands_in_once_however_it_is_written(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    phone = phone_of(client, accounts, doctor)
    first, second = phone.recovery[:2]
    assert log_in(client, doctor, first.replace("-", "").lower()).status_code == 200
    assert log_in(client, doctor, first).status_code == 401
    assert log_in(client, doctor, second).status_code == 200
    other = accounts.doctor()
    phone_of(client, accounts, other)
    assert log_in(client, other, phone.recovery[2]).status_code == 401


def test_no_secret_and_no_code_is_stored_as_it_is(client: FlaskClient, accounts: Accounts) -> None:
    phone = phone_of(client, accounts, accounts.doctor())
    with accounts.engine.connect() as connection:
        stored = [bytes(each) for each in connection.execute(text("select hash from recovery_codes")).scalars()]
        stored.append(bytes(connection.execute(text("select secret from second_factors")).scalar_one()))
    words = [phone.secret, *phone.recovery, *(each.replace("-", "") for each in phone.recovery)]
    assert not any(word.encode() in each for word in words for each in stored)


def test_a_wrong_password_tells_nothing_of_the_second_factor(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    phone = phone_of(client, accounts, doctor)
    for otp in (None, phone.code(), "000000"):
        body = {"crm": doctor.login, "password": "wrong password", **({} if otp is None else {"otp": otp})}
        answer = client.post("/api/v1/auth/doctor", json=body)
        assert (answer.status_code, answer.json["code"]) == (401, "invalid_credentials")
    assert log_in(client, doctor, phone.code()).status_code == 200  # the code was not used up by it


def test_codes_are_not_guessed(limited: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.proofs.CODES_OF_ACCOUNT", Limit.of("codes", "3 per hour"))
    doctor = accounts.doctor()
    home, away = ({"headers": {"X-Forwarded-For": address}} for address in ("198.51.100.1", "203.0.113.1"))
    assert log_in(limited, doctor, **home).status_code == 200  # an address that is known from now on
    phone = phone_of(limited, accounts, doctor)
    statuses = [log_in(limited, doctor, f"{n:06}", **away).status_code for n in range(4)]
    assert statuses == [401] * 3 + [429]
    assert log_in(limited, doctor, phone.code(), **away).status_code == 429
    assert log_in(limited, doctor, phone.code(), **home).status_code == 200


def test_a_second_factor_goes_with_the_password_and_a_code(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    phone = phone_of(client, accounts, doctor)
    other = accounts.logged_in(doctor.id, Role.DOCTOR, doctor.login)
    for body, code in [
        ({"password": "wrong password", "otp": phone.code()}, "wrong_password"),
        ({"password": PASSWORD, "otp": "000000"}, "invalid_otp"),
    ]:
        answer = client.delete(TOTP, json=body, headers=doctor.headers)
        assert (answer.status_code, answer.json["code"], len(answer.json["errors"])) == (422, code, 1)
    assert log_in(client, doctor).json["code"] == "otp_required"
    letterbox.mails(accounts.engine, accounts.settings)
    answer = client.delete(TOTP, json={"password": PASSWORD, "otp": phone.code()}, headers=doctor.headers)
    assert (answer.status_code, answer.data) == (204, b"")
    assert [client.get(ME, headers=who.headers).status_code for who in (doctor, other)] == [200, 401]
    assert log_in(client, doctor).status_code == 200
    (mail,) = letterbox.mails(accounts.engine, accounts.settings)
    assert mail["Subject"] == "Health&Med: Verificação em duas etapas desativada"
    with accounts.engine.connect() as connection:
        assert connection.execute(text("select count(*) from recovery_codes")).scalar_one() == 0
        actions = connection.execute(text("select action from audit where action like 'totp%' order by id")).scalars().all()
    assert actions == ["totp_on", "totp_off"]


def test_a_lost_app_is_taken_off_with_a_recovery_code(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    phone = phone_of(client, accounts, doctor)
    answer = client.delete(TOTP, json={"password": PASSWORD, "otp": phone.recovery[0]}, headers=doctor.headers)
    assert answer.status_code == 204


def test_steps_out_of_order_are_conflicts(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    for method, path, body in [
        ("POST", CONFIRM, {"otp": "000000"}),
        ("DELETE", TOTP, {"password": PASSWORD, "otp": "000000"}),
    ]:
        answer = client.open(path, method=method, json=body, headers=doctor.headers)
        assert (answer.status_code, answer.json["code"]) == (409, "totp_off")
    phone = phone_of(client, accounts, doctor)
    for path, body in [(TOTP, {"password": PASSWORD}), (CONFIRM, {"otp": phone.code()})]:
        answer = client.post(path, json=body, headers=doctor.headers)
        assert (answer.status_code, answer.json["code"]) == (409, "totp_on")


def test_enrolling_needs_the_password_and_a_right_code(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    answer = client.post(TOTP, json={"password": "wrong password"}, headers=doctor.headers)
    assert (answer.status_code, answer.json["code"]) == (422, "wrong_password")
    first, second = Phone(enrol(client, doctor)["secret"], []), Phone(enrol(client, doctor)["secret"], [])
    for wrong in ("000000", first.code()):  # the first secret was replaced
        answer = client.post(CONFIRM, json={"otp": wrong}, headers=doctor.headers)
        assert (answer.status_code, answer.json["code"], list(answer.json["errors"])) == (422, "invalid_otp", ["otp"])
    assert log_in(client, doctor).status_code == 200
    assert client.post(CONFIRM, json={"otp": second.code()}, headers=doctor.headers).status_code == 200


def test_a_forgotten_password_is_not_a_way_around_the_second_factor(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor(email="bruno@example.com")
    phone = phone_of(client, accounts, doctor)
    letterbox.mails(accounts.engine, accounts.settings)
    client.post("/api/v1/auth/password/forgot", json={"login": doctor.login})
    (mail,) = letterbox.mails(accounts.engine, accounts.settings)
    new = "outra senha bem comprida"
    reset = client.post("/api/v1/auth/password/reset", json={"token": letterbox.token(mail), "password": new})
    assert reset.status_code == 204
    body = {"crm": doctor.login, "password": new}
    assert client.post("/api/v1/auth/doctor", json=body).json["code"] == "otp_required"
    assert client.post("/api/v1/auth/doctor", json={**body, "otp": phone.code()}).status_code == 200


@pytest.fixture
def strict(settings: Settings, client: FlaskClient) -> Iterator[FlaskClient]:
    """A client of an application whose staff must have a second factor."""
    app = create_app(replace(settings, staff_totp=True))
    yield app.test_client()
    app.extensions["healthmed"].close()


def test_staff_without_a_second_factor_may_only_get_one(strict: FlaskClient, accounts: Accounts) -> None:
    staff = accounts.staff()
    body = {"login": staff.login, "password": PASSWORD}
    access = strict.post("/api/v1/auth/staff", json=body).json["access_token"]
    staff = replace(staff, access=access)
    doctors = "/api/v1/staff/doctors"
    refused = strict.get(doctors, headers=staff.headers)
    assert (refused.status_code, refused.json["code"]) == (403, "totp_required")
    assert strict.get(ME, headers=staff.headers).status_code == 200
    phone = phone_of(strict, accounts, staff)
    assert strict.get(doctors, headers=staff.headers).status_code == 200
    again = strict.post("/api/v1/auth/staff", json={**body, "otp": phone.code()}).json["access_token"]
    assert strict.get(doctors, headers={"Authorization": f"Bearer {again}"}).status_code == 200
    later(accounts)
    strict.delete(TOTP, json={"password": PASSWORD, "otp": phone.code()}, headers=staff.headers)
    assert strict.get(doctors, headers=staff.headers).status_code == 403


def test_only_staff_must_have_a_second_factor(strict: FlaskClient, client: FlaskClient, accounts: Accounts) -> None:
    for who in (accounts.patient(), accounts.doctor()):
        assert strict.get("/api/v1/appointments", headers=who.headers).status_code == 200
    assert client.get("/api/v1/staff/doctors", headers=accounts.staff().headers).status_code == 200
