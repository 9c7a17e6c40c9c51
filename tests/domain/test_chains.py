"""What is written down is chained as it is written, and roots are taken of it by whoever comes first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from uuid_utils.compat import uuid7

from domain import audit, batches, chains
from domain.chains import exported_roots, link, take_root, verify
from domain.commands import Accept, Book, Cancel
from domain.database import connect
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Postgres
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow


@pytest.fixture
def engine(settings: Settings, postgres: object) -> Iterator[Engine]:
    engine = connect(settings.database_url, pool_size=8)
    yield engine
    engine.dispose()


def age(postgres: Postgres, interval: str) -> None:
    """Have everything been written so long ago: chains are broken by it, and roots are none the wiser."""
    root = create_engine(postgres.superuser_url.replace("postgresql:", "postgresql+psycopg2:"))
    with root.begin() as connection:
        connection.execute(text("set local session_replication_role = replica"))
        for table in ("audit", "history"):
            connection.execute(text(f"update {table} set at = at - cast(:by as interval)"), {"by": interval})
    root.dispose()


def write(engine: Engine, settings: Settings, entries: int = 1) -> UUID:
    with engine.begin() as connection:
        person_id = add_person(connection, settings)
        for _ in range(entries):
            audit.record(connection, person_id, person_id, Role.PATIENT, "profile_changed")
    return person_id


def roots(connection: Connection) -> list[int]:
    return list(connection.execute(text("select entries from roots order by position")).scalars())


def test_what_the_engine_writes_verifies(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        doctor_id, patient_id = add_doctor(connection, settings), add_person(connection, settings)
        slots = [add_slot(connection, doctor_id, tomorrow(hours)) for hours in range(3)]
        for slot_id in slots:
            send(connection, settings, patient_id, Book(slot_id, notes="Dor no peito"))
    with engine.begin() as connection:
        batches.decide_batch(connection, settings, 0)
        appointment_ids = connection.execute(text("select id from appointments")).scalars().all()
        for appointment_id in appointment_ids:
            send(connection, settings, doctor_id, Accept(appointment_id), Role.DOCTOR)
            send(connection, settings, patient_id, Cancel(appointment_id, "Tive um imprevisto"))
        audit.ensure_read(connection, doctor_id, Role.DOCTOR, [patient_id])
        audit.record(connection, patient_id, doctor_id, Role.DOCTOR, "touched", uuid7())
    with engine.begin() as connection:
        batches.decide_batch(connection, settings, 0)
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from history")).scalar_one() == 9
        assert connection.execute(text("select count(*) from audit")).scalar_one() == 2
        assert list(verify(connection, {})) == []


def test_a_root_waits_until_nothing_older_can_be_on_its_way(engine: Engine, settings: Settings, postgres: Postgres) -> None:
    with engine.begin() as connection:
        assert take_root(connection) is None
    write(engine, settings)
    age(postgres, "110 seconds")
    with engine.begin() as connection:
        assert take_root(connection) is None
    age(postgres, "10 seconds")
    with engine.begin() as connection:
        taken = take_root(connection)
    assert taken is not None
    assert (taken.position, taken.entries) == (1, 1)
    assert (datetime.now(UTC) - taken.until).total_seconds() >= 60


def test_the_first_root_covers_all_there_is_and_later_ones_ten_minutes(
    engine: Engine, settings: Settings, postgres: Postgres
) -> None:
    write(engine, settings, 3)
    age(postgres, "30 days")
    with engine.begin() as connection:
        assert take_root(connection) is not None
    root = create_engine(postgres.superuser_url.replace("postgresql:", "postgresql+psycopg2:"))
    with root.begin() as connection:  # as if it had been taken an hour ago
        connection.execute(text("set local session_replication_role = replica"))
        connection.execute(text("update roots set until = until - interval '1 hour'"))
    root.dispose()
    write(engine, settings)
    age(postgres, "15 minutes")
    write(engine, settings)
    age(postgres, "20 minutes")
    with engine.begin() as connection:
        assert take_root(connection) is not None
    with engine.begin() as connection:
        assert take_root(connection) is not None
    with engine.begin() as connection:
        assert take_root(connection) is None
        assert roots(connection) == [3, 1, 1]


def test_of_many_who_take_a_root_at_once_one_does(engine: Engine, settings: Settings, postgres: Postgres) -> None:
    write(engine, settings, 2)
    age(postgres, "1 hour")

    def take(_: int) -> bool:
        with engine.begin() as connection:
            return take_root(connection) is not None

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(take, range(8))) == 1
    with engine.connect() as connection:
        assert roots(connection) == [2]


def test_an_entry_hashes_alike_from_python_and_from_the_database() -> None:
    now, person_id = datetime.now(UTC), uuid7()
    told = {"id": str(person_id), "at": now.isoformat(), "role": Role.DOCTOR, "reason": "0a"}
    read = {"id": person_id, "at": now.astimezone(), "role": "doctor", "reason": memoryview(b"\x0a")}
    assert link(b"before", told) == link(b"before", read)
    assert link(b"", told) != link(b"before", told)


def test_roots_are_read_from_the_lines_of_logs() -> None:
    line = json.dumps({"event": chains.ROOT_TAKEN, "position": 3, "root": "0aff"})
    assert exported_roots(["", '{"event": "request"}', line[:-9], '{"event": "root_taken"}', line]) == {3: b"\x0a\xff"}
