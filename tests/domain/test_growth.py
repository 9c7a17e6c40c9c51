"""What is read grows with what is due, or asked for, and not with what there is. `make growth` measures what follows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, text

from domain import batches, chains, erasure, inbox, notices, projections, retention
from domain.cache import Cache, Change
from domain.database import connect
from domain.projections import AppointmentQuery
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Postgres
from tests.rows import add_doctor, add_person

MANY = 2000  # of each thing, none of which is due, or asked for
# A doctor's past and future: every fourth request still has time, the rest took place.
STOCK = """
    create temp table times as select n, case when n % 4 = 0 then now() + interval '5 days' + n * interval '1 hour'
        else now() - interval '9 days' - n * interval '1 hour' end as at from generate_series(1, :many) as n;
    insert into slots (id, doctor_id, during, status, held)
        select uuidv7(), :doctor, tstzrange(at, at + interval '30 minutes'), 'booked', true from times;
    insert into appointments (id, slot_id, doctor_id, patient_id, during, active, status, price, currency, requested_at,
            expires_at, notes, history_length, history_hash)
        select uuidv7(), id, doctor_id, :patient, during, true,
            case when at > now() then 'requested' else 'completed' end, 1, 'BRL', now(), now() + interval '1 day',
            case when n % 100 = 0 then 'x'::bytea end, 1, '' from slots join times on at = lower(during);
    insert into history (appointment_id, position, status, at, by, actor_id, command_id, hash)
        select id, 1, 'requested', now(), 'patient', patient_id, uuidv7(), '' from appointments;
    insert into retained (appointment_id, person_id, wrapped, document) select id, patient_id, '', '' from appointments;
    insert into commands (id, lane, kind, actor_id, actor_role, payload, status, decided_at)
        select uuidv7(), 0, 'book', :patient, 'patient', '{}', 'succeeded', now() - interval '80 days' from times;
    insert into notices (id, person_id, kind, due_at, next_try_at, sent_at)
        select uuidv7(), :patient, 'reminder', at, now() + case when n % 2 = 0 then '-1 day' else interval '1 day' end,
            case when n % 2 = 0 then now() end from times;
    insert into batches (id, scopes, finished_at) select uuidv7(interval '-80 days'), '{}', now() from times;
    insert into sessions (id, person_id, refresh_id, refreshed_at, expires_at)
        select uuidv7(interval '-190 days'), :patient, uuidv7(), now(), now() - interval '170 days' from times;
    insert into people (id, role) select overlay(md5(n::text) placing '8' from 13)::uuid, 'doctor' from times;
    insert into doctors (id, lane, name, search_name, crm_number, crm_state, price, timezone)
        select id, 0, '', '', row_number() over (), 'SP', 1, 'UTC' from people where role = 'doctor' and id <> :doctor;
    insert into availabilities (doctor_id, rules, exceptions, extended_on) select id, '[]', '[]', current_date from doctors;
"""
READ = text(
    "select relname, seq_tup_read + coalesce(idx_tup_fetch, 0) as rows from pg_stat_xact_user_tables"
    " where seq_tup_read + coalesce(idx_tup_fetch, 0) > 0"
)


@pytest.fixture
def engine(settings: Settings, postgres: Postgres) -> Iterator[Engine]:
    """The database, as the application sees it."""
    engine = connect(settings.database_url, pool_size=2)
    yield engine
    engine.dispose()


@pytest.fixture
def doctor_id(engine: Engine, settings: Settings, postgres: Postgres) -> UUID:
    """A doctor among all that."""
    with engine.begin() as connection:
        doctor_id, patient_id = add_doctor(connection, settings), add_person(connection, settings)
    owner = connect(postgres.migration_url.replace("postgresql:", "postgresql+psycopg2:"), pool_size=1)
    with owner.begin() as connection:
        connection.execute(text(STOCK), {"doctor": doctor_id, "patient": patient_id, "many": MANY})
        chains.take_root(connection)
    with owner.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("vacuum analyze"))
    owner.dispose()
    return doctor_id


def rows_read(connection: Connection) -> dict[str, int]:
    """How many rows the transaction has read so far, by table."""
    return {row.relname: row.rows for row in connection.execute(READ) if not row.relname.startswith("pg_")}


def test_the_relay_reads_what_is_due(engine: Engine, settings: Settings, doctor_id: UUID) -> None:
    with engine.begin() as connection:
        assert inbox.insert_due_expiries(connection) == []
        assert inbox.insert_due_horizons(connection) == []
        assert erasure.resume(connection, settings) == []
        assert not notices.are_due(connection)
        assert retention.keep_terms(Change(connection)) == 0
        assert chains.take_root(connection) is None
        read = rows_read(connection)
    assert sum(read.values()) < 20, read


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (AppointmentQuery(status=["cancelled"]), 0),
        (AppointmentQuery(overdue=True), 0),
        (AppointmentQuery(status=["requested"], page_size=5), 5),
    ],
)
def test_a_list_reads_what_it_shows(
    engine: Engine, settings: Settings, doctor_id: UUID, query: AppointmentQuery, found: int
) -> None:
    cache = Cache(settings, engine)
    with engine.begin() as connection:
        page = projections._appointments(connection, cache, doctor_id, Role.DOCTOR, query, None)
        read = rows_read(connection)
    cache.stop()
    assert page.body.count(b'"slot_id"') == found
    assert read.get("appointments", 0) < MANY / 4 + 50, read


def test_who_looks_at_an_agenda_reads_what_lies_ahead(engine: Engine, doctor_id: UUID) -> None:
    with engine.begin() as connection:
        connection.execute(text("set local enable_seqscan = off"))  # so little is read at once as cheaply: an index must do, too
        patient_id = connection.execute(text("select patient_id from appointments limit 1")).scalar_one()
        wanted = {"doctors": [str(doctor_id)], "named": [], "patients": [str(patient_id)], "since": datetime.now(UTC)}
        for statement in (batches._READ_AGENDA_SLOTS, batches._READ_AGENDA_APPOINTMENTS, batches._READ_APPOINTMENTS):
            before = sum(rows_read(connection).get(table, 0) for table in ("slots", "appointments"))
            rows = connection.execute(statement, wanted).all()
            read = sum(rows_read(connection)[table] for table in ("slots", "appointments") if table in rows_read(connection))
            assert len(rows) == MANY / 4
            assert read - before <= 2 * len(rows), statement.text
