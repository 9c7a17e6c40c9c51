"""Leases, invalidation, the out-of-use mark and what is answered without Redis or without Postgres, on the real servers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg2.extensions import set_wait_callback
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from uuid_utils.compat import uuid7

from domain import cache as module
from domain import database, redis_server
from domain.cache import Answer, Cache, Filled, changing, record_batch
from domain.errors import NotFound, Unavailable
from domain.settings import Settings
from local.servers import Broker, Postgres, free_port
from local.servers import Cache as CacheServer
from tests.rows import add_doctor


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.database_url, pool_size=20, pool_pre_ping=True)
    yield engine
    engine.dispose()


@pytest.fixture
def process(settings: Settings, engine: Engine, cache_server: CacheServer, broker: Broker) -> Iterator[Callable[..., Cache]]:
    """Makes the cache of one more process; with other settings, if given."""
    redis_server._left.set(None)  # a request of another test's may have spent the budget of this thread
    made = []

    def make(**others: object) -> Cache:
        cache = Cache(replace(settings, **others), engine)
        made.append(cache)
        cache.start()
        return cache

    yield make
    for cache in made:
        cache.stop()


@pytest.fixture
def cache(process: Callable[..., Cache]) -> Cache:
    return process()


@pytest.fixture
def raw(cache_server: CacheServer) -> Iterator[Redis]:
    """The cache server, looked at past all rules."""
    with Redis.from_url(cache_server.url) as client:
        yield client


class Price:
    """A projection of one doctor's price, that counts how often Postgres was asked for it."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.fills = 0
        self.meanwhile: Callable[[], None] = lambda: None  # what happens between reading and storing
        with engine.begin() as connection:
            self.doctor_id = add_doctor(connection, settings, price=100)
        self.scope = f"doctor:{self.doctor_id}"

    def fill(self, connection: Connection) -> Filled:
        self.fills += 1
        price = connection.execute(text("select price from doctors where id = :id"), {"id": self.doctor_id}).scalar_one()
        self.meanwhile()
        return Filled(str(price).encode())

    def read(self, cache: Cache) -> Answer:
        return cache.read(self.scope, "price", self.fill)

    def change(self, cache: Cache, price: int) -> None:
        with changing(self.engine, cache) as change:
            change.connection.execute(
                text("update doctors set price = :price where id = :id"), {"price": price, "id": self.doctor_id}
            )
            change.touch(self.scope)


@pytest.fixture
def price(engine: Engine, settings: Settings) -> Price:
    return Price(engine, settings)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def row(engine: Engine) -> tuple[int, bool]:
    with engine.connect() as connection:
        return connection.execute(text("select epoch, in_use from cache")).one()


def unfinished(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("select count(*) from batches where finished_at is null")).scalar_one()


def test_what_is_filled_once_is_read_without_asking_postgres_again(cache: Cache, price: Price):
    first, second = price.read(cache), price.read(cache)
    assert (first, price.fills) == (second, 1)
    assert first.body == b"100"


def test_a_body_with_line_breaks_and_spaces_comes_back_as_it_was(cache: Cache):
    body = b'{"a": 1}\n\n* -\r\n\x00'
    readers = frozenset([uuid7(), uuid7()])
    filled = Filled(body, cache.now() + timedelta(minutes=1, microseconds=7), readers)
    one = cache.read("person:x", "f", lambda _: filled, reader=min(readers))
    other = cache.read("person:x", "f", lambda _: None, reader=max(readers))
    assert one == other
    assert (other.body, other.readers) == (body, readers)


def test_equal_bodies_have_equal_etags_and_others_do_not(cache: Cache):
    tags = [cache.read("x", name, lambda _, name=name: Filled(name[:1].encode())).etag for name in ("a1", "a2", "b")]
    assert tags[0] == tags[1] != tags[2]


def test_what_is_not_there_is_not_remembered(cache: Cache):
    with pytest.raises(NotFound):
        cache.read("doctor:x", "card", lambda _: None)
    assert cache.read("doctor:x", "card", lambda _: Filled(b"now it is")).body == b"now it is"


def test_a_change_is_shown_when_its_transaction_is_left(cache: Cache, price: Price, engine: Engine):
    price.read(cache)
    price.change(cache, 200)
    assert price.read(cache).body == b"200"
    assert unfinished(engine) == 0


