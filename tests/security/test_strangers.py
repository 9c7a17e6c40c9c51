"""Whatever a stranger asks, and whatever finds its way into the inbox in a stranger's name, gets nothing of anybody else's."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from uuid_utils.compat import uuid7
from werkzeug.test import TestResponse

from domain import inbox, privacy
from domain.schedule import Role
from tests import rows
from tests.api.clinic import Clinic
from tests.factories import Someone
from tests.security.policies import REASON

MARK = re.compile(r"zq[0-9a-f]{12}")


@dataclass
class Secrets:
    """Marks that stand in what people wrote, each with those who may read it; and what a stranger may try to name."""

    readers: dict[str, set[UUID]] = field(default_factory=dict)
    ids: dict[str, list[str]] = field(default_factory=lambda: {"appointment": [], "command": [], "session": [], "slot": []})
    keys: list[str] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)
    etags: list[str] = field(default_factory=list)

    def mark(self, seed: random.Random, *readers: Someone) -> str:
        """A new mark that these may read."""
        mark = f"zq{seed.randrange(16**12):012x}"
        self.readers[mark] = {each.id for each in readers}
        return mark


def a_clinic_with_secrets(clinic: Clinic, seed: random.Random) -> tuple[list[Someone], Secrets]:
    """Twelve patients who see four doctors, one of the staff, and marks all over what they wrote."""
    secrets = Secrets()
    doctors = [clinic.accounts.doctor() for _ in range(4)]
    patients = []
    for n in range(12):
        mark = secrets.mark(seed)
        patient = clinic.accounts.patient(name=f"Ana {mark}", email=f"{secrets.mark(seed)}@example.com")
        email = next(reversed(secrets.readers))
        secrets.readers[email] = {patient.id}
        secrets.readers[mark] = {patient.id}
        patients.append(patient)
        for k in range(2):
            doctor = doctors[(n + k) % 4]
            secrets.readers[mark].add(doctor.id)
            slot_id = clinic.slot(doctor, rows.tomorrow(n + k * 12))
            key = secrets.mark(seed)
            body = {"slot_id": slot_id, "notes": secrets.mark(seed, patient, doctor)}
            sent = clinic.request("POST", "/appointments", patient, body, key=key)
            secrets.keys.append(key)
            secrets.ids["command"].append(sent.json["id"])
            secrets.ids["slot"].append(slot_id)
            appointment_id = str(clinic.outcome(sent, patient)["appointment_id"])
            secrets.ids["appointment"].append(appointment_id)
            join = {"join_url": f"https://meet.example/{secrets.mark(seed, patient, doctor)}"}
            clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor, join)
            if n % 3 == 0:
                reason = {"reason": secrets.mark(seed, patient, doctor)}
                clinic.done("POST", f"/appointments/{appointment_id}/cancel", (patient, doctor)[k], reason)
    secrets.ids["session"] = [str(each) for each in clinic.all("select id from sessions")]
    for who in (*patients, *doctors):
        page = clinic.get("/appointments?page_size=1", who)
        secrets.etags.append(page.headers["ETag"])
        if page.json.get("next"):
            secrets.cursors.append(page.json["next"])
    return [*patients, *doctors, clinic.accounts.staff()], secrets


def ask_anything(clinic: Clinic, seed: random.Random, who: Someone | None, secrets: Secrets) -> TestResponse:
    """One read, or one attempt to act, that names something at random."""
    appointment, command, session, slot = (seed.choice(each) for each in secrets.ids.values())
    cursor = seed.choice(secrets.cursors)
    method, path, body = seed.choice(
        [
            ("GET", f"/appointments/{appointment}", None),
            ("GET", f"/appointments/{appointment}", None),
            ("GET", f"/commands/{command}", None),
            ("GET", f"/commands/{command}", None),
            (
                "GET",
                f"/appointments?page_size={seed.choice([1, 7, 100])}&status={seed.choice(['accepted', 'cancelled', ''])}",
                None,
            ),
            ("GET", f"/appointments?cursor={cursor}", None),
            ("GET", f"/appointments/{command}", None),
            ("GET", f"/commands/{appointment}", None),
            ("GET", f"/doctors/{appointment}", None),
            ("GET", "/doctors?q=zq", None),
            ("GET", "/me", None),
            ("GET", "/me/sessions", None),
            ("GET", "/staff/doctors?q=zq", None),
            ("GET", "/doctors/me/availability", None),
            ("HEAD", f"/appointments/{appointment}", None),
            ("DELETE", f"/me/sessions/{session}", None),
            ("PATCH", f"/doctors/me/slots/{slot}", {"price": {"amount": 1, "currency": "BRL"}}),
            ("POST", f"/appointments/{appointment}/reschedule", {"slot_id": slot}),
        ]
    )
    if method == "DELETE" and who is not None and session in own_sessions(clinic, who):
        return clinic.get("/me", who)
    headers = {"If-None-Match": seed.choice(secrets.etags)} if seed.random() < 0.2 else {}
    key = seed.choice(secrets.keys) if method in ("POST", "PATCH") else None
    return clinic.request(method, path, who, body, key=key, headers=headers)


def own_sessions(clinic: Clinic, who: Someone) -> list[str]:
    return [str(each) for each in clinic.all("select id from sessions where person_id = :id", id=who.id)]


@pytest.mark.timeout(900)
def test_random_reads_by_strangers_show_nothing(clinic: Clinic, long: bool) -> None:
    seed = random.Random(11)
    people, secrets = a_clinic_with_secrets(clinic, seed)
    leaks, seen, refused = [], set(), 0
    for _ in range(10_000 if long else 300):
        who = seed.choice([*people, None])
        answer = ask_anything(clinic, seed, who, secrets)
        assert answer.status_code < 500
        refused += answer.status_code in (401, 403, 404)
        told = f"{answer.text} {answer.headers}"
        for mark in MARK.findall(told):
            if who is None or who.id not in secrets.readers.get(mark, set()):
                leaks.append((who and who.login, answer.request.path, mark))
            seen.add(mark)
    assert leaks == []
    # And the marks do stand where those who may read them read.
    assert len(seen) > len(secrets.readers) / 3
    assert refused > 50


def forge(clinic: Clinic, who: Someone, role: Role, kind: str, **columns: Any) -> str | None:
    """What the worker makes of a command that was put into the inbox in somebody's name, past every check of the API."""
    with clinic.services.engine.begin() as connection:
        wrapped = connection.execute(text("select wrapped from person_keys where person_id = :id"), {"id": who.id}).scalar_one()
        key, command_id = privacy.unwrap(clinic.services.settings.data_keys, who.id, bytes(wrapped)), uuid7()
        secret = privacy.seal(key, json.dumps(REASON), context=inbox.SECRET, row_id=command_id)
        values = {"id": command_id, "kind": kind, "actor_id": who.id, "actor_role": role, "payload": "{}", "secret": secret}
        values |= columns
        names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
        lane = "(select lane from doctors where id = :doctor_id)"
        connection.execute(text(f"insert into commands (lane, {names}) values ({lane}, {places})"), values)
    clinic.decide()
    return clinic.all("select coalesce(error_code, status) from commands where id = :id", id=command_id)[0]


