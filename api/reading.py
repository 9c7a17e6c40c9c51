"""Answers a ready-made body as it stands: its bytes, its ETag, and 304 to whoever has it already."""

from __future__ import annotations

import json
from typing import Any, Final

from flask import Response, request

from api.services import mark_degraded
from domain.cache import Answer, Filled

# No max-age on what a command can change: it is asked again each time, and the ETag makes that cheap.
PUBLIC: Final = "public, no-cache"
PRIVATE: Final = "private, no-cache"


def ready(document: Any) -> Answer:
    """What was read from the database just now, as a body with its ETag."""
    return Answer.of(Filled(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()))


def reading(answer: Answer, caching: str = PRIVATE, content_type: str = "application/json") -> Response:
    """The answer to a GET, or a 304 without a body if `If-None-Match` names it (RFC 9110, section 13.1.2: weakly)."""
    if answer.degraded:
        mark_degraded()
    if request.if_none_match.contains_weak(answer.etag):
        response = Response(status=304)
    else:
        response = Response(answer.body, content_type=content_type)
    response.set_etag(answer.etag)
    response.headers["Cache-Control"] = caching
    return response
