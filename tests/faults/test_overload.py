"""Too much at once: the rest is turned away at once and in good form, and what needs nothing that is missing goes on."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import string
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, text
from uuid_utils.compat import uuid7

from api import shedding
from api.errors import problem
from api.shedding import OTHERS, READS, Door, Party, Room
from domain.commands import Book
from domain.schedule import Role
from domain.settings import Settings, load
from domain.tokens import Claims, Type, mint
from local.servers import Cache, Postgres, free_port
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow

ROOT = Path(__file__).parents[2]
GET = b"GET /api/v1/doctors HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /api/v1/appointments HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def door(settings: Settings) -> Door:
    return Door(settings)


class Guests:
    """Who wants a seat, and what became of that."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.told: dict[str, bool | None] = {}  # None: still waits

    def come(self, names: Iterable[str]) -> None:
        for name in names:
            if self.room.enter():
                self.told[name] = True
            elif self.room.has_time():
                self.told[name] = None
                self.room.wait(None, self._tell, name)
            else:
                self.told[name] = False

    def _tell(self, name: str, mates: Party | None) -> None:
        self.told[name] = mates is not None

    def which(self, told: bool | None) -> str:
        return "".join(name for name, each in self.told.items() if each is told)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What time it is for rooms."""
    now = [1000.0]
    monkeypatch.setattr(shedding, "time", SimpleNamespace(monotonic=lambda: now[0]))
    yield now


def test_seats_go_to_whoever_has_waited_longest() -> None:
    guests = Guests(Room(2, 1.0))
    guests.come("abcd")
    assert guests.which(True) == "ab"
    guests.room.leave()
    assert guests.which(True) == "abc"
    guests.room.leave()
    assert guests.which(True) == "abcd"
    assert not guests.room.sheds


class Wishes:
    """Guests who each want what their name begins with, if that is a letter, and what was said to whom."""

    def __init__(self, room: Room, taken: int) -> None:
        assert all(room.enter() for _ in range(taken))
        self.room = room
        self.told: list[str] = []
        self.mates: Party = deque()  # of the one who was told last

    def come(self, *names: str) -> None:
        for name in names:
            self.room.wait(name[0] if name[0].isalpha() else None, self._tell, name)

    def _tell(self, name: str, mates: Party | None) -> None:
        self.mates = mates or deque()
        self.told.append(" ".join([name, "is too late" if mates is None else "sits", *(mate.who for mate in self.mates)]))


def test_who_waits_for_the_same_gets_it_together_with_the_first_of_them() -> None:
    guests = Wishes(Room(1, 1.0), taken=1)
    guests.come("a1", "b1", "?1", "a2", "?2", "b2", "a3")
    for _ in range(5):
        guests.room.leave()
    assert guests.told == ["a1 sits a2 a3", "b1 sits b2", "?1 sits", "?2 sits"]
    assert guests.room.enter()
    assert not guests.room.enter()


def test_those_for_whom_nothing_was_got_wait_on_before_all_others(clock: list[float]) -> None:
    guests = Wishes(Room(2, 1.0), taken=2)
    guests.come("a1", "b1", "a2", "a3")
    guests.room.leave()
    guests.come("a4")
    guests.room.wait_on("a", guests.mates)
    guests.room.leave()
    guests.room.wait_on("a", guests.mates)
    assert guests.told == ["a1 sits a2 a3", "a2 sits a3 a4"]
    clock[0] += 2
    guests.room.look()
    assert guests.told[2:] == ["a3 is too late", "a4 is too late", "b1 is too late"]
    guests.room.leave()
    guests.room.leave()
    assert [guests.room.enter() for _ in range(3)] == [True, True, False]


def test_who_is_to_wait_on_while_a_seat_is_free_gets_it() -> None:
    guests = Wishes(Room(2, 1.0), taken=2)
    guests.come("a1", "a2", "a3")
    guests.room.leave()
    guests.room.leave()
    guests.room.wait_on("a", guests.mates)
    assert guests.told == ["a1 sits a2 a3", "a2 sits a3"]
    assert not guests.room.enter()


def test_as_many_may_wait_as_will_have_a_seat_in_time(clock: list[float]) -> None:
    guests = Guests(Room(2, 0.5))
    guests.come(string.ascii_lowercase)
    assert len(guests.which(None)) == 24  # no pace is known yet, so it is taken for a good one
    for _ in range(10):
        clock[0] += 0.1
        guests.room.leave()
    guests.come("A")  # ten a second: five would have a seat within half a second, and fourteen wait
    assert guests.which(False) == "A"
    for _ in range(9):
        guests.room.leave()
    assert guests.which(None) == "vwxyz"
    guests.come("B")
    assert guests.which(False) == "AB"
    guests.room.leave()
    guests.come("CD")
    assert guests.which(None) == "wxyzC"
    for _ in range(7):
        guests.room.leave()
    clock[0] += 60
    guests.come(string.digits)  # what was long ago tells nothing
    assert guests.which(None) == string.digits[2:]


def test_who_gets_no_seat_in_time_is_turned_away_and_no_seat_is_lost(clock: list[float]) -> None:
    guests = Guests(Room(2, 1.0))
    guests.come("ab")
    clock[0] += 10
    guests.come("cde")
    clock[0] += 1.1
    guests.come("fg")  # nobody has left: no more than there are seats may wait
    guests.room.look()
    assert (guests.which(None), guests.which(False)) == ("cde", "fg")
    guests.room.leave()
    clock[0] += 0.2
    guests.room.look()
    assert (guests.which(True), guests.which(None), guests.which(False)) == ("abc", "", "defg")
    guests.room.leave()
    guests.room.leave()
    guests.come("hi")
    assert guests.which(True) == "abchi"


def test_those_who_are_turned_away_are_told_to_come_when_there_is_room(clock: list[float]) -> None:
    guests = Guests(Room(10, 0.5))
    guests.come(map(str, range(1000)))
    assert list(guests.told.values()).count(False) == 830  # of 320 a second
    assert Counter(guests.room.turn_away() for _ in range(830)) == {1: 160, 2: 320, 3: 320, 4: 30}
    assert guests.room.sheds
    clock[0] += 2
    assert not guests.room.sheds
    told = Counter(guests.room.turn_away() for _ in range(32000))
    assert not guests.room.sheds  # who waits for a decision and is turned away must not keep all others who do out
    assert set(told) == set(range(1, 11))  # of far too many none is told never to come, and few to come at the same time
    assert max(told.values()) < 4000


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


CROWD = READS + 112  # of whom as many have to wait as will have a seat in time, however slow the machine
_WAYS = [(), ("If-None-Match: {tag}",), ("Authorization: Bearer none", "Accept: */*"), ("Connection: close",)]


def _way(number: int) -> int:
    return number % 3 if number % 30 else 3


_LOG_IN = text(
    "insert into sessions (id, person_id, refresh_id, refreshed_at, expires_at)"
    " values (:id, :person, uuidv7(), clock_timestamp(), clock_timestamp() + interval '1 day')"
)
_LOG_OUT = text("update sessions set revoked_at = clock_timestamp() where id = :id")


@pytest.fixture
def worker(served: tuple[int, int]) -> int:
    """The process of a gunicorn that serves, and that alone."""
    ask(served[0], "GET", "/healthz")  # before it answers there may be none
    return int(Path(f"/proc/{served[1]}/task/{served[1]}/children").read_text())


@pytest.fixture
def port(served: tuple[int, int]) -> int:
    """Its port."""
    return served[0]


@pytest.fixture
def served(environ: dict[str, str]) -> Iterator[tuple[int, int]]:
    """The port of a gunicorn with one worker, and its process."""
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
        yield port, process.pid
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


def test_who_waits_for_the_same_read_is_told_it_together_and_each_in_its_own_way(
    port: int, worker: int, settings: Settings, engine: Engine, cache_server: Cache
) -> None:
    with engine.begin() as connection:
        doctor = add_doctor(connection, settings)
    path = f"/api/v1/doctors/{doctor}"
    _, headers, _ = ask(port, "GET", path)
    tag = headers["ETag"]
    asked = [(f"X-Request-ID: mine-{n}", *_WAYS[_way(n)]) for n in range(CROWD)]
    with Redis.from_url(cache_server.url) as redis:
        before: list[int] = []
        requests = [get(path, *(line.format(tag=tag) for line in lines)) for lines in asked]
        told = at_once(port, worker, requests, meanwhile=lambda _: before.append(looks(redis)))
        looked = looks(redis) - before[-1]
    for number, (answer, body) in enumerate(told):
        assert answer.headers["X-Request-ID"] == f"mine-{number}"
        assert answer.headers["ETag"] == tag
        assert answer.headers["Connection"] == ("close" if _way(number) == 3 else "keep-alive")
        if _way(number) == 1:
            assert (answer.status, body) == (304, b"")
        else:
            assert (answer.status, json.loads(body)["id"]) == (200, str(doctor))
    assert looked < CROWD - 40, "each looked for itself"  # as those do who find a seat, and who want the connection closed


def test_what_is_not_cached_and_what_is_not_there_is_told_to_each_who_waits(
    port: int, worker: int, settings: Settings, engine: Engine
) -> None:
    with engine.begin() as connection:
        doctor = add_doctor(connection, settings)
    paths = [f"/api/v1/doctors/{doctor}", f"/api/v1/doctors/{uuid7()}"]
    told = at_once(port, worker, [get(paths[n % 30 == 0]) for n in range(CROWD)])
    assert [answer.status for answer, _ in told] == [404 if n % 30 == 0 else 200 for n in range(CROWD)]


def test_nobody_who_waits_is_told_what_is_for_somebody_else(port: int, worker: int, settings: Settings, engine: Engine) -> None:
    now = datetime.now(UTC)
    with engine.begin() as connection:
        owner, other = add_person(connection, settings), add_person(connection, settings)
        slot = add_slot(connection, add_doctor(connection, settings), tomorrow())
        command = send(connection, settings, owner, Book(slot)).id
        tokens = []
        for person in (owner, other, owner):
            session = uuid7()
            connection.execute(_LOG_IN, {"id": session, "person": person})
            claims = Claims(Type.ACCESS, person, session, Role.PATIENT, uuid7(), now, now + timedelta(minutes=5))
            tokens.append(f"Authorization: Bearer {mint(settings.jwt_keys, claims)}")
        connection.execute(_LOG_OUT, {"id": session})
    path = f"/api/v1/commands/{command}"
    at_once(port, worker, [get(path, token) for token in tokens])
    told = at_once(port, worker, [get(path, tokens[max(0, n % 30 - 27)]) for n in range(CROWD)])
    assert [answer.status for answer, _ in told] == [(200, 404, 401)[max(0, n % 30 - 27)] for n in range(CROWD)]


def test_those_who_hang_up_while_they_wait_hold_up_nobody(
    port: int, worker: int, settings: Settings, engine: Engine, cache_server: Cache
) -> None:
    with engine.begin() as connection:
        doctor = add_doctor(connection, settings)
    path = f"/api/v1/doctors/{doctor}"
    ask(port, "GET", path)

    def hang_up(clients: list[socket.socket]) -> None:
        cache_server.freeze()
        os.kill(worker, signal.SIGCONT)
        time.sleep(0.05)  # so that they are heard, and wait
        for client in clients[::3]:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        cache_server.thaw()

    try:
        told = at_once(port, worker, [get(path)] * CROWD, meanwhile=hang_up)
    finally:
        cache_server.thaw()
    assert [answer.status for answer, _ in told] == [200] * (CROWD - len(range(0, CROWD, 3)))


def at_once(
    port: int, worker: int, requests: list[bytes], meanwhile: Callable[[list[socket.socket]], object] = lambda _: None
) -> list[tuple[http.client.HTTPResponse, bytes]]:
    """What is answered to requests that a process finds all at once, on a connection each; again if any was turned away."""
    for _ in range(5):
        told = _at_once(port, worker, requests, meanwhile)
        if all(answer.status != 503 for answer, _ in told):
            break
        time.sleep(1.1)
    return told


def _at_once(
    port: int, worker: int, requests: list[bytes], meanwhile: Callable[[list[socket.socket]], object]
) -> list[tuple[http.client.HTTPResponse, bytes]]:
    clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in requests]
    ask(port, "GET", "/healthz")  # they are accepted, too, when this is answered
    os.kill(worker, signal.SIGSTOP)
    for client, request in zip(clients, requests, strict=True):
        client.sendall(request)
    meanwhile(clients)
    os.kill(worker, signal.SIGCONT)
    answers = []
    for client in clients:
        if client.fileno() >= 0:
            with client:
                answer = http.client.HTTPResponse(client)
                answer.begin()
                answers.append((answer, answer.read()))
                answer.close()
    return answers


def get(path: str, *lines: str) -> bytes:
    """A request as it is written."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


def looks(redis: Redis) -> int:
    """How often something was looked for in Redis."""
    return int(redis.info("commandstats").get("cmdstat_hget", {"calls": 0})["calls"])


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
