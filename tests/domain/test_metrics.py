"""Figures that the database tells, and what is counted of a batch."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from prometheus_client import REGISTRY
from sqlalchemy import Connection, text

from domain import directory, metrics
from domain.cache import Cache
from domain.commands import Book
from domain.settings import Settings
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow


def told(rows: Connection) -> dict[str, float]:
    lines = metrics.stored(rows).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_quiet_database_tells_of_nothing_that_waits(rows: Connection, postgres: object) -> None:
    assert told(rows) == {
        "healthmed_backlog_commands": 0,
        "healthmed_backlog_age_seconds": 0,
        "healthmed_oldest_unprojected_batch_seconds": 0,
        "healthmed_cache_in_use": 1,
        "healthmed_cache_epoch": 1,
        "healthmed_oldest_due_notice_seconds": 0,
    }


def test_what_waits_is_told_by_lane(rows: Connection, settings: Settings, postgres: object) -> None:
    person_id = add_person(rows, settings)
    for lane, number in ((3, 2), (5, 1)):
        doctor_id = add_doctor(rows, settings, lane=lane)
        for n in range(number):
            send(rows, settings, person_id, Book(add_slot(rows, doctor_id, tomorrow(n))))
    rows.execute(text("update commands set received_at = received_at - interval '1 minute' where lane = 5"))
    rows.execute(text("insert into batches (id, scopes, created_at) values (uuidv7(), '{}', now() - interval '9 seconds')"))
    rows.execute(text("update cache set in_use = false, epoch = 4"))
    found = told(rows)
    assert found['healthmed_lane_backlog_commands{lane="3"}'] == 2
    assert found['healthmed_lane_backlog_commands{lane="5"}'] == 1
    assert found['healthmed_lane_age_seconds{lane="3"}'] < 10
    assert 60 <= found['healthmed_lane_age_seconds{lane="5"}'] < 70
    assert found["healthmed_backlog_commands"] == 3
    assert 60 <= found["healthmed_backlog_age_seconds"] < 70
    assert 9 <= found["healthmed_oldest_unprojected_batch_seconds"] < 19
    assert (found["healthmed_cache_in_use"], found["healthmed_cache_epoch"]) == (0, 4)


def test_decisions_are_counted_by_how_they_ended(
    rows: Connection, settings: Settings, decide: Callable[..., UUID], cache_server: object
) -> None:
    slot_id = add_slot(rows, add_doctor(rows, settings), tomorrow())
    names = [
        ("healthmed_commands_decided_total", {"kind": "book", "status": "succeeded", "code": ""}),
        ("healthmed_commands_decided_total", {"kind": "book", "status": "rejected", "code": "slot_taken"}),
        ("healthmed_decision_seconds_count", {}),
        ("healthmed_batch_commands_sum", {}),
        ("healthmed_lane_locks_total", {"outcome": "taken"}),
        ("healthmed_lock_wait_seconds_count", {}),
    ]
    before = [counted(name, **labels) for name, labels in names]
    decide(add_person(rows, settings), Book(slot_id))
    decide(add_person(rows, settings), Book(slot_id))
    after = [counted(name, **labels) - former for (name, labels), former in zip(names, before, strict=True)]
    assert after[:5] == [1, 1, 2, 2, 2]
    assert after[5] >= 2


def test_reads_are_counted_by_where_they_came_from(rows: Connection, settings: Settings, cache: Cache) -> None:
    doctor_id = add_doctor(rows, settings)
    outcomes = ("miss", "hit", "without")
    before = [counted("healthmed_cache_reads_total", outcome=outcome) for outcome in outcomes]
    directory.doctor(cache, doctor_id)
    directory.doctor(cache, doctor_id)
    rows.execute(text("update cache set in_use = false"))
    cache.stop()
    without = Cache(settings, cache.engine)  # never started: it believes no cache
    directory.doctor(without, doctor_id)
    without.stop()
    after = [counted("healthmed_cache_reads_total", outcome=outcome) for outcome in outcomes]
    assert [now - former for now, former in zip(after, before, strict=True)] == [1, 1, 1]
