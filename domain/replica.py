"""Reading from a replica, and only what it is sure to hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from domain import database

ALONE_SECONDS = 30.0  # a replica that did not answer is left alone for so long
CLOCK_SECONDS = 1.0  # what time makes bookable is judged by the clock of the server that is asked

_CONNECTIONS = 16

T = TypeVar("T")

log = structlog.get_logger()


class Behind(Exception):
    """The replica does not hold all that the primary holds, or does not answer: the primary is to be asked."""


class Replica:
    """A copy that follows the primary, and is read only when it has replayed all that the primary had when it was asked for.

    It may even be ahead: it can show a commit that the primary is about to show. So what tells people that something is done
    must come from the primary.
    """

    def __init__(self, url: str, primary: Engine) -> None:
        self._primary = database.autocommit(primary)
        self._engine = database.connect(url, pool_size=_CONNECTIONS)
        self._alone_until = 0.0

    def look_up(self, read: Callable[[Connection], T]) -> T:
        """What `read` finds. Raises Behind, after which nothing of it has happened but reading."""
        if self._alone_until:
            if time.monotonic() < self._alone_until:
                raise Behind
            self._alone_until = time.monotonic() + ALONE_SECONDS  # one asks again; the others go on without
        with self._primary.connect() as connection:
            wanted = connection.execute(_WANTED).one()
        try:
            with self._engine.begin() as connection:  # one transaction, so that no pooler puts another server under the read
                if not connection.execute(_HOLDS, wanted._asdict()).scalar_one():
                    raise Behind
                self._alone_until = 0.0
                return read(connection)
        except (DBAPIError, PoolTimeout) as error:
            if isinstance(error, PoolTimeout) or database.is_unreachable(error):
                self._alone_until = time.monotonic() + ALONE_SECONDS
                log.warning("replica_left_alone", error=type(error).__name__)
            raise Behind from None

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


_WANTED = text("select cast(pg_current_wal_lsn() as text) as position, clock_timestamp() as clock")
_HOLDS = text(
    "select pg_is_in_recovery() and pg_last_wal_replay_lsn() >= cast(:position as pg_lsn)"
    f" and abs(extract(epoch from clock_timestamp() - :clock)) < {CLOCK_SECONDS}"
)
