"""The bodies of the reads: what they show, to whom, until when, and that a decision shows in all of them at once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text
from uuid_utils.compat import uuid7

from domain import audit, inbox, projections
from domain.availability import Availability, Rule
from domain.cache import Answer, Cache, record_batch
from domain.commands import Accept, Book, Cancel, Command, Refuse, SetAvailability
from domain.errors import Invalid, NotFound
from domain.identifiers import name_key
from domain.lanes import Drainer
from domain.projections import AppointmentQuery, SearchQuery
from domain.schedule import Interval, Role
from domain.settings import Settings
from local.servers import Broker
from local.servers import Cache as CacheServer
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(settings: Settings, engine: Engine, cache_server: CacheServer, broker: Broker) -> Iterator[Cache]:
    cache = Cache(settings, engine)
    cache.start()
    yield cache
    cache.stop()


@pytest.fixture
def rows(engine: Engine) -> Iterator[Connection]:
    """A connection whose every statement is committed at once."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


@pytest.fixture
def decide(settings: Settings, engine: Engine, cache: Cache, broker: Broker) -> Iterator[Callable[..., UUID]]:
    """Sends a command and has it decided; returns its id."""
    with Redis.from_url(broker.url) as client:
        drainer = Drainer(settings, engine, cache, client)

        def decide(sender_id: UUID, command: Command, role: Role = Role.PATIENT) -> UUID:
            with engine.begin() as connection:
                row = send(connection, settings, sender_id, command, role)
            drainer.drain(row.lane)
            return row.id

        yield decide


def shown(answer: Answer) -> dict[str, Any]:
    return json.loads(answer.body)


def add_specialty(connection: Connection, doctor_id: UUID, code: str, rqe: str = "1234") -> None:
    connection.execute(
        text("insert into doctor_specialties values (:id, :code, :rqe)"), {"id": doctor_id, "code": code, "rqe": rqe}
    )


def book(decide: Callable[..., UUID], cache: Cache, patient_id: UUID, slot_id: UUID, notes: str | None = None) -> UUID:
    """Book a slot; the appointment's id."""
    command_id = decide(patient_id, Book(slot_id, notes))
    return UUID(shown(projections.command(cache, command_id, patient_id))["appointment_id"])


def test_a_doctor_is_shown_as_the_contract_says(cache: Cache, rows: Connection, settings: Settings):
    doctor_id = add_doctor(rows, settings, name="Bruno Lima", bio="Atendo em Recife.", crm_number="123456", crm_suffix="P")
    add_specialty(rows, doctor_id, "dermatologia", "77")
    add_specialty(rows, doctor_id, "cardiologia", "88")
    add_slot(rows, doctor_id, tomorrow(1))
    add_slot(rows, doctor_id, tomorrow())
    assert shown(projections.doctor(cache, doctor_id)) == {
        "id": str(doctor_id),
        "name": "Bruno Lima",
        "crm": "123456P/SP",
        "specialties": [
            {"code": "cardiologia", "name": "Cardiologia", "rqe": "88"},
            {"code": "dermatologia", "name": "Dermatologia", "rqe": "77"},
        ],
        "price": {"amount": 25000, "currency": "BRL"},
        "timezone": "America/Sao_Paulo",
        "next_slot_at": f"{tomorrow():%Y-%m-%dT%H:%M:%SZ}",
        "bio": "Atendo em Recife.",
    }


@pytest.mark.parametrize("status", ["pending_verification", "rejected", "suspended"])
def test_nobody_sees_a_doctor_who_is_not_verified(cache: Cache, rows: Connection, settings: Settings, status: str):
    doctor_id = add_doctor(rows, settings, status=status)
    add_slot(rows, doctor_id, tomorrow())
    for read in (projections.doctor, projections.agenda):
        with pytest.raises(NotFound):
            read(cache, doctor_id)
    for sort in ("name", "price", "next_slot"):
        assert shown(projections.search(cache, SearchQuery(sort=sort)))["items"] == []


