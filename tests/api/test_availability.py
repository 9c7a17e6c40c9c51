"""A doctor's availability and extra slots through HTTP: success, refusal, bad input and strangers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests import rows
from tests.api.clinic import Clinic

RULE = {"weekday": 1, "start": "09:00", "end": "12:00", "slot_minutes": 30}
OFF = {"starts_at": "2026-12-24T00:00:00-03:00", "ends_at": "2026-12-26T00:00:00-03:00"}
AVAILABILITY = {"rules": [RULE], "exceptions": [OFF]}
PRICE = {"amount": 31000, "currency": "BRL"}


def every_day(**values: Any) -> dict[str, Any]:
    """An availability of one hour a day."""
    rule = {"start": "09:00", "end": "10:00", "slot_minutes": 30}
    return {"rules": [{"weekday": day, **rule, **values} for day in range(1, 8)], "exceptions": []}


def times(starts_at: datetime, minutes: int = 45) -> dict[str, str]:
    """Start and end as they stand in a body."""
    return {"starts_at": starts_at.isoformat(), "ends_at": (starts_at + timedelta(minutes=minutes)).isoformat()}


def free(clinic: Clinic, doctor: Any) -> list[dict[str, Any]]:
    """The slots of a doctor that anyone may book, in the next 31 days."""
    days = clinic.get(f"/doctors/{doctor.id}/agenda?days=31").json["days"]
    return [slot for day in days for slot in day["slots"]]


def test_putting_an_availability_makes_slots_and_says_how_many(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    answer = clinic.request("PUT", "/doctors/me/availability", doctor, every_day())
    assert answer.json["kind"] == "set_availability"
    command = clinic.outcome(answer, doctor)
    assert command["result"]["appointments_outside"] == []
    assert command["result"]["slots_open"] >= 120
    slots = free(clinic, doctor)
    assert {slot["starts_at"][11:16] for slot in slots} == {"09:00", "09:30"}
    assert all(slot["starts_at"].endswith("-03:00") for slot in slots)


def test_what_was_put_is_read_back(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    put = {
        "rules": [RULE, {**RULE, "start": "13:00", "end": "00:00", "valid_from": "2026-12-01", "valid_until": "9999-12-31"}],
        "exceptions": [{**OFF, "reason": "Férias"}],
        "timezone": "America/Manaus",
    }
    clinic.done("PUT", "/doctors/me/availability", doctor, put)
    answer = clinic.get("/doctors/me/availability", doctor)
    assert answer.headers["Cache-Control"] == "private, no-cache"
    shown = answer.json
    assert shown["timezone"] == "America/Manaus"
    assert [each["reason"] for each in shown["exceptions"]] == ["Férias"]
    assert datetime.fromisoformat(shown["exceptions"][0]["starts_at"]) == datetime.fromisoformat(OFF["starts_at"])
    for rule, given in zip(shown["rules"], put["rules"], strict=True):
        assert {name: value for name, value in rule.items() if value is not None} == given
    assert clinic.get("/doctors/me/availability", doctor, If_None_Match=answer.headers["ETag"]).status_code == 304


def test_without_a_timezone_it_stays_as_it_was(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    clinic.done("PUT", "/doctors/me/availability", doctor, {**AVAILABILITY, "timezone": "America/Manaus"})
    clinic.done("PUT", "/doctors/me/availability", doctor, AVAILABILITY)
    assert clinic.get("/doctors/me/availability", doctor).json["timezone"] == "America/Manaus"
    assert clinic.get(f"/doctors/{doctor.id}").json["timezone"] == "America/Manaus"


def test_a_doctor_who_has_put_none_reads_an_empty_availability(clinic: Clinic) -> None:
    answer = clinic.get("/doctors/me/availability", clinic.accounts.doctor())
    assert answer.status_code == 200
    assert answer.json == {"rules": [], "exceptions": [], "timezone": "America/Sao_Paulo"}


def test_an_edit_names_the_appointments_that_now_lie_outside(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    clinic.done("PUT", "/doctors/me/availability", doctor, every_day())
    slot = free(clinic, doctor)[5]
    appointment_id = clinic.book(patient, slot["id"])
    command = clinic.done("PUT", "/doctors/me/availability", doctor, {"rules": [], "exceptions": []})
    assert command["result"]["appointments_outside"] == [appointment_id]
    assert free(clinic, doctor) == []
    assert clinic.get(f"/appointments/{appointment_id}", patient).json["status"] == "requested"


def test_an_unverified_doctor_may_edit_the_availability(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor(status="pending_verification")
    assert clinic.done("PUT", "/doctors/me/availability", doctor, every_day())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/doctors/me/availability"),
        ("PUT", "/doctors/me/availability"),
        ("POST", "/doctors/me/slots"),
        ("PATCH", "/doctors/me/slots/01a20d57-0000-7000-8000-000000000000"),
        ("DELETE", "/doctors/me/slots/01a20d57-0000-7000-8000-000000000000"),
    ],
)
def test_only_a_doctor_has_an_availability(clinic: Clinic, method: str, path: str) -> None:
    for who in (clinic.accounts.patient(), clinic.accounts.staff()):
        assert clinic.request(method, path, who, {}).status_code == 403
    assert clinic.request(method, path).status_code == 401


WRONG_RULES = [
    ({"weekday": 0}, "rules.0.weekday"),
    ({"weekday": 8}, "rules.0.weekday"),
    ({"weekday": "1"}, "rules.0.weekday"),
    ({"weekday": True}, "rules.0.weekday"),
    ({"weekday": 1.5}, "rules.0.weekday"),
    ({"start": "9:00"}, "rules.0.start"),
    ({"start": "24:00"}, "rules.0.start"),
    ({"start": "09:60"}, "rules.0.start"),
    ({"start": "09:00:00"}, "rules.0.start"),
    ({"start": 900}, "rules.0.start"),
    ({"start": "09:0٣"}, "rules.0.start"),
    ({"end": None}, "rules.0.end"),
    ({"end": "09:00"}, "rules.0"),
    ({"end": "08:00"}, "rules.0"),
    ({"slot_minutes": 4}, "rules.0.slot_minutes"),
    ({"slot_minutes": 241}, "rules.0.slot_minutes"),
    ({"slot_minutes": 2**64}, "rules.0.slot_minutes"),
    ({"valid_from": "2026-02-30"}, "rules.0.valid_from"),
    ({"valid_until": "amanhã"}, "rules.0.valid_until"),
    ({"valid_from": "2026-12-02", "valid_until": "2026-12-01"}, "rules.0"),
    ({"color": "blue"}, "rules.0.color"),
]


@pytest.mark.parametrize(("values", "field"), WRONG_RULES)
def test_a_rule_that_cannot_be_is_refused_by_its_path(clinic: Clinic, values: dict[str, Any], field: str) -> None:
    body = {"rules": [{**RULE, **values}], "exceptions": []}
    answer = clinic.request("PUT", "/doctors/me/availability", clinic.accounts.doctor(), body)
    assert (answer.status_code, list(answer.json["errors"])) == (422, [field])
    assert clinic.stored() == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"exceptions": []}, "rules"),
        ({"rules": []}, "exceptions"),
        ({"rules": {}, "exceptions": []}, "rules"),
        ({"rules": [None], "exceptions": []}, "rules.0"),
        ({"rules": [], "exceptions": [], "zone": "UTC"}, "zone"),
        ({"rules": [], "exceptions": [], "timezone": "Brasilia"}, "timezone"),
        ({"rules": [], "exceptions": [], "timezone": "../../etc/passwd"}, "timezone"),
        ({"rules": [], "exceptions": [], "timezone": None}, "timezone"),
        ({"rules": [], "exceptions": [{**OFF, "ends_at": OFF["starts_at"]}]}, "exceptions.0.ends_at"),
        ({"rules": [], "exceptions": [OFF, {**OFF, "starts_at": "2026-12-24"}]}, "exceptions.1.starts_at"),
        ({"rules": [], "exceptions": [{**OFF, "starts_at": "2026-12-24T00:00:00"}]}, "exceptions.0.starts_at"),
        ({"rules": [], "exceptions": [{**OFF, "ends_at": "2026-13-01T00:00:00Z"}]}, "exceptions.0.ends_at"),
        ({"rules": [], "exceptions": [{**OFF, "reason": "x" * 501}]}, "exceptions.0.reason"),
        ({"rules": [], "exceptions": [{"starts_at": OFF["starts_at"]}]}, "exceptions.0.ends_at"),
        ({"rules": [], "exceptions": [OFF] * 501}, "exceptions"),
        ({"rules": [{**RULE, "start": "00:00", "end": "00:05", "slot_minutes": 5}] * 101, "exceptions": []}, "rules"),
        ([], "body"),
    ],
)
def test_an_availability_that_cannot_be_is_refused_by_its_path(clinic: Clinic, body: Any, field: str) -> None:
    answer = clinic.request("PUT", "/doctors/me/availability", clinic.accounts.doctor(), body)
    assert (answer.status_code, list(answer.json["errors"])) == (422, [field])
    assert clinic.stored() == 0


def test_rules_of_one_weekday_and_time_that_overlap_are_refused_by_the_later_ones_path(clinic: Clinic) -> None:
    rules = [RULE, {**RULE, "weekday": 2}, {**RULE, "start": "11:30", "end": "14:00"}]
    doctor = clinic.accounts.doctor()
    answer = clinic.request("PUT", "/doctors/me/availability", doctor, {"rules": rules, "exceptions": []})
    assert (answer.status_code, list(answer.json["errors"])) == (422, ["rules.2"])
    rules[2]["start"] = "12:00"
    assert clinic.done("PUT", "/doctors/me/availability", doctor, {"rules": rules, "exceptions": []})


def test_100_rules_and_500_exceptions_are_taken(clinic: Clinic) -> None:
    rules = [
        {"weekday": day, "start": f"{hour:02}:{half}", "end": f"{hour:02}:{int(half) + 5:02}", "slot_minutes": 5}
        for day in range(1, 6)
        for hour in range(10)
        for half in ("00", "30")
    ]
    doctor = clinic.accounts.doctor()
    assert len(rules) == 100
    assert clinic.done("PUT", "/doctors/me/availability", doctor, {"rules": rules, "exceptions": [OFF] * 500})


def test_an_extra_slot_has_a_price_of_its_own(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    command = clinic.done("POST", "/doctors/me/slots", doctor, {**times(rows.tomorrow()), "price": PRICE})
    assert command["kind"] == "add_slot"
    (slot,) = free(clinic, doctor)
    assert (slot["id"], slot["price"]) == (command["result"]["slot_id"], PRICE)


def test_an_extra_slot_may_not_overlap(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    clinic.done("POST", "/doctors/me/slots", doctor, times(rows.tomorrow()))
    answer = clinic.request("POST", "/doctors/me/slots", doctor, times(rows.tomorrow(0.5)))
    assert clinic.outcome(answer, doctor)["error"]["code"] == "slot_overlaps"


def test_an_open_slot_is_changed_and_withdrawn(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    slot_id = clinic.slot(doctor)
    path = f"/doctors/me/slots/{slot_id}"
    assert clinic.done("PATCH", path, doctor, {"price": PRICE})["kind"] == "change_slot"
    clinic.done("PATCH", path, doctor, times(rows.tomorrow(3)))
    (slot,) = free(clinic, doctor)
    assert (slot["id"], slot["price"]) == (slot_id, PRICE)
    assert datetime.fromisoformat(slot["starts_at"]) == rows.tomorrow(3)
    assert clinic.done("DELETE", path, doctor)["kind"] == "withdraw_slot"
    assert free(clinic, doctor) == []


def test_a_booked_slot_can_be_neither_changed_nor_withdrawn(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    slot_id = clinic.slot(doctor)
    clinic.book(clinic.accounts.patient(), slot_id)
    for method, body in (("PATCH", {"price": PRICE}), ("DELETE", {})):
        answer = clinic.request(method, f"/doctors/me/slots/{slot_id}", doctor, body)
        assert clinic.outcome(answer, doctor)["error"]["code"] == "slot_not_open"


def test_another_doctors_slot_is_not_there(clinic: Clinic) -> None:
    slot_id = clinic.slot(clinic.accounts.doctor())
    stranger = clinic.accounts.doctor()
    assert clinic.request("PATCH", f"/doctors/me/slots/{slot_id}", stranger, {"price": PRICE}).status_code == 404
    assert clinic.request("DELETE", f"/doctors/me/slots/{slot_id}", stranger).status_code == 404
    assert clinic.stored() == 0


NOON = rows.tomorrow()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (times(NOON, 0), "ends_at"),
        (times(NOON, -30), "ends_at"),
        (times(NOON, 4), "ends_at"),
        (times(NOON, 24 * 60 + 1), "ends_at"),
        ({"starts_at": "9999-12-31T00:00:00Z", "ends_at": "9999-12-31T01:00:00Z"}, "starts_at"),
        ({"starts_at": "0001-01-01T00:00:00Z", "ends_at": "2026-12-31T01:00:00Z"}, "starts_at"),
        ({**times(NOON), "price": 31000}, "price"),
        ({**times(NOON), "price": {"amount": -1, "currency": "BRL"}}, "price.amount"),
        ({**times(NOON), "price": {"amount": 2**63, "currency": "BRL"}}, "price.amount"),
        ({**times(NOON), "price": {"amount": 1, "currency": "USD"}}, "price.currency"),
        ({**times(NOON), "price": {"amount": 1}}, "price.currency"),
        ({**times(NOON), "note": ""}, "note"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_slot_that_cannot_be_is_refused(clinic: Clinic, method: str, body: dict[str, Any], field: str) -> None:
    doctor = clinic.accounts.doctor()
    path = "/doctors/me/slots" + (f"/{clinic.slot(doctor)}" if method == "PATCH" else "")
    answer = clinic.request(method, path, doctor, body)
    assert answer.status_code == 422
    assert field in answer.json["errors"]
    assert clinic.stored() == 0


def test_a_change_says_what_to_change(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    slot_id = clinic.slot(doctor)
    path = f"/doctors/me/slots/{slot_id}"
    assert clinic.request("PATCH", path, doctor, {}).status_code == 422
    answer = clinic.request("PATCH", path, doctor, {"ends_at": rows.tomorrow(-1).isoformat()})
    assert (answer.status_code, list(answer.json["errors"])) == (422, ["ends_at"])
