"""Append-only records: each entry's hash covers the one before it, and a root covers all entries up to an instant."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, create_engine, text

from domain import settings

LAG: Final = timedelta(minutes=1)  # no transaction may last as long, so nothing older can still be on its way
LEAST, MOST = timedelta(minutes=1), timedelta(minutes=10)  # what one root covers; more would take too long to read
ROOT_TAKEN: Final = "root_taken"  # the event under which logs carry roots to where the database's owner can't reach them

HISTORY_FIELDS: Final = ("appointment_id", "position", "status", "at", "by", "actor_id", "command_id", "reason")
AUDIT_FIELDS: Final = ("subject_id", "position", "actor_id", "actor_role", "action", "about", "at")


@dataclass(frozen=True, slots=True)
class Root:
    """The hash of every entry up to an instant, by way of the root before it."""

    position: int
    until: datetime
    entries: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Flaw:
    """Where what is stored is not what was written: a table, one of its chains (or none), and the position in it."""

    table: str
    chain: UUID | None
    position: int
    what: str


def link(previous: bytes, entry: Mapping[str, Any]) -> bytes:
    """The hash of an entry and, through the `previous` hash, of all before it: none can be altered, dropped or swapped unseen."""
    return hashlib.sha256(previous + _canonical(entry).encode()).digest()


def take_root(connection: Connection) -> Root | None:
    """Cover what was written since the last root by the next one; None if it is too early, or somebody else just did.

    It is to be logged as ROOT_TAKEN: whoever holds the logs can tell later what the database held.
    """
    last = connection.execute(_LAST_ROOT).one_or_none()
    if last is None:
        return None
    root = _rooted(connection, Root(last.position, last.since, 0, bytes(last.root)), last.until)
    taken = connection.execute(
        _INSERT_ROOT, {"position": root.position, "until": root.until, "entries": root.entries, "root": root.root}
    )
    return root if taken.rowcount else None


def verify(connection: Connection, exported: Mapping[int, bytes]) -> Iterator[Flaw]:
    """Everything that was altered, dropped, inserted or swapped since it was written, as far as it can be told.

    `exported` are roots, by their position, that were kept outside the database. With them, whoever owns the database and links
    everything anew is found out too, save for the last minute or two.
    """
    yield from _verify_chains(connection, "history", _READ_HISTORY, HISTORY_FIELDS)
    yield from _verify_chains(connection, "audit", _READ_AUDIT, AUDIT_FIELDS)
    yield from _verify_roots(connection, exported)


def exported_roots(lines: Iterable[str]) -> dict[int, bytes]:
    """The roots that log lines carry; lines about anything else, or broken off, are passed over."""
    roots: dict[int, bytes] = {}
    for line in lines:
        if ROOT_TAKEN in line:
            try:
                told = json.loads(line)
                roots[int(told["position"])] = bytes.fromhex(told["root"])
            except (ValueError, KeyError, TypeError):
                continue
    return roots


def _verify_chains(connection: Connection, table: str, query: Any, fields: tuple[str, ...]) -> Iterator[Flaw]:
    last: Row[Any] | None = None
    position, previous = 0, b""
    for row in connection.execute(query, execution_options={"yield_per": 1000}):
        if last is None or row.chain != last.chain:
            yield from _verify_end(table, last, position, previous)
            position, previous = 0, b""
        last = row
        if row.position is None:
            continue
        if row.position != position + 1:
            yield Flaw(table, row.chain, row.position, f"entries before it are missing since {position}")
        if row.headless:
            yield Flaw(table, row.chain, row.position, "it belongs to nothing")
        if bytes(row.hash) != link(previous, {name: getattr(row, name) for name in fields}):
            yield Flaw(table, row.chain, row.position, "it is not what was written there")
        position, previous = row.position, bytes(row.hash)
    yield from _verify_end(table, last, position, previous)


def _verify_end(table: str, last: Row[Any] | None, position: int, previous: bytes) -> Iterator[Flaw]:
    if last is not None and last.length is not None and (last.length, bytes(last.head)) != (position, previous):
        yield Flaw(table, last.chain, position, f"the chain does not end as its head says, at {last.length}")


def _verify_roots(connection: Connection, exported: Mapping[int, bytes]) -> Iterator[Flaw]:
    before = Root(0, datetime.min.replace(tzinfo=UTC), 0, b"")
    stored: set[int] = set()
    for row in connection.execute(_READ_ROOTS).all():
        told = Root(row.position, row.until, row.entries, bytes(row.root))
        stored.add(told.position)
        if told != _rooted(connection, before, told.until):
            yield Flaw("roots", None, told.position, f"what was written by {told.until.isoformat()} was altered, or the root was")
        if exported.get(told.position, told.root) != told.root:
            yield Flaw("roots", None, told.position, "it is not the root that was exported")
        before = told
    for position in sorted(set(exported) - stored):
        yield Flaw("roots", None, position, "a root that was exported is not there")


def _rooted(connection: Connection, before: Root, until: datetime) -> Root:
    covered = connection.execute(_COVERED, {"since": before.until, "until": until}).one()
    entry = {"position": before.position + 1, "until": until, "entries": covered.entries, "digest": bytes(covered.digest)}
    return Root(before.position + 1, until, covered.entries, link(before.root, entry))


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    return str(value)


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain).encode

# An entry lies in the first interval that ends at or after it; the first interval holds all that was there before.
_LAST_ROOT = text(
    """
    select last.position, last.since, last.root,
        case when last.position = 0 then now.at else least(now.at, first.at + :most) end as until
    from (
        (select position, until as since, root from roots order by position desc limit 1)
        union all select 0, timestamptz '0001-01-01 00:00:00+00', '' order by position desc limit 1
    ) as last, (select clock_timestamp() - cast(:lag as interval) as at) as now, lateral (
        select min(at) as at from (
            select min(at) as at from history where at > last.since union all select min(at) from audit where at > last.since
        ) as written
    ) as first
    where first.at + :least <= now.at
    """
).bindparams(lag=LAG, least=LEAST, most=MOST)
_COVERED = text(
    """
    select count(*) as entries, sha256(coalesce(string_agg(hash, ''::bytea order by chain, position), '')) as digest
    from (
        select appointment_id as chain, position, hash from history where at > :since and at <= :until
        union all select subject_id, position, hash from audit where at > :since and at <= :until
    ) as written
    """
)
_INSERT_ROOT = text(
    "insert into roots (position, until, entries, root) values (:position, :until, :entries, :root) on conflict do nothing"
)
_READ_ROOTS = text("select position, until, entries, root from roots order by position")
_READ_HISTORY = text(
    f"""
    select coalesce(appointments.id, appointment_id) as chain, appointments.id is null as headless,
        history_length as length, history_hash as head, hash, {", ".join(f"history.{name}" for name in HISTORY_FIELDS)}
    from appointments full join history on appointment_id = appointments.id order by 1, history.position
    """
)
_READ_AUDIT = text(
    f"""
    select subject_id as chain, false as headless, null as length, null as head, hash, {", ".join(AUDIT_FIELDS)}
    from audit order by 1, position
    """
)


def main() -> int:
    """Verify the database of this environment against the roots in the log files that are named; 1 if there are flaws."""
    exported: dict[int, bytes] = {}
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8", errors="replace") as file:
            exported |= exported_roots(file)
    engine = create_engine(settings.current().database_url, isolation_level="REPEATABLE READ", hide_parameters=True)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("set local statement_timeout = 0"))
        connection.execute(text("set local transaction_timeout = 0"))
        flaws = 0
        for flaw in verify(connection, exported):
            flaws += 1
            sys.stdout.write(f"{flaw.table} {flaw.chain or ''} {flaw.position}: {flaw.what}\n")
        entries = connection.execute(text("select (select count(*) from history) + (select count(*) from audit)")).scalar_one()
        roots = connection.execute(text("select count(*) from roots")).scalar_one()
    sys.stdout.write(f"{entries} entries, {roots} roots, {len(exported)} of them exported: {flaws} flaws\n")
    return 1 if flaws else 0


if __name__ == "__main__":
    sys.exit(main())
