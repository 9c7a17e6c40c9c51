"""Draining a lane: turns, locks and flags, and what trouble does to a command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from domain import batches, lanes, logs
from domain.booking import Decision, Schedule
from domain.cache import Cache
from domain.commands import Book, Command, Envelope
from domain.inbox import lane_of
from domain.lanes import Drainer, flag_name
from domain.settings import Settings
from local.servers import Broker
from local.servers import Cache as CacheServer
from tests.faults.proxy import Proxy
from tests.rows import add_doctor, add_person, add_slot, outcomes, send, tomorrow


@pytest.fixture
def broker_client(broker: Broker) -> Iterator[Redis]:
    with Redis.from_url(broker.url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
        yield client


@pytest.fixture
def drainer(settings: Settings, engine: Engine, broker_client: Redis, cache_server: CacheServer) -> Iterator[Drainer]:
    cache = Cache(settings, engine)
    yield Drainer(settings, engine, cache, broker_client)
    cache.stop()


def bookings(engine: Engine, settings: Settings, number: int, lane: int = 0) -> list[UUID]:
    """So many patients each ask for a slot of their own, of one doctor; the commands' ids."""
    with engine.begin() as connection:
        doctor_id = add_doctor(connection, settings, lane=lane)
        return [
            send(
                connection, settings, add_person(connection, settings), Book(add_slot(connection, doctor_id, tomorrow(n / 2)))
            ).id
            for n in range(number)
        ]


