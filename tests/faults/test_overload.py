"""Too much at once: the rest is turned away at once and in good form, and what needs nothing that is missing goes on."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gevent
import pytest
from uuid_utils.compat import uuid7

from api import shedding
from api.errors import problem
from api.shedding import OTHERS, Door, Room
from domain.schedule import Role
from domain.settings import Settings, load
from domain.tokens import Claims, Type, mint
from local.servers import Postgres, free_port

ROOT = Path(__file__).parents[2]
GET = b"GET /api/v1/doctors HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /api/v1/appointments HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def door(settings: Settings) -> Door:
    return Door(settings)


def test_seats_go_to_whoever_has_waited_longest() -> None:
    room, seated = Room(2), []

    def visit(name: str) -> None:
        if room.enter():
            seated.append(name)

    for name in "abcd":
        gevent.spawn(visit, name)
    gevent.sleep(0)
    assert seated == ["a", "b"]
    room.leave()
    gevent.sleep(0.01)
    assert seated == ["a", "b", "c"]
    room.leave()
    gevent.sleep(0.01)
    assert seated == ["a", "b", "c", "d"]
    assert not room.sheds


def test_who_gets_no_seat_in_time_is_turned_away_and_then_few_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shedding, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(shedding, "CALM_SECONDS", 0.1)
    room = Room(2)
    assert room.enter()
    assert room.enter()
    waiting = [gevent.spawn(room.enter) for _ in range(10)]  # nobody is turned away at once by a room that was calm
    gevent.sleep(0.01)
    assert not any(each.ready() for each in waiting)
    gevent.joinall(waiting, timeout=1)
    assert [each.value for each in waiting] == [False] * 10
    assert room.sheds
    waiting = [gevent.spawn(room.enter) for _ in range(5)]
    gevent.sleep(0.01)
    assert [each.value for each in waiting if each.ready()] == [False] * 3  # at once
    room.leave()
    gevent.sleep(0.01)
    assert [each.value for each in waiting[:2]] == [True, None]
    gevent.joinall(waiting, timeout=1)
    gevent.sleep(0.15)
    assert not room.sheds
    room.leave()
    room.leave()
    assert [room.enter(), room.enter()] == [True, True]  # no seat was lost


@pytest.mark.parametrize(
    "received",
    [
        GET,  # not whole
        GET + b"\r\n" + GET + b"\r\n",  # more than one
        GET + b"Content-Length: 3\r\n\r\nab",
        GET + b"Content-Length: 3\r\n\r\nabcd",
        GET + b"Content-Length: 0\r\nContent-Length: 2\r\n\r\nab",
        GET + b"Content-Length : 2\r\n\r\nab",
        GET + b"Content-Length: +2\r\n\r\nab",
        GET + b"Content-Length: 2 \r\n\r\nab",
        GET + b"Content-Length:\t2\r\n\r\nab",
        GET + b"X: y\nContent-Length: 0\r\n\r\n",  # a bare line feed
        GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        GET + b"Expect: 100-continue\r\n\r\n",
        GET + b"Content-Length: 2\r\nTransfer-Encoding: identity\r\n\r\nab",
        b"GET /api/v1/doctors HTTP/1.0\r\n\r\n",
        b"GET /api/v1/doctors HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET  /api/v1/doctors HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET /api/v1/doctors HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD /api/v1/doctors HTTP/1.1\r\nHost: a\r\n\r\n",  # has no body to answer with
        b"OPTIONS /api/v1/doctors HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /api/v1/auth/patient HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",  # waits for its turn to hash
        b"POST /api/v1/patients HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
        b"PUT /api/v1/me/password HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_not_surely_one_whole_request_of_those_that_are_shed_is_left_to_the_parser(door: Door, received: bytes) -> None:
    assert door.see(received) is None


def test_reads_and_commands_have_seats_of_their_own_and_who_only_waits_needs_none(door: Door) -> None:
    read, command = door.see(GET + b"\r\n"), door.see(POST + b"Content-Length: 2\r\n\r\n{}")
    held = door.see(b"GET /api/v1/commands/7 HTTP/1.1\r\nHost: a\r\nPrefer: wait=20\r\n\r\n")
    unheld = door.see(GET + b"Prefer: wait=20\r\n\r\n")
    assert read is not None
    assert command is not None
    assert held is not None
    assert unheld is not None
    assert read.room is not command.room
    assert (read.held, held.held, unheld.held) == (False, True, False)


def test_a_refusal_is_the_problem_document_that_the_application_would_answer_with(settings: Settings) -> None:
    strict = load({**settings.given, "CORS_ORIGINS": "https://portal.example"})
    door = Door(strict)
    asked = door.see(GET + b"X-Request-ID: Mine-7\r\nORIGIN: https://portal.example\r\nConnection: close\r\n\r\n")
    assert asked is not None
    assert asked.closes
    answer = parsed(door.refusal(asked))
    assert answer.status == 503
    body = json.loads(answer.read())
    assert {**body, "detail": ""} == {**json.loads(problem(503, "unavailable", "").get_data()), "detail": ""}
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert 1 <= int(headers.pop("retry-after")) <= 10
    assert headers == {
        "content-type": "application/problem+json",
        "content-length": headers["content-length"],
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "content-security-policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
        "vary": "Origin",
        "access-control-allow-origin": "https://portal.example",
        "access-control-expose-headers": headers["access-control-expose-headers"],
        "x-request-id": "Mine-7",
        "connection": "close",
    }
    for odd in (b"X-Request-ID: no such id\r\n", b"Origin: https://elsewhere.example\r\n"):
        asked = door.see(GET + odd + b"\r\n")
        assert asked is not None
        answer = parsed(door.refusal(asked))
        assert len(answer.headers["X-Request-ID"]) == 36
        assert "Access-Control-Allow-Origin" not in answer.headers
    waits = set()
    for _ in range(20):
        waits.add(parsed(door.refusal(asked)).headers["Retry-After"])
    assert len(waits) > 2  # so that they don't all come back together


@pytest.fixture
def port(environ: dict[str, str]) -> Iterator[int]:
    """The port of a gunicorn with one worker."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.wsgi:app"],
        cwd=ROOT,
        env={**os.environ, **environ, "PORT": str(port), "API_WORKERS": "1", "LOG_LEVEL": "WARNING"},
    )
    try:
        deadline = time.monotonic() + 30
        while not listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0
    finally:
        process.kill()
        process.wait()


