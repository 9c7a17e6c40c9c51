"""Plain values for tests of the rules: a doctor, a patient, slots, appointments, and the schedule they make."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.availability import Availability
from domain.booking import Schedule
from domain.commands import Envelope
from domain.schedule import Appointment, AppointmentStatus, Doctor, Interval, Limits, Patient, Role, Slot, SlotStatus

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def a_doctor(**values: object) -> Doctor:
    """A verified doctor of São Paulo who charges R$ 250."""
    given = {
        "id": uuid7(),
        "verified": True,
        "suspended": False,
        "timezone": "America/Sao_Paulo",
        "price": 25000,
        "currency": "BRL",
    }
    return Doctor(**{**given, **values})  # type: ignore[arg-type]


def a_slot(doctor: Doctor, starts_at: datetime = NOW + 24 * HOUR, minutes: int = 30, **values: object) -> Slot:
    """An open slot of the doctor, half an hour long, tomorrow."""
    during = Interval(starts_at, starts_at + timedelta(minutes=minutes))
    given = {"id": uuid7(), "doctor_id": doctor.id, "during": during, "status": SlotStatus.OPEN, "held": True}
    return Slot(**{**given, **values})  # type: ignore[arg-type]


def an_appointment(slot: Slot, patient: Patient, status: str = "requested", **values: object) -> Appointment:
    """The patient's appointment in the slot, requested an hour ago."""
    given = {
        "id": uuid7(),
        "slot_id": slot.id,
        "doctor_id": slot.doctor_id,
        "patient_id": patient.id,
        "during": slot.during,
        "price": 25000,
        "currency": "BRL",
        "status": AppointmentStatus(status),
        "requested_at": NOW - HOUR,
        "expires_at": NOW + 20 * HOUR,
    }
    return Appointment(**{**given, **values})  # type: ignore[arg-type]


def a_schedule(
    doctors: Iterable[Doctor] = (),
    patients: Iterable[Patient] = (),
    slots: Iterable[Slot] = (),
    appointments: Iterable[Appointment] = (),
    *,
    now: datetime = NOW,
    limits: Limits | None = None,
    availabilities: dict[UUID, Availability] | None = None,
) -> Schedule:
    """The schedule that these make."""
    return Schedule(
        now=now,
        limits=limits or Limits(),
        new_id=uuid7,
        doctors={each.id: each for each in doctors},
        patients={each.id: each for each in patients},
        slots={each.id: each for each in slots},
        appointments={each.id: each for each in appointments},
        availabilities=availabilities or {},
    )


def sent_by(who: Doctor | Patient, at: datetime = NOW) -> Envelope:
    """The envelope of a command that this person sent."""
    role = Role.DOCTOR if isinstance(who, Doctor) else Role.PATIENT
    return Envelope(uuid7(), who.id, role, who.id if role is Role.DOCTOR else None, at)


def sent_by_time(doctor: Doctor, at: datetime = NOW) -> Envelope:
    """The envelope of a command that the relay stored for a doctor's schedule."""
    return Envelope(uuid7(), UUID(int=0), Role.SYSTEM, doctor.id, at)
