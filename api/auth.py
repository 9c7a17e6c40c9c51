"""Who is asking, and whether they may: every view states its policy, and one that states none is refused at start-up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

import jwt
from flask import Flask, current_app, g, request
from flask_jwt_extended import JWTManager, verify_jwt_in_request
from flask_jwt_extended.exceptions import JWTExtendedException

from api.services import mark_degraded, request_id, services
from domain import sessions, tokens
from domain.errors import NotAllowed, NotAuthenticated, NotFound
from domain.inbox import Sender
from domain.privacy import KeyRing
from domain.schedule import Role

Anyone: Final[frozenset[Role]] = frozenset()
Patient: Final = frozenset({Role.PATIENT})
Doctor: Final = frozenset({Role.DOCTOR})
Staff: Final = frozenset({Role.STAFF})
AnyToken: Final = Patient | Doctor | Staff

_POLICY = "healthmed_policy"

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent the current request, as a genuine token of a living session says."""

    id: UUID
    role: Role
    session_id: UUID
    token_id: UUID


@dataclass(frozen=True, slots=True)
class _Policy:
    roles: frozenset[Role]  # empty: anyone, without a token
    refresh: bool
    erased: bool


def policy(roles: frozenset[Role], *, refresh: bool = False, erased: bool = False) -> Callable[[View], View]:
    """State who may call a view: Anyone, or the union of some (`Patient | Doctor`).

    With `refresh` the token must be a refresh token, and whether it is still good is the view's to ask. With `erased` a token
    that outlives the data of its person is let in, too, until it expires.
    """

    def mark(view: View) -> View:
        setattr(view, _POLICY, _Policy(roles, refresh, erased))
        if roles:
            documented = getattr(view, "_apidoc", {})
            manual = {**documented.get("manual_doc", {}), "security": [{"refresh" if refresh else "access": []}]}
            view._apidoc = {**documented, "manual_doc": manual}  # type: ignore[attr-defined]
        return view

    return mark


def current() -> Caller:
    """Who is asking. Only in a view whose policy wants a token."""
    caller: Caller = g.caller
    return caller


def sender() -> Sender:
    """Who is asking, as the inbox wants to know it."""
    return Sender(current().id, current().role, request_id())


def register(app: Flask, ring: KeyRing) -> None:
    """Ask of each request of `app` what its view's policy says, before anything of it is read."""
    app.config.update(tokens.flask_jwt_settings())
    manager = JWTManager(app)
    manager.decode_key_loader(lambda header, claims: tokens.decode_key(ring, header, claims))
    app.before_request(_admit)


def check_policies(app: Flask) -> None:
    """Refuse to start with a view that does not say who may call it. Raises RuntimeError."""
    open_ended = sorted(name for name, view in app.view_functions.items() if not hasattr(view, _POLICY))
    if open_ended:
        raise RuntimeError(f"these views state no policy: {', '.join(open_ended)}")


def _admit() -> None:
    if request.endpoint is None or request.method == "OPTIONS":
        return
    stated: _Policy = getattr(current_app.view_functions[request.endpoint], _POLICY)
    if not stated.roles:
        return
    caller = _caller(refresh=stated.refresh)
    g.session_id = str(caller.session_id)  # for the log, whatever becomes of the request
    standing = sessions.ALIVE if stated.refresh else _standing(caller.session_id)
    if standing == sessions.ERASED and not stated.erased:
        raise NotAuthenticated
    if caller.role not in stated.roles:
        raise NotAllowed
    # Whoever must have a second factor and has none may see to their own account, and do nothing else.
    if standing == sessions.WITHOUT_TOTP and services().settings.staff_totp and stated.roles != AnyToken:
        raise NotAllowed("Ative a verificação em duas etapas. / Turn two-step verification on.", code="totp_required")
    g.caller = caller


def _standing(session_id: UUID) -> bytes:
    try:
        alive = sessions.read(services().cache, session_id)
    except NotFound:
        raise NotAuthenticated from None
    if alive.degraded:
        mark_degraded()
    return alive.body


def _caller(*, refresh: bool) -> Caller:
    try:
        return _known_caller(refresh=refresh)
    except NotAuthenticated:
        pass
    try:
        verified = verify_jwt_in_request(refresh=refresh)
        assert verified is not None
        _, claims = verified
        return Caller(UUID(claims["sub"]), Role(claims["role"]), UUID(claims["sid"]), UUID(claims["jti"]))
    except (JWTExtendedException, jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
        raise NotAuthenticated from None


def _known_caller(*, refresh: bool) -> Caller:
    """Who sent the request, by a token that is mostly known to be genuine already, which takes flask-jwt-extended 170 µs anew.

    Raises NotAuthenticated for whatever is not written as tokens mostly are: flask-jwt-extended has the last word.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer":
        raise NotAuthenticated
    ring = services().settings.jwt_keys
    claims = tokens.read(ring, token, tokens.Type.REFRESH if refresh else tokens.Type.ACCESS)
    return Caller(claims.person_id, claims.role, claims.session_id, claims.id)
