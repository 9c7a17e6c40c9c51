"""What every row of the fault matrix stands on: a stack with a crowd, loads that are judged, figures beside their limits."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from local.crowd import Crowd, Member
from tests.faults.checker import Figures, Violation, figures, judge
from tests.faults.clients import Load
from tests.faults.history import Call, History
from tests.faults.stack import FaultStack

READY_SECONDS: Final = 60.0
DECIDED_SECONDS: Final = 90.0


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that was measured, and the limit that it must keep, if it has one."""

    what: str
    measured: float
    unit: str = ""
    most: float | None = None
    least: float | None = None

    @property
    def held(self) -> bool:
        """Whether it kept its limit."""
        return (self.most is None or self.measured <= self.most) and (self.least is None or self.measured >= self.least)

    def __str__(self) -> str:
        limits = [f"at most {self.most:g}"] if self.most is not None else []
        limits += [f"at least {self.least:g}"] if self.least is not None else []
        measured = f"{self.measured:,.0f}" if float(self.measured).is_integer() else f"{self.measured:.2f}"
        return f"{self.what} {measured}{self.unit and ' ' + self.unit}" + (f" ({', '.join(limits)})" if limits else "")


@dataclass(slots=True)
class Run:
    """One load: while it goes on, and what came of it."""

    load: Load
    history: History
    figures: Figures | None = None

    def calls(self, since: float = 0.0, until: float = float("inf")) -> list[Call]:
        """The calls that began in a time of the monotonic clock."""
        return [call for call in self.history.calls() if since <= call.begin.t < until]

    @property
    def booked(self) -> int:
        """How many bookings have been acknowledged so far."""
        return self.load.shared.bookings

    def spread(self, bookings: int, times: int) -> Iterator[int]:
        """Come back so many times, spread evenly over so many bookings to come."""
        begun = self.booked
        for number in range(times):
            self.await_bookings(begun + bookings * (number + 1) // (times + 1))
            yield number
        self.await_bookings(begun + bookings)

    def await_bookings(self, number: int, seconds: float = 900.0) -> None:
        """Wait until so many bookings have been acknowledged."""
        until(lambda: self.booked >= number, seconds)

    def answer_p99(self, since: float = 0.0, until: float = float("inf")) -> float:
        """How long 99% of the calls of a time took at most, unanswered ones included; those that wait on purpose are left out."""
        calls = self.calls(since, until)
        return quantile([call.end.t - call.begin.t for call in calls if call.end and call.begin.f != "command"], 0.99)

    def unanswered(self, since: float = 0.0, until: float = float("inf")) -> int:
        """How many calls of a time were answered by a 5xx, or not at all."""
        return sum(call.outcome == "info" for call in self.calls(since, until))

    def acknowledged_after(self, instant: float) -> float:
        """How long after an instant the first 202 came."""
        ends = (call.end for call in self.history.calls())
        return min((end.t - instant for end in ends if end and end.status == 202 and end.t >= instant), default=float("inf"))


@dataclass(slots=True)
class Ground:
    """Where a row is run: the stack and its crowd, how large the row is to be, and what it has measured so far."""

    stack: FaultStack
    crowd: Crowd
    spare: list[Member]  # patients who take part in no load
    folder: Path
    scale: float
    seed: int
    chance: random.Random = field(init=False)
    measured: list[Figure] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # nosec B311

    def many(self, number: int, *, least: int = 1) -> int:
        """A number of the matrix, as large as this run is to be."""
        return max(least, round(number * self.scale))

    def long(self, seconds: float, *, least: float = 3.0) -> float:
        """A time of the matrix, as long as this run is to be."""
        return max(least, seconds * self.scale)

    def note(self, what: str, measured: float, unit: str = "", *, most: float | None = None, least: float | None = None) -> None:
        """Keep a figure."""
        self.measured.append(Figure(what, measured, unit, most, least))

    @contextlib.contextmanager
    def load(self, *, rate: float | None = None, clients: int = 16) -> Iterator[Run]:
        """A load, from its first client until all that it asked for is decided; `rate` is of all that it does."""
        history = History(self.folder / f"history-{time.monotonic_ns()}.jsonl")
        run = Run(Load(self.stack.base_url, self.crowd, history, self.chance.randrange(2**32), clients), history)
        self.runs.append(run)
        run.load.start(rate=rate)
        try:
            yield run
        finally:
            run.load.stop()
        until(lambda: not self.overdue(), DECIDED_SECONDS)
        run.figures = figures(history, self.stack.engine)

    def judge(self, patience: float = 600.0) -> None:
        """Judge every load once all has come to rest, or so many seconds have passed: whatever promise was broken is kept.

        That may take minutes: a load books faster than one process mails, and a mail that nobody noted is tried again after one.
        """
        for run in self.runs:
            mail = self.stack.mailbox.folder
            self.violations += judge(run.history, self.stack.engine, self.stack.settings, mail, patience=patience)

    @property
    def address(self) -> str:
        """Host and port of the API."""
        return self.stack.base_url.removeprefix("http://")

    def overdue(self) -> bool:
        """Whether anything waits that should have been decided by now."""
        late = (
            "select exists (select from commands where status = 'pending' and received_at < clock_timestamp() - interval '2 s')"
        )
        return bool(self.stack.superuser(late)[0][0])

    def settle(self) -> None:
        """Wait until all that has been received by now is decided."""
        now = self.stack.superuser("select clock_timestamp()::text")[0]
        left = "select exists (select from commands where status = 'pending' and received_at < %s)"
        until(lambda: not self.stack.superuser(left, now)[0][0])

    def note_decisions(self, run: Run, *, p99: float | None, most: float | None = 30.0) -> None:
        """Keep how many bookings there were, and how long decisions took."""
        assert run.figures is not None
        self.note("bookings", run.figures.booked)
        _, last, longest = run.figures.to_decision
        self.note("p99 to decision", last, "s", most=p99)
        self.note("longest", longest, "s", most=most)


class Probe:
    """Asks for one path at a steady rate, by a clock of its own, so that a slow answer hides none after it."""

    def __init__(self, base_url: str, path: str, *, each: float = 0.05, headers: Mapping[str, str] | None = None) -> None:
        self._address = base_url.removeprefix("http://")
        self._path, self._each, self._headers = path, each, dict(headers or {})
        self._stopped = threading.Event()
        self.seconds: list[float] = []
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._ask, args=(place,), daemon=True) for place in range(4)]

    def __enter__(self) -> Probe:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def p99(self) -> float:
        """How long 99% of the answers took at most, from when they should have been asked for."""
        return quantile(self.seconds, 0.99)

    def _ask(self, place: int) -> None:
        due = time.monotonic() + place * self._each
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            self.statuses.append(ask(self._address, self._path, self._headers))
            self.seconds.append(time.monotonic() - due)
            due += self._each * len(self._threads)


def ask(address: str, path: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: str | None = None) -> int:
    """The status of one answer on a connection of its own; 0 if none came within 15 seconds."""
    connection = http.client.HTTPConnection(address, timeout=15)
    try:
        connection.request(method, path, body, dict(headers or {}))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def quantile(values: list[float], share: float) -> float:
    """The value that so large a share of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def until(claim: Callable[[], Any], seconds: float = READY_SECONDS, pause: float = 0.05) -> float:
    """Wait until a claim holds, and tell how long that took. Raises TimeoutError."""
    begun = time.monotonic()
    while not claim():
        if time.monotonic() - begun > seconds:
            raise TimeoutError("it never came true")
        time.sleep(pause)
    return time.monotonic() - begun
