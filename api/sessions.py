"""Logging in and out: passwords for tokens, refresh tokens for their successors, and where an account is logged in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response, request
from marshmallow import fields

from api.auth import Anyone, AnyToken, current, policy
from api.proofs import check_password, count_code
from api.schemas import Answer, Blueprint, Body, Code, CrmText, Many, Nothing, Part, Secret, Text, UtcInstant
from api.services import client_address, services
from domain import credentials, identity, sessions
from domain.cache import changing
from domain.errors import NotAuthenticated, NotFound
from domain.identity import Account
from domain.schedule import Role
from domain.tokens import ACCESS_LIFE, Pair

WRONG = "Login ou senha incorretos. / Wrong log-in or password."

blp = Blueprint("sessions", __name__, description="Entrar e sair / Logging in and out")


class DoctorLogIn(Body):
    """What a doctor logs in with."""

    crm = CrmText(required=True)
    password = Secret(required=True)
    otp = Code()


class LogIn(Body):
    """What a patient (an e-mail address or a CPF) or staff log in with."""

    login = Text(most=254, required=True)
    password = Secret(required=True)
    otp = Code()


class Tokens(Answer):
    """The tokens of one step of a session. `expires_in` is the life of the access token in seconds."""

    access_token = fields.String(required=True)
    refresh_token = fields.String(required=True)
    token_type = fields.String(required=True)
    expires_in = fields.Integer(required=True)


class SessionOrigin(Answer):
    """Where a log-in came from."""

    address = fields.String(required=True)
    agent = fields.String(required=True)


class Session(Answer):
    """One place where the account is logged in."""

    id = fields.UUID(required=True)
    created_at = UtcInstant(required=True)
    refreshed_at = UtcInstant(required=True)
    expires_at = UtcInstant(required=True)
    current = fields.Boolean(required=True)
    origin = Part(SessionOrigin, allow_none=True)


class Sessions(Answer):
    """Where the account is logged in, newest first."""

    items = Many(Part(Session), most=100, required=True)


@blp.post("/auth/doctor")
@policy(Anyone)
@blp.arguments(DoctorLogIn)
@blp.response(200, Tokens)
@blp.alt_response(401)
@blp.alt_response(429)
def log_in_doctor(body: dict[str, Any]) -> dict[str, Any]:
    """Entrar como médico. / Log in as a doctor."""
    with services().reads.connect() as connection:
        account = identity.account_of_doctor(connection, body["crm"])
    return _log_in(account, Role.DOCTOR, f"{body['crm'].number}/{body['crm'].state}", body)


@blp.post("/auth/patient")
@policy(Anyone)
@blp.arguments(LogIn)
@blp.response(200, Tokens)
@blp.alt_response(401)
@blp.alt_response(429)
def log_in_patient(body: dict[str, Any]) -> dict[str, Any]:
    """Entrar como paciente. / Log in as a patient."""
    return _log_in_by_text(Role.PATIENT, body)


@blp.post("/auth/staff")
@policy(Anyone)
@blp.arguments(LogIn)
@blp.response(200, Tokens)
@blp.alt_response(401)
@blp.alt_response(429)
def log_in_staff(body: dict[str, Any]) -> dict[str, Any]:
    """Entrar como equipe. / Log in as staff."""
    return _log_in_by_text(Role.STAFF, body)


@blp.post("/auth/refresh")
@policy(AnyToken, refresh=True)
@blp.arguments(Nothing, required=False)
@blp.response(200, Tokens)
def refresh(_: dict[str, Any]) -> dict[str, Any]:
    """Trocar o refresh token por novos. / Exchange a refresh token, which dies by it, for new tokens."""
    use, caller = services(), current()
    return _tokens(sessions.refresh(use.engine, use.cache, use.settings, caller.session_id, caller.token_id))


@blp.post("/auth/logout")
@policy(AnyToken)
@blp.arguments(Nothing, required=False)
@blp.response(204)
def log_out(_: dict[str, Any]) -> Response:
    """Sair. / End this session: its tokens die at once."""
    with changing(services().engine, services().cache) as change:
        sessions.end(change, current().session_id)
    return Response(status=204)


@blp.get("/me/sessions")
@policy(AnyToken)
@blp.response(200, Sessions)
def list_sessions() -> dict[str, Any]:
    """Ver onde a conta está aberta. / Where the account is logged in."""
    with services().reads.connect() as connection:
        found = sessions.open_sessions(connection, services().settings, current().id)
    return {"items": [{**_shown(each), "current": each.id == current().session_id} for each in found]}


@blp.delete("/me/sessions/<uuid:session_id>")
@policy(AnyToken)
@blp.arguments(Nothing, required=False)
@blp.response(204)
def end_session(_: dict[str, Any], session_id: UUID) -> Response:
    """Encerrar uma das sessões da conta. / End one of the account's sessions."""
    use = services()
    try:
        with changing(use.engine, use.cache) as change:
            sessions.end_own(change, current().id, session_id)
    except NotFound:  # it may be over since a moment ago
        use.cache.finish_touching(sessions.scope(session_id))
        raise
    return Response(status=204)


def _log_in_by_text(role: Role, body: dict[str, Any]) -> dict[str, Any]:
    with services().reads.connect() as connection:
        account = identity.account_of(connection, services().settings, role, body["login"])
    return _log_in(account, role, body["login"].casefold(), body)


def _log_in(account: Account | None, role: Role, tried: str, body: dict[str, Any]) -> dict[str, Any]:
    use, code = services(), body.get("otp")
    if not check_password(account, f"{role} {tried}", body["password"]) or account is None:
        raise NotAuthenticated(WRONG, code="invalid_credentials")
    if code is not None:
        count_code(account.id)
    origin = sessions.Origin(client_address(), request.headers.get("User-Agent", ""))
    pair = credentials.log_in(use.engine, use.settings, account, code, origin)
    identity.keep_rehashed(use.engine, account, body["password"])
    return _tokens(pair)


def _tokens(pair: Pair) -> dict[str, Any]:
    return {
        "access_token": pair.access,
        "refresh_token": pair.refresh,
        "token_type": "Bearer",
        "expires_in": int(ACCESS_LIFE.total_seconds()),
    }


def _shown(session: sessions.OpenSession) -> dict[str, Any]:
    return {
        "id": session.id,
        "created_at": session.created_at,
        "refreshed_at": session.refreshed_at,
        "expires_at": session.expires_at,
        "origin": session.origin,
    }
