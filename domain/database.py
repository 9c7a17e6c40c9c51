"""Postgres, as every process uses it: bounded in every wait, and telling the world's faults from ours."""

from __future__ import annotations

import select
from collections.abc import Callable

import psycopg2
import psycopg2.extensions
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DataError, DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

WAIT_SECONDS = 5.0
CONNECT_SECONDS = 3

# Limits of time nest, so that the innermost fires first (docs/architecture.md, *Trouble*).
SESSION_OPTIONS = (
    "-c lock_timeout=2000 -c statement_timeout=4000 -c idle_in_transaction_session_timeout=5000 "
    "-c transaction_timeout=8000 -c timezone=UTC -c random_page_cost=1.1"
)

WORLD_CLASSES = ("08", "40", "53", "57", "58", "XX")
WORLD_STATES = ("25006", "25P03", "25P04", "55P03")

Wait = Callable[[int, float], bool]


def _poll(event: int) -> Wait:
    def wait(fileno: int, seconds: float) -> bool:
        poller = select.poll()
        poller.register(fileno, event)
        return bool(poller.poll(seconds * 1000))

    return wait


_readable, _writable = _poll(select.POLLIN), _poll(select.POLLOUT)


def bound_waits(readable: Wait = _readable, writable: Wait = _writable) -> None:
    """Make psycopg2 give up on a server that is silent for 5 seconds, and close the connection.

    psycopg2 blocks in C, where no signal and no greenlet gets through. Each argument waits for a file descriptor at most so many
    seconds, and says whether it came; a gevent process passes its own.
    """

    def wait(connection: psycopg2.extensions.connection) -> None:
        while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
            ready = readable if state == psycopg2.extensions.POLL_READ else writable
            if not ready(connection.fileno(), WAIT_SECONDS):
                raise psycopg2.OperationalError("the database did not answer in time")

    psycopg2.extensions.set_wait_callback(wait)


def connect(url: str, *, pool_size: int) -> Engine:
    """An engine with `pool_size` connections at most; waiting for one of them longer than 2 seconds is an error."""
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=2,
        pool_recycle=1800,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "tcp_user_timeout": 5000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "application_name": "healthmed",
            "options": SESSION_OPTIONS,
        },
    )


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that an error carries, if any."""
    origin = error.orig if isinstance(error, DBAPIError) else error
    return getattr(origin, "pgcode", None)


def is_the_worlds_fault(error: BaseException) -> bool:
    """Whether trying again later, unchanged, may well succeed: a lost, full, stopping or overloaded database."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError | psycopg2.Error):
        return False
    state = sqlstate(error)
    if state is None:  # no answer from a server at all, unless psycopg2 itself refused what we gave it
        return not isinstance(error, ProgrammingError | DataError | psycopg2.ProgrammingError | psycopg2.DataError)
    return state.startswith(WORLD_CLASSES) or state in WORLD_STATES


def is_unreachable(error: BaseException) -> bool:
    """Whether the error says that the database can't be reached at all, rather than that it is busy."""
    state = sqlstate(error)
    return isinstance(error, DBAPIError | psycopg2.Error) and (state is None or state.startswith(("08", "57P")))
