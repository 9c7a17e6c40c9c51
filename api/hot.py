"""Answers hot reads from Redis in front of Flask, as Flask would; whatever is not certain goes on to Flask as it came.

A hot read is a GET whose answer is cached, in time and meant for its reader, whose session is cached as alive. Flask alone waits,
refuses and explains: this layer may be switched off (`HOT_READS=off`), and only the cost of a read changes.

It is asked in two ways: by the worker with the bytes of a request (`read`, `look`) that nothing else has parsed, which is what
makes a read cheap; and as a WSGI application with whatever is not so plain, such as requests that come together or in pieces.
In the first way what is not cached is filled here too, session and projection together.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from flask import Flask, Request
from marshmallow import Schema
from sqlalchemy import Connection
from werkzeug.http import parse_etags

from api.app import standing_headers
from api.appointments import ListQuery
from api.auth import Anyone, AnyToken, Doctor, Patient
from api.directory import AgendaQuery, DoctorQuery
from api.reading import PRIVATE, PUBLIC
from api.schemas import Blueprint
from api.services import Services, sane_id
from api.wire import written
from domain import directory, logs, metrics, projections, sessions, tokens, traces
from domain.answers import resolved
from domain.cache import Answer, Filled, Ready, Wanted, etag
from domain.directory import SearchQuery
from domain.errors import HealthMedError
from domain.privacy import redact
from domain.rebuilding import refill
from domain.schedule import Role
from domain.tokens import Claims, Type

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_ID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PATHS: Final = re.compile(
    rf"/api/v1/(?:doctors/(?P<doctor>{_ID})|doctors/(?P<agenda>{_ID})/agenda|(?P<search>doctors)"
    rf"|commands/(?P<command>{_ID})|appointments/(?P<appointment>{_ID})|(?P<appointments>appointments))"
)
_ANYBODYS: Final = "/api/v1/doctors"  # what is told to anybody alike begins with this
# What every server reads alike: a target without escapes, names without underscores, and no value but of printable ASCII.
_HEAD: Final = re.compile(rb"GET (/api/v1/[a-z0-9/-]+)(?:\?([!\"$-~]*))? HTTP/1\.1((?:\r\n[A-Za-z0-9-]+:[\t -~]*){1,64})")
_FIELDS: Final = re.compile(r"\r\n([^:]+):[\t ]*([^\r]*)")
_FLASKS: Final = frozenset(  # headers that ask for what this layer doesn't do
    ["prefer", "origin", "content-length", "transfer-encoding", "expect", "upgrade", "http2-settings", "trailer", "te"]
)
_QUERIES: Final = 1024  # remembered as read, in each process
_PAGES: Final = 256  # of searches, remembered as put together

_lines = logging.getLogger(__name__)
_log = structlog.get_logger()


class Get(NamedTuple):
    """A GET, of which nothing but this can change the answer."""

    path: str
    query: str
    authorization: str
    held: str | None  # its If-None-Match
    request_id: str

    @property
    def wish(self) -> tuple[str, ...]:
        """What it wants to know: to whoever has the same wish at the same time, the same is to be told."""
        return (self.path, self.query) if self.path.startswith(_ANYBODYS) else (self.path, self.query, self.authorization)


class _Answer(NamedTuple):
    """What is said to it."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


class _Asked(NamedTuple):
    """What is asked of a route: the id in its path, its query, and who asks, where that matters."""

    used: Services
    id: str
    query: str
    claims: Any = None
    filling: Callable[[], None] | None = None  # to be called before what is not at hand is filled; None if nothing is to be


@dataclass(frozen=True, slots=True)
class _Read:
    """A route of Flask's that may be answered here: who may read it, where that is cached, and what makes it whole."""

    rule: str
    readers: frozenset[Role]
    at: Callable[[_Asked], Wanted | None]
    whole: Callable[[_Asked, Ready], Ready | None] = lambda _, ready: ready
    primary: bool = False  # no replica may fill it


class _Found(NamedTuple):
    """What is wanted, whole."""

    read: _Read
    ready: Ready
    session_id: str | None  # of the reader, where that matters


