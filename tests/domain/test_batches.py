"""The transaction that decides: what keeps it right when everything races, shown by taking each guard away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import time, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from domain import batches, inbox
from domain.availability import Availability, Rule
from domain.commands import Accept, AddSlot, Book, Cancel, Reschedule, SetAvailability
from domain.schedule import Interval, Role
from domain.settings import Settings
from local.servers import Postgres
from tests.rows import add_doctor, add_person, add_slot, outcomes, send, tomorrow

RACERS = 12

CONSTRAINTS = {
    "slots": {
        "ex_slots_doctor_during": "exclude using gist (doctor_id with =, during with &&) where (status in ('open', 'booked'))"
    },
    "appointments": {
        "ex_appointments_patient_during": "exclude using gist (patient_id with =, during with &&) where (active)",
        "ex_appointments_doctor_during": "exclude using gist (doctor_id with =, during with &&) where (active)",
    },
}


@pytest.fixture
def engine(postgres: Postgres, settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.database_url, pool_size=RACERS + 4)
    yield engine
    engine.dispose()


@pytest.fixture
def without_constraints(postgres: Postgres) -> Iterator[None]:
    owner = create_engine(postgres.superuser_url.replace("postgresql:", "postgresql+psycopg2:"))
    with owner.begin() as connection:
        for table, constraints in CONSTRAINTS.items():
            for name in constraints:
                connection.execute(text(f"alter table {table} drop constraint {name}"))
        connection.execute(text("drop index uq_appointments_slot_id_active"))
    yield
    with owner.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text("delete from history"))
        connection.execute(text("delete from notices"))
        connection.execute(text("delete from appointments"))
        connection.execute(text("delete from slots"))
        connection.execute(text("create unique index uq_appointments_slot_id_active on appointments (slot_id) where active"))
        for table, constraints in CONSTRAINTS.items():
            for name, constraint in constraints.items():
                connection.execute(text(f"alter table {table} add constraint {name} {constraint}"))
    owner.dispose()


@pytest.fixture
def without_row_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def lock(connection: Connection, lane: int, limit: int, only: UUID | None) -> list[str]:
        rows = connection.execute(text("select id from commands where lane = :lane and status = 'pending'"), {"lane": lane})
        return [str(row.id) for row in rows]

    monkeypatch.setattr(batches, "_lock", lock)


@pytest.fixture
def all_read_before_any_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment, made certain: nobody writes before all have read, unless a lock keeps some from reading."""
    barrier = threading.Barrier(RACERS)
    read = batches._read

    def read_and_wait(*arguments: Any) -> Any:
        work = read(*arguments)
        try:
            barrier.wait(0.3)
        except threading.BrokenBarrierError:
            pass
        return work

    monkeypatch.setattr(batches, "_read", read_and_wait)


def race(engine: Engine, settings: Settings) -> None:
    """Decide each racer's lane at once, each on a connection of its own, until all is decided or three rounds have clashed."""

    def decide(lane: int) -> None:
        for _ in range(3):
            try:
                with engine.begin() as connection:
                    batches.decide_batch(connection, settings, lane)
                return
            except batches.Clash:
                continue

    with ThreadPoolExecutor(RACERS) as pool:
        list(pool.map(decide, range(RACERS)))


def spread_over_lanes(connection: Connection) -> None:
    """Put each command in a lane of its own, as if lanes were broken: only locks and constraints are left."""
    connection.execute(
        text(
            "update commands set lane = spread.lane from (select id, row_number() over (order by seq) - 1 as lane from commands)"
            " as spread where spread.id = commands.id"
        )
    )


def patients_who_want_one_slot(engine: Engine, settings: Settings) -> Callable[[Connection], int]:
    with engine.begin() as connection:
        slot_id = add_slot(connection, add_doctor(connection, settings), tomorrow())
        for _ in range(RACERS):
            send(connection, settings, add_person(connection, settings), Book(slot_id))
        spread_over_lanes(connection)
    return lambda connection: count(connection, "select count(*) from appointments where active")


