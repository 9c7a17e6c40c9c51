"""Sheds load: only so many requests of a kind are answered at once, and whoever can't begin soon is turned away with 503.

Turning away must cost next to nothing, or it would be all that a process does under three times the load: so it is done before a
request is parsed, and says as much of it as has to be known.
"""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from gevent.event import Event
from uuid_utils.compat import uuid7

from api.app import EXPOSED, HEADERS, HSTS
from api.errors import CONTENT_TYPE, TITLES
from domain.errors import Unavailable
from domain.metrics import SHED
from domain.settings import Settings

# So few that none waits in vain for a connection to Redis or the database, so many that these have enough to do. Commands have
# seats of their own: with the database gone they wait for it, while reads are answered from the cache.
READS: Final = 128
OTHERS: Final = 32
PATIENCE_SECONDS: Final = 0.5  # to get a seat in
CALM_SECONDS: Final = 1.0  # without anybody turned away, after which it is an overload no longer

_RETRY_SECONDS: Final = range(2, 6)  # apart, so that those who were turned away together don't come back together
# Whoever gives a password waits for a turn to hash it, and that has limits of its own.
_LINE: Final = re.compile(
    rb"(?:(?P<read>GET) /api/v1/"
    rb"|(?P<hashes>(?:POST|PUT|DELETE) /api/v1/(?=auth/|patients |doctors |me/(?:password|email|totp|erasure)[ /]))"
    rb"|(?:POST|PUT|PATCH|DELETE) /api/v1/)\S* HTTP/1\.1"
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d{1,7})(?=\r|$)")
_ID: Final = re.compile(rb"\r\nx-request-id: ([a-z0-9._-]{1,64})(?=\r|$)")
_ORIGIN: Final = re.compile(rb"\r\norigin: (\S+)(?=\r|$)")


class Room:
    """So many seats, which are taken in turn. While people are turned away, no more may wait than there are seats."""

    def __init__(self, seats: int) -> None:
        self._seats = self._free = seats
        self._waiting: OrderedDict[int, Event] = OrderedDict()
        self._number = 0
        self._sheds_until = 0.0

    @property
    def sheds(self) -> bool:
        """Whether too many come."""
        return self._sheds_until > 0.0 and time.monotonic() < self._sheds_until

    def enter(self) -> bool:
        """Take a seat, if need be after a wait; False for whoever is turned away."""
        if self._free:
            self._free -= 1
            return True
        if not self.sheds or len(self._waiting) < self._seats:
            self._number += 1
            number, turn = self._number, Event()
            self._waiting[number] = turn
            if turn.wait(PATIENCE_SECONDS) or self._waiting.pop(number, None) is None:
                return True
        self._sheds_until = time.monotonic() + CALM_SECONDS
        return False

    def leave(self) -> None:
        """Give the seat to whoever has waited longest."""
        if self._waiting:
            _, turn = self._waiting.popitem(last=False)
            turn.set()
        else:
            self._free += 1


class Asked:
    """One whole request, of which no more is known than its kind."""

    __slots__ = ("head", "held", "lowered", "room")

    def __init__(self, head: bytes, lowered: bytes, room: Room, held: bool) -> None:
        self.head, self.lowered, self.room = head, lowered, room
        self.held = held  # it will do nothing but wait for a decision, and needs no seat for that

    @property
    def closes(self) -> bool:
        """Whether its sender wants the connection closed afterwards."""
        return b"\r\nconnection: close" in self.lowered


class Door:
    """Where requests of one process come in, or don't."""

    def __init__(self, settings: Settings) -> None:
        self._reads, self._others = Room(READS), Room(OTHERS)
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

    def see(self, received: bytes) -> Asked | None:
        """What was received, if that is one whole request to the API and nothing else; None for all else, which is not shed.

        Framing is not guessed at: what could be read in two ways, or has not come whole, is left to the server's parser. So are
        the calls that are bounded otherwise: what operators ask, and what hashes a password.
        """
        head, blank, body = received.partition(b"\r\n\r\n")
        line = _LINE.match(head)
        if not blank or line is None or line["hashes"] or head[line.end() : line.end() + 2] not in (b"\r\n", b""):
            return None
        lowered = head.lower()
        length = _LENGTH.search(lowered)
        if lowered.count(b"\n") != lowered.count(b"\r\n") or b"transfer-encoding" in lowered or b"\r\nexpect" in lowered:
            return None
        if lowered.count(b"content-length") != (length is not None) or len(body) != int(length[1] if length else 0):
            return None
        held = head.startswith(b"GET /api/v1/commands/") and b"\r\nprefer:" in lowered
        return Asked(head, lowered, self._reads if line["read"] else self._others, held)

    def refusal(self, asked: Asked) -> bytes:
        """The whole answer to whoever is turned away."""
        SHED.inc()
        self._count += 1
        told = _ID.search(asked.lowered)
        request_id = asked.head[told.start(1) : told.end(1)] if told else str(uuid7()).encode()
        answer = [self._heads[self._count % len(self._heads)], b"X-Request-ID: ", request_id, b"\r\n"]
        if self._origins and (origin := _ORIGIN.search(asked.lowered)):
            answer.append(self._origins.get(asked.head[origin.start(1) : origin.end(1)], b""))
        answer += (b"Connection: close\r\n\r\n" if asked.closes else b"\r\n", self._body)
        return b"".join(answer)


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