def test_the_next_slot_is_the_first_one_inside_the_booking_window(cache: Cache, rows: Connection, settings: Settings):
    now, limits = datetime.now(UTC).replace(microsecond=0), settings.limits
    doctor_id = add_doctor(rows, settings)
    add_slot(rows, doctor_id, now + timedelta(seconds=limits.booking_notice - 30), 1)
    far = now + timedelta(days=limits.booking_horizon_days, minutes=5)
    add_slot(rows, doctor_id, far)
    answer = projections.doctor(cache, doctor_id)
    assert shown(answer)["next_slot_at"] is None
    assert answer.fresh_until == far - timedelta(days=limits.booking_horizon_days), "it enters the window then"
    soon = now + timedelta(seconds=limits.booking_notice + 60)
    add_slot(rows, doctor_id, soon)
    cache.finish(record_batch(rows, [f"doctor:{doctor_id}"]), [f"doctor:{doctor_id}"])
    answer = projections.doctor(cache, doctor_id)
    assert shown(answer)["next_slot_at"] == projections.instant(soon)
    assert answer.fresh_until == soon - timedelta(seconds=limits.booking_notice), "it leaves the window then"


def test_an_agenda_holds_each_day_asked_for_with_the_open_slots_in_the_doctors_time(
    cache: Cache, rows: Connection, settings: Settings
):
    doctor_id = add_doctor(rows, settings)
    day = tomorrow().date()
    late = datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=1, hours=2)  # 23:00 of that day in São Paulo
    slot_id = add_slot(rows, doctor_id, late)
    other_id = add_slot(rows, doctor_id, late + timedelta(hours=1))
    rows.execute(text("update slots set price = 100 where id = :id"), {"id": other_id})
    rows.execute(
        text("update slots set status = 'withdrawn' where id = :id"), {"id": add_slot(rows, doctor_id, late - timedelta(hours=3))}
    )
    agenda = shown(projections.agenda(cache, doctor_id, day, 3))
    assert agenda == {
        "doctor_id": str(doctor_id),
        "timezone": "America/Sao_Paulo",
        "price": {"amount": 25000, "currency": "BRL"},
        "days": [
            {
                "date": day.isoformat(),
                "slots": [
                    {
                        "id": str(slot_id),
                        "starts_at": f"{day}T23:00:00-03:00",
                        "ends_at": f"{day}T23:30:00-03:00",
                        "price": {"amount": 25000, "currency": "BRL"},
                    }
                ],
            },
            {
                "date": str(day + timedelta(days=1)),
                "slots": [
                    {
                        "id": str(other_id),
                        "starts_at": f"{day + timedelta(days=1)}T00:00:00-03:00",
                        "ends_at": f"{day + timedelta(days=1)}T00:30:00-03:00",
                        "price": {"amount": 100, "currency": "BRL"},
                    }
                ],
            },
            {"date": str(day + timedelta(days=2)), "slots": []},
        ],
    }


def test_an_agenda_without_a_date_begins_today_and_is_fresh_until_the_doctors_midnight(
    cache: Cache, rows: Connection, settings: Settings
):
    doctor_id = add_doctor(rows, settings, timezone="Asia/Tokyo")
    answer = projections.agenda(cache, doctor_id)
    tokyo = (cache.now() + timedelta(hours=9)).date()
    assert [day["date"] for day in shown(answer)["days"]] == [str(tokyo + timedelta(days=n)) for n in range(7)]
    assert answer.fresh_until == datetime.combine(tokyo + timedelta(days=1), datetime.min.time(), UTC) - timedelta(hours=9)
    assert projections.agenda(cache, doctor_id, tokyo).fresh_until is None


def test_an_agenda_shows_what_may_be_booked_now_and_is_fresh_until_that_changes(
    cache: Cache, rows: Connection, settings: Settings
):
    now, limits = cache.now().replace(microsecond=0), settings.limits
    doctor_id = add_doctor(rows, settings, timezone="UTC")
    notice, horizon = timedelta(seconds=limits.booking_notice), timedelta(days=limits.booking_horizon_days)
    add_slot(rows, doctor_id, now + notice - timedelta(seconds=30), 1)
    first_id = add_slot(rows, doctor_id, now + notice + timedelta(minutes=1))
    last_id = add_slot(rows, doctor_id, now + horizon - timedelta(minutes=30))
    add_slot(rows, doctor_id, now + horizon + timedelta(seconds=30))

    def agenda(at: datetime) -> tuple[list[str], datetime | None]:
        answer = projections.agenda(cache, doctor_id, at.date() - timedelta(days=1), 3)
        return [slot["id"] for day in shown(answer)["days"] for slot in day["slots"]], answer.fresh_until

    assert agenda(now + notice) == ([str(first_id)], now + timedelta(minutes=1))
    assert agenda(now + horizon) == ([str(last_id)], now + timedelta(seconds=30))


