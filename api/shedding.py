"""Sheds load: only so many requests of a kind are answered at once, and whoever can't begin soon is turned away with 503.

Turning away must cost next to nothing, or it would be all that a process does under three times the load: so it is done before a
request is parsed, and says as much of it as has to be known.
"""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import ceil
from typing import Any, Final, NamedTuple

from uuid_utils.compat import uuid7

from api.app import EXPOSED, standing_headers
from api.errors import CONTENT_TYPE, TITLES
from domain.errors import Unavailable
from domain.metrics import SHED
from domain.settings import Settings

# So few that none waits in vain for a connection to Redis or the database, so many that these have enough to do. Commands have
# seats of their own: with the database gone they wait for it, while reads are answered from the cache.
READS: Final = 128
OTHERS: Final = 32
# For how long people may wait for a seat. A rush of commands is answered within some seconds, so it waits rather than come again.
READ_PATIENCE: Final = 0.25
PATIENCE: Final = 1.2
CALM_SECONDS: Final = 1.0  # without anybody turned away, after which it is an overload no longer
LONGEST: Final = 10  # seconds, after which people are told to come back

_PACE: Final = 32.0  # times a second that a seat is taken and left, until that was measured
_SPELL: Final = 1.0  # seconds, of which a pace is measured: while a rush only arrives, hardly any seat is left
_STALE: Final = 5.0  # seconds, after which a pace tells nothing
_KNOWN: Final = 1024  # reads that are known when the very same comes again, as it does from whoever was turned away
_SHORT: Final = 1024  # bytes of each of them, at most
# Whoever gives a password waits for a turn to hash it, and that has limits of its own.
_LINE: Final = re.compile(
    rb"(?:(?P<read>GET) /api/v1/"
    rb"|(?P<hashes>(?:POST|PUT|DELETE) /api/v1/(?=auth/|patients |doctors |me/(?:password|email|totp|erasure)[ /]))"
    rb"|(?:POST|PUT|PATCH|DELETE) /api/v1/)\S* HTTP/1\.1"
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d{1,7})(?=\r|$)")
_ID: Final = re.compile(rb"\r\nx-request-id: ([a-z0-9._-]{1,64})(?=\r|$)")
_ORIGIN: Final = re.compile(rb"\r\norigin: (\S+)(?=\r|$)")


Turn = Callable[[Any, "Party | None"], object]  # told of a guest, and of who wants the same; None if there was no seat in time


class Guest(NamedTuple):
    """Someone who waits for a seat."""

    since: float
    turn: Turn
    who: Any


Party = deque[Guest]  # of guests who want the same, by how long they have waited


class Room:
    """So many seats, taken in turn. Only so many may wait as will be answered in time, at the pace at which people are.

    Who wants the same as others waits together with them. The first to get a seat gets it for all: what one sees who begins to
    look when all have come is no older for any of them than what each would have seen alone.

    It calls back whoever waits, so that waiting costs no more than a place in a list.
    """

    def __init__(self, seats: int, patience: float) -> None:
        self._seats = self._free = seats
        self._patience = patience
        self._parties: OrderedDict[object, Party] = OrderedDict()  # by what they want, in the order of those who came first
        self._waiting = 0  # people in all of them
        self._pace = 0.0  # people answered in a second, while others waited
        self._may_wait = 0.0  # how many, at that pace
        self._measured = -_STALE
        self._left = 0  # since then:
        self._since = 0.0
        self._sheds_until = self._told = 0.0

    @property
    def sheds(self) -> bool:
        """Whether too many come."""
        return self._sheds_until > 0.0 and time.monotonic() < self._sheds_until

    def enter(self) -> bool:
        """Take a seat, if there is one."""
        if self._free:
            self._free -= 1
            return True
        return False

    def has_time(self) -> bool:
        """Whether one more may wait."""
        now = time.monotonic()
        if not self._waiting:
            if now - self._measured > _STALE:
                self._go_at(self._seats * _PACE)
            self._since, self._left = now, 0
        elif now - self._since > _SPELL:
            self._go_at(self._left / (now - self._since))
            self._since, self._left, self._measured = now, 0, now
        if self._waiting >= self._may_wait:
            self._shed(now)
            return False
        return True

    def wait(self, wish: object, turn: Turn, who: Any) -> None:
        """Wait for a seat, together with whoever has the same wish, if it isn't None."""
        self._parties.setdefault(object() if wish is None else wish, deque()).append(Guest(time.monotonic(), turn, who))
        self._waiting += 1

    def wait_on(self, wish: object, party: Party) -> None:
        """Have those wait on, before all others, who want what the one with the seat could not get for them."""
        if party:
            self._waiting += len(party)
            party.extend(self._parties.get(wish, ()))  # those who came since
            self._parties[wish] = party
            self._parties.move_to_end(wish, last=False)
            while self._parties and self.enter():
                self._seat()

    def tell(self) -> None:
        """Count one who was answered without a seat."""
        self._left += 1

    def leave(self) -> None:
        """Give the seat to whoever has waited longest."""
        if self._parties:
            self._left += 1
            self._seat()
        else:
            self._free += 1

    def look(self) -> None:
        """Tell those who have waited too long; to be called some times a second."""
        late = time.monotonic() - 1.25 * self._patience
        for wish, party in list(self._parties.items()):
            while party and party[0].since < late:
                guest = party.popleft()
                self._waiting -= 1
                self._shed(time.monotonic())
                guest.turn(guest.who, None)
            if not party:
                del self._parties[wish]

    def turn_away(self) -> int:
        """Seconds until there is room for whoever is turned away now: no more are told the same as will be let in then.

        It does not make an overload last: who needs no seat is turned away while there is one, and comes back.
        """
        now = time.monotonic()
        pace = max(self._pace, self._seats)
        self._told = max(self._told, now + self._waiting / pace) + 1 / pace
        if self._told > now + LONGEST:  # there is no telling
            self._told = now + 1 / pace
        return ceil(self._told - now)

    def _seat(self) -> None:
        _, party = self._parties.popitem(last=False)
        self._waiting -= len(party)
        first = party.popleft()
        first.turn(first.who, party)

    def _shed(self, now: float) -> None:
        self._sheds_until = now + CALM_SECONDS

    def _go_at(self, pace: float) -> None:
        self._pace, self._may_wait = pace, max(self._seats, pace * self._patience)


