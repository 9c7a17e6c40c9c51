"""Commands: storing what somebody asks of a schedule, and saying what has become of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Final
from uuid import UUID

from flask import Response, request
from marshmallow import Schema, fields, validate
from sqlalchemy import Row
from werkzeug.http import parse_list_header

from api.auth import AnyToken, current, policy, sender
from api.reading import reading
from api.schemas import Blueprint, read_body
from api.services import Services, services
from domain import inbox, projections
from domain.cache import Answer
from domain.commands import Command, Erase, Kind
from domain.errors import Invalid
from domain.inbox import Sender
from domain.metrics import ACKNOWLEDGED
from workers.app import wake

LONGEST_WAIT: Final = 20  # seconds
WAITED: Final = "healthmed.waited"  # in a request's environment: for how many seconds it has waited for a decision already
_WAIT = re.compile(r'wait\s*=\s*("?)(\d{1,9})\1\s*(?:;.*)?', re.ASCII | re.IGNORECASE)

blp = Blueprint("commands", __name__, description="Comandos / Commands")


class CommandError(Schema):
    """Why a command was rejected: a code of the contract, and what a person reads of it."""

    code = fields.String(required=True)
    detail = fields.String(required=True)


class CommandBody(Schema):
    """A command, as answered: what follows the times is there once it is decided."""

    id = fields.UUID(required=True)
    kind = fields.String(required=True, validate=validate.OneOf([*Kind]))
    status = fields.String(required=True, validate=validate.OneOf(["pending", "succeeded", "rejected"]))
    received_at = fields.AwareDateTime(required=True)
    decided_at = fields.AwareDateTime()
    appointment_id = fields.UUID()
    result = fields.Dict()
    error = fields.Nested(CommandError)


@blp.get("/commands/<uuid:command_id>")
@policy(AnyToken, erased=True)
@blp.response(200, CommandBody)
@blp.alt_response(304)
@blp.doc(
    parameters=[
        {
            "in": "header",
            "name": "Prefer",
            "schema": {"type": "string"},
            "description": "`wait=N`: espera a decisão por até N segundos (no máximo 20). / Waits for the decision.",
        }
    ]
)
def show_command(command_id: UUID) -> Response:
    """Ver um comando de quem o enviou. / Read a command that one has sent."""
    used, caller = services(), current()
    seconds = _preferred_wait()

    def read() -> Answer:
        return projections.command(used.cache, command_id, caller.id)

    def look() -> Answer:  # one of many, so that each has a request's budget
        used.cache.new_budget()
        return read()

    def at_hand() -> bool:
        return used.cache.at_hand([projections.at_command(command_id)], caller.id) is not None

    left = max(0.0, seconds - request.environ.get(WAITED, 0.0))
    response = reading(used.waiters.wait(command_id, left, look, at_hand) if seconds else read())
    if seconds:
        response.headers["Preference-Applied"] = f"wait={seconds}"
    return response


def sent_before() -> bool:
    """Whether the current request, by its idempotency key, has stored its command already."""
    used, key = services(), _idempotency_key()
    with used.reads.connect() as connection:
        return key is not None and inbox.sent_before(connection, used.settings, sender(), key, _fingerprint()) is not None


def keep(used: Services, sender: Sender, command: Command | Erase, key: str | None, mark: bytes) -> Row[Any]:
    """Store a command and have its lane woken; returns its row. Raises what `inbox.send` raises. `mark` is its fingerprint."""
    with used.reads.connect() as connection:  # one statement writes: to surround it by a transaction is two round trips more
        row = inbox.send(connection, used.settings, sender, command, key=key, fingerprint=mark)
    ACKNOWLEDGED.labels(row.kind).inc()
    if row.status != "pending":  # the same request again: what was decided is told only when every read shows it
        used.cache.finish_if_needed(row.batch_id)
    elif row.lane != inbox.PARKED:
        wake(row.lane)
    return row


def accepted(row: Row[Any]) -> tuple[bytes, list[tuple[str, str]]]:
    """The body and the headers of the answer 202 to whoever sent a command."""
    return json.dumps(projections.command_body(row)).encode(), [("Location", f"/api/v1/commands/{row.id}"), ("Retry-After", "1")]


def fingerprint(method: str, path: str, body: dict[str, Any]) -> bytes:
    """What makes two requests the same: method, path and parsed body, in which neither order nor white space counts.

    A password is left out: it would be kept under a hash that is quick to try.
    """
    body = {name: value for name, value in body.items() if name != "password"}
    return json.dumps([method, path, body], sort_keys=True, separators=(",", ":")).encode()


def stores(view: Callable[..., Command | Erase]) -> Callable[..., Response]:
    """Turn a view that returns a command into one that stores it, wakes its lane and answers 202 with it."""

    @wraps(view)
    def stored(*body: Any, **path: Any) -> Response:
        command = view(*body, **path)
        text, headers = accepted(keep(services(), sender(), command, _idempotency_key(), _fingerprint()))
        answer = Response(text, 202, content_type="application/json")
        answer.headers.extend(headers)
        return answer

    documented: Callable[..., Response] = blp.doc(parameters=[_IDEMPOTENCY_KEY])(
        blp.response(202, CommandBody, headers=_HEADERS)(stored)
    )
    return documented


_IDEMPOTENCY_KEY: Final = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "Repetir o pedido com a mesma chave responde o mesmo comando. / The same key answers the same command.",
}
_HEADERS: Final = {
    "Location": {"schema": {"type": "string"}, "description": "Onde ler o comando. / Where to read the command."},
    "Retry-After": {"schema": {"type": "integer"}, "description": "Segundos. / Seconds."},
}


def _idempotency_key() -> str | None:
    """The key as its sender wrote it: a header's bytes are UTF-8 if they can be, and else stand for themselves."""
    sent = request.headers.get("Idempotency-Key")
    if sent is None:
        return None
    try:
        key = sent.encode("latin-1").decode()
    except UnicodeDecodeError:
        key = sent
    if not 1 <= len(key) <= 255:
        raise Invalid({"Idempotency-Key": ["Deve ter de 1 a 255 caracteres. / Must have 1 to 255 characters."]})
    return key


def _fingerprint() -> bytes:
    return fingerprint(request.method, request.path, read_body(request))


def _preferred_wait() -> int:
    """The seconds of `Prefer: wait=N`, `LONGEST_WAIT` at most; 0 for none and for what can't be understood (RFC 7240)."""
    for preference in parse_list_header(request.headers.get("Prefer", "")):
        if found := _WAIT.fullmatch(preference):
            return min(int(found[2]), LONGEST_WAIT)
    return 0
