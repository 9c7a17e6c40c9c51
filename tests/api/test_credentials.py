"""Changing what one logs in with: the e-mail address, the password, a forgotten one, by links that are mailed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import EmailMessage
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from api.app import create_app
from api.attempts import Limit
from domain.notices import Kind
from domain.schedule import Role
from domain.settings import Settings
from tests import letterbox
from tests.factories import PASSWORD, Accounts, Someone, cpf, patient_body

ME = "/api/v1/me"
EMAIL = "/api/v1/me/email"
CONFIRM = "/api/v1/auth/email/confirm"
FORGOT = "/api/v1/auth/password/forgot"
RESET = "/api/v1/auth/password/reset"
NEW = "outra senha bem comprida"


def mails(accounts: Accounts) -> list[EmailMessage]:
    return letterbox.mails(accounts.engine, accounts.settings)


def log_in(client: FlaskClient, login: str, password: str = PASSWORD) -> int:
    return client.post("/api/v1/auth/patient", json={"login": login, "password": password}).status_code


def ask(client: FlaskClient, who: Someone, email: str, password: str = PASSWORD) -> Any:
    return client.put(EMAIL, json={"email": email, "password": password}, headers=who.headers)


def forgotten(client: FlaskClient, accounts: Accounts, login: str) -> str:
    """The token of the link that somebody gets who forgot their password."""
    assert client.post(FORGOT, json={"login": login}).status_code == 202
    (mail,) = mails(accounts)
    return letterbox.token(mail)


def rows(accounts: Accounts, query: str) -> list[Any]:
    with accounts.engine.connect() as connection:
        return list(connection.execute(text(query)).scalars())


def change(accounts: Accounts, statement: str) -> None:
    with accounts.engine.begin() as connection:
        connection.execute(text(statement))


def test_an_address_is_changed_by_whoever_reads_its_mail_and_the_former_one_is_told(
    client: FlaskClient, accounts: Accounts
) -> None:
    patient = accounts.patient(email="antes@example.com")
    answer = ask(client, patient, "Depois@example.com")
    assert (answer.status_code, answer.data) == (202, b"")
    to_new, to_old = mails(accounts)
    assert (to_new["To"], to_old["To"]) == ("Depois@example.com", "Ana Souza <antes@example.com>")
    assert "#token=" not in to_old.as_string()
    assert client.get(ME, headers=patient.headers).json["email"] == "antes@example.com"

    body = {"token": letterbox.token(to_new)}
    answer = client.post(CONFIRM, json=body)
    assert (answer.status_code, answer.data) == (204, b"")
    own = client.get(ME, headers=patient.headers).json
    assert (own["email"], own["email_confirmed"]) == ("Depois@example.com", True)
    assert (log_in(client, "antes@example.com"), log_in(client, "depois@example.com")) == (401, 200)
    again = client.post(CONFIRM, json=body)
    assert (again.status_code, again.json["code"], list(again.json["errors"])) == (422, "invalid_link", ["token"])


def test_following_a_link_changes_nothing(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient(email="antes@example.com")
    ask(client, patient, "depois@example.com")
    token = letterbox.token(mails(accounts)[0])
    for path in (CONFIRM, RESET, "/email/confirm", "/password/reset"):
        assert client.get(f"{path}?token={token}").status_code in (404, 405)
        assert client.head(f"{path}?token={token}").status_code in (404, 405)
    assert client.get(ME, headers=patient.headers).json["email"] == "antes@example.com"
    assert client.post(CONFIRM, json={"token": token}).status_code == 204


def test_a_link_is_found_by_its_hash_and_its_token_is_gone_once_it_is_mailed(client: FlaskClient, accounts: Accounts) -> None:
    ask(client, accounts.patient(), "depois@example.com")
    waiting = rows(accounts, "select secret from notices where kind = 'confirm_email'")
    token = letterbox.token(mails(accounts)[0])
    stored = [bytes(each) for each in rows(accounts, "select token_hash from links union select email from links")]
    assert not any(token.encode() in each or b"depois" in each for each in (*stored, bytes(waiting[0])))
    assert rows(accounts, "select secret from notices") == [None, None]


def test_another_address_needs_the_password(client: FlaskClient, accounts: Accounts) -> None:
    answer = ask(client, accounts.patient(), "depois@example.com", "not the one")
    assert (answer.status_code, answer.json["code"], list(answer.json["errors"])) == (422, "wrong_password", ["password"])
    assert mails(accounts) == []
    assert rows(accounts, "select id from links") == []


def test_whether_an_address_has_an_account_is_told_to_its_reader_only(client: FlaskClient, accounts: Accounts) -> None:
    accounts.patient(email="delas@example.com")
    patient = accounts.patient()
    unknown, known = (ask(client, patient, email) for email in ("livre@example.com", "Delas@example.com"))
    assert (unknown.status_code, unknown.data) == (known.status_code, known.data)
    token = letterbox.token(next(mail for mail in mails(accounts) if mail["To"] == "Delas@example.com"))
    answer = client.post(CONFIRM, json={"token": token})
    assert (answer.status_code, answer.json["code"]) == (409, "already_registered")
    assert client.get(ME, headers=patient.headers).json["email"] == patient.login


def test_a_mail_to_an_address_that_nobody_has_proved_holds_no_word_of_whoever_asked(
    client: FlaskClient, accounts: Accounts
) -> None:
    ask(client, accounts.patient(name="Ganhe em https premios ponto example"), "vitima@example.com")
    assert "Ganhe" not in mails(accounts)[0].as_string()


def test_ones_own_address_is_confirmed_the_same_way_without_a_notice(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    assert client.get(ME, headers=patient.headers).json["email_confirmed"] is False
    ask(client, patient, patient.login)
    (mail,) = mails(accounts)
    client.post(CONFIRM, json={"token": letterbox.token(mail)})
    own = client.get(ME, headers=patient.headers).json
    assert (own["email"], own["email_confirmed"]) == (patient.login, True)


def test_a_changed_address_makes_the_links_worthless_that_went_to_the_former_one(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    to_former = forgotten(client, accounts, patient.login)
    ask(client, patient, "depois@example.com")
    client.post(CONFIRM, json={"token": letterbox.token(mails(accounts)[0])})
    assert client.post(RESET, json={"token": to_former, "password": NEW}).status_code == 422


def test_a_changed_password_undoes_what_somebody_else_asked_for(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    ask(client, patient, "intruso@example.com")
    token = letterbox.token(mails(accounts)[0])
    client.put("/api/v1/me/password", json={"current": PASSWORD, "new": NEW}, headers=patient.headers)
    assert client.post(CONFIRM, json={"token": token}).status_code == 422


@pytest.mark.parametrize(("path", "kind"), [(CONFIRM, "password_forgotten"), (RESET, "confirm_email")])
def test_a_link_is_good_for_one_thing_only(client: FlaskClient, accounts: Accounts, path: str, kind: str) -> None:
    patient = accounts.patient()
    if kind == Kind.CONFIRM_EMAIL:
        ask(client, patient, patient.login)
        token = letterbox.token(mails(accounts)[0])
    else:
        token = forgotten(client, accounts, patient.login)
    body = {"token": token} if path == CONFIRM else {"token": token, "password": NEW}
    assert client.post(path, json=body).status_code == 422


def test_a_link_expires(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    ask(client, patient, patient.login)
    to_confirm = letterbox.token(mails(accounts)[0])
    to_reset = forgotten(client, accounts, patient.login)
    minutes = rows(accounts, "select extract(epoch from expires_at - clock_timestamp()) / 60 from links order by expires_at")
    assert [round(each) for each in minutes] == [30, 24 * 60]
    change(accounts, "update links set expires_at = clock_timestamp()")
    assert client.post(CONFIRM, json={"token": to_confirm}).status_code == 422
    assert client.post(RESET, json={"token": to_reset, "password": NEW}).status_code == 422


def test_a_mail_whose_link_would_have_expired_is_not_sent(client: FlaskClient, accounts: Accounts) -> None:
    client.post(FORGOT, json={"login": accounts.patient().login})
    change(accounts, "update notices set created_at = created_at - interval '30 minutes'")
    assert mails(accounts) == []
    assert rows(accounts, "select drop_reason from notices where secret is null") == ["too_late"]


def test_so_many_links_a_day_one_account_may_have_sent_to_addresses(
    limited: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.credentials.LINKS_TO_ADDRESSES", Limit.of("links", "2 per day"))
    patient = accounts.patient()
    answers = [ask(limited, patient, f"alguem{n}@example.com") for n in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert ask(limited, accounts.patient(), "alguem3@example.com").status_code == 202


@pytest.fixture
def confirming(settings: Settings, client: FlaskClient) -> Iterator[FlaskClient]:
    """A client of an application where patients must confirm their address."""
    app = create_app(replace(settings, limits=replace(settings.limits, confirm_email=True)))
    yield app.test_client()
    app.extensions["healthmed"].close()


def test_a_new_patient_confirms_the_address_before_booking(
    confirming: FlaskClient, client: FlaskClient, accounts: Accounts
) -> None:
    body = patient_body(email="nova@example.com")
    assert confirming.post("/api/v1/patients", json=body).json["email_confirmed"] is False
    access = confirming.post("/api/v1/auth/patient", json={"login": "nova@example.com", "password": PASSWORD}).json[
        "access_token"
    ]
    headers = {"Authorization": f"Bearer {access}"}
    nowhere = {"slot_id": "01a20d57-0000-7000-8000-000000000000"}
    refused = confirming.post("/api/v1/appointments", json=nowhere, headers=headers)
    assert (refused.status_code, refused.json["code"]) == (403, "email_not_confirmed")
    (mail,) = mails(accounts)
    assert mail["To"] == "nova@example.com"
    assert confirming.post(CONFIRM, json={"token": letterbox.token(mail)}).status_code == 204
    assert confirming.get(ME, headers=headers).json["email_confirmed"] is True
    assert confirming.post("/api/v1/appointments", json=nowhere, headers=headers).status_code == 404
    assert rows(accounts, "select action from audit where action like 'email%'") == ["email_confirmed"]


def test_whoever_need_not_confirm_is_not_asked_to(client: FlaskClient, accounts: Accounts) -> None:
    client.post("/api/v1/patients", json=patient_body())
    assert mails(accounts) == []


def test_a_forgotten_password_is_replaced_by_whoever_reads_the_mail(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    token = forgotten(client, accounts, patient.login)
    assert client.get(ME, headers=patient.headers).status_code == 200
    answer = client.post(RESET, json={"token": token, "password": NEW})
    assert (answer.status_code, answer.data) == (204, b"")
    assert client.get(ME, headers=patient.headers).status_code == 401
    refreshed = client.post("/api/v1/auth/refresh", headers={"Authorization": f"Bearer {patient.refresh}"})
    assert refreshed.status_code == 401
    assert (log_in(client, patient.login), log_in(client, patient.login, NEW)) == (401, 200)
    again = client.post(RESET, json={"token": token, "password": "mais uma senha comprida"})
    assert (again.status_code, again.json["code"]) == (422, "invalid_link")
    (told,) = mails(accounts)
    assert told["To"] == f"Ana Souza <{patient.login}>"
    assert "#token=" not in told.as_string()
    assert rows(accounts, "select email_confirmed_at is not null from people where role = 'patient'") == [True]


def test_a_password_is_forgotten_by_any_log_in_of_any_account(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient(email="ana@example.com", cpf=cpf(529982247))
    doctor, staff = accounts.doctor(email="bruno@example.com"), accounts.staff()
    logins = {
        "ANA@example.com": patient, "529.982.247-25": patient, "52998224725": patient, staff.login: staff,
        "bruno@example.com": doctor, doctor.login: doctor, f"crm/sp {doctor.login[:-3]}": doctor,
    }  # fmt: skip
    for login, who in logins.items():
        forgotten(client, accounts, login)
        assert rows(accounts, "select person_id from links") == [who.id], login
        change(accounts, "delete from links")


@pytest.mark.parametrize("login", ["ninguem@example.com", "52998224725", "1/AC", "neither of both", "@", "x@y"])
def test_an_unknown_log_in_is_answered_the_same_and_leaves_nothing(client: FlaskClient, accounts: Accounts, login: str) -> None:
    known = client.post(FORGOT, json={"login": accounts.patient().login})
    before = rows(accounts, "select id from notices union select id from links")
    answer = client.post(FORGOT, json={"login": login})
    assert (answer.status_code, answer.data) == (known.status_code, known.data) == (202, b"")
    assert dict(answer.headers).keys() == dict(known.headers).keys()
    assert rows(accounts, "select id from notices union select id from links") == before


def test_a_flood_of_links_is_cut_and_the_last_of_them_stays_good(limited: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    for number in range(8):
        sent = limited.post(FORGOT, json={"login": patient.login}, headers={"X-Forwarded-For": f"203.0.113.{number}"})
        assert sent.status_code == 202
    found = mails(accounts)
    assert len(found) == 5
    assert limited.post(RESET, json={"token": letterbox.token(found[-1]), "password": NEW}).status_code == 204


def test_one_address_may_have_so_many_links_sent_to_whomever(
    limited: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.credentials.LINKS_FROM_ADDRESS", Limit.of("forgotten", "2 per hour"))
    answers = [limited.post(FORGOT, json={"login": f"alguem{n}@example.com"}) for n in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]


def test_tokens_are_not_guessed_from_one_address(
    limited: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.credentials.FAILURES_FROM_ADDRESS", Limit.of("address", "2 per hour"))
    patient = accounts.patient()
    token = forgotten(limited, accounts, patient.login)
    body = {"token": "x" * 43, "password": NEW}
    assert [limited.post(RESET, json=body).status_code for _ in range(3)] == [422, 422, 429]
    assert limited.post(RESET, json={"token": token, "password": NEW}).status_code == 429
    elsewhere = limited.post(RESET, json={"token": token, "password": NEW}, headers={"X-Forwarded-For": "203.0.113.1"})
    assert elsewhere.status_code == 204


@pytest.mark.parametrize("password", ["1234567890", "short", "ana souza ana souza"])
def test_a_password_that_may_not_be_chosen_does_not_use_up_the_link(
    client: FlaskClient, accounts: Accounts, password: str
) -> None:
    token = forgotten(client, accounts, accounts.patient().login)
    answer = client.post(RESET, json={"token": token, "password": password})
    assert (answer.status_code, list(answer.json["errors"])) == (422, ["password"])
    assert client.post(RESET, json={"token": token, "password": NEW}).status_code == 204


def test_of_many_who_use_one_link_at_once_one_gets_through(app: Flask, client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    token = forgotten(client, accounts, patient.login)

    def reset(number: int) -> int:
        return app.test_client().post(RESET, json={"token": token, "password": f"{number} {NEW}"}).status_code

    with ThreadPoolExecutor(6) as threads:
        statuses = list(threads.map(reset, range(6)))
    assert sorted(statuses) == [204] + [422] * 5
    assert log_in(client, patient.login, f"{statuses.index(204)} {NEW}") == 200


def test_another_password_is_told_and_written_down(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    other = accounts.logged_in(doctor.id, Role.DOCTOR, doctor.login)
    answer = client.put("/api/v1/me/password", json={"current": PASSWORD, "new": NEW}, headers=doctor.headers)
    assert answer.status_code == 204
    assert [client.get(ME, headers=who.headers).status_code for who in (doctor, other)] == [200, 401]
    assert [mail["Subject"] for mail in mails(accounts)] == ["Health&Med: Sua senha foi trocada"]
    assert rows(accounts, "select action from audit where action like 'password%'") == ["password_changed"]
