"""What requests and commands cost as the stored data grows, and as workers are added: `make growth` tabulates and plots it.

CPU-seconds of this process and of Postgres, past every cache, so that nothing hides what the data costs. A cost may grow as the
logarithm of what is stored grows, and no faster: (1 + ln n) / (1 + ln n of the smallest).
"""

from __future__ import annotations

import base64
import itertools
import math
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import psutil
from psycopg2.extensions import set_wait_callback
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text

from domain import batches, database, directory, inbox, logs, migrations, projections, retention
from domain.cache import Cache, Change
from domain.commands import Book
from domain.database import connect
from domain.directory import SearchQuery
from domain.inbox import Sender
from domain.lanes import Drainer
from domain.projections import AppointmentQuery
from domain.schedule import Role
from domain.settings import Settings, load
from local.servers import Broker, Postgres
from tests.bench.plot import plot
from tests.rows import add_doctor, add_person, add_slot, tomorrow
from workers.relay import Relay

DOCS = Path(__file__).parents[2] / "docs"
OPTIONS = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "max_wal_size": "8GB", "shared_buffers": "1GB"}
LANES = 16
TIMES = 30  # that each thing is done in a round
ROUNDS = 3
BATCH = 50  # bookings in one transaction, over all the doctors whose lane it is
ACTORS = 16  # doctors and patients with keys of their own, who act; the rest only lie there


@dataclass(frozen=True, slots=True)
class Size:
    """How much is stored."""

    doctors: int = 1_000
    slots: int = 40_000
    commands: int = 10_000


AXES: Mapping[str, Sequence[Size]] = {
    "doctors": [Size(doctors=n, slots=40 * n) for n in (100, 1_000, 10_000, 50_000)],
    "slots": [Size(slots=n) for n in (1_000, 10_000, 100_000, 1_000_000, 5_000_000)],
    "commands": [Size(commands=n) for n in (1_000, 10_000, 100_000, 1_000_000)],
}
WORKERS = (1, 2, 4, 8, 16)

