"""The bodies of the reads: what they show, to whom, until when, and that a decision shows in all of them at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date, time, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text
from uuid_utils.compat import uuid7

from domain import audit, directory, inbox, projections
from domain.answers import instant
from domain.availability import Availability, Rule
from domain.cache import Answer, Cache, record_batch
from domain.commands import Accept, Book, Cancel, Refuse, SetAvailability
from domain.directory import SearchQuery
from domain.errors import Invalid, NotFound
from domain.projections import AppointmentQuery
from domain.schedule import Interval, Role
from domain.settings import Settings
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow


def shown(answer: Answer) -> dict[str, Any]:
    return json.loads(answer.body)


def book(decide: Callable[..., UUID], cache: Cache, patient_id: UUID, slot_id: UUID, notes: str | None = None) -> UUID:
    """Book a slot; the appointment's id."""
    command_id = decide(patient_id, Book(slot_id, notes))
    return UUID(shown(projections.command(cache, command_id, patient_id))["appointment_id"])


@pytest.fixture
def pair(rows: Connection, settings: Settings) -> tuple[UUID, UUID]:
    """A patient and a doctor."""
    return add_person(rows, settings, name="Ana Souza"), add_doctor(rows, settings, name="Bruno Lima", crm_number="42")


def test_an_appointment_is_shown_alike_to_its_patient_and_its_doctor(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    slot_id = add_slot(rows, doctor_id, tomorrow())
    appointment_id = book(decide, cache, patient_id, slot_id, "Dor de cabeça há dias.")
    before = shown(projections.appointment(cache, appointment_id, patient_id, Role.PATIENT))
    decide(doctor_id, Refuse(appointment_id, "Fora da minha área.", "other_specialty"), Role.DOCTOR)
    after = shown(projections.appointment(cache, appointment_id, patient_id, Role.PATIENT))
    assert after == shown(projections.appointment(cache, appointment_id, doctor_id, Role.DOCTOR))
    asked_at, refused_at = before["requested_at"], after["decided_at"]
    assert before == {
        "id": str(appointment_id),
        "doctor": {"id": str(doctor_id), "name": "Bruno Lima", "crm": "42/SP"},
        "patient": {"id": str(patient_id), "name": "Ana Souza"},
        "slot_id": str(slot_id),
        "starts_at": instant(tomorrow()),
        "ends_at": instant(tomorrow(0.5)),
        "price": {"amount": 25000, "currency": "BRL"},
        "status": "requested",
        "requested_at": asked_at,
        "notes": "Dor de cabeça há dias.",
        "history": [{"status": "requested", "at": before["history"][0]["at"], "by": "patient"}],
    }
    assert after == {
        **before,
        "status": "refused",
        "decided_at": refused_at,
        "reason": "Fora da minha área.",
        "history": [
            *before["history"],
            {"status": "refused", "at": refused_at, "by": "doctor", "reason": "Fora da minha área."},
        ],
    }
    assert all(at.endswith("Z") for at in (asked_at, refused_at, before["history"][0]["at"]))


def test_a_join_url_is_shown_to_both(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    appointment_id = book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow()))
    decide(doctor_id, Accept(appointment_id, "https://meet.example.com/x"), Role.DOCTOR)
    for reader_id, role in ((patient_id, Role.PATIENT), (doctor_id, Role.DOCTOR)):
        assert shown(projections.appointment(cache, appointment_id, reader_id, role))["join_url"] == "https://meet.example.com/x"


def test_a_stranger_finds_no_appointment_filled_or_not(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    appointment_id = book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow()))
    strangers = [
        (add_person(rows, settings), Role.PATIENT),
        (add_doctor(rows, settings), Role.DOCTOR),
        (add_person(rows, settings, Role.STAFF), Role.STAFF),
        (patient_id, Role.DOCTOR),
        (doctor_id, Role.PATIENT),
    ]
    for _ in range(2):
        for reader_id, role in strangers:
            with pytest.raises(NotFound):
                projections.appointment(cache, appointment_id, reader_id, role)
        for reader_id, role in ((patient_id, Role.PATIENT), (doctor_id, Role.DOCTOR)):
            projections.appointment(cache, appointment_id, reader_id, role)
    readings = rows.execute(text("select actor_id, subject_id from audit where action = 'read'")).all()
    assert readings == [(doctor_id, patient_id)], "what a stranger asked for in vain was not read"