@pytest.mark.parametrize("zone", ["America/Havana", "Atlantic/Azores"])
def test_days_whose_midnight_is_skipped_or_repeated_lose_no_slot(
    cache: Cache, rows: Connection, settings: Settings, engine: Engine, zone: str
):
    year = Cache(replace(settings, limits=replace(settings.limits, booking_horizon_days=366)), engine)
    doctor_id, local = add_doctor(rows, settings, timezone=zone), ZoneInfo(zone)
    days = [cache.now().date() + timedelta(days=n) for n in range(2, 364)]
    offsets = [datetime.combine(day, time(12), local).utcoffset() for day in days]
    changes = [day for day, before, after in zip(days[1:], offsets, offsets[1:], strict=False) if before != after]
    assert len(changes) == 2
    for change in changes:
        midnight = datetime.combine(change, time(), UTC)
        starts = [midnight + timedelta(hours=n) for n in range(-48, 72)]
        for start in starts:
            add_slot(rows, doctor_id, start, 60)
        for day in (change - timedelta(days=1), change, change + timedelta(days=1)):
            (shown_day,) = shown(projections.agenda(year, doctor_id, day, 1))["days"]
            assert [datetime.fromisoformat(slot["starts_at"]) for slot in shown_day["slots"]] == [
                start for start in starts if start.astimezone(local).date() == day
            ]
    year.stop()


@pytest.mark.parametrize("day", [date.min, date(1, 1, 2), date(9999, 12, 31)])
def test_a_date_that_no_agenda_reaches_is_refused(cache: Cache, rows: Connection, settings: Settings, day: date):
    with pytest.raises(Invalid):
        projections.agenda(cache, add_doctor(rows, settings), day)


def found(cache: Cache, **query: Any) -> list[UUID]:
    """All doctors that a search finds, page after page by its cursor."""
    page = shown(projections.search(cache, SearchQuery(**query)))
    items = page["items"]
    while "next" in page:
        page = shown(projections.search(cache, SearchQuery(cursor=page["next"])))
        items += page["items"]
    assert len(items) == page["total"]
    return [UUID(item["id"]) for item in items]


def test_doctors_are_found_by_any_of_several_specialties_and_general_practitioners_by_having_none(
    cache: Cache, rows: Connection, settings: Settings
):
    skin, heart, both, none = (add_doctor(rows, settings, name=name) for name in ("A", "B", "C", "D"))
    for doctor_id in (skin, both):
        add_specialty(rows, doctor_id, "dermatologia")
    for doctor_id in (heart, both):
        add_specialty(rows, doctor_id, "cardiologia")
    assert found(cache, specialty=["dermatologia"]) == [skin, both]
    assert found(cache, specialty=["cardiologia", "dermatologia"]) == [skin, heart, both]
    assert found(cache, specialty=["clinico-geral"]) == [none]
    assert found(cache, specialty=("clinico-geral", "cardiologia")) == [heart, both, none]
    assert found(cache, specialty=["acupuntura"]) == []


@pytest.mark.parametrize("q", ["JOÃO", "joao", "oão da", " conce ", "Conceição", "são  da c", "ão"])
def test_a_name_is_found_anywhere_in_it_whatever_its_case_and_accents(cache: Cache, rows: Connection, settings: Settings, q: str):
    name = "João da Conceição"
    doctor_id = add_doctor(rows, settings, name=name, search_name=name_key(name))
    add_doctor(rows, settings, name="Marta")
    assert found(cache, q=q) == ([] if q == "são  da c" else [doctor_id])


@pytest.mark.parametrize("q", ["%", "_", "\\", "100%"])
def test_signs_of_patterns_are_letters_like_others(cache: Cache, rows: Connection, settings: Settings, q: str):
    name = f"Ana {q} Lima"
    doctor_id = add_doctor(rows, settings, name=name, search_name=name_key(name))
    add_doctor(rows, settings, name="Bia Rocha")
    assert found(cache, q=q) == [doctor_id]


