"""Commands a second, over HTTP and through Celery, on a whole stack of the bench's own; beside what a bare way would give."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from statistics import median
from typing import NamedTuple
from uuid import UUID

import psutil
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text
from uuid_utils.compat import uuid7

from domain import inbox, privacy, tokens
from domain.commands import Book
from domain.schedule import Role
from domain.settings import Settings
from domain.tokens import Claims, Type
from local.servers import free_port
from local.up import Service, Stack
from tests.bench import bare
from tests.bench.clients import Answered, Client, drive, get, post
from tests.rows import add_doctor, tomorrow
from workers.app import BOOKING, Sender

DOCTORS = 256
PATIENTS = 2000
CLIENTS = 16
ROUNDS = 3
WAIT = 10  # seconds, as a client prefers


class Patient(NamedTuple):
    """Somebody who is logged in."""

    id: UUID
    token: str


Turn = tuple[Patient, UUID]  # who books, and which slot


class BenchStack(Stack):
    """`make up`, but its booking worker knows the bare task too, and it says nothing."""

    def _describe_services(self) -> dict[str, Service]:
        services = super()._describe_services()
        booking = services["booking"]
        services["booking"] = Service(booking.name, [*booking._command, "-I", bare.__name__], self._environ, booking.log)
        return services

    def _say_where(self) -> None:
        pass


@dataclass(slots=True)
class Bench:
    """The stack, and who may book what on it."""

    stack: BenchStack
    settings: Settings
    engine: Engine
    broker: Redis
    patients: Sequence[Patient]
    turns: Iterator[Turn]  # without end: of each patient one at a time

    def processes(self) -> list[psutil.Process]:
        """All of the stack."""
        return [each for service in self.stack._launched for each in service.family()]

    def cpu_seconds(self) -> float:
        """What the stack has used so far, the processes that have ended included."""
        return sum(sum(each.cpu_times()[:4]) for each in self.processes())

    def pss(self) -> int:
        """The memory of the stack in MiB, what several processes share counted once."""
        return sum(each.memory_full_info().pss for each in self.processes()) // 2**20


@contextmanager
def stacked() -> Iterator[Bench]:
    """A whole stack in a temporary folder, with doctors, and patients who are logged in."""
    with tempfile.TemporaryDirectory(prefix="healthmed-bench-") as folder:
        # Nobody decides the requests: three rounds of them would be more than a patient may have open.
        open_ones = {"MAX_OPEN_REQUESTS": "1000", "MAX_OPEN_REQUESTS_PER_DOCTOR": "1000"}
        environ = {**os.environ, **open_ones, "STATE_DIR": folder, "PORT": str(free_port()), "RATE_LIMITS": "off"}
        stack = BenchStack(environ)
        try:
            stack.start()
            settings = stack._settings
            engine = create_engine(settings.database_url, hide_parameters=True)
            with engine.begin() as connection:
                patients = add_patients(connection, settings, PATIENTS)
                doctors = [add_doctor(connection, settings, lane=n % settings.lanes) for n in range(DOCTORS)]
            with Redis.from_url(settings.broker_url) as broker:
                turns = zip(cycle(patients), add_slots(engine, doctors), strict=False)
                yield Bench(stack, settings, engine, broker, patients, turns)
            engine.dispose()
        finally:
            stack.stop()


def add_patients(connection: Connection, settings: Settings, number: int) -> list[Patient]:
    """So many patients, each with a token that outlives the bench."""
    rows, patients = [], []
    now = datetime.now(UTC)
    for _ in range(number):
        person_id, session_id = uuid7(), uuid7()
        key, wrapped = privacy.new_data_key(settings.data_keys, person_id)
        document = json.dumps({"name": "Ana Souza", "email": "ana@example.com"})
        private = privacy.seal(key, document, context="people.private", row_id=person_id)
        rows.append((person_id, wrapped, private, session_id))
        claims = Claims(Type.ACCESS, person_id, session_id, Role.PATIENT, uuid7(), now, now + timedelta(days=1))
        patients.append(Patient(person_id, tokens.mint(settings.jwt_keys, claims)))
    names = ("ids", "wrapped", "private", "sessions")
    connection.execute(_ADD_PATIENTS, dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return patients


def add_slots(engine: Engine, doctors: Sequence[UUID]) -> Iterator[UUID]:
    """Ever more open slots: one of each doctor, then the next of each."""
    for hour in range(1000):
        with engine.begin() as connection:
            added = connection.execute(_ADD_SLOTS, {"doctors": doctors, "at": tomorrow(hour)}).scalars().all()
        yield from added


_ADD_PATIENTS = text(
    """
    with r as materialized (select * from unnest(
        cast(:ids as uuid[]), cast(:wrapped as bytea[]), cast(:private as bytea[]), cast(:sessions as uuid[])
    ) as r (id, wrapped, private, session_id)), made as (
        insert into people (id, role, private, email_confirmed_at) select id, 'patient', private, clock_timestamp() from r
    ), keyed as (
        insert into person_keys (person_id, wrapped) select id, wrapped from r
    )
    insert into sessions (id, person_id, refresh_id, refreshed_at, expires_at)
    select session_id, id, uuidv7(), clock_timestamp(), clock_timestamp() + interval '1 day' from r
    """
)
_ADD_SLOTS = text(
    """
    insert into slots (id, doctor_id, during, status, held)
    select uuidv7(), doctor_id, tstzrange(at, at + interval '30 minutes'), 'open', true
    from unnest(cast(:doctors as uuid[])) as doctor_id, (select cast(:at as timestamptz) as at) as start returning id
    """
)


def acknowledged_per_second(bench: Bench, number: int = 1500) -> float:
    """Bookings stored and answered 202 each second."""
    asked = iter([_booking(turn) for turn in islice(bench.turns, number)])
    return number / _seconds(bench.settings.port, [_sending(asked) for _ in range(CLIENTS)])


def decided_per_second(bench: Bench, number: int = 4000) -> float:
    """Commands decided each second by the stack's workers: the inbox is full, wake-ups are sent, until nothing waits."""
    lanes = set()
    turns = list(islice(bench.turns, number))
    for first in range(0, number, 250):  # no transaction may last longer than its role allows
        with bench.engine.begin() as connection:
            for patient, slot_id in turns[first : first + 250]:
                sender = inbox.Sender(patient.id, Role.PATIENT)
                lanes.add(inbox.send(connection, bench.settings, sender, Book(slot_id)).lane)
    begun = time.perf_counter()
    sender = Sender(bench.settings.broker_url)
    for lane in lanes:
        sender.wake(lane)
    with bench.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while connection.execute(_PENDING).scalar_one():
            time.sleep(0.02)
    return number / (time.perf_counter() - begun)