class Asked:
    """One whole request, of which no more is known than its kind."""

    __slots__ = ("body", "closes", "head", "held", "id", "origin", "room")

    def __init__(self, head: bytes, lowered: bytes, body: bytes, room: Room) -> None:
        self.head, self.body, self.room = head, body, room
        # It will do nothing but wait for a decision, and needs no seat for that.
        self.held = head.startswith(b"GET /api/v1/commands/") and b"\r\nprefer:" in lowered
        self.closes = b"\r\nconnection: close" in lowered  # its sender wants the connection closed afterwards
        told, origin = _ID.search(lowered), _ORIGIN.search(lowered)
        self.id = head[told.start(1) : told.end(1)] if told else b""
        self.origin = head[origin.start(1) : origin.end(1)] if origin else b""


class Door:
    """Where requests of one process come in, or don't."""

    def __init__(self, settings: Settings) -> None:
        self._reads, self._others = Room(READS, READ_PATIENCE), Room(OTHERS, PATIENCE)
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
            **standing_headers(settings),
        }
        head = "HTTP/1.1 503 Service Unavailable\r\n" + _lines(headers)
        self._heads = [f"{head}Retry-After: {seconds}\r\n".encode() for seconds in range(LONGEST + 1)]
        self._body = body
        self._origins = {
            origin.encode(): _lines({"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED}).encode()
            for origin in settings.cors_origins
        }
        self._see_again = lru_cache(_KNOWN)(self._see)
        self._count = 0
        self._series = self._new_series()

    def see(self, received: bytes) -> Asked | None:
        """What was received, if that is one whole request to the API and nothing else; None for all else, which is not shed.

        Framing is not guessed at: what could be read in two ways, or has not come whole, is left to the server's parser. So are
        the calls that are bounded otherwise: what operators ask, and what hashes a password.
        """
        return self._see_again(received) if len(received) < _SHORT and received.startswith(b"GET ") else self._see(received)

    def _see(self, received: bytes) -> Asked | None:
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
        return Asked(head, lowered, body, self._reads if line["read"] else self._others)

    def refusal(self, asked: Asked) -> bytes:
        """The whole answer to whoever is turned away."""
        self._count += 1
        return b"%bX-Request-ID: %b\r\n%b%b\r\n%b" % (
            self._heads[asked.room.turn_away()],
            asked.id or b"%b%012x" % (self._series, self._count),
            self._origins.get(asked.origin, b""),
            b"Connection: close\r\n" if asked.closes else b"",
            self._body,
        )

    def look(self) -> None:
        """Tell those who have waited too long, and count those who were turned away; to be called some times a second."""
        self._reads.look()
        self._others.look()
        if self._count:
            SHED.inc(self._count)
            self._count = 0
            self._series = self._new_series()

    @staticmethod
    def _new_series() -> bytes:
        """What ids of requests begin with until the next look: each made anew would cost as much as the rest of a refusal."""
        return str(uuid7())[:24].encode()


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
