"""One process of the API, as gunicorn runs it: takes what it can answer in time, and ends without letting go of anybody."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.body import LengthReader
from gunicorn.workers.ggevent import GeventWorker

if TYPE_CHECKING:
    from api.hot import Get
    from api.shedding import Asked, Party, Room

# One at a time, as gunicorn's own does, would be one in each turn of the loop, and a turn is long when there is much to do.
ACCEPTED_AT_ONCE: Final = 128
HEAD_SECONDS: Final = 15.0  # for a request's head to come whole, once it has begun to
LINGER_SECONDS: Final = 5.0  # in which an idle connection may bring one more request to a process that ends
SPARE_SECONDS: Final = 2.0  # before the master would kill what still runs
LOOK_SECONDS: Final = 0.1
RECEIVED: Final = 8192  # bytes at once
READ: Final = 1
NOBODY: Final[Party] = deque(maxlen=0)


class Client:
    """A client's socket, of which something may have been received before it is asked for."""

    __slots__ = ("_socket", "received", "send_now")

    def __init__(self, client: Any) -> None:
        self._socket = client
        self.received = b""
        self.send_now: Callable[[bytes], int] = client._sock.send  # or raise BlockingIOError; gevent's would wait

    def recv_now(self, most: int) -> bytes:
        """Receive what is there, or raise BlockingIOError."""
        self.received = self._socket._sock.recv(most)
        return self.received

    def recv(self, most: int, *flags: int) -> bytes:
        """Receive what comes next, as sockets do."""
        if not self.received:
            received: bytes = self._socket.recv(most, *flags)
            return received
        received, self.received = self.received[:most], self.received[most:]
        return received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Connection:
    """One client's connection: between two requests, or with the one that is being answered."""

    __slots__ = (
        "address",
        "asked",
        "client",
        "get",
        "idle_since",
        "mates",
        "readable",
        "request",
        "room",
        "served",
        "unsent",
        "whole",
    )

    def __init__(self, client: Client, addr: Any) -> None:
        self.client = client
        self.address = addr[0] if isinstance(addr, tuple) else ""
        self.served = gevent.getcurrent()  # by this greenlet
        self.readable = gevent.get_hub().loop.io(client.fileno(), READ)
        self.idle_since: float | None = None  # while the loop waits for a request
        self.request: Any = None
        self.asked: Asked | None = None  # what it is, if that is known before anything is parsed
        self.get: Get | None = None  # if it is a plain read, once that was looked at
        self.room: Room | None = None  # where the request has a seat
        self.mates: Party = NOBODY  # who want the same, and wait for this one to get it
        self.unsent = b""  # of its answer
        self.whole = True  # nothing of a former request is left to be read

    def enter(self, asked: Asked, mates: Party = NOBODY) -> None:
        """Have a request answered that has its seat, or needs none."""
        self.asked, self.room, self.mates = asked, None if asked.held else asked.room, mates

    def wait_on(self) -> None:
        """Have those wait on for whom nothing was got."""
        if self.mates and self.room is not None and self.get is not None:
            self.room.wait_on(self.get.wish, self.mates)
        self.mates = NOBODY

    def leave(self) -> None:
        """Give back what the request needed."""
        self.wait_on()
        self.request = self.asked = self.get = None
        if self.room is not None:
            self.room.leave()
            self.room = None

    def close(self) -> None:
        """Be heard no more."""
        self.leave()
        self.readable.stop()
        self.readable.close()


