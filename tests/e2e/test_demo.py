"""`make demo`: the whole journey against a running stack and against one of its own, and never all well when it isn't."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from local.demo import Journey, Wrong, journey_of
from local.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 90
ONE_EACH = {"API_WORKERS": "1", "BOOKING_WORKERS": "1"}
# A machine that does other things meanwhile takes several times the ten seconds of a journey.
pytestmark = pytest.mark.timeout(300)

Json = dict[str, Any]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running stack."""
    state = tmp_path_factory.mktemp("demo") / "state"
    environ = {**os.environ, "STATE_DIR": str(state), "PORT": str(free_port()), "FLOWER": "off", **ONE_EACH}
    up = subprocess.Popen([sys.executable, "-m", "local.up"], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not (state / "demo.json").exists():
            assert up.poll() is None, "the stack ended"
            assert time.monotonic() < deadline, "the stack did not come up"
            time.sleep(0.1)
        yield state
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(40)


@pytest.fixture
def people(state: Path) -> Json:
    return dict(json.loads((state / "demo.json").read_text()))


def demo(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local.demo", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=240)


@contextmanager
def tampered(base_url: str, method: str, path: str, tamper: Callable[[Json], None]) -> Iterator[str]:
    """A server that passes everything on to a stack, and alters the answers to one kind of request."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            stack = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=30)
            stack.request(self.command, self.path, body or None, dict(self.headers))
            response = stack.getresponse()
            answered = response.read()
            if answered and self.command == method and re.fullmatch(f"/api/v1{path}", self.path):
                told = json.loads(answered)
                tamper(told)
                answered = json.dumps(told).encode()
            self.send_response(response.status)
            for name in ("Content-Type", "ETag", "Location"):
                if name in response.headers:
                    self.send_header(name, response.headers[name])
            self.end_headers()
            self.wfile.write(answered)
            stack.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_journey_goes_well_however_often_and_what_it_shows_opens_no_account(state: Path, people: Json):
    for run in (demo(STATE_DIR=str(state)), demo(str(state / "demo.json"))):
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr
        assert run.stdout.count("━━") == 10
        assert "All is well" in run.stdout
        race = run.stdout[run.stdout.index("Two patients race") :]
        assert '"status": "succeeded"' in race
        assert '"code": "slot_taken"' in race
        assert all(f"← {status}" in run.stdout for status in (200, 201, 202, 204, 304, 401, 404, 422))
        assert not [each for each in (*people["patients"], *people["staff"]) if each["password"] in run.stdout]
        assert "eyJ" in run.stdout
        assert not re.search(r"eyJ[\w-]{20}", run.stdout)


def lose_the_slot(command: Json) -> None:
    if command.get("error", {}).get("code") == "slot_taken":
        command.update(status="succeeded", appointment_id="00000000-0000-7000-8000-000000000000")


@pytest.mark.parametrize(
    ("method", "path", "tamper", "line"),
    [
        ("POST", "/doctors", lambda body: body.update(status="verified"), "Step 1: a new doctor must wait for verification."),
        ("POST", "/auth/staff", lambda body: body.update(access_token="eyJ"), "Step 1: the answer must be 200, not 401."),
        ("POST", "/doctors", lambda body: body.pop("id"), "Step 1: an answer is not of the contract's form (KeyError('id'))."),
        ("GET", r"/doctors\?.*", lambda body: body["items"].clear(), "Step 4: the search must find the doctor."),
        ("GET", "/appointments/.*", lambda body: body.pop("join_url", 0), "Step 7: an answer is not of the contract's form"),
        ("GET", "/commands/.*", lose_the_slot, "Step 9: one must win and the other be told slot_taken"),
    ],
    ids=["verified at once", "not logged in", "without id", "not found", "without address", "two winners"],
)
def test_it_ends_with_one_line_at_the_first_step_that_is_not_as_it_should_be(
    people: Json, method: str, path: str, tamper: Callable[[Json], None], line: str
):
    with tampered(people["base_url"], method, path, tamper) as base_url, pytest.raises(Wrong) as wrong:
        journey(people, base_url).run()
    assert str(wrong.value).startswith(line)
    assert "\n" not in str(wrong.value)


def test_a_journey_that_goes_wrong_is_an_exit_code(state: Path, people: Json):
    with tampered(people["base_url"], "POST", "/doctors", lambda body: body.pop("status")) as base_url:
        run = demo(base_url, STATE_DIR=str(state))
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "All is well" not in run.stdout


def test_a_stack_that_is_named_and_does_not_answer_is_one_line(state: Path, tmp_path: Path):
    for arguments, environ in (
        ([f"http://127.0.0.1:{free_port()}"], {"STATE_DIR": str(state)}),
        ([str(tmp_path / "demo.json")], {}),
        ([f"http://127.0.0.1:{free_port()}"], {"STATE_DIR": str(tmp_path)}),
    ):
        run = demo(*arguments, **environ)
        assert run.returncode == 2
        assert len(run.stderr.splitlines()) == 1


def test_without_a_running_stack_it_starts_one_and_leaves_nothing_of_it(tmp_path: Path):
    run = demo(STATE_DIR=str(tmp_path / "none"), TMPDIR=str(tmp_path), FLOWER="off", **ONE_EACH)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    assert "All is well" in run.stdout
    assert list(tmp_path.iterdir()) == []
    assert not [process for process in psutil.process_iter() if str(tmp_path) in surroundings(process)]


def test_a_stack_that_can_not_start_is_told_with_its_reason(tmp_path: Path):
    run = demo(STATE_DIR=str(tmp_path / "none"), TMPDIR=str(tmp_path), LANES="none")
    assert run.returncode == 2
    assert "LANES" in run.stderr
    assert "Traceback" not in run.stderr


def journey(people: Json, base_url: str) -> Journey:
    return journey_of({**people, "base_url": base_url})


def surroundings(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join((*process.cmdline(), *process.environ().values()))
    return ""
