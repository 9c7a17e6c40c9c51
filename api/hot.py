"""Answers hot reads from Redis in front of Flask, as Flask would; whatever is not certain goes on to Flask as it came.

A hot read is a GET whose answer is cached, in time and meant for its reader, whose session is cached as alive. Flask alone fills,
waits, refuses and explains: this layer may be switched off (`HOT_READS=off`), and only the cost of a read changes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache, lru_cache
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from flask import Flask, Request
from gunicorn import SERVER
from gunicorn.workers.base_async import ALREADY_HANDLED
from marshmallow import Schema
from werkzeug.http import parse_etags

from api.app import HEADERS, HSTS
from api.appointments import ListQuery
from api.auth import Anyone, AnyToken, Doctor, Patient
from api.directory import AgendaQuery, DoctorQuery
from api.reading import PRIVATE, PUBLIC
from api.schemas import Blueprint
from api.services import Services, sane_id
from domain import directory, logs, metrics, projections, sessions, tokens, traces
from domain.answers import resolved
from domain.cache import Ready, Wanted, etag
from domain.directory import SearchQuery
from domain.errors import HealthMedError
from domain.privacy import redact
from domain.schedule import Role
from domain.tokens import Claims, Type

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_ID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PATHS: Final = re.compile(
    rf"/api/v1/(?:doctors/(?P<doctor>{_ID})|doctors/(?P<agenda>{_ID})/agenda|(?P<search>doctors)"
    rf"|commands/(?P<command>{_ID})|appointments/(?P<appointment>{_ID})|(?P<appointments>appointments))"
)
_QUERIES: Final = 1024  # remembered as read, in each process
_PAGES: Final = 256  # of searches, remembered as put together

_lines = logging.getLogger(__name__)
_log = structlog.get_logger()


class _Asked(NamedTuple):
    """What is asked of a route: the id in its path, its query, and who asks, where that matters."""

    used: Services
    id: str
    query: str
    claims: Any = None


@dataclass(frozen=True, slots=True)
class _Read:
    """A route of Flask's that may be answered here: who may read it, where that is cached, and what makes it whole."""

    rule: str
    readers: frozenset[Role]
    at: Callable[[_Asked], Wanted | None]
    whole: Callable[[_Asked, Ready], Ready | None] = lambda _, ready: ready


