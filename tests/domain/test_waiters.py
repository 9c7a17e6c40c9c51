"""Waiting for a decision: told of it at once, and finding out without being told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from redis import Redis
from sqlalchemy import create_engine
from uuid_utils.compat import uuid7

from domain.cache import DECIDED, Answer, Cache, record_batch
from domain.settings import Settings
from domain.waiters import SOON_SECONDS, Waiters
from local.servers import Broker
from local.servers import Cache as CacheServer

DONE = Answer(b"decided", "tag")
PENDING = replace(DONE, body=b"pending", fresh_until=datetime.max.replace(tzinfo=UTC))


@pytest.fixture
def client(broker: Broker) -> Iterator[Redis]:
    with Redis.from_url(broker.url, client_name="waiting") as client:
        yield client


@pytest.fixture
def waiters(client: Redis) -> Iterator[Waiters]:
    waiters = Waiters(client)
    yield waiters
    waiters.stop()


class Commands:
    """Commands that are decided when the test says so, and how often somebody looked."""

    def __init__(self) -> None:
        self.decided = False
        self.looks = 0
        self.looked = threading.Event()

    def read(self) -> Answer:
        self.looks += 1
        self.looked.set()
        return DONE if self.decided else PENDING


def subscriptions(client: Redis) -> int:
    """How many there are of this test's own."""
    return sum(each["name"] == "waiting" for each in client.client_list(_type="pubsub"))


def subscribed(client: Redis) -> None:
    deadline = time.monotonic() + 5
    while subscriptions(client) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_decision_that_is_told_ends_the_wait_at_once(waiters: Waiters, client: Redis):
    command_id, commands = uuid7(), Commands()
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(waiters.wait, command_id, 20, commands.read) for _ in range(5)]
        subscribed(client)
        assert subscriptions(client) == 1, "one subscription, however many wait"
        commands.decided = True
        begun = time.monotonic()
        client.publish(DECIDED, f"{uuid7()} {command_id}")
        assert {each.result().body for each in waiting} == {b"decided"}
        assert time.monotonic() - begun < 0.9


def test_a_decision_that_nobody_told_of_is_found_within_a_second(waiters: Waiters):
    commands = Commands()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waiters.wait, uuid7(), 20, commands.read)
        commands.looked.wait(5)
        commands.decided = True
        begun = time.monotonic()
        assert waiting.result().body == b"decided"
        assert time.monotonic() - begun < 3.0


def test_what_is_decided_already_is_not_waited_for(waiters: Waiters):
    commands = Commands()
    commands.decided = True
    begun = time.monotonic()
    assert waiters.wait(uuid7(), 20, commands.read).body == b"decided"
    assert (commands.looks, time.monotonic() - begun < 0.9) == (1, True)


def test_what_is_not_at_hand_is_read_once_it_is_told_or_after_a_moment(waiters: Waiters, client: Redis):
    command_id, told, untold = uuid7(), Commands(), Commands()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(waiters.wait, command_id, 20, told.read, lambda: False)
        subscribed(client)
        assert told.looks == 0
        told.decided = True
        client.publish(DECIDED, str(command_id))
        assert waiting.result().body == b"decided"
        assert told.looks == 1
        begun = time.monotonic()
        waiting = pool.submit(waiters.wait, uuid7(), 20, untold.read, lambda: False)
        assert untold.looked.wait(5)
        assert time.monotonic() - begun >= SOON_SECONDS
        untold.decided = True
        assert waiting.result().body == b"decided"


def test_a_wait_ends_when_its_time_is_over_with_the_command_as_it_stands(waiters: Waiters):
    commands = Commands()
    begun = time.monotonic()
    assert waiters.wait(uuid7(), 1.2, commands.read).body == b"pending"
    assert 1.2 <= time.monotonic() - begun < 3.0
    assert commands.looks in (2, 3), "at once, at the end, and hardly in between"


def test_waits_go_on_while_the_broker_is_gone(broker: Broker, waiters: Waiters):
    broker.kill()
    commands = Commands()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waiters.wait, uuid7(), 20, commands.read)
        commands.looked.wait(5)
        commands.decided = True
        assert waiting.result().body == b"decided"


def test_a_finished_batch_tells_of_its_commands(settings: Settings, waiters: Waiters, client: Redis, cache_server: CacheServer):
    engine = create_engine(settings.database_url)
    cache, command_id, commands = Cache(settings, engine), uuid7(), Commands()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waiters.wait, command_id, 20, commands.read)
        subscribed(client)
        commands.looked.wait(5)
        commands.decided = True
        begun = time.monotonic()
        with engine.begin() as connection:
            batch_id = record_batch(connection, ["doctor:x", f"command:{command_id}"])
        cache.finish(batch_id, ["doctor:x", f"command:{command_id}"])
        assert waiting.result().body == b"decided"
        assert time.monotonic() - begun < 0.9
    cache.stop()
    engine.dispose()
