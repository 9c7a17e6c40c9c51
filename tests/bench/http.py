"""Measures hot reads over HTTP beside Flask views that return a constant of the same size from the same gunicorn."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from redis import Redis
from sqlalchemy import create_engine, text

from domain.cache import Cache
from domain.settings import Settings
from local.servers import free_port
from tests.bench import constant
from tests.factories import Accounts, bearer
from tests.rows import add_doctor, add_slot, tomorrow

ROUNDS = 5
SECONDS = 0.6  # for each server and read in a round
CONNECTIONS = 16  # kept open, each with one request after another
CPU_TARGET = 0.45  # seconds of the whole stack, for 1,000 reads

PUBLIC, PRIVATE, HELD = 1.10, 1.00, 1.20  # of what the constant gives


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """One read: what is sent, and how often a second it should be answered, as a part of what the constant is."""

    name: str
    path: str
    target: float
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> bytes:
        """What is sent."""
        headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "bench", **self.headers}.items())
        return f"GET {self.path} HTTP/1.1\r\n{headers}\r\n".encode()


@dataclass(slots=True)
class Slice:
    """What a server did for a while: answers, in how many seconds, with how many CPU-seconds of the server and of all."""

    answers: int
    seconds: float
    own: float
    whole: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; medians of the rounds."""

    name: str
    per_second: float
    ratio: float  # of throughput, to the constant's
    target: float | None
    cpu: float  # seconds of the whole stack for 1,000
    cpu_ratio: float  # of the API's CPU for each request, the constant's to this


def http_reads(settings: Settings) -> Iterator[Row]:
    """Each read through the layer of hot reads; then one of each kind without it, as a measure of what it saves."""
    with ExitStack() as stack:
        api = stack.enter_context(served("api.wsgi:app", settings))
        flask = stack.enter_context(served("api.wsgi:app", settings, HOT_READS="off"))
        reads = prepared(settings)
        sizes = {read: len(ask(api, read.request())[1]) for read in reads}
        held = [
            Read(f"{read.name}, held (304)", read.path, HELD, {**read.headers, "If-None-Match": _etag(api, read)})
            for read in reads
        ]
        told = ",".join(map(str, sorted(set(sizes.values()))))
        bare = stack.enter_context(served("tests.bench.constant:serve()", settings, **{constant.SIZES: told}))
        sizes |= {late: sizes[read] for late, read in zip(held, reads, strict=True)}
        compared = [(api, read) for read in reads] + [(api, held[0]), (api, held[3])] + [(flask, reads[1]), (flask, reads[3])]
        measured: dict[int, list[tuple[Slice, Slice]]] = {place: [] for place in range(len(compared))}
        others = _servers(settings)
        for _ in range(ROUNDS):
            for place, (server, read) in enumerate(compared):
                control = Read("", f"/{sizes[read]}", 1.0)
                measured[place].append((hammer(server, read, others), hammer(bare, control, others)))
        for place, (server, read) in enumerate(compared):
            rounds = measured[place]
            per_second = [ours.answers / ours.seconds for ours, _ in rounds]
            yield Row(
                read.name if server is api else f"{read.name}, by Flask",
                median(per_second),
                median(each / (bare.answers / bare.seconds) for each, (_, bare) in zip(per_second, rounds, strict=True)),
                read.target if server is api else None,
                median(ours.whole / ours.answers * 1000 for ours, _ in rounds),
                median((bare.own / bare.answers) / (ours.own / ours.answers) for ours, bare in rounds),
            )


def print_reads(settings: Settings) -> None:
    """Measure, and print the table."""
    title = f"read over HTTP, one gunicorn worker, median of {ROUNDS}"
    print(f"{title:50}{'a second':>10}{'to constant':>12}  {'target':14}{'CPU s/1000':>11}  {'target':14}{'CPU ratio':>10}")
    for row in http_reads(settings):
        least, most = ("", "") if row.target is None else (f"at least {row.target:.2f}", f"at most {CPU_TARGET}")
        print(f"  {row.name:48}{row.per_second:>10,.0f}{row.ratio:>12.2f}  {least:14}", end="")
        print(f"{row.cpu:>11.3f}  {most:14}{row.cpu_ratio:>10.2f}", flush=True)


