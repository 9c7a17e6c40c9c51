"""One Redis, asked many things in one round trip and in bounded time; one that did not answer is left alone for a while.

redis-py connects (addresses, passwords, TLS); what is asked then goes over its bare socket, and the replies through hiredis: a
third of what redis-py's own way costs.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

import hiredis
from redis import RedisError
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import InvalidResponse, ResponseError
from redis.retry import Retry

BUDGET_SECONDS = 0.3  # of Redis in one request
WITHOUT_SECONDS = 2.0  # for so long a process does without a Redis that did not answer

_LEAST_SECONDS = 0.02  # whoever has spent the budget may still take an answer that comes at once
_CONNECTIONS: Final = 64  # to one server
_CHUNK: Final = 65536

Command = tuple[Any, ...]

_left: ContextVar[list[float] | None] = ContextVar("left", default=None)  # of the current request's budget, in seconds


class Silent(Exception):
    """The server did not answer in time, or is not to be asked right now."""


class Busy(RedisError):
    """All connections of this process are in use: that says nothing about the server."""


class _HungUp(Disconnected):
    """The server had closed a connection that lay idle: that says nothing about its next one."""


def new_budget() -> None:
    """Begin a request, which may spend 300 ms on Redis from here on."""
    _left.set([BUDGET_SECONDS])


class RedisServer:
    """One Redis. Whatever is asked of it must do no harm when done twice: what a closed connection swallowed is asked again."""

    def __init__(self, url: str) -> None:
        self._made = ConnectionPool.from_url(
            url,
            socket_timeout=BUDGET_SECONDS,
            socket_connect_timeout=BUDGET_SECONDS,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
            protocol=2,
        )
        self._idle: list[_Line] = []
        self._seats = _Seats(_CONNECTIONS)
        self._without_until = 0.0

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to one round trip of commands, within what is left of the request's budget. Raises Silent."""
        begun = time.monotonic()
        if self._without_until:
            if begun < self._without_until:
                raise Silent
            self._without_until = begun + WITHOUT_SECONDS  # one asks again; the others go on without
        left = _left.get() or [BUDGET_SECONDS]
        try:
            replies = self.insist(commands, left[0])
        except Busy:
            raise Silent from None
        except (RedisError, OSError):
            if left[0] > _LEAST_SECONDS:  # else it was this request that had no time left
                self._without_until = time.monotonic() + WITHOUT_SECONDS
            raise Silent from None
        finally:
            left[0] -= time.monotonic() - begun
        self._without_until = 0.0
        return replies

    def insist(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """The replies to one round trip of commands, asked even if the last time was in vain. Raises RedisError or OSError."""
        if not commands:
            return []
        deadline = time.monotonic() + seconds
        self._seats.take(max(seconds, _LEAST_SECONDS))
        try:
            question = b"".join(map(hiredis.pack_command, commands))
            if self._idle:
                with contextlib.suppress(_HungUp):
                    return self._asked(self._idle.pop(), question, len(commands), deadline)
                self.close()  # what was closed with one was closed with all
            line = _Line(self._made.connection_class(**self._made.connection_kwargs))
            return self._asked(line, question, len(commands), deadline)
        finally:
            self._seats.give_back()

    def _asked(self, line: _Line, question: bytes, number: int, deadline: float) -> list[Any]:
        try:
            replies = line.ask(question, number, deadline)
        except BaseException:
            line.close()
            raise
        self._idle.append(line)
        return replies

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()


class _Seats:
    """How many may ask at once. A semaphore would do, but it costs as much as parsing a reply, taken or not."""

    def __init__(self, number: int) -> None:
        self._free = [None] * number  # whose ends are atomic
        self._waiting = 0
        self._freed = threading.Condition()

    def take(self, seconds: float) -> None:
        """Take a seat, or wait for one. Raises Busy."""
        if not self._taken():
            self._wait(seconds)

    def give_back(self) -> None:
        """Leave one's seat to the next."""
        self._free.append(None)
        if self._waiting:
            with self._freed:
                self._freed.notify()

    def _taken(self) -> bool:
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def _wait(self, seconds: float) -> None:
        with self._freed:
            self._waiting += 1  # before it looks again, or what is given back meanwhile would wake nobody
            try:
                if not self._freed.wait_for(self._taken, seconds):
                    raise Busy
            finally:
                self._waiting -= 1


class _Line:
    """One connection: a question goes out, its replies come in, in order."""

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError)
        self._used = False

    def ask(self, question: bytes, number: int, deadline: float) -> list[Any]:
        """So many replies, by the deadline. Raises RedisError or OSError."""
        self._socket.settimeout(max(deadline - time.monotonic(), _LEAST_SECONDS))
        try:
            sent = self._socket.send(question)  # all of it, as a rule, and cheaper than `sendall`
            if sent < len(question):
                self._socket.sendall(question[sent:])
            received = self._receive()
        except (BrokenPipeError, ConnectionResetError):
            received = b""
        if not received and self._used:
            raise _HungUp
        self._used = True
        reader, replies = self._reader, []
        while True:
            if not received:
                raise Disconnected
            reader.feed(received)
            while (reply := reader.gets()) is not False:
                if isinstance(reply, ResponseError):
                    raise reply
                replies.append(reply)
            if len(replies) >= number:
                return replies
            self._socket.settimeout(max(deadline - time.monotonic(), _LEAST_SECONDS))
            received = self._receive()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_CHUNK)
        except TimeoutError:
            self._socket.settimeout(0)
            try:
                return self._socket.recv(_CHUNK)  # it was there: this process came late, not the answer
            except BlockingIOError:
                raise TimeoutError from None

    def close(self) -> None:
        """Close it."""
        self._connection.disconnect()
