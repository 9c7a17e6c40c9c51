"""`make up`: one command brings everything up, keeps it up, and takes everything down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import smtplib
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest
import redis

from local.servers import Broker, Cache, free_port

ROOT = Path(__file__).resolve().parents[2]


class Up:
    """One `make up`, as whoever typed it sees it."""

    def __init__(self, state: Path, port: int, **settings: str) -> None:
        self.state, self.port = state, port
        self.base = f"http://127.0.0.1:{port}"
        self.printed = state.with_name(f"{state.name}.printed")
        environ = {**os.environ, **settings, "STATE_DIR": str(state), "PORT": str(port)}
        with self.printed.open("w") as output:
            self.make = subprocess.Popen(["make", "up"], cwd=ROOT, env=environ, stdout=output, stderr=output)

    def wait_until_ready(self) -> float:
        """Seconds until it said so."""
        began = time.monotonic()
        eventually(lambda: f"ready {self.base}\n" in self.printed.read_text(), 60, self.make)
        return time.monotonic() - began

    @property
    def demo(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "demo.json").read_text()))

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.make.pid).children(recursive=True)

    def supervisor(self) -> psutil.Process:
        return psutil.Process(self.make.pid).children()[0]

    def leader(self, word: str) -> psutil.Process | None:
        """The process with this word in its command line that the supervisor itself started."""
        for process in self.supervisor().children():
            with suppress(psutil.Error):
                if word in " ".join(process.cmdline()) and "become.py" not in " ".join(process.cmdline()):
                    return process
        return None


def eventually(holds: Callable[[], Any], seconds: float, process: subprocess.Popen[bytes] | None = None) -> Any:
    """What `holds` gives as soon as it is true; fails after `seconds`, or when `process` has ended."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, "it ended"
        time.sleep(0.05)
    return value


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    left = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left


@contextmanager
def running(up: Up) -> Iterator[Up]:
    try:
        up.wait_until_ready()
        yield up
    finally:
        if up.make.poll() is None:
            up.make.terminate()
            up.make.wait(40)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(Up(tmp_path_factory.mktemp("up") / "state", free_port())) as stack:
        yield stack


