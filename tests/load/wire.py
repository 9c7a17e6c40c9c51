"""One keep-alive connection of a client: HTTP/1.1 over asyncio, and no more of it than the load needs.

Twenty thousand of them live on what two cores have left: an answer costs 44 µs of CPU here, and 820 in `requests`, which locust
stands on.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, Final

SECONDS: Final = 30.0  # an answer that takes longer counts as none
OPENINGS: Final = 3  # how often a request is sent that found its connection closed


class Lost(Exception):
    """No answer came: the connection could not be made, or broke, or nothing was heard for too long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    head: bytes
    body: bytes

    def __str__(self) -> str:
        found = re.search(rb'"code": ?"(\w+)"', self.body)
        return f"{self.status} {found[1].decode() if found else self.body[:80].decode(errors='replace')}"

    def header(self, name: bytes) -> str | None:
        """A header by its name in lower case."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip().decode()
        return None

    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class Wire(asyncio.Protocol):
    """A client's connection, kept open: one that the server closes since nobody said anything for long is opened again at once.

    A request that found it closed is sent once more, as a browser does it: those that change something carry an Idempotency-Key.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._closed = False
        self._parts = b""
        self._head = b""
        self._length = -1
        self.sent = 0
        self.reopened = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as this end knows."""
        return self._transport is not None

    async def open(self) -> None:
        """Connect, unless that is done. Raises Lost."""
        if self._opening is None:
            self._opening = self._loop.create_task(self._connect())
        await self._opening

    def close(self) -> None:
        """Hang up, for good."""
        self._closed = True
        self._drop()

    async def ask(self, request: bytes, *, seconds: float = SECONDS) -> Answer:
        """The answer to a request, which is whole and as it goes over the wire. Raises Lost."""
        for _ in range(OPENINGS):
            await self.open()
            if self._transport is None:
                continue
            self._answer = self._loop.create_future()
            limit = self._loop.call_later(seconds, self._give_up)
            self._transport.write(request)
            self.sent += 1
            try:
                return await self._answer
            except ConnectionResetError:
                continue
            finally:
                limit.cancel()
                self._answer = None
        raise Lost("the connection was closed each time before an answer began")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """What asyncio calls."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """What asyncio calls."""
        begun, self._parts, self._head, self._length = bool(self._parts or self._head), b"", b"", -1
        self._transport = self._opening = None
        if self._closed:
            return
        self.reopened += 1
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Lost("the answer broke off") if begun else ConnectionResetError())
        else:
            self._opening = self._loop.create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        """What asyncio calls."""
        self._parts = self._parts + data if self._parts else data
        if self._length < 0:
            head, separator, rest = self._parts.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head, self._parts, self._length = head, rest, _length(head)
        if len(self._parts) < self._length:
            return
        answer = Answer(int(self._head[9:12]), self._head, self._parts)
        self._parts, self._head, self._length = b"", b"", -1
        if b"\r\nConnection: close" in answer.head:
            self._drop()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                await self._loop.create_connection(lambda: self, self._host, self._port)
        except (OSError, TimeoutError) as error:
            self._opening = None
            raise Lost(f"no connection: {error or 'in time'}") from None

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _give_up(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Lost("no answer in time"))
        self._drop()


def request(method: str, path: str, token: str | None = None, body: object = None, **headers: str) -> bytes:
    """A request as it goes over the wire; a header's name is written with underscores."""
    lines = [f"{method} /api/v1{path} HTTP/1.1", "Host: load"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    content = b""
    if body is not None:
        content = json.dumps(body).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join((*lines, "\r\n")).encode() + content


def _length(head: bytes) -> int:
    if head[9:12] in (b"304", b"204"):
        return 0
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError(f"an answer without a length: {head!r}")
    return int(head[at + 17 :].split(b"\r\n", 1)[0])
