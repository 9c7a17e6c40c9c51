"""`make restart` under a load of people who read and book, again and again: `python -m tests.faults.restarts TIMES`."""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from local.servers import free_port
from tests.faults.ground import quantile, until

ROOT = Path(__file__).parents[2]
API = "/api/v1"


@dataclass(slots=True)
class Told:
    """What people were answered while the stack was restarted."""

    restarts: int = 0
    failed: list[str] = field(default_factory=list)  # no answer, or a 5xx
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    undecided: int = 0
    code: int = 0  # of `make up`, at the end

    def __str__(self) -> str:
        return (
            f"{self.restarts} restarts: {sum(self.statuses.values()):,} answers, {len(self.failed)} failed {self.failed[:3]},"
            f" 99% within {quantile(self.waits, 0.99):.2f} s; {self.undecided} commands undecided; exit code {self.code}"
        )


class Person:
    """Somebody on one connection that is kept alive, or on a new one each time; an answer that never comes is a failure."""

    def __init__(self, port: int, told: Told, *, fresh: bool) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=25)
        self._told, self._fresh = told, fresh

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        """One answer, or None."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid4())} if body is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        began = time.monotonic()
        try:
            self._connection.request(method, API + path, json.dumps(body) if body is not None else None, headers)
            answer = self._connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._told.failed.append(f"{method} {path}: {error!r}")
            self._connection.close()
            return None
        self._told.waits.append(time.monotonic() - began)
        self._told.statuses[answer.status] += 1
        if answer.status >= 500:
            self._told.failed.append(f"{method} {path}: {answer.status} {said[:200]!r}")
        if self._fresh:
            self._connection.close()
        return json.loads(said) if said else None


def rehearse(times: int, folder: Path) -> Told:
    """Bring a stack up, restart it so often under load, and take it down."""
    told, stopped, port = Told(), threading.Event(), free_port()
    environ = {**os.environ, "STATE_DIR": str(folder), "PORT": str(port), "FLOWER": "off", "RATE_LIMITS": "off"}
    environ |= {"MAX_OPEN_REQUESTS": "1000", "MAX_OPEN_REQUESTS_PER_DOCTOR": "1000"}
    with (folder.with_suffix(".printed")).open("w+") as printed:
        up = subprocess.Popen([sys.executable, "-m", "local.up"], cwd=ROOT, env=environ, stdout=printed, stderr=printed)
        try:
            until(lambda: (folder / "demo.json").exists() or up.poll() is not None, 90)
            until(lambda: "\nready " in Path(printed.name).read_text() or up.poll() is not None, 90)
            demo = json.loads((folder / "demo.json").read_text())
            people = [threading.Thread(target=_live, args=(port, demo, told, stopped, number)) for number in range(8)]
            for each in people:
                each.start()
            for _ in range(times):
                subprocess.run(
                    [sys.executable, "-m", "local.restart"], cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL
                )
                told.restarts += 1
            stopped.set()
            for each in people:
                each.join()
        finally:
            stopped.set()
            up.terminate()
            told.code = up.wait(40)
    return told


def _live(port: int, demo: Any, told: Told, stopped: threading.Event, number: int) -> None:
    """Read and book until it is over; every other one also waits for the decision."""
    chance, person = random.Random(number), Person(port, told, fresh=number % 2 == 0)  # nosec B311
    patient = demo["patients"][number % len(demo["patients"])]
    tokens, until_then = "", 0.0
    while not stopped.is_set():
        if time.monotonic() > until_then:
            login = person.ask("POST", "/auth/patient", {"login": patient["login"], "password": patient["password"]})
            tokens, until_then = (login or {}).get("access_token", ""), time.monotonic() + 600
        doctor = chance.choice(demo["doctors"])["id"]
        agenda = person.ask("GET", f"/doctors/{doctor}/agenda?days=14")
        slots = [slot["id"] for day in (agenda or {}).get("days", ()) for slot in day["slots"]]
        if slots and tokens:
            command = person.ask("POST", "/appointments", {"slot_id": chance.choice(slots)}, tokens)
            deadline = time.monotonic() + 30
            while command and command.get("status") == "pending" and number % 4 != 3:
                time.sleep(0.1)
                if time.monotonic() > deadline:
                    told.undecided += 1
                    break
                command = person.ask("GET", f"/commands/{command['id']}", token=tokens) or command
        time.sleep(chance.expovariate(5))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="healthmed-restarts-") as place:
        result = rehearse(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(place) / "state")
    print(result)
    sys.exit(bool(result.failed or result.undecided or result.code))
