"""The proxy does the harm that it is told to, and none besides: the fault matrix relies on it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy


class Echo(socketserver.StreamRequestHandler):
    """Answers each line with itself, after the server's name."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            for line in self.rfile:
                self.server.asked += 1  # type: ignore[attr-defined]
                self.wfile.write(self.server.name + line)  # type: ignore[attr-defined]


@contextlib.contextmanager
def echoing(name: bytes) -> Iterator[socketserver.ThreadingTCPServer]:
    """A server that answers."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.name, server.asked = name, 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[socketserver.ThreadingTCPServer]:
    with echoing(b"first ") as server:
        yield server


@pytest.fixture
def proxy(server: socketserver.ThreadingTCPServer) -> Iterator[Proxy]:
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connected(proxy) as client:
        yield client


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5)


def ask(client: socket.socket, line: bytes = b"hello\n") -> bytes:
    client.sendall(line)
    return client.recv(1000)


def test_it_passes_everything_on_and_the_end_too(client: socket.socket) -> None:
    assert ask(client) == b"first hello\n"
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def test_a_hole_holds_back_what_comes_out_again_when_it_heals(proxy: Proxy, client: socket.socket) -> None:
    proxy.swallow()
    client.sendall(b"hello\n")
    client.settimeout(0.2)
    with connected(proxy) as another, pytest.raises(TimeoutError):
        another.sendall(b"hello\n")
        client.recv(1)
    proxy.heal()
    client.settimeout(5)
    assert client.recv(100) == b"first hello\n"


def test_a_reset_is_one_to_the_client_and_a_new_connection_goes_through(proxy: Proxy, client: socket.socket) -> None:
    ask(client)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connected(proxy) as another:
        assert ask(another) == b"first hello\n"


def test_nobody_is_let_in_until_it_heals(proxy: Proxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.heal()
    with connected(proxy) as another:
        assert ask(another) == b"first hello\n"


def test_a_lost_reply_is_to_something_that_was_done(
    proxy: Proxy, client: socket.socket, server: socketserver.ThreadingTCPServer
) -> None:
    proxy.lose_every(2)
    assert ask(client) == b"first hello\n"
    with pytest.raises(ConnectionResetError):
        ask(client)
    assert server.asked == 2  # type: ignore[attr-defined]


def test_a_connection_is_cut_after_so_many_bytes(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_after(20)
    assert ask(client) == b"first hello\n"
    with pytest.raises(ConnectionResetError):
        ask(client)


def test_it_is_late_both_ways(proxy: Proxy, client: socket.socket) -> None:
    ask(client)
    proxy.delay(0.1)
    begun = time.monotonic()
    ask(client)
    assert time.monotonic() - begun >= 0.2


def test_it_leads_elsewhere(proxy: Proxy, client: socket.socket) -> None:
    ask(client)
    with echoing(b"second ") as another:
        proxy.lead_to(another.server_address[1])
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with connected(proxy) as client:
            assert ask(client) == b"second hello\n"
