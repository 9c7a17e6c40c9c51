"""`make demonstration`: writes the real calls and answers of docs/infrastructure.md, from a stack that it then breaks."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from domain.cache import BELIEVED_SECONDS
from local.exchange import Answer, call
from local.servers import free_port

DOCUMENT = Path("docs/infrastructure.md")
READY_SECONDS = 90.0
FIGURES = re.compile(
    r"^healthmed_(commands_decided_total|batch_commands_sum|backlog_commands|backlog_age_seconds|cache_in_use|relay_turns_total|"
    r"oldest_due_notice_seconds|cache_reads_total|lane_locks_total)\b.*$",
    re.MULTILINE,
)

Json = dict[str, Any]


class Stack:
    """A stack of `make up`, what it said, and the people of its demonstration."""

    def __init__(self, folder: Path) -> None:
        self.folder, port = folder, free_port()
        environ = {**os.environ, "STATE_DIR": str(folder), "PORT": str(port)}
        self.process = subprocess.Popen([sys.executable, "-m", "local.up"], env=environ, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line.rstrip())
            if line.startswith("ready "):
                break
        self.said = "\n".join(said).replace(str(folder), ".state")
        self.demo: Json = json.loads((folder / "demo.json").read_text())
        self.base_url = str(self.demo["base_url"])

    def processes(self) -> Iterator[psutil.Process]:
        """All of its processes."""
        return iter(psutil.Process(self.process.pid).children(recursive=True))

    def kill(self, words: str) -> None:
        """Kill -9 the process whose command line names these words, and its children; the stack starts it again."""
        for process in list(self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    for each in (process, *process.children(recursive=True)):
                        each.kill()

    def log_in(self, who: Json) -> str:
        """Their access token."""
        answer = call(self.base_url, "POST", "/api/v1/auth/patient", {"login": who["login"], "password": who["password"]})
        return str(answer.body["access_token"])


def main() -> int:
    """Bring a stack up, show it, break it, and write down what it answered."""
    with tempfile.TemporaryDirectory(prefix="healthmed-shown-") as folder:
        stack = Stack(Path(folder) / "state")
        try:
            parts = {
                "up": f"$ make up\n{stack.said}\n\n{_told(stack)}",
                "journey": f"$ make demo\n{_journey(stack)}",
                "trouble": _trouble(stack),
                "seen": _seen(stack),
            }
        finally:
            stack.process.send_signal(signal.SIGTERM)
            stack.process.wait(60)
    text = DOCUMENT.read_text("utf-8")
    for name, shown in parts.items():
        begin, end = f"<!-- {name}, written by `make demonstration` -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            sys.exit(f"{DOCUMENT} has no place for {name}")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace(str(stack.folder), ".state")
        text = f"{before}{begin}\n*{date.today().isoformat()}*\n\n```\n{plain.rstrip()}\n```\n\n{end}{after}"  # noqa: DTZ011
    DOCUMENT.write_text(text, "utf-8")
    print(f"{DOCUMENT} shows what the stack answered")
    return 0


def _told(stack: Stack) -> str:
    """The processes of a stack that is up, and what they take."""
    rows = []
    for process in stack.processes():
        command = " ".join(Path(part).name if part.startswith("/") else part for part in process.cmdline()[:12])
        rows.append(f"{process.memory_full_info().pss / 2**20:7.0f} MiB  {command[:100]}")
    return "  memory (PSS), process\n" + "\n".join(rows)


def _journey(stack: Stack) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "local.demo", str(stack.folder / "demo.json")], capture_output=True, text=True, check=True
    )
    return ended.stdout


def _trouble(stack: Stack) -> str:
    """What people are answered while the broker, the cache, a worker and the database are killed."""
    told: list[str] = []
    patient = stack.log_in(stack.demo["patients"][-1])
    slots = _slots(stack)

    def show(what: str, answer: Answer) -> Answer:
        told.append(f"# {what}\n{answer.shown}")
        return answer

    def book(slot: Json, key: str) -> Answer:
        return call(
            stack.base_url,
            "POST",
            "/api/v1/appointments",
            {"slot_id": slot["id"]},
            token=patient,
            headers={"Idempotency-Key": key},
        )

    def decided(command: Answer) -> Answer:
        def read() -> Answer:
            return call(stack.base_url, "GET", command.headers["Location"], token=patient, headers={"Prefer": "wait=20"})

        return _until(lambda: answer if (answer := read()).status == 200 and answer.body["status"] != "pending" else None)

    stack.kill(f"valkey-server {_place(stack, 'broker_url')}")
    sent = show("The broker is killed: 202 all the same, for the command stands in Postgres", book(next(slots), "one"))
    show("... and it is decided, since the relay wakes what waits", decided(sent))
    stack.kill("booking@")
    sent = show("The booking workers are killed: 202 all the same", book(next(slots), "two"))
    show("... and it is decided by the ones that take their place", decided(sent))
    doctor = f"/api/v1/doctors/{stack.demo['doctors'][0]['id']}"
    call(stack.base_url, "GET", doctor)
    stack.kill(f"valkey-server {_place(stack, 'cache_url')}")
    show("The cache is killed: reads come from Postgres", call(stack.base_url, "GET", doctor))
    slot = next(slots)
    _until(lambda: "healthmed_cache_in_use 1.0" in _get(f"{stack.base_url}/metrics"))
    time.sleep(BELIEVED_SECONDS)
    call(stack.base_url, "GET", doctor)
    stack.kill("postgres -D")
    refused = book(slot, "three")
    read = _until(lambda: answer if "Warning" in (answer := call(stack.base_url, "GET", doctor)).headers else None)
    told.append(
        f"# Postgres is killed: reads go on from the cache, and say so\n{read.shown}\n      Warning: {read.headers['Warning']}"
    )
    pause = refused.headers["Retry-After"]
    told.append(f"# ... and nothing is acknowledged that is not stored\n{refused.shown}\n      Retry-After: {pause}")

    sent = _until(lambda: answer if (answer := book(slot, "three")).status == 202 else None)
    show("The same request, under the same key, when Postgres is back", sent)
    show("... is decided, once", decided(sent))
    return "\n\n".join(told)


def _slots(stack: Stack) -> Iterator[Json]:
    """Open slots of the demonstration's doctors, of different times."""
    seen = set()
    for doctor in stack.demo["doctors"]:
        agenda = call(stack.base_url, "GET", f"/api/v1/doctors/{doctor['id']}/agenda?days=30").body
        for day in agenda["days"]:
            for slot in day["slots"]:
                if slot["starts_at"] not in seen:
                    seen.add(slot["starts_at"])
                    yield slot
                    break