def test_a_change_that_is_rolled_back_invalidates_nothing(cache: Cache, price: Price, engine: Engine):
    price.read(cache)
    with pytest.raises(ZeroDivisionError), changing(engine, cache) as change:
        change.touch(price.scope)
        raise ZeroDivisionError
    price.read(cache)
    assert price.fills == 1


def race_a_fill_with_a_change(cache: Cache, price: Price) -> Answer:
    """A fill reads 100, the price becomes 200 and is reported, and only then the fill stores what it read. What is read next?"""

    def change() -> None:
        price.meanwhile = lambda: None
        price.change(cache, 200)

    price.meanwhile = change
    price.read(cache)
    return price.read(cache)


def test_a_fill_that_was_overtaken_by_a_change_is_not_stored(cache: Cache, price: Price):
    assert race_a_fill_with_a_change(cache, price).body == b"200"


def test_control_without_the_lease_the_overtaken_fill_is_shown(cache: Cache, price: Price, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_STORE", "return redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])")
    assert race_a_fill_with_a_change(cache, price).body == b"100"


@pytest.mark.parametrize("loss", ["flushall", "delete"])
def test_a_fill_whose_lease_was_lost_is_answered_and_not_stored(cache: Cache, price: Price, raw: Redis, loss: str):
    price.meanwhile = lambda: raw.flushall() if loss == "flushall" else raw.delete(f"1:{price.scope}")
    assert price.read(cache).body == b"100"
    assert raw.hget(f"1:{price.scope}", "price") is None


def test_many_readers_and_changes_at_once_never_show_less_than_was_reported(cache: Cache, price: Price, raw: Redis):
    reported, stop = 100, threading.Event()

    def read_on() -> int:
        reads = 0
        while not stop.is_set():
            floor = reported
            assert int(price.read(cache).body) >= floor
            reads += 1
        return reads

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_on) for _ in range(4)]
        try:
            for value in range(101, 221):
                price.change(cache, value)
                reported = value
                if value % 7 == 0:
                    raw.flushall()
        finally:
            stop.set()
        assert sum(reader.result() for reader in readers) > 100


def test_a_cache_that_was_emptied_fills_again(cache: Cache, price: Price, raw: Redis):
    price.read(cache)
    raw.flushall()
    assert (price.read(cache).body, price.fills) == (b"100", 2)


def test_a_cache_that_was_restarted_empty_fills_again(cache: Cache, price: Price, cache_server: CacheServer, raw: Redis):
    price.read(cache)
    cache_server.kill()
    cache_server.start()
    price.read(cache)
    price.read(cache)
    assert price.fills == 2


def test_projections_live_for_an_hour(cache: Cache, price: Price, raw: Redis):
    price.read(cache)
    assert 3590 <= raw.ttl(f"1:{price.scope}") <= 3600


def test_a_scope_refuses_its_thousandth_field_and_still_renews_the_others(cache: Cache, raw: Redis):
    for number in range(998):  # and the lease
        cache.read("directory", str(number), lambda _: Filled(b"-", fresh_until=cache.now() + timedelta(hours=1)))
    assert raw.hlen("1:directory") == 999
    assert cache.read("directory", "one more", lambda _: Filled(b"answered")).body == b"answered"
    assert raw.hlen("1:directory") == 999
    raw.hset("1:directory", "5", b"x 1.0 *\nold")
    cache.read("directory", "5", lambda _: Filled(b"new"))
    assert cache.read("directory", "5", lambda _: None).body == b"new"


def test_a_value_that_time_made_wrong_is_filled_again(cache: Cache):
    cache.read("x", "f", lambda _: Filled(b"then", fresh_until=cache.now()))
    cache.read("x", "f", lambda _: Filled(b"now", fresh_until=cache.now() + timedelta(minutes=1)))
    assert cache.read("x", "f", lambda _: Filled(b"later")).body == b"now"


def test_the_database_clock_is_never_thought_to_be_behind_itself(cache: Cache, engine: Engine):
    for _ in range(20):
        with engine.connect() as connection:
            told = connection.execute(text("select clock_timestamp()")).scalar_one()
        assert told <= cache.now() < told + timedelta(milliseconds=500)


def test_only_its_readers_are_answered_filled_or_found(cache: Cache):
    owner, stranger = uuid7(), uuid7()
    done: list[UUID] = []

    def fill(_: Connection) -> Filled:
        return Filled(b"private", readers=frozenset([owner]), first=lambda: done.append(owner))

    for asking in (stranger, None):
        with pytest.raises(NotFound):
            cache.read("person:x", "f", fill, reader=asking)
    assert done == []
    assert cache.read("person:x", "f", fill, reader=owner).body == b"private"
    assert cache.read("person:x", "f", fill, reader=owner).body == b"private"
    assert done == [owner]
    with pytest.raises(NotFound):
        cache.read("person:x", "f", fill, reader=stranger)