def test_doctors_are_filtered_by_state_price_and_free_time(cache: Cache, rows: Connection, settings: Settings):
    cheap = add_doctor(rows, settings, name="A", price=100, crm_state="BA")
    dear = add_doctor(rows, settings, name="B", price=900, crm_state="SP")
    add_slot(rows, cheap, tomorrow())
    add_slot(rows, dear, tomorrow(5))
    assert found(cache, state="BA") == [cheap]
    assert found(cache, max_price=100) == [cheap]
    assert found(cache, max_price=99) == []
    assert found(cache, available_from=tomorrow(), available_until=tomorrow(1)) == [cheap]
    assert found(cache, available_from=tomorrow(1)) == [dear]
    assert found(cache, available_until=tomorrow(5)) == [cheap], "the end is not included"
    assert found(cache, available_from=tomorrow(24 * 80)) == []


def many_doctors(rows: Connection, settings: Settings, number: int) -> list[dict[str, Any]]:
    """Doctors with few different names, prices and next slots, so that ties abound."""
    chance = random.Random(7)
    doctors = []
    for _ in range(number):
        name, price = chance.choice(["ana", "bia", "caio"]), chance.choice([100, 200])
        doctor_id = add_doctor(rows, settings, name=name, price=price)
        starts = [tomorrow(chance.choice([0, 1, 2, 3]) + 4 * n) for n in range(chance.choice([0, 1, 3]))]
        for start in starts:
            add_slot(rows, doctor_id, start)
        doctors.append({"id": doctor_id, "name": name, "price": price, "next_slot": min(starts, default=None)})
    return doctors


ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "name": lambda doctor: (doctor["name"], doctor["id"]),
    "price": lambda doctor: (doctor["price"], doctor["id"]),
    "next_slot": lambda doctor: (doctor["next_slot"] is None, doctor["next_slot"] or 0, doctor["id"]),
}


@pytest.mark.parametrize("counted", [1000, 5], ids=["few", "many"])
@pytest.mark.parametrize("sort", list(ORDERS))
def test_pages_hold_all_doctors_in_order_by_number_and_by_cursor(
    cache: Cache, rows: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch, sort: str, counted: int
):
    monkeypatch.setattr(projections, "COUNTED", counted)
    doctors = many_doctors(rows, settings, 23)
    in_order = [doctor["id"] for doctor in sorted(doctors, key=ORDERS[sort])]
    by_number, by_cursor, cursor = [], [], None
    for number in range(1, 7):
        page = shown(projections.search(cache, SearchQuery(sort=sort, page=number, page_size=4)))
        by_number += [UUID(item["id"]) for item in page["items"]]
        assert (page["page"], page["page_size"], page["total"]) == (number, 4, min(23, counted))
        page = shown(projections.search(cache, SearchQuery(cursor=cursor) if cursor else SearchQuery(sort=sort, page_size=4)))
        by_cursor += [UUID(item["id"]) for item in page["items"]]
        assert page["page"] == number
        cursor = page.get("next")
    assert cursor is None
    assert by_number == in_order
    assert by_cursor == in_order
    assert shown(projections.search(cache, SearchQuery(sort=sort, page=8, page_size=4)))["items"] == []


@pytest.mark.parametrize("sort", list(ORDERS))
def test_a_cursor_neither_skips_nor_repeats_while_doctors_come_and_go(
    cache: Cache, rows: Connection, settings: Settings, sort: str
):
    doctors = sorted(many_doctors(rows, settings, 12), key=ORDERS[sort])
    page = shown(projections.search(cache, SearchQuery(sort=sort, page_size=5)))
    seen = [UUID(item["id"]) for item in page["items"]]
    add_slot(rows, add_doctor(rows, settings, name="a", price=1), tomorrow(-1))  # before all of them
    rows.execute(text("update doctors set status = 'suspended' where id = :id"), {"id": doctors[2]["id"]})
    cache.finish(record_batch(rows, ["directory", "directory-free"]), ["directory", "directory-free"])
    while "next" in page:
        page = shown(projections.search(cache, SearchQuery(cursor=page["next"])))
        seen += [UUID(item["id"]) for item in page["items"]]
    assert seen == [doctor["id"] for doctor in doctors]


def test_a_cursor_that_nobody_gave_is_refused(cache: Cache, rows: Connection, settings: Settings):
    for name in "abc":
        add_doctor(rows, settings, name=name)
    cursor = shown(projections.search(cache, SearchQuery(page_size=1)))["next"]
    assert len(found(cache, page_size=1)) == 3
    swapped = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
    for bad in ("", "x", "é", "=", cursor[:-4], cursor[:20], swapped, "A" * 500):
        with pytest.raises(Invalid):
            projections.search(cache, SearchQuery(cursor=bad))
    with pytest.raises(Invalid):
        projections.appointments(cache, uuid7(), Role.PATIENT, AppointmentQuery(cursor=cursor))


