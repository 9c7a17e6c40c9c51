"""Every route, and how it answers whoever asks: the data of `test_policies`, and of the table in docs/security.md.

A new route needs a row here. Its statuses are those of a good request, in the order of `CALLERS`; `{names}` in its path are
values of the `World`. `python -m tests.security.policies` writes the table into the document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import pyotp

from domain import credentials, second_factor
from tests import letterbox
from tests.api.clinic import Clinic
from tests.factories import PASSWORD, Someone, cpf, doctor_body, patient_body

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- routes: written by python -m tests.security.policies -->", "<!-- end of routes -->"

CALLERS: Final = (
    "no token",
    "its patient",
    "its doctor",
    "another patient",
    "another doctor",
    "staff",
    "revoked token",
    "refresh token",
    "expired token",
)

# Who is let in where nothing belongs to anybody in particular; where something does, the rows say it in full.
ANYONE: Final = "200 200 200 200 200 200 200 200 200"
ANY_TOKEN: Final = "401 200 200 200 200 200 401 401 401"
PATIENTS: Final = "401 200 403 200 403 403 401 401 401"
DOCTORS: Final = "401 403 200 403 200 403 401 401 401"
STAFF: Final = "401 403 403 403 403 200 401 401 401"
CLINIC: Final = "401 200 200 200 200 403 401 401 401"  # patients and doctors


@dataclass(frozen=True, slots=True)
class World:
    """A patient and a doctor with an appointment, strangers to it, and what a request may name."""

    clinic: Clinic
    patient: Someone
    doctor: Someone
    other_patient: Someone
    other_doctor: Someone
    staff: Someone
    appointment_id: str
    command_id: str  # the patient's
    slot_id: str  # open, the doctor's
    session_id: str  # the patient's
    doctor_id: str
    notice_id: str  # of the request, to the doctor
    token: str  # of the patient's calendar link

    kind: ClassVar = "terms"  # of a consent

    @property
    def patient_id(self) -> str:
        """The patient, as paths name people."""
        return str(self.patient.id)

    def person(self, caller: str) -> Someone | None:
        """Who a caller of the table is; None for one without a token."""
        return {
            "its patient": self.patient,
            "its doctor": self.doctor,
            "another patient": self.other_patient,
            "another doctor": self.other_doctor,
            "staff": self.staff,
        }.get(caller)


Body = Callable[[World, Someone | None], Any]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path, and its answer to each of the callers."""

    method: str
    path: str  # as the URL map writes it, without converters
    statuses: str
    body: Any = None  # JSON, or what makes it of the world and the caller (a stranger's is None)

    @property
    def expected(self) -> dict[str, int]:
        """The status for each caller."""
        return dict(zip(CALLERS, map(int, self.statuses.split()), strict=True))

    def json(self, world: World, who: Someone | None) -> Any:
        """The body of a good request."""
        return self.body(world, who) if callable(self.body) else self.body


def succeed_with(statuses: str, status: int) -> str:
    """The same table with another status for success."""
    return statuses.replace("200", str(status))


def appointment_body(world: World, _: Someone | None) -> dict[str, Any]:
    """A request for the open slot."""
    return {"slot_id": world.slot_id}


def log_in_body(field: str, person: str) -> Body:
    """The right log-in of somebody."""
    return lambda world, _: {field: getattr(world, person).login, "password": PASSWORD}


def mailed_token(world: World, send: Callable[[], object]) -> str:
    """The token of the link in the mail that is sent."""
    use = world.clinic.services
    letterbox.mails(use.engine, use.settings)
    send()
    return letterbox.token(letterbox.mails(use.engine, use.settings)[0])


def confirmation_body(world: World, _: Someone | None) -> dict[str, Any]:
    """The token of a link by which the patient confirms an address."""
    use, patient = world.clinic.services, world.patient

    def send() -> None:
        with use.engine.begin() as connection:
            credentials.ask_for_email(connection, use.settings, patient.id, "novo@example.com")

    return {"token": mailed_token(world, send)}