def all_outcomes(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(outcomes(connection))


def batches_in(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("select count(*) from batches")).scalar_one()


def trouble_with(monkeypatch: pytest.MonkeyPatch, command_id: UUID, raised: Callable[[], Exception]) -> list[UUID]:
    """Deciding this command raises; the list of all attempts at any command is returned."""
    decide, attempts = batches.decide, []

    def troubled(envelope: Envelope, command: Command, schedule: Schedule) -> Decision:
        attempts.append(envelope.id)
        if envelope.id == command_id:
            raise raised()
        return decide(envelope, command, schedule)

    monkeypatch.setattr(batches, "decide", troubled)
    return attempts


def lost_database() -> OperationalError:
    return OperationalError("select 1", {}, psycopg2.OperationalError("server closed the connection unexpectedly"))


def test_a_lane_is_the_same_in_every_process_and_lanes_are_even() -> None:
    assert lane_of(UUID("00000000-0000-7000-8000-000000000001"), 64) == 38
    counts = [0] * 8
    for n in range(8000):
        counts[lane_of(UUID(int=n), 8)] += 1
    assert min(counts) > 850


def test_a_drain_decides_everything_and_clears_the_flag(drainer: Drainer, engine: Engine, settings: Settings) -> None:
    bookings(engine, settings, 3)
    drainer.broker.set(flag_name(0), "1")
    assert drainer.drain(0) == []
    assert all_outcomes(engine) == ["succeeded"] * 3
    assert not drainer.broker.exists(flag_name(0), "lane:0")


def test_whoever_finds_the_lane_held_leaves_it_and_its_flag_alone(drainer: Drainer, engine: Engine, settings: Settings) -> None:
    bookings(engine, settings, 1)
    drainer.broker.set("lane:0", "another", px=5000)
    drainer.broker.set(flag_name(0), "1")
    assert drainer.drain(0) == []
    assert all_outcomes(engine) == ["pending"]
    assert drainer.broker.exists(flag_name(0))


def test_a_command_that_comes_as_the_lock_is_let_go_is_not_forgotten(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bookings(engine, settings, 1)
    let_go, came = Drainer._let_go, []

    def let_go_late(self: Drainer, *held: Any, **how: Any) -> None:
        if not came:
            came.extend(bookings(engine, settings, 1))
        let_go(self, *held, **how)

    monkeypatch.setattr(Drainer, "_let_go", let_go_late)
    drainer.drain(0)
    assert all_outcomes(engine) == ["succeeded"] * 2


def test_a_turn_ends_when_its_time_is_up_and_says_that_more_waits(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "TURN_SECONDS", 0.0)
    drainer.settings = replace(settings, lane_batch=2)
    bookings(engine, settings, 5)
    assert drainer.drain(0) == [0]
    assert all_outcomes(engine) == ["succeeded"] * 2 + ["pending"] * 3
    assert not drainer.broker.exists("lane:0")


def test_what_waits_in_several_lanes_is_decided_in_one_batch(drainer: Drainer, engine: Engine, settings: Settings) -> None:
    for lane in range(3):
        bookings(engine, settings, 2, lane=lane)
        drainer.broker.set(flag_name(lane), "1")
    assert drainer.drain(0, 1, 2) == []
    assert all_outcomes(engine) == ["succeeded"] * 6
    assert batches_in(engine) == 1
    assert not drainer.broker.keys()


def test_a_lane_that_another_holds_is_left_out_of_a_common_batch(drainer: Drainer, engine: Engine, settings: Settings) -> None:
    for lane in range(3):
        bookings(engine, settings, 1, lane=lane)
    drainer.broker.set("lane:1", "another", px=5000)
    drainer.broker.set(flag_name(1), "1")
    assert drainer.drain(0, 1, 2) == []
    assert all_outcomes(engine) == ["succeeded", "pending", "succeeded"]
    assert drainer.broker.get("lane:1") == b"another"
    assert drainer.broker.exists(flag_name(1))


def test_a_common_batch_takes_the_oldest_of_all_and_leaves_no_lane_behind(
    drainer: Drainer, engine: Engine, settings: Settings
) -> None:
    drainer.settings = replace(settings, lane_batch=4)
    for lane in (0, 1, 0, 1):
        bookings(engine, settings, 3, lane=lane)
    assert drainer.drain(0, 1) == []
    assert all_outcomes(engine) == ["succeeded"] * 12
    with engine.connect() as connection:
        first = connection.execute(text("select batch_id from commands order by seq")).scalars().all()
    assert len(set(first[:4])) == 1


def test_a_faulty_command_in_a_common_batch_costs_the_other_lanes_nothing(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty, *_ = bookings(engine, settings, 2, lane=0)
    others = bookings(engine, settings, 2, lane=1)
    attempts = trouble_with(monkeypatch, faulty, lambda: KeyError("bug"))
    assert drainer.drain(0, 1) == []
    assert all_outcomes(engine) == ["internal_error", "succeeded", "succeeded", "succeeded"]
    assert attempts.count(others[1]) <= 2  # in vain with the rest, then with its lane
    with engine.connect() as connection:
        assert connection.execute(text("select attempts from commands where id = :id"), {"id": others[1]}).scalar_one() == 0


def test_a_lane_that_was_begun_in_vain_is_drained_by_itself_and_after_the_others(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubled = bookings(engine, settings, 1, lane=0)[0]
    bookings(engine, settings, 1, lane=1)
    bookings(engine, settings, 1, lane=2)
    trouble_with(monkeypatch, troubled, lost_database)
    drainer.drain(0)
    assert drainer.drain(0, 1, 2) == []
    assert all_outcomes(engine) == ["pending", "succeeded", "succeeded"]


def test_a_turn_in_several_lanes_ends_when_its_time_is_up(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "TURN_SECONDS", 0.0)
    drainer.settings = replace(settings, lane_batch=2)
    bookings(engine, settings, 3, lane=0)
    bookings(engine, settings, 3, lane=1)
    assert drainer.drain(0, 1) == [0, 1]
    assert all_outcomes(engine) == ["succeeded"] * 2 + ["pending"] * 4
    assert not drainer.broker.exists("lane:0", "lane:1")


def test_a_wake_up_takes_along_what_waits_and_names_one_more_for_another_worker(drainer: Drainer) -> None:
    assert drainer.claim(5) == ([5], None)
    drainer.broker.sadd(lanes.WAITING, 5, 6)
    claimed, another = drainer.claim(5)
    assert (claimed[0], sorted(claimed), another) == (5, [5, 6], None)
    drainer.broker.sadd(lanes.WAITING, *range(100, 140))
    claimed, another = drainer.claim(5)
    assert claimed[0] == 5
    assert len(claimed) == 1 + lanes.TOGETHER
    assert another in range(100, 140) and another not in claimed
    assert drainer.broker.scard(lanes.WAITING) == 40 - lanes.TOGETHER - 1


def test_after_a_batch_of_some_a_worker_lets_more_come_first(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(lanes.time, "sleep", slept.append)
    for number in (1, 2, lanes.FEW):
        bookings(engine, settings, number, lane=0)
        drainer.drain(0)
        drainer.claim(0)
    assert slept == [lanes.GATHER_SECONDS], "one alone is not kept waiting, nor are many"


def test_without_redis_a_lane_is_drained_all_the_same(
    drainer: Drainer, engine: Engine, settings: Settings, broker: Broker
) -> None:
    bookings(engine, settings, 3)
    broker.kill()
    assert drainer.drain(0) == []
    assert all_outcomes(engine) == ["succeeded"] * 3


def test_a_faulty_command_fails_alone_and_before_any_later_one(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = bookings(engine, settings, 4)
    attempts = trouble_with(monkeypatch, ids[1], lambda: KeyError("bug"))
    drainer.drain(0)
    assert all_outcomes(engine) == ["succeeded", "internal_error", "succeeded", "succeeded"]
    assert attempts.count(ids[1]) == 4  # once with the batch, three times alone
    assert attempts.index(ids[2]) > max(place for place, each in enumerate(attempts) if each == ids[1])
    with engine.connect() as connection:
        detail, appointments = connection.execute(
            text("select error_detail, (select count(*) from appointments) from commands where id = :id"), {"id": ids[1]}
        ).one()
    assert "(ref. " in detail
    assert "bug" not in detail
    assert appointments == 3


def test_the_log_names_the_requests_that_were_decided_and_the_reference_that_was_given(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure("INFO")
    ids = bookings(engine, settings, 2)
    trouble_with(monkeypatch, ids[0], lambda: KeyError("bug"))
    drainer.drain(0)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    decided = [line for line in lines if line["event"] == "batch_decided"]
    assert [(line["command_ids"], line["request_ids"]) for line in decided] == [([str(each)], ["test"]) for each in ids]
    with engine.connect() as connection:
        detail = connection.execute(text("select error_detail from commands where id = :id"), {"id": ids[0]}).scalar_one()
    (rejected,) = [line for line in lines if line["event"] == "command_rejected"]
    assert f"(ref. {rejected['reference']})" in detail


def test_the_worlds_trouble_is_no_commands_fault(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = bookings(engine, settings, 2)
    with monkeypatch.context() as patch:
        trouble_with(patch, ids[0], lost_database)
        for _ in range(7):
            assert drainer.drain(0) == []
        assert all_outcomes(engine) == ["pending"] * 2
    drainer.drain(0)
    assert all_outcomes(engine) == ["succeeded"] * 2


def test_an_attempt_that_the_world_interrupted_is_taken_back(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = bookings(engine, settings, 2)
    troubles: Iterator[Exception] = iter([KeyError("bug"), lost_database(), KeyError("bug"), lost_database()])
    trouble_with(monkeypatch, ids[0], lambda: next(troubles))
    drainer.drain(0)
    drainer.drain(0)
    with engine.connect() as connection:
        assert connection.execute(text("select attempts from commands where id = :id"), {"id": ids[0]}).scalar_one() == 0


def test_an_interruption_by_the_callers_limit_of_time_is_the_worlds_fault(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TimeIsUp(Exception):
        pass

    drainer.interruptions = (TimeIsUp,)
    trouble_with(monkeypatch, bookings(engine, settings, 1)[0], TimeIsUp)
    assert drainer.drain(0) == []
    assert all_outcomes(engine) == ["pending"]


def test_a_worker_out_of_memory_blames_no_command(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = bookings(engine, settings, 2)
    with monkeypatch.context() as patch:
        trouble_with(patch, ids[0], MemoryError)
        for _ in range(7):
            assert drainer.drain(0) == []
        assert all_outcomes(engine) == ["pending"] * 2
    drainer.drain(0)
    assert all_outcomes(engine) == ["succeeded"] * 2


def test_a_command_that_kills_its_worker_is_rejected_while_the_others_go_on(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    killer = bookings(engine, settings, 3)[0]
    with engine.begin() as connection:
        connection.execute(
            text("update commands set received_at = received_at - interval '1 minute' where id = :id"), {"id": killer}
        )
    bookings(engine, settings, 1, lane=1)
    drainer.drain(1)  # other lanes move on
    attempts = trouble_with(monkeypatch, killer, Death)  # type: ignore[arg-type]
    for _ in range(20):
        drainer.broker.delete("lane:0")  # the lock of the dead runs out
        try:
            drainer.drain(0)
        except Death:
            continue
        break
    assert all_outcomes(engine)[:3] == ["internal_error", "succeeded", "succeeded"]
    assert attempts.count(killer) == lanes.TRIES + lanes.ATTEMPTS


def test_a_database_too_slow_for_whole_batches_decides_smaller_ones(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_batch, sizes = batches.decide_batch, []

    def slow(connection: Connection, settings: Settings, lane: int, *, most: int) -> batches.Decided | None:
        sizes.append(most)
        if most > 30:
            raise lost_database()
        return decide_batch(connection, settings, lane, most=most)

    monkeypatch.setattr(lanes, "decide_batch", slow)
    bookings(engine, settings, 80)
    for _ in range(4):
        drainer.drain(0)
    assert sizes[:4] == [200, 100, 50, 25]
    assert all_outcomes(engine) == ["succeeded"] * 80


@pytest.mark.parametrize(("took", "outcome"), [(0.0, "pending"), (lanes.SLOW_SECONDS, "internal_error")])
def test_only_a_suspect_that_was_slow_itself_is_blamed_for_being_interrupted(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, took: float, outcome: str
) -> None:
    bookings(engine, settings, 1)
    bookings(engine, settings, 1, lane=1)
    drainer.drain(1)  # other lanes move on
    passed = 0.0

    def interrupt(*_: object, **__: object) -> None:
        nonlocal passed
        passed += took
        raise lost_database()

    monkeypatch.setattr(lanes, "decide_batch", interrupt)
    monkeypatch.setattr(lanes, "time", SimpleNamespace(monotonic=lambda: passed))
    for _ in range(lanes.TRIES + lanes.ATTEMPTS + 1):
        drainer.drain(0)
    assert all_outcomes(engine)[0] == outcome


def test_what_was_decided_but_not_finished_is_not_decided_again(
    drainer: Drainer, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bookings(engine, settings, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Drainer, "_finish", lambda self, decided, _: (_ for _ in ()).throw(lost_database()))
        drainer.drain(0)
    drainer.drain(0)
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from appointments")).scalar_one() == 1
        assert connection.execute(text("select count(*) from batches where finished_at is null")).scalar_one() == 1


def test_a_drain_of_nothing_is_quick_and_harmless(drainer: Drainer) -> None:
    begun = time.monotonic()
    assert drainer.drain(7) == []
    assert time.monotonic() - begun < lanes.TURN_SECONDS


def test_a_lock_whose_taking_was_not_answered_is_let_go_of_all_the_same(drainer: Drainer, broker: Broker) -> None:
    proxy = Proxy(broker.port)
    with Redis.from_url(broker.url.replace(str(broker.port), str(proxy.port)), retry=Retry(NoBackoff(), 0)) as client:
        through = Drainer(drainer.settings, drainer.engine, drainer.cache, client)
        client.script_load(lanes._TAKE)  # else the lost answer is that it isn't known
        client.ping()
        proxy.lose_every(1)
        with through._held([7]) as (_, begun):
            assert begun == {7: 1}
            proxy.heal()
            assert client.exists("lane:7")
        assert not client.exists("lane:7")
    proxy.close()
