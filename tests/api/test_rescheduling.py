"""Moving an appointment, through HTTP: the old slot is freed and the new one taken in one step, or nothing changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests import rows
from tests.api.clinic import REASON, Clinic
from tests.factories import Someone

DEARER = {"amount": 30000, "currency": "BRL"}


@pytest.fixture
def doctor(clinic: Clinic) -> Someone:
    """A doctor with slots to be made."""
    return clinic.accounts.doctor()


@pytest.fixture
def patient(clinic: Clinic) -> Someone:
    """Somebody who books and moves."""
    return clinic.accounts.patient()


def moved(clinic: Clinic, who: Someone, appointment_id: str, slot_id: str, **body: Any) -> dict[str, Any]:
    """How a move that may be rejected ends."""
    answer = clinic.request("POST", f"/appointments/{appointment_id}/reschedule", who, {"slot_id": slot_id, **body})
    return clinic.outcome(answer, who)


def state(clinic: Clinic, appointment_id: str, doctor: Someone, patient: Someone) -> list[Any]:
    """All that a rejected move must leave as it was."""
    reads = (f"/appointments/{appointment_id}", "/appointments")
    return [clinic.get(path, patient).json for path in reads] + [clinic.get(f"/doctors/{doctor.id}/agenda?days=31").json]


def test_an_accepted_appointment_that_moves_to_another_day_is_a_request_again(
    clinic: Clinic, doctor: Someone, patient: Someone
) -> None:
    first, second = clinic.slot(doctor), clinic.slot(doctor, rows.tomorrow(24))
    appointment_id = clinic.book(patient, first, notes="Primeira vez")
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    before = clinic.get(f"/appointments/{appointment_id}", patient).json
    assert moved(clinic, patient, appointment_id, second, reason="Viagem")["appointment_id"] == appointment_id

    after = clinic.get(f"/appointments/{appointment_id}", doctor).json
    assert (after["id"], after["slot_id"], after["status"]) == (appointment_id, second, "requested")
    assert after["notes"] == "Primeira vez"
    assert after["requested_at"] > before["requested_at"]
    assert "decided_at" not in after
    assert [(step["status"], step["by"], step.get("reason")) for step in after["history"]] == [
        ("requested", "patient", None),
        ("accepted", "doctor", None),
        ("requested", "patient", "Viagem"),
    ]
    days = clinic.get(f"/doctors/{doctor.id}/agenda?days=3").json["days"]
    assert [slot["id"] for day in days for slot in day["slots"]] == [first]
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    assert clinic.book(clinic.accounts.patient(), first)


@pytest.mark.parametrize("why", ["patient_busy", "slot_taken", "slot_not_found", "price_changed", "doctor_not_bookable"])
def test_a_move_that_is_rejected_changes_nothing(clinic: Clinic, doctor: Someone, patient: Someone, why: str) -> None:
    appointment_id, wanted = clinic.book(patient, clinic.slot(doctor)), clinic.slot(doctor, rows.tomorrow(24))
    body = {}
    if why == "patient_busy":
        clinic.book(patient, clinic.slot(clinic.accounts.doctor(), rows.tomorrow(24.25)))
    elif why == "slot_taken":
        clinic.book(clinic.accounts.patient(), wanted)
    elif why == "slot_not_found":
        wanted = clinic.slot(clinic.accounts.doctor(), rows.tomorrow(48))
    elif why == "price_changed":
        body = {"price": DEARER}
    else:
        clinic.change("update doctors set status = 'suspended' where id = :id", id=doctor.id)
    before = state(clinic, appointment_id, doctor, patient)
    assert moved(clinic, patient, appointment_id, wanted, **body)["error"]["code"] == why
    assert state(clinic, appointment_id, doctor, patient) == before
    assert clinic.all("select count(*) from notices where kind = 'rescheduled'") == [0]


def test_the_time_that_is_left_is_no_hindrance_to_the_time_that_is_taken(
    clinic: Clinic, doctor: Someone, patient: Someone
) -> None:
    """The new slot overlaps the patient's old one, which another doctor's could not."""
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    clinic.change("update slots set during = tstzrange(lower(during), lower(during) + interval '20 min'), status = 'booked'")
    longer = clinic.slot(doctor, rows.tomorrow(1 / 3))
    assert moved(clinic, patient, appointment_id, longer)["status"] == "succeeded"


def test_two_patients_change_places_in_one_batch(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    other = clinic.accounts.patient()
    slots = [clinic.slot(doctor, rows.tomorrow(hour)) for hour in range(3)]
    one, two = clinic.book(patient, slots[0]), clinic.book(other, slots[1])
    sent = [
        clinic.request("POST", f"/appointments/{appointment_id}/reschedule", who, {"slot_id": slot_id})
        for who, appointment_id, slot_id in ((patient, one, slots[2]), (other, two, slots[0]), (patient, one, slots[1]))
    ]
    clinic.decide()
    assert len(set(clinic.all("select batch_id from commands where kind = 'reschedule'"))) == 1
    assert {clinic.outcome(each, who)["status"] for each, who in zip(sent, (patient, other, patient), strict=True)} == {
        "succeeded"
    }
    assert clinic.get(f"/appointments/{one}", patient).json["slot_id"] == slots[1]
    assert clinic.get(f"/appointments/{two}", other).json["slot_id"] == slots[0]
    days = clinic.get(f"/doctors/{doctor.id}/agenda?days=3").json["days"]
    assert [slot["id"] for day in days for slot in day["slots"]] == [slots[2]]


def test_a_moved_appointment_costs_what_the_new_slot_costs_and_others_what_they_did(
    clinic: Clinic, doctor: Someone, patient: Someone
) -> None:
    slots = [clinic.slot(doctor, rows.tomorrow(hour)) for hour in range(3)]
    stays, moves = clinic.book(patient, slots[0]), clinic.book(patient, slots[1])
    assert clinic.request("PATCH", "/doctors/me", doctor, {"price": DEARER}).status_code == 200
    assert moved(clinic, patient, moves, slots[2], price=DEARER)["status"] == "succeeded"
    assert clinic.get(f"/appointments/{moves}", patient).json["price"] == DEARER
    assert clinic.get(f"/appointments/{stays}", patient).json["price"] == {"amount": 25000, "currency": "BRL"}


def test_a_move_comes_as_late_as_a_cancellation(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic = clinic.under(monkeypatch, cancel_notice=3 * 86400)
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    assert (
        moved(clinic, patient, appointment_id, clinic.slot(doctor, rows.tomorrow(120)))["error"]["code"] == "too_late_to_cancel"
    )
    clinic.done("POST", f"/appointments/{appointment_id}/cancel", doctor, REASON)  # whom no notice binds


@pytest.mark.parametrize("end", ["refuse", "cancel"])
def test_what_is_over_does_not_move(clinic: Clinic, doctor: Someone, patient: Someone, end: str) -> None:
    appointment_id, wanted = clinic.book(patient, clinic.slot(doctor)), clinic.slot(doctor, rows.tomorrow(24))
    clinic.done("POST", f"/appointments/{appointment_id}/{end}", doctor, REASON)
    assert moved(clinic, patient, appointment_id, wanted)["error"]["code"] == "invalid_transition"


def test_the_slot_that_is_left_follows_the_availability_of_now(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    def put(minutes: int) -> dict[str, Any]:
        rule = {"start": "09:00", "end": "10:00", "slot_minutes": minutes}
        body = {"rules": [{"weekday": day, **rule} for day in range(1, 8)], "exceptions": []}
        return clinic.done("PUT", "/doctors/me/availability", doctor, body)

    def starts(day: int) -> list[str]:
        return [slot["starts_at"][11:16] for slot in clinic.get(f"/doctors/{doctor.id}/agenda?days=9").json["days"][day]["slots"]]

    put(30)
    days = clinic.get(f"/doctors/{doctor.id}/agenda?days=9").json["days"]
    appointment_id = clinic.book(patient, days[7]["slots"][0]["id"])
    assert put(20)["result"]["appointments_outside"] == [appointment_id]
    assert starts(7) == ["09:40"]  # at 09:20 there is still what was booked
    assert moved(clinic, patient, appointment_id, days_slot(clinic, doctor, 8))["status"] == "succeeded"
    assert starts(7) == ["09:00", "09:20", "09:40"]
    assert starts(8) == ["09:20", "09:40"]


def days_slot(clinic: Clinic, doctor: Someone, day: int) -> str:
    """The id of the first slot of a day, counted from the doctor's today."""
    return str(clinic.get(f"/doctors/{doctor.id}/agenda?days=9").json["days"][day]["slots"][0]["id"])
