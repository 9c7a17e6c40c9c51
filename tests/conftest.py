"""The real servers, one set for each test process, and a clean start for every test that uses them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psycopg2
import pytest
import redis
from sqlalchemy import Engine, create_engine

from domain import migrations
from domain.cache import Cache
from domain.settings import Settings, load
from local.servers import Broker, Postgres, Replica, Server
from local.servers import Cache as CacheServer

ROOT = Path(__file__).parent
STACKS = ("e2e", "faults", "load", "local", "security", "workers")

AnyServer = TypeVar("AnyServer", bound=Server)

# Without triggers, because what is append-only refuses to be emptied, and foreign keys would be checked row by row.
EMPTY = """
    set session_replication_role = replica;
    set lock_timeout = '5s';
    do $$
    declare name text;
    begin
        for name in select tablename from pg_tables where schemaname = 'public' and tablename <> 'alembic_version' loop
            execute format('delete from %I', name);
        end loop;
    end $$;
    insert into people (id, role) values ('00000000-0000-7000-8000-000000000000', 'system');
    insert into cache (id, epoch, in_use) values (1, 1, true);
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` asks the tests of security for their full numbers."""
    parser.addoption("--long", action="store_true", help="run the tests of security with their full numbers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that bring up whole stacks: if one of those came last, all other processes would wait for it."""
    items.sort(key=lambda item: item.path.relative_to(ROOT).parts[0] not in STACKS)


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the full numbers are asked for (`make security`) rather than a short version (`make test`)."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """PostgreSQL with the schema at its newest; it survives a kill but no power cut, and is the quicker for it."""
    options = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}
    with _running(Postgres(tmp_path_factory.mktemp("postgres"), options=options)) as server:
        migrations.upgrade(server.migration_url.replace("postgresql:", "postgresql+psycopg2:"), app_url=server.url)
        yield server


@pytest.fixture(scope="session")
def replica(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica that follows it."""
    with _running(Replica(tmp_path_factory.mktemp("replica"), postgres)) as server:
        yield server


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The Valkey of queue, locks and flags."""
    with _running(Broker(tmp_path_factory.mktemp("broker"))) as server:
        yield server


@pytest.fixture(scope="session")
def cache_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheServer]:
    """The Valkey of projections."""
    with _running(CacheServer(tmp_path_factory.mktemp("cache"))) as server:
        yield server


@pytest.fixture(scope="session")
def environ(postgres: Postgres, broker: Broker, cache_server: CacheServer) -> dict[str, str]:
    """The environment of a process that is to use the tests' servers."""
    return {
        "LOCAL_STACK": "on",
        "DATABASE_URL": postgres.url,
        "DATABASE_MIGRATION_URL": postgres.migration_url,
        "BROKER_URL": broker.url,
        "CACHE_URL": cache_server.url,
        "JWT_KEYS": f"test={base64.b64encode(b'j' * 32).decode()}",
        "DATA_KEYS": f"test={base64.b64encode(b'd' * 32).decode()}",
        "HASH_KEY": base64.b64encode(b"h" * 32).decode(),
        "RATE_LIMITS": "off",
    }


@pytest.fixture(scope="session")
def settings(environ: dict[str, str]) -> Settings:
    """The settings that `environ` makes."""
    return load(environ)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """A pool of the test's own."""
    engine = create_engine(settings.database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(settings: Settings, engine: Engine, cache_server: CacheServer, broker: Broker) -> Iterator[Cache]:
    """The cache, as a process of the API has it."""
    cache = Cache(settings, engine)
    cache.start()
    yield cache
    cache.stop()


@pytest.fixture(autouse=True)
def start_clean(request: pytest.FixtureRequest) -> None:
    """Bring the servers that a test uses to where they were when first started, whatever the last one did to them."""
    for name in ("postgres", "replica", "broker", "cache_server"):
        if name in request.fixturenames:
            start_again(request.getfixturevalue(name))


def start_again(server: Server) -> None:
    """Have a server run and hold nothing, whatever was done to it. A fixture that outlives one test calls this itself."""
    if server.frozen:
        server.thaw()
    if not server.running:
        server.start()
    if isinstance(server, Replica):
        server.resume()
    elif isinstance(server, Postgres):
        _empty(server)
    else:
        with redis.Redis.from_url(server.url) as client:
            client.flushall()


@contextmanager
def _running(server: AnyServer) -> Iterator[AnyServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _empty(server: Postgres) -> None:
    connection = psycopg2.connect(server.superuser_url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(EMPTY)
    finally:
        connection.close()