def test_a_reader_never_shares_a_strangers_fill_which_did_nothing_first(cache: Cache):
    owner, stranger = uuid7(), uuid7()
    started, go_on = threading.Event(), threading.Event()
    done: list[UUID] = []

    def fill(_: Connection) -> Filled:
        started.set()
        go_on.wait(10)
        return Filled(b"private", readers=frozenset([owner]), first=lambda: done.append(owner))

    with ThreadPoolExecutor(2) as pool:
        strangers = pool.submit(cache.read, "command:x", "f", fill, reader=stranger)
        started.wait(10)
        own = pool.submit(cache.read, "command:x", "f", fill, reader=owner)
        time.sleep(0.1)
        go_on.set()
        assert own.result().body == b"private"
        assert done == [owner]
        with pytest.raises(NotFound):
            strangers.result()


def test_what_must_be_done_first_failing_nothing_is_answered_or_stored(cache: Cache):
    def fail() -> None:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache.read("x", "f", lambda _: Filled(b"unaudited", first=fail))


def test_callers_who_missed_under_one_lease_share_one_fill(cache: Cache, price: Price):
    started, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        go_on.wait(10)

    price.meanwhile = wait
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(price.read, cache)
        started.wait(10)
        others = [pool.submit(price.read, cache) for _ in range(7)]
        time.sleep(0.1)
        go_on.set()
        assert {each.result().body for each in (first, *others)} == {b"100"}
    assert price.fills == 1


def test_a_caller_who_saw_another_lease_does_not_wait_for_an_older_fill(cache: Cache, price: Price):
    started, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        go_on.wait(10)

    price.meanwhile = wait
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(price.read, cache)
        started.wait(10)
        price.meanwhile = lambda: None
        price.change(cache, 200)
        assert price.read(cache).body == b"200"
        go_on.set()
        assert old.result().body == b"100"
    assert price.read(cache).body == b"200"


def test_a_fill_that_fails_fails_for_all_who_share_it_and_for_nobody_else(cache: Cache, price: Price):
    started, go_on = threading.Event(), threading.Event()

    def fail() -> None:
        started.set()
        go_on.wait(10)
        raise ZeroDivisionError

    price.meanwhile = fail
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(price.read, cache)
        started.wait(10)
        second = pool.submit(price.read, cache)
        time.sleep(0.1)
        go_on.set()
        for each in (first, second):
            with pytest.raises(ZeroDivisionError):
                each.result()
    price.meanwhile = lambda: None
    assert price.read(cache).body == b"100"


def test_many_are_read_at_once_and_only_the_missing_are_filled(cache: Cache):
    cache.read("doctor:b", "card", lambda _: Filled(b"B"))
    asked = []

    def fill(_: Connection, wanted: object) -> list[Filled | None]:
        asked.extend(wanted)
        return [Filled(scope[-1:].upper().encode()) if scope != "doctor:d" else None for scope, _ in wanted]

    wanted = [(f"doctor:{letter}", "card") for letter in "abcd"]
    for _ in range(2):
        answers = cache.read_many(wanted, fill)
        assert [answer and answer.body for answer in answers] == [b"A", b"B", b"C", None]
    assert asked == [wanted[0], wanted[2], wanted[3], wanted[3]]


def test_a_frozen_cache_costs_one_request_its_budget_and_the_next_ones_nothing(
    cache: Cache, price: Price, cache_server: CacheServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_server, "WITHOUT_SECONDS", 60.0)  # however slow this machine is
    insist, waits = redis_server.RedisServer.insist, []

    def timed(*arguments: Any) -> Any:
        begun = time.monotonic()
        try:
            return insist(*arguments)
        finally:
            waits.append(time.monotonic() - begun)

    price.read(cache)
    cache_server.freeze()
    monkeypatch.setattr(redis_server.RedisServer, "insist", timed)
    for _ in range(20):
        assert price.read(cache).body == b"100"
    (wait,) = waits
    assert 0.25 < wait < 2.0


def test_a_cache_that_answers_again_is_used_again(
    cache: Cache, price: Price, cache_server: CacheServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_server, "WITHOUT_SECONDS", 0.2)
    price.read(cache)
    cache_server.freeze()
    price.read(cache)
    cache_server.thaw()
    fills = price.fills
    time.sleep(0.25)
    price.read(cache)
    assert price.fills == fills