def reset_body(world: World, _: Someone | None) -> dict[str, Any]:
    """The token of a link by which the patient chooses another password."""
    use, patient = world.clinic.services, world.patient
    token = mailed_token(world, lambda: credentials.forget_password(use.engine, use.settings, patient.login))
    return {"token": token, "password": "outra senha bem comprida"}


def code_body(world: World, who: Someone | None) -> dict[str, Any]:
    """The code by which somebody confirms a second factor that they have just begun to have."""
    if who is None:
        return {"otp": "000000"}
    use = world.clinic.services
    with use.engine.begin() as connection:
        return {"otp": pyotp.TOTP(second_factor.enrol(connection, use.settings, who.id, "telefone").secret).now()}


def removal_body(world: World, who: Someone | None) -> dict[str, Any]:
    """The password, and a recovery code of somebody who has a second factor."""
    code = code_body(world, who)["otp"]
    if who is not None:
        use = world.clinic.services
        with use.engine.begin() as connection:
            (code, *_) = second_factor.confirm(connection, use.settings, who.id, code)
    return {"password": PASSWORD, "otp": code}


REASON: Final = {"reason": "Tive um imprevisto"}
SLOT: Final = {"starts_at": "2031-03-03T09:00:00-03:00", "ends_at": "2031-03-03T09:30:00-03:00"}
PATIENT_ACTS: Final = "401 202 403 404 403 403 401 401 401"
DOCTOR_ACTS: Final = "401 403 202 403 404 403 401 401 401"
BOTH_ACT: Final = "401 202 202 404 404 403 401 401 401"

