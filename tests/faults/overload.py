"""What the API does when three times as much is asked of it as it can do: `python -m tests.faults.overload`.

The stack has one half of the cores and whoever asks the other. What it does at its best is measured by clients that ask again as
soon as they are answered; then requests come at three times that rate, whether or not earlier ones were answered.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from domain import logs
from local.crowd import Crowd, gather
from local.servers import free_port
from tests.faults.clients import SETTINGS
from tests.faults.ground import quantile
from tests.faults.stack import FaultStack

TIMES: Final = 3
AT_ONCE: Final = {"reads": 128, "bookings": 32}  # clients for each core, who find out what the stack can do
CONNECTIONS: Final = 6000  # for as many requests as may be under way
GIVE_UP_SECONDS: Final = 10.0
API: Final = "/api/v1"


@dataclass(slots=True)
class Told:
    """What a crowd of askers was answered."""

    seconds: float = 0.0
    asked: int = 0
    statuses: Counter[int] = field(default_factory=Counter)  # 0: no answer
    waits: list[float] = field(default_factory=list)  # of those who were served, from when they were to ask
    without_retry_after: int = 0

    @property
    def served(self) -> int:
        """How many were given what they asked for."""
        return self.statuses[200] + self.statuses[202]

    @property
    def rate(self) -> float:
        """How many were served each second."""
        return self.served / self.seconds


@dataclass(slots=True)
class Measured:
    """One kind of request: at its best, and under too much of it."""

    what: str
    best: Told
    under: Told

    @property
    def share(self) -> float:
        """How much of its best the stack still did."""
        return self.under.rate / self.best.rate

    @property
    def p99(self) -> float:
        """Seconds within which 99% of those who were let in had their answer."""
        return quantile(self.under.waits, 0.99)

    def __str__(self) -> str:
        shed = self.under.statuses[503]
        others = {status: count for status, count in self.under.statuses.items() if status not in (200, 202, 503)}
        return (
            f"{self.what}: best {self.best.rate:,.0f}/s; of {self.under.asked / self.under.seconds:,.0f}/s asked"
            f" {self.under.rate:,.0f}/s were served ({self.share:.0%}), 99% of them within {self.p99:.2f} s;"
            f" {shed:,} were answered 503" + (f", others {others}" if others else "")
        )


class Asker:
    """Asks over many connections kept alive, in one thread, with as little work for each request as there can be."""

    def __init__(self, port: int, requests: Iterator[bytes]) -> None:
        self._port, self._requests = port, requests
        self._poll = select.epoll()
        self._idle: list[socket.socket] = []
        self._asked: dict[int, tuple[socket.socket, float, bytes]] = {}
        self._given_up: list[tuple[float, int, float]] = []
        self._told = Told()

    def at_its_best(self, seconds: float, clients: int) -> Told:
        """What so many clients are told who ask again as soon as they are answered."""
        self._connect_many()
        ends = time.monotonic() + seconds
        for _ in range(clients):
            self._ask(time.monotonic())
        return self._go_on(seconds, lambda now: self._ask(now) if now < ends else None, answered=True)

    def at_a_rate(self, rate: float, seconds: float) -> Told:
        """What is told to so many who ask each second, whenever their time has come."""
        chance = random.Random(7)  # nosec B311
        self._connect_many()
        due = began = time.monotonic()

        def ask(now: float) -> None:
            nonlocal due
            while due <= now and due < began + seconds:
                self._ask(due)
                due += chance.expovariate(rate)

        return self._go_on(seconds, ask, answered=False)

    def _go_on(self, seconds: float, ask: Callable[[float], None], *, answered: bool) -> Told:
        began = time.monotonic()
        self._told.seconds = seconds
        while (now := time.monotonic()) < began + seconds or self._asked:
            if not answered:
                ask(now)
            for number, _ in self._poll.poll(0.001, 1024):
                if self._hear(number, began + seconds) and answered:
                    ask(time.monotonic())
            while self._given_up and self._given_up[0][0] < now:
                _, number, due = heapq.heappop(self._given_up)
                if number in self._asked and self._asked[number][1] == due:
                    self._end(number, 0)
        return self._told

    def _connect_many(self) -> None:
        """As many connections stand open in either case."""
        self._idle += [self._connect() for _ in range(CONNECTIONS // 3)]

    def _connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=GIVE_UP_SECONDS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        self._poll.register(client, select.EPOLLIN)
        return client

    def _ask(self, due: float) -> None:
        if len(self._asked) >= CONNECTIONS:
            return
        client = self._idle.pop() if self._idle else self._connect()
        self._told.asked += 1
        self._asked[client.fileno()] = (client, due, b"")
        heapq.heappush(self._given_up, (due + GIVE_UP_SECONDS, client.fileno(), due))
        try:
            client.send(next(self._requests))
        except OSError:
            self._end(client.fileno(), 0)

    def _hear(self, number: int, until: float) -> bool:
        """Read what came; whether that was the end of an answer."""
        if number not in self._asked:  # an idle connection that was closed
            for client in self._idle:
                if client.fileno() == number:
                    self._idle.remove(client)
                    client.close()
                    return False
            return False
        client, due, before = self._asked[number]
        try:
            received = client.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            received = b""
        if not received:
            self._end(number, 0)
            return True
        received = before + received
        head, blank, body = received.partition(b"\r\n\r\n")
        if not blank or len(body) < (_length(head) if head[9:12] not in (b"304", b"204") else 0):
            self._asked[number] = (client, due, received)
            return False
        status = int(head[9:12])
        now = time.monotonic()
        if status in (200, 202) and now <= until:
            self._told.waits.append(now - due)
        elif status == 503:
            self._told.without_retry_after += b"Retry-After: " not in head
        self._end(number, status if now <= until or status not in (200, 202) else -1, keep=b"Connection: close" not in head)
        return True

    def _end(self, number: int, status: int, *, keep: bool = False) -> None:
        client, _, _ = self._asked.pop(number)
        if status >= 0:  # what was served only when the time was over is no part of what was done in it
            self._told.statuses[status] += 1
        if keep:
            self._idle.append(client)
        else:
            client.close()


def _length(head: bytes) -> int:
    at = head.find(b"Content-Length: ")
    return int(head[at + 16 : (head.find(b"\r", at) + 1 or len(head) + 1) - 1]) if at >= 0 else 0


def _reads(port: int, crowd: Crowd, chance: random.Random) -> Iterator[bytes]:
    """What anybody looks at: a doctor, an agenda, a page of a search."""
    doctors = [each.id for each in crowd.doctors]
    paths = [f"{API}/doctors/{each}" for each in doctors] + [f"{API}/doctors/{each}/agenda" for each in doctors]
    paths += [f"{API}/doctors?specialty=cardiologia"] * (len(doctors) // 2)
    chance.shuffle(paths)
    return cycle([f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n".encode() for path in paths])


def _bookings(port: int, crowd: Crowd, slots: list[str], chance: random.Random) -> Iterator[bytes]:
    """Requests for a slot: everybody wants any of those there are."""
    while True:
        body = json.dumps({"slot_id": chance.choice(slots)})
        lines = [
            f"POST {API}/appointments HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Content-Type: application/json",
            f"Authorization: Bearer {chance.choice(crowd.patients).token}",
            f"Idempotency-Key: {uuid4()}",
            f"Content-Length: {len(body)}",
        ]
        yield ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def ask(what: str, port: int, crowd: Path, cores: set[int], seconds: float, rate: float | None = None) -> Told:
    """Have another process ask, on cores of its own: as fast as it is answered, or at a rate."""
    arguments = [what, str(port), str(crowd), ",".join(map(str, cores)), str(seconds), str(rate or 0)]
    asked = subprocess.run(
        [sys.executable, "-m", "tests.faults.overload", *arguments], stdout=subprocess.PIPE, check=True, timeout=seconds + 60
    )
    told = json.loads(asked.stdout)
    return Told(**{**told, "statuses": Counter({int(status): count for status, count in told["statuses"].items()})})


def measure(what: str, port: int, crowd: Path, cores: set[int], *, best: float, under: float) -> Measured:
    """One kind of request: so many seconds at its best, and so many under too much of it."""
    ask(what, port, crowd, cores, best / 2)  # until everything is filled that is filled by asking
    done = ask(what, port, crowd, cores, best)
    return Measured(what, done, ask(what, port, crowd, cores, under, TIMES * done.rate))


def halves() -> tuple[set[int], set[int]]:
    """The cores of the stack, and of those who ask; the same if there is but one."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[: len(cores) // 2] or cores), set(cores[len(cores) // 2 :])