def test_a_request_spends_its_budget_once_however_often_it_asks(
    cache: Cache, price: Price, raw: Redis, monkeypatch: pytest.MonkeyPatch
):
    insist, given = redis_server.RedisServer.insist, []

    def noted(server: Any, commands: Any, seconds: float) -> Any:
        given.append(seconds)
        return insist(server, commands, seconds)

    monkeypatch.setattr(redis_server.RedisServer, "insist", noted)

    def request() -> None:
        cache.new_budget()
        raw.client_pause(200)
        price.read(cache)
        assert price.fills == 1, "a slow answer within the budget is taken"
        raw.client_pause(1000)
        price.read(cache)
        assert given[-1] < 0.15, "it did not begin a budget anew"
        assert price.fills == 2, "what was left of the budget was not enough"

    price.read(cache)
    copy_context().run(request)


def test_a_request_that_has_spent_its_budget_costs_no_other_one_the_cache(cache: Cache, price: Price, raw: Redis):
    def late() -> None:
        redis_server._left.set([0.0])
        price.read(cache)

    price.read(cache)
    raw.client_pause(5000)
    copy_context().run(late)
    raw.client_unpause()
    assert price.fills == 2, "it did not wait"
    price.read(cache)
    assert price.fills == 2


def freeze_across_a_change(
    reader: Cache, decider: Cache, price: Price, server: CacheServer, during: Callable[[], object] = lambda: None
) -> float:
    """The cache holds 100 and freezes, the price becomes 200 and is reported, the cache thaws. How long did the report take?"""
    price.read(reader)
    server.freeze()
    begun = time.monotonic()
    price.change(decider, 200)
    elapsed = time.monotonic() - begun
    during()
    server.thaw()
    return elapsed


def test_a_cache_that_froze_across_a_change_is_not_believed_when_it_thaws(
    process: Callable[..., Cache], price: Price, cache_server: CacheServer, engine: Engine, raw: Redis
):
    reader, decider, relay = process(), process(), process()
    assert freeze_across_a_change(reader, decider, price, cache_server) >= module.MARK_SECONDS
    assert raw.hget(f"1:{price.scope}", "price").endswith(b"\n100"), "it does come back with old content"
    assert price.read(reader).body == b"200"
    assert row(engine) == (1, False)
    assert unfinished(engine) == 0
    assert relay.heal()
    assert row(engine) == (2, True)
    until(lambda: price.read(reader) and raw.exists(f"2:{price.scope}") == 1)
    assert price.read(reader).body == b"200"


def test_control_without_the_mark_the_thawed_cache_shows_what_was_true_before(
    process: Callable[..., Cache], price: Price, cache_server: CacheServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_MARK", text("select :epoch"))
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.1)
    monkeypatch.setattr(redis_server.RedisServer, "insist", drop_unanswered(redis_server.RedisServer.insist))
    reader, decider = process(), process()
    freeze_across_a_change(reader, decider, price, cache_server)
    assert price.read(reader).body == b"100"


def drop_unanswered(insist: Callable[..., list[object]]) -> Callable[..., list[object]]:
    """As if the invalidation had been lost on its way: a frozen server would carry it out when it thaws."""

    def asked(self: object, commands: list[tuple[object, ...]], seconds: float) -> list[object]:
        if commands[0][0] == "UNLINK":
            raise OSError
        return insist(self, commands, seconds)

    return asked


def test_a_decider_that_is_cut_off_from_the_cache_waits_until_nobody_believes_it(process: Callable[..., Cache], price: Price):
    reader = process()
    decider = process(cache_url=f"redis://127.0.0.1:{free_port()}/0")
    price.read(reader)
    price.change(decider, 200)
    assert price.read(reader).body == b"200"


def test_control_a_reader_that_believes_its_reading_for_longer_shows_what_was_true_before(
    process: Callable[..., Cache], price: Price, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "BELIEVED_SECONDS", 60.0)
    reader = process()
    decider = process(cache_url=f"redis://127.0.0.1:{free_port()}/0")
    price.read(reader)
    reader.stop()  # as if it could not read the row any more
    price.change(decider, 200)
    assert price.read(reader).body == b"100"


