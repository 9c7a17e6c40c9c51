"""What is ours in the part of a worker that listens to the broker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from celery.concurrency.prefork import TaskPool
from kombu import Connection, Queue
from kombu.asynchronous import Hub
from redis import Redis

import workers.consumer
from local.servers import Broker
from workers.app import Sender


@pytest.fixture
def connection(broker: Broker) -> Iterator[Connection]:
    with Connection(broker.url, transport_options={"socket_timeout": 0.3}) as connection:
        yield connection


def test_a_message_whose_acknowledgement_was_not_answered_takes_up_no_place(broker: Broker, connection: Connection) -> None:
    with listening(connection) as received:
        connection.drain_events(timeout=2)
        (first,) = received
        broker.freeze()
        with pytest.raises(connection.connection_errors):
            first.ack()
        broker.thaw()
        connection.drain_events(timeout=2)
    assert [each.payload for each in received] == ["first", "second"]


def test_what_cannot_be_given_back_to_a_lost_broker_is_given_up(broker: Broker, connection: Connection) -> None:
    with listening(connection) as received:
        connection.drain_events(timeout=2)
        qos = received[0].channel.qos
        broker.kill()
        qos.restore_unacked()
        assert qos.can_consume()


def test_a_message_of_a_channel_that_was_closed_is_a_lost_connection_and_nothing_worse(connection: Connection) -> None:
    with listening(connection) as received:
        connection.drain_events(timeout=2)
        qos, tag = received[0].channel.qos, received[0].delivery_tag
        received[0].channel.close()
        received[0].channel._disconnect_pools()
        with pytest.raises(connection.connection_errors):
            qos.ack(tag)
        with pytest.raises(connection.connection_errors):
            qos.reject(tag, requeue=True)


@pytest.mark.parametrize("poison", ["{", "null", "[]", '{"body": 1}', b"\x00\xff", '{"body": "x", "properties": {}}'])
def test_what_is_no_message_is_passed_over(broker: Broker, connection: Connection, poison: str | bytes) -> None:
    with Redis.from_url(broker.url) as client, listening(connection) as received:
        client.rpush("tried", poison)  # the end that is taken from first
        while not received:
            connection.drain_events(timeout=2)
    assert received[0].payload == "first"


def test_a_process_that_ended_with_one_lost_connection_does_not_end_its_worker_with_the_next() -> None:
    hub, pool = Hub(), object.__new__(workers.consumer.Pool)
    read, write = os.pipe()
    ended, living = SimpleNamespace(_sentinel_poll=None), SimpleNamespace(_sentinel_poll=read)
    try:
        pool._track_child_process(ended, hub)
        pool._track_child_process(living, hub)
        assert list(hub.readers) == [read]
    finally:
        hub.close()
        os.close(read)
        os.close(write)
    assert TaskPool.Pool is workers.consumer.Pool


def test_a_process_that_ends_before_the_broker_is_reached_is_replaced(broker: Broker, environ: dict[str, str]) -> None:
    broker.freeze()
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-c", "1", "-Q", "booking", "--without-mingle"]
    worker = psutil.Popen(command, env={**os.environ, **environ, "LOG_LEVEL": "WARNING"}, stderr=subprocess.DEVNULL)
    try:
        until(lambda: bool(worker.children()))
        (first,) = worker.children()
        first.kill()
        broker.thaw()
        Sender(broker.url).drain(0)
        with Redis.from_url(broker.url) as client:
            until(lambda: client.llen("booking") == 0 and any(each != first for each in worker.children()))
        assert worker.is_running()
    finally:
        broker.thaw()
        worker.kill()
        worker.wait()


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def listening(connection: Connection) -> Iterator[list[Any]]:
    """Whatever comes of two messages to one who takes one at a time."""
    received: list[Any] = []
    channel = connection.default_channel
    assert isinstance(channel.qos, workers.consumer.QoS)
    channel.basic_qos(0, 1, False)
    queue = Queue("tried", channel=channel)
    queue.declare()
    for message in ("first", "second"):
        connection.Producer(channel).publish(message, routing_key="tried")
    consumer = connection.Consumer(queue, callbacks=[lambda _, message: received.append(message)], channel=channel)
    consumer.consume()
    yield received
