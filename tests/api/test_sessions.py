"""Logging in and out, refreshing, and the limits on guessing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from api.app import create_app
from domain.privacy import KeyRing
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Broker
from local.servers import Cache as CacheServer
from tests.factories import PASSWORD, Accounts, Someone, bearer, cpf

ME = "/api/v1/me"
REFRESH = "/api/v1/auth/refresh"
LOG_OUT = "/api/v1/auth/logout"


def test_a_doctor_logs_in_by_crm_in_the_forms_people_write(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor(status="pending_verification")
    number = doctor.login.removesuffix("/SP")
    for written in (doctor.login, f"CRM/SP {number}", f"{number}-sp"):
        answer = client.post("/api/v1/auth/doctor", json={"crm": written, "password": PASSWORD})
        assert answer.status_code == 200
        assert answer.json.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
        assert (answer.json["token_type"], answer.json["expires_in"]) == ("Bearer", 900)
        assert answer.headers["Cache-Control"] == "no-store"
    assert client.get(ME, headers=bearer(answer.json["access_token"])).json["id"] == str(doctor.id)


def test_a_patient_logs_in_by_email_or_cpf(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient(email="Ana@Example.com", cpf=cpf(529982247))
    for login in ("ana@example.com", " ANA@EXAMPLE.COM ", "52998224725", "529.982.247-25"):
        answer = client.post("/api/v1/auth/patient", json={"login": login, "password": PASSWORD})
        assert answer.status_code == 200
    assert client.get(ME, headers=bearer(answer.json["access_token"])).json["id"] == str(patient.id)


def test_staff_logs_in(client: FlaskClient, accounts: Accounts) -> None:
    staff = accounts.staff()
    answer = client.post("/api/v1/auth/staff", json={"login": staff.login, "password": PASSWORD, "otp": "123456"})
    assert client.get(ME, headers=bearer(answer.json["access_token"])).json["role"] == "staff"


def test_nobody_logs_in_at_another_ones_door(client: FlaskClient, accounts: Accounts) -> None:
    for login, path in [(accounts.staff().login, "patient"), (accounts.patient().login, "staff")]:
        answer = client.post(f"/api/v1/auth/{path}", json={"login": login, "password": PASSWORD})
        assert answer.status_code == 401


def test_a_wrong_password_and_an_unknown_login_answer_the_same(client: FlaskClient, accounts: Accounts) -> None:
    tries = [
        ("patient", {"login": accounts.patient().login, "password": "wrong password"}),
        ("patient", {"login": "nobody@example.com", "password": PASSWORD}),
        ("patient", {"login": cpf(), "password": PASSWORD}),
        ("patient", {"login": "neither of both", "password": PASSWORD}),
        ("staff", {"login": "nobody@example.com", "password": PASSWORD}),
        ("doctor", {"crm": accounts.doctor().login, "password": "wrong password"}),
        ("doctor", {"crm": "1/AC", "password": PASSWORD}),
    ]
    answers = [client.post(f"/api/v1/auth/{path}", json=body) for path, body in tries]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.data for answer in answers}) == 1
    assert {answer.json["code"] for answer in answers} == {"invalid_credentials"}
    assert all(answer.headers["WWW-Authenticate"].startswith("Bearer") for answer in answers)


def test_logging_out_ends_the_token_and_its_refresh_family_at_once(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    other = accounts.logged_in(patient.id, Role.PATIENT, patient.login)
    assert client.get(ME, headers=patient.headers).status_code == 200
    answer = client.post(LOG_OUT, headers=patient.headers)
    assert (answer.status_code, answer.data) == (204, b"")
    assert client.get(ME, headers=patient.headers).status_code == 401
    assert client.post(REFRESH, headers=bearer(patient.refresh)).status_code == 401
    assert client.get(ME, headers=other.headers).status_code == 200


def test_a_session_that_ended_stays_ended_when_the_cache_is_emptied_or_gone(
    client: FlaskClient, accounts: Accounts, cache_server: CacheServer
) -> None:
    ended, living = accounts.patient(), accounts.patient()
    client.post(LOG_OUT, headers=ended.headers)
    for break_it in (lambda: None, cache_server.kill):
        break_it()
        assert client.get(ME, headers=ended.headers).status_code == 401
        assert client.get(ME, headers=living.headers).status_code == 200


def test_a_refresh_token_gives_new_tokens_and_dies(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    answer = client.post(REFRESH, headers=bearer(patient.refresh))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["refresh_token"] != patient.refresh
    assert client.get(ME, headers=bearer(answer.json["access_token"])).status_code == 200
    assert client.post(REFRESH, headers=bearer(answer.json["refresh_token"])).status_code == 200


def test_a_double_click_gets_the_same_successor(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    answers = [client.post(REFRESH, headers=bearer(patient.refresh)) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.data for answer in answers}) == 1


def test_a_refresh_token_used_again_later_kills_the_whole_family_at_once(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    successor = client.post(REFRESH, headers=bearer(patient.refresh)).json
    assert client.get(ME, headers=bearer(successor["access_token"])).status_code == 200
    _age_sessions(accounts, seconds=11)
    assert client.post(REFRESH, headers=bearer(patient.refresh)).status_code == 401
    assert client.get(ME, headers=bearer(successor["access_token"])).status_code == 401
    assert client.post(REFRESH, headers=bearer(successor["refresh_token"])).status_code == 401


def test_a_grandparent_token_kills_the_family_even_within_ten_seconds(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    child = client.post(REFRESH, headers=bearer(patient.refresh)).json
    grandchild = client.post(REFRESH, headers=bearer(child["refresh_token"])).json
    assert client.post(REFRESH, headers=bearer(patient.refresh)).status_code == 401
    assert client.get(ME, headers=bearer(grandchild["access_token"])).status_code == 401


def test_each_token_is_good_for_one_thing_only(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    assert client.get(ME, headers=bearer(patient.refresh)).status_code == 401
    assert client.post(REFRESH, headers=bearer(patient.access)).status_code == 401


@pytest.mark.parametrize("change", ["none", "stronger", "kid", "expired", "audience", "issuer", "edited", "type", "sub", "role"])
def test_a_token_that_is_not_ours_is_refused(client: FlaskClient, accounts: Accounts, change: str) -> None:
    patient = accounts.patient()
    secret, header = b"j" * 32, {"kid": "test"}
    claims = jwt.decode(patient.access, options={"verify_signature": False})
    now = datetime.now(UTC)
    match change:
        case "none":
            token = jwt.encode(claims, None, "none")
        case "stronger":
            token = jwt.encode(claims, secret * 2, "HS512", header)
        case "kid":
            token = jwt.encode(claims, b"k" * 32, "HS256", {"kid": "other"})
        case "expired":
            token = jwt.encode({**claims, "exp": now - timedelta(minutes=1)}, secret, "HS256", header)
        case "audience":
            token = jwt.encode({**claims, "aud": "somebody-else"}, secret, "HS256", header)
        case "issuer":
            token = jwt.encode({**claims, "iss": "somebody-else"}, secret, "HS256", header)
        case "edited":
            head, _, signature = patient.access.split(".")
            body = base64.urlsafe_b64encode(json.dumps({**claims, "role": "staff"}).encode()).decode().rstrip("=")
            token = f"{head}.{body}.{signature}"
        case "type":
            token = jwt.encode({name: value for name, value in claims.items() if name != "type"}, secret, "HS256", header)
        case _:
            token = jwt.encode({**claims, change: "nonsense"}, secret, "HS256", header)
    answer = client.get(ME, headers=bearer(token))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.fixture
def app_with_keys(settings: Settings, client: FlaskClient) -> Iterator[Callable[[str], FlaskClient]]:
    """Makes clients of applications that have these of the keys "new" and "test", the first of which signs."""
    apps: list[Flask] = []

    def app_with_keys(ids: str) -> FlaskClient:
        keys = {"new": b"n" * 32, **settings.jwt_keys.keys}
        ring = KeyRing(ids.split()[0], {key_id: keys[key_id] for key_id in ids.split()})
        apps.append(create_app(replace(settings, jwt_keys=ring)))
        return apps[-1].test_client()

    yield app_with_keys
    for app in apps:
        app.extensions["healthmed"].close()


def test_keys_are_rotated_while_serving(
    app_with_keys: Callable[[str], FlaskClient], client: FlaskClient, accounts: Accounts
) -> None:
    patient = accounts.patient()  # whose tokens are of the key "test"
    verifying, signing, without = (app_with_keys(ids) for ids in ("test new", "new test", "new"))
    assert [each.get(ME, headers=patient.headers).status_code for each in (verifying, signing, without)] == [200, 200, 401]
    renewed = signing.post(REFRESH, headers=bearer(patient.refresh)).json["access_token"]
    assert jwt.get_unverified_header(renewed)["kid"] == "new"
    everywhere = (verifying, signing, without, client)
    assert [each.get(ME, headers=bearer(renewed)).status_code for each in everywhere] == [200, 200, 200, 401]


def test_a_password_is_hashed_anew_when_the_parameters_have_changed(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    weaker = PasswordHasher(memory_cost=8 * 1024, time_cost=1, parallelism=1).hash(PASSWORD)
    with accounts.engine.begin() as connection:
        connection.execute(text("update people set password_hash = :hash where id = :id"), {"hash": weaker, "id": patient.id})
    body = {"login": patient.login, "password": PASSWORD}
    for _ in range(2):
        assert client.post("/api/v1/auth/patient", json=body).status_code == 200
        with accounts.engine.connect() as connection:
            stored = connection.execute(text("select password_hash from people where id = :id"), {"id": patient.id}).scalar_one()
        assert "$m=19456,t=2,p=1$" in stored
    assert client.get(ME, headers=patient.headers).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a.b.c", "Bearer \xff", "Bearer a b", "Bearer " + "x" * 5000],
)
def test_a_header_that_is_no_token_is_refused(client: FlaskClient, header: str) -> None:
    assert client.get(ME, headers={"Authorization": header}).status_code == 401


def test_sessions_are_listed_and_ended_by_their_owner_only(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    other = client.post(
        "/api/v1/auth/patient", json={"login": patient.login, "password": PASSWORD}, headers={"User-Agent": "Navegador"}
    ).json
    listed = client.get("/api/v1/me/sessions", headers=patient.headers).json["items"]
    assert [(each["current"], each["origin"]["address"]) for each in listed] == [(False, "127.0.0.1"), (True, "127.0.0.1")]
    path = f"/api/v1/me/sessions/{listed[0]['id']}"
    assert client.delete(path, headers=accounts.patient().headers).status_code == 404
    assert client.get(ME, headers=bearer(other["access_token"])).status_code == 200
    assert client.delete(path, headers=patient.headers).status_code == 204
    assert client.get(ME, headers=bearer(other["access_token"])).status_code == 401
    assert client.delete(path, headers=patient.headers).status_code == 404
    assert len(client.get("/api/v1/me/sessions", headers=patient.headers).json["items"]) == 1


def test_guessing_one_account_is_slowed_down_but_its_owner_still_gets_in(limited: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    _log_in(limited, patient, address="198.51.100.1")  # an address that is known from now on

    guesses = [_log_in(limited, patient, password=f"guess {n}", address=f"203.0.113.{n}") for n in range(8)]
    assert [answer.status_code for answer in guesses] == [401] * 5 + [429] * 3
    assert 1 <= int(guesses[-1].headers["Retry-After"]) <= 30
    assert guesses[-1].json["code"] == "too_many_requests"
    assert _log_in(limited, patient, address="203.0.113.9").status_code == 429
    assert _log_in(limited, patient, address="198.51.100.1").status_code == 200


def test_guesses_at_an_unknown_login_are_slowed_down_alike(limited: FlaskClient) -> None:
    body = {"login": "nobody@example.com", "password": PASSWORD}
    answers = [limited.post("/api/v1/auth/patient", json=body) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429]


def test_guesses_are_counted_without_the_broker_too(limited: FlaskClient, accounts: Accounts, broker: Broker) -> None:
    patient = accounts.patient()
    broker.kill()
    answers = [_log_in(limited, patient, password="wrong password", address="203.0.113.1") for _ in range(11)]
    assert answers[0].status_code == 401
    assert answers[-1].status_code == 429


def test_right_log_ins_are_not_counted(limited: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    assert {_log_in(limited, patient, address="203.0.113.1").status_code for _ in range(40)} == {200}


def test_only_the_stated_proxies_are_believed(limited: FlaskClient, client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    _log_in(limited, patient, address="198.51.100.7, 203.0.113.5")
    _log_in(client, patient, address="198.51.100.8")
    listed = client.get("/api/v1/me/sessions", headers=patient.headers).json["items"]
    assert [each["origin"]["address"] for each in listed] == ["127.0.0.1", "203.0.113.5", "127.0.0.1"]


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ("203.0.113.5:61234", "203.0.113.5"),
        ("[2001:db8::7]:61234", "2001:db8::7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("10.0.0.1, 198.51.100.1, 203.0.113.5", "203.0.113.5"),
        ("unknown", "0.0.0.0"),
        ("x" * 4000, "0.0.0.0"),
        ("[]", "0.0.0.0"),
    ],
)
def test_an_address_is_read_as_proxies_write_it(limited: FlaskClient, accounts: Accounts, told: str, address: str) -> None:
    patient = accounts.patient()
    _log_in(limited, patient, address=told)
    listed = limited.get("/api/v1/me/sessions", headers=patient.headers).json["items"]
    assert listed[0]["origin"]["address"] == address


def test_a_port_makes_no_other_address(limited: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    assert _log_in(limited, patient, address="198.51.100.1:1").status_code == 200
    guesses = [_log_in(limited, patient, password=f"guess {n}", address=f"198.51.100.1:{n}") for n in range(2, 13)]
    assert [answer.status_code for answer in guesses] == [401] * 10 + [429]  # as many as from one address that is known


def test_a_policy_is_stated_by_every_view(app: Flask) -> None:
    from api import auth

    app.view_functions["forgotten"] = lambda: "secrets"
    try:
        with pytest.raises(RuntimeError, match="forgotten"):
            auth.check_policies(app)
    finally:
        del app.view_functions["forgotten"]
    auth.check_policies(app)


def _log_in(client: FlaskClient, patient: Someone, *, address: str, password: str = PASSWORD):  # type: ignore[no-untyped-def]
    body = {"login": patient.login, "password": password}
    return client.post("/api/v1/auth/patient", json=body, headers={"X-Forwarded-For": address})


def _age_sessions(accounts: Accounts, *, seconds: int) -> None:
    with accounts.engine.begin() as connection:
        connection.execute(
            text("update sessions set refreshed_at = refreshed_at - make_interval(secs => :seconds)"), {"seconds": seconds}
        )