ROUTES: Final = (
    # Operations
    Route("GET", "/healthz", ANYONE),
    Route("GET", "/readyz", ANYONE),
    Route("GET", "/metrics", ANYONE),
    Route("GET", "/api/docs", ANYONE),
    Route("GET", "/api/docs/page.css", ANYONE),
    Route("GET", "/api/v1/openapi.json", ANYONE),
    # Logging in and out
    Route("POST", "/api/v1/auth/doctor", ANYONE, log_in_body("crm", "doctor")),
    Route("POST", "/api/v1/auth/patient", ANYONE, log_in_body("login", "patient")),
    Route("POST", "/api/v1/auth/staff", ANYONE, log_in_body("login", "staff")),
    Route("POST", "/api/v1/auth/refresh", "401 401 401 401 401 401 401 200 401"),
    Route("POST", "/api/v1/auth/logout", succeed_with(ANY_TOKEN, 204)),
    Route("GET", "/api/v1/me/sessions", ANY_TOKEN),
    Route("DELETE", "/api/v1/me/sessions/{session_id}", "401 204 404 404 404 404 401 401 401"),
    # What one logs in with
    Route("PUT", "/api/v1/me/password", succeed_with(ANY_TOKEN, 204), {"current": PASSWORD, "new": "outra senha bem comprida"}),
    Route("PUT", "/api/v1/me/email", succeed_with(ANY_TOKEN, 202), {"email": "outro@example.com", "password": PASSWORD}),
    Route("POST", "/api/v1/auth/email/confirm", succeed_with(ANYONE, 204), confirmation_body),
    Route("POST", "/api/v1/auth/password/forgot", succeed_with(ANYONE, 202), {"login": "quem@example.com"}),
    Route("POST", "/api/v1/auth/password/reset", succeed_with(ANYONE, 204), reset_body),
    Route("POST", "/api/v1/me/totp", succeed_with(ANY_TOKEN, 201), {"password": PASSWORD}),
    Route("POST", "/api/v1/me/totp/confirm", ANY_TOKEN, code_body),
    Route("DELETE", "/api/v1/me/totp", succeed_with(ANY_TOKEN, 204), removal_body),
    # Accounts
    Route("POST", "/api/v1/patients", succeed_with(ANYONE, 201), lambda *_: patient_body()),
    Route("POST", "/api/v1/doctors", succeed_with(ANYONE, 201), lambda *_: doctor_body()),
    Route("GET", "/api/v1/me", ANY_TOKEN),
    Route("PATCH", "/api/v1/patients/me", PATIENTS, {"language": "en"}),
    Route("PATCH", "/api/v1/doctors/me", DOCTORS, {"language": "en"}),
    Route("POST", "/api/v1/doctors/{doctor_id}/verification", STAFF, {"decision": "suspend", "reason": "Registro vencido"}),
    Route("GET", "/api/v1/staff/doctors", STAFF),
    # A person's rights over their data
    Route("GET", "/api/v1/me/export", "401 200 200 200 200 403 401 401 401"),
    Route("GET", "/api/v1/me/access-log", PATIENTS),
    Route("GET", "/api/v1/me/consents", PATIENTS),
    Route("POST", "/api/v1/me/consents", succeed_with(PATIENTS, 201), {"kind": "teleconsultation", "version": "1"}),
    Route("DELETE", "/api/v1/me/consents/{kind}", succeed_with(PATIENTS, 204)),
    Route("POST", "/api/v1/me/erasure", succeed_with(PATIENTS, 202), {"password": PASSWORD, "confirm": True}),
    Route("PUT", "/api/v1/staff/patients/{patient_id}/cpf", STAFF, lambda *_: {"cpf": cpf(), "reason": "Erro de digitação"}),
    # The directory
    Route("GET", "/api/v1/specialties", ANYONE),
    Route("GET", "/api/v1/doctors", ANYONE),
    Route("GET", "/api/v1/doctors/{doctor_id}", ANYONE),
    Route("GET", "/api/v1/doctors/{doctor_id}/agenda", ANYONE),
    # The doctor's own schedule
    Route("GET", "/api/v1/doctors/me/availability", DOCTORS),
    Route("PUT", "/api/v1/doctors/me/availability", succeed_with(DOCTORS, 202), {"rules": [], "exceptions": []}),
    Route("POST", "/api/v1/doctors/me/slots", succeed_with(DOCTORS, 202), SLOT),
    Route("PATCH", "/api/v1/doctors/me/slots/{slot_id}", DOCTOR_ACTS, {"price": {"amount": 1, "currency": "BRL"}}),
    Route("DELETE", "/api/v1/doctors/me/slots/{slot_id}", DOCTOR_ACTS),
    # Appointments
    Route("GET", "/api/v1/appointments", "401 200 200 200 200 403 401 401 401"),
    Route("GET", "/api/v1/appointments/{appointment_id}", "401 200 200 404 404 403 401 401 401"),
    Route("POST", "/api/v1/appointments", succeed_with(PATIENTS, 202), appointment_body),
    Route("POST", "/api/v1/appointments/{appointment_id}/accept", DOCTOR_ACTS),
    Route("POST", "/api/v1/appointments/{appointment_id}/refuse", DOCTOR_ACTS, REASON),
    Route("POST", "/api/v1/appointments/{appointment_id}/cancel", BOTH_ACT, REASON),
    Route("POST", "/api/v1/appointments/{appointment_id}/reschedule", PATIENT_ACTS, appointment_body),
    Route("POST", "/api/v1/appointments/{appointment_id}/complete", DOCTOR_ACTS),
    Route("POST", "/api/v1/appointments/{appointment_id}/no-show", DOCTOR_ACTS),
    Route("GET", "/api/v1/commands/{command_id}", "401 200 404 404 404 404 401 401 401"),
    # The calendar
    Route("POST", "/api/v1/me/calendar-link", succeed_with(CLINIC, 201)),
    Route("DELETE", "/api/v1/me/calendar-link", succeed_with(CLINIC, 204)),
    Route("GET", "/api/v1/calendar/{token}.ics", ANYONE),
    # Notices
    Route("GET", "/api/v1/notices", ANY_TOKEN),
    Route("POST", "/api/v1/notices/{notice_id}/read", "401 404 204 404 404 404 401 401 401"),
    Route("GET", "/api/v1/staff/notices", STAFF),
)


def table() -> str:
    """The table as the document holds it."""
    lines = [f"| route | {' | '.join(CALLERS)} |", "| --- |" + " --- |" * len(CALLERS)]
    lines += [f"| `{route.method} {route.path}` | {' | '.join(route.statuses.split())} |" for route in ROUTES]
    return "\n".join(lines)


def document(text: str) -> str:
    """The document with the table of now in its place. Raises ValueError if it has no place for it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the document has no place for the table")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