def refused(state: Path, **settings: str) -> tuple[int, list[str]]:
    """The exit code and the lines of a stack that can't come up."""
    environ = {**os.environ, "PORT": str(free_port()), **settings, "STATE_DIR": str(state)}
    ended = subprocess.run([sys.executable, "-m", "local.up"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr.splitlines()


def rows(database_url: str, query: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(database_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


def fetch(url: str, login: str | None = None) -> int | None:
    """The status that is answered, or none if nobody answers."""
    headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"} if login else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def test_the_demonstration_says_who_can_log_in_and_where_everything_is(up: Up):
    demo = up.demo
    for secret in ("demo.json", "settings.json", "secrets.json"):
        assert stat.S_IMODE((up.state / secret).stat().st_mode) == 0o600
    assert set(demo) == {"base_url", "staff", "doctors", "patients", "services"}
    assert demo["base_url"] == up.base
    assert {"login", "password"} <= set(demo["staff"][0])
    assert {"id", "name", "crm", "password"} <= set(demo["doctors"][0])
    assert {"id", "login", "password"} <= set(demo["patients"][0])
    services = demo["services"]
    assert rows(services["database_url"], "select 1") == [(1,)]
    for name in ("broker_url", "cache_url"):
        with redis.Redis.from_url(services[name]) as client:
            assert client.ping()


def test_flower_watches_both_workers_and_wants_a_password(up: Up):
    flower = urlsplit(up.demo["services"]["flower_url"])
    url = f"http://127.0.0.1:{flower.port}/workers?json=1"
    eventually(lambda: fetch(url, f"{flower.username}:{flower.password}") == 200, 10)
    assert fetch(url) == 401


def test_no_password_stands_in_a_command_line_or_in_what_is_printed(up: Up):
    services = up.demo["services"]
    shown = up.printed.read_text()
    for process in up.family():
        with suppress(psutil.NoSuchProcess):
            shown += " ".join(process.cmdline())
    for url in (services["database_url"], services["broker_url"], services["cache_url"], services["flower_url"]):
        assert urlsplit(url).password not in shown


def test_mail_is_caught_in_the_folder_that_the_demonstration_names(up: Up):
    catcher = eventually(lambda: up.leader("local.mail"), 5)
    folder = Path(up.demo["services"]["mail_dir"])
    before = set(folder.glob("*.eml"))
    with smtplib.SMTP("127.0.0.1", int(catcher.cmdline()[-2])) as client:
        client.sendmail("agenda@healthmed.example", ["ana@example.com"], b"Subject: Oi\r\n\r\nOi\r\n")
    assert len(set(folder.glob("*.eml")) - before) == 1


def test_a_second_stack_on_the_same_folder_is_one_clear_line(up: Up):
    code, lines = refused(up.state)
    assert (code, len(lines)) == (1, 1)
    assert "Another stack is using" in lines[0]


def test_a_port_that_is_taken_is_one_clear_line(up: Up, tmp_path: Path):
    code, lines = refused(tmp_path / "state", PORT=str(up.port))
    assert (code, len(lines)) == (1, 1)
    assert f"PORT {up.port}" in lines[0]


@pytest.mark.parametrize(
    "word",
    ["gunicorn", "-Q booking", "-Q notifications", "workers.relay", "flower", "local.mail", "bin/postgres", "valkey"],
)
def test_a_process_that_dies_is_started_again_within_two_seconds(up: Up, word: str):
    first = eventually(lambda: up.leader(word), 5)
    # Killed sooner than a second after its launch it would be held back by design.
    eventually(lambda: time.time() - first.create_time() > 1, 2)
    first.kill()
    eventually(lambda: (second := up.leader(word)) and second.pid != first.pid, 2)


def test_what_was_killed_serves_again_at_its_address_with_its_data(up: Up):
    services = up.demo["services"]
    people = rows_again(services["database_url"], "select count(*) from people")
    eventually(lambda: up.leader("bin/postgres"), 5).kill()
    eventually(lambda: up.leader("gunicorn"), 5).kill()
    assert rows_again(services["database_url"], "select count(*) from people") == people
    eventually(lambda: fetch(f"{up.base}/readyz") == 200, 30)


def test_a_stack_that_is_stopped_ends_within_30_seconds_leaves_no_process_and_keeps_its_data(up: Up):
    people = rows_again(up.demo["services"]["database_url"], "select id from people order by id")
    family = up.family()
    began = time.monotonic()
    up.make.send_signal(signal.SIGTERM)
    up.make.wait(30)
    assert time.monotonic() - began < 30
    assert living(family) == []
    assert fetch(f"{up.base}/readyz") is None

    demo = up.demo
    with running(Up(up.state, up.port)) as again:
        assert again.demo["doctors"] == demo["doctors"]
        assert rows(again.demo["services"]["database_url"], "select id from people order by id") == people
        family = again.family()
        # The worst that can happen to a stack: nobody is left to end what it started.
        again.supervisor().kill()
        eventually(lambda: living(family) == [], 10)


def test_two_stacks_live_side_by_side_also_on_servers_of_ones_own(tmp_path: Path, broker: Broker, cache_server: Cache):
    own = {"BROKER_URL": broker.url, "CACHE_URL": cache_server.url, "FLOWER": "off", "API_WORKERS": "1", "BOOKING_WORKERS": "1"}
    own |= {"PUBLIC_URL": "https://healthmed.example", "PUBLIC_DOCS": "off"}
    with running(Up(tmp_path / "a state", free_port(), **own)) as other:
        assert other.demo["base_url"] == other.base
        assert fetch(f"{other.base}/api/docs") == 404
        services = other.demo["services"]
        assert (services["broker_url"], services["flower_url"]) == (broker.url, None)
        assert other.leader("flower") is None
        assert other.leader("valkey") is None
        assert fetch(f"{other.base}/readyz") == 200


def test_a_stack_that_is_stopped_while_it_starts_leaves_no_process(tmp_path: Path):
    up = Up(tmp_path / "state", free_port())
    eventually(lambda: (up.state / "postgres" / "passwords.json").exists(), 10, up.make)
    family = up.family()
    up.make.send_signal(signal.SIGTERM)
    up.make.wait(30)
    assert living(family) == []
    assert "Traceback" not in up.printed.read_text()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    code, lines = refused(tmp_path / "file" / "state")
    assert (code, len(lines)) == (1, 1)
    assert "STATE_DIR" in lines[0]


def test_wrong_settings_are_all_named_one_a_line_before_anything_starts(tmp_path: Path):
    code, lines = refused(tmp_path / "state", PORT="http", BOOKING_NOTICE_SECONDS="60", RATE_LIMITS="maybe")
    assert code == 2
    assert [line.split(":")[0] for line in sorted(lines)] == [
        "Setting BOOKING_NOTICE_SECONDS",
        "Setting PORT",
        "Setting RATE_LIMITS",
    ]
    assert not (tmp_path / "state" / "log" / "postgres.log").exists()


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("DATABASE_URL", "postgresql://someone:secret@127.0.0.1:{port}/healthmed"),
        ("BROKER_URL", "redis://:secret@127.0.0.1:{port}/0"),
        ("CACHE_URL", "redis://:secret@127.0.0.1:{port}/0"),
    ],
)
def test_a_given_server_that_cannot_be_reached_is_one_clear_line_without_its_password(tmp_path: Path, setting: str, url: str):
    port = free_port()
    code, lines = refused(tmp_path / "state", **{setting: url.format(port=port)})
    assert (code, len(lines)) == (1, 1)
    assert f"{setting} can't be reached at 127.0.0.1:{port}" in lines[0]
    assert "secret" not in lines[0]


def test_make_without_a_target_shows_what_there_is():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in shown for target in ("up", "demo", "test", "bench"))


def test_an_old_python_is_told_in_one_line(tmp_path: Path):
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3"
    old.write_text(f"#!{sys.executable}\nimport sys\nsys.version_info, sys.version = (3, 9), '3.9.1'\nexec(sys.argv[2])\n")
    old.chmod(0o755)
    ended = subprocess.run(["make", "up", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "Python 3.11 or newer is needed; this one is 3.9.1" in ended.stderr
    assert not (tmp_path / ".venv").exists()


def rows_again(database_url: str, query: str) -> list[tuple[Any, ...]]:
    """As `rows`, from a server that may just be coming back."""

    def try_rows() -> list[tuple[Any, ...]] | None:
        try:
            return rows(database_url, query)
        except psycopg2.OperationalError:
            return None

    return list(eventually(try_rows, 10))
