"""A doctor who is suspended: hidden, not bookable, and what was open or to come is ended by staff, one command each."""

from __future__ import annotations

from typing import Any

import pytest

from tests import rows
from tests.api.clinic import Clinic
from tests.factories import Someone


def decide(clinic: Clinic, doctor: Someone, decision: str) -> None:
    """Have staff decide on a doctor."""
    path = f"/doctors/{doctor.id}/verification"
    assert clinic.request("POST", path, clinic.accounts.staff(), {"decision": decision}).status_code == 200


def end_of(clinic: Clinic, appointment_id: str, patient: Someone) -> tuple[Any, ...]:
    """How an appointment stands, and who brought it there."""
    shown = clinic.get(f"/appointments/{appointment_id}", patient).json
    return shown["status"], shown["history"][-1]["by"]


def test_a_suspended_doctor_is_hidden_and_cannot_be_booked(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    body = {"slot_id": clinic.slot(doctor)}
    public = (f"/doctors/{doctor.id}", f"/doctors/{doctor.id}/agenda")
    assert [clinic.get(path).status_code for path in public] == [200, 200]
    sent_before = clinic.request("POST", "/appointments", patient, body)
    decide(clinic, doctor, "suspend")
    assert [clinic.get(path).status_code for path in public] == [404, 404]
    assert clinic.get("/doctors").json["items"] == clinic.get("/doctors?sort=next_slot").json["items"] == []
    for sent in (sent_before, clinic.request("POST", "/appointments", patient, body)):
        assert clinic.outcome(sent, patient)["error"]["code"] == "doctor_not_bookable"
    decide(clinic, doctor, "verify")
    assert [clinic.get(path).status_code for path in public] == [200, 200]
    assert clinic.book(patient, body["slot_id"])


def test_open_requests_are_refused_and_accepted_appointments_cancelled_and_the_patients_told(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    requested, accepted, over = (clinic.book(patient, clinic.slot(doctor, rows.tomorrow(hour))) for hour in range(3))
    for each in (accepted, over):
        clinic.done("POST", f"/appointments/{each}/accept", doctor)
    clinic.change("update appointments set during = tstzrange(now() - interval '1 h', now()) where id = :id", id=over)
    before = clinic.stored()
    decide(clinic, doctor, "suspend")
    assert clinic.stored() == before + 2
    clinic.decide()
    assert end_of(clinic, requested, patient) == ("refused", "staff")
    assert end_of(clinic, accepted, patient) == ("cancelled", "staff")
    assert end_of(clinic, over, patient) == ("accepted", "doctor")  # it took place
    told = "select kind from notices where person_id = :id and kind in ('refused', 'cancelled') order by kind"
    assert clinic.all(told, id=patient.id) == ["cancelled", "refused"]
    clinic.done("POST", f"/appointments/{over}/complete", doctor)


@pytest.mark.parametrize("call", ["accept", "cancel"])
def test_what_was_asked_just_before_a_suspension_saves_no_appointment_from_it(clinic: Clinic, call: str) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    who, body = (doctor, {}) if call == "accept" else (patient, {"reason": "Viagem"})
    sent = clinic.request("POST", f"/appointments/{appointment_id}/{call}", who, body)
    decide(clinic, doctor, "suspend")
    command = clinic.outcome(sent, who)
    if call == "accept":
        assert command["error"]["code"] == "doctor_not_bookable"
        assert end_of(clinic, appointment_id, patient) == ("refused", "staff")
    else:
        assert end_of(clinic, appointment_id, patient) == ("cancelled", "patient")
