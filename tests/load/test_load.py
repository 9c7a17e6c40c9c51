"""The load in small: the same people, the same client and the same judgement as in `make load`, and both scenes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from local import crowd
from local.crowd import Crowd
from local.servers import Broker, Postgres, free_port
from local.servers import Cache as CacheServer
from tests.checks import violations
from tests.faults.stack import FaultStack
from tests.load import scenes
from tests.load.people import ACKNOWLEDGED, ANSWERED, DECIDED, READ, Tally
from tests.load.wire import Lost, Wire, request

DOCTORS, PATIENTS = 10, 290
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def stack(postgres: Postgres, broker: Broker, cache_server: CacheServer, tmp_path: Path) -> Iterator[FaultStack]:
    """Every process of a stack but Flower, one of each kind."""
    servers = {"DATABASE_URL": postgres, "BROKER_URL": broker, "CACHE_URL": cache_server}
    given = {"API_WORKERS": "1", "BOOKING_WORKERS": "1", "LOG_LEVEL": "WARNING"}
    with FaultStack(tmp_path / "state", free_port(), servers=servers, **given) as stack:
        yield stack


def test_everybody_is_served_and_ten_of_all_get_the_ten_slots(stack: FaultStack) -> None:
    people = crowd.gather(stack.engine, stack.settings, doctors=DOCTORS, patients=PATIENTS, slots_a_day=2)
    slots = scenes.free_slots(stack.base_url, people.doctors[-1], 10)

    seen = scenes.stay(stack.base_url, people, ramp=2.0, seconds=5.0, think=4.0)
    assert not seen.errors
    assert len(seen.seconds[READ]) > 100
    assert seen.counts[ACKNOWLEDGED] == seen.counts[DECIDED] > 0

    seen = scenes.rush(stack.base_url, people, slots, ramp=0.0, seconds=1.0)
    assert not seen.errors
    assert len(seen.seconds[ANSWERED]) == PATIENTS
    assert seen.counts["rush succeeded"] == scenes.holders(stack.engine, slots) <= 10
    assert {each for each in seen.counts if each.startswith("rush ")} <= {
        "rush succeeded",
        "rush slot_taken",
        "rush patient_busy",
    }

    scenes.rest(stack.engine, stack.settings)
    assert violations(stack.engine, stack.settings) == []


def test_what_is_wrong_is_told() -> None:
    """A server that knows nobody: each request comes to nothing, and each is counted."""

    async def unwilling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await _request(reader):
            body = json.dumps({"code": "not_authenticated"}).encode()
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    seen = _against(unwilling)
    assert sum(seen.errors.values()) == seen.counts["sent"] > 0
    assert all("401 not_authenticated" in each for each in seen.errors)


def test_an_answer_that_breaks_off_is_told() -> None:
    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    assert all("the answer broke off" in each for each in _against(breaking).errors)


def test_a_request_that_finds_its_connection_closed_is_sent_again() -> None:
    async def ask() -> tuple[list[bytes], int]:
        connections = 0

        async def forgetful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await reader.readuntil(b"\r\n\r\n")
            if connections > 1:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        async with await _server(forgetful) as server:
            wire = Wire(*server.sockets[0].getsockname())
            answer = await wire.ask(request("GET", "/me"))
            wire.close()
            return [answer.body], wire.sent

    assert asyncio.run(ask()) == ([b"{}"], 2)


def test_an_answer_may_come_in_pieces() -> None:
    async def ask() -> bytes:
        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _request(reader)
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)

        async with await _server(slow) as server:
            wire = Wire(*server.sockets[0].getsockname())
            answer = await wire.ask(request("GET", "/me"))
            wire.close()
            return answer.body

    assert asyncio.run(ask()) == b"abc"


def test_a_server_that_says_nothing_is_given_up() -> None:
    async def ask() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await _request(reader):
                pass

        async with await _server(silent) as server:
            wire = Wire(*server.sockets[0].getsockname())
            try:
                await wire.ask(request("GET", "/me"), seconds=0.1)
            finally:
                wire.close()

    with pytest.raises(Lost, match="no answer in time"):
        asyncio.run(ask())


def test_what_comes_late_is_timed_from_when_it_was_due() -> None:
    """Each answer takes half a second, and something is due every tenth: what has to wait for the ones before it counts that."""

    async def halting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await _request(reader):
            await asyncio.sleep(0.5)
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n{"days": [], "items": []}  ')

    seen = _against(halting, think=0.1)
    assert scenes.percentile(seen.seconds[READ], 100) > 1.0


async def _server(serve: Serve) -> asyncio.Server:
    """A server that does as told, on a port of its own, and hangs up in the end."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", 0)


async def _request(reader: asyncio.StreamReader) -> bytes:
    """The next request; nothing once the client has hung up."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""


def _against(serve: Serve, think: float = 0.3) -> Tally:
    """What a patient sees of a server that does as told."""

    async def both() -> Tally:
        async with await _server(serve) as server:
            port = server.sockets[0].getsockname()[1]
            member = crowd.Member("0", "token")
            people = Crowd((member,), (member,))
            return await asyncio.to_thread(scenes.stay, f"http://127.0.0.1:{port}", people, ramp=0.0, seconds=1.0, think=think)

    return asyncio.run(both())