def test_while_the_cache_is_out_of_use_changes_are_reported_3_seconds_after_the_mark_and_not_later(
    process: Callable[..., Cache], price: Price, engine: Engine
):
    decider = process()
    with engine.begin() as connection:
        connection.execute(text("update cache set in_use = false, changed_at = clock_timestamp() - interval '2.5 seconds'"))
    begun = time.monotonic()
    price.change(decider, 200)
    assert 0.4 < time.monotonic() - begun < 2.5
    begun = time.monotonic()
    price.change(decider, 300)
    assert time.monotonic() - begun < 0.5


def test_the_cache_is_not_put_in_use_again_before_its_time_nor_while_it_does_not_answer(
    cache: Cache, process: Callable[..., Cache], engine: Engine
):
    assert not cache.heal()
    with engine.begin() as connection:
        connection.execute(text("update cache set in_use = false, changed_at = clock_timestamp() - interval '2 seconds'"))
    assert not cache.heal()
    with engine.begin() as connection:
        connection.execute(text("update cache set changed_at = clock_timestamp() - interval '3 seconds'"))
    assert not process(cache_url=f"redis://127.0.0.1:{free_port()}/0").heal()
    assert row(engine) == (1, False)
    assert cache.heal()
    assert not cache.heal()
    assert row(engine) == (2, True)


def test_a_process_whose_reading_of_the_row_is_old_reads_from_postgres(
    cache: Cache, price: Price, monkeypatch: pytest.MonkeyPatch
):
    price.read(cache)
    monkeypatch.setattr(module, "BELIEVED_SECONDS", 0.0)
    price.read(cache)
    assert price.fills == 2


def test_a_process_that_cannot_reach_postgres_goes_on_from_the_cache_and_says_so(cache: Cache, price: Price, postgres: Postgres):
    price.read(cache)
    cache.read("x", "old", lambda _: Filled(b"old", fresh_until=cache.now()))
    cache.read("x", "soon old", lambda _: Filled(b"soon old", fresh_until=cache.now() + timedelta(seconds=1)))
    postgres.kill()
    until(lambda: price.read(cache).degraded)
    time.sleep(1.0)
    assert (price.read(cache).body, price.fills) == (b"100", 1)
    assert cache.read("x", "soon old", lambda _: None).body == b"soon old"
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        cache.read("x", "never read", lambda _: Filled(b""))
    assert time.monotonic() - begun < 1.0
    postgres.start()
    until(lambda: not price.read(cache).degraded)
    price.change(cache, 200)
    assert price.read(cache).body == b"200"


@pytest.fixture
def bounded_waits() -> Iterator[None]:
    """psycopg2 as every process of ours has it; without, it would wait for a frozen server for ever."""
    database.bound_waits()
    yield
    set_wait_callback(None)


@pytest.mark.usefixtures("bounded_waits")
def test_a_frozen_postgres_is_noticed_and_the_cache_answers(cache: Cache, price: Price, postgres: Postgres):
    price.read(cache)
    postgres.freeze()
    try:
        until(lambda: price.read(cache).degraded, 20)
    finally:
        postgres.thaw()
    until(lambda: not price.read(cache).degraded)


