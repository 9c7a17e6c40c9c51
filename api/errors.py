"""The one place with HTTP numbers for errors: everything that goes wrong becomes a problem document here (RFC 9457)."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from http import HTTPStatus

import structlog
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from api.services import request_id
from domain import errors
from domain.database import is_the_worlds_fault, sqlstate

CONTENT_TYPE = "application/problem+json"

_STATUS: Mapping[type[errors.HealthMedError], int] = {
    errors.NotFound: 404,
    errors.NotAuthenticated: 401,
    errors.NotAllowed: 403,
    errors.Conflict: 409,
    errors.Invalid: 422,
    errors.TooMany: 429,
    errors.Unavailable: 503,
}
TITLES = {
    400: "Pedido malformado / Bad request",
    401: "Não autenticado / Unauthorized",
    403: "Não permitido / Forbidden",
    404: "Não encontrado / Not found",
    405: "Método não permitido / Method not allowed",
    409: "Conflito / Conflict",
    413: "Pedido grande demais / Payload too large",
    415: "Tipo de conteúdo não aceito / Unsupported media type",
    422: "Campos inválidos / Unprocessable content",
    429: "Muitas tentativas / Too many requests",
    500: "Erro interno / Internal error",
    503: "Indisponível / Unavailable",
}
_CODES = {400: "malformed_request", 413: "payload_too_large", 415: "unsupported_media_type", 422: "validation_error"}
_DETAILS = {
    404: "Não há nada neste endereço. / There is nothing at this address.",
    405: "Este endereço não aceita este método. / This address does not take this method.",
    413: "O corpo pode ter no máximo 64 KiB. / The body may have 64 KiB at most.",
}
_RETRY_SECONDS = 2

_log = structlog.get_logger()


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    fields: Mapping[str, list[str]] | None = None,
    retry_after: int | None = None,
    **more: object,
) -> Response:
    """A problem document, with `more` members. 401 names the scheme to log in with; 503 always says when to try again."""
    body: dict[str, object] = {
        "type": f"urn:healthmed:problem:{code}",
        "title": TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **more,
    }
    if fields:
        body["errors"] = fields
    # Names of fields come from the request, and may hold half a surrogate pair, which has no UTF-8 form.
    answer = Response(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"), status, content_type=CONTENT_TYPE)
    answer.headers["Cache-Control"] = "no-store"
    if status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="healthmed"'
    if retry_after is None and status == 503:
        retry_after = _RETRY_SECONDS
    if retry_after is not None:
        answer.headers["Retry-After"] = str(retry_after)
    return answer


def register(app: Flask) -> None:
    """Answer every exception of `app` with a problem document."""
    app.register_error_handler(Exception, _answer)


def _answer(error: Exception) -> Response:
    if isinstance(error, errors.HealthMedError):
        status = next((number for kind, number in _STATUS.items() if isinstance(error, kind)), 500)
        if status == 500:
            return _unexpected(error)
        fields = error.errors if isinstance(error, errors.Invalid) else None
        return problem(status, error.reason, error.detail, fields=fields, retry_after=error.retry_after)
    if isinstance(error, HTTPException) and error.code is not None:
        return _of_the_framework(error, error.code)
    if is_the_worlds_fault(error):
        _log.warning("database_unavailable", error=type(error).__name__, sqlstate=sqlstate(error))
        return problem(503, errors.Unavailable.code, errors.Unavailable.__doc__ or "")
    return _unexpected(error)


def _of_the_framework(error: HTTPException, status: int) -> Response:
    phrase = HTTPStatus(status).phrase
    code = _CODES.get(status) or phrase.lower().replace(" ", "_").replace("-", "_")
    said = error.description if status in (400, 415) and error.description and " / " in error.description else None
    answer = problem(status, code, said or _DETAILS.get(status) or TITLES.get(status) or phrase)
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            answer.headers[name] = value
    return answer


def _unexpected(error: Exception) -> Response:
    # Never the message: a driver's error carries values of the row.
    frames = traceback.extract_tb(error.__traceback__)
    where = [
        "/".join(frame.filename.split("/")[-2:]) + f":{frame.lineno}" for frame in frames if "packages" not in frame.filename
    ]
    _log.error("request_failed", error=type(error).__name__, sqlstate=sqlstate(error), where=where[-8:])
    reference = request_id()
    return problem(
        500,
        errors.HealthMedError.code,
        f"Algo deu errado; a referência é {reference}. / Something went wrong; the reference is {reference}.",
    )