class Worker(GeventWorker):
    """gunicorn's gevent worker, which turns away what would have to wait too long, and whose end nobody notices."""

    def init_process(self) -> None:
        """Run in the process that serves, from here to its end."""
        self._connections: dict[gevent.Greenlet, Connection] = {}
        self._served: Pool  # of those, and of whoever was accepted just now
        self._stopping = Event()
        super().init_process()

    def run(self) -> None:
        """Serve until told to stop, then end in order."""
        from api import hot, wsgi  # only now: whatever opens a connection must come after the fork, and be patched

        self._read = hot.read
        self._door, self._hot, self._hot_commands = wsgi.door, wsgi.hot, wsgi.hot_commands
        self._loop = gevent.get_hub().loop
        self._served = Pool(self.worker_connections)
        servers = [self._serve(listener) for listener in self.sockets]
        looking = self._loop.timer(LOOK_SECONDS, LOOK_SECONDS)
        looking.start(self._door.look)
        while self.alive:
            self.notify()
            self._loop.run_callback(self._look)
            self._stopping.wait(1.0)
        wsgi.leave()
        for server in servers:
            self._close(server)
        self._finish()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The master's SIGTERM."""
        super().handle_exit(sig, frame)
        self._stopping.set()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Answer the requests of one connection, one after another."""
        greenlet = gevent.getcurrent()
        connection = self._connections[greenlet] = Connection(Client(client), addr)
        try:
            super().handle(listener, connection.client, addr)
        finally:
            connection.close()
            del self._connections[greenlet]

    def timeout_ctx(self) -> Any:
        """Wait for the next request of this greenlet's connection, and bound the time in which its head is read.

        Those that can't be answered in time are turned away here.
        """
        connection = self._connections[gevent.getcurrent()]
        connection.leave()
        if not connection.whole:
            return gevent.Timeout(HEAD_SECONDS, False)
        while True:
            self._listen(connection)
            comes = gevent.get_hub().switch()
            if connection.asked is not None:
                if not self._answer_hot(connection, connection.asked):
                    connection.wait_on()
                    return contextlib.nullcontext()  # all of it is here
                connection.leave()
            elif not connection.unsent:
                return gevent.Timeout(HEAD_SECONDS if comes else 0, False)
            if connection.unsent:
                connection.client.sendall(connection.unsent)
                connection.unsent = b""

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        """Answer one request."""
        connection = self._connections[gevent.getcurrent()]
        connection.request = req
        answered = super().handle_request(listener_name, req, sock, addr)
        reader = req.body.reader
        rest = req.unreader.buf.getbuffer().nbytes or connection.client.received
        connection.whole = isinstance(reader, LengthReader) and reader.length == 0 and not rest
        return answered

    def _answer_hot(self, connection: Connection, asked: Asked) -> bool:
        """Answer a request from what is at hand, or store a booking, without gunicorn's parser, if it is as plain as that.

        Whoever waits for the same is answered along with it.
        """
        if self._hot is None or self._hot_commands is None:
            return False
        if asked.body or asked.held:
            answer = self._hot_commands.answer(asked.head, asked.body, connection.address)
            if answer is not None:
                self._send(connection, answer)
            return answer is not None
        get = connection.get or self._read(asked.head)
        tell = None if get is None else self._hot.look(get, connection.wait_on)
        if get is None or tell is None:
            return False
        self._send(connection, tell(get))
        mates = connection.mates
        while mates:
            mate = mates[0].who
            answer = tell(mate.get)
            mates.popleft()
            asked.room.tell()
            mate.leave()
            self._send(mate, answer)
            if mate.unsent:
                self._loop.run_callback(self._go_on, mate, True)
            else:
                self._listen(mate)
        return True

    def _send(self, connection: Connection, answer: bytes) -> None:
        """Send what can be sent at once, which is all of it, as a rule."""
        connection.client.received = b""
        try:
            sent = connection.client.send_now(answer)
        except OSError:  # if it isn't that this would have to wait, its greenlet will see the same
            sent = 0
        connection.unsent = answer[sent:]

    def _serve(self, listener: Any) -> StreamServer:
        listener.setblocking(1)
        name = listener.getsockname()  # which is asked for with each connection, and can't be told once the listener is closed
        named = SimpleNamespace(getsockname=lambda: name)
        server = StreamServer(listener, handle=partial(self.handle, named), spawn=self._served)
        server.max_accept = ACCEPTED_AT_ONCE
        server.start()
        return server

    # What follows runs in the loop itself and never waits: to turn a request away takes no switch to a greenlet and no timer.

    def _listen(self, connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        if not connection.readable.active:
            connection.readable.start(self._hear, connection)

    def _hear(self, connection: Connection) -> None:
        """Let a request in that has come, or turn it away, or have it wait for a seat."""
        if connection.idle_since is None:  # what comes now waits until the last one is answered
            connection.readable.stop()
            return
        try:
            received = connection.client.recv_now(RECEIVED)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        asked = self._door.see(received) if received else None
        if asked is None:
            self._go_on(connection, received != b"")
        elif not asked.room.sheds if asked.held else asked.room.enter():
            connection.enter(asked)
            self._go_on(connection, True)
        elif not asked.held and asked.room.has_time():
            connection.idle_since = None
            connection.get = None if self._hot is None else self._read(asked.head)
            asked.room.wait(connection.get and connection.get.wish, partial(self._turn_soon, asked), connection)
        else:
            self._turn_away(connection, asked)

    def _turn_soon(self, asked: Asked, connection: Connection, mates: Party | None) -> None:
        self._loop.run_callback(self._turn, asked, connection, mates)

    def _turn(self, asked: Asked, connection: Connection, mates: Party | None) -> None:
        """After a wait."""
        if mates is None:
            connection.leave()
            self._turn_away(connection, asked)
        else:
            connection.enter(asked, mates)
            self._go_on(connection, True)

    def _turn_away(self, connection: Connection, asked: Asked) -> None:
        refusal = self._door.refusal(asked)
        connection.client.received = b""
        try:
            kept = connection.client.send_now(refusal) == len(refusal) and not asked.closes
        except OSError:  # also of a client that reads no answers
            kept = False
        if kept:
            self._listen(connection)
        else:
            self._go_on(connection, False)

    def _go_on(self, connection: Connection, comes: bool) -> None:
        """Have a request answered by its greenlet, or the connection closed."""
        connection.idle_since = None
        connection.served.switch(comes)

    def _look(self) -> None:
        """End connections that have been idle for too long."""
        since = time.monotonic() - self.cfg.keepalive
        for connection in list(self._connections.values()):
            if connection.idle_since is not None and connection.idle_since < since:
                self._go_on(connection, False)

    def _close(self, server: StreamServer) -> None:
        """Stop accepting, but not before what the kernel has accepted already is taken, which it would reset."""
        server.max_accept = self.cfg.backlog
        server._do_read()
        server.close()

    def _finish(self) -> None:
        """Answer what is asked, and whoever asks once more; then close."""
        for connection in self._connections.values():
            if connection.request is not None:
                connection.request.force_close()
        began = time.monotonic()
        lingering = True
        while self._served and time.monotonic() - began < self.cfg.graceful_timeout - SPARE_SECONDS:
            if lingering and time.monotonic() - began > LINGER_SECONDS:
                lingering = False
                for connection in self._connections.values():
                    if connection.request is None:
                        # What has come is still read and answered; only who waits for more reads the end.
                        with contextlib.suppress(OSError):
                            connection.client.shutdown(socket.SHUT_RD)
            self.notify()
            gevent.sleep(0.05)
        if self._served:
            self.log.warning("Ending while %d connections are served", len(self._served))