def a_patient_who_wants_many_doctors_at_once(engine: Engine, settings: Settings) -> Callable[[Connection], int]:
    with engine.begin() as connection:
        patient_id = add_person(connection, settings)
        for lane in range(RACERS):
            slot_id = add_slot(connection, add_doctor(connection, settings, lane=lane), tomorrow(lane / 60))
            send(connection, settings, patient_id, Book(slot_id))
    return lambda connection: count(connection, "select count(*) from appointments where active")


def a_doctor_who_adds_overlapping_slots(engine: Engine, settings: Settings) -> Callable[[Connection], int]:
    with engine.begin() as connection:
        doctor_id = add_doctor(connection, settings)
        for n in range(RACERS):
            during = Interval(tomorrow(n / 60), tomorrow(1 + n / 60))
            send(connection, settings, doctor_id, AddSlot(during), Role.DOCTOR)
        spread_over_lanes(connection)
    return lambda connection: count(connection, "select count(*) from slots where status = 'open'")


def count(connection: Connection, statement: str) -> int:
    return int(connection.execute(text(statement)).scalar_one())


RACES = [patients_who_want_one_slot, a_patient_who_wants_many_doctors_at_once, a_doctor_who_adds_overlapping_slots]


@pytest.mark.parametrize("start", RACES)
def test_of_many_at_once_one_wins(start: Any, engine: Engine, settings: Settings, all_read_before_any_writes: None) -> None:
    winners = start(engine, settings)
    race(engine, settings)
    with engine.connect() as connection:
        assert winners(connection) == 1
        assert sorted(outcomes(connection)).count("succeeded") == 1
        assert "pending" not in outcomes(connection)


@pytest.mark.parametrize("start", RACES)
def test_row_locks_alone_keep_one_winner(
    start: Any, engine: Engine, settings: Settings, without_constraints: None, all_read_before_any_writes: None
) -> None:
    winners = start(engine, settings)
    race(engine, settings)
    with engine.connect() as connection:
        assert winners(connection) == 1


@pytest.mark.parametrize("start", RACES)
def test_constraints_alone_keep_one_winner(
    start: Any, engine: Engine, settings: Settings, without_row_locks: None, all_read_before_any_writes: None
) -> None:
    winners = start(engine, settings)
    race(engine, settings)
    with engine.connect() as connection:
        assert winners(connection) == 1


@pytest.mark.parametrize("start", RACES)
def test_with_neither_the_race_is_real(
    start: Any,
    engine: Engine,
    settings: Settings,
    without_row_locks: None,
    without_constraints: None,
    all_read_before_any_writes: None,
) -> None:
    winners = start(engine, settings)
    race(engine, settings)
    with engine.connect() as connection:
        assert winners(connection) > 1


def test_two_lanes_book_one_patient_in_opposite_order_without_a_deadlock(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        people = [add_person(connection, settings) for _ in range(2)]
        for lane in (0, 1):
            doctor_id = add_doctor(connection, settings, lane=lane)
            for n, person_id in enumerate(people if lane == 0 else reversed(people)):
                for step in range(3):
                    send(
                        connection,
                        settings,
                        person_id,
                        Book(add_slot(connection, doctor_id, tomorrow(3 * lane + n + step / 2 % 1 + 10 * step))),
                    )
    barrier = threading.Barrier(2)

    def decide(lane: int) -> None:
        barrier.wait()
        with engine.begin() as connection:
            batches.decide_batch(connection, settings, lane)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(decide, (0, 1)))
    with engine.connect() as connection:
        assert "pending" not in outcomes(connection)


