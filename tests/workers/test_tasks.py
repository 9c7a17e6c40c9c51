"""Real Celery workers over a real broker: what is waiting is decided once, whatever happens to the message or the worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
import redis
from sqlalchemy import text

from domain.commands import Book
from local.process import Process
from local.servers import Broker, Postgres
from tests.workers.conftest import LANE, Booking, until
from workers.app import BOOKING, Sender


def decisions(booking: Booking) -> int:
    with booking.engine.connect() as connection:
        return connection.execute(text("select count(*) from history")).scalar_one()


def test_a_wake_up_has_the_lane_drained(booking: Booking, sender: Sender, start_worker: Callable[..., Process]) -> None:
    start_worker(BOOKING)
    command_id = booking.ask(Book(booking.slot_id))
    sender.wake(LANE)
    until(lambda: booking.status_of(command_id) == "succeeded")


def test_a_task_delivered_ten_times_decides_once(booking: Booking, sender: Sender, start_worker: Callable[..., Process]) -> None:
    command_id = booking.ask(Book(booking.slot_id))
    for _ in range(10):
        sender.drain(LANE)
    start_worker(BOOKING)
    until(lambda: booking.status_of(command_id) == "succeeded")
    until(lambda: sender.waiting(BOOKING) == 0)
    assert decisions(booking) == 1


def test_messages_that_are_no_tasks_of_ours_stop_no_worker(
    booking: Booking, sender: Sender, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(BOOKING)
    sender._publish("nothing_of_ours", BOOKING)
    sender._publish("drain", BOOKING, 2**70)
    sender._publish("drain", BOOKING, 1, 2, 3)
    with sender._celery.producer_pool.acquire() as producer:
        producer.publish(b"cos\nsystem\n", routing_key=BOOKING, content_type="application/x-python-serialize")
        producer.publish("not even a list", routing_key=BOOKING, serializer="json")
    command_id = booking.ask(Book(booking.slot_id))
    sender.drain(LANE)
    until(lambda: booking.status_of(command_id) == "succeeded")
    assert worker.running


def test_bytes_that_are_no_message_are_passed_over(
    booking: Booking, sender: Sender, broker: Broker, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(BOOKING)
    command_id = booking.ask(Book(booking.slot_id))
    with redis.Redis.from_url(broker.url) as client:
        client.lpush(BOOKING, b"\xff no json")
    sender.drain(LANE)
    until(lambda: booking.status_of(command_id) == "succeeded")
    assert worker.running


def test_a_process_killed_in_mid_batch_loses_nothing_and_doubles_nothing(
    booking: Booking,
    sender: Sender,
    postgres: Postgres,
    start: Callable[..., Process],
    start_worker: Callable[..., Process],
) -> None:
    worker = start_worker(BOOKING)
    start("-m", "workers.relay")
    command_id = booking.ask(Book(booking.slot_id))
    holder = psycopg2.connect(postgres.url)
    with holder, holder.cursor() as cursor:  # so that the batch waits for the doctor, its commands locked
        cursor.execute("select from doctors where id = %s for update", (str(booking.doctor_id),))
        sender.drain(LANE)
        until(lambda: _waits_for_a_lock(booking))
        for child in worker.family()[1:]:
            child.kill()
        time.sleep(0.2)
    holder.close()
    until(lambda: booking.status_of(command_id) == "succeeded")
    assert decisions(booking) == 1
    assert worker.running


def test_a_worker_killed_whole_gives_its_task_back(
    booking: Booking, sender: Sender, postgres: Postgres, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(BOOKING)
    command_id = booking.ask(Book(booking.slot_id))
    holder = psycopg2.connect(postgres.url)
    with holder, holder.cursor() as cursor:
        cursor.execute("select from doctors where id = %s for update", (str(booking.doctor_id),))
        sender.drain(LANE)
        until(lambda: _waits_for_a_lock(booking))
        worker.kill()
    holder.close()
    start_worker(BOOKING)
    # As the relay would; the dead worker's lock holds up its lane for some seconds.
    until(lambda: sender.drain(LANE) or booking.status_of(command_id) == "succeeded")
    assert decisions(booking) == 1


def test_sigterm_lets_the_worker_finish_and_leave(
    booking: Booking, sender: Sender, postgres: Postgres, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(BOOKING)
    command_id = booking.ask(Book(booking.slot_id))
    holder = psycopg2.connect(postgres.url)
    with holder, holder.cursor() as cursor:
        cursor.execute("select from doctors where id = %s for update", (str(booking.doctor_id),))
        sender.drain(LANE)
        until(lambda: _waits_for_a_lock(booking))
        worker.ask()
    holder.close()
    until(lambda: not worker.running)
    assert booking.status_of(command_id) == "succeeded"
    assert worker.exit_status == "exit code 0"


def test_the_heartbeat_goes_on_while_the_broker_is_gone(
    broker: Broker, start_worker: Callable[..., Process], tmp_path: Path
) -> None:
    start_worker(BOOKING)
    heartbeat = tmp_path / "booking.heartbeat"
    until(heartbeat.exists)
    for change in (lambda: None, broker.kill):
        change()
        seen = heartbeat.stat().st_mtime
        until(lambda seen=seen: heartbeat.stat().st_mtime > seen)


def test_the_heartbeat_stops_when_the_loop_does(start_worker: Callable[..., Process], tmp_path: Path, postgres: Postgres) -> None:
    worker = start_worker(BOOKING)
    heartbeat = tmp_path / "booking.heartbeat"
    until(heartbeat.exists)
    worker.freeze()
    seen = heartbeat.stat().st_mtime
    time.sleep(2)
    assert heartbeat.stat().st_mtime == seen


def test_a_worker_comes_back_at_once_to_a_broker_that_was_gone_and_lost_everything(
    booking: Booking, broker: Broker, sender: Sender, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(BOOKING)
    broker.erase()
    command_id = booking.ask(Book(booking.slot_id))
    until(lambda: worker.log.read_text().count("Trying again") >= 4)
    assert worker.log.read_text().count("Trying again in 1.00 second...") >= 4
    broker.start()
    until(lambda: _sent(sender))
    until(lambda: booking.status_of(command_id) == "succeeded", seconds=5)


def test_logs_hold_no_personal_data(booking: Booking, sender: Sender, start_worker: Callable[..., Process]) -> None:
    worker = start_worker(BOOKING, LOG_LEVEL="DEBUG")
    command_id = booking.ask(Book(booking.slot_id, notes="Dor no peito"))
    sender.drain(LANE)
    until(lambda: booking.status_of(command_id) == "succeeded")
    written = worker.log.read_text()
    assert "Ana" not in written and "ana@example.com" not in written and "peito" not in written


def _sent(sender: Sender) -> bool:
    try:
        sender.drain(LANE)
    except Exception:  # the connection that the emptied broker broke
        return False
    return True


def _waits_for_a_lock(booking: Booking) -> bool:
    with booking.engine.connect() as connection:
        return bool(
            connection.execute(
                text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'healthmed'")
            ).scalar_one()
        )
