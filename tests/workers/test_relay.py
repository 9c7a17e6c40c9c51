"""The relay: what a lost message, a crash or the passing of time left is done, once, by one relay or by two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from domain import batches, inbox
from domain.availability import Availability
from domain.cache import record_batch
from domain.commands import Book, Erase, SetAvailability
from domain.settings import Settings
from local.process import Process
from local.servers import Broker, Postgres
from local.servers import Cache as CacheServer
from tests.workers.conftest import LANE, Booking, MailServer, until
from workers.app import BOOKING, NOTIFICATIONS, Sender
from workers.relay import Relay


@pytest.fixture
def relays(booking: Booking, settings: Settings) -> Iterator[tuple[Relay, Relay]]:
    """Two relays, as a deployment has them."""
    relays = Relay(settings), Relay(settings)
    yield relays
    for relay in relays:
        relay._engine.dispose()
        relay._cache.stop()


def count(booking: Booking, query: str) -> Any:
    with booking.engine.connect() as connection:
        return connection.execute(text(query)).scalar_one()


def age(booking: Booking, command_id: UUID, seconds: float) -> None:
    """Have a command wait for so long already."""
    with booking.engine.begin() as connection:
        connection.execute(
            text("update commands set received_at = received_at - make_interval(secs => :seconds) where id = :id"),
            {"id": command_id, "seconds": seconds},
        )


def test_a_lane_is_woken_only_when_its_command_waits_too_long(
    booking: Booking, relays: tuple[Relay, Relay], sender: Sender
) -> None:
    command_id = booking.ask(Book(booking.slot_id))
    relays[0].turn()
    assert sender.waiting(BOOKING) == 0
    age(booking, command_id, 3)
    relays[0].turn()
    assert sender.waiting(BOOKING) == 1


def test_a_flag_left_set_keeps_no_lane_asleep(
    booking: Booking, relays: tuple[Relay, Relay], broker: Broker, sender: Sender
) -> None:
    with redis.Redis.from_url(broker.url) as client:
        client.set(f"wake:{LANE}", 1)
    age(booking, booking.ask(Book(booking.slot_id)), 4)
    relays[0].turn()
    assert sender.waiting(BOOKING) == 1


def test_no_storm_gathers_while_no_worker_takes_wake_ups(
    booking: Booking, relays: tuple[Relay, Relay], sender: Sender, settings: Settings
) -> None:
    age(booking, booking.ask(Book(booking.slot_id)), 4)
    for _ in range(100):
        for relay in relays:
            relay.turn()
    assert sender.waiting(BOOKING) <= settings.lanes + 1
    assert sender.waiting(NOTIFICATIONS) <= 1


def test_a_lapsed_request_gets_one_expiry_from_two_relays(booking: Booking, relays: tuple[Relay, Relay], sender: Sender) -> None:
    booking.request()
    with booking.engine.begin() as connection:
        connection.execute(text("update appointments set expires_at = now() - interval '1 s'"))
    for _ in range(3):
        for relay in relays:
            relay.turn()
    assert count(booking, "select count(*) from commands where kind = 'expire'") == 1
    assert sender.waiting(BOOKING) == 1
    booking.drainer.drain(LANE)
    assert count(booking, "select status from appointments") == "expired"
    assert count(booking, "select by from history order by position desc limit 1") == "system"
    assert count(booking, "select actor_id from commands where kind = 'expire'") == inbox.SYSTEM


def test_an_expiry_that_could_not_be_decided_waits_again_a_minute_later(
    booking: Booking, relays: tuple[Relay, Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    booking.request()
    with booking.engine.begin() as connection:
        connection.execute(text("update appointments set expires_at = now() - interval '1 s'"))
    relays[0].turn()
    with monkeypatch.context() as broken:
        broken.delattr(batches, "_decide")
        booking.drainer.drain(LANE)
    relays[0].turn()
    expiry = "select coalesce(error_code, status) from commands where kind = 'expire'"
    assert count(booking, expiry) == "internal_error"
    with booking.engine.begin() as connection:
        connection.execute(text("update commands set decided_at = decided_at - interval '61 s' where kind = 'expire'"))
    for relay in relays:
        relay.turn()
    assert count(booking, expiry) == "pending"
    booking.drainer.drain(LANE)
    assert count(booking, expiry) == "succeeded"
    assert count(booking, "select status from appointments") == "expired"


def test_a_request_within_its_time_is_left_alone(booking: Booking, relays: tuple[Relay, Relay]) -> None:
    booking.request()
    relays[0].turn()
    assert count(booking, "select count(*) from commands where kind = 'expire'") == 0


def test_each_doctors_horizon_moves_once_a_day(booking: Booking, relays: tuple[Relay, Relay]) -> None:
    booking.decide(SetAvailability(Availability((), ())), by_doctor=True)
    relays[0].turn()
    assert count(booking, "select count(*) from commands where kind = 'extend_horizon'") == 0
    with booking.engine.begin() as connection:
        connection.execute(text("update availabilities set extended_on = current_date - 1"))
    for relay in relays:
        relay.turn()
    assert count(booking, "select count(*) from commands where kind = 'extend_horizon'") == 1
    booking.drainer.drain(LANE)
    assert count(booking, "select extended_on = current_date from availabilities")


def test_a_batch_that_a_crash_left_is_finished(booking: Booking, relays: tuple[Relay, Relay]) -> None:
    with booking.engine.begin() as connection:
        batch_id = record_batch(connection, [f"doctor:{booking.doctor_id}"])
    relays[0].turn()
    assert count(booking, "select count(*) from batches where finished_at is null") == 1
    with booking.engine.begin() as connection:
        connection.execute(text("update batches set created_at = created_at - interval '6 s' where id = :id"), {"id": batch_id})
    relays[0].turn()
    assert count(booking, "select count(*) from batches where finished_at is null") == 0


def test_a_cache_that_answers_again_is_put_in_use_under_the_next_epoch(
    booking: Booking, relays: tuple[Relay, Relay], cache_server: CacheServer
) -> None:
    with booking.engine.begin() as connection:
        connection.execute(text("update cache set in_use = false, changed_at = clock_timestamp() - interval '4 s'"))
    cache_server.freeze()
    relays[0].turn()
    assert not count(booking, "select in_use from cache")
    cache_server.thaw()
    for relay in relays:
        relay.turn()
    assert count(booking, "select in_use and epoch = 2 from cache")


def test_due_notices_are_sent_for_once(booking: Booking, relays: tuple[Relay, Relay], sender: Sender) -> None:
    booking.request()
    for relay in relays:
        relay.turn()
    assert sender.waiting(NOTIFICATIONS) == 1


def test_nothing_due_wakes_nobody(relays: tuple[Relay, Relay], sender: Sender) -> None:
    relays[0].turn()
    assert (sender.waiting(BOOKING), sender.waiting(NOTIFICATIONS)) == (0, 0)


def test_a_step_that_fails_stops_no_other(booking: Booking, relays: tuple[Relay, Relay], broker: Broker) -> None:
    booking.request()
    with booking.engine.begin() as connection:
        connection.execute(text("update appointments set expires_at = now() - interval '1 s'"))
        record_batch(connection, ["directory"])
        connection.execute(text("update batches set created_at = created_at - interval '6 s'"))
    broker.kill()
    relays[0].turn()
    assert count(booking, "select count(*) from commands where kind = 'expire'") == 1
    assert count(booking, "select count(*) from batches where finished_at is null") == 0


def test_a_relay_outlives_its_database(booking: Booking, relays: tuple[Relay, Relay], postgres: Postgres, sender: Sender) -> None:
    age(booking, booking.ask(Book(booking.slot_id)), 4)
    postgres.kill()
    began = time.monotonic()
    relays[0].turn()
    assert time.monotonic() - began < 3
    postgres.start()
    relays[0].turn()
    assert sender.waiting(BOOKING) == 1


@pytest.mark.parametrize("frozen", ["nothing", "postgres", "broker", "cache_server"])
def test_sigterm_ends_a_relay_with_its_turn_or_soon(
    frozen: str, request: pytest.FixtureRequest, booking: Booking, start: Callable[..., Process]
) -> None:
    relay = start("-m", "workers.relay")
    age(booking, booking.ask(Book(booking.slot_id)), 4)
    with redis.Redis.from_url(booking.settings.broker_url) as client:
        until(lambda: client.llen(BOOKING))
    with ExitStack() as thawed:
        if frozen != "nothing":
            server = request.getfixturevalue(frozen)
            server.freeze()
            thawed.callback(server.thaw)
            time.sleep(1.2)  # so that it waits for what is frozen
        relay.ask()
        until(lambda: not relay.running, seconds=2)
    assert relay.exit_status == "exit code 0"


def test_settings_that_make_no_sense_are_told_in_a_line_each(start: Callable[..., Process]) -> None:
    relay = start("-m", "workers.relay", HASH_KEY="short")
    until(lambda: not relay.running)
    assert relay.log.read_text() == "settings: HASH_KEY: must be 32 bytes in base64\n"


def test_what_was_answered_202_is_decided_though_the_broker_forgot_everything(
    booking: Booking, broker: Broker, start: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    start_worker(BOOKING)
    command_id = booking.ask(Book(booking.slot_id))
    broker.erase()
    broker.start()
    start("-m", "workers.relay")
    until(lambda: booking.status_of(command_id) == "succeeded", seconds=15)


def test_the_whole_life_of_a_request_runs_by_itself(
    booking: Booking, mail_server: MailServer, start: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    start_worker(BOOKING)
    start_worker(NOTIFICATIONS)
    for _ in range(2):
        start("-m", "workers.relay")
    command_id = booking.ask(Book(booking.slot_id))  # and nobody wakes the lane
    until(lambda: booking.status_of(command_id) == "succeeded")
    until(lambda: len(mail_server.taken) == 1)
    with booking.engine.begin() as connection:
        connection.execute(text("update appointments set expires_at = clock_timestamp()"))
    began = time.monotonic()
    until(lambda: count(booking, "select status from appointments") == "expired")
    assert time.monotonic() - began < timedelta(seconds=10).total_seconds()
    until(lambda: len(mail_server.taken) == 3)
    subjects = [message["Subject"] for message in mail_server.taken]
    assert ["expirado" in each or "sem resposta" in each for each in subjects] == [False, True, True]


def test_an_erasure_that_waited_for_another_lane_is_resumed_once_by_two_relays(
    booking: Booking, relays: tuple[Relay, Relay], sender: Sender
) -> None:
    booking.accept()
    own_lane = inbox.lane_of(booking.patient_id, booking.settings.lanes)
    command_id = booking.ask(Erase())
    booking.drainer.drain(own_lane)
    age(booking, command_id, 4)
    for relay in relays:
        relay.turn()
    assert sender.waiting(BOOKING) == 0, "while it is parked, nobody is woken for it"
    booking.drainer.drain(LANE)
    for relay in relays:
        relay.turn()
    assert sender.waiting(BOOKING) >= 1
    booking.drainer.drain(own_lane)
    assert booking.status_of(command_id) == "succeeded"
    assert count(booking, "select count(*) from commands where kind = 'cancel' and actor_role = 'system'") == 1
    assert count(booking, "select status from appointments") == "cancelled"


def test_a_patient_is_erased_by_itself_and_the_doctor_is_told(
    booking: Booking, mail_server: MailServer, start: Callable[..., Process], start_worker: Callable[..., Process]
) -> None:
    booking.accept()
    start_worker(BOOKING)
    start_worker(NOTIFICATIONS)
    start("-m", "workers.relay")
    command_id = booking.ask(Erase())  # and nobody wakes the lane
    until(lambda: booking.status_of(command_id) == "succeeded")
    assert count(booking, "select count(*) from person_keys") == 1, "the doctor's"
    until(lambda: any("Cancelado" in message["Subject"] for message in mail_server.taken))


def test_old_commands_are_archived_by_the_relay(booking: Booking, relays: tuple[Relay, Relay]) -> None:
    booking.request()
    with booking.engine.begin() as connection:
        connection.execute(text("update commands set decided_at = decided_at - interval '91 days'"))
    for relay in relays:
        relay.turn()
    assert count(booking, "select count(*) from commands") == 0
    assert count(booking, "select count(*) from archived_commands") == 1