_PENDING = text("select exists (select from commands where status = 'pending' and lane >= 0)")


def committed_per_second(bench: Bench, number: int = 2000) -> float:
    """What the bare view does each second: one row inserted and committed for each request, by the same gunicorn."""
    folder = bench.stack._state / "bare"
    folder.mkdir(exist_ok=True)
    environ = {**bench.stack._environ, "PORT": str(port := free_port()), "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", f"{bare.__name__}:serve()"]
    view = Service("bare", command, environ, bench.stack._log / "bare.log")
    view.launch()
    try:
        until = time.monotonic() + 20
        while not _listens(port) and time.monotonic() < until:
            time.sleep(0.05)
        request = post("/", "none", b'{"slot_id": "%s"}' % str(uuid7()).encode())
        _seconds(port, [_sending(iter([request] * 20)) for _ in range(CLIENTS)])
        asked = iter([request] * number)
        return number / _seconds(port, [_sending(asked) for _ in range(CLIENTS)])
    finally:
        view.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end_to_end(bench: Bench, number: int = 1000) -> tuple[float, float]:
    """Bookings stored, decided and read back: how many a second, and the stack's CPU-seconds for each thousand."""
    turns = iter(list(islice(bench.turns, number)))

    def client() -> Client:
        for turn in turns:
            _expect((yield from _book(turn)) == "succeeded")

    before = bench.cpu_seconds()
    seconds = _seconds(bench.settings.port, [client() for _ in range(CLIENTS)])
    return number / seconds, (bench.cpu_seconds() - before) / number * 1000


