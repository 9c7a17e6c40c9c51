"""Every code that an answer may carry, each provoked through HTTP: the rejections of commands and the errors of calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pyotp
import pytest
from werkzeug.test import TestResponse

from api.attempts import Attempts
from api.auth import Anyone, policy
from domain import booking
from local.servers import Postgres
from tests import rows
from tests.api.clinic import REASON, Clinic
from tests.factories import PASSWORD, Someone, patient_body

SOURCES = Path(__file__).parents[2]
ANOTHER_PRICE = {"amount": 1, "currency": "BRL"}

# Each takes the fixtures that it names.
Rejected = Callable[..., dict[str, Any]]
Failed = Callable[..., TestResponse]

REJECTIONS: dict[str, Rejected] = {}
ERRORS: dict[str, tuple[int, Failed]] = {}


def rejection(code: str) -> Callable[[Rejected], Rejected]:
    """The one marked has a command rejected with this code, and returns it as its sender reads it."""

    def mark(provoke: Rejected) -> Rejected:
        REJECTIONS[code] = provoke
        return provoke

    return mark


def error(status: int, code: str) -> Callable[[Failed], Failed]:
    """The one marked makes a call that fails with this status and code."""

    def mark(provoke: Failed) -> Failed:
        ERRORS[code] = (status, provoke)
        return provoke

    return mark


def book(clinic: Clinic, patient: Someone, slot_id: str, **body: Any) -> dict[str, Any]:
    """How a booking that may be rejected ends."""
    return clinic.outcome(clinic.request("POST", "/appointments", patient, {"slot_id": slot_id, **body}), patient)


def with_second_factor(clinic: Clinic, who: Someone) -> str:
    """Have somebody asked for codes at log-in; the one that they have used already."""
    secret = clinic.request("POST", "/me/totp", who, {"password": PASSWORD}).json["secret"]
    code = pyotp.TOTP(secret).now()
    assert clinic.request("POST", "/me/totp/confirm", who, {"otp": code}).status_code == 200
    return code


@rejection("slot_taken")
def _(clinic: Clinic) -> dict[str, Any]:
    slot_id = clinic.slot(clinic.accounts.doctor())
    clinic.book(clinic.accounts.patient(), slot_id)
    return book(clinic, clinic.accounts.patient(), slot_id)


@rejection("slot_not_found")
def _(clinic: Clinic) -> dict[str, Any]:
    doctor = clinic.accounts.doctor()
    slot_id = clinic.slot(doctor)
    clinic.done("DELETE", f"/doctors/me/slots/{slot_id}", doctor)
    return book(clinic, clinic.accounts.patient(), slot_id)


@rejection("slot_in_past")
def _(clinic: Clinic) -> dict[str, Any]:
    return book(clinic, clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor(), rows.tomorrow(-48)))


@rejection("outside_booking_window")
def _(clinic: Clinic) -> dict[str, Any]:
    return book(clinic, clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor(), rows.tomorrow(61 * 24)))


@rejection("patient_busy")
def _(clinic: Clinic) -> dict[str, Any]:
    patient = clinic.accounts.patient()
    clinic.book(patient, clinic.slot(clinic.accounts.doctor()))
    return book(clinic, patient, clinic.slot(clinic.accounts.doctor(), rows.tomorrow(0.25)))


@rejection("price_changed")
def _(clinic: Clinic) -> dict[str, Any]:
    return book(clinic, clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor()), price=ANOTHER_PRICE)


@rejection("too_many_reschedules")
def _(clinic: Clinic) -> dict[str, Any]:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slots = [clinic.slot(doctor, rows.tomorrow(hour)) for hour in range(5)]
    path = f"/appointments/{clinic.book(patient, slots[0])}/reschedule"
    for slot_id in slots[1:4]:
        clinic.done("POST", path, patient, {"slot_id": slot_id})
    return clinic.outcome(clinic.request("POST", path, patient, {"slot_id": slots[4]}), patient)


@rejection("too_many_open_requests")
def _(clinic: Clinic) -> dict[str, Any]:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    for hour in range(3):
        clinic.book(patient, clinic.slot(doctor, rows.tomorrow(hour)))
    return book(clinic, patient, clinic.slot(doctor, rows.tomorrow(3)))


@rejection("invalid_transition")
def _(clinic: Clinic) -> dict[str, Any]:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    clinic.done("POST", f"/appointments/{appointment_id}/refuse", doctor, REASON)
    return clinic.outcome(clinic.request("POST", f"/appointments/{appointment_id}/accept", doctor), doctor)


@rejection("too_late_to_cancel")
def _(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    clinic = clinic.under(monkeypatch, cancel_notice=30 * 86400)
    patient = clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(clinic.accounts.doctor()))
    return clinic.outcome(clinic.request("POST", f"/appointments/{appointment_id}/cancel", patient, REASON), patient)


@rejection("slot_overlaps")
def _(clinic: Clinic) -> dict[str, Any]:
    doctor = clinic.accounts.doctor()
    clinic.slot(doctor)
    times = {"starts_at": rows.tomorrow(0.25).isoformat(), "ends_at": rows.tomorrow(1).isoformat()}
    return clinic.outcome(clinic.request("POST", "/doctors/me/slots", doctor, times), doctor)


@rejection("slot_not_open")
def _(clinic: Clinic) -> dict[str, Any]:
    doctor = clinic.accounts.doctor()
    slot_id = clinic.slot(doctor)
    clinic.book(clinic.accounts.patient(), slot_id)
    return clinic.outcome(clinic.request("DELETE", f"/doctors/me/slots/{slot_id}", doctor), doctor)


@rejection("doctor_not_bookable")
def _(clinic: Clinic) -> dict[str, Any]:
    return book(clinic, clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor(status="pending_verification")))


@rejection("account_closed")
def _(clinic: Clinic) -> dict[str, Any]:
    patient = clinic.accounts.patient()
    body = {"slot_id": clinic.slot(clinic.accounts.doctor())}
    accepted = clinic.request("POST", "/appointments", patient, body)
    clinic.change("update people set status = 'closing' where id = :id", id=patient.id)
    return clinic.outcome(accepted, patient)


@rejection("internal_error")
def _(clinic: Clinic) -> dict[str, Any]:
    patient = clinic.accounts.patient()
    body = {"slot_id": clinic.slot(clinic.accounts.doctor()), "notes": "Primeira vez"}
    accepted = clinic.request("POST", "/appointments", patient, body)
    clinic.change("update commands set secret = '\\x00'")
    command = clinic.outcome(accepted, patient)
    assert "(ref. " in command["error"]["detail"]
    assert clinic.all("select count(*) from appointments") == [0]
    return command


@error(400, "malformed_request")
def _(clinic: Clinic) -> TestResponse:
    return clinic.client.post("/api/v1/patients", data=b"{", content_type="application/json")


@error(401, "unauthorized")
def _(clinic: Clinic) -> TestResponse:
    return clinic.get("/me")


@error(401, "invalid_credentials")
def _(clinic: Clinic) -> TestResponse:
    return clinic.request("POST", "/auth/patient", body={"login": "ninguem@example.com", "password": PASSWORD})


@error(401, "otp_required")
def _(clinic: Clinic) -> TestResponse:
    patient = clinic.accounts.patient()
    with_second_factor(clinic, patient)
    return clinic.request("POST", "/auth/patient", body={"login": patient.login, "password": PASSWORD})


@error(401, "invalid_otp")
def _(clinic: Clinic) -> TestResponse:
    patient = clinic.accounts.patient()
    used = with_second_factor(clinic, patient)
    return clinic.request("POST", "/auth/patient", body={"login": patient.login, "password": PASSWORD, "otp": used})


@error(403, "forbidden")
def _(clinic: Clinic) -> TestResponse:
    return clinic.get("/staff/doctors", clinic.accounts.patient())


@error(403, "email_not_confirmed")
def _(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> TestResponse:
    clinic = clinic.under(monkeypatch, confirm_email=True)
    slot_id = clinic.slot(clinic.accounts.doctor())
    return clinic.request("POST", "/appointments", clinic.accounts.patient(), {"slot_id": slot_id})


@error(403, "totp_required")
def _(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> TestResponse:
    asking = replace(clinic.services, settings=replace(clinic.services.settings, staff_totp=True))
    monkeypatch.setitem(clinic.client.application.extensions, "healthmed", asking)
    return clinic.get("/staff/doctors", clinic.accounts.staff())


@error(404, "not_found")
def _(clinic: Clinic) -> TestResponse:
    return clinic.get(f"/doctors/{clinic.accounts.patient().id}")


@error(405, "method_not_allowed")
def _(clinic: Clinic) -> TestResponse:
    return clinic.client.delete("/api/v1/doctors")


@error(409, "conflict")
def _(clinic: Clinic) -> TestResponse:
    doctor = clinic.accounts.doctor(status="pending_verification")
    return clinic.request("POST", f"/doctors/{doctor.id}/verification", clinic.accounts.staff(), {"decision": "suspend"})


@error(409, "already_registered")
def _(clinic: Clinic) -> TestResponse:
    body = patient_body()
    clinic.request("POST", "/patients", body=body)
    return clinic.request("POST", "/patients", body=body)


@error(409, "totp_on")
def _(clinic: Clinic) -> TestResponse:
    patient = clinic.accounts.patient()
    with_second_factor(clinic, patient)
    return clinic.request("POST", "/me/totp", patient, {"password": PASSWORD})


@error(409, "totp_off")
def _(clinic: Clinic) -> TestResponse:
    return clinic.request("POST", "/me/totp/confirm", clinic.accounts.patient(), {"otp": "123456"})


@error(413, "payload_too_large")
def _(clinic: Clinic) -> TestResponse:
    return clinic.client.post("/api/v1/patients", data=b"x" * 65_537, content_type="application/json")


@error(415, "unsupported_media_type")
def _(clinic: Clinic) -> TestResponse:
    return clinic.client.post("/api/v1/patients", data=b"{}", content_type="text/plain")


@error(422, "validation_error")
def _(clinic: Clinic) -> TestResponse:
    return clinic.request("POST", "/patients", body=patient_body(nme="Ana"))


@error(422, "wrong_password")
def _(clinic: Clinic) -> TestResponse:
    body = {"current": "outra senha bem comprida", "new": "mais uma senha bem comprida"}
    return clinic.request("PUT", "/me/password", clinic.accounts.patient(), body)


@error(422, "invalid_link")
def _(clinic: Clinic) -> TestResponse:
    return clinic.request("POST", "/auth/email/confirm", body={"token": "um link que nunca houve"})


@error(422, "idempotency_key_reused")
def _(clinic: Clinic) -> TestResponse:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    first, second = clinic.slot(doctor), clinic.slot(doctor, rows.tomorrow(1))
    clinic.request("POST", "/appointments", patient, {"slot_id": first}, key="k")
    return clinic.request("POST", "/appointments", patient, {"slot_id": second}, key="k")


@error(429, "too_many_requests")
def _(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> TestResponse:
    services = clinic.services
    counting = replace(services, attempts=Attempts(replace(services.settings, rate_limits=True), services.broker))
    monkeypatch.setitem(clinic.client.application.extensions, "healthmed", counting)
    guess = {"login": "ninguem@example.com", "password": "um palpite qualquer"}
    for _ in range(50):
        answer = clinic.request("POST", "/auth/patient", body=guess)
        if answer.status_code == 429:
            break
    assert int(answer.headers["Retry-After"]) > 0
    return answer


@error(500, "internal_error")
def _(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> TestResponse:
    def breaks() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(clinic.client.application.view_functions, "pages.show_life", policy(Anyone)(breaks))
    return clinic.client.get("/healthz")


@error(503, "unavailable")
def _(clinic: Clinic, postgres: Postgres) -> TestResponse:
    postgres.kill()
    answer = clinic.request("POST", "/patients", body=patient_body())
    clinic.outlast(postgres)
    assert int(answer.headers["Retry-After"]) > 0
    return answer


def provoked(provoke: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """What a case of the tables returns."""
    return provoke(*(request.getfixturevalue(name) for name in signature(provoke).parameters))


@pytest.mark.usefixtures("clinic")
@pytest.mark.parametrize("code", booking.REJECTIONS)
def test_a_command_is_rejected_with(code: str, request: pytest.FixtureRequest) -> None:
    command = provoked(REJECTIONS[code], request)
    assert command["status"] == "rejected"
    assert command["error"]["code"] == code
    assert " / " in command["error"]["detail"]
    assert {"id", "kind", "received_at", "decided_at"} <= command.keys()
    assert "result" not in command


@pytest.mark.usefixtures("clinic")
@pytest.mark.parametrize("code", sorted(ERRORS))
def test_a_call_fails_with(code: str, request: pytest.FixtureRequest) -> None:
    status, provoke = ERRORS[code]
    answer = provoked(provoke, request)
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert answer.content_type == "application/problem+json"
    assert answer.json["status"] == status
    assert " / " in answer.json["title"]
    assert " / " in answer.json["detail"]
    assert ("errors" in answer.json) <= (status == 422)
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


def test_no_code_is_left_unprovoked() -> None:
    assert REJECTIONS.keys() == booking.REJECTIONS.keys()
    assert ERRORS.keys() >= set(_written("api") + _written("domain"))


def _written(folder: str) -> list[str]:
    """The codes of errors that stand in the sources of a folder: as a class's `code`, or as the argument of that name."""
    codes = []
    for file in sorted((SOURCES / folder).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.ClassDef():
                    codes += [_text(each.value) for each in node.body if isinstance(each, ast.Assign) and _is_code(each.targets)]
                    codes += [
                        _text(each.value) for each in node.body if isinstance(each, ast.AnnAssign) and _is_code([each.target])
                    ]
                case ast.keyword(arg="code"):
                    codes.append(_text(node.value))
                case ast.Dict() if file.name == "errors.py":
                    codes += [_text(each) for each in node.values]
    return [code for code in codes if re.fullmatch("[a-z_]+", code)]


def _is_code(targets: list[ast.expr]) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "code" for each in targets)


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