# Of a doctor's slots, the first forty lie in the 60 days to come, the others in the past. An appointment that took place stands
# for every second command; all its rows are there, but not the slot it was in. What was decided is spread over 89 days.
STOCK = """
    set maintenance_work_mem = '512MB';
    create temp table stocked as select uuidv7() as id, n from generate_series(0, :doctors - 1) as n;
    insert into people (id, role) select id, 'doctor' from stocked;
    insert into doctors (id, lane, status, name, search_name, crm_number, crm_state, price, timezone)
        select id, n % 16 + 100, 'verified', 'Doutor ' || n, md5(n::text), n, (array['SP', 'RJ', 'MG', 'RS', 'PR'])[n % 5 + 1],
            8000 + n % 100 * 100, 'America/Sao_Paulo'
        from stocked;
    insert into doctor_specialties
        select id, (array['cardiologia', 'dermatologia', 'pediatria', 'psiquiatria', 'urologia'])[n % 5 + 1], n from stocked;
    insert into availabilities (doctor_id, rules, exceptions, extended_on) select id, '[]', '[]', current_date from stocked;
    insert into slots (id, doctor_id, during, status, held)
        select uuidv7(), id, tstzrange(at, at + interval '30 minutes'),
            case when s < 40 and (s + n) % 10 < 7 then 'open' when s % 2 = 0 then 'booked' else 'withdrawn' end, true
        from stocked, generate_series(0, (:slots - 1 - n) / :doctors) as s, lateral (
            select date_trunc('day', now()) + case
                when s < 40 then (1 + s * 1.5) * interval '1 day' + n % 48 * interval '30 minutes'
                else (39 - s) * interval '30 minutes'
            end as at
        ) as start;
    create temp table asked as
        select n, uuidv7() as person_id from generate_series(0, greatest(:doctors, :commands / 20) - 1) as n;
    insert into people (id, role) select person_id, 'patient' from asked;
    insert into sessions (id, person_id, refresh_id, refreshed_at, expires_at)
        select uuidv7(), person_id, uuidv7(), now(), now() + interval '7 days' from asked;
    create temp table decided as
        select uuidv7() as appointment_id, uuidv7(-age) as id, uuidv7(-age) as batch_id, now() - age as at, i, person_id,
            stocked.id as doctor_id, tstzrange(start, start + interval '20 minutes') as during
        from (select i, i * interval '89 days' / :commands as age from generate_series(0, :commands - 1) as i) as command
            join asked on asked.n = i % (select count(*) from asked) join stocked on stocked.n = i % :doctors,
            lateral (select now() - interval '2 days' - i / :doctors * interval '30 minutes' as start) as began;
    insert into batches (id, scopes, created_at, finished_at) select batch_id, '{}', at, at from decided where i % 10 = 0;
    insert into appointments (id, slot_id, doctor_id, patient_id, during, active, status, price, currency, requested_at,
            expires_at, decided_at, history_length, history_hash)
        select appointment_id, uuidv7(), doctor_id, person_id, during, true, 'completed', 1, 'BRL', at, at, at, 1, ''
        from decided where i % 2 = 0;
    insert into history (appointment_id, position, status, at, by, actor_id, command_id, hash)
        select appointment_id, 1, 'requested', now(), 'patient', person_id, id, '' from decided where i % 2 = 0;
    insert into notices (id, person_id, appointment_id, kind, due_at, next_try_at, sent_at)
        select uuidv7(at - now()), doctor_id, case when i % 2 = 0 then appointment_id end, 'requested', at, at, at from decided;
    insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, appointment_id, payload, key_hash, request_hash,
            status, received_at, decided_at, batch_id)
        select id, 0, 'book', person_id, 'patient', doctor_id, appointment_id, '{}', sha256(i::text::bytea), sha256(''),
            'succeeded', at, at, batch_id from decided;
"""
# Constraints and indexes come after what they cover, as in a restore.
TABLES = "('appointments', 'batches', 'commands', 'doctors', 'history', 'notices', 'people', 'sessions', 'slots')"
DEFINED = f"""
    select conrelid::regclass::text as on_table, conname as name, contype = 'f' as foreign, pg_get_constraintdef(oid)
            || case when contype = 'f' then ' not valid' else '' end as definition
    from pg_constraint where contype in ('p', 'u', 'x', 'f')
        and (conrelid::regclass::text in {TABLES} or confrelid::regclass::text in {TABLES})
    order by contype = 'f', conname
"""
INDEXES = f"""
    select indexname as name, indexdef as definition from pg_indexes where tablename in {TABLES}
        and indexname not in (select conname from pg_constraint)
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """A server with so much stored, and those who act on it."""

    server: Postgres
    settings: Settings
    engine: Engine
    cache: Cache  # without its Redis: every read comes from Postgres
    doctors: Sequence[UUID]
    patients: Sequence[UUID]
    stored_doctors: Sequence[UUID]
    stored_commands: Sequence[tuple[UUID, UUID]]  # with their senders
    appointments: Sequence[tuple[UUID, UUID]]  # of those patients, with whose they are
    turns: Iterator[int]  # of asking for new slots, which start later each time


@contextmanager
def stocked(size: Size, folder: Path, broker: Broker) -> Iterator[Ground]:
    """So much, on a server of its own."""
    server = Postgres(folder / "postgres", options=OPTIONS)
    server.start()
    owner = server.migration_url.replace("postgresql:", "postgresql+psycopg2:")
    migrations.upgrade(owner, app_url=server.url)
    set_wait_callback(None)  # this may take longer than the application would wait
    loader = create_engine(owner, isolation_level="AUTOCOMMIT")
    with loader.connect() as connection:
        _load(connection, size)
    loader.dispose()
    database.bound_waits()
    settings = _settings(server, broker)
    engine = connect(settings.database_url, pool_size=1)
    cache = Cache(replace(settings, cache_url="redis://127.0.0.1:1"), engine)
    try:
        yield _ground(server, settings, engine, cache)
    finally:
        cache.stop()
        engine.dispose()
        server.stop()


def _load(connection: Connection, size: Size) -> None:
    constraints, indexes = connection.execute(text(DEFINED)).all(), connection.execute(text(INDEXES)).all()
    for each in reversed(constraints):
        connection.execute(text(f"alter table {each.on_table} drop constraint {each.name}"))
    for each in indexes:
        connection.execute(text(f"drop index {each.name}"))
    connection.execute(text(STOCK), {"doctors": size.doctors, "slots": size.slots, "commands": size.commands})
    for each in constraints:
        if not each.foreign:
            connection.execute(text(f"alter table {each.on_table} add constraint {each.name} {each.definition}"))
    for each in indexes:
        connection.execute(text(each.definition))
    for each in constraints:
        if each.foreign:
            connection.execute(text(f"alter table {each.on_table} add constraint {each.name} {each.definition}"))
    connection.execute(text("vacuum analyze"))


def _settings(server: Postgres, broker: Broker) -> Settings:
    key = base64.b64encode(b"k" * 32).decode()
    return load(
        {
            "LOCAL_STACK": "on",
            "DATABASE_URL": server.url,
            "BROKER_URL": broker.url,
            "CACHE_URL": broker.url,
            "JWT_KEYS": f"bench={key}",
            "DATA_KEYS": f"bench={key}",
            "HASH_KEY": key,
            "MAX_OPEN_REQUESTS": "100000",
            "MAX_OPEN_REQUESTS_PER_DOCTOR": "100000",
        }
    )


def _ground(server: Postgres, settings: Settings, engine: Engine, cache: Cache) -> Ground:
    drawn = random.Random(7)
    with engine.begin() as connection:
        doctors = [add_doctor(connection, settings, lane=n) for n in range(ACTORS)]
        patients = [add_person(connection, settings) for _ in range(ACTORS)]
        stored_doctors = connection.execute(text("select id from doctors where lane >= 100 order by id")).scalars().all()
        some = "select id, actor_id from commands where seq % ((select count(*) from commands) / :times) = 0 limit :times"
        commands = connection.execute(text(some), {"times": TIMES}).all()
    ground = Ground(
        server=server,
        settings=settings,
        engine=engine,
        cache=cache,
        doctors=doctors,
        patients=patients,
        stored_doctors=[drawn.choice(stored_doctors) for _ in range(TIMES)],
        stored_commands=[(row.id, row.actor_id) for row in commands],
        appointments=[],
        turns=itertools.count(),
    )
    for _ in range(4):  # so that those who act have lists
        _ask(ground)
        _decide(ground)
    with engine.begin() as connection:
        own = "select id, patient_id from appointments where patient_id = any(:ids)"
        rows = connection.execute(text(own), {"ids": patients}).all()
    return replace(ground, appointments=[(row.id, row.patient_id) for row in rows])


def _ask(ground: Ground) -> None:
    """Ask for new slots of all those doctors, in one lane."""
    hours = 2 * next(ground.turns)
    with ground.engine.begin() as connection:
        for n in range(BATCH):
            slot_id = add_slot(connection, ground.doctors[n % ACTORS], tomorrow(hours + n // ACTORS / 2))
            inbox.send(connection, ground.settings, Sender(ground.patients[n % ACTORS], Role.PATIENT), Book(slot_id))
        connection.execute(text("update commands set lane = 0 where status = 'pending'"))


def _decide(ground: Ground) -> None:
    with ground.engine.begin() as connection:
        decided = batches.decide_batch(connection, ground.settings, 0)
    assert decided is not None
    assert all(row.status == "succeeded" for row in decided.commands), decided.commands


def reads(ground: Ground) -> dict[str, Callable[[int], object]]:
    """What is read most, by name; each call reads another one."""
    cache = ground.cache

    def doctor(n: int) -> UUID:
        return ground.stored_doctors[n % TIMES]

    def appointment(n: int) -> tuple[UUID, UUID]:
        return ground.appointments[n % len(ground.appointments)]

    return {
        "a doctor": lambda n: directory.doctor(cache, doctor(n)),
        "an agenda of 7 days": lambda n: directory.agenda(cache, doctor(n)),
        "a search by name": lambda n: directory.search(cache, SearchQuery()),
        "a search by next free slot": lambda n: directory.search(cache, SearchQuery(sort="next_slot")),
        "a specialty, by next free slot": lambda n: directory.search(
            cache, SearchQuery(specialty=["cardiologia"], sort="next_slot")
        ),
        "a command": lambda n: projections.command(cache, *ground.stored_commands[n % TIMES]),
        "an appointment": lambda n: projections.appointment(cache, *appointment(n), Role.PATIENT),
        "a patient's appointments": lambda n: projections.appointments(
            cache, ground.patients[n % ACTORS], Role.PATIENT, AppointmentQuery()
        ),
        "a doctor's appointments": lambda n: projections.appointments(
            cache, ground.doctors[n % ACTORS], Role.DOCTOR, AppointmentQuery()
        ),
    }


def measured(ground: Ground) -> dict[str, float]:
    """Microseconds of CPU for one of each, in the median of the rounds."""
    relay = Relay(ground.settings)

    def turn(_: int) -> None:
        for step in relay._steps:  # not `relay.turn`, which goes on after a step that fails
            step()

    turn(0)  # the first root covers all that is there
    rounds: list[dict[str, float]] = []
    key = iter(range(10**9))

    def send(_: int) -> None:
        with ground.engine.begin() as connection:
            sender = Sender(ground.patients[0], Role.PATIENT)
            inbox.send(connection, ground.settings, sender, Book(slot_id), key=str(next(key)), fingerprint=b"POST")

    with ground.engine.begin() as connection:
        slot_id = add_slot(connection, ground.doctors[0], tomorrow(-1))
    for _ in range(ROUNDS + 1):  # of which the first one warms up
        spent = {name: _cost(ground, action, TIMES) for name, action in reads(ground).items()}
        spent["storing a booking"] = _cost(ground, send, TIMES)
        with ground.engine.begin() as connection:  # of no interest: they all want one slot
            connection.execute(text("delete from commands where status = 'pending'"))
        _ask(ground)
        spent["deciding a booking"] = _cost(ground, lambda _: _decide(ground), 1) / BATCH
        _ask_for_horizons(ground)
        spent["moving a doctor's horizon"] = _cost(ground, lambda _: _decide(ground), 1) / batches.AGENDAS
        spent["a turn of the relay"] = _cost(ground, turn, TIMES)
        rounds.append(spent)
    return {name: median(each[name] for each in rounds[1:]) for name in rounds[0]}


def _ask_for_horizons(ground: Ground) -> None:
    with ground.engine.begin() as connection:
        connection.execute(text("delete from commands where kind = 'extend_horizon'"))
        connection.execute(
            text(
                "insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, payload, day) select uuidv7(), 0,"
                " 'extend_horizon', :system, 'system', id, '{}', current_date from unnest(cast(:ids as uuid[])) as id"
            ),
            {"system": inbox.SYSTEM, "ids": list(map(str, set(ground.stored_doctors)))[: batches.AGENDAS]},
        )


def _cost(ground: Ground, action: Callable[[int], object], times: int) -> float:
    """Microseconds of CPU that one takes, here and in Postgres."""
    began = time.process_time_ns() + _served(ground.server)
    for n in range(times):
        action(n)
    return (time.process_time_ns() + _served(ground.server) - began) / times / 1000


def _served(server: Postgres) -> int:
    """Nanoseconds of CPU that the server's processes have had."""
    assert server.process is not None
    return sum(_had(process.pid) for process in psutil.Process(server.process.pid).children())