def test_a_busy_pool_is_taken_for_a_lost_database_only_beside_a_row_that_could_not_be_read(
    settings: Settings, price: Price, cache: Cache, monkeypatch: pytest.MonkeyPatch
):
    price.read(cache)
    engine = create_engine(settings.database_url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    crowded = Cache(settings, engine)
    crowded.start()
    with engine.connect():
        assert not price.read(crowded).degraded
        with pytest.raises(PoolTimeout):
            crowded.read("x", "never read", price.fill)
        monkeypatch.setattr(module, "BELIEVED_SECONDS", 0.0)
        assert price.read(crowded).degraded
    crowded.stop()
    engine.dispose()


def test_without_postgres_nobody_but_its_readers_is_answered(cache: Cache, postgres: Postgres):
    owner = uuid7()
    private = Filled(b"private", readers=frozenset([owner]))
    cache.read("person:x", "f", lambda _: private, reader=owner)
    postgres.kill()
    until(lambda: cache.read("person:x", "f", lambda _: private, reader=owner).degraded)
    with pytest.raises(NotFound):
        cache.read("person:x", "f", lambda _: private, reader=uuid7())


def test_a_lost_connection_is_not_taken_for_a_lost_database(cache: Cache, price: Price, postgres: Postgres):
    price.read(cache)
    admin = create_engine(postgres.superuser_url.replace("postgresql://", "postgresql+psycopg2://"))
    for _ in range(3):
        with admin.begin() as connection:
            connection.execute(
                text("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'healthmed'")
            )
        cache._row._look()
        assert not cache._row.unreachable
    admin.dispose()
    assert not price.read(cache).degraded


def test_decided_answers_are_there_before_anybody_asks(cache: Cache, engine: Engine):
    command_id, actor = uuid7(), uuid7()
    with engine.begin() as connection:
        batch_id = record_batch(connection, [f"command:{command_id}"])
    cache.finish(batch_id, [f"command:{command_id}"], {command_id: Filled(b"decided", readers=frozenset([actor]))})
    assert cache.read(f"command:{command_id}", "answer", lambda _: None, reader=actor).body == b"decided"


def test_a_pending_answer_that_was_overtaken_by_the_decision_does_not_replace_it(cache: Cache, engine: Engine):
    command_id = uuid7()
    scope = f"command:{command_id}"

    def overtaken(connection: Connection) -> Filled:
        with engine.begin() as other:
            batch_id = record_batch(other, [scope])
        cache.finish(batch_id, [scope], {command_id: Filled(b"decided")})
        return Filled(b"pending", fresh_until=cache.now() + timedelta(seconds=5))

    cache.read(scope, "answer", overtaken)
    assert cache.read(scope, "answer", lambda _: None).body == b"decided"


def leave_over(price: Price, seconds: int) -> UUID:
    """A change that was committed so long ago by somebody who died before making it known."""
    with price.engine.begin() as connection:
        connection.execute(text("update doctors set price = 200 where id = :id"), {"id": price.doctor_id})
        batch_id = record_batch(connection, [price.scope])
        connection.execute(
            text("update batches set created_at = created_at - make_interval(secs => :seconds)"), {"seconds": seconds}
        )
    return batch_id


def test_the_relay_finishes_what_a_crash_left_over(cache: Cache, price: Price, engine: Engine):
    price.read(cache)
    leave_over(price, 6)
    assert price.read(cache).body == b"100"
    assert cache.finish_left_over() == 1
    assert price.read(cache).body == b"200"
    assert unfinished(engine) == 0
    assert cache.finish_left_over() == 0


def test_the_relay_leaves_to_the_worker_what_it_may_still_finish(cache: Cache, price: Price):
    leave_over(price, 3)
    assert cache.finish_left_over() == 0


def test_two_relays_do_not_finish_the_same_batch(cache: Cache, price: Price, engine: Engine):
    batch_id = leave_over(price, 6)
    with engine.begin() as connection:
        connection.execute(text("select from batches where id = :id for update"), {"id": batch_id})
        assert cache.finish_left_over() == 0


def test_left_over_batches_are_finished_with_the_cache_out_of_reach(process: Callable[..., Cache], price: Price, engine: Engine):
    leave_over(price, 6)
    relay = process(cache_url=f"redis://127.0.0.1:{free_port()}/0")
    assert relay.finish_left_over() == 1
    assert row(engine) == (1, False)
    assert unfinished(engine) == 0


def test_whoever_finds_an_unfinished_batch_finishes_it_and_many_do_so_once(cache: Cache, price: Price, engine: Engine):
    price.read(cache)
    batch_id = leave_over(price, 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cache.finish_if_needed, [batch_id] * 8))
    assert unfinished(engine) == 0
    assert price.read(cache).body == b"200"
    cache.finish_if_needed(batch_id)
    cache.finish_if_needed(None)


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import os
import gevent
from sqlalchemy import create_engine
from domain import redis_server
from domain.cache import Cache, Filled
from domain.settings import load
redis_server.BUDGET_SECONDS = 30.0  # what is shared is asked here, not how soon a busy machine answers
settings = load(os.environ)
cache = Cache(settings, create_engine(settings.database_url))
cache.start()
fills = []
def fill(connection):
    fills.append(1)
    gevent.sleep(0.2)
    return Filled(b"filled")
jobs = [gevent.spawn(cache.read, "x", "f", fill) for _ in range(200)]
gevent.joinall(jobs, raise_error=True)
assert {job.value.body for job in jobs} == {b"filled"}
assert len(fills) == 1, len(fills)
print(cache.read("x", "f", fill).etag)
cache.stop()
"""


@pytest.mark.usefixtures("postgres", "cache_server", "broker")
def test_greenlets_share_a_fill_as_threads_do(environ: dict[str, str]):
    ended = subprocess.run(
        [sys.executable, "-c", GREENLETS], env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == module.etag(b"filled")
