"""What tests of the projections share: a cache of their own, rows put straight into Postgres, and commands decided at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine

from domain.cache import Cache
from domain.commands import Command
from domain.lanes import Drainer
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Broker
from tests.rows import send


@pytest.fixture
def rows(engine: Engine) -> Iterator[Connection]:
    """A connection whose every statement is committed at once."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


@pytest.fixture
def drainer(settings: Settings, engine: Engine, cache: Cache, broker: Broker) -> Iterator[Drainer]:
    """A worker's hands."""
    with Redis.from_url(broker.url) as client:
        yield Drainer(settings, engine, cache, client)


@pytest.fixture
def decide(settings: Settings, engine: Engine, drainer: Drainer) -> Callable[..., UUID]:
    """Sends a command and has it decided; returns its id."""

    def decide(sender_id: UUID, command: Command, role: Role = Role.PATIENT) -> UUID:
        with engine.begin() as connection:
            row = send(connection, settings, sender_id, command, role)
        drainer.drain(row.lane)
        return row.id

    return decide
