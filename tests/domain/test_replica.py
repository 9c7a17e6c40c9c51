"""Reading from a real streaming replica, paused, resumed, ahead, broken and promoted: never is anything old answered."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import set_wait_callback
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from domain import database, projections
from domain import replica as module
from domain.cache import Cache, Filled, changing
from domain.commands import Book
from domain.errors import NotFound
from domain.lanes import Drainer
from domain.settings import Settings
from local.servers import Broker, Postgres, Replica
from local.servers import Cache as CacheServer
from tests.replicas import catch_up, follows, until, value
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow

SECONDS = 3.0  # of writing, reading, pausing and resuming at once


@pytest.fixture
def cache(settings: Settings, engine: Engine, cache_server: CacheServer, broker: Broker, replica: Replica) -> Iterator[Cache]:
    """The cache of a process that may read a replica, which runs and has caught up."""
    cache = Cache(follows(settings, replica), engine)
    cache.start()
    catch_up(engine, replica)
    yield cache
    cache.stop()


def answering(cache: Cache) -> int:
    """The port of the server that answers now."""
    return cache.look_up(lambda connection: connection.execute(text("select inet_server_port()")).scalar_one())


class Price:
    """A projection of one doctor's price, that counts which server it was filled from."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.filled: Counter[int] = Counter()
        with engine.begin() as connection:
            self.doctor_id = add_doctor(connection, settings, price=100)
        self.scope = f"doctor:{self.doctor_id}"

    def fill(self, connection: Connection) -> Filled:
        found = text("select price, inet_server_port() from doctors where id = :id")
        price, port = connection.execute(found, {"id": self.doctor_id}).one()
        self.filled[port] += 1
        return Filled(str(price).encode())

    def read(self, cache: Cache) -> int:
        return int(cache.read(self.scope, "price", self.fill).body)

    def change(self, cache: Cache, price: int) -> None:
        with changing(self.engine, cache) as change:
            change.connection.execute(
                text("update doctors set price = :price where id = :id"), {"price": price, "id": self.doctor_id}
            )
            change.touch(self.scope)


