"""A look at the tests' PostgreSQL and its replica, past everything that the application does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg2
from sqlalchemy import Engine, text

from domain.settings import Settings
from local.servers import Replica


def follows(settings: Settings, replica: Replica) -> Settings:
    """Settings with a replica to read from."""
    return replace(settings, database_replica_url=replica.url.replace("postgresql:", "postgresql+psycopg2:"))


def value(url: str, query: str) -> Any:
    """The one value that a query of one's own connection finds."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something has come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def catch_up(engine: Engine, replica: Replica) -> None:
    """Wait until the replica holds all that the primary holds."""
    with engine.connect() as connection:
        position = connection.execute(text("select pg_current_wal_lsn()")).scalar_one()
    until(lambda: value(replica.url, f"select pg_last_wal_replay_lsn() >= '{position}'"))