def prepared(settings: Settings) -> list[Read]:
    """The reads, of things that are there: a page of 20 doctors, 48 slots in a week, an appointment of two people."""
    engine = create_engine(settings.database_url, hide_parameters=True)
    cache = Cache(settings, engine)
    cache.start()
    with Redis.from_url(settings.broker_url) as broker:
        accounts = Accounts(engine, settings, cache, broker)
        doctor, patient = accounts.doctor(), accounts.patient()
        appointment_id = accounts.appointment(doctor, patient, hours=300)
    with engine.begin() as connection:
        for _ in range(40):
            add_doctor(connection, settings)
        for n in range(48):
            add_slot(connection, doctor.id, tomorrow(n // 8 * 24 + n % 8 / 2))
        command_id = connection.execute(text("select id from commands where actor_id = :id"), {"id": patient.id}).scalar_one()
    cache.stop()
    engine.dispose()
    return [
        Read("a doctor", f"/api/v1/doctors/{doctor.id}", PUBLIC),
        Read("an agenda of 7 days", f"/api/v1/doctors/{doctor.id}/agenda", PUBLIC),
        Read("a search page of 20", "/api/v1/doctors", PUBLIC),
        Read("a command, by its patient", f"/api/v1/commands/{command_id}", PRIVATE, bearer(patient.access)),
        Read("an appointment, by its patient", f"/api/v1/appointments/{appointment_id}", PRIVATE, bearer(patient.access)),
        Read("an appointment, by its doctor", f"/api/v1/appointments/{appointment_id}", PRIVATE, bearer(doctor.access)),
    ]


@dataclass(frozen=True, slots=True)
class Served:
    """A gunicorn, and where it listens."""

    port: int
    process: psutil.Process


@contextmanager
def served(application: str, settings: Settings, **environ: str) -> Iterator[Served]:
    """An application served as production serves it, by one process."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", application],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **settings.given, "PORT": str(port), "API_WORKERS": "1", **environ},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield Served(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def hammer(server: Served, read: Read, others: list[psutil.Process]) -> Slice:
    """One read again and again over all connections, for a while."""
    request = read.request()
    head, body = ask(server, request)  # whatever had to be filled is
    status, size = head[:13], len(head) + len(body)
    connections = {}
    poll = select.epoll()
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(connection, select.EPOLLIN)
        connections[connection.fileno()] = connection
    due = dict.fromkeys(connections, size)
    answers = 0
    own, whole = _cpu([server.process]), _cpu([server.process, *others])
    begun = time.perf_counter()
    for connection in connections.values():
        connection.sendall(request)
    while (spent := time.perf_counter() - begun) < SECONDS:
        for place, _ in poll.poll():
            connection = connections[place]
            received = connection.recv(65536)
            if due[place] == size and not received.startswith(status):
                raise AssertionError(f"{read.path}: {received[:200]!r}")
            due[place] -= len(received)
            if due[place] == 0:  # every answer has the same length
                answers += 1
                due[place] = size
                connection.sendall(request)
    measured = Slice(answers, spent, _cpu([server.process]) - own, _cpu([server.process, *others]) - whole)
    for connection in connections.values():
        connection.close()
    poll.close()
    return measured


def ask(server: Served, request: bytes) -> tuple[bytes, bytes]:
    """The second answer to a request, by when all is filled: its head and its body."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        for _ in range(2):
            connection.sendall(request)
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            head, separator, body = received.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            while len(body) < length:
                body += connection.recv(65536)
    return head + separator, body


def _etag(server: Served, read: Read) -> str:
    head, _ = ask(server, read.request())
    return head.partition(b"ETag: ")[2].split(b"\r\n")[0].decode()


def _servers(settings: Settings) -> list[psutil.Process]:
    """The processes of Postgres and of the cache's Redis."""
    engine = create_engine(settings.database_url)
    with engine.connect() as connection, Redis.from_url(settings.cache_url) as cache:
        postgres = psutil.Process(connection.execute(text("select pg_backend_pid()")).scalar_one()).parent()
        redis = psutil.Process(cache.info("server")["process_id"])
    engine.dispose()
    return [postgres, redis]


def _cpu(processes: list[psutil.Process]) -> float:
    """CPU-seconds of processes and all their children, so far."""
    times = [each.cpu_times() for process in processes for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    from tests.bench.__main__ import benched

    with benched() as bench:
        print_reads(bench.settings)
