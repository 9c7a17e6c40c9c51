"""The API as gunicorn serves it: a process that nothing stops, and that answers in problem documents to the last."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from local.servers import Postgres, free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port(environ: dict[str, str]) -> Iterator[int]:
    """The port of a gunicorn with one worker, which is told to stop at the end and does."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.wsgi:app"],
        cwd=ROOT,
        env={**os.environ, **environ, "PORT": str(port), "API_WORKERS": "1"},
    )
    try:
        deadline = time.monotonic() + 20
        while not _listens(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=25) == 0
    finally:
        process.kill()
        process.wait()


def test_a_body_that_comes_in_chunks_is_bounded_too(port: int) -> None:
    status, body = _ask(port, "POST", "/api/v1/patients", chunks=[b"x" * 10_000] * 20)
    assert (status, body["code"]) == (413, "payload_too_large")
    status, body = _ask(port, "POST", "/api/v1/patients", chunks=[b'{"name"', b': "Ana"}'])
    assert (status, body["code"]) == (422, "validation_error")
    assert "name" not in body["errors"]


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 80 + b"\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /api/v1/patients HTTP/1.1\r\nHost: a\r\nContent-Length: nine\r\n\r\n", 400),
        (b"POST /api/v1/patients HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400),
    ],
)
def test_what_never_became_a_request_is_answered_with_a_problem(port: int, request_text: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(request_text)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        body = answer.read()
        answer.close()
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Request-ID"]
    assert json.loads(body)["status"] == status


def test_a_message_of_two_lengths_is_refused(port: int) -> None:
    lengths = b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"POST /api/v1/patients HTTP/1.1\r\nHost: a\r\n" + lengths + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        answered = b""
        while part := client.recv(65536):
            answered += part
    assert answered.count(b"HTTP/1.1 ") == 1
    assert answered.startswith(b"HTTP/1.1 400 ")


def test_a_frozen_database_stops_one_request_for_seconds_and_no_other(port: int, postgres: Postgres) -> None:
    log_in = {"login": "nobody@example.com", "password": "whatever it was"}
    assert _ask(port, "POST", "/api/v1/auth/patient", body=log_in)[0] == 401
    postgres.freeze()
    try:
        with ThreadPoolExecutor() as threads:
            began = time.monotonic()
            waiting = threads.submit(_ask, port, "POST", "/api/v1/auth/patient", body=log_in)
            time.sleep(0.2)
            assert _ask(port, "GET", "/healthz")[0] == 200
            assert time.monotonic() - began < 2
            status, body = waiting.result(timeout=20)
            assert (status, body["code"]) == (503, "unavailable")
            assert time.monotonic() - began < 15
    finally:
        postgres.thaw()
    assert _ask(port, "POST", "/api/v1/auth/patient", body=log_in)[0] == 401


def test_hashing_stops_no_other_request(port: int) -> None:
    log_in = {"login": "nobody@example.com", "password": "whatever it was"}
    with ThreadPoolExecutor(40) as threads:
        hashing = [threads.submit(_ask, port, "POST", "/api/v1/auth/patient", body=log_in) for _ in range(40)]
        time.sleep(0.1)
        slowest = 0.0
        while not all(each.done() for each in hashing):
            began = time.monotonic()
            assert _ask(port, "GET", "/healthz")[0] == 200
            slowest = max(slowest, time.monotonic() - began)
        assert {each.result()[0] for each in hashing} == {401}
    assert slowest < 0.5


def _listens(port: int) -> bool:
    try:
        return _ask(port, "GET", "/healthz")[0] == 200
    except ConnectionRefusedError:
        return False


def _ask(
    port: int, method: str, path: str, *, body: dict[str, Any] | None = None, chunks: list[bytes] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        data = iter(chunks) if chunks is not None else json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method, path, data, headers, encode_chunked=chunks is not None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
