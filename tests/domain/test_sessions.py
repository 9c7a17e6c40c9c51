"""Families of refresh tokens, as Postgres holds them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, text

from domain import sessions, tokens
from domain.cache import Cache, changing
from domain.errors import NotAuthenticated, NotFound
from domain.schedule import Role
from domain.settings import Settings
from domain.tokens import Claims, Pair, Type
from local.servers import Cache as CacheServer
from tests.rows import add_person

HOME = sessions.Origin("192.0.2.1", "a browser")


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.database_url, pool_size=10)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(settings: Settings, engine: Engine, cache_server: CacheServer) -> Iterator[Cache]:
    cache = Cache(settings, engine)
    cache.start()
    yield cache
    cache.stop()


@pytest.fixture
def person_id(engine: Engine, settings: Settings) -> UUID:
    with engine.begin() as connection:
        return add_person(connection, settings)


def log_in(engine: Engine, settings: Settings, person_id: UUID, origin: sessions.Origin = HOME) -> Pair:
    with engine.begin() as connection:
        return sessions.open_session(connection, settings, person_id, Role.PATIENT, origin)


def read(settings: Settings, token: str, expected: Type = Type.REFRESH) -> Claims:
    return tokens.read(settings.jwt_keys, token, expected)


def refreshed(engine: Engine, cache: Cache, settings: Settings, token: str) -> Pair:
    claims = read(settings, token)
    return sessions.refresh(engine, cache, settings, claims.session_id, claims.id)


def alive(cache: Cache, session_id: UUID) -> bool:
    try:
        cache.read(sessions.scope(session_id), "alive", lambda connection: sessions.alive(connection, session_id))
    except NotFound:
        return False
    return True


def test_a_session_lives_7_days_idle_and_30_at_most(engine: Engine, cache: Cache, settings: Settings, person_id: UUID) -> None:
    pair = log_in(engine, settings, person_id)
    first = read(settings, pair.refresh)
    assert first.expires_at - first.issued_at == timedelta(days=7)
    access = read(settings, pair.access, Type.ACCESS)
    assert access.expires_at - access.issued_at == timedelta(minutes=15)
    with engine.begin() as connection:
        connection.execute(text("update sessions set created_at = created_at - interval '28 days'"))
    last = read(settings, refreshed(engine, cache, settings, pair.refresh).refresh)
    assert abs(last.expires_at - last.issued_at - timedelta(days=2)) <= timedelta(seconds=2)


def test_a_session_that_is_over_cannot_be_refreshed(engine: Engine, cache: Cache, settings: Settings, person_id: UUID) -> None:
    pair = log_in(engine, settings, person_id)
    with engine.begin() as connection:
        connection.execute(text("update sessions set expires_at = clock_timestamp()"))
    with pytest.raises(NotAuthenticated):
        refreshed(engine, cache, settings, pair.refresh)
    assert not alive(cache, read(settings, pair.refresh).session_id)


def test_a_token_that_was_never_given_out_ends_the_session(
    engine: Engine, cache: Cache, settings: Settings, person_id: UUID
) -> None:
    session_id = read(settings, log_in(engine, settings, person_id).refresh).session_id
    assert alive(cache, session_id)
    with pytest.raises(NotAuthenticated):
        sessions.refresh(engine, cache, settings, session_id, session_id)
    assert not alive(cache, session_id)


def test_refreshing_at_once_gives_everybody_the_same_successor(
    engine: Engine, cache: Cache, settings: Settings, person_id: UUID
) -> None:
    pair = log_in(engine, settings, person_id)
    waiting = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")
    with ThreadPoolExecutor(4) as threads, engine.connect() as watcher:
        with engine.begin() as holder:  # so that all of them have come before the first one goes on
            holder.execute(text("select from sessions for update"))
            clicks = [threads.submit(refreshed, engine, cache, settings, pair.refresh) for _ in range(4)]
            deadline = time.monotonic() + 1.5
            while watcher.execute(waiting).scalar_one() < 4:
                watcher.rollback()
                assert time.monotonic() < deadline
        successors = [click.result() for click in clicks]
    assert len({successor.refresh for successor in successors}) == 1
    assert len({successor.access for successor in successors}) == 1


def test_the_session_that_is_kept_is_the_only_one_left(engine: Engine, cache: Cache, settings: Settings, person_id: UUID) -> None:
    ids = [read(settings, log_in(engine, settings, person_id).refresh).session_id for _ in range(3)]
    with engine.begin() as connection:
        stranger = add_person(connection, settings)
    other = read(settings, log_in(engine, settings, stranger).refresh).session_id
    assert all(alive(cache, session_id) for session_id in (*ids, other))
    with changing(engine, cache) as change:
        sessions.end_all(change, person_id, but=ids[1])
    assert [alive(cache, session_id) for session_id in (*ids, other)] == [False, True, False, True]


def test_nobody_ends_a_session_of_somebody_else(engine: Engine, cache: Cache, settings: Settings, person_id: UUID) -> None:
    session_id = read(settings, log_in(engine, settings, person_id).refresh).session_id
    with pytest.raises(NotFound), changing(engine, cache) as change:
        sessions.end_own(change, session_id, session_id)
    assert alive(cache, session_id)


def test_where_a_log_in_came_from_is_sealed(engine: Engine, settings: Settings, person_id: UUID) -> None:
    log_in(engine, settings, person_id)
    with engine.connect() as connection:
        stored = connection.execute(text("select origin, address_hash from sessions")).one()
        (shown,) = sessions.open_sessions(connection, settings, person_id)
    assert b"192.0.2.1" not in bytes(stored.origin) + bytes(stored.address_hash)
    assert shown.origin == HOME


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("192.0.2.1", True),
        ("::ffff:192.0.2.1", True),
        ("192.0.2.2", False),
        ("2001:db8:1:2::1", True),
        ("2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:3::1", False),
        ("unix:", False),
    ],
)
def test_an_address_that_logged_in_before_is_known(
    engine: Engine, settings: Settings, person_id: UUID, address: str, known: bool
) -> None:
    log_in(engine, settings, person_id)
    log_in(engine, settings, person_id, sessions.Origin("2001:db8:1:2::42", "a browser"))
    with engine.begin() as connection:
        stranger = add_person(connection, settings)
        assert sessions.known_address(connection, settings, person_id, address) is known
        assert not sessions.known_address(connection, settings, stranger, address)
