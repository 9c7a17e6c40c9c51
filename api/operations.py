"""What operators ask: whether a process lives and can serve, its figures, and the OpenAPI document with its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from http import HTTPStatus
from importlib.resources import files
from time import perf_counter
from typing import Any, Final

import flask
from flask import Response, current_app, g, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST
from redis import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api.auth import Anyone, policy
from api.errors import CONTENT_TYPE as PROBLEM
from api.errors import TITLES, problem
from api.schemas import Blueprint
from api.services import request_id, services
from domain import metrics, traces
from domain.errors import NotFound, Unavailable

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PAGE_POLICY: Final = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_ANCHOR: Final = str.maketrans("/", "-", "{}")

blp = Blueprint("operations", __name__, description="Operação / Operations")
pages = flask.Blueprint("pages", __name__, template_folder="docs")  # what is no part of the API, and of its document


@pages.before_app_request
def _begin() -> None:
    g.timed_from = perf_counter()


@pages.after_app_request
def _count(answer: Response) -> Response:
    method = request.method if request.method in METHODS else "other"  # what senders invent must not grow the figures
    route = request.url_rule.rule if request.url_rule else "none"
    metrics.REQUESTS.labels(method, route, answer.status_code).inc()
    if "timed_from" in g:
        seconds = perf_counter() - g.timed_from
        metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)
        traces.answered(request_id(), method, route, answer.status_code, seconds)
    return answer


@pages.get("/healthz")
@policy(Anyone)
def show_life() -> Response:
    """Say that the process lives, whatever it depends on."""
    return _json({"state": "alive"})


@pages.get("/readyz")
@policy(Anyone)
def show_readiness() -> Response:
    """Say whether the process can serve. Without a Redis it serves, slower; without the database it is sent nothing new.

    Nor while it ends, though it answers whatever still comes.
    """
    used = services()
    if used.leaving.is_set():
        return problem(503, Unavailable.code, Unavailable.__doc__ or "", state="leaving")
    database = _state(_ask_database)
    redis = {"broker": _state(used.broker.ping), "cache": _state(used.cache.answers)}
    if database == "down":
        return problem(503, Unavailable.code, Unavailable.__doc__ or "", state="unready", database=database, redis=redis)
    state = "ready" if {database, *redis.values()} == {"up"} else "degraded"
    return _json({"state": state, "database": database, "redis": redis})


@pages.get("/metrics")
@policy(Anyone)
def show_metrics() -> Response:
    """Give the figures of all processes of this server, as Prometheus reads them."""
    if not services().settings.public_metrics:
        raise NotFound
    figures = metrics.counted()
    try:
        with services().reads.connect() as connection:
            figures += metrics.stored(connection)
    except SQLAlchemyError:  # without the database, what it tells is left out
        pass
    return Response(figures, content_type=CONTENT_TYPE_LATEST)


@blp.get("/openapi.json")
@policy(Anyone)
@blp.response(200, {"type": "object"})
def show_openapi() -> Response:
    """Ver este documento. / Read this document."""
    return _json(_document())


@pages.get("/api/docs")
@policy(Anyone)
def show_docs() -> Response:
    """Show the OpenAPI document as a page that needs no script, and nothing from elsewhere."""
    document = _document()
    page = Response(render_template("page.html", spec=document, tags=list(_by_tag(document))))
    page.headers["Content-Security-Policy"] = PAGE_POLICY
    return page


@pages.get("/api/docs/page.css")
@policy(Anyone)
def show_docs_style() -> Response:
    """Show how the page looks."""
    _document()
    style = files("api").joinpath("docs", "page.css").read_bytes()
    return Response(style, content_type="text/css; charset=utf-8")


def _json(body: Mapping[str, Any]) -> Response:
    return Response(json.dumps(body, ensure_ascii=False), content_type="application/json")


def _state(ask: Callable[[], object]) -> str:
    try:
        return "up" if ask() else "down"
    except PoolTimeout:  # it answers others: whoever is sent elsewhere for that only moves the load
        return "busy"
    except (RedisError, SQLAlchemyError):
        return "down"


def _ask_database() -> bool:
    with services().reads.connect() as connection:
        return connection.execute(text("select true")).scalar_one() is True


def _document() -> dict[str, Any]:
    """The OpenAPI document, with what every route may answer to a request that is not as it should be. Raises NotFound."""
    if not services().settings.public_docs:
        raise NotFound
    document: dict[str, Any] = deepcopy(current_app.extensions["flask-smorest"]["apis"][""]["ext_obj"].spec.to_dict())
    problems: dict[str, Any] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method != "parameters":
                answers = {status: answer for status, answer in operation["responses"].items() if status.isdigit()}
                failures = {int(status) for status in answers if status >= "400"} | set(_failures(path, operation))
                problems |= {HTTPStatus(status).name: _problem(status) for status in failures}
                answers |= {str(status): {"$ref": f"#/components/responses/{HTTPStatus(status).name}"} for status in failures}
                operation["responses"] = dict(sorted(answers.items()))
    document["components"]["responses"] = problems
    del document["components"]["schemas"]["PaginationMetadata"]  # flask-smorest's own, which no route of ours uses
    return document


def _failures(path: str, operation: Mapping[str, Any]) -> Iterator[int]:
    """The statuses with which a route refuses or fails, as can be told from what it takes."""
    if operation.get("security"):
        yield from (401, 403)
    if "{" in path:
        yield 404
    if "requestBody" in operation:
        yield from (400, 415)
    if "requestBody" in operation or operation.get("parameters"):
        yield 422
    yield from (413, 500, 503)


def _problem(status: int) -> dict[str, Any]:
    return {"description": TITLES[status], "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _by_tag(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for tag in document["tags"]:
        yield {
            "title": tag["description"],
            "anchor": f"tag-{tag['name']}",
            "operations": [
                {
                    "anchor": f"{method}-{path.strip('/').translate(_ANCHOR)}",
                    "method": method.upper(),
                    "path": path,
                    "operation": operation,
                    "parameters": operations.get("parameters", []) + operation.get("parameters", []),
                }
                for path, operations in document["paths"].items()
                for method, operation in operations.items()
                if method != "parameters" and tag["name"] in operation["tags"]
            ],
        }
