"""Postgres, as every process uses it: bounded in every wait, and telling the world's faults from ours."""

from __future__ import annotations

import hashlib
import re
import select
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import psycopg2
import psycopg2.extensions
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DataError, DBAPIError, InvalidatePoolError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

WAIT_SECONDS = 5.0
CONNECT_SECONDS = 3
IDLE_SECONDS = 5.0  # a connection that nobody used for so long is tried before it is used

# Limits of time nest, so that the innermost fires first (docs/architecture.md, *Trouble*).
SESSION_OPTIONS = (
    "-c lock_timeout=2000 -c statement_timeout=4000 -c idle_in_transaction_session_timeout=5000 "
    "-c transaction_timeout=8000 -c timezone=UTC -c random_page_cost=1.1"
)

PREPARED = {"prepared": True}  # an execution option of statements that are executed often, and always alike
_UNPREPARED = ("26000", "0A000")
WORLD_CLASSES = ("08", "40", "53", "57", "58", "XX")
WORLD_STATES = ("25006", "25P03", "25P04", "55P03", *_UNPREPARED)

Wait = Callable[[int, float], bool]


def _poll(event: int) -> Wait:
    def wait(fileno: int, seconds: float) -> bool:
        poller = select.poll()
        poller.register(fileno, event)
        return bool(poller.poll(seconds * 1000))

    return wait


_readable, _writable = _poll(select.POLLIN), _poll(select.POLLOUT)


_new_poll: Callable[[], Any] = select.poll


def bound_waits(readable: Wait = _readable, writable: Wait = _writable, *, poll: Callable[[], Any] = select.poll) -> None:
    """Make psycopg2 give up on a server that is silent for 5 seconds, and close the connection.

    psycopg2 blocks in C, where no signal and no greenlet gets through. Each argument waits for a file descriptor at most so many
    seconds, and says whether it came; a gevent process passes its own, and the `select.poll` that gevent took the place of.
    """
    global _new_poll
    _new_poll = poll

    def wait(connection: psycopg2.extensions.connection) -> None:
        while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
            ready = readable if state == psycopg2.extensions.POLL_READ else writable
            if not ready(connection.fileno(), WAIT_SECONDS):
                raise psycopg2.OperationalError("the database did not answer in time")

    psycopg2.extensions.set_wait_callback(wait)


def connect(url: str, *, pool_size: int) -> Engine:
    """An engine with `pool_size` connections at most; waiting for one of them longer than 2 seconds is an error.

    Each connection parses and plans the statements marked so (`PREPARED`) once, unless a pooler stands between.
    """
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_use_lifo=True,  # few at once need few: the others hold no plans and no caches, here or in the server
        pool_timeout=2,
        pool_recycle=1800,
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
    event.listen(engine, "checkin", _remember_use)
    event.listen(engine, "checkout", _try_if_in_doubt)
    event.listen(engine, "do_execute", _execute_prepared)
    event.listen(engine, "handle_error", _forget_prepared)
    return engine


def autocommit(engine: Engine) -> Engine:
    """The same connections, each statement a transaction of its own, which no round trip is spent on.

    SQLAlchemy's isolation level AUTOCOMMIT spends one on each use of a connection, to take it back.
    """
    apart = engine.execution_options()
    event.listen(apart, "engine_connect", _begin_autocommit)
    event.listen(engine, "checkin", _end_autocommit)
    return apart


def _remember_use(_: Any, record: Any) -> None:
    record.info["used_at"] = time.monotonic()


def _try_if_in_doubt(connection: Any, record: Any, _: Any) -> None:
    """Try a connection that may be dead: one that was idle for long, or whose server said something unasked, such as farewell.

    To try each before each use, as SQLAlchemy offers, is a round trip more for every read that is not cached.
    """
    used_at = record.info.get("used_at")
    if used_at is None or (time.monotonic() - used_at < IDLE_SECONDS and not _has_spoken(connection)):
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("")
        connection.rollback()
    except psycopg2.Error:
        raise InvalidatePoolError from None


def _execute_prepared(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    """Execute a marked statement; False for any other, and behind a pooler, which may change servers between two statements.

    psycopg2 writes parameters into the statement, which the server then plans anew: mostly more than to execute it.
    """
    if not context or not context.execution_options.get("prepared"):
        return False
    info = context.root_connection.connection.info
    if "prepared" not in info:
        cursor.execute("select pg_backend_pid()")
        info["prepared"] = set() if cursor.fetchone()[0] == cursor.connection.info.backend_pid else None
    known: set[str] | None = info["prepared"]
    if known is None:
        return False
    prepare, execute = _prepared(statement)
    if statement not in known:
        cursor.execute(prepare)
        known.add(statement)  # which no rollback undoes
    cursor.execute(execute, parameters)
    return True


def _forget_prepared(context: Any) -> None:
    """Part with a connection that does not know its statements any more, or whose tables are not what they were."""
    if sqlstate(context.original_exception) in _UNPREPARED:
        context.is_disconnect = True


@lru_cache
def _prepared(statement: str) -> tuple[str, str]:
    """How to prepare and to execute a statement as SQLAlchemy has compiled it for psycopg2. A cast says a parameter's type."""
    types = dict(_CAST.findall(statement))
    names = list(dict.fromkeys(_PARAMETER.findall(statement)))
    name = f"healthmed_{hashlib.sha256(statement.encode()).hexdigest()[:24]}"
    body = _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", statement).replace("%%", "%")
    given = [f"cast(%({each})s as {types[each]})" if each in types else f"%({each})s" for each in names]
    return f"prepare {name} as {body}", f"execute {name} ({', '.join(given)})" if given else f"execute {name}"


_PARAMETER = re.compile(r"%\((\w+)\)s")
_CAST = re.compile(r"cast\(%\((\w+)\)s as ([a-z]+(?:\[\])?)\)")


def _has_spoken(connection: Any) -> bool:
    poller = _new_poll()
    poller.register(connection.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def _begin_autocommit(connection: Connection) -> None:
    raw: Any = connection.connection.dbapi_connection
    raw.autocommit = True


def _end_autocommit(connection: Any, _: Any) -> None:
    if connection is not None and not connection.closed:
        connection.autocommit = False


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