def test_while_commands_wait_for_a_database_that_is_gone_the_rest_is_shed_soon_and_reads_go_on(
    port: int, postgres: Postgres, settings: Settings
) -> None:
    now = datetime.now(UTC)
    claims = Claims(Type.ACCESS, uuid7(), uuid7(), Role.PATIENT, uuid7(), now, now + timedelta(minutes=5))
    who = {"Authorization": f"Bearer {mint(settings.jwt_keys, claims)}", "Content-Type": "application/json"}
    assert ask(port, "GET", "/api/v1/specialties")[0] == 200
    postgres.freeze()
    try:
        with ThreadPoolExecutor(2 * OTHERS + 20) as threads:
            body = json.dumps({"slot_id": str(uuid7())})
            asked = [threads.submit(ask, port, "POST", "/api/v1/appointments", who, body) for _ in range(2 * OTHERS + 20)]
            time.sleep(0.3)
            for path in ("/healthz", "/api/v1/specialties"):
                assert ask(port, "GET", path)[0] == 200
            told = [each.result() for each in asked]
    finally:
        postgres.thaw()
    assert Counter(status for status, _, _ in told) == {503: len(told)}
    assert all(int(headers["Retry-After"]) > 0 for _, headers, _ in told)
    soon = [seconds for _, headers, seconds in told if "Too many at once" in headers["told"]]
    assert OTHERS - 5 <= len(soon) <= len(told) - OTHERS + 5
    assert ask(port, "GET", "/readyz")[0] == 200


def ask(port: int, method: str, path: str, headers: dict[str, str] | None = None, body: str | None = None) -> Any:
    """Status, headers and seconds of one answer; what it said is among the headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=25)
    began = time.monotonic()
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        said = answer.read().decode()
        return answer.status, {**dict(answer.headers), "told": said}, time.monotonic() - began
    finally:
        connection.close()


def listens(port: int) -> bool:
    """Whether anybody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def parsed(answer: bytes) -> http.client.HTTPResponse:
    """An answer as a client reads it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(ours)
        response.begin()
        return response
