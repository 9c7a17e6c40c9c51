"""Booking and what follows, through HTTP: success, refusal, bad input and strangers; decided by the real engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import rows
from tests.api.clinic import REASON, Clinic
from tests.factories import Someone

PRICE = {"amount": 25000, "currency": "BRL"}


def test_a_booking_is_acknowledged_and_then_decided(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    answer = clinic.request("POST", "/appointments", patient, {"slot_id": slot_id, "notes": "Primeira vez", "price": PRICE})
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/api/v1/commands/{answer.json['id']}"
    assert answer.headers["Retry-After"] == "1"
    assert set(answer.json) == {"id", "kind", "status", "received_at"}
    assert (answer.json["kind"], answer.json["status"]) == ("book", "pending")

    command = clinic.outcome(answer, patient)
    assert command["status"] == "succeeded"
    assert command["decided_at"] >= command["received_at"]
    appointment = clinic.get(f"/appointments/{command['appointment_id']}", patient).json
    assert appointment["status"] == "requested"
    assert appointment["notes"] == "Primeira vez"
    assert appointment["price"] == PRICE
    assert appointment["slot_id"] == slot_id
    assert [(step["status"], step["by"]) for step in appointment["history"]] == [("requested", "patient")]


def test_a_202_is_stored_before_it_is_answered(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    answer = clinic.request("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})
    assert clinic.all("select id::text from commands") == [answer.json["id"]]


def test_a_doctor_accepts_and_says_where_to_meet(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor, {"join_url": "https://meet.example.com/abc"})
    for reader in (patient, doctor):
        shown = clinic.get(f"/appointments/{appointment_id}", reader).json
        assert (shown["status"], shown["join_url"]) == ("accepted", "https://meet.example.com/abc")
        assert shown["patient"]["name"] == "Ana Souza"
        assert shown["doctor"]["name"] == "Bruno Lima"


def test_accepting_needs_no_body(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    assert clinic.client.post(f"/api/v1/appointments/{appointment_id}/accept", headers=doctor.headers).status_code == 202


def test_a_refusal_gives_its_reason_and_frees_the_slot(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    appointment_id = clinic.book(patient, slot_id)
    body = {"reason": "  Precisa de exame físico  ", "kind": "in_person_needed"}
    clinic.done("POST", f"/appointments/{appointment_id}/refuse", doctor, body)
    shown = clinic.get(f"/appointments/{appointment_id}", patient).json
    assert (shown["status"], shown["reason"]) == ("refused", "Precisa de exame físico")
    assert clinic.book(clinic.accounts.patient(), slot_id)


@pytest.mark.parametrize("who", ["patient", "doctor"])
def test_both_sides_may_cancel_saying_why(clinic: Clinic, who: str) -> None:
    people = {"doctor": clinic.accounts.doctor(), "patient": clinic.accounts.patient()}
    appointment_id = clinic.book(people["patient"], clinic.slot(people["doctor"]))
    clinic.done("POST", f"/appointments/{appointment_id}/cancel", people[who], REASON)
    shown = clinic.get(f"/appointments/{appointment_id}", people["patient"]).json
    assert shown["status"] == "cancelled"
    assert shown["history"][-1]["by"] == who
    assert shown["history"][-1]["reason"] == REASON["reason"]


def test_a_patient_moves_to_another_slot_of_the_same_doctor(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    first, second = clinic.slot(doctor), clinic.slot(doctor, rows.tomorrow(2))
    appointment_id = clinic.book(patient, first)
    command = clinic.done("POST", f"/appointments/{appointment_id}/reschedule", patient, {"slot_id": second, "price": PRICE})
    assert command["appointment_id"] == appointment_id
    assert clinic.get(f"/appointments/{appointment_id}", patient).json["slot_id"] == second
    assert clinic.book(clinic.accounts.patient(), first)


@pytest.mark.parametrize(("call", "status"), [("complete", "completed"), ("no-show", "no_show")])
def test_a_doctor_says_after_the_start_how_it_went(clinic: Clinic, call: str, status: str) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    early = clinic.outcome(clinic.request("POST", f"/appointments/{appointment_id}/{call}", doctor, {}), doctor)
    assert early["error"]["code"] == "invalid_transition"
    clinic.change("update appointments set during = tstzrange(now() - interval '1 hour', now() - interval '30 minutes')")
    clinic.done("POST", f"/appointments/{appointment_id}/{call}", doctor)
    assert clinic.get(f"/appointments/{appointment_id}", doctor).json["status"] == status


def test_a_rejection_carries_its_code_and_words(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    clinic.book(clinic.accounts.patient(), slot_id)
    command = clinic.outcome(clinic.request("POST", "/appointments", patient, {"slot_id": slot_id}), patient)
    assert command["status"] == "rejected"
    assert command["error"]["code"] == "slot_taken"
    assert command["error"]["detail"]
    assert "appointment_id" not in command


def test_another_price_than_was_shown_is_refused_by_the_worker(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    body = {"slot_id": clinic.slot(doctor), "price": {"amount": 24999, "currency": "BRL"}}
    assert clinic.outcome(clinic.request("POST", "/appointments", patient, body), patient)["error"]["code"] == "price_changed"


def test_a_slot_that_never_was_is_not_found_at_once(clinic: Clinic) -> None:
    patient = clinic.accounts.patient()
    answer = clinic.request("POST", "/appointments", patient, {"slot_id": "01a20d57-0000-7000-8000-000000000000"})
    assert (answer.status_code, answer.json["code"]) == (404, "not_found")
    assert clinic.stored() == 0


@pytest.mark.parametrize("call", ["accept", "refuse", "cancel", "reschedule", "complete", "no-show"])
def test_nobody_acts_on_what_is_not_theirs(clinic: Clinic, call: str) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    appointment_id = clinic.book(patient, slot_id)
    bodies = {"refuse": REASON, "cancel": REASON, "reschedule": {"slot_id": slot_id}}
    stranger = clinic.accounts.patient() if call in ("cancel", "reschedule") else clinic.accounts.doctor()
    stored = clinic.stored()
    answer = clinic.request("POST", f"/appointments/{appointment_id}/{call}", stranger, bodies.get(call, {}))
    assert answer.status_code == 404
    assert clinic.stored() == stored


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/appointments/{id}/accept"),
        ("POST", "/appointments/{id}/refuse"),
        ("POST", "/appointments/{id}/complete"),
        ("POST", "/appointments/{id}/no-show"),
    ],
)
def test_what_a_doctor_decides_a_patient_may_not(clinic: Clinic, method: str, path: str) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    answer = clinic.request(method, path.format(id=appointment_id), patient, REASON if "refuse" in path else {})
    assert (answer.status_code, answer.json["code"]) == (403, "forbidden")


def test_a_doctor_may_neither_book_nor_reschedule(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    appointment_id = clinic.book(patient, slot_id)
    assert clinic.request("POST", "/appointments", doctor, {"slot_id": slot_id}).status_code == 403
    assert clinic.request("POST", f"/appointments/{appointment_id}/reschedule", doctor, {"slot_id": slot_id}).status_code == 403


def test_an_appointment_is_not_there_for_a_stranger(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    assert clinic.get(f"/appointments/{appointment_id}", patient).status_code == 200  # and cached
    for stranger in (clinic.accounts.patient(), clinic.accounts.doctor()):
        assert clinic.get(f"/appointments/{appointment_id}", stranger).status_code == 404
    assert clinic.get(f"/appointments/{appointment_id}", clinic.accounts.staff()).status_code == 403
    assert clinic.get(f"/appointments/{appointment_id}").status_code == 401


def test_the_list_holds_ones_own_newest_start_first_and_without_notes(clinic: Clinic) -> None:
    doctor, patient, other = clinic.accounts.doctor(), clinic.accounts.patient(), clinic.accounts.patient()
    mine = [clinic.book(patient, clinic.slot(doctor, rows.tomorrow(hour)), notes="Segredo") for hour in range(3)]
    clinic.book(other, clinic.slot(doctor, rows.tomorrow(5)))
    page = clinic.get("/appointments", patient).json
    assert [item["id"] for item in page["items"]] == mine[::-1]
    assert (page["page"], page["page_size"], page["total"]) == (1, 20, 3)
    assert "Segredo" not in str(page)
    assert clinic.get("/appointments", doctor).json["total"] == 4


def test_the_list_is_narrowed_and_paged(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    ids = [clinic.book(patient, clinic.slot(doctor, rows.tomorrow(hour))) for hour in range(3)]
    clinic.done("POST", f"/appointments/{ids[0]}/accept", doctor)
    clinic.done("POST", f"/appointments/{ids[1]}/cancel", patient, REASON)

    def found(query: str) -> list[str]:
        return [item["id"] for item in clinic.get(f"/appointments?{query}", patient).json["items"]]

    assert found("status=accepted") == [ids[0]]
    assert found("status=accepted,cancelled") == [ids[1], ids[0]]
    assert found("status=accepted&status=requested") == [ids[2], ids[0]]
    assert found(f"from={rows.tomorrow(1).isoformat().replace('+00:00', 'Z')}") == [ids[2], ids[1]]
    assert found(f"until={rows.tomorrow(1).isoformat().replace('+00:00', 'Z')}") == [ids[0]]
    assert found("overdue=true") == []
    first = clinic.get("/appointments?page_size=2", patient).json
    assert [item["id"] for item in first["items"]] == [ids[2], ids[1]]
    assert [item["id"] for item in clinic.get(f"/appointments?cursor={first['next']}", patient).json["items"]] == [ids[0]]
    assert found("page=2&page_size=2") == [ids[0]]


def test_overdue_is_what_was_accepted_is_over_and_nobody_has_closed(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    over, begun, missed = (clinic.book(patient, clinic.slot(doctor, rows.tomorrow(hour))) for hour in range(3))

    def overdue(who: Someone) -> list[str]:
        return [item["id"] for item in clinic.get("/appointments?overdue=true", who).json["items"]]

    for number, each in enumerate((over, begun, missed)):
        clinic.done("POST", f"/appointments/{each}/accept", doctor)
        begins, ends = ("- 90", "+ 1") if each == begun else (f"- {300 + number * 60}", f"- {250 + number * 60}")
        during = f"tstzrange(now() {begins} * interval '1 min', now() {ends} * interval '1 min')"
        clinic.change(f"update appointments set during = {during} where id = :id", id=each)
    assert overdue(doctor) == overdue(patient) == [over, missed]
    clinic.done("POST", f"/appointments/{over}/complete", doctor)
    assert overdue(doctor) == [missed]
    clinic.done("POST", f"/appointments/{missed}/no-show", doctor)
    assert overdue(doctor) == overdue(patient) == []
    for call, who in (("complete", doctor), ("cancel", doctor), ("cancel", patient)):
        answer = clinic.request("POST", f"/appointments/{over}/{call}", who, REASON if call == "cancel" else {})
        assert clinic.outcome(answer, who)["error"]["code"] == "invalid_transition"
    late = clinic.outcome(clinic.request("POST", f"/appointments/{begun}/cancel", doctor, REASON), doctor)
    assert late["error"]["code"] == "too_late_to_cancel"


def test_a_cursor_goes_on_where_its_page_ended_whatever_was_booked_meanwhile(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()

    def booked(*hours: float) -> dict[str, float]:
        return {clinic.book(clinic.accounts.patient(), clinic.slot(doctor, rows.tomorrow(hour))): hour for hour in hours}

    hours = booked(1, 2, 4, 5, 7, 8)
    page = clinic.get("/appointments?page_size=2", doctor).json
    read = [item["id"] for item in page["items"]]
    hours |= booked(9, 7.5, 3)  # before all, on a page that was read, and on one to come
    while "next" in page:
        page = clinic.get(f"/appointments?cursor={page['next']}", doctor).json
        read += [item["id"] for item in page["items"]]
    assert [hours[each] for each in read] == [8, 7, 5, 4, 3, 2, 1]


def test_a_patient_with_an_unconfirmed_address_cannot_book_where_that_is_asked(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    asking = replace(clinic.services.settings, limits=replace(clinic.services.settings.limits, confirm_email=True))
    services = replace(clinic.services, settings=asking)
    monkeypatch.setitem(clinic.client.application.extensions, "healthmed", services)
    answer = clinic.request("POST", "/appointments", patient, {"slot_id": slot_id})
    assert (answer.status_code, answer.json["code"]) == (403, "email_not_confirmed")
    assert clinic.stored() == 0
    clinic.change("update people set email_confirmed_at = now() where id = :id", id=patient.id)
    assert clinic.request("POST", "/appointments", patient, {"slot_id": slot_id}).status_code == 202


@pytest.mark.parametrize(
    "address",
    [
        "http://meet.example.com/a",
        "https://",
        "https://localhost/a",
        "https://ana:senha@meet.example.com/",
        "https://meet.example.com:0/",
        "https://meet.example.com:99999/",
        "https://[::1/",
        "https://meet.example.com/a b",
        'https://meet.example.com/"><script>',
        "javascript:alert(1)//https://meet.example.com",
        "https://meet.example.com/" + "a" * 2000,
    ],
)
def test_where_to_meet_is_a_sane_https_address(clinic: Clinic, address: str) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    answer = clinic.request("POST", f"/appointments/{appointment_id}/accept", doctor, {"join_url": address})
    assert answer.status_code == 422
    assert list(answer.json["errors"]) == ["join_url"]


@pytest.mark.parametrize("call", ["refuse", "cancel"])
@pytest.mark.parametrize("reason", ["", "  ab  ", "x" * 501, None, 3, "com\x00zero", "\ud800meio par"])
def test_a_reason_has_3_to_500_characters_after_trimming(clinic: Clinic, call: str, reason: object) -> None:
    doctor = clinic.accounts.doctor()
    path = f"/appointments/01a20d57-0000-7000-8000-000000000000/{call}"
    answer = clinic.request("POST", path, doctor, {"reason": reason})
    assert answer.status_code == 422
    assert list(answer.json["errors"]) == ["reason"]


def test_notes_have_1000_characters_at_most(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    answer = clinic.request("POST", "/appointments", patient, {"slot_id": slot_id, "notes": "é" * 1001})
    assert (answer.status_code, list(answer.json["errors"])) == (422, ["notes"])
    appointment_id = clinic.book(patient, slot_id, notes="é" * 1000)
    assert clinic.get(f"/appointments/{appointment_id}", patient).json["notes"] == "é" * 1000


def test_an_empty_note_is_none(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    appointment_id = clinic.book(patient, clinic.slot(doctor), notes="  ")
    assert clinic.get(f"/appointments/{appointment_id}", patient).json["notes"] is None
