"""What judges loads and faults is judged itself: a sound stack is sound to it, and each promise that is broken is named."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text

from domain.cache import Cache
from domain.projections import command
from domain.settings import Settings
from local.servers import Broker, Postgres
from tests import rows
from tests.checks import PROMISES, broken, violations
from tests.factories import Accounts, Someone

UNGUARDED = """
    set session_replication_role = replica;
    alter table slots drop constraint ex_slots_doctor_during;
    alter table appointments drop constraint ex_appointments_patient_during, drop constraint ex_appointments_doctor_during;
    drop index uq_appointments_slot_id_active, uq_commands_idempotency;
"""
COPIED = "during, active, price, currency, requested_at, expires_at, history_length, history_hash, status"

# How each promise is broken, starting from one appointment that was accepted; `:slot` is another open slot, of the same time.
BREACHES = {
    "a command is not decided": ["update commands set status = 'pending', decided_at = null where kind = 'accept'"],
    "a decided command does not say when, or in which batch": ["update commands set batch_id = null where kind = 'accept'"],
    "a batch is not finished": ["update batches set finished_at = null"],
    "a request should have expired": [
        "update appointments set status = 'requested', expires_at = clock_timestamp() - interval '11 seconds'"
    ],
    "one key made two commands": ["update commands set key_hash = 'same', actor_id = :other"],
    "a slot has two active appointments": [
        f"insert into appointments (id, slot_id, doctor_id, patient_id, {COPIED})"
        f" select :id, slot_id, doctor_id, :other, {COPIED} from appointments"
    ],
    "a patient is in two places at a time": [
        f"insert into appointments (id, slot_id, doctor_id, patient_id, {COPIED})"
        f" select :id, :slot, :other, patient_id, {COPIED} from appointments"
    ],
    "a doctor is in two places at a time": [
        f"insert into appointments (id, slot_id, doctor_id, patient_id, {COPIED})"
        f" select :id, :slot, doctor_id, :other, {COPIED} from appointments"
    ],
    "two slots of a doctor overlap": ["update slots set doctor_id = (select doctor_id from appointments)"],
    "an active appointment's slot is not booked, or is at another time": [
        "update slots set during = tstzrange(lower(during), upper(during) + interval '1 minute') where status = 'booked'"
    ],
    "a booked slot has no active appointment": ["update slots set status = 'booked'"],
    "an appointment is active that should not be, or the other way about": ["update appointments set active = false"],
    "an appointment is not as its history ends": ["update appointments set status = 'requested'"],
    "an illegal transition": ["update history set status = 'no_show' where position = 1"],
    "a command did not do once, and only when granted, what it asks for": [
        "update commands set status = 'rejected' where kind = 'accept'"
    ],
    "a notice was due and is not sent": ["update notices set sent_at = null where kind = 'requested'"],
    "a notice was given up": ["update notices set dropped_at = due_at, drop_reason = 'undeliverable' where kind = 'requested'"],
}


@pytest.fixture
def sound(settings: Settings, engine: Engine, cache: Cache, broker: Broker) -> Someone:
    """The patient of an appointment that was requested and accepted, and whose notices were sent."""
    with Redis.from_url(broker.url) as client:
        accounts = Accounts(engine, settings, cache, client)
        patient = accounts.patient()
        accounts.appointment(accounts.doctor(), patient, accepted=True)
    with engine.begin() as connection:
        rows.add_slot(connection, rows.add_doctor(connection, settings), rows.tomorrow())
        connection.execute(text("update notices set sent_at = clock_timestamp() where due_at <= clock_timestamp()"))
    return patient


@pytest.fixture
def unguarded(sound: Someone, postgres: Postgres) -> Iterator[Connection]:
    """A transaction in which no constraint and no trigger holds any more; it is rolled back."""
    engine = create_engine(postgres.superuser_url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(text(UNGUARDED))
        yield connection
        transaction.rollback()
    engine.dispose()


def test_a_sound_stack_is_sound(sound: Someone, engine: Engine, settings: Settings) -> None:
    assert violations(engine, settings) == []


def test_every_promise_is_broken_by_a_test() -> None:
    assert set(BREACHES) == set(PROMISES)


@pytest.mark.parametrize("promise", BREACHES)
def test_a_broken_promise_is_named(unguarded: Connection, promise: str) -> None:
    given = {
        "id": uuid4(),
        "other": unguarded.execute(text("select id from people where role = 'doctor' order by id desc limit 1")).scalar_one(),
        "slot": unguarded.execute(text("select id from slots where status = 'open'")).scalar_one(),
    }
    for statement in map(text, BREACHES[promise]):
        unguarded.execute(statement, {name: given[name] for name in statement.compile().params})
    told = [line.partition(": ")[0] for line in broken(unguarded)]
    assert promise in told


def test_what_is_young_may_be_under_way_still(unguarded: Connection) -> None:
    unguarded.execute(text("update commands set status = 'pending', batch_id = null where kind = 'accept'"))
    unguarded.execute(text("update batches set finished_at = null"))
    unguarded.execute(text("delete from history where position = 2"))
    unguarded.execute(text("update appointments set status = 'requested', history_length = 1"))
    unguarded.execute(text("update notices set sent_at = null"))
    assert list(broken(unguarded, patience=60)) == []
    assert len({line.partition(": ")[0] for line in broken(unguarded)}) == 3


def test_a_chain_that_was_altered_is_named(sound: Someone, engine: Engine, settings: Settings, postgres: Postgres) -> None:
    superuser = create_engine(postgres.superuser_url.replace("postgresql:", "postgresql+psycopg2:"))
    with superuser.begin() as connection:
        connection.execute(text("set session_replication_role = replica"))
        connection.execute(text("update history set by = 'staff' where position = 1"))
    superuser.dispose()
    assert [line for line in violations(engine, settings) if line.startswith("a chain does not verify: history")]


def test_a_projection_that_is_wrong_is_named(sound: Someone, engine: Engine, cache: Cache, settings: Settings) -> None:
    with engine.connect() as connection:
        row = connection.execute(text("select id, actor_id from commands order by seq limit 1")).one()
    command(cache, UUID(str(row.id)), row.actor_id)
    with engine.begin() as connection:
        connection.execute(text("update commands set result = '{\"forgotten\": true}' where id = :id"), {"id": row.id})
    assert violations(engine, settings) == [f"a projection is not what the database says: command:{row.id} answer"]


def test_a_cache_that_is_out_of_use_is_not_judged(sound: Someone, engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        connection.execute(text("update cache set in_use = false"))
    (told,) = violations(engine, settings)
    assert told.startswith("projections can't be judged")
