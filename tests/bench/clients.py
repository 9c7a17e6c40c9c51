"""Many HTTP clients in one cheap process: each is a generator that yields what it sends and is given what is answered."""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

# Yields the bytes of a request, and is given its answer; or a moment of `time.monotonic`, and is woken then.
Client = Generator[bytes | float, "Answered"]


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back."""

    status: int
    head: bytes
    body: bytes


def get(path: str, token: str, *, wait: int = 0) -> bytes:
    """A GET, which waits for so many seconds until the command is decided."""
    prefer = f"Prefer: wait={wait}\r\n" if wait else ""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n{prefer}\r\n".encode()


def post(path: str, token: str, body: bytes) -> bytes:
    """A POST of JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class _Talk:
    """One client on its connection, and what it has received so far of an answer."""

    client: Client
    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)

    def answered(self) -> Answered | None:
        """The answer, if it is here as a whole."""
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        if not separator:
            return None
        place = head.lower().find(b"\r\ncontent-length:")
        length = int(head[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        return Answered(int(head[9:12]), bytes(head), bytes(rest[:length])) if len(rest) >= length else None


def drive(port: int, clients: Iterable[Client], *, seconds: float = 60.0) -> None:
    """Let all clients talk to 127.0.0.1 at once, each over a connection that is kept, until the last one has ended.

    Raises TimeoutError if that takes longer than so many seconds, and ConnectionError for a connection that is closed.
    """
    poll, talks = select.epoll(), dict[int, _Talk]()
    idle: list[socket.socket] = []
    number = itertools.count()
    asleep = [(0.0, next(number), client) for client in clients]
    deadline = time.monotonic() + seconds

    def go_on(client: Client, answer: Answered | None, connection: socket.socket | None) -> None:
        try:
            wanted = next(client) if answer is None else client.send(answer)
        except StopIteration:
            wanted = None
        if isinstance(wanted, bytes):
            if connection is None:
                connection = idle.pop() if idle else socket.create_connection(("127.0.0.1", port))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                poll.register(connection, select.EPOLLIN)
            talks[connection.fileno()] = _Talk(client, connection)
            connection.sendall(wanted)
            return
        if connection is not None:
            poll.unregister(connection)
            talks.pop(connection.fileno(), None)
            idle.append(connection)
        if wanted is not None:
            heapq.heappush(asleep, (wanted, next(number), client))

    while talks or asleep:
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"{len(talks)} clients wait and {len(asleep)} sleep after {seconds} s")
        while asleep and asleep[0][0] <= now:
            go_on(heapq.heappop(asleep)[2], None, None)
        pause = min(asleep[0][0], deadline) - now if asleep else deadline - now
        for place, _ in poll.poll(max(pause, 0.0)):
            talk = talks[place]
            if not (data := talk.connection.recv(65536)):
                raise ConnectionError("the server closed a connection")
            talk.received += data
            if (answer := talk.answered()) is not None:
                go_on(talk.client, answer, talk.connection)
    for connection in idle:
        connection.close()
    poll.close()
