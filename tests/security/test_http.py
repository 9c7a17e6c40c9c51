"""What a request carries can forge nothing, and every answer tells browsers to keep it to themselves."""

from __future__ import annotations

import json

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.api.clinic import Clinic
from tests.security.policies import ROUTES

FORGERIES = [
    'x\n{"event": "forged", "level": "info"}',
    'x\r\n{"event": "forged"}',
    'x", "event": "forged',
    "x\u2028forged",
    "\x1b[2Jforged",
]


@pytest.mark.parametrize("forgery", FORGERIES)
def test_nothing_in_a_request_forges_a_line_of_the_log(
    client: FlaskClient, capfd: pytest.CaptureFixture[str], forgery: str
) -> None:
    raw = forgery.encode().decode("latin-1")
    capfd.readouterr()
    sent = {f"HTTP_{name}": raw for name in ("X_REQUEST_ID", "USER_AGENT", "AUTHORIZATION", "IDEMPOTENCY_KEY", "X_FORWARDED_FOR")}
    for environ in ({}, {"REQUEST_METHOD": raw}, {"PATH_INFO": f"/api/v1/{raw}"}, {"QUERY_STRING": raw}):
        client.open("/api/v1/appointments", method="POST", json={"slot_id": forgery}, environ_overrides={**sent, **environ})
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4
    for line in lines:
        told = json.loads(line)
        assert told["event"] == "request"
        assert len(told["request_id"]) == 36
        assert told["route"] in (None, "/api/v1/appointments")
        assert "\x1b" not in line


def test_a_line_of_the_log_says_in_which_session(clinic: Clinic, capfd: pytest.CaptureFixture[str]) -> None:
    patient = clinic.accounts.patient()
    (session_id,) = clinic.all("select id from sessions")
    capfd.readouterr()
    clinic.get("/me", patient)
    clinic.get("/staff/doctors", patient)
    clinic.get("/me")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    told = [(line["status"], line["session_id"]) for line in lines if line.get("route") != "/api/v1/openapi.json"]
    assert told == [(200, str(session_id)), (403, str(session_id)), (401, None)]


@pytest.mark.parametrize("path", sorted({route.path for route in ROUTES if "{" not in route.path}))
def test_every_answer_is_for_one_reader_and_one_purpose(client: FlaskClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "TRACE"):
        answer = client.open(path, method=method)
        headers = answer.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert all(f"{each} 'none'" in policy for each in ("default-src", "base-uri", "frame-ancestors"))
        assert not {"Access-Control-Allow-Origin", "Set-Cookie", "X-Powered-By"} & set(headers.keys())
        if headers["Cache-Control"] != "no-store":
            assert answer.status_code in (200, 304)
            assert path.startswith(("/api/v1/specialties", "/api/v1/doctors"))
        assert answer.status_code < 500


def test_what_is_personal_is_stored_by_no_cache_between(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    for path in ("/me", "/me/sessions", "/appointments", f"/appointments/{appointment_id}"):
        cached = clinic.get(path, patient).headers["Cache-Control"]
        assert cached in ("no-store", "private, no-cache"), path


def test_no_route_takes_a_persons_data_in_its_address(app: Flask) -> None:
    named = {name for rule in app.url_map.iter_rules() for name in rule.arguments}
    assert all(name.endswith("_id") or name in ("token", "kind") for name in named), named
