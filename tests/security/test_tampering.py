"""Whoever has the database, as its very superuser, can't change what was written down without being found out."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import ProgrammingError
from uuid_utils.compat import uuid7

from domain import chains, logs
from domain.chains import AUDIT_FIELDS, HISTORY_FIELDS, link
from domain.settings import Settings
from local.servers import Postgres
from workers.relay import Relay

CHAINS, LENGTH = 2000, 5  # 10,000 entries: half of them history, half audit
BEGAN = datetime.now(UTC) - timedelta(days=2)

Tampering = Callable[[Connection, random.Random], None]


@pytest.fixture
def above(postgres: Postgres) -> Iterator[Engine]:
    """The database as its superuser sees it, whom no trigger and no foreign key stops."""
    engine = create_engine(
        postgres.superuser_url.replace("postgresql:", "postgresql+psycopg2:"),
        connect_args={"options": "-c session_replication_role=replica -c timezone=UTC"},
    )
    yield engine
    engine.dispose()


def write_entries(connection: Connection, seed: random.Random) -> None:
    """Entries as the application writes them, over the last two days, and a root for each stretch of them."""
    tables: dict[str, list[dict[str, Any]]] = {"history": [], "audit": []}
    heads = []
    for n in range(CHAINS):
        chain, previous, table = uuid7(), b"", ("history", "audit")[n % 2]
        at = BEGAN + timedelta(seconds=seed.randrange(86_400))
        for position in range(1, LENGTH + 1):
            at += timedelta(seconds=seed.randrange(1, 600))
            entry = an_entry(table, chain, position, at)
            previous = link(previous, entry)
            tables[table].append({**entry, "at": at.isoformat(), "hash": previous.hex()})
        if table == "history":
            heads.append({"id": str(chain), "length": LENGTH, "hash": previous.hex()})
    for table, rows in tables.items():
        insert(connection, table, rows)
    connection.execute(
        text(
            """
            insert into appointments (id, slot_id, doctor_id, patient_id, during, active, status, price, currency, requested_at,
                                      expires_at, history_length, history_hash)
            select id, id, id, id, tstzrange(now(), now() + interval '1 hour'), false, 'requested', 0, 'BRL', now(),
                   now(), length, decode(hash, 'hex')
            from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, length int, hash text)
            """
        ),
        {"rows": json.dumps(heads)},
    )
    until, before = BEGAN, chains.Root(0, datetime(1, 1, 1, tzinfo=UTC), 0, b"")
    while until < datetime.now(UTC):
        until += timedelta(minutes=30)
        before = chains._rooted(connection, before, until)
        parameters = {"position": before.position, "until": until, "entries": before.entries, "root": before.root}
        connection.execute(chains._INSERT_ROOT, parameters)


def an_entry(table: str, chain: UUID, position: int, at: datetime) -> dict[str, Any]:
    """The hashed part of an entry, as plain as JSON is."""
    who = str(uuid7())
    if table == "history":
        values = [chain, position, "requested", at, "patient", who, str(uuid7()), None]
        return {
            name: str(value) if name == "appointment_id" else value for name, value in zip(HISTORY_FIELDS, values, strict=True)
        }
    values = [chain, position, who, "doctor", "read", None, at]
    return {name: str(value) if name == "subject_id" else value for name, value in zip(AUDIT_FIELDS, values, strict=True)}


def insert(connection: Connection, table: str, rows: list[dict[str, Any]]) -> None:
    columns = [name for name in rows[0] if name != "hash"]
    more = ("hour", "date_trunc('hour', r.at)") if table == "audit" else None
    names = [*columns, "hash", *(more[:1] if more else [])]
    values = [*(f"r.{name}" for name in columns), "decode(r.hash, 'hex')", *(more[1:] if more else [])]
    types = {"position": "int", "at": "timestamptz", "status": "text", "by": "text", "action": "text", "actor_role": "text"}
    record = ", ".join(f"{name} {types.get(name, 'bytea' if name == 'reason' else 'uuid')}" for name in columns)
    connection.execute(
        text(
            f"insert into {table} ({', '.join(names)}) select {', '.join(values)}"
            f" from jsonb_to_recordset(cast(:rows as jsonb)) as r ({record}, hash text)"
        ),
        {"rows": json.dumps(rows)},
    )


def some(connection: Connection, seed: random.Random, *, last: bool | None = None) -> tuple[str, str, UUID, int]:
    """A table, the column of its chains, one of these, and a position in it: the last one, or not, if that matters."""
    table, column = seed.choice([("history", "appointment_id"), ("audit", "subject_id")])
    chain = connection.execute(
        text(f"select distinct {column} from {table} order by 1 offset :n limit 1"), {"n": seed.randrange(CHAINS // 2)}
    ).scalar_one()
    return table, column, chain, LENGTH if last else seed.randrange(1, LENGTH + (last is None))


def alter(connection: Connection, seed: random.Random) -> None:
    """Change one column of one row."""
    table, column, chain, position = some(connection, seed)
    changed = {
        "history": [
            ("status", "'accepted'"), ("by", "'doctor'"), ("at", "at + interval '1 microsecond'"), ("reason", "'\\x01'"),
            ("actor_id", "gen_random_uuid()"), ("command_id", "gen_random_uuid()"), ("hash", "sha256(hash)"),
        ],
        "audit": [
            ("actor_id", "gen_random_uuid()"), ("actor_role", "'staff'"), ("action", "'verified'"), ("hash", "sha256(hash)"),
            ("about", "gen_random_uuid()"), ("at", "at - interval '1 microsecond'"),
        ],
    }  # fmt: skip
    name, value = seed.choice(changed[table])
    connection.execute(
        text(f"update {table} set {name} = {value} where {column} = :chain and position = :position"),
        {"chain": chain, "position": position},
    )


def drop(connection: Connection, seed: random.Random) -> None:
    """Take one row away, be it the last of its chain."""
    table, column, chain, position = some(connection, seed)
    connection.execute(
        text(f"delete from {table} where {column} = :chain and position = :position"), {"chain": chain, "position": position}
    )


def put_in(connection: Connection, seed: random.Random) -> None:
    """Add a row to the end of a chain, with a hash taken from elsewhere."""
    table, column, chain, position = some(connection, seed, last=True)
    columns = {"history": "status, at, by, actor_id, command_id", "audit": "actor_id, actor_role, action, about, at"}[table]
    hour = ", hour" if table == "audit" else ""
    connection.execute(
        text(
            f"insert into {table} ({column}, position, {columns}, hash{hour})"
            f" select {column}, position + 1, {columns.replace('actor_id', 'gen_random_uuid()')}, hash{hour}"
            f" from {table} where {column} = :chain and position = :position"
        ),
        {"chain": chain, "position": position},
    )


def swap(connection: Connection, seed: random.Random) -> None:
    """Let two rows of one chain change places, hashes and all."""
    table, column, chain, position = some(connection, seed, last=False)
    for before, after in ((position, -1), (position + 1, position), (-1, position + 1)):
        connection.execute(
            text(f"update {table} set position = :after where {column} = :chain and position = :before"),
            {"chain": chain, "before": before, "after": after},
        )


def link_anew(connection: Connection, seed: random.Random) -> None:
    """Change a row of history, and all that is computed from it: every later hash of the chain, and its head."""
    while True:
        table, _, chain, position = some(connection, seed)
        if table == "history":
            break
    rows = connection.execute(text("select * from history where appointment_id = :id order by position"), {"id": chain}).all()
    previous = b""
    for row in rows:
        entry = {name: getattr(row, name) for name in HISTORY_FIELDS}
        if row.position == position:
            entry["by"] = "staff"
        previous = link(previous, entry)
        connection.execute(
            text("update history set by = :by, hash = :hash where appointment_id = :id and position = :position"),
            {"by": entry["by"], "hash": previous, "id": chain, "position": row.position},
        )
    connection.execute(text("update appointments set history_hash = :hash where id = :id"), {"hash": previous, "id": chain})


def drop_chain(connection: Connection, seed: random.Random) -> None:
    """Take away a whole chain, and what it belongs to."""
    table, column, chain, _ = some(connection, seed)
    connection.execute(text(f"delete from {table} where {column} = :chain"), {"chain": chain})
    connection.execute(text("delete from appointments where id = :chain"), {"chain": chain})


def root_anew(connection: Connection, seed: random.Random) -> None:
    """Link a chain anew, and then take every root again: only a root that was kept elsewhere tells."""
    link_anew(connection, seed)
    before = chains.Root(0, datetime(1, 1, 1, tzinfo=UTC), 0, b"")
    for until in connection.execute(text("select until from roots order by position")).scalars().all():
        before = chains._rooted(connection, before, until)
        connection.execute(
            text("update roots set root = :root, entries = :entries where position = :position"),
            {"root": before.root, "entries": before.entries, "position": before.position},
        )


def test_any_row_of_10000_that_was_altered_dropped_inserted_or_swapped_is_found(above: Engine, long: bool) -> None:
    seed = random.Random(7)
    with above.connect() as connection:
        with connection.begin():
            write_entries(connection, seed)
        exported = {row.position: bytes(row.root) for row in connection.execute(text("select position, root from roots"))}
        assert list(chains.verify(connection, exported)) == []
        assert connection.execute(text("select sum(entries) from roots")).scalar_one() == CHAINS * LENGTH
        connection.rollback()
        tries = 50 if long else 2
        missed = []
        for tamper in (alter, drop, put_in, swap, link_anew, drop_chain, root_anew):
            for n in range(tries):
                with connection.begin() as transaction:
                    tamper(connection, seed)
                    if next(chains.verify(connection, exported), None) is None:
                        missed.append((tamper.__name__, n))
                    transaction.rollback()
        assert missed == []
        # Where nothing was exported, roots that were taken again tell nothing: what is exported must be kept.
        with connection.begin() as transaction:
            root_anew(connection, seed)
            assert next(chains.verify(connection, {}), None) is None
            transaction.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "update {} set position = 1",
        "delete from {}",
        "truncate {}",
        "alter table {} disable trigger all",
        "drop trigger append_only on {}",
        "drop table {}",
        "alter table {} add column more text",
        "create index more on {} (position)",
    ],
)
@pytest.mark.parametrize("table", ["history", "audit", "roots"])
def test_the_application_can_only_add_to_what_is_append_only(postgres: Postgres, table: str, statement: str) -> None:
    refused(postgres.url, statement.format(table))


@pytest.mark.parametrize("statement", ["update {} set position = 1", "delete from {}", "truncate {}"])
@pytest.mark.parametrize("table", ["history", "audit", "roots"])
def test_not_even_the_owner_of_the_schema_changes_what_is_append_only(postgres: Postgres, table: str, statement: str) -> None:
    refused(postgres.migration_url, statement.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "create table more (id int)",
        "create function more() returns int language sql as 'select 1'",
        "create schema more",
        "create extension hstore",
        "alter table people add column more text",
        "alter table commands drop constraint ck_commands_status",
        "alter table appointments drop constraint ex_appointments_patient_during",
        "drop table slots",
        "truncate commands",
        "create or replace function refuse_change() returns trigger language plpgsql as 'begin return new; end'",
        "update alembic_version set version_num = 'more'",
        "set session_replication_role = replica",
        "set role healthmed_owner",
        "alter role healthmed_app superuser",
        "copy people to program 'true'",
        "select pg_read_file('PG_VERSION')",
    ],
)
def test_the_application_can_change_no_schema_no_role_and_no_file(postgres: Postgres, statement: str) -> None:
    refused(postgres.url, statement)


def refused(url: str, statement: str) -> None:
    """Assert that a statement is refused for want of the right to it."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as connection, pytest.raises(ProgrammingError) as error:
        connection.execute(text(statement))
    engine.dispose()
    assert error.value.orig is not None
    assert error.value.orig.pgcode == "42501", error.value.orig  # type: ignore[attr-defined]