def test_first_come_is_first_served_within_a_batch_and_over_batches(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        doctor_id = add_doctor(connection, settings)
        slots = [add_slot(connection, doctor_id, tomorrow(n)) for n in range(5)]
        people = [add_person(connection, settings) for _ in range(3)]
    for slot_id in slots:
        for person_id in people:
            with engine.begin() as connection:
                send(connection, settings, person_id, Book(slot_id))
    with engine.begin() as connection:
        batches.decide_batch(connection, settings, 0)
    with engine.connect() as connection:
        firsts = outcomes(connection)[::3]
        assert firsts[:3] == ["succeeded"] * 3  # then the first of them has three open requests with this doctor
        assert outcomes(connection)[1:3] == ["slot_taken"] * 2


def test_two_appointments_of_one_batch_swap_places(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        doctor_id = add_doctor(connection, settings)
        slots = [add_slot(connection, doctor_id, tomorrow(n)) for n in range(3)]
        people = [add_person(connection, settings) for _ in range(2)]
        for person_id, slot_id in zip(people, slots, strict=False):
            send(connection, settings, person_id, Book(slot_id))
        batches.decide_batch(connection, settings, 0)
        one, other = connection.execute(text("select id from appointments order by starts_at")).scalars()
        send(connection, settings, people[0], Reschedule(one, slots[2], "Viagem"))
        send(connection, settings, people[1], Reschedule(other, slots[0], "Viagem"))
        send(connection, settings, people[0], Reschedule(one, slots[1], "Viagem"))
    with engine.begin() as connection:
        batches.decide_batch(connection, settings, 0)
    with engine.connect() as connection:
        assert outcomes(connection) == ["succeeded"] * 5
        placed = dict(connection.execute(text("select id, slot_id from appointments")).all())
        assert placed == {one: slots[1], other: slots[0]}
        assert count(connection, "select count(*) from slots where status = 'booked'") == 2


def test_a_batch_looks_at_a_bounded_number_of_agendas(engine: Engine, settings: Settings) -> None:
    """At midnight the horizons of all doctors move: in one transaction a lane's would time out again and again."""
    with engine.begin() as connection:
        doctors = [add_doctor(connection, settings) for _ in range(batches.AGENDAS + 2)]
        slots = [add_slot(connection, doctor_id, tomorrow()) for doctor_id in doctors]
        for doctor_id in doctors:
            connection.execute(
                text("insert into availabilities values (:id, '[]', '[]', null, current_date - 1)"), {"id": doctor_id}
            )
        inbox.insert_due_horizons(connection)
        send(connection, settings, doctors[0], AddSlot(Interval(tomorrow(1), tomorrow(2))), Role.DOCTOR)
        send(connection, settings, add_person(connection, settings), Book(slots[0]))
        for doctor_id in doctors[:2]:
            send(connection, settings, doctor_id, SetAvailability(Availability()), Role.DOCTOR)
        send(connection, settings, add_person(connection, settings), Book(slots[1]))
    sizes = []
    with engine.begin() as connection:
        while decided := batches.decide_batch(connection, settings, 0):
            sizes.append(len(decided.commands))
    assert sizes == [batches.AGENDAS, 2 + 2, 1, 1, 1]


def test_where_to_meet_is_forgotten_when_an_accepted_appointment_moves(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        doctor_id = add_doctor(connection, settings)
        slots = [add_slot(connection, doctor_id, tomorrow(n)) for n in range(2)]
        person_id = add_person(connection, settings)
        send(connection, settings, person_id, Book(slots[0]))
        batches.decide_batch(connection, settings, 0)
        appointment_id = connection.execute(text("select id from appointments")).scalar_one()
        for sender, command, role, kept in (
            (doctor_id, Accept(appointment_id, "https://sala.example/1"), Role.DOCTOR, 1),
            (person_id, Reschedule(appointment_id, slots[1]), Role.PATIENT, 0),
            (doctor_id, Accept(appointment_id), Role.DOCTOR, 0),
        ):
            send(connection, settings, sender, command, role)
            batches.decide_batch(connection, settings, 0)
            assert count(connection, "select count(join_url) from appointments") == kept


def test_a_history_is_chained_and_can_not_be_rewritten(engine: Engine, settings: Settings, postgres: Postgres) -> None:
    with engine.begin() as connection:
        slot_id = add_slot(connection, add_doctor(connection, settings), tomorrow())
        person_id = add_person(connection, settings)
        send(connection, settings, person_id, Book(slot_id, "tosse"))
        batches.decide_batch(connection, settings, 0)
        appointment_id = connection.execute(text("select id from appointments")).scalar_one()
        send(connection, settings, person_id, Cancel(appointment_id, "Imprevisto"))
        batches.decide_batch(connection, settings, 0)
        rows = connection.execute(text("select * from history order by position")).all()
        head = connection.execute(text("select history_length, history_hash from appointments")).one()
    assert [row.status for row in rows] == ["requested", "cancelled"]
    assert (head.history_length, bytes(head.history_hash)) == (2, bytes(rows[-1].hash))
    assert b"Imprevisto" not in bytes(rows[-1].reason)
    for url, change in (
        (settings.database_url, "update history set status = 'accepted'"),
        (settings.database_url, "delete from history"),
        (settings.database_migration_url, "update history set status = 'accepted'"),
        (settings.database_migration_url, "truncate history"),
    ):
        role = create_engine(url)
        with pytest.raises(Exception, match=r"permission denied|append-only"), role.begin() as connection:
            connection.execute(text(change))
        role.dispose()


def test_what_people_wrote_is_gone_from_the_inbox_once_it_is_decided(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        slot_id = add_slot(connection, add_doctor(connection, settings), tomorrow())
        send(connection, settings, add_person(connection, settings), Book(slot_id, "tosse"))
        assert count(connection, "select count(*) from commands where secret is not null") == 1
        batches.decide_batch(connection, settings, 0)
        assert count(connection, "select count(*) from commands where secret is not null") == 0
        assert count(connection, "select count(*) from appointments where notes is not null") == 1


def test_freeing_a_slot_that_is_not_held_reads_what_is_around_it_only(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = tomorrow(48)
    # In UTC, three whole hours around the freed half hour; the first was withdrawn.
    rule = Rule(at.isoweekday(), time(at.hour - 1), time(at.hour + 2), 60)
    with engine.begin() as connection:
        doctor = add_doctor(connection, settings, timezone="UTC")
        rules, _ = inbox.stored_availability(Availability((rule,)))
        connection.execute(
            text("insert into availabilities values (:id, cast(:rules as jsonb), '[]', null, current_date)"),
            {"id": doctor, "rules": json.dumps(rules)},
        )
        far = {add_slot(connection, doctor, at + timedelta(days=day)) for day in (-3, 3, 10)}
        near = {add_slot(connection, doctor, at + timedelta(hours=hours)) for hours in (-20, 20)}
        slot_id = add_slot(connection, doctor, at - timedelta(minutes=30), 120, held=False)
        patient = add_person(connection, settings)
        send(connection, settings, patient, Book(slot_id))
        assert batches.decide_batch(connection, settings, 0)
        appointment_id = connection.execute(text("select id from appointments")).scalar_one()
        connection.execute(
            text(
                "insert into slots (id, doctor_id, during, status, held)"
                " values (uuidv7(), :id, tstzrange(:from_, :until), 'withdrawn', false)"
            ),
            {"id": doctor, "from_": at - timedelta(hours=1), "until": at},
        )
        send(connection, settings, patient, Cancel(appointment_id, "Viagem"))
    seen: list[set[UUID]] = []
    read = batches._read

    def noted(*arguments: Any) -> Any:
        work = read(*arguments)
        seen.append(set(work.schedule.slots))
        return work

    monkeypatch.setattr(batches, "_read", noted)
    with engine.begin() as connection:
        assert batches.decide_batch(connection, settings, 0)
        assert outcomes(connection) == ["succeeded", "succeeded"]
        made = "select starts_at from slots where status = 'open' and id <> all(:known) order by starts_at"
        known = {"known": [*far, *near]}
        assert list(connection.execute(text(made), known).scalars()) == [at, at + timedelta(hours=1)]
    assert seen[0] >= near | {slot_id}
    assert not seen[0] & far