@pytest.mark.parametrize("role", [Role.PATIENT, Role.DOCTOR])
def test_a_command_in_a_strangers_name_is_rejected_by_the_worker(clinic: Clinic, role: Role) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    stranger = clinic.accounts.patient() if role is Role.PATIENT else clinic.accounts.doctor()
    appointment_id, slot_id = clinic.book(patient, clinic.slot(doctor)), clinic.slot(doctor, rows.tomorrow(3))
    everything = "select (appointments.*, slots.*)::text from appointments, slots order by slots.id"
    appointment, slot = {"appointment_id": appointment_id}, {"slot_id": slot_id}
    change = {**slot, "payload": json.dumps({"price": 1})}
    by_doctor: dict[str, dict[str, Any]] = {"accept": appointment, "change_slot": change, "withdraw_slot": slot}
    by_patient: dict[str, dict[str, Any]] = {"reschedule": {**appointment, **slot}, "cancel": appointment}
    before = clinic.all(everything)
    for kind, named in {
        **by_doctor,
        **by_patient,
        "refuse": appointment,
        "complete": appointment,
        "no_show": appointment,
    }.items():
        found = forge(clinic, stranger, role, kind, doctor_id=doctor.id, **named)
        assert found in ("invalid_transition", "slot_not_found", "slot_not_open"), kind
    assert clinic.all(everything) == before
    # The very same are granted to those whose they are.
    owner, kinds = (patient, by_patient) if role is Role.PATIENT else (doctor, by_doctor)
    assert {forge(clinic, owner, role, kind, doctor_id=doctor.id, **named) for kind, named in kinds.items()} == {"succeeded"}


def test_a_stranger_learns_nothing_from_another_ones_idempotency_key(clinic: Clinic) -> None:
    patient, stranger, doctor = clinic.accounts.patient(), clinic.accounts.patient(), clinic.accounts.doctor()
    slot_id = clinic.slot(doctor)
    first = clinic.request("POST", "/appointments", patient, {"slot_id": slot_id, "notes": "Dor no peito"}, key="chave")
    second = clinic.request("POST", "/appointments", stranger, {"slot_id": slot_id, "notes": "Dor no peito"}, key="chave")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json["id"] != second.json["id"]
    appointment_id = clinic.outcome(first, patient)["appointment_id"]
    answer = clinic.request("POST", f"/appointments/{appointment_id}/cancel", stranger, REASON, key="outra chave")
    assert answer.status_code == 404


def test_ids_in_a_body_or_a_query_name_nobody_else(clinic: Clinic) -> None:
    patient, stranger, doctor = clinic.accounts.patient(), clinic.accounts.patient(), clinic.accounts.doctor()
    clinic.book(patient, clinic.slot(doctor))
    for query in (f"patient_id={patient.id}", f"doctor_id={doctor.id}", f"person_id={patient.id}"):
        assert clinic.get(f"/appointments?{query}", stranger).json["items"] == []
    slot_id = clinic.slot(doctor, rows.tomorrow(3))
    for more in ({"patient_id": str(patient.id)}, {"actor_id": str(patient.id)}, {"role": "doctor"}, {"status": "accepted"}):
        assert clinic.request("POST", "/appointments", stranger, {"slot_id": slot_id, **more}).status_code == 422
    assert clinic.stored() == 1
