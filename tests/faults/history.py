"""What real clients saw: each call and what came of it, in one file that any thread or process may add to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["ok", "fail", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The beginning of a call, or its end: `ok` or `fail` if an answer tells what happened, `info` if nobody can know.

    `t` is this machine's monotonic clock in seconds, the same in all its processes. `f` is what was asked: a kind of command,
    or what was read (`command`, `appointment`, `appointments`, `agenda`, `availability`). Ids are as the API writes them.
    """

    op: str  # both events of one call carry it; the request's X-Request-ID too, and so the command that it stored
    process: str  # the client: one call at a time
    kind: Literal["invoke"] | Outcome
    f: str
    t: float
    actor: str | None = None  # whose token it was
    key: str | None = None  # the Idempotency-Key
    doctor: str | None = None
    slot: str | None = None
    appointment: str | None = None
    command: str | None = None
    status: int | None = None  # of HTTP; None if no answer came
    etag: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)  # what the answer showed, or why there was none


@dataclass(frozen=True, slots=True)
class Call:
    """A call as a whole. `end` is None if its client was ended before any answer came."""

    begin: Event
    end: Event | None

    @property
    def outcome(self) -> Outcome:
        """What its client knows of it."""
        return "info" if self.end is None or self.end.kind == "invoke" else self.end.kind


class History:
    """Events of many threads and processes, a line each in `file`, whole or not at all."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if not file.stat().st_size:  # by which an instant of the database's clock is put between those of the clients
            os.write(self._output, json.dumps({"monotonic": time.monotonic(), "clock": time.time()}).encode() + b"\n")

    def add(self, event: Event) -> None:
        """Append one event: one write, which the kernel doesn't mix with another's."""
        told = {name: value for name, value in asdict(event).items() if value not in (None, {})}
        os.write(self._output, json.dumps(told, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Add nothing more."""
        os.close(self._output)

    def clock(self) -> tuple[float, float]:
        """How far the wall clock is ahead of the monotonic one, in seconds, and by how much that has changed meanwhile."""
        with self.file.open() as lines:
            began = json.loads(next(lines))
        ahead = time.time() - time.monotonic()
        return ahead, abs(ahead - (began["clock"] - began["monotonic"]))

    def events(self) -> Iterator[Event]:
        """All events so far, in the order in which they were added."""
        known = {each.name for each in fields(Event)}
        with self.file.open() as lines:
            next(lines)
            for line in lines:
                yield Event(**{name: value for name, value in json.loads(line).items() if name in known})

    def calls(self) -> list[Call]:
        """All calls so far, by when they began."""
        ends: dict[str, Event] = {}
        begins: list[Event] = []
        for event in self.events():
            if event.kind == "invoke":
                begins.append(event)
            else:
                ends[event.op] = event
        return [Call(begin, ends.get(begin.op)) for begin in sorted(begins, key=lambda event: event.t)]