def test_a_booking_moves_a_card_and_the_free_directory_and_leaves_the_other_pages_alone(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], cache_server: CacheServer
):
    doctor_id, patient_id = add_doctor(rows, settings), add_person(rows, settings)
    slot_id, _ = add_slot(rows, doctor_id, tomorrow()), add_slot(rows, doctor_id, tomorrow(1))
    plain, free = SearchQuery(), SearchQuery(sort="next_slot")
    for query in (plain, free):
        assert shown(projections.search(cache, query))["items"][0]["next_slot_at"] == projections.instant(tomorrow())
    decide(patient_id, Book(slot_id))
    with Redis.from_url(cache_server.url) as client:
        assert client.hlen("1:directory") == 2, "the page and the lease"
        assert client.exists("1:directory-free") == 0
    for query in (plain, free):
        assert shown(projections.search(cache, query))["items"][0]["next_slot_at"] == projections.instant(tomorrow(1))


def test_a_page_by_free_slots_is_fresh_until_any_slot_leaves_the_booking_window(
    cache: Cache, rows: Connection, settings: Settings, cache_server: CacheServer
):
    soon = cache.now().replace(microsecond=0) + timedelta(seconds=settings.limits.booking_notice, minutes=3)
    add_slot(rows, add_doctor(rows, settings), soon)
    projections.search(cache, SearchQuery(sort="next_slot"))
    with Redis.from_url(cache_server.url) as client:
        (head,) = (value.split(b"\n")[0] for name, value in client.hgetall("1:directory-free").items() if name != b"lease")
    assert float(head.split()[1]) == (soon - timedelta(seconds=settings.limits.booking_notice)).timestamp()


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
        "starts_at": projections.instant(tomorrow()),
        "ends_at": projections.instant(tomorrow(0.5)),
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
        "received_at": projections.instant(row.received_at),
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
    assert shown(projections.doctor(cache, doctor_id))["next_slot_at"]
    with monkeypatch.context() as crash:
        crash.setattr(Cache, "finish", lambda *_: None)
        command_id = decide(patient_id, Book(slot_id))
    assert shown(projections.doctor(cache, doctor_id))["next_slot_at"], "nobody has made it known yet"
    assert shown(projections.command(cache, command_id, patient_id))["status"] == "succeeded"
    assert shown(projections.doctor(cache, doctor_id))["next_slot_at"] is None
    assert rows.execute(text("select count(*) from batches where finished_at is null")).scalar_one() == 0


def test_what_a_command_changed_shows_in_every_answer_as_soon_as_it_reads_succeeded(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], pair: tuple[UUID, UUID]
):
    patient_id, doctor_id = pair
    slot_id = add_slot(rows, doctor_id, tomorrow())

    def view() -> tuple[object, ...]:
        open_slots = [slot["id"] for day in shown(projections.agenda(cache, doctor_id))["days"] for slot in day["slots"]]
        cards = [
            shown(projections.search(cache, query))["items"]
            for query in (SearchQuery(), SearchQuery(sort="next_slot"), SearchQuery(available_from=tomorrow()))
        ]
        lists = [
            [item["status"] for item in shown(projections.appointments(cache, person_id, role, AppointmentQuery()))["items"]]
            for person_id, role in ((patient_id, Role.PATIENT), (doctor_id, Role.DOCTOR))
        ]
        return open_slots, [[card["next_slot_at"] for card in each] for each in cards], lists

    free = projections.instant(tomorrow())
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
            {"starts_at": projections.instant(tomorrow()), "ends_at": projections.instant(tomorrow(3))},
            {
                "starts_at": projections.instant(tomorrow(50)),
                "ends_at": projections.instant(tomorrow(60)),
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
    assert set(projections.scopes_showing(rows, doctor_id)) == {*both, f"doctor:{doctor_id}", "directory", "directory-free"}
    assert projections.scopes_showing(rows, inbox.SYSTEM) == [f"person:{inbox.SYSTEM}"]


def test_the_specialties_are_the_councils_and_the_general_practitioner():
    items = shown(projections.specialties())["items"]
    assert len(items) == 56
    assert [item["code"] for item in items if not item["registered"]] == ["clinico-geral"]
