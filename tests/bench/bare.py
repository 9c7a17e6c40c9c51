"""What commands are compared with: a WSGI view that inserts and commits one row, and a Celery task that sets one key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gevent.socket import wait_read, wait_write
from sqlalchemy import text
from uuid_utils.compat import uuid7

from domain import database, settings
from workers.app import app as celery
from workers.app import connect

KEY = "bench:touched"


def serve() -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """The view, served by the API's own gunicorn configuration: no framework, one statement, one row."""
    from api.wsgi import _gently  # only under gunicorn, which has patched the process by now

    database.bound_waits(_gently(wait_read), _gently(wait_write))
    engine = database.connect(settings.current().database_url, pool_size=16)
    body = b"x" * 200

    def view(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        with engine.begin() as connection:
            connection.execute(text("insert into batches (id, scopes, finished_at) values (:id, '{}', now())"), {"id": uuid7()})
        start_response("202 Accepted", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return view


@celery.task(name="touch")
def touch(key: str) -> None:
    """Set a key that somebody waits for."""
    global _broker
    if _broker is None:
        _broker = connect(settings.current().broker_url)
    _broker.set(key, 1)


_broker: Any = None