class HotReads:
    """The application of a process: what is at hand it answers itself, the rest is `onward`'s."""

    def __init__(self, app: Flask, onward: WSGIApplication) -> None:
        self._extensions = app.extensions
        self._onward = onward
        settings = app.extensions["healthmed"].settings
        self._standing = [*HEADERS.items()]
        if not settings.local_stack:
            self._standing.append(("Strict-Transport-Security", HSTS))
        if settings.cors_origins:
            self._standing.append(("Vary", "Origin"))
        self._pages: dict[tuple[str, ...], Ready] = {}
        self._searched = lru_cache(_QUERIES)(lambda query: directory.at_search(settings, _read_query(DoctorQuery, query)))
        self._reads = {
            "doctor": _Read("/api/v1/doctors/<uuid:doctor_id>", Anyone, _at_doctor),
            "agenda": _Read("/api/v1/doctors/<uuid:doctor_id>/agenda", Anyone, _at_agenda),
            "search": _Read("/api/v1/doctors", Anyone, self._at_search, self._page),
            "command": _Read("/api/v1/commands/<uuid:command_id>", AnyToken, _at_command),
            "appointment": _Read("/api/v1/appointments/<uuid:appointment_id>", Patient | Doctor, _at_appointment),
            "appointments": _Read("/api/v1/appointments", Patient | Doctor, _at_appointments),
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        began = perf_counter()
        path = _PATHS.fullmatch(environ["PATH_INFO"])
        if path is None or not _is_plain(environ):
            return self._onward(environ, start_response)
        name = str(path.lastgroup)
        read, used = self._reads[name], self._extensions["healthmed"]
        try:
            found = _find(read, used, path[name], environ)
        except HealthMedError:  # which Flask will explain
            found = None
        except Exception as error:
            _log.warning("hot_read_failed", route=read.rule, error=type(error).__name__)
            found = None
        if found is None:
            return self._onward(environ, start_response)
        (tag, body), session_id = found
        sent_id = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = sane_id(sent_id)
        caching = PRIVATE if read.readers else PUBLIC
        headers = [("ETag", f'"{tag}"'), ("Cache-Control", caching), ("X-Request-ID", request_id), *self._standing]
        if _is_held(environ, tag):
            status, line, body = 304, "304 NOT MODIFIED", b""
        else:
            status, line = 200, "200 OK"
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        seconds = perf_counter() - began
        count, observe, write_line = _telling(read.rule, status)
        count()
        observe(seconds)
        traces.answered(request_id, "GET", read.rule, status, seconds)
        shown_id = redact(request_id) if request_id == sent_id else request_id
        write_line(request_id=shown_id, session_id=session_id, milliseconds=round(seconds * 1000, 1))
        if not used.leaving.is_set() and _is_kept(environ):
            return _send(environ["gunicorn.socket"], line, headers, body)
        start_response(line, headers)
        return (body,)

    def _at_search(self, asked: _Asked) -> Wanted:
        wanted: Wanted = self._searched(asked.query)[2]
        return wanted

    def _page(self, asked: _Asked, listed: Ready) -> Ready | None:
        cards = asked.used.cache.at_hand(_at_cards(listed[1]))
        if cards is None:
            return None
        parts = (asked.query, listed[0], *[tag for tag, _ in cards])  # which make the page what it is
        page = self._pages.get(parts)
        if page is None:
            query: SearchQuery = self._searched(asked.query)[0]
            body = directory.page_body(query, json.loads(listed[1]), [card for _, card in cards])
            page = etag(body), body
            if len(self._pages) >= _PAGES:
                self._pages.clear()
            self._pages[parts] = page
        return page


def _is_plain(environ: WSGIEnvironment) -> bool:
    """Whether this is a GET of whose headers none but those looked at here can change the answer."""
    return (
        environ["REQUEST_METHOD"] == "GET"
        and environ.get("CONTENT_LENGTH", "") in ("", "0")
        and "HTTP_TRANSFER_ENCODING" not in environ
        and "HTTP_PREFER" not in environ
        and "HTTP_ORIGIN" not in environ
    )


def _is_kept(environ: WSGIEnvironment) -> bool:
    """Whether gunicorn serves this on a connection that stays open for the next request."""
    return "gunicorn.socket" in environ and environ["SERVER_PROTOCOL"] == "HTTP/1.1" and "HTTP_CONNECTION" not in environ


def _send(client: Any, status: str, headers: list[tuple[str, str]], body: bytes) -> Iterable[bytes]:
    """Send an answer in one piece: by way of `start_response` it takes two, and 40 microseconds more of gunicorn's."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    head = f"HTTP/1.1 {status}\r\nServer: {SERVER}\r\nDate: {_date(int(time()))}\r\nConnection: keep-alive\r\n{lines}\r\n"
    client.sendall(head.encode("latin-1") + body)
    handled: Iterable[bytes] = ALREADY_HANDLED
    return handled


@lru_cache(1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _is_held(environ: WSGIEnvironment, tag: str) -> bool:
    """Whether whoever asks has this answer already."""
    sent = environ.get("HTTP_IF_NONE_MATCH")
    return sent is not None and (sent == f'"{tag}"' or parse_etags(sent).contains_weak(tag))


def _find(read: _Read, used: Services, path_id: str, environ: WSGIEnvironment) -> tuple[Ready, str | None] | None:
    """What is wanted and in which session, if all of it is at hand. Raises HealthMedError where Flask would refuse."""
    used.cache.new_budget()
    claims: Claims | None = None
    if read.readers:
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme != "Bearer":
            return None
        claims = tokens.read(used.settings.jwt_keys, token, Type.ACCESS)
        if claims.role not in read.readers:
            return None
    asked = _Asked(used, path_id, environ["QUERY_STRING"], claims)
    if (wanted := read.at(asked)) is None:
        return None
    if claims is None:
        found = used.cache.at_hand([wanted])
    else:
        found = used.cache.at_hand([wanted, sessions.standing(claims.session_id)], claims.person_id)
    if found is None or (claims is not None and found[1][1] != sessions.ALIVE):
        return None
    whole = read.whole(asked, found[0])
    return None if whole is None else (whole, None if claims is None else str(claims.session_id))


def _at_doctor(asked: _Asked) -> Wanted | None:
    return None if asked.query else directory.at_doctor(asked.id)


def _at_agenda(asked: _Asked) -> Wanted:
    return directory.at_agenda(asked.id, **_read_query(AgendaQuery, asked.query))


def _at_command(asked: _Asked) -> Wanted | None:
    return None if asked.query else projections.at_command(asked.id)


def _at_appointment(asked: _Asked) -> Wanted | None:
    if asked.query:
        return None
    return projections.at_appointment(asked.used.cache, asked.id, asked.claims.person_id, asked.claims.role)


def _at_appointments(asked: _Asked) -> Wanted:
    person_id = asked.claims.person_id
    query, after = resolved(asked.used.settings, _read_query(ListQuery, asked.query), person_id)
    return projections.at_appointments(asked.used.cache, person_id, asked.claims.role, query, after)


@lru_cache(_QUERIES)
def _read_query(schema: type[Schema], query: str) -> Any:
    """What a query says, read as the route reads it. Raises Invalid."""
    return Blueprint.ARGUMENTS_PARSER.parse(schema(), Request({"QUERY_STRING": query}), location="query")


@lru_cache(_PAGES)
def _at_cards(listed: bytes) -> list[Wanted]:
    return directory.at_cards(json.loads(listed))


@cache
def _telling(rule: str, status: int) -> tuple[Callable[[], None], Callable[[float], None], Callable[..., None]]:
    """What counts, times and logs an answer."""
    return (
        metrics.REQUESTS.labels("GET", rule, status).inc,
        metrics.REQUEST_SECONDS.labels("GET", rule).observe,
        logs.line_writer(_lines, "request", method="GET", route=rule, status=status),
    )
