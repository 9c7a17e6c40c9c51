"""One Redis over a bare socket: passwords, large and many replies, connections that were closed, errors and crowds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import ResponseError

from domain import redis_server
from domain.redis_server import Busy, RedisServer
from local.servers import Cache, free_port


@pytest.fixture
def raw(cache_server: Cache) -> Iterator[Redis]:
    """The server, over redis-py."""
    with Redis.from_url(cache_server.url) as client:
        yield client


@pytest.fixture
def server(cache_server: Cache) -> Iterator[RedisServer]:
    """The server, as a process asks it."""
    server = RedisServer(cache_server.url)
    yield server
    server.close()


def test_replies_come_in_order_and_whole(server: RedisServer) -> None:
    large = bytes(range(256)) * 4000
    assert server.insist([("SET", "large", large), ("GET", "large"), ("GET", "none"), ("INCR", "n")], 5) == [
        b"OK",
        large,
        None,
        1,
    ]


def test_who_asks_nothing_waits_for_nothing(server: RedisServer) -> None:
    assert server.insist([], 5) == []


def test_a_question_larger_than_the_sockets_buffers_goes_out_whole(server: RedisServer) -> None:
    large = b"x" * 20_000_000
    assert server.insist([("SET", "large", large), ("STRLEN", "large")], 10) == [b"OK", len(large)]


def test_a_connection_is_used_again(server: RedisServer) -> None:
    (first,), (second,) = (server.insist([("CLIENT", "ID")], 5) for _ in range(2))
    assert first == second


def test_connections_that_the_server_closed_are_made_anew(server: RedisServer, raw: Redis) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: server.insist([("PING",)], 5), range(40)))
    raw.client_kill_filter(_type="normal", skipme=True)
    assert [server.insist([("PING",)], 5) for _ in range(5)] == [[b"PONG"]] * 5


def test_a_server_that_came_back_is_asked_at_once(server: RedisServer, cache_server: Cache) -> None:
    server.insist([("PING",)], 5)
    cache_server.kill()
    with pytest.raises((Disconnected, OSError)):
        server.insist([("PING",)], 1)
    cache_server.start()
    assert server.insist([("PING",)], 5) == [b"PONG"]


def test_an_error_is_raised_and_spoils_no_later_reply(server: RedisServer) -> None:
    with pytest.raises(ResponseError):
        server.insist([("SET", "a", "1"), ("HGET", "a", "f"), ("GET", "a")], 5)
    assert server.insist([("GET", "a")], 5) == [b"1"]


def test_a_name_and_a_password_in_the_address_are_used(raw: Redis, cache_server: Cache) -> None:
    at = urlsplit(cache_server.url)
    raw.acl_setuser("bench", enabled=True, passwords=["+a secret"], commands=["+@all"], keys=["*"])
    try:
        named = RedisServer(f"redis://bench:a%20secret@{at.hostname}:{at.port}/0")
        assert named.insist([("ACL", "WHOAMI")], 5) == [b"bench"]
        named.close()
        with pytest.raises(Disconnected):
            RedisServer(f"redis://bench:wrong@{at.hostname}:{at.port}/0").insist([("PING",)], 5)
    finally:
        raw.acl_deluser("bench")


def test_nobody_there_is_an_error_at_once() -> None:
    with pytest.raises((Disconnected, OSError)):
        RedisServer(f"redis://127.0.0.1:{free_port()}/0").insist([("PING",)], 5)


def test_no_more_ask_at_once_than_may_and_the_rest_have_their_turn(
    cache_server: Cache, monkeypatch: pytest.MonkeyPatch, raw: Redis
) -> None:
    monkeypatch.setattr(redis_server, "_CONNECTIONS", 2)
    server = RedisServer(cache_server.url)
    before = len(raw.client_list())
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda n: server.insist([("ECHO", n)], 20), range(400))) == [[b"%d" % n] for n in range(400)]
    assert len(raw.client_list()) - before <= 2
    server.close()


def test_whoever_finds_no_seat_in_time_is_told_so(cache_server: Cache, monkeypatch: pytest.MonkeyPatch, raw: Redis) -> None:
    monkeypatch.setattr(redis_server, "_CONNECTIONS", 1)
    server = RedisServer(cache_server.url)
    raw.client_pause(1000, all=False)
    holding = threading.Thread(target=server.insist, args=([("SET", "a", "1")], 5))
    holding.start()
    while server._seats._free:
        pass
    with pytest.raises(Busy):
        server.insist([("PING",)], 0.05)
    holding.join()
    assert server.insist([("PING",)], 5) == [b"PONG"]
    server.close()
