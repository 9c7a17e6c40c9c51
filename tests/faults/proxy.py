"""A TCP proxy that does harm on demand: it delays, swallows, resets, cuts and loses what passes between two processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from local.servers import free_port

CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no lingering, so that a close sends RST


class Proxy:
    """One port in front of another, in a thread shared by all proxies. It passes everything on until it is told otherwise.

    Whatever harm it does ends with `heal`. Bytes that a hole holds back go on then, as packets sent again would.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self._writers: set[asyncio.StreamWriter] = set()
        self._delay = 0.0
        self._cut_after = 0
        self._lose_every = 0
        self._replies = itertools.count(1)
        self._open = asyncio.Event()
        self._open.set()
        self._listener: socket.socket | None = None
        self._served: set[asyncio.Task[None]] = set()
        self._do(self._listen())

    def heal(self) -> None:
        """Do no harm any more."""
        self._delay = 0.0
        self._cut_after = self._lose_every = 0
        self._do(self._listen())
        _loop.call_soon_threadsafe(self._open.set)

    def delay(self, seconds: float) -> None:
        """Hand on everything so much later, in both directions."""
        self._delay = seconds

    def swallow(self) -> None:
        """Be a black hole: connections stay open, new ones are taken, and nothing passes."""
        _loop.call_soon_threadsafe(self._open.clear)

    def refuse(self) -> None:
        """Reset every connection and take no new one."""
        self._do(self._close())

    def reset(self) -> None:
        """Reset the connections there are."""
        self._do(self._end_all())

    def cut_after(self, replied: int) -> None:
        """End each connection once so many bytes were replied on it."""
        self._cut_after = replied

    def lose_every(self, number: int) -> None:
        """Lose every so manieth reply, with its connection: what was asked for is done, and nobody is told."""
        self._lose_every = number

    def lead_to(self, target: int) -> None:
        """Lead to another server from now on, and reset what leads to the old one."""
        self.target = target
        self.reset()

    def close(self) -> None:
        """Be gone."""
        self.refuse()
        _loop.call_soon_threadsafe(self._open.set)

    async def _listen(self) -> None:
        # Not asyncio's server: one that is closed just after it accepted leaves that connection to the garbage collector.
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            self._listener.setblocking(False)
            _loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                task = _loop.create_task(self._serve(listener.accept()[0]))
                self._served.add(task)
                task.add_done_callback(self._served.discard)

    async def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            _loop.remove_reader(listener)
            listener.close()
        await self._end_all()

    async def _end_all(self) -> None:
        for writer in list(self._writers):
            _abort(writer)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        if self._listener is None:
            _abort(writer)
            return
        self._writers.add(writer)
        try:
            await self._open.wait()
            try:
                upstream, to_upstream = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                _abort(writer)
                return
            self._writers.add(to_upstream)
            try:
                await asyncio.gather(self._pump(reader, to_upstream), self._pump(upstream, writer, replies=True))
            finally:
                self._writers.discard(to_upstream)
                to_upstream.close()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool = False) -> None:
        """Hand on one direction until its end, which is handed on too."""
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._open.wait()
                passed += len(chunk)
                if replies and self._loses(passed):
                    break
                writer.write(chunk)
                await writer.drain()
            else:
                if writer.can_write_eof():
                    writer.write_eof()
                return
        _abort(writer)

    def _loses(self, passed: int) -> bool:
        lost = self._lose_every and next(self._replies) % self._lose_every == 0
        return bool(lost or 0 < self._cut_after < passed)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, _loop)
        done.result(10)


def _abort(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


_loop = asyncio.new_event_loop()
threading.Thread(target=_loop.run_forever, name="proxies", daemon=True).start()