def one_slot(bench: Bench, number: int = 2000) -> float:
    """The seconds until so many attempts at one slot at once are all decided and read back."""
    _, slot_id = next(bench.turns)
    outcomes = []

    def client(patient: Patient) -> Client:
        outcomes.append((yield from _book((patient, slot_id))))

    seconds = _seconds(bench.settings.port, [client(each) for each in islice(cycle(bench.patients), number)])
    _expect(sorted(set(outcomes)) == ["slot_taken", "succeeded"] and outcomes.count("succeeded") == 1)
    return seconds


def one_by_one(bench: Bench, number: int = 100) -> float:
    """The median seconds from POST to `succeeded`, as a client alone sees it."""
    spent = []

    def client() -> Client:
        for turn in islice(bench.turns, number):
            begun = time.perf_counter()
            if (yield from _book(turn)) == "succeeded":  # not so for whoever has a booking at that time from a round before
                spent.append(time.perf_counter() - begun)

    _seconds(bench.settings.port, [client()])
    return median(spent)


def bare_round_trip(bench: Bench, number: int = 100) -> float:
    """The median seconds from `send_task` until the key that a bare task sets is seen in Redis."""
    sender, spent = Sender(bench.settings.broker_url), []
    for _ in range(number):
        bench.broker.delete(bare.KEY)
        begun = time.perf_counter()
        sender._celery.send_task("touch", (bare.KEY,), queue=BOOKING)
        while not bench.broker.exists(bare.KEY):
            pass
        spent.append(time.perf_counter() - begun)
    return median(spent)


def arriving(bench: Bench, rate: int = 200, seconds: int = 5) -> float:
    """The 99th percentile of the seconds from when a booking is due until it reads decided, so many arriving each second."""
    spent: list[float] = []

    def client(turn: Turn, due: float) -> Client:
        yield due
        _expect((yield from _book(turn)) == "succeeded")
        spent.append(time.monotonic() - due)

    turns = list(islice(bench.turns, rate * seconds))
    begun = time.monotonic() + 0.2
    _seconds(bench.settings.port, [client(turn, begun + n / rate) for n, turn in enumerate(turns)])
    return sorted(spent)[int(len(spent) * 0.99)]


def _booking(turn: Turn) -> bytes:
    patient, slot_id = turn
    return post("/api/v1/appointments", patient.token, b'{"slot_id": "%s"}' % str(slot_id).encode())


def _sending(asked: Iterator[bytes]) -> Client:
    for request in asked:
        while (answered := (yield request)).status == 503:
            yield time.monotonic() + _retry_after(answered)
        _expect(answered.status == 202, answered)


def _book(turn: Turn) -> Client:
    """One booking, stored, and read back by its sender once it is decided; returns what became of it."""
    while (answered := (yield _booking(turn))).status == 503:  # turned away, as a client that does as it is told comes back
        yield time.monotonic() + _retry_after(answered)
    request = get(_accepted(answered), turn[0].token, wait=WAIT)
    while True:
        if (answered := (yield request)).status == 503:
            yield time.monotonic() + _retry_after(answered)
            continue
        _expect(answered.status == 200, answered)
        command = json.loads(answered.body)
        if command["status"] != "pending":
            return command.get("error", {}).get("code", command["status"])


def _retry_after(answered: Answered) -> int:
    place = answered.head.index(b"Retry-After: ")
    return int(answered.head[place + 13 :].split(b"\r\n", 1)[0])


def _accepted(answered: Answered) -> str:
    """The address of the command that was stored."""
    _expect(answered.status == 202, answered)
    place = answered.head.index(b"/api/v1/commands/")
    return answered.head[place : answered.head.index(b"\r\n", place)].decode()


def _expect(claim: bool, told: object = None) -> None:
    if not claim:
        raise RuntimeError(f"this is not what was to be measured: {told}")


