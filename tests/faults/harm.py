"""What the tests of faults plant in a process of the stack (see tests/faults/patched.py): deaths at one point, clocks, bounds.

A process is told by its environment: `DIE_AT` names a point, and the file `DIE_FILE` orders a death there; of all who come to the
point one finds it, and dies. `SKEW_SECONDS` is what Python's wall clocks are ahead. `MEMORY_BYTES` is all it may address.
`NO_LANE_LOCKS` lets it drain lanes that others hold, and `TURN_SECONDS` is how often a relay takes its turn.
"""

from __future__ import annotations

import functools
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Final

# Each is a module, what is called in it, and whether death comes before or after the call.
BOOKING_POINTS: Final = {
    "before the transaction": ("domain.lanes", "decide_batch", "before"),
    "decided, not committed": ("domain.lanes", "decide_batch", "after"),
    "committed, cache not told": ("domain.cache", "Cache.finish", "before"),
    "cache told, batch not finished": ("domain.cache", "Cache._make_known", "after"),
    "finished, task not acknowledged": ("domain.lanes", "Drainer.drain", "after"),
}
API_POINTS: Final = {
    "asked, not stored": ("domain.inbox", "send", "before"),
    "stored, nobody told": ("domain.inbox", "send", "after"),
    "lane handed to the sender, not answered": ("api.commands", "wake", "after"),
}
MAIL_POINTS: Final = {"mail sent, not noted": ("workers.mail", "Courier.send", "after")}
POINTS: Final = BOOKING_POINTS | API_POINTS | MAIL_POINTS


def do() -> None:
    """Do to this process what its environment says."""
    if point := os.environ.get("DIE_AT"):
        _plant(*POINTS[point], os.environ["DIE_FILE"])
    if skew := os.environ.get("SKEW_SECONDS"):
        import time_machine

        time_machine.travel(datetime.now(UTC) + timedelta(seconds=float(skew)), tick=True).start()
    if memory := os.environ.get("MEMORY_BYTES"):
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    if os.environ.get("NO_LANE_LOCKS"):
        ignore_lane_locks()
    if turn := os.environ.get("TURN_SECONDS"):
        import_module("workers.relay").TURN_SECONDS = float(turn)  # type: ignore[attr-defined]


def ignore_lane_locks() -> None:
    """Drain lanes whether or not another worker holds them."""
    lanes: Any = import_module("domain.lanes")
    held = "redis.call('EXISTS', 'lane:' .. lane) == 1"
    assert held in lanes._TAKE
    lanes._TAKE = lanes._TAKE.replace(held, "false")


class Deaths:
    """Orders deaths at the points of some processes, one at a time."""

    def __init__(self, folder: Path, point: str) -> None:
        self._order = folder / "die"
        self.environ = {"DIE_AT": point, "DIE_FILE": str(self._order)}

    def order(self) -> None:
        """Have the next who comes to the point die."""
        self._order.touch()

    @property
    def done(self) -> bool:
        """Whether the death that was ordered has come."""
        return not self._order.exists()

    def take_back(self) -> None:
        """Let everybody live, if none has died."""
        self._order.unlink(missing_ok=True)


def _plant(module: str, path: str, when: str, order: str) -> None:
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, import_module(module))
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def deadly(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            _die(order)
        result = original(*arguments, **named)
        if when == "after":
            _die(order)
        return result

    setattr(owner, name, deadly)


def _die(order: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(order)
        os.kill(os.getpid(), signal.SIGKILL)