def test_a_doctors_reading_is_written_down_before_the_answer_once_an_hour(
    cache: Cache,
    rows: Connection,
    settings: Settings,
    decide: Callable[..., UUID],
    pair: tuple[UUID, UUID],
    monkeypatch: pytest.MonkeyPatch,
):
    patient_id, doctor_id = pair
    appointment_id = book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow()))
    written: list[Sequence[UUID]] = []
    ensure_read = audit.ensure_read

    def counted(connection: Connection, reader_id: UUID, role: Role, subjects: Sequence[UUID]) -> None:
        written.append(list(subjects))
        ensure_read(connection, reader_id, role, subjects)

    monkeypatch.setattr(audit, "ensure_read", counted)
    for _ in range(3):
        projections.appointment(cache, appointment_id, doctor_id, Role.DOCTOR)
        projections.appointments(cache, doctor_id, Role.DOCTOR, AppointmentQuery())
        projections.appointment(cache, appointment_id, patient_id, Role.PATIENT)
        projections.appointments(cache, patient_id, Role.PATIENT, AppointmentQuery())
    assert written == [[patient_id], [patient_id]]
    assert rows.execute(text("select count(*) from audit where action = 'read'")).scalar_one() == 1
    hour = cache.hour
    monkeypatch.setattr(Cache, "hour", lambda _: hour() + timedelta(hours=1))
    projections.appointment(cache, appointment_id, doctor_id, Role.DOCTOR)
    assert len(written) == 3


def test_a_reading_that_cannot_be_written_down_is_not_answered(
    cache: Cache,
    rows: Connection,
    settings: Settings,
    decide: Callable[..., UUID],
    pair: tuple[UUID, UUID],
    monkeypatch: pytest.MonkeyPatch,
):
    patient_id, doctor_id = pair
    appointment_id = book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow()))

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(audit, "ensure_read", fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            projections.appointment(cache, appointment_id, doctor_id, Role.DOCTOR)


def test_of_an_erased_patient_nothing_but_the_times_is_shown(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    appointment_id = book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow()), "Dor.")
    decide(patient_id, Cancel(appointment_id, "Não posso ir."))
    rows.execute(text("delete from person_keys where person_id = :id"), {"id": patient_id})
    body = shown(projections.appointment(cache, appointment_id, doctor_id, Role.DOCTOR))
    assert body["patient"] == {"id": str(patient_id), "name": None}
    assert body["notes"] is None
    assert not any("reason" in entry for entry in (body, *body["history"]))


def listed(cache: Cache, person_id: UUID, role: Role = Role.PATIENT, **query: Any) -> list[str]:
    page = shown(projections.appointments(cache, person_id, role, AppointmentQuery(**query)))
    ids = [item["id"] for item in page["items"]]
    while "next" in page:
        page = shown(projections.appointments(cache, person_id, role, AppointmentQuery(cursor=page["next"])))
        ids += [item["id"] for item in page["items"]]
    assert len(ids) == page["total"]
    return ids


def test_own_appointments_are_listed_newest_start_first_and_by_what_is_asked(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    ids = [str(book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow(n)), "Dor.")) for n in range(3)]
    stranger = add_person(rows, settings)
    book(decide, cache, stranger, add_slot(rows, add_doctor(rows, settings), tomorrow()))
    decide(doctor_id, Accept(UUID(ids[1])), Role.DOCTOR)
    for person_id, role in ((patient_id, Role.PATIENT), (doctor_id, Role.DOCTOR)):
        assert listed(cache, person_id, role) == ids[::-1]
        assert listed(cache, person_id, role, page_size=1) == ids[::-1]
        assert listed(cache, person_id, role, status=["accepted"]) == [ids[1]]
        assert listed(cache, person_id, role, status=["accepted", "requested"]) == ids[::-1]
        assert listed(cache, person_id, role, status=["no_show"]) == []
        assert listed(cache, person_id, role, from_=tomorrow(1)) == [ids[2], ids[1]]
        assert listed(cache, person_id, role, from_=tomorrow(1), until=tomorrow(2)) == [ids[1]]
    page = shown(projections.appointments(cache, patient_id, Role.PATIENT, AppointmentQuery(page=2, page_size=2)))
    assert [item["id"] for item in page["items"]] == ids[:1]
    assert {key: page[key] for key in ("page", "page_size", "total")} == {"page": 2, "page_size": 2, "total": 3}
    assert "notes" not in page["items"][0]
    assert "history" not in page["items"][0]


