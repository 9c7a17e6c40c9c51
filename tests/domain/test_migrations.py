"""The schema goes up from empty and back, and is what the model says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from domain.migrations import downgrade, upgrade
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


def _sqlalchemy(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg2:")
