"""Wake-ups: one a lane, sent from the background, harmless when the broker is not there."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import redis

from domain.lanes import WAITING
from local.servers import Broker, free_port
from tests.workers.conftest import until
from workers import app as workers_app
from workers.app import BOOKING, NOTIFICATIONS, WAKE_UPS, Sender, configuration


def test_the_module_is_imported_without_any_settings() -> None:
    program = "import workers.app; print(workers.app.app.main)"
    done = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, check=True)
    assert done.stdout == "healthmed\n"


def test_a_lost_worker_or_broker_loses_no_task_that_the_broker_still_knows() -> None:
    settings = configuration("redis://x")
    assert settings["task_acks_late"] and settings["task_reject_on_worker_lost"]
    options = settings["broker_transport_options"]
    assert options["visibility_timeout"] == 60 > 2 * settings["task_soft_time_limit"] + settings["task_time_limit"]
    assert (options["unacked_restore_interval"], options["unacked_restore_throttle"]) == (2, 1)
    assert settings["broker_connection_max_retries"] is None


def test_nothing_but_json_is_read_and_no_result_is_kept() -> None:
    settings = configuration("redis://x")
    assert settings["accept_content"] == ["json"]
    assert settings["result_backend"] is None and settings["task_ignore_result"]
    assert settings["task_create_missing_queues"] is False
    assert [queue.name for queue in settings["task_queues"]] == [BOOKING, NOTIFICATIONS]


def test_every_setting_is_one_that_celery_knows() -> None:
    sender = Sender("redis://127.0.0.1:1")
    for name, value in configuration("redis://127.0.0.1:1").items():
        if name != "broker_transport_options":
            assert sender._celery.conf[name] == value


def test_many_commands_in_many_lanes_make_one_task_while_no_worker_takes_it(sender: Sender, broker: Broker) -> None:
    for _ in range(500):
        sender.wake(3)
        sender.wake(4)
    with redis.Redis.from_url(broker.url) as client:
        until(lambda: client.scard(WAITING) == 2 and sender.waiting(BOOKING) >= 1)
        until(lambda: not sender._waiting)
        assert sender.waiting(BOOKING) == 1
        assert 0 < client.ttl(WAITING) <= 5  # like a flag: lost with its task, it keeps nobody asleep for longer


def test_once_a_worker_has_taken_those_that_wait_the_next_one_makes_a_task_again(sender: Sender, broker: Broker) -> None:
    sender.wake(3)
    until(lambda: sender.waiting(BOOKING) == 1)
    with redis.Redis.from_url(broker.url) as client:
        client.delete(WAITING)
    sender.wake(4)
    until(lambda: sender.waiting(BOOKING) == 2)


def test_a_flag_that_is_set_stands_for_all(sender: Sender, broker: Broker) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.set("wake:3", 1)
        sender.wake(3)
        sender.wake(4)
        until(lambda: client.get("wake:4"))
        until(lambda: sender.waiting(BOOKING) == 1)
        assert 0 < client.ttl("wake:4") <= 5


def test_a_task_is_delivered_though_the_broker_was_emptied_under_an_open_connection(sender: Sender, broker: Broker) -> None:
    sender.drain(3)
    sender.send_notices()
    with redis.Redis.from_url(broker.url) as client:
        client.flushall()
    sender.drain(3)
    sender.send_notices()
    assert (sender.waiting(BOOKING), sender.waiting(NOTIFICATIONS)) == (1, 1)


def test_a_wake_up_takes_no_time_and_raises_nothing_while_the_broker_hangs(sender: Sender, broker: Broker) -> None:
    sender.drain(1)
    failed = WAKE_UPS.labels("failed")._value.get()
    broker.freeze()
    began = time.monotonic()
    for lane in range(64):
        sender.wake(lane)
    assert time.monotonic() - began < 0.1
    until(lambda: WAKE_UPS.labels("failed")._value.get() > failed, seconds=3)


def test_publishing_to_a_broker_that_hangs_ends_within_its_limit(sender: Sender, broker: Broker) -> None:
    sender.drain(1)
    broker.freeze()
    began = time.monotonic()
    with pytest.raises(Exception, match="Timeout"):
        sender.drain(2)
    assert time.monotonic() - began < 2.5


def test_the_sender_goes_on_when_the_broker_comes_back(sender: Sender, broker: Broker) -> None:
    failed = WAKE_UPS.labels("failed")._value.get()
    broker.erase()
    sender.wake(3)
    until(lambda: WAKE_UPS.labels("failed")._value.get() > failed)
    broker.start()
    until(lambda: sender.wake(4) or sender.waiting(BOOKING) == 1)


def test_wake_goes_to_the_broker_that_was_chosen(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_app, "_sender", None)
    workers_app.send_wake_ups_to(broker.url)
    workers_app.wake(900)  # a lane that no earlier test has woken
    with redis.Redis.from_url(broker.url) as client:
        until(lambda: client.llen(BOOKING) == 1)


def test_wake_works_in_greenlets(broker: Broker) -> None:
    program = f"""
from gevent import monkey; monkey.patch_all()
import gevent
from workers.app import Sender
sender = Sender({broker.url!r})
gevent.joinall([gevent.spawn(sender.wake, lane) for lane in range(20) for _ in range(50)])
with gevent.Timeout(10):
    while sender._broker.scard("waiting") < 20:
        gevent.sleep(0.01)
gevent.sleep(0.1)
print(sender.waiting("booking"), sender._broker.scard("waiting"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "1 20\n", done.stderr


def test_a_broker_that_refuses_costs_no_time() -> None:
    sender = Sender(f"redis://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(Exception, match="refused"):
        sender.drain(1)
    assert time.monotonic() - began < 1
