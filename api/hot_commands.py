"""Stores plain bookings, and answers who waits for a decision, in front of Flask and as Flask would.

Plain is what says which slot and no more, from a patient whose session is cached as alive. Whatever is not certain goes on to
Flask as it came: this layer may be switched off along with that of hot reads, and only the cost of a booking changes.

Like hot reads it is asked in two ways: by the worker with the bytes of a request (`answer`), and as a WSGI application.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from functools import cache
from io import BytesIO
from time import perf_counter, time
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import structlog
from flask import Flask
from werkzeug.wrappers import Response

from api.app import FAILED, standing_headers
from api.commands import LONGEST_WAIT, WAITED, accepted, fingerprint, keep
from api.reading import PRIVATE
from api.services import Services, sane_id
from api.wire import environ_of, written
from domain import logs, metrics, projections, sessions, tokens, traces
from domain.cache import Ready, Wanted
from domain.commands import Book
from domain.errors import HealthMedError
from domain.inbox import Sender
from domain.privacy import redact
from domain.schedule import Role
from domain.tokens import Claims, Type
from domain.waiters import SOON_SECONDS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Headers = list[tuple[str, str]]

_ID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_BOOKINGS: Final = "/api/v1/appointments"
_COMMAND: Final = "/api/v1/commands/<uuid:command_id>"
_PATH: Final = re.compile(f"/api/v1/commands/({_ID})")
_BOOKING: Final = re.compile(rf'\s*{{\s*"slot_id"\s*:\s*"({_ID})"\s*}}\s*'.encode())
_MOST: Final = 200  # bytes of a booking that says no more than that
_RUSH_SECONDS: Final = 1.0  # in which a command is decided, however many came with it, and a message that is lost is made up for
_KEY: Final = re.compile(r"[!-~]{1,255}")
_WAIT: Final = re.compile(r"wait=([1-9][0-9]?)")
_ELSEWHERE: Final = frozenset(["HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING", "HTTP_ORIGIN", "HTTP_EXPECT"])

_lines = logging.getLogger(__name__)
_log = structlog.get_logger()


class _Answer(NamedTuple):
    status: str
    headers: Headers
    body: bytes


class HotCommands:
    """The application of a process: a plain booking it stores itself, the rest is `onward`'s."""

    def __init__(self, app: Flask, onward: WSGIApplication) -> None:
        self._extensions = app.extensions
        self._onward = onward
        self._standing = [*standing_headers(app.extensions["healthmed"].settings).items()]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        answer = self._answer(environ)
        if answer is None:
            return self._onward(environ, start_response)
        start_response(answer.status, answer.headers)
        return (answer.body,)

    def answer(self, head: bytes, body: bytes, address: str = "") -> bytes | None:
        """The whole answer to a request, by its head less the blank line and its body, on a connection that is to stay open.

        None for what is to go the long way: then nothing was stored, and nobody has waited.
        """
        leaving = self._extensions["healthmed"].leaving
        environ = None if leaving.is_set() else environ_of(head, body, address)
        if environ is None:
            return None
        answer = self._answer(environ)
        if answer is None and (FAILED in environ or WAITED in environ):
            explained = Response.from_app(self._onward, environ, buffered=True)
            answer = _Answer(explained.status, [*explained.headers], explained.get_data())
        return None if answer is None else written(*answer, keep=not leaving.is_set())  # it may have been set meanwhile

    def _answer(self, environ: WSGIEnvironment) -> _Answer | None:
        """The answer, if it is this layer's to give; else Flask will find why, or what went wrong under `FAILED`."""
        if environ["QUERY_STRING"] or not _ELSEWHERE.isdisjoint(environ):
            return None
        if environ["REQUEST_METHOD"] == "POST":
            return self._store(environ) if environ["PATH_INFO"] == _BOOKINGS and _may_be_plain(environ) else None
        if environ["REQUEST_METHOD"] == "GET" and "HTTP_IF_NONE_MATCH" not in environ:
            path, wait = _PATH.fullmatch(environ["PATH_INFO"]), _WAIT.fullmatch(environ.get("HTTP_PREFER", ""))
            if path and wait and environ.get("CONTENT_LENGTH", "") in ("", "0"):
                return self._wait(environ, path[1], min(int(wait[1]), LONGEST_WAIT))
        return None

    def _store(self, environ: WSGIEnvironment) -> _Answer | None:
        """Store a booking. A failure that is no refusal is Flask's to tell, and not to try again: it may have been stored."""
        began = perf_counter()
        used: Services = self._extensions["healthmed"]
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = BytesIO(body)  # as it came, for Flask
        request_id = sane_id(environ.get("HTTP_X_REQUEST_ID", ""))
        key, mark = environ.get("HTTP_IDEMPOTENCY_KEY"), b""
        try:
            booking = _BOOKING.fullmatch(body)
            claims = _claims(used, environ) if booking else None
            if booking is None or claims is None or claims.role is not Role.PATIENT or used.settings.limits.confirm_email:
                return None
            if _at_hand(used, claims) is None:
                return None
            slot_id = booking[1].decode()
            if key is not None:
                mark = fingerprint("POST", _BOOKINGS, {"slot_id": slot_id})
            row = keep(used, Sender(claims.person_id, claims.role, request_id), Book(UUID(slot_id)), key, mark)
        except HealthMedError:  # it was refused; Flask will say why
            return None
        except Exception as error:
            environ[FAILED] = error
            return None
        answer, headers = accepted(row)
        _tell(environ, _BOOKINGS, 202, request_id, claims, began)
        return self._whole("202 ACCEPTED", request_id, "no-store", headers, answer)

    def _wait(self, environ: WSGIEnvironment, command_id: str, seconds: int) -> _Answer | None:
        """Answer as soon as a command is decided; if it is not soon, Flask waits for the rest of the time."""
        began = perf_counter()
        used: Services = self._extensions["healthmed"]
        wanted = projections.at_command(command_id)
        claims: Claims | None = None
        found: list[Ready] | None = None
        try:
            if (claims := _claims(used, environ)) is not None:
                with used.waiters.expecting(command_id) as decided:  # before the first look, or it would be missed
                    found = _at_hand(used, claims, wanted)
                    if found is None:
                        decided.wait(min(seconds, _soon(command_id)))
                        environ[WAITED] = perf_counter() - began
                        found = _at_hand(used, claims, wanted)
        except HealthMedError:  # which Flask will explain
            found = None
        except Exception as error:
            _log.warning("hot_read_failed", route=_COMMAND, error=type(error).__name__)
            found = None
        if claims is None or found is None:
            return None
        tag, body = found[1]
        request_id = sane_id(environ.get("HTTP_X_REQUEST_ID", ""))
        _tell(environ, _COMMAND, 200, request_id, claims, began)
        headers = [("ETag", f'"{tag}"'), ("Preference-Applied", f"wait={seconds}")]
        return self._whole("200 OK", request_id, PRIVATE, headers, body)

    def _whole(self, status: str, request_id: str, caching: str, headers: Headers, body: bytes) -> _Answer:
        own = [("X-Request-ID", request_id), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return _Answer(status, [*own, ("Cache-Control", caching), *headers, *self._standing], body)


def _may_be_plain(environ: WSGIEnvironment) -> bool:
    """Whether this may be a booking whose head says nothing that is not looked at here."""
    length, key = environ.get("CONTENT_LENGTH", ""), environ.get("HTTP_IDEMPOTENCY_KEY")
    return (
        environ.get("CONTENT_TYPE") == "application/json"
        and length.isdecimal()
        and int(length) <= _MOST
        and (key is None or _KEY.fullmatch(key) is not None)
    )


def _claims(used: Services, environ: WSGIEnvironment) -> Claims | None:
    """What a genuine token says, if it is written as tokens mostly are. Raises NotAuthenticated."""
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return tokens.read(used.settings.jwt_keys, token, Type.ACCESS) if scheme == "Bearer" else None


def _at_hand(used: Services, claims: Claims, *wanted: Wanted) -> list[Ready] | None:
    """Something that is cached, after the session's standing: if that is alive, and all of it is there and for this reader."""
    used.cache.new_budget()
    found = used.cache.at_hand([sessions.standing(claims.session_id), *wanted], claims.person_id)
    return found if found is not None and found[0][1] == sessions.ALIVE else None


def _soon(command_id: str) -> float:
    """For how long a command that is not at hand may still be about to be decided: much longer if it has only just come."""
    age = time() - int(command_id[:8] + command_id[9:13], 16) / 1000  # which its id tells (UUIDv7)
    return _RUSH_SECONDS if age < _RUSH_SECONDS else SOON_SECONDS


def _tell(environ: WSGIEnvironment, rule: str, status: int, request_id: str, claims: Claims, began: float) -> None:
    """Count, time, trace and log an answer."""
    seconds = perf_counter() - began
    count, observe, write_line = _telling(environ["REQUEST_METHOD"], rule, status)
    count()
    observe(seconds)
    traces.answered(request_id, environ["REQUEST_METHOD"], rule, status, seconds)
    shown_id = redact(request_id) if request_id == environ.get("HTTP_X_REQUEST_ID") else request_id
    write_line(request_id=shown_id, session_id=str(claims.session_id), milliseconds=round(seconds * 1000, 1))


@cache
def _telling(method: str, rule: str, status: int) -> tuple[Callable[[], None], Callable[[float], None], Callable[..., None]]:
    return (
        metrics.REQUESTS.labels(method, rule, status).inc,
        metrics.REQUEST_SECONDS.labels(method, rule).observe,
        logs.line_writer(_lines, "request", method=method, route=rule, status=status),
    )