def stand(folder: Path) -> FaultStack:
    """A stack for this on its half of the cores, not yet started."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    theirs = str(len(halves()[0]))
    return FaultStack(folder, free_port(), **SETTINGS, API_WORKERS=theirs, BOOKING_WORKERS=theirs)


def main() -> None:
    """Measure reads and bookings, and say what came of it; or, as the process that asks, ask."""
    if len(sys.argv) > 1:
        _answer(*sys.argv[1:])
        return
    own, others = halves()
    os.sched_setaffinity(0, own)
    logs.configure("WARNING")
    with tempfile.TemporaryDirectory() as folder, stand(Path(folder) / "state") as stack:
        file = Path(folder) / "crowd.json"
        gather(stack.engine, stack.settings, doctors=100, patients=500).write(file)
        for what in ("reads", "bookings"):
            print(measure(what, stack._settings.port, file, others, best=8, under=20), flush=True)


def _answer(what: str, port: str, crowd: str, cores: str, seconds: str, rate: str) -> None:
    own = {int(core) for core in cores.split(",")}
    os.sched_setaffinity(0, own)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    chance = random.Random(f"{what}{rate}")  # nosec B311
    everybody = Crowd.read(Path(crowd))
    if what == "reads":
        requests = _reads(int(port), everybody, chance)
    else:
        requests = _bookings(int(port), everybody, _slots(int(port), everybody), chance)
    asker = Asker(int(port), requests)
    if float(rate):
        told = asker.at_a_rate(float(rate), float(seconds))
    else:
        told = asker.at_its_best(float(seconds), AT_ONCE[what] * len(own))
    kept = {"seconds": told.seconds, "asked": told.asked, "statuses": dict(told.statuses), "waits": told.waits}
    json.dump({**kept, "without_retry_after": told.without_retry_after}, sys.stdout)


def _slots(port: int, crowd: Crowd) -> list[str]:
    slots: list[str] = []
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    for doctor in crowd.doctors[:40]:
        connection.request("GET", f"{API}/doctors/{doctor.id}/agenda?days=14")
        body: Any = json.loads(connection.getresponse().read())
        slots += [slot["id"] for day in body["days"] for slot in day["slots"]]
    connection.close()
    return slots


if __name__ == "__main__":
    main()
