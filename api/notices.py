"""Notices: what one was told, and, for staff, what could not be told."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response
from marshmallow import fields, validate

from api.auth import AnyToken, Staff, current, policy
from api.reading import reading, ready
from api.schemas import Answer, Blueprint, Choice, Flag, Many, Nothing, PageQuery, Part, UtcInstant
from api.services import services
from domain import noticeboard
from domain.notices import UNDELIVERED, Kind
from domain.schedule import Role

blp = Blueprint("notices", __name__, description="Avisos / Notices")


class NoticeQuery(PageQuery):
    """Which of one's own notices."""

    unread = Flag()


class Notice(Answer):
    """What somebody was told, in their language and by their clock."""

    id = fields.UUID(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(list(Kind)))
    appointment_id = fields.UUID()
    at = UtcInstant(required=True)
    read_at = UtcInstant()
    text = fields.String(required=True)


class Notices(Answer):
    """A page of one's own notices, newest first."""

    items = Many(Part(Notice), most=100, required=True)
    page = fields.Integer(required=True)
    page_size = fields.Integer(required=True)
    total = fields.Integer(required=True)


class TroubleQuery(PageQuery):
    """Which notices that mail has not brought: those given up, or those tried again."""

    state = Choice(noticeboard.STATES, load_default="undeliverable")


class Recipient(Answer):
    """Whom a notice is for, and the address that they have now."""

    id = fields.UUID(required=True)
    role = fields.String(required=True, validate=validate.OneOf(list(Role)))
    name = fields.String(required=True)
    email = fields.String(required=True)


class TroubledNotice(Answer):
    """A notice that mail has not brought, and why it was given up, if it was."""

    id = fields.UUID(required=True)
    kind = fields.String(required=True)
    person = Part(Recipient, required=True)
    appointment_id = fields.UUID()
    due_at = UtcInstant(required=True)
    attempts = fields.Integer(required=True)
    dropped_at = UtcInstant()
    reason = fields.String(validate=validate.OneOf(list(UNDELIVERED)))


class TroubledNotices(Answer):
    """A page of the notices that mail has not brought, newest first."""

    items = Many(Part(TroubledNotice), most=100, required=True)
    page = fields.Integer(required=True)
    page_size = fields.Integer(required=True)
    total = fields.Integer(required=True)


@blp.get("/notices")
@policy(AnyToken)
@blp.arguments(NoticeQuery, location="query")
@blp.response(200, Notices)
@blp.alt_response(304)
def list_notices(query: dict[str, Any]) -> Response:
    """Ver os próprios avisos. / List what one was told."""
    with services().reads.connect() as connection:
        items, total = noticeboard.own(connection, current().id, unread=query.get("unread"), **_portion(query))
    return reading(ready(Notices().dump(_page(query, items, total))))


@blp.post("/notices/<uuid:notice_id>/read")
@policy(AnyToken)
@blp.arguments(Nothing, required=False)
@blp.response(204)
def mark_read(_: dict[str, Any], notice_id: UUID) -> Response:
    """Marcar um aviso como lido. / Mark a notice as read."""
    with services().reads.connect() as connection:
        noticeboard.mark_read(connection, current().id, notice_id)
    return Response(status=204)


@blp.get("/staff/notices")
@policy(Staff)
@blp.arguments(TroubleQuery, location="query")
@blp.response(200, TroubledNotices)
def list_troubled(query: dict[str, Any]) -> dict[str, Any]:
    """Ver os avisos que não chegaram. / List the notices that mail could not bring."""
    use = services()
    with use.engine.begin() as connection:
        items, total = noticeboard.troubled(connection, use.settings, current().id, query["state"], **_portion(query))
    return _page(query, items, total)


def _portion(query: dict[str, Any]) -> dict[str, int]:
    return {"limit": query["page_size"], "offset": (query["page"] - 1) * query["page_size"]}


def _page(query: dict[str, Any], items: list[dict[str, Any]], total: int) -> dict[str, Any]:
    return {"items": items, "page": query["page"], "page_size": query["page_size"], "total": total}
