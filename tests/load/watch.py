"""What a running stack takes of the machine, by process: CPU-seconds so far, and memory as it goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

# What stands in a command line, and what we call the process.
NAMES = {
    "gunicorn": "api",
    "booking@": "booking",
    "notifications@": "notifications",
    "workers.relay": "relay",
    "workers.flower": "flower",
    "local.": "local",
    "valkey": "valkey",
    "postgres": "postgres",
}
SERVERS = ("valkey", "postgres")


class Watch:
    """Looks at a process and all its descendants now and then, from a thread, until the block is left."""

    def __init__(self, pid: int, *, every: float = 10.0) -> None:
        self._leader = psutil.Process(pid)
        self._every = every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self.memory: list[tuple[float, Counter[str]]] = []  # when, and bytes by name: proportional set size (PSS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join()

    def cpu(self) -> Counter[str]:
        """CPU-seconds by name, since each process that runs now was started."""
        spent: defaultdict[str, float] = defaultdict(float)
        for name, process in self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                spent[name] += times.user + times.system
        return Counter(spent)

    def _look(self) -> None:
        while True:
            self.memory.append((time.monotonic(), self._pss()))
            if self._stopped.wait(self._every):
                return

    def _pss(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for name, process in self._processes():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        held[name] += int(line.split()[1]) * 1024
        return held

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        found = []
        with contextlib.suppress(psutil.Error):
            for process in (self._leader, *self._leader.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    line = " ".join(process.cmdline()) or process.name()
                    found.append((next((name for part, name in NAMES.items() if part in line), "other"), process))
        return found


def total(held: Counter[str], *, servers: bool) -> int:
    """The bytes of the servers, or of all processes that are ours."""
    return sum(size for name, size in held.items() if (name in SERVERS) is servers)