def _had(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def worked(ground: Ground, workers: int, number: int = 100) -> float:
    """Microseconds of CPU for a decided booking, of so many in each lane, with so many workers at once: theirs and Postgres's."""
    for lane in range(LANES):
        with ground.engine.begin() as connection:
            doctors = [add_doctor(connection, ground.settings, lane=lane) for _ in range(ACTORS)]
            patients = [add_person(connection, ground.settings) for _ in range(ACTORS)]
            for n in range(number):
                slot_id = add_slot(connection, doctors[n % ACTORS], tomorrow(n // ACTORS))
                inbox.send(connection, ground.settings, Sender(patients[n % ACTORS], Role.PATIENT), Book(slot_id))
    context = multiprocessing.get_context("fork")
    started = []
    for place in range(workers):
        here, there = context.Pipe()
        worker = context.Process(target=_work, args=(ground.settings, range(place, LANES, workers), there))
        worker.start()
        started.append((worker, here))
    for _, pipe in started:
        pipe.recv()
    began = _served(ground.server)
    for _, pipe in started:
        pipe.send("go")
    theirs = sum(pipe.recv() for _, pipe in started)
    spent = theirs + _served(ground.server) - began
    for worker, pipe in started:
        pipe.send("end")
        worker.join()
    with ground.engine.begin() as connection:
        assert not connection.execute(text("select count(*) from commands where status <> 'succeeded'")).scalar_one()
    return spent / (LANES * number) / 1000


def _work(settings: Settings, lanes: Sequence[int], pipe: Any) -> None:
    engine = connect(settings.database_url, pool_size=2)
    drainer = Drainer(settings, engine, Cache(settings, engine), Redis.from_url(settings.broker_url))
    drainer.drain(LANES)  # nothing waits there: it connects
    pipe.send("ready")
    pipe.recv()
    began = time.process_time_ns()
    for lane in lanes:
        while drainer.drain(lane):
            pass
    pipe.send(time.process_time_ns() - began)
    pipe.recv()


def allowed(n: int, smallest: int) -> float:
    """By how much a cost may have grown."""
    return (1 + math.log(n)) / (1 + math.log(smallest))


def weighed() -> list[str]:
    """Bytes of a row with all its indexes, by table, and what it costs to archive one, as a table in Markdown."""
    people = 1000
    with _somewhere() as (folder, broker), stocked(Size(commands=100_000), folder, broker) as ground:
        sizes = {each: _size(ground, each) for each in ("people", "person_keys")}
        with ground.engine.begin() as connection:
            for _ in range(people):
                add_person(connection, ground.settings)
        weights = {each: (_size(ground, each) - before) / people for each, before in sizes.items()}
        weights |= _weights(ground, "sessions", "slots", "appointments", "history", "commands", "notices", "batches")
        with ground.engine.begin() as connection:
            connection.execute(text("update commands set decided_at = decided_at - interval '91 days'"))
            connection.execute(text("update notices set sent_at = sent_at - interval '91 days'"))
        began, archived = time.process_time_ns() + _served(ground.server), 0
        for _ in range(20):
            with ground.engine.begin() as connection:
                archived += retention.keep_terms(Change(connection))
        cost = (time.process_time_ns() + _served(ground.server) - began) / archived / 1000
        weights |= _weights(ground, "archived_commands", "archived_notices")
    rows = [f"| {table} | {size:,.0f} |" for table, size in weights.items()]
    head = ["| table | bytes of a row, with all its indexes |", "| --- | ---: |"]
    return [*head, *rows, "", f"To archive a row takes {cost:,.0f} µs of CPU."]


def _weights(ground: Ground, *tables: str) -> dict[str, float]:
    with ground.engine.begin() as connection:
        rows = {each: connection.execute(text(f"select count(*) from {each}")).scalar_one() for each in tables}
    return {table: _size(ground, table) / rows[table] for table in tables}


def _size(ground: Ground, table: str) -> int:
    with ground.engine.begin() as connection:
        return int(connection.execute(text(f"select pg_total_relation_size('{table}')")).scalar_one())


Table = dict[str, list[float]]


def along(axis: str) -> tuple[list[int], Table]:
    """The costs at each size of one axis."""
    sizes, table = [], Table()
    if axis == "workers":
        sizes = list(WORKERS)
        with _somewhere() as (folder, broker), stocked(Size(), folder, broker) as ground:
            for workers in sizes:
                table.setdefault("deciding a booking", []).append(median(worked(ground, workers) for _ in range(ROUNDS)))
        return sizes, table
    for size in AXES[axis]:
        sizes.append(getattr(size, axis))
        began = time.monotonic()
        with _somewhere() as (folder, broker), stocked(size, folder, broker) as ground:
            loaded = time.monotonic() - began
            for name, cost in measured(ground).items():
                table.setdefault(name, []).append(cost)
        print(f"  {axis} {sizes[-1]:,}: loaded in {loaded:.0f} s, {time.monotonic() - began:.0f} s in all", file=sys.stderr)
    return sizes, table


@contextmanager
def _somewhere() -> Iterator[tuple[Path, Broker]]:
    with tempfile.TemporaryDirectory(prefix="healthmed-growth-") as folder:
        broker = Broker(Path(folder) / "broker")
        broker.start()
        try:
            yield Path(folder), broker
        finally:
            broker.stop()


def shown(sizes: Sequence[int], table: Table) -> list[str]:
    """The table in Markdown: microseconds, by how much they grew, and by how much they may."""
    head = ["µs of CPU", *(f"{n:,}" for n in sizes), "grew", "may", ""]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 2)} --- |"]
    may = allowed(sizes[-1], sizes[0])
    for name, costs in table.items():
        grew = costs[-1] / costs[0]
        verdict = "" if grew <= may else "**faster than the logarithm**"
        lines.append(f"| {name} | {' | '.join(f'{cost:,.0f}' for cost in costs)} | ×{grew:.2f} | ×{may:.2f} | {verdict} |")
    return lines


def main() -> int:
    """Measure along the named axes, or all, and write tables and plots into docs/ one by one; 1 if any cost grew too fast."""
    logs.configure("ERROR")
    failed = False
    for axis in sys.argv[1:] or [*AXES, "workers", "rows"]:
        if axis == "rows":
            lines = weighed()
        else:
            sizes, table = along(axis)
            failed |= any(costs[-1] / costs[0] > allowed(sizes[-1], sizes[0]) for costs in table.values())
            ratios = {name: [cost / costs[0] for cost in costs] for name, costs in table.items()}
            limit = [allowed(n, sizes[0]) for n in sizes]
            picture = plot(f"CPU for one, against {axis}", sizes, ratios, limit)
            (DOCS / f"growth-{axis}.svg").write_text(picture, encoding="utf-8")
            lines = [*shown(sizes, table), "", f"![Against {axis}](growth-{axis}.svg)"]
        print("\n".join(lines), flush=True)
        _write(f"growth {axis}", lines)
    return int(failed)


def _write(part: str, lines: Sequence[str]) -> None:
    """Put a part of docs/performance.md in the place of what it was."""
    page = DOCS / "performance.md"
    begin, end = f"<!-- {part}, written by `make growth` -->\n", f"<!-- /{part} -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    page.write_text("".join([head, begin, "\n", "\n".join(lines), "\n\n", end, tail]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
