"""A process that ends lets go of nobody: who waits is answered, who is connected may ask once more, who queues is served."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine, text
from uuid_utils.compat import uuid7

from domain.commands import Book
from domain.schedule import Role
from domain.settings import Settings
from domain.tokens import Claims, Type, mint
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow
from workers.app import Sender

ROOT = Path(__file__).parents[2]
CELERY = (sys.executable, "-m", "celery", "-A", "workers.app", "worker")


class Api:
    """One gunicorn, on a socket that somebody else listens on too."""

    def __init__(self, listener: socket.socket, environ: dict[str, str], workers: int = 1) -> None:
        fd = listener.fileno()
        self.port = listener.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.wsgi:app"],
            cwd=ROOT,
            env={**os.environ, **environ, "BIND": f"fd://{fd}", "API_WORKERS": str(workers), "LOG_LEVEL": "WARNING"},
            pass_fds=[fd],
        )

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is kept alive, and served."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=25)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        return connection

    def stop(self) -> float:
        """Have it end as an operator does; the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        return time.monotonic() - began


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        yield listening


@contextlib.contextmanager
def serving(listener: socket.socket, environ: dict[str, str]) -> Iterator[Api]:
    api = Api(listener, environ)
    try:
        api.connect().close()
        yield api
    finally:
        api.process.kill()
        api.process.wait()


def pending(engine: Engine, settings: Settings) -> tuple[str, dict[str, str]]:
    """The path of a command that nobody decides, and who may read it."""
    now, session = datetime.now(UTC), uuid7()
    with engine.begin() as connection:
        patient = add_person(connection, settings)
        slot = add_slot(connection, add_doctor(connection, settings), tomorrow())
        command = send(connection, settings, patient, Book(slot)).id
        connection.execute(_LOG_IN, {"id": session, "person": patient})
    claims = Claims(Type.ACCESS, patient, session, Role.PATIENT, uuid7(), now, now + timedelta(minutes=5))
    return f"/api/v1/commands/{command}", {"Authorization": f"Bearer {mint(settings.jwt_keys, claims)}"}


def test_a_process_that_ends_answers_who_waits_and_whoever_asks_once_more(
    listener: socket.socket, environ: dict[str, str], settings: Settings, engine: Engine
) -> None:
    path, who = pending(engine, settings)
    with serving(listener, environ) as api:
        waiting, asking, late, silent = (api.connect() for _ in range(4))
        waiting.request("GET", path, headers={**who, "Prefer": "wait=20"})
        time.sleep(0.5)
        began = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        answer = waiting.getresponse()  # as things stand, at once
        assert (answer.status, json.loads(answer.read())["status"]) == (200, "pending")
        assert time.monotonic() - began < 5
        assert answer.headers["Connection"] == "close"

        asking.request("GET", "/readyz")
        answer = asking.getresponse()
        assert (answer.status, json.loads(answer.read())["state"]) == (503, "leaving")
        late.request("GET", path, headers={**who, "Prefer": "wait=20"})  # nobody is held any more
        answer = late.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        answer.read()

        assert silent.sock is not None
        assert silent.sock.recv(1) == b""  # who says nothing for some seconds is told so, in order
        silent.close()
        assert api.process.wait(15) == 0


def test_one_process_takes_the_place_of_another_and_no_request_fails(listener: socket.socket, environ: dict[str, str]) -> None:
    answered, failed, stopped = [0], [], threading.Event()

    def ask(fresh: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=25)
        while not stopped.is_set():
            try:
                connection.request("GET", "/api/v1/specialties")
                if connection.getresponse().read():
                    answered[0] += 1
            except (OSError, http.client.HTTPException) as error:
                failed.append(error)
                connection.close()
            if fresh:
                connection.close()
            time.sleep(0.02)
        connection.close()

    with serving(listener, environ) as old:
        threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(6)]
        for thread in threads:
            thread.start()
        with serving(listener, environ) as new:
            before = answered[0]
            old.stop()
            after = answered[0]
            deadline = time.monotonic() + 20
            while answered[0] < after + 20 and time.monotonic() < deadline:
                time.sleep(0.05)
            stopped.set()
            for thread in threads:
                thread.join()
            assert after > before
            assert answered[0] >= after + 20
            new.stop()
    assert failed == []


def test_a_process_that_is_told_to_end_while_it_comes_up_does(listener: socket.socket, environ: dict[str, str]) -> None:
    api = Api(listener, environ)
    try:
        children = Path(f"/proc/{api.process.pid}/task/{api.process.pid}/children")
        while not children.read_text():
            time.sleep(0.005)
        assert api.stop() < 18  # and is not killed after 20
    finally:
        api.process.kill()
        api.process.wait()


def test_what_the_kernel_has_accepted_is_served_before_the_end(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as own:
        port = own.getsockname()[1]
        api = Api(own, environ)
    try:
        api.connect().close()
        worker = next(pid for pid in Path(f"/proc/{api.process.pid}/task/{api.process.pid}/children").read_text().split())
        os.kill(int(worker), signal.SIGSTOP)  # so that they queue
        queued = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(100)]
        for client in queued:
            client.sendall(b"GET /api/v1/specialties HTTP/1.1\r\nHost: a\r\n\r\n")
        api.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        os.kill(int(worker), signal.SIGCONT)
        for client in queued:
            with client:
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert api.process.wait(15) == 0
    finally:
        api.process.kill()
        api.process.wait()


def test_a_worker_that_ends_puts_back_what_it_has_not_begun(environ: dict[str, str], settings: Settings) -> None:
    worker = subprocess.Popen(
        [*CELERY, "-P", "prefork", "-c", "1", "-Q", "booking", "--without-mingle", "--without-gossip"],
        cwd=ROOT,
        env={**os.environ, **environ, "LOG_LEVEL": "WARNING"},
    )
    sent = 600
    try:
        with Redis.from_url(settings.broker_url) as broker:
            sender = Sender(settings.broker_url)
            for lane in range(sent):
                sender.drain(lane % 64)
            deadline = time.monotonic() + 30
            while broker.llen("booking") > sent - 20:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(50) == 0  # less than what Kubernetes gives it
            assert broker.hlen("unacked") == 0
            assert 0 < broker.llen("booking") < sent
    finally:
        worker.kill()
        worker.wait()


_LOG_IN = text(
    "insert into sessions (id, person_id, refresh_id, refreshed_at, expires_at)"
    " values (:id, :person, uuidv7(), clock_timestamp(), clock_timestamp() + interval '1 day')"
)
