"""Sheds load: tells when a process is behind, and turns requests away with 503 before they cost what answering them would."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from uuid_utils.compat import uuid7

from api.app import EXPOSED, HEADERS, HSTS
from api.errors import CONTENT_TYPE, TITLES
from domain.errors import Unavailable
from domain.metrics import SHED
from domain.settings import Settings

# What has waited so long when it is looked at is turned away, once all have waited so long for a while: a standstill of a moment,
# after which everybody can be answered, is no overload. What is let in waits as long again at each of the few steps it takes.
LATE_SECONDS: Final = 0.2
PATIENCE_SECONDS: Final = 0.5
CALM_SECONDS: Final = 1.0  # without anybody late, after which patience begins anew
AT_ONCE_SECONDS: Final = 0.001  # a poll that takes no longer found something ready

_RETRY_SECONDS: Final = range(2, 6)  # apart, so that those who were turned away together don't come back together
_LINE: Final = re.compile(rb"(?:GET|POST|PUT|PATCH|DELETE) /api/v1/\S* HTTP/1\.1")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d{1,7})(?=\r|$)")
_ID: Final = re.compile(rb"\r\nx-request-id: ([a-z0-9._-]{1,64})(?=\r|$)")
_ORIGIN: Final = re.compile(rb"\r\norigin: (\S+)(?=\r|$)")


class Pace:
    """How far an event loop is behind. One turn of it serves whatever was ready when it began, in any order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._ended = clock()
        self._before = 0.0  # how long what this turn found at once may have waited for the turn before
        self._late_since: float | None = None
        self._sheds_until = 0.0
        self._watchers: tuple[Any, ...] = ()

    def watch(self, loop: Any) -> None:
        """Follow the turns of a gevent loop."""
        # First of all that a turn does, and last: gevent's own callbacks run among the latter.
        check, prepare = loop.check(ref=False, priority=loop.MAXPRI), loop.prepare(ref=False, priority=loop.MINPRI)
        check.start(self.begin)
        prepare.start(self.end)
        self._watchers = (check, prepare)  # which live as long as they are referred to

    def begin(self) -> None:
        """A turn begins: the poll is over."""
        now = self._clock()
        # What a poll had to wait for has come only now.
        self._before = self._ended - self._began if now - self._ended < AT_ONCE_SECONDS else 0.0
        if self._before <= LATE_SECONDS:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = self._began
        self._began = now

    def end(self) -> None:
        """A turn ends: the next thing is a poll."""
        self._ended = self._clock()

    @property
    def is_late(self) -> bool:
        """Whether whoever is looked at now is to be turned away."""
        now = self._clock()
        turn = now - self._began
        if self._before + turn <= LATE_SECONDS:
            return False
        since = self._began if self._late_since is None else self._late_since
        if now >= self._sheds_until and now - since <= PATIENCE_SECONDS:
            return False
        self._sheds_until = now + CALM_SECONDS
        return True


class Refusal(NamedTuple):
    """What to write to somebody who is turned away, and whether to close the connection after it."""

    answer: bytes
    closes: bool


class Door:
    """Reads as little of a request as it takes to turn it away: under three times the load, parsing would take all the time."""

    def __init__(self, settings: Settings) -> None:
        body = json.dumps(
            {
                "type": f"urn:healthmed:problem:{Unavailable.code}",
                "title": TITLES[503],
                "status": 503,
                "detail": "Muita gente ao mesmo tempo; nada foi gravado, tente de novo em instantes. / "
                "Too many at once; nothing was stored, try again in a moment.",
                "code": Unavailable.code,
            },
            ensure_ascii=False,
        ).encode()
        headers = {
            "Content-Type": CONTENT_TYPE,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            **HEADERS,
            **({} if settings.local_stack else {"Strict-Transport-Security": HSTS}),
            **({"Vary": "Origin"} if settings.cors_origins else {}),
        }
        head = "HTTP/1.1 503 Service Unavailable\r\n" + _lines(headers)
        self._heads = [f"{head}Retry-After: {seconds}\r\n".encode() for seconds in _RETRY_SECONDS]
        self._body = body
        self._origins = {
            origin.encode(): _lines({"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED}).encode()
            for origin in settings.cors_origins
        }
        self._count = 0

    def turn_away(self, received: bytes) -> Refusal | None:
        """The refusal of what was received, if that is one whole request to the API and nothing else; None for all else.

        Framing is not guessed at: what could be read in two ways, or has not come whole, is left to the server's parser. So are
        the few calls that are never shed: HEAD and OPTIONS, and what operators ask.
        """
        head, blank, body = received.partition(b"\r\n\r\n")
        line, _, _ = head.partition(b"\r\n")
        if not blank or _LINE.fullmatch(line) is None:
            return None
        lowered = head.lower()
        length = _LENGTH.search(lowered)
        if b"\n" in lowered.replace(b"\r\n", b"") or b"transfer-encoding" in lowered or b"\r\nexpect" in lowered:
            return None
        if lowered.count(b"content-length") != (length is not None) or len(body) != int(length[1] if length else 0):
            return None
        SHED.inc()
        self._count += 1
        closes = b"\r\nconnection: close" in lowered
        answer = [self._heads[self._count % len(self._heads)], b"X-Request-ID: ", self._request_id(head, lowered), b"\r\n"]
        if self._origins and (asked := _ORIGIN.search(lowered)):
            answer.append(self._origins.get(head[asked.start(1) : asked.end(1)], b""))
        answer.append(b"Connection: close\r\n\r\n" if closes else b"\r\n")
        answer.append(self._body)
        return Refusal(b"".join(answer), closes)

    @staticmethod
    def _request_id(head: bytes, lowered: bytes) -> bytes:
        told = _ID.search(lowered)
        return head[told.start(1) : told.end(1)] if told else str(uuid7()).encode()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
