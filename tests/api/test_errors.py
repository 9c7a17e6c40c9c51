"""Whatever goes wrong is a problem document, names what was wrong, and gives nothing away."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from api.app import create_app
from domain.settings import Settings
from local.servers import Postgres
from tests.factories import Accounts, patient_body

PATIENTS = "/api/v1/patients"
LOG_IN = "/api/v1/auth/patient"


def assert_problem(answer: Any, status: int, code: str) -> None:
    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    body = json.loads(answer.data)
    assert {"type", "title", "status", "detail", "code"} <= body.keys()
    assert (body["status"], body["code"]) == (status, code)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Request-ID"]


def test_the_frameworks_errors_are_problems_too(client: FlaskClient) -> None:
    assert_problem(client.get("/nowhere"), 404, "not_found")
    assert_problem(client.get("/api/v1/nowhere"), 404, "not_found")
    not_allowed = client.delete(PATIENTS)
    assert_problem(not_allowed, 405, "method_not_allowed")
    assert "POST" in not_allowed.headers["Allow"]
    assert_problem(client.get("/api/v1/me"), 401, "unauthorized")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b'{"login": "a", "login": "b"}',
        b'{"login": NaN}',
        b'{"login": Infinity}',
        b'{"login": "\xff"}',
        b'{"login": "a\nb"}',
        b"\x00",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"9" * 5_000,
        "{}".encode("utf-16"),
    ],
)
def test_malformed_json_is_400(client: FlaskClient, body: bytes) -> None:
    assert_problem(client.post(LOG_IN, data=body, content_type="application/json"), 400, "malformed_request")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"1", b"null", b"true", b"[{}]", b"1e400", b"-0.0"])
def test_a_body_that_is_no_object_is_422(client: FlaskClient, body: bytes) -> None:
    answer = client.post(LOG_IN, data=body, content_type="application/json")
    assert_problem(answer, 422, "validation_error")
    assert list(answer.json["errors"]) == ["body"]


@pytest.mark.parametrize("body", [b"", b"  ", b"{}"])
def test_an_empty_body_is_an_empty_object(client: FlaskClient, body: bytes) -> None:
    answer = client.post(LOG_IN, data=body)
    assert_problem(answer, 422 if body != b"{}" else 415, "validation_error" if body != b"{}" else "unsupported_media_type")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/xml"},
        {"Content-Type": ""},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_json_is_415(client: FlaskClient, headers: dict[str, str]) -> None:
    assert_problem(client.post(LOG_IN, data=b"{}", headers=headers), 415, "unsupported_media_type")


def test_a_call_without_fields_takes_nothing_or_an_empty_object(client: FlaskClient, accounts: Accounts) -> None:
    for body, content_type, status in [
        (b"", None, 204),
        (b"{}", "application/json", 204),
        (b'{"everywhere": true}', "application/json", 422),
        (b"[]", "application/json", 422),
        (b"{", "application/json", 400),
    ]:
        answer = client.post("/api/v1/auth/logout", data=body, content_type=content_type, headers=accounts.patient().headers)
        assert answer.status_code == status


@pytest.mark.parametrize("path", [PATIENTS, "/api/v1/auth/logout", "/nowhere"])
def test_a_body_over_64_kib_is_413_whoever_asks(client: FlaskClient, path: str) -> None:
    body = b'{"name": "' + b"x" * 65_536 + b'"}'
    assert_problem(client.post(path, data=body, content_type="application/json"), 413, "payload_too_large")
    chunked = client.post(
        path,
        input_stream=BytesIO(body),
        content_type="application/json",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert_problem(chunked, 413, "payload_too_large")


def test_64_kib_of_body_are_read(client: FlaskClient) -> None:
    body = json.dumps({**patient_body(), "phone": ""}).encode()
    answer = client.post(PATIENTS, data=body + b" " * (65_536 - len(body)), content_type="application/json")
    assert_problem(answer, 422, "validation_error")


def test_fields_are_named_by_their_path_in_two_languages(client: FlaskClient) -> None:
    answer = client.post(PATIENTS, json={**patient_body(), "representative": {"name": "R", "age": 4}, "\ud800": 1})
    assert_problem(answer, 422, "validation_error")
    errors = json.loads(answer.data)["errors"]
    assert errors.keys() == {"representative.name", "representative.cpf", "representative.age", "?"}
    assert errors["representative.cpf"] == ["Obrigatório. / Required."]
    assert all(" / " in message for messages in errors.values() for message in messages)


@pytest.mark.parametrize("path", ["/api/v1/me/sessions/1", "/api/v1/me/sessions/%00", "/api/v1/me/sessions/%ff", "/%ff%fe"])
def test_an_id_that_is_none_is_404(client: FlaskClient, accounts: Accounts, path: str) -> None:
    assert_problem(client.delete(path, headers=accounts.patient().headers), 404, "not_found")


def test_queries_are_read_leniently_but_checked(client: FlaskClient, accounts: Accounts) -> None:
    headers = accounts.staff().headers
    for query in ("?status=verified&status=nonsense", "?whatever=1", "?q=", "?q=%C3%A9", "?q=%ff"):
        assert client.get(f"/api/v1/staff/doctors{query}", headers=headers).status_code == 200
    for query in ("?page=-1", "?page=1.5", "?page=%D9%A1", "?page=", "?page_size=true", "?q=%ED%A0%80%00"):
        assert_problem(client.get(f"/api/v1/staff/doctors{query}", headers=headers), 422, "validation_error")


def test_an_error_of_our_own_tells_a_reference_and_nothing_else(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def breaks() -> None:
        raise ValueError("the CPF 52998224725 of ana@example.com")

    monkeypatch.setitem(app.view_functions, "pages.show_life", _allowed(breaks))
    answer = client.get("/healthz", headers={"X-Request-ID": "reference-1"})
    assert_problem(answer, 500, "internal_error")
    assert "reference-1" in answer.json["detail"]
    logged = capfd.readouterr().err
    assert "ValueError" in logged
    for text in (answer.text, logged):
        assert "529" not in text
        assert "ana@" not in text
        assert "Traceback" not in text


def test_a_database_that_is_gone_is_503_with_retry_after(client: FlaskClient, postgres: Postgres) -> None:
    postgres.kill()
    answer = client.post(LOG_IN, json={"login": "ana@example.com", "password": "whatever it was"})
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_sane_request_id_comes_back_and_another_is_replaced(client: FlaskClient) -> None:
    for sane in ("a", "A-b_c.9", "x" * 64):
        assert client.get("/healthz", headers={"X-Request-ID": sane}).headers["X-Request-ID"] == sane
    for strange in ("", "x" * 65, "a b", 'a"}', "\u00e9", "a\tb"):
        made = client.get("/healthz", headers={"X-Request-ID": strange}).headers["X-Request-ID"]
        assert made != strange
        assert len(made) == 36


def test_every_answer_carries_the_headers_that_browsers_obey(client: FlaskClient) -> None:
    for path in ("/healthz", "/api/v1/me", "/nowhere", "/api/v1/specialties"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "Strict-Transport-Security" not in headers
        assert "Access-Control-Allow-Origin" not in headers


def test_outside_the_local_stack_browsers_are_told_to_use_https_and_only_set_origins_are_allowed(
    settings: Settings, client: FlaskClient
) -> None:
    app = create_app(replace(settings, local_stack=False, cors_origins=("https://portal.example",)))
    elsewhere = app.test_client()
    answer = elsewhere.get("/healthz", headers={"Origin": "https://portal.example"})
    assert "max-age=" in answer.headers["Strict-Transport-Security"]
    assert answer.headers["Access-Control-Allow-Origin"] == "https://portal.example"
    assert "Origin" in answer.headers["Vary"]
    preflight = elsewhere.options("/api/v1/me", headers={"Origin": "https://portal.example"})
    assert preflight.status_code == 200
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    for origin in ("https://evil.example", "null", "https://portal.example.evil.example"):
        assert "Access-Control-Allow-Origin" not in elsewhere.get("/healthz", headers={"Origin": origin}).headers
    app.extensions["healthmed"].close()


def test_a_log_line_holds_no_query_no_body_and_no_token(
    client: FlaskClient, accounts: Accounts, capfd: pytest.CaptureFixture[str]
) -> None:
    patient = accounts.patient()
    capfd.readouterr()
    client.get("/api/v1/me?cpf=52998224725", headers={**patient.headers, "X-Request-ID": "line-1"})
    client.post(LOG_IN, json={"login": "ana@example.com", "password": "a secret password"})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    asked = next(line for line in lines if line["request_id"] == "line-1" and line["event"] == "request")
    assert (asked["method"], asked["route"], asked["status"]) == ("GET", "/api/v1/me", 200)
    everything = json.dumps(lines)
    for secret in ("52998224725", "529.982", "ana@", "a secret", patient.access, str(patient.id)):
        assert secret not in everything


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=3),
    max_leaves=8,
)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_input_is_an_error_of_our_own(client: FlaskClient, data: st.DataObject) -> None:
    path, known = data.draw(st.sampled_from([(PATIENTS, list(patient_body())), (LOG_IN, ["login", "password", "otp"])]))
    body = data.draw(st.dictionaries(st.sampled_from(known) | st.text(), _anything) | _anything)
    answer = client.post(path, data=json.dumps(body), content_type="application/json")
    assert 400 <= answer.status_code < 500
    json.loads(answer.data.decode())


def _allowed(view: Any) -> Any:
    from api.auth import Anyone, policy

    return policy(Anyone)(view)
