"""What a request may use: one set of services per process, and the id that the request goes by."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from ipaddress import ip_address

from flask import current_app, g, request
from redis import Redis
from sqlalchemy import Engine
from uuid_utils import uuid7  # whose ids are sooner made, and sooner written, than those of `compat`

from api.attempts import Attempts
from domain.cache import Cache
from domain.settings import Settings
from domain.waiters import Waiters

_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](:\d+)?|(?P<v4>[\d.]+):\d+", re.ASCII)
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class Services:
    """The settings and connections of one API process."""

    settings: Settings
    engine: Engine
    reads: Engine  # the same pool; each statement by itself, no transaction around it
    broker: Redis
    cache: Cache
    waiters: Waiters
    attempts: Attempts
    leaving: threading.Event = field(default_factory=threading.Event)  # the process is about to end

    def leave(self) -> None:
        """Say that the process is about to end, and answer who waits for a decision as things stand."""
        self.leaving.set()
        self.waiters.release()

    def close(self) -> None:
        """Let go of every connection."""
        self.waiters.stop()
        self.cache.stop()
        self.broker.close()
        self.engine.dispose()


def services() -> Services:
    """The services of the process that answers the current request."""
    found: Services = current_app.extensions["healthmed"]
    return found


def request_id() -> str:
    """The id of the current request: the caller's X-Request-ID if it is sane, else a new one."""
    if "request_id" not in g:
        g.request_id = sane_id(request.headers.get("X-Request-ID", ""))
    return str(g.request_id)


def sane_id(sent: str) -> str:
    """The id that a request goes by: what was sent as its X-Request-ID, if that is sane, else a new one."""
    return sent if _SANE_ID.fullmatch(sent) else str(uuid7())


def client_address() -> str:
    """The address of whoever asks: behind the stated number of proxies, and no further; 0.0.0.0 if they told none."""
    told = request.remote_addr or ""
    found = _WITH_PORT.fullmatch(told)  # as some proxies write it, a new one with each connection
    try:
        return str(ip_address(found["v6"] or found["v4"] if found else told))
    except ValueError:
        return "0.0.0.0"  # noqa: S104 # nosec B104


def mark_degraded() -> None:
    """Have the answer say that it was given while the database could not be reached (`Warning: 110`)."""
    g.degraded = True
