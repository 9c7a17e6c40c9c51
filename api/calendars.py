"""The calendar feed, and the secret link to it."""

from __future__ import annotations

from typing import Any

from flask import Response
from marshmallow import fields

from api.auth import Anyone, Doctor, Patient, current, policy
from api.reading import reading
from api.schemas import Answer, Blueprint, Nothing
from api.services import services
from domain import feeds
from domain.cache import changing

blp = Blueprint("calendars", __name__, description="Calendário / Calendar")


class CalendarLink(Answer):
    """The secret address to give to one's calendar program. It is shown this once."""

    url = fields.String(required=True)


@blp.post("/me/calendar-link")
@policy(Patient | Doctor)
@blp.arguments(Nothing, required=False)
@blp.response(201, CalendarLink)
def make_link(_: dict[str, Any]) -> dict[str, str]:
    """Criar um link secreto para o próprio calendário. / Make a secret link for one's calendar; the old one dies."""
    with changing(services().engine, services().cache) as change:
        return {"url": feeds.new_link(change, services().settings, current().id, current().role)}


@blp.delete("/me/calendar-link")
@policy(Patient | Doctor)
@blp.arguments(Nothing, required=False)
@blp.response(204)
def end_link(_: dict[str, Any]) -> Response:
    """Revogar o link do próprio calendário. / Let the link of one's calendar die."""
    with changing(services().engine, services().cache) as change:
        feeds.end_link(change, current().id, current().role)
    return Response(status=204)


@blp.get("/calendar/<string:token>.ics")
@policy(Anyone)
@blp.response(200, {"type": "string"}, content_type="text/calendar")
@blp.alt_response(304)
def show_calendar(token: str) -> Response:
    """Ler o calendário de quem criou o link. / Read the appointments of whoever made the link, as iCalendar (RFC 5545)."""
    return reading(feeds.feed(services().cache, token), content_type="text/calendar; charset=utf-8")
