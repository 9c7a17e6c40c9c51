"""The factory of the web application: its frame, and the blueprints that hang in it."""

from __future__ import annotations

from time import perf_counter

import flask_smorest
import structlog
from flask import Flask, Response, g, request
from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.retry import Retry
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix

from api import (
    accounts,
    appointments,
    auth,
    availability,
    calendars,
    commands,
    credentials,
    directory,
    errors,
    notices,
    operations,
    rights,
    schemas,
    sessions,
)
from api.attempts import Attempts
from api.services import Services, request_id, services
from domain import logs, metrics, traces
from domain.cache import Cache
from domain.database import autocommit, connect
from domain.settings import Settings
from domain.waiters import Waiters
from workers.app import send_wake_ups_to

MAX_BODY = 64 * 1024
POOL_SIZE = 8  # database connections of one process
REDIS_SECONDS = 0.3
FAILED = "healthmed.failed"  # in a request's environment: what went wrong before it came to Flask
EXPOSED = "ETag, Location, Preference-Applied, Retry-After, Warning, X-Request-ID"  # to scripts of other origins

_log = structlog.get_logger()


def standing_headers(settings: Settings) -> dict[str, str]:
    """The headers of every answer, whoever gives it, unless a view says otherwise."""
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    }
    if not settings.local_stack:
        headers["Strict-Transport-Security"] = "max-age=63072000; includeSubDomains"
    if settings.cors_origins:
        headers["Vary"] = "Origin"
    return headers


def create_app(settings: Settings) -> Flask:
    """The application of one process. Under gunicorn it is made after the fork, since it opens connections."""
    logs.configure(settings.log_level)
    traces.start(settings, "api")
    app = Flask("healthmed", static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_BODY + 1,  # a chunked body is cut here without a word: see `begin`
        API_TITLE="Health&Med",
        API_VERSION="v1",
        OPENAPI_VERSION="3.1.0",
        API_SPEC_OPTIONS={
            "info": {"description": "Telemedicine bookings: agendas, requests and decisions, never a slot twice."},
            "components": {"securitySchemes": _SECURITY_SCHEMES},
        },
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["healthmed"] = _services(settings)
    if settings.proxy_hops:
        hops = settings.proxy_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    _frame(app, settings)
    auth.register(app, settings.jwt_keys)
    errors.register(app)
    send_wake_ups_to(settings.broker_url)
    api = _Api(app)
    for module in _MODULES:
        api.register_blueprint(module.blp, url_prefix="/api/v1")
    app.register_blueprint(operations.pages)
    auth.check_policies(app)
    return app


_MODULES = (
    sessions,
    credentials,
    accounts,
    rights,
    directory,
    availability,
    appointments,
    commands,
    calendars,
    notices,
    operations,
)


class _Api(flask_smorest.Api):
    """flask-smorest's, with our one error handler in the place of its own."""

    ERROR_SCHEMA = schemas.Problem

    def _register_error_handlers(self) -> None:
        pass


_SECURITY_SCHEMES = {
    kind: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": f"The {kind} token of a log-in."}
    for kind in ("access", "refresh")
}


def _services(settings: Settings) -> Services:
    engine = connect(settings.database_url, pool_size=POOL_SIZE)
    metrics.watch_pool(engine)
    reads = autocommit(engine)
    broker = Redis.from_pool(
        BlockingConnectionPool.from_url(
            settings.broker_url,
            max_connections=32,
            timeout=REDIS_SECONDS,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 0),  # a retried count counts twice
        )
    )
    cache = Cache(settings, engine)
    cache.start()
    return Services(settings, engine, reads, broker, cache, Waiters(broker), Attempts(settings, broker))


def _frame(app: Flask, settings: Settings) -> None:
    """What surrounds every request: its id, the bound of its body, the headers of its answer, and its line in the log."""

    @app.before_request
    def begin() -> None:
        g.began = perf_counter()
        services().cache.new_budget()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id())
        # Read here, so that a route without a body refuses one that is too large, too.
        try:
            body = request.get_data(cache=True)
        except HTTPException:
            raise
        except Exception:  # whatever a server raises for a body that breaks off or is no chunks
            raise BadRequest("O corpo chegou quebrado. / The body arrived broken.") from None
        if len(body) > MAX_BODY:
            raise RequestEntityTooLarge
        if (error := request.environ.get(FAILED)) is not None:
            raise error

    standing = standing_headers(settings)

    @app.after_request
    def end(answer: Response) -> Response:
        headers = answer.headers
        headers["X-Request-ID"] = request_id()
        for name, value in standing.items():
            headers.setdefault(name, value)
        headers.setdefault("Cache-Control", "no-store")
        if g.get("degraded") or services().cache.without_database:
            headers["Warning"] = '110 healthmed "Response is Stale"'
        _allow_origin(answer, settings.cors_origins)
        _log.info(
            "request",
            method=request.method,
            route=request.url_rule.rule if request.url_rule else None,
            status=answer.status_code,
            session_id=g.get("session_id"),
            milliseconds=round((perf_counter() - g.began) * 1000, 1) if "began" in g else None,
        )
        return answer


def _allow_origin(answer: Response, allowed: tuple[str, ...]) -> None:
    if not allowed:
        return
    answer.vary.add("Origin")
    origin = request.headers.get("Origin")
    if origin not in allowed:
        return
    answer.headers["Access-Control-Allow-Origin"] = origin
    answer.headers["Access-Control-Expose-Headers"] = EXPOSED
    if request.method == "OPTIONS":
        answer.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
        answer.headers["Access-Control-Allow-Headers"] = (
            "Authorization, Content-Type, Idempotency-Key, If-None-Match, Prefer, X-Request-ID"
        )
        answer.headers["Access-Control-Max-Age"] = "600"
