"""The directory: what it shows of doctors, until when, whom a search finds and in which order, and their agendas."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from time import sleep
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text
from uuid_utils.compat import uuid7

from domain import directory, projections
from domain.answers import instant
from domain.cache import Answer, Cache, record_batch
from domain.commands import Book
from domain.directory import SearchQuery
from domain.errors import Invalid, NotFound
from domain.identifiers import name_key
from domain.projections import AppointmentQuery
from domain.rebuilding import rebuild
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Cache as CacheServer
from tests.rows import add_doctor, add_person, add_slot, tomorrow


def shown(answer: Answer) -> dict[str, Any]:
    return json.loads(answer.body)


def add_specialty(connection: Connection, doctor_id: UUID, code: str, rqe: str = "1234") -> None:
    connection.execute(
        text("insert into doctor_specialties values (:id, :code, :rqe)"), {"id": doctor_id, "code": code, "rqe": rqe}
    )


def test_a_doctor_is_shown_as_the_contract_says(cache: Cache, rows: Connection, settings: Settings):
    doctor_id = add_doctor(rows, settings, name="Bruno Lima", bio="Atendo em Recife.", crm_number="123456", crm_suffix="P")
    add_specialty(rows, doctor_id, "dermatologia", "77")
    add_specialty(rows, doctor_id, "cardiologia", "88")
    add_slot(rows, doctor_id, tomorrow(1))
    add_slot(rows, doctor_id, tomorrow())
    assert shown(directory.doctor(cache, doctor_id)) == {
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
    for read in (directory.doctor, directory.agenda):
        with pytest.raises(NotFound):
            read(cache, doctor_id)
    for sort in ("name", "price", "next_slot"):
        assert shown(directory.search(cache, SearchQuery(sort=sort)))["items"] == []


def test_the_next_slot_is_the_first_one_inside_the_booking_window(cache: Cache, rows: Connection, settings: Settings):
    now, limits = datetime.now(UTC).replace(microsecond=0), settings.limits
    doctor_id = add_doctor(rows, settings)
    add_slot(rows, doctor_id, now + timedelta(seconds=limits.booking_notice - 30), 1)
    far = now + timedelta(days=limits.booking_horizon_days, minutes=5)
    add_slot(rows, doctor_id, far)
    answer = directory.doctor(cache, doctor_id)
    assert shown(answer)["next_slot_at"] is None
    assert answer.fresh_until == far - timedelta(days=limits.booking_horizon_days), "it enters the window then"
    soon = now + timedelta(seconds=limits.booking_notice + 60)
    add_slot(rows, doctor_id, soon)
    cache.finish(record_batch(rows, [f"doctor:{doctor_id}"]), [f"doctor:{doctor_id}"])
    answer = directory.doctor(cache, doctor_id)
    assert shown(answer)["next_slot_at"] == instant(soon)
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
    agenda = shown(directory.agenda(cache, doctor_id, day, 3))
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
    answer = directory.agenda(cache, doctor_id)
    tokyo = (cache.now() + timedelta(hours=9)).date()
    assert [day["date"] for day in shown(answer)["days"]] == [str(tokyo + timedelta(days=n)) for n in range(7)]
    assert answer.fresh_until == datetime.combine(tokyo + timedelta(days=1), datetime.min.time(), UTC) - timedelta(hours=9)
    assert directory.agenda(cache, doctor_id, tokyo).fresh_until is None


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
        answer = directory.agenda(cache, doctor_id, at.date() - timedelta(days=1), 3)
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
            (shown_day,) = shown(directory.agenda(year, doctor_id, day, 1))["days"]
            assert [datetime.fromisoformat(slot["starts_at"]) for slot in shown_day["slots"]] == [
                start for start in starts if start.astimezone(local).date() == day
            ]
    year.stop()


@pytest.mark.parametrize("day", [date.min, date(1, 1, 2), date(9999, 12, 31)])
def test_a_date_that_no_agenda_reaches_is_refused(cache: Cache, rows: Connection, settings: Settings, day: date):
    with pytest.raises(Invalid):
        directory.agenda(cache, add_doctor(rows, settings), day)


def found(cache: Cache, **query: Any) -> list[UUID]:
    """All doctors that a search finds, page after page by its cursor."""
    page = shown(directory.search(cache, SearchQuery(**query)))
    items = page["items"]
    while "next" in page:
        page = shown(directory.search(cache, SearchQuery(cursor=page["next"])))
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
    assert found(cache, min_price=101) == [dear]
    assert found(cache, min_price=100, max_price=100) == [cheap]
    assert found(cache, min_price=901) == []
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
        doctors.append({"id": doctor_id, "name": name, "price": price, "next_slot": min(starts, default=None), "starts": starts})
    return doctors


ORDERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "name": lambda doctor: (doctor["name"], doctor["id"]),
    "price": lambda doctor: (doctor["price"], doctor["id"]),
    "next_slot": lambda doctor: (doctor["next_slot"] is None, doctor["next_slot"] or 0, doctor["id"]),
}


@pytest.mark.parametrize(("counted", "walked"), [(1000, 100), (5, 100), (5, 0)], ids=["few", "many", "many and none met soon"])
@pytest.mark.parametrize("sort", list(ORDERS))
def test_pages_hold_all_doctors_in_order_by_number_and_by_cursor(
    cache: Cache, rows: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch, sort: str, counted: int, walked: int
):
    monkeypatch.setattr(directory, "COUNTED", counted)
    monkeypatch.setattr(directory, "WALKED", walked)
    doctors = many_doctors(rows, settings, 23)
    in_order = [doctor["id"] for doctor in sorted(doctors, key=ORDERS[sort])]
    by_number, by_cursor, cursor = [], [], None
    for number in range(1, 7):
        page = shown(directory.search(cache, SearchQuery(sort=sort, page=number, page_size=4)))
        by_number += [UUID(item["id"]) for item in page["items"]]
        assert (page["page"], page["page_size"], page["total"]) == (number, 4, min(23, counted))
        page = shown(directory.search(cache, SearchQuery(cursor=cursor) if cursor else SearchQuery(sort=sort, page_size=4)))
        by_cursor += [UUID(item["id"]) for item in page["items"]]
        assert page["page"] == number
        cursor = page.get("next")
    assert cursor is None
    assert by_number == in_order
    assert by_cursor == in_order
    assert shown(directory.search(cache, SearchQuery(sort=sort, page=8, page_size=4)))["items"] == []


@pytest.mark.parametrize(("counted", "walked"), [(1000, 100), (2, 100), (2, 1)], ids=["few", "many", "many and few met soon"])
def test_any_mix_of_conditions_finds_whom_each_of_them_allows(
    cache: Cache, rows: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch, counted: int, walked: int
):
    monkeypatch.setattr(directory, "COUNTED", counted)
    monkeypatch.setattr(directory, "WALKED", walked)
    chance = random.Random(11)
    codes = ["cardiologia", "dermatologia", "pediatria"]
    doctors = many_doctors(rows, settings, 40)
    for doctor in doctors:
        doctor["state"], doctor["codes"] = chance.choice(["SP", "RJ"]), set(chance.sample(codes, chance.choice([0, 1, 1, 2])))
        rows.execute(text("update doctors set crm_state = :state where id = :id"), doctor)
        for code in doctor["codes"]:
            add_specialty(rows, doctor["id"], code)

    def allowed(doctor: dict[str, Any], query: SearchQuery) -> bool:
        begin, end = query.available_from or tomorrow(-24), query.available_until or tomorrow(24 * 365)
        asked = set(query.specialty)
        return (
            (not asked or bool(asked & (doctor["codes"] or {"clinico-geral"})))
            and (query.q or "") in doctor["name"]
            and query.state in (None, doctor["state"])
            and (query.min_price or 0) <= doctor["price"] <= (query.max_price or 1000)
            and (
                (query.available_from or query.available_until) is None or any(begin <= start < end for start in doctor["starts"])
            )
        )

    for _ in range(60):
        query = SearchQuery(
            specialty=chance.sample([*codes, "clinico-geral"], chance.choice([0, 0, 1, 2])),
            q=chance.choice([None, None, "a", "ia"]),
            state=chance.choice([None, None, "SP"]),
            min_price=chance.choice([None, None, 150]),
            max_price=chance.choice([None, None, 150]),
            available_from=chance.choice([None, None, tomorrow(1)]),
            available_until=chance.choice([None, None, tomorrow(6)]),
            sort=chance.choice(list(ORDERS)),
            page_size=5,
        )
        expected = [doctor["id"] for doctor in sorted(doctors, key=ORDERS[query.sort]) if allowed(doctor, query)]
        page = shown(directory.search(cache, query))
        assert (page["total"], [UUID(item["id"]) for item in page["items"]]) == (min(counted, len(expected)), expected[:5]), query


@pytest.mark.parametrize("sort", list(ORDERS))
def test_a_cursor_neither_skips_nor_repeats_while_doctors_come_and_go(
    cache: Cache, rows: Connection, settings: Settings, sort: str
):
    doctors = sorted(many_doctors(rows, settings, 12), key=ORDERS[sort])
    page = shown(directory.search(cache, SearchQuery(sort=sort, page_size=5)))
    seen = [UUID(item["id"]) for item in page["items"]]
    add_slot(rows, add_doctor(rows, settings, name="a", price=1), tomorrow(-1))  # before all of them
    rows.execute(text("update doctors set status = 'suspended' where id = :id"), {"id": doctors[2]["id"]})
    cache.finish(record_batch(rows, ["directory", "directory-free"]), ["directory", "directory-free"])
    while "next" in page:
        page = shown(directory.search(cache, SearchQuery(cursor=page["next"])))
        seen += [UUID(item["id"]) for item in page["items"]]
    assert seen == [doctor["id"] for doctor in doctors]


def test_a_cursor_that_nobody_gave_is_refused(cache: Cache, rows: Connection, settings: Settings):
    for name in "abc":
        add_doctor(rows, settings, name=name)
    cursor = shown(directory.search(cache, SearchQuery(page_size=1)))["next"]
    assert len(found(cache, page_size=1)) == 3
    swapped = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
    for bad in ("", "x", "é", "=", cursor[:-4], cursor[:20], swapped, "A" * 500):
        with pytest.raises(Invalid):
            directory.search(cache, SearchQuery(cursor=bad))
    with pytest.raises(Invalid):
        projections.appointments(cache, uuid7(), Role.PATIENT, AppointmentQuery(cursor=cursor))


def test_a_booking_moves_a_card_and_the_free_directory_and_leaves_the_other_pages_alone(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], cache_server: CacheServer
):
    doctor_id, patient_id = add_doctor(rows, settings), add_person(rows, settings)
    slot_id, _ = add_slot(rows, doctor_id, tomorrow()), add_slot(rows, doctor_id, tomorrow(1))
    plain, free = SearchQuery(), SearchQuery(sort="next_slot")
    for query in (plain, free):
        assert shown(directory.search(cache, query))["items"][0]["next_slot_at"] == instant(tomorrow())
    decide(patient_id, Book(slot_id))
    with Redis.from_url(cache_server.url) as client:
        assert client.hlen("1:directory") == 2, "the page and the lease"
        assert client.exists("1:directory-free") == 0
    for query in (plain, free):
        assert shown(directory.search(cache, query))["items"][0]["next_slot_at"] == instant(tomorrow(1))


def test_a_booking_that_is_not_of_the_first_free_slot_moves_the_agenda_and_pages_by_date_only(
    cache: Cache, rows: Connection, settings: Settings, decide: Callable[..., UUID], cache_server: CacheServer
):
    doctor_id = add_doctor(rows, settings)
    add_slot(rows, doctor_id, datetime.now(UTC) + timedelta(seconds=settings.limits.booking_notice - 60))  # too soon for anybody
    slots = [add_slot(rows, doctor_id, tomorrow(hours)) for hours in range(5)]
    kinds = ("doctor", "agenda", "directory-free", "directory-dates")

    def moved() -> set[str]:
        """What is not cached any more; all of it is then."""
        with Redis.from_url(cache_server.url) as client:
            gone = {kind for kind in kinds if not client.exists(f"1:{kind}:{doctor_id}", f"1:{kind}")}
        directory.doctor(cache, doctor_id)
        directory.agenda(cache, doctor_id)
        for query in (SearchQuery(sort="next_slot"), SearchQuery(sort="next_slot", available_from=tomorrow())):
            directory.search(cache, query)
        assert {right for _, right in rebuild(cache)} == {True}
        return gone

    assert moved() == {*kinds}
    decide(add_person(rows, settings), Book(slots[3]))
    assert moved() == {"agenda", "directory-dates"}
    decide(add_person(rows, settings), Book(slots[0]))
    assert moved() == {*kinds}, "the one before it is too soon for anybody"
    decide(add_person(rows, settings), Book(slots[2]))
    assert moved() == {"agenda", "directory-dates"}
    unfinished = record_batch(rows, [f"doctor:{doctor_id}"])
    decide(add_person(rows, settings), Book(slots[4]))
    assert moved() == {*kinds}, "whether the first one was free before may not be known yet"
    cache.finish(unfinished, [f"doctor:{doctor_id}"])
    decide(add_person(rows, settings), Book(slots[1]))
    assert moved() == {*kinds}, "it was the last"


def test_a_slot_that_leaves_the_booking_window_while_a_page_is_filled_does_not_stay_in_it(
    cache: Cache, rows: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    found = directory._found

    def slowly(*asked: Any) -> Any:
        told = found(*asked)
        sleep(max(0.0, (leaves - cache.now()).total_seconds() + 0.05))
        return told

    monkeypatch.setattr(directory, "_found", slowly)
    leaves = cache.now() + timedelta(seconds=1)
    add_slot(rows, add_doctor(rows, settings), leaves + timedelta(seconds=settings.limits.booking_notice))
    query = SearchQuery(available_from=cache.now())
    assert shown(directory.search(cache, query))["total"] == 1
    assert shown(directory.search(cache, query))["total"] == 0


def test_a_page_by_free_slots_is_fresh_until_any_slot_leaves_the_booking_window(
    cache: Cache, rows: Connection, settings: Settings, cache_server: CacheServer
):
    soon = cache.now().replace(microsecond=0) + timedelta(seconds=settings.limits.booking_notice, minutes=3)
    add_slot(rows, add_doctor(rows, settings), soon)
    directory.search(cache, SearchQuery(sort="next_slot"))
    with Redis.from_url(cache_server.url) as client:
        (head,) = (value.split(b"\n")[0] for name, value in client.hgetall("1:directory-free").items() if name != b"lease")
    assert float(head.split()[1]) == (soon - timedelta(seconds=settings.limits.booking_notice)).timestamp()


def test_the_specialties_are_the_councils_and_the_general_practitioner():
    items = shown(directory.specialties())["items"]
    assert len(items) == 56
    assert [item["code"] for item in items if not item["registered"]] == ["clinico-geral"]