@pytest.fixture
def price(engine: Engine, settings: Settings) -> Price:
    return Price(engine, settings)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas are believed, whatever they hold."""
    monkeypatch.setattr(module, "_HOLDS", text("select true or :position = '' or :clock is null"))


def test_a_replica_that_has_caught_up_is_read(cache: Cache, price: Price, engine: Engine, replica: Replica):
    catch_up(engine, replica)
    assert price.read(cache) == 100
    assert set(price.filled) == {replica.port}


def read_what_a_paused_replica_lacks(cache: Cache, price: Price, engine: Engine, replica: Replica) -> int:
    catch_up(engine, replica)
    replica.pause()
    price.change(cache, 200)
    return price.read(cache)


def test_what_a_paused_replica_lacks_is_read_from_the_primary(
    cache: Cache, price: Price, engine: Engine, postgres: Postgres, replica: Replica
):
    assert read_what_a_paused_replica_lacks(cache, price, engine, replica) == 200
    assert set(price.filled) == {postgres.port}
    replica.resume()
    catch_up(engine, replica)
    price.change(cache, 300)
    catch_up(engine, replica)
    assert price.read(cache) == 300
    assert price.filled[replica.port] == 1


@pytest.mark.usefixtures("unchecked")
def test_control_unchecked_a_paused_replica_shows_what_was(cache: Cache, price: Price, engine: Engine, replica: Replica):
    assert read_what_a_paused_replica_lacks(cache, price, engine, replica) == 100


def stale_answers(cache: Cache, price: Price, replica: Replica) -> int:
    """How many answers showed less than had been reported, while one writes, two read, and the replica pauses and goes on."""
    reported, stop = 100, threading.Event()

    def read_on() -> int:
        stale = 0
        while not stop.is_set():
            floor = reported
            stale += price.read(cache) < floor
        return stale

    def pause_on() -> None:
        while not stop.is_set():
            replica.pause()
            time.sleep(0.05)
            replica.resume()
            time.sleep(0.1)

    with ThreadPoolExecutor(3) as pool:
        readers, pauser = [pool.submit(read_on) for _ in range(2)], pool.submit(pause_on)
        deadline = time.monotonic() + SECONDS
        try:
            while time.monotonic() < deadline:
                price.change(cache, reported + 1)
                reported += 1
                time.sleep(0.01)
        finally:
            stop.set()
        pauser.result()
        return sum(reader.result() for reader in readers)


def test_no_answer_is_stale_while_a_replica_pauses_and_goes_on_under_writes(
    cache: Cache, price: Price, postgres: Postgres, replica: Replica
):
    assert stale_answers(cache, price, replica) == 0
    assert min(price.filled[postgres.port], price.filled[replica.port]) > 5, "both were read"


@pytest.mark.usefixtures("unchecked")
def test_control_unchecked_the_same_run_gives_stale_answers(cache: Cache, price: Price, replica: Replica):
    assert stale_answers(cache, price, replica) > 0


@contextmanager
def unacknowledged(postgres: Postgres) -> Iterator[None]:
    """Commits wait for a replica that never confirms them: written and sent to all others, they are not shown yet."""

    def wait_for(name: str) -> None:
        value(postgres.superuser_url, f"alter system set synchronous_standby_names = '{name}'")
        value(postgres.superuser_url, "select pg_reload_conf()")

    wait_for("nobody")
    try:
        yield
    finally:
        wait_for("")


def read_a_command_that_only_the_replica_shows(
    cache: Cache, engine: Engine, settings: Settings, drainer: Drainer, postgres: Postgres, replica: Replica
) -> str:
    with engine.begin() as connection:
        patient_id, doctor_id = add_person(connection, settings), add_doctor(connection, settings)
        command = send(connection, settings, patient_id, Book(add_slot(connection, doctor_id, tomorrow())))

    def status() -> str:
        return str(json.loads(projections.command(cache, command.id, patient_id).body)["status"])

    shown = f"select status from commands where id = '{command.id}'"
    with ThreadPoolExecutor(1) as pool:
        with unacknowledged(postgres):
            deciding = pool.submit(drainer.drain, command.lane)
            until(lambda: value(replica.url, shown) == "succeeded")
            assert value(postgres.url, shown) == "pending"
            early = status()
        deciding.result()
    assert status() == "succeeded"
    return early


def test_a_command_does_not_read_decided_before_the_primary_shows_it(
    cache: Cache, engine: Engine, settings: Settings, drainer: Drainer, postgres: Postgres, replica: Replica
):
    assert read_a_command_that_only_the_replica_shows(cache, engine, settings, drainer, postgres, replica) == "pending"


def test_control_read_from_the_replica_a_command_reads_decided_too_early(
    cache: Cache,
    engine: Engine,
    settings: Settings,
    drainer: Drainer,
    postgres: Postgres,
    replica: Replica,
    monkeypatch: pytest.MonkeyPatch,
):
    look_up = Cache.look_up
    monkeypatch.setattr(Cache, "look_up", lambda cache, read, primary: look_up(cache, read))
    assert read_a_command_that_only_the_replica_shows(cache, engine, settings, drainer, postgres, replica) == "succeeded"


@pytest.mark.parametrize("trouble", [Replica.kill, Replica.freeze], ids=["killed", "frozen"])
def test_a_replica_that_does_not_answer_is_left_alone_for_a_while_and_then_asked_again(
    cache: Cache, engine: Engine, postgres: Postgres, replica: Replica, monkeypatch: pytest.MonkeyPatch, trouble: Any
):
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(module, "ALONE_SECONDS", 2.0)
    database.bound_waits()
    try:
        assert answering(cache) == replica.port
        trouble(replica)
        assert answering(cache) == postgres.port
        begun = time.monotonic()
        assert {answering(cache) for _ in range(20)} == {postgres.port}
        assert time.monotonic() - begun < 0.4, "it was not asked again"
        replica.thaw()
        if not replica.running:
            replica.start()
        catch_up(engine, replica)
        until(lambda: answering(cache) == replica.port)
    finally:
        set_wait_callback(None)


def test_what_a_replica_breaks_off_is_read_from_the_primary(cache: Cache, postgres: Postgres, replica: Replica):
    asked: list[int] = []

    def read(connection: Connection) -> int:
        asked.append(connection.execute(text("select inet_server_port()")).scalar_one())
        if asked[-1] == replica.port:  # as a replica does with a query that keeps it from replaying
            connection.execute(text("select pg_cancel_backend(pg_backend_pid()), pg_sleep(1)"))
        return asked[-1]

    assert cache.look_up(read) == postgres.port
    assert asked == [replica.port, postgres.port]
    assert answering(cache) == replica.port, "it is asked again at once"


def test_a_rule_that_a_read_finds_broken_is_not_looked_for_twice(cache: Cache):
    asked: list[Connection] = []

    def read(connection: Connection) -> None:
        asked.append(connection)
        raise NotFound

    with pytest.raises(NotFound):
        cache.look_up(read)
    assert len(asked) == 1


@pytest.mark.parametrize("seconds", [-2, 2])
def test_a_replica_whose_clock_is_off_is_not_read(
    cache: Cache, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, seconds: int
):
    wanted = f"select '0/0' as position, clock_timestamp() + make_interval(secs => {seconds}) as clock"
    monkeypatch.setattr(module, "_WANTED", text(wanted))
    assert answering(cache) == postgres.port


def test_without_the_primary_nothing_vouches_for_a_replica(cache: Cache, price: Price, postgres: Postgres):
    price.read(cache)
    postgres.kill()
    with pytest.raises(DBAPIError):
        answering(cache)
    assert price.read(cache) == 100, "but what is cached is answered"


def test_a_replica_that_was_promoted_is_not_read(settings: Settings, engine: Engine, postgres: Postgres, tmp_path: Path):
    former = Replica(tmp_path / "replica", postgres)
    former.start()
    cache = Cache(follows(settings, former), engine)
    try:
        catch_up(engine, former)
        assert answering(cache) == former.port
        assert value(former.superuser_url, "select pg_promote()")
        assert answering(cache) == postgres.port
    finally:
        cache.stop()
        former.stop()