def _seconds(port: int, clients: Sequence[Client]) -> float:
    """How long the clients take."""
    begun = time.perf_counter()
    drive(port, clients)
    return time.perf_counter() - begun


@contextmanager
def alone(bench: Bench, *names: str) -> Iterator[None]:
    """Nothing but the servers and these services runs meanwhile: two cores are few."""
    others = [each for each in bench.stack._services.values() if each.running and each.name not in names]
    for each in others:
        each.freeze()
    try:
        yield
    finally:
        for each in others:
            each.thaw()


def rows(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """What was measured, in words, and its target; medians of three rounds."""
    rounds: list[dict[str, float]] = []
    _warm_up(bench)
    for _ in range(ROUNDS):
        each = {}
        with alone(bench, "api"):
            each["stored"] = acknowledged_per_second(bench)
            each["bare"] = committed_per_second(bench)
        _settle(bench)
        with alone(bench, "booking"):
            each["decided"] = decided_per_second(bench)
        _settle(bench)
        each["trip"], each["bare trip"] = one_by_one(bench), bare_round_trip(bench)
        each["p99"] = arriving(bench)
        _settle(bench)
        each["booked"], each["cpu"] = end_to_end(bench)
        _settle(bench)
        each["slot"] = one_slot(bench)
        _settle(bench)
        rounds.append(each)

    def middle(of: Callable[[dict[str, float]], float]) -> float:
        return median(of(each) for each in rounds)

    stored, unadorned = middle(lambda each: each["stored"]), middle(lambda each: each["bare"])
    ratio = middle(lambda each: each["stored"] / each["bare"])
    yield "stored and answered 202, to a bare insert", f"{stored:,.0f}/s to {unadorned:,.0f}/s: {ratio:.0%}", "at least 60%"
    yield "decided by Celery workers", f"{middle(lambda each: each['decided']):,.0f}/s", "over 3,000/s"
    trip, bare_trip = middle(lambda each: each["trip"]), middle(lambda each: each["bare trip"])
    ratio = middle(lambda each: each["trip"] / each["bare trip"])
    told = f"{trip * 1000:.1f} ms to {bare_trip * 1000:.1f} ms: {ratio:.1f}"
    yield "from POST to succeeded, idle, to a bare Celery round trip", told, "at most 3"
    yield "the same while 200 a second arrive, p99", f"{middle(lambda each: each['p99']):.2f} s", "at most 1 s"
    yield "stored, decided and read back, 16 clients", f"{middle(lambda each: each['booked']):,.0f}/s", "at least 300/s"
    yield "CPU of the whole stack, each 1,000 of these", f"{middle(lambda each: each['cpu']):.1f} s", "at most 6 s"
    yield "2,000 at once after one slot, all read back", f"{middle(lambda each: each['slot']):.1f} s", "within 4 s"
    yield "memory of the whole stack (PSS) after all this", f"{bench.pss():,} MiB", "under 900 MiB"


def _warm_up(bench: Bench) -> None:
    """Everybody's session is cached, as it is of whoever has just looked at an agenda; each connection has been used."""
    settings, patients = bench.settings, iter(bench.patients)

    def client() -> Client:
        for patient in patients:
            yield get("/api/v1/notices", patient.token)

    _seconds(settings.port, [client() for _ in range(CLIENTS)])
    end_to_end(bench, number=200)


def _settle(bench: Bench) -> None:
    """Wait until all is decided, and take the mails that are left for sent: what comes next shall find the stack idle."""
    with bench.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while connection.execute(_PENDING).scalar_one():
            time.sleep(0.05)
        connection.execute(text("update notices set sent_at = clock_timestamp() where sent_at is null"))
    time.sleep(1.0)


def print_commands() -> None:
    """Measure, and print the table."""
    with stacked() as bench:
        print(f"\n{'commands, medians of ' + str(ROUNDS) + ' rounds':58}{'measured':>34}  target", flush=True)
        for name, measured, target in rows(bench):
            print(f"  {name:56}{measured:>34}  {target}", flush=True)


if __name__ == "__main__":
    print_commands()
