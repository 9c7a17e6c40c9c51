"""The schema goes up from empty and back, and is what the model says."""

from __future__ import annotations

import base64
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from domain.migrations import downgrade, is_ready, upgrade
from domain.model import Base
from local.servers import Postgres


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[Engine]:
    root = create_engine(_sqlalchemy(postgres.superuser_url), isolation_level="AUTOCOMMIT")
    with root.connect() as connection:
        connection.execute(text("create database trial owner healthmed_owner"))
    engine = create_engine(_sqlalchemy(postgres.migration_url).rpartition("/")[0] + "/trial")
    yield engine
    engine.dispose()
    with root.connect() as connection:
        connection.execute(text("drop database trial"))
    root.dispose()


def test_the_schema_goes_up_and_back_and_up_again(empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    upgrade(url)
    downgrade(url)
    assert set(inspect(empty_database).get_table_names()) <= {"alembic_version"}
    upgrade(url)
    with empty_database.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert differences == []


def test_going_up_twice_changes_nothing(empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    upgrade(url)
    upgrade(url)
    with empty_database.connect() as connection:
        assert connection.execute(text("select count(*) from people")).scalar_one() == 1


def test_whoever_waits_for_the_schema_sees_an_empty_one_a_new_one_and_a_newer_one(empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    assert not is_ready(url)
    upgrade(url)
    assert is_ready(url)
    with empty_database.begin() as connection:
        connection.execute(text("update alembic_version set version_num = 'of the next version'"))
    assert is_ready(url)  # a version that was rolled back to must not wait for ever
    with empty_database.begin() as connection:
        connection.execute(text("delete from alembic_version"))
    assert not is_ready(url)


NOTICE = text(
    "insert into notices (id, person_id, kind, due_at, next_try_at)"
    " select uuidv7(), id, 'password_changed', now(), now() from people where role = 'system'"
)
INDEXES = text("select count(*), count(*) filter (where indisvalid) from pg_index where indrelid = 'notices'::regclass")


def test_indexes_are_built_while_others_write_and_an_interrupted_one_anew(empty_database: Engine) -> None:
    url = empty_database.url.render_as_string(hide_password=False)
    upgrade(url, "0002")
    with empty_database.begin() as connection:
        before = connection.execute(INDEXES).one()

    def interrupted() -> None:
        with pytest.raises(SQLAlchemyError):
            upgrade(url)

    builder = threading.Thread(target=interrupted)
    with empty_database.connect() as writer:
        writer.execute(NOTICE)
        builder.start()
        while _building(empty_database) is None:
            assert builder.is_alive()
        with empty_database.begin() as other:
            other.execute(text("set local lock_timeout = '1s'"))
            other.execute(NOTICE)
        with empty_database.begin() as connection:
            connection.execute(text("select pg_terminate_backend(:pid)"), {"pid": _building(empty_database)})
    builder.join()
    with empty_database.begin() as connection:
        assert tuple(connection.execute(INDEXES).one()) == (before[0] + 1, before[0]), "one that is not valid"
    upgrade(url)
    with empty_database.begin() as connection:
        assert tuple(connection.execute(INDEXES).one()) == (before[0] + 1, before[0] + 1)


def _building(engine: Engine) -> int | None:
    """The process that builds an index on the notices and waits for somebody's transaction."""
    waiting = (
        "select pid from pg_stat_activity where wait_event = 'virtualxid' and query ilike 'create index concurrently%notices%'"
    )
    with engine.begin() as connection:
        return connection.execute(text(waiting)).scalar_one_or_none()


def _sqlalchemy(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg2:")


def test_outside_a_local_stack_the_application_must_not_own_the_schema() -> None:
    key, password = (lambda: base64.b64encode(secrets.token_bytes(32)).decode()), secrets.token_urlsafe(18)
    url = f"postgresql://app:{password}@127.0.0.1:1/healthmed"
    redis = f"redis://:{password}@127.0.0.1:1"
    environ = {"DATABASE_URL": url, "BROKER_URL": redis, "CACHE_URL": redis}
    environ |= {"JWT_KEYS": f"a={key()}", "DATA_KEYS": f"a={key()}", "HASH_KEY": key()}
    command = [sys.executable, "-m", "domain.migrations"]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("settings: DATABASE_MIGRATION_URL: needs a role of its own")