class HotReads:
    """The application of a process: what is at hand it answers itself, the rest is `onward`'s."""

    def __init__(self, app: Flask, onward: WSGIApplication) -> None:
        self._extensions = app.extensions
        self._onward = onward
        settings = app.extensions["healthmed"].settings
        self._standing = [*standing_headers(settings).items()]
        self._pages: dict[tuple[str, ...], Ready] = {}
        self._searched = lru_cache(_QUERIES)(lambda query: directory.at_search(settings, _read_query(DoctorQuery, query)))
        self._reads = {
            "doctor": _Read("/api/v1/doctors/<uuid:doctor_id>", Anyone, _at_doctor),
            "agenda": _Read("/api/v1/doctors/<uuid:doctor_id>/agenda", Anyone, _at_agenda),
            "search": _Read("/api/v1/doctors", Anyone, self._at_search, self._page),
            "command": _Read("/api/v1/commands/<uuid:command_id>", AnyToken, _at_command, primary=True),
            "appointment": _Read("/api/v1/appointments/<uuid:appointment_id>", Patient | Doctor, _at_appointment),
            "appointments": _Read("/api/v1/appointments", Patient | Doctor, _at_appointments),
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        began = perf_counter()
        get = _got(environ)
        found = None if get is None else self._find(get)
        if get is None or found is None:
            return self._onward(environ, start_response)
        answer = self._answer(get, found, began)
        start_response(answer.status, answer.headers)
        return (answer.body,)

    def look(self, get: Get, alone: Callable[[], None]) -> Callable[[Get], bytes] | None:
        """What tells the whole answer to a request, and to any other with the same wish; None if it is to go the long way.

        Before it fills what is not cached, which may take longer, it calls `alone`: then this one only is to be told.
        """
        if self._extensions["healthmed"].leaving.is_set():
            return None
        began, request_id = perf_counter(), ""

        def filling() -> None:
            nonlocal request_id
            alone()
            request_id = request_id or sane_id(get.request_id)
            structlog.contextvars.clear_contextvars()
            structlog.contextvars.bind_contextvars(request_id=request_id)

        found = self._find(get, filling)
        return None if found is None else lambda each: written(*self._answer(each, found, began, request_id))

    def _find(self, get: Get, filling: Callable[[], None] | None = None) -> _Found | None:
        path = _PATHS.fullmatch(get.path)
        if path is None:
            return None
        name = str(path.lastgroup)
        read = self._reads[name]
        try:
            return _find(read, self._extensions["healthmed"], path[name], get, filling)
        except HealthMedError:  # which Flask will explain
            return None
        except Exception as error:
            _log.warning("hot_read_failed", route=read.rule, error=type(error).__name__)
            return None

    def _answer(self, get: Get, found: _Found, began: float, request_id: str = "") -> _Answer:
        read, (tag, body), session_id = found
        request_id = request_id or sane_id(get.request_id)
        caching = PRIVATE if read.readers else PUBLIC
        headers = [("ETag", f'"{tag}"'), ("Cache-Control", caching), ("X-Request-ID", request_id), *self._standing]
        if _is_held(get, tag):
            status, line, body = 304, "304 NOT MODIFIED", b""
        else:
            status, line = 200, "200 OK"
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        seconds = perf_counter() - began
        count, observe, write_line = _telling(read.rule, status)
        count()
        observe(seconds)
        traces.answered(request_id, "GET", read.rule, status, seconds)
        shown_id = redact(request_id) if request_id == get.request_id else request_id
        write_line(request_id=shown_id, session_id=session_id, milliseconds=round(seconds * 1000, 1))
        return _Answer(line, headers, body)

    def _at_search(self, asked: _Asked) -> Wanted:
        wanted: Wanted = self._searched(asked.query)[2]
        return wanted

    def _page(self, asked: _Asked, listed: Ready) -> Ready | None:
        cards = asked.used.cache.at_hand(_at_cards(listed[1]))
        if cards is None:
            if asked.filling is None:
                return None
            asked.filling()
            return _ready(directory.search(asked.used.cache, _read_query(DoctorQuery, asked.query)))
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


def _got(environ: WSGIEnvironment) -> Get | None:
    """What a server parsed, if it is a GET that may be answered here."""
    if (
        environ["REQUEST_METHOD"] != "GET"
        or environ.get("CONTENT_LENGTH", "") not in ("", "0")
        or "HTTP_TRANSFER_ENCODING" in environ
        or "HTTP_PREFER" in environ
        or "HTTP_ORIGIN" in environ
    ):
        return None
    return Get(
        environ["PATH_INFO"],
        environ["QUERY_STRING"],
        environ.get("HTTP_AUTHORIZATION", ""),
        environ.get("HTTP_IF_NONE_MATCH"),
        environ.get("HTTP_X_REQUEST_ID", ""),
    )


def read(head: bytes) -> Get | None:
    """The request with this head, less the blank line, and without a body, on a connection that stays open.

    None unless there is but one way to read these bytes, and nobody need look at what `Get` leaves out.
    """
    line = _HEAD.fullmatch(head)
    if line is None:
        return None
    path, query, rest = line.groups(b"")
    named = _FIELDS.findall(rest.decode())
    fields = {name.lower(): value for name, value in named}
    if len(fields) < len(named) or not _FLASKS.isdisjoint(fields):
        return None
    if fields.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    said = fields.get
    held = said("if-none-match")
    return Get(
        path.decode(),
        query.decode(),
        said("authorization", "").rstrip(),
        None if held is None else held.rstrip(),
        said("x-request-id", "").rstrip(),
    )


def _is_held(get: Get, tag: str) -> bool:
    """Whether whoever asks has this answer already."""
    return get.held is not None and (get.held == f'"{tag}"' or parse_etags(get.held).contains_weak(tag))


def _find(read: _Read, used: Services, path_id: str, get: Get, filling: Callable[[], None] | None) -> _Found | None:
    """What is wanted, at hand or filled. Raises HealthMedError where Flask would refuse."""
    used.cache.new_budget()
    claims: Claims | None = None
    if read.readers:
        scheme, _, token = get.authorization.partition(" ")
        if scheme != "Bearer":
            return None
        claims = tokens.read(used.settings.jwt_keys, token, Type.ACCESS)
        if claims.role not in read.readers:
            return None
    asked = _Asked(used, path_id, get.query, claims, filling)
    if (wanted := read.at(asked)) is None:
        return None
    keys = [wanted] if claims is None else [sessions.standing(claims.session_id), wanted]
    found = used.cache.look(keys, None if claims is None else claims.person_id)
    if found is None or (claims is not None and found[0] is not None and found[0][1] != sessions.ALIVE):
        return None
    if None in found:
        if filling is None:
            return None
        filling()
        if not _fill(asked, keys, found, read.primary):
            return None
    ready: Ready | None = found[-1]
    whole = None if ready is None else read.whole(asked, ready)
    return None if whole is None else _Found(read, whole, None if claims is None else str(claims.session_id))


def _fill(asked: _Asked, keys: Sequence[Wanted], found: list[Ready | None], primary: bool) -> bool:
    """Fill what was not found, the session first; whether all of it is there now, and Flask would say no more than that."""
    cache, reader = asked.used.cache, None if asked.claims is None else asked.claims.person_id

    def fill(connection: Connection, missing: Sequence[Wanted]) -> list[Filled | None]:
        filled: list[Filled | None] = []
        for each in missing:  # nothing for a session that is over, or what a doctor reads would be written down
            over = reader is not None and filled and (filled[0] is None or filled[0].body != sessions.ALIVE)
            filled.append(None if over else refill(connection, cache, *each))
        return filled

    missing = [place for place, ready in enumerate(found) if ready is None]
    answers = cache.read_many([keys[place] for place in missing], fill, reader=reader, primary=primary, looked=True)
    for place, answer in zip(missing, answers, strict=True):
        if answer is None or answer.degraded:
            return False
        found[place] = _ready(answer)
    ready = found[0]
    return reader is None or (ready is not None and ready[1] == sessions.ALIVE)


def _ready(answer: Answer) -> Ready:
    return answer.etag, answer.body


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
