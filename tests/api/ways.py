"""Reads that are asked in both ways, of Flask alone and through the layer of hot reads, and must be answered the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flask import Flask
from werkzeug.test import run_wsgi_app

from api.hot import HotReads

TRIES = 20  # what is read may change between one look and the next, and is asked for again then


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, less what differs from one to the next."""

    status: str
    headers: frozenset[tuple[str, str]]
    body: bytes


class BothWays:
    """What serves a test: each GET goes to Flask, which fills what is missing, and then through the layer.

    What the layer passes on is answered by Flask. What it answers must be what Flask has answered, and is what the test gets:
    so each test that reads is run through both ways, at the cost of one more request.
    """

    def __init__(self, app: Flask) -> None:
        self._flask = app.wsgi_app
        self._layer = HotReads(app, self._pass_on)
        self.hot = 0  # answers of the layer

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        if environ["REQUEST_METHOD"] != "GET" or not environ["PATH_INFO"].startswith("/api/v1/"):
            return self._flask(environ, start_response)
        for _ in range(TRIES):
            flask = run_wsgi_app(self._flask, dict(environ), buffered=True)
            layer = run_wsgi_app(self._layer, dict(environ), buffered=True)
            if layer[1] == PASSED_ON:
                layer = flask
                break
            if told(environ, flask) == told(environ, layer):
                self.hot += 1
                break
        else:
            assert told(environ, layer) == told(environ, flask), "the layer of hot reads answers otherwise than Flask"
        body, status, headers = layer
        start_response(status, list(headers))
        return body

    def _pass_on(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(PASSED_ON, [])
        return []


PASSED_ON = "599 Passed on"


def told(environ: dict[str, Any], answer: Any) -> Told:
    """What an answer tells. Its id is its own, unless the request named one."""
    body, status, headers = answer
    own = () if "HTTP_X_REQUEST_ID" in environ else ("X-Request-ID",)
    return Told(status, frozenset((name, value) for name, value in headers if name not in own), b"".join(body))
