"""Connections: each use costs no more round trips than it must, and a dead one is noticed before it is used."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError

from domain import database
from domain.settings import Settings
from local.servers import Postgres, asking

Count = Callable[[Callable[[], object]], int]


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = database.connect(settings.database_url, pool_size=1)
    yield engine
    engine.dispose()


@pytest.fixture
def round_trips() -> Iterator[Count]:
    """Tells how often something waits for the server's word."""
    waited = 0

    def wait(connection: psycopg2.extensions.connection) -> None:
        nonlocal waited
        while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
            reads = state == psycopg2.extensions.POLL_READ
            waited += reads
            select.select([connection] if reads else [], [] if reads else [connection], [])

    def count(do: Callable[[], object]) -> int:
        nonlocal waited
        waited = 0
        do()
        return waited

    psycopg2.extensions.set_wait_callback(wait)
    yield count
    psycopg2.extensions.set_wait_callback(None)


def ask(engine: Engine, query: str = "select pg_backend_pid()") -> int:
    with engine.connect() as connection:
        answer: int = connection.execute(text(query)).scalar_one()
        return answer


def test_a_read_is_one_round_trip(engine: Engine, round_trips: Count) -> None:
    reads = database.autocommit(engine)
    ask(reads)
    assert round_trips(lambda: ask(reads)) == 1


def test_sqlalchemys_own_way_costs_one_more(engine: Engine, round_trips: Count) -> None:
    reads = engine.execution_options(isolation_level="AUTOCOMMIT")
    ask(reads)
    assert round_trips(lambda: ask(reads)) == 2


def test_each_statement_is_committed(engine: Engine) -> None:
    reads = database.autocommit(engine)
    with reads.connect() as connection:
        connection.execute(text("update cache set epoch = 7"))
    assert ask(engine, "select epoch from cache") == 7


def test_the_same_connection_makes_transactions_again_afterwards(engine: Engine) -> None:
    assert ask(database.autocommit(engine)) == ask(engine)
    with engine.connect() as connection:
        connection.execute(text("update cache set epoch = 8"))
    assert ask(engine, "select epoch from cache") == 1


def test_a_connection_that_the_server_closed_is_not_used(engine: Engine, postgres: Postgres) -> None:
    pid = ask(engine)
    _terminate(postgres, pid)
    assert ask(engine) != pid


def test_all_are_made_anew_when_one_was_closed(settings: Settings, postgres: Postgres) -> None:
    engine = database.connect(settings.database_url, pool_size=2)
    with engine.connect() as one, engine.connect() as other:
        pids = {each.execute(text("select pg_backend_pid()")).scalar_one() for each in (one, other)}
    _terminate(postgres, *pids)
    with engine.connect() as one, engine.connect() as other:
        assert not pids & {each.execute(text("select pg_backend_pid()")).scalar_one() for each in (one, other)}
    engine.dispose()


def test_one_that_was_idle_for_long_is_tried(engine: Engine, round_trips: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = database.autocommit(engine)
    ask(reads)
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.0)
    assert round_trips(lambda: ask(reads)) > 1


ADD = text(
    "select cast(:numbers as int[]), :more = 'a', clock_timestamp() - cast(:at as timestamptz) > interval '0 s', 7 % 4 as rest"
).execution_options(**database.PREPARED)
ASKED = {"numbers": [3, 4], "more": "a", "at": datetime(2026, 1, 1, tzinfo=UTC)}
PREPARED = text("select count(*) from pg_prepared_statements")


@pytest.fixture
def preparing(settings: Settings) -> Iterator[Engine]:
    engine = database.connect(settings.database_url, pool_size=1)
    yield engine
    engine.dispose()


def test_a_marked_statement_is_prepared_once_for_each_connection(preparing: Engine, round_trips: Count) -> None:
    reads = database.autocommit(preparing)

    def ask_all() -> None:
        with reads.connect() as connection:
            assert tuple(connection.execute(ADD, ASKED).one()) == ([3, 4], True, True, 3)

    ask_all()
    assert round_trips(ask_all) == 1
    with preparing.connect() as connection:
        assert connection.execute(PREPARED).scalar_one() == 1


def test_what_is_prepared_outlives_a_transaction_that_failed(preparing: Engine) -> None:
    for _ in range(2):
        with preparing.connect() as connection:
            connection.execute(ADD, ASKED)
            with pytest.raises(DBAPIError):
                connection.execute(text("select 1 / 0"))
    with preparing.connect() as connection:
        assert connection.execute(PREPARED).scalar_one() == 1


def test_a_connection_that_has_forgotten_is_replaced_and_the_world_blamed(preparing: Engine) -> None:
    with preparing.connect() as connection:
        connection.execute(ADD, ASKED)
        connection.commit()
        connection.execute(text("deallocate all"))
        connection.commit()
        with pytest.raises(DBAPIError) as failed:
            connection.execute(ADD, ASKED)
    assert database.is_the_worlds_fault(failed.value)
    with preparing.connect() as connection:
        assert connection.execute(ADD, ASKED).one()


def test_a_table_that_was_changed_meanwhile_is_the_worlds_fault(preparing: Engine, postgres: Postgres) -> None:
    look = text("select epoch from cache").execution_options(**database.PREPARED)
    with preparing.connect() as connection:
        connection.execute(look)
    owner = psycopg2.connect(postgres.superuser_url)
    owner.autocommit = True
    with owner.cursor() as cursor:
        cursor.execute("alter table cache alter column epoch type bigint")
    with preparing.connect() as connection, pytest.raises(DBAPIError) as failed:
        connection.execute(look)
    assert database.is_the_worlds_fault(failed.value)
    with preparing.connect() as connection:
        assert connection.execute(look).scalar_one() == 1
    with owner.cursor() as cursor:
        cursor.execute("alter table cache alter column epoch type integer")
    owner.close()


def test_behind_a_pooler_a_statement_is_sent_as_it_is(preparing: Engine, postgres: Postgres) -> None:
    @event.listens_for(preparing, "connect")
    def tell_another_number_than_the_server(connection: Any, _: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("set search_path = pooled, pg_catalog, public")
        connection.commit()

    with asking(postgres.superuser_url) as cursor:
        cursor.execute("create schema pooled authorization healthmed_app")
        cursor.execute("create function pooled.pg_backend_pid() returns int language sql as 'select 0'")
        try:
            for _ in range(2):
                with preparing.connect() as connection:
                    assert tuple(connection.execute(ADD, ASKED).one()) == ([3, 4], True, True, 3)
                    assert connection.execute(PREPARED).scalar_one() == 0
        finally:
            cursor.execute("drop schema pooled cascade")


def _terminate(postgres: Postgres, *pids: int) -> None:
    connection = psycopg2.connect(postgres.superuser_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for pid in pids:
            cursor.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    connection.close()