def test_a_cursor_serves_only_whose_list_it_came_from(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    for n in range(2):
        book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow(n)))
    cursor = shown(projections.appointments(cache, patient_id, Role.PATIENT, AppointmentQuery(page_size=1)))["next"]
    with pytest.raises(Invalid):
        projections.appointments(cache, doctor_id, Role.DOCTOR, AppointmentQuery(cursor=cursor))


def test_overdue_are_the_accepted_ones_that_are_over_as_soon_as_they_are(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    ids = [book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow(n))) for n in range(3)]
    for appointment_id in ids[:2]:
        decide(doctor_id, Accept(appointment_id), Role.DOCTOR)
    query = AppointmentQuery(overdue=True)
    answer = projections.appointments(cache, doctor_id, Role.DOCTOR, query)
    assert (shown(answer)["items"], answer.fresh_until) == ([], tomorrow(0.5))
    rows.execute(
        text("update appointments set during = tstzrange(lower(during) - interval '3 days', upper(during) - interval '3 days')")
    )
    cache.finish(record_batch(rows, [f"person:{doctor_id}"]), [f"person:{doctor_id}"])
    assert listed(cache, doctor_id, Role.DOCTOR, overdue=True) == [str(ids[1]), str(ids[0])]


def test_a_command_is_shown_to_its_sender_only_pending_for_5_seconds_and_decided_for_good(
    cache: Cache, engine: Engine, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    slot_id = add_slot(rows, doctor_id, tomorrow())
    with engine.begin() as connection:
        row = send(connection, settings, patient_id, Book(slot_id))
    pending = projections.command(cache, row.id, patient_id)
    assert shown(pending) == {
        "id": str(row.id),
        "kind": "book",
        "status": "pending",
        "received_at": instant(row.received_at),
    }
    assert timedelta(seconds=4) < pending.fresh_until - cache.now() < timedelta(seconds=5)
    other_id = decide(add_person(rows, settings), Book(slot_id))
    answer = projections.command(cache, row.id, patient_id)
    assert answer.fresh_until is None
    body = shown(answer)
    assert body == {
        **shown(pending),
        "status": "succeeded",
        "decided_at": body["decided_at"],
        "appointment_id": body["appointment_id"],
    }
    for stranger in (doctor_id, None):
        with pytest.raises(NotFound):
            projections.command(cache, row.id, stranger)
    with pytest.raises(NotFound):
        projections.command(cache, other_id, patient_id)
    with pytest.raises(NotFound):
        projections.command(cache, uuid7(), patient_id)


def test_a_rejection_says_why(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    slot_id = add_slot(rows, doctor_id, tomorrow())
    decide(patient_id, Book(slot_id))
    other = add_person(rows, settings)
    body = shown(projections.command(cache, decide(other, Book(slot_id)), other))
    assert (body["status"], body["error"]["code"]) == ("rejected", "slot_taken")
    assert set(body) == {"id", "kind", "status", "received_at", "decided_at", "error"}
    assert body["error"]["detail"]


def test_whoever_reads_a_decided_command_of_an_unfinished_batch_finishes_it_first(
    cache: Cache,
    engine: Engine,
    rows: Connection,
    settings: Settings,
    decide: Callable[..., UUID],
    pair: tuple[UUID, UUID],
    monkeypatch: pytest.MonkeyPatch,
):
    patient_id, doctor_id = pair
    slot_id = add_slot(rows, doctor_id, tomorrow())
    assert shown(directory.doctor(cache, doctor_id))["next_slot_at"]
    with monkeypatch.context() as crash:
        crash.setattr(Cache, "finish", lambda *_: None)
        command_id = decide(patient_id, Book(slot_id))
    assert shown(directory.doctor(cache, doctor_id))["next_slot_at"], "nobody has made it known yet"
    assert shown(projections.command(cache, command_id, patient_id))["status"] == "succeeded"
    assert shown(directory.doctor(cache, doctor_id))["next_slot_at"] is None
    assert rows.execute(text("select count(*) from batches where finished_at is null")).scalar_one() == 0


def test_what_a_command_changed_shows_in_every_answer_as_soon_as_it_reads_succeeded(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    slot_id = add_slot(rows, doctor_id, tomorrow())

    def view() -> tuple[object, ...]:
        open_slots = [slot["id"] for day in shown(directory.agenda(cache, doctor_id))["days"] for slot in day["slots"]]
        cards = [
            shown(directory.search(cache, query))["items"]
            for query in (SearchQuery(), SearchQuery(sort="next_slot"), SearchQuery(available_from=tomorrow()))
        ]
        lists = [
            [item["status"] for item in shown(projections.appointments(cache, person_id, role, AppointmentQuery()))["items"]]
            for person_id, role in ((patient_id, Role.PATIENT), (doctor_id, Role.DOCTOR))
        ]
        return open_slots, [[card["next_slot_at"] for card in each] for each in cards], lists

    free = instant(tomorrow())
    open_again = [str(slot_id)], [[free], [free], [free]]
    taken = [], [[None], [None], []]
    assert view() == (*open_again, [[], []])
    appointment_id = book(decide, cache, patient_id, slot_id)
    assert view() == (*taken, [["requested"]] * 2)
    decide(doctor_id, Accept(appointment_id), Role.DOCTOR)
    assert view() == (*taken, [["accepted"]] * 2)
    decide(patient_id, Cancel(appointment_id, "Melhorei."))
    assert view() == (*open_again, [["cancelled"]] * 2)


def test_an_availability_reads_as_it_was_put(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    assert shown(projections.availability(cache, doctor_id)) == {"timezone": "America/Sao_Paulo", "rules": [], "exceptions": []}
    rules = (
        Rule(1, time(9), time(12), 30),
        Rule(5, time(14), time(0), 45, date(2026, 1, 1), date(2030, 1, 1)),
    )
    time_off = (Interval(tomorrow(), tomorrow(3)), Interval(tomorrow(50), tomorrow(60)))
    put = SetAvailability(Availability(rules, time_off), (None, "Congresso."), "America/Manaus")
    command_id = decide(doctor_id, put, Role.DOCTOR)
    assert shown(projections.command(cache, command_id, doctor_id))["status"] == "succeeded"
    assert shown(projections.availability(cache, doctor_id)) == {
        "timezone": "America/Manaus",
        "rules": [
            {"weekday": 1, "start": "09:00", "end": "12:00", "slot_minutes": 30},
            {
                "weekday": 5,
                "start": "14:00",
                "end": "00:00",
                "slot_minutes": 45,
                "valid_from": "2026-01-01",
                "valid_until": "2030-01-01",
            },
        ],
        "exceptions": [
            {"starts_at": instant(tomorrow()), "ends_at": instant(tomorrow(3))},
            {
                "starts_at": instant(tomorrow(50)),
                "ends_at": instant(tomorrow(60)),
                "reason": "Congresso.",
            },
        ],
    }
    with pytest.raises(NotFound):
        projections.availability(cache, patient_id)


def test_all_that_shows_a_name_is_known(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    appointment_id = book(decide, cache, patient_id, add_slot(rows, doctor_id, tomorrow()))
    both = {f"appointment:{appointment_id}", f"person:{patient_id}", f"person:{doctor_id}"}
    assert set(projections.scopes_showing(rows, patient_id)) == both
    assert set(projections.scopes_showing(rows, doctor_id)) == {
        *both,
        f"doctor:{doctor_id}",
        f"agenda:{doctor_id}",
        "directory",
        "directory-free",
        "directory-dates",
    }
    assert projections.scopes_showing(rows, inbox.SYSTEM) == [f"person:{inbox.SYSTEM}"]
