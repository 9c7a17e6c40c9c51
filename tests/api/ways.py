"""Reads that are asked of Flask alone and of the layer of hot reads, parsed and as bytes, and must be answered the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flask import Flask
from werkzeug.test import run_wsgi_app

from api.hot import HotReads, read

TRIES = 20  # what is read may change between one look and the next, and is asked for again then


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, less what differs from one to the next."""

    status: str
    headers: frozenset[tuple[str, str]]
    body: bytes


class BothWays:
    """What serves a test: each GET goes to Flask, through the layer, and to it as bytes; Flask and these fill it in turn.

    What the layer passes on is answered by Flask. What it answers must be what Flask has answered, and is what the test gets:
    so each test that reads is run through all ways, at the cost of two more requests. Only bytes may be passed on alone, and
    only they may be answered alone, where the cache holds nothing for long.
    """

    def __init__(self, app: Flask) -> None:
        self._flask = app.wsgi_app
        self._layer = HotReads(app, self._pass_on)
        self.hot = 0  # answers of the layer
        self.hot_bytes = 0  # of those, given to bytes as well
        self._bytes_first = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        if environ["REQUEST_METHOD"] != "GET" or not environ["PATH_INFO"].startswith("/api/v1/"):
            return self._flask(environ, start_response)
        self._bytes_first = not self._bytes_first
        for _ in range(TRIES):
            first = answered(self._layer, head(environ)) if self._bytes_first else None
            flask = run_wsgi_app(self._flask, dict(environ), buffered=True)
            layer = run_wsgi_app(self._layer, dict(environ), buffered=True)
            raw = first or answered(self._layer, head(environ))
            is_hot = layer[1] != PASSED_ON
            if not is_hot:
                layer = flask
            ways = {told(environ, answer) for answer in (flask, layer, *([] if raw is None else [parted(raw)]))}
            if len(ways) == 1:
                self.hot += is_hot
                self.hot_bytes += is_hot and raw is not None
                break
        else:
            raise AssertionError(f"the layer of hot reads answers otherwise than Flask: {ways}")
        body, status, headers = layer
        start_response(status, list(headers))
        return body

    def _pass_on(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(PASSED_ON, [])
        return []


def head(environ: dict[str, Any]) -> bytes:
    """The request as a client writes it, less the blank line."""
    target = quote(environ["PATH_INFO"].encode("latin-1")) + (f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else "")
    headers = {name.removeprefix("HTTP_"): value for name, value in environ.items() if name.startswith(("HTTP_", "CONTENT_"))}
    lines = "".join(f"\r\n{name.replace('_', '-').title()}: {value}" for name, value in headers.items())
    return f"{environ['REQUEST_METHOD']} {target} HTTP/1.1{lines}".encode("latin-1")


def answered(layer: HotReads, head: bytes) -> bytes | None:
    """What the layer tells to a request in bytes, if it does."""
    get = read(head)
    tell = None if get is None else layer.look(get, lambda: None)
    return None if get is None or tell is None else tell(get)


def parted(raw: bytes) -> tuple[list[bytes], str, list[tuple[str, str]]]:
    """An answer in bytes, without what gunicorn would add to Flask's."""
    begun, _, body = raw.partition(b"\r\n\r\n")
    line, *lines = begun.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, _, value in (each.partition(": ") for each in lines)]
    assert [name for name, _ in headers[:3]] == ["Server", "Date", "Connection"]
    return [body], line.removeprefix("HTTP/1.1 "), headers[3:]


PASSED_ON = "599 Passed on"


def told(environ: dict[str, Any], answer: Any) -> Told:
    """What an answer tells. Its id is its own, unless the request named one."""
    body, status, headers = answer
    own = () if "HTTP_X_REQUEST_ID" in environ else ("X-Request-ID",)
    return Told(status, frozenset((name, value) for name, value in headers if name not in own), b"".join(body))