def test_the_relay_carries_each_root_into_its_log(
    above: Engine, settings: Settings, broker: object, cache_server: object, capfd: pytest.CaptureFixture[str]
) -> None:
    with above.begin() as connection:
        write_entries(connection, random.Random(10))
        connection.execute(text("delete from roots"))
    logs.configure()
    relays = [Relay(settings), Relay(settings)]
    capfd.readouterr()
    for relay in relays * 2:
        relay.take_root()
        relay._engine.dispose()
    exported = chains.exported_roots(capfd.readouterr().err.splitlines())
    with above.connect() as connection:
        assert {row.position: bytes(row.root) for row in connection.execute(text("select position, root from roots"))} == exported
        assert list(exported) == [1]
        assert list(chains.verify(connection, exported)) == []


def test_the_command_tells_a_sound_database_from_one_that_was_tampered_with(
    above: Engine, environ: dict[str, str], tmp_path: Path
) -> None:
    with above.begin() as connection:
        write_entries(connection, random.Random(8))
        roots = connection.execute(text("select position, root from roots order by position")).all()
    log = tmp_path / "relay.log"
    lines = [json.dumps({"event": chains.ROOT_TAKEN, "position": row.position, "root": bytes(row.root).hex()}) for row in roots]
    log.write_text("\n".join(["no JSON", '{"event": "root_taken", "position"', *lines]))

    def verify() -> tuple[int, str]:
        command = [sys.executable, "-m", "domain.chains", str(log)]
        ended = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
        return ended.returncode, ended.stdout + ended.stderr

    assert verify() == (0, f"10000 entries, {len(roots)} roots, {len(roots)} of them exported: 0 flaws\n")
    with above.begin() as connection:
        drop(connection, random.Random(9))
    code, told = verify()
    assert code == 1
    assert "flaws" in told
    assert "Traceback" not in told