def _seen(stack: Stack) -> str:
    """What operators see: readiness, figures, tasks by lane in Flower, and the log of one request."""
    _until(lambda: json.loads(_get(f"{stack.base_url}/readyz"))["state"] == "ready")
    figures = "\n".join(sorted(found[0] for found in FIGURES.finditer(_get(f"{stack.base_url}/metrics"))))
    flower = str(stack.demo["services"]["flower_url"])
    tasks = json.loads(_get(f"{flower}/api/tasks?limit=5"))
    lanes = "\n".join(
        f"{task['name']}{task['args']}  {task['state']}  {task['worker'].partition('@')[0]}" for task in tasks.values()
    )
    refused = _status(re.sub(r"//[^@]*@", "//", flower) + "/api/tasks")
    line = next(
        each
        for each in reversed((stack.folder / "log" / "api.log").read_text().splitlines())
        if '"POST"' in each and "appointments" in each
    )
    shown = {
        "$ curl /readyz": _get(f"{stack.base_url}/readyz").strip(),
        "$ curl /metrics | grep healthmed_": figures,
        f"# Flower, behind its password (without it: {refused}); the argument of drain is the lane": lanes,
        "# A line of the API's log": line,
    }
    return "\n\n".join(f"{what}\n{told}" for what, told in shown.items())


def _get(url: str) -> str:
    """What an address answers; a log-in in it is sent as Basic."""
    login = re.search(r"//([^@/]*)@", url)
    request = urllib.request.Request(url.replace(f"{login[1]}@", "") if login else url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login[1].encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def _status(url: str) -> int:
    try:
        _get(url)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def _place(stack: Stack, name: str) -> str:
    return str(urlsplit(stack.demo["services"][name]).netloc.rpartition("@")[2])


def _until(found: Callable[[], Any]) -> Any:
    """What is found, as soon as it is."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if answer := found():
                return answer
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come back")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
