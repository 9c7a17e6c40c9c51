"""What one logs in with: another e-mail address or password, a forgotten password, and the second factor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Response
from marshmallow import fields

from api.attempts import FAILURES_FROM_ADDRESS, LINKS_FROM_ADDRESS, LINKS_TO_ADDRESSES
from api.auth import Anyone, AnyToken, current, policy
from api.proofs import count_code, must_know_password, origin_key
from api.schemas import Answer, Blueprint, Body, Code, EmailText, Many, Secret, Text
from api.services import request_id, services
from domain import credentials, identity, passwords
from domain.cache import changing
from domain.errors import Invalid
from domain.links import InvalidLink
from domain.second_factor import RECOVERY_CODES, WrongCode

blp = Blueprint("credentials", __name__, description="Senha, e-mail e segunda etapa / Password, e-mail and second factor")


class EmailBody(Body):
    """The address that is to be one's own."""

    email = EmailText(required=True)
    password = Secret(required=True)


class LinkBody(Body):
    """The token of a link that was mailed."""

    token = Secret(required=True)


class PasswordBody(Body):
    """The present password and the one to come."""

    current = Secret(required=True)
    new = Secret(least=passwords.MIN_LENGTH, most=passwords.MAX_LENGTH, required=True)


class ForgottenBody(Body):
    """What one would log in with: an e-mail address, a CPF or a CRM."""

    login = Text(most=254, required=True)


class ResetBody(LinkBody):
    """The token of a link that was mailed, and the password to come."""

    password = Secret(least=passwords.MIN_LENGTH, most=passwords.MAX_LENGTH, required=True)


class EnrolmentBody(Body):
    """One's password, since a second factor locks out whoever hasn't got it."""

    password = Secret(required=True)


class CodeBody(Body):
    """A code of the app."""

    otp = Code(required=True)


class RemovalBody(CodeBody, EnrolmentBody):
    """One's password, and a code of the app or a recovery code."""


class Enrolment(Answer):
    """What to tell one's app."""

    secret = fields.String(required=True)
    otpauth_url = fields.String(required=True)


class RecoveryCodes(Answer):
    """Codes that stand in for a lost app, each of them once."""

    recovery_codes = Many(fields.String(), most=RECOVERY_CODES, required=True)


@blp.put("/me/email")
@policy(AnyToken)
@blp.arguments(EmailBody)
@blp.response(202)
@blp.alt_response(429)
def ask_for_email(body: dict[str, Any]) -> Response:
    """Trocar ou confirmar o e-mail. / Have a link mailed to an address, which is one's own once that is followed."""
    use, caller = services(), current()
    must_know_password(body["password"])
    use.attempts.count(LINKS_TO_ADDRESSES, str(caller.id))
    with use.engine.begin() as connection:
        credentials.ask_for_email(connection, use.settings, caller.id, body["email"], request_id=request_id())
    return Response(status=202)


@blp.post("/auth/email/confirm")
@policy(Anyone)
@blp.arguments(LinkBody)
@blp.response(204)
@blp.alt_response(409)
@blp.alt_response(429)
def confirm_email(body: dict[str, Any]) -> Response:
    """Confirmar um e-mail. / Confirm an address by the token that was mailed to it."""
    with _guesses_counted():
        credentials.confirm_email(services().engine, services().settings, body["token"])
    return Response(status=204)


@blp.put("/me/password")
@policy(AnyToken)
@blp.arguments(PasswordBody)
@blp.response(204)
@blp.alt_response(429)
def change_password(body: dict[str, Any]) -> Response:
    """Trocar a senha. / Choose another password; every other session of the account ends."""
    use, caller = services(), current()
    with use.reads.connect() as connection:
        identity.check_new_password(connection, use.settings, caller.id, body["new"], field="new")
    must_know_password(body["current"], field="current")
    hashed = passwords.hash_password(body["new"])
    with changing(use.engine, use.cache) as change:
        credentials.set_password(change, caller.id, hashed, session_id=caller.session_id, request_id=request_id())
    return Response(status=204)


@blp.post("/auth/password/forgot")
@policy(Anyone)
@blp.arguments(ForgottenBody)
@blp.response(202)
@blp.alt_response(429)
def forget_password(body: dict[str, Any]) -> Response:
    """Esqueci a senha. / Have a link mailed by which to choose another password, if there is such an account."""
    use = services()
    use.attempts.count(LINKS_FROM_ADDRESS, origin_key())
    credentials.forget_password(use.engine, use.settings, body["login"], request_id=request_id())
    return Response(status=202)


@blp.post("/auth/password/reset")
@policy(Anyone)
@blp.arguments(ResetBody)
@blp.response(204)
@blp.alt_response(429)
def reset_password(body: dict[str, Any]) -> Response:
    """Escolher uma nova senha. / Choose another password by the token that was mailed; every session ends."""
    use = services()
    with _guesses_counted():
        credentials.reset_password(use.engine, use.cache, use.settings, body["token"], body["password"], request_id=request_id())
    return Response(status=204)


@blp.post("/me/totp")
@policy(AnyToken)
@blp.arguments(EnrolmentBody)
@blp.response(201, Enrolment)
@blp.alt_response(409)
@blp.alt_response(429)
def enrol(body: dict[str, Any]) -> dict[str, Any]:
    """Começar a ativar a segunda etapa. / Begin to have a second factor: the secret for one's app."""
    must_know_password(body["password"])
    with services().engine.begin() as connection:
        made = credentials.enrol(connection, services().settings, current().id)
    return {"secret": made.secret, "otpauth_url": made.url}


@blp.post("/me/totp/confirm")
@policy(AnyToken)
@blp.arguments(CodeBody)
@blp.response(200, RecoveryCodes)
@blp.alt_response(409)
@blp.alt_response(429)
def turn_totp_on(body: dict[str, Any]) -> dict[str, Any]:
    """Ativar a segunda etapa. / Have log-ins ask for a code from now on; the recovery codes are told this once."""
    use, caller = services(), current()
    count_code(caller.id)
    with _wrong_codes_named(), changing(use.engine, use.cache) as change:
        codes = credentials.turn_totp_on(
            change, use.settings, caller.id, body["otp"], session_id=caller.session_id, request_id=request_id()
        )
    return {"recovery_codes": codes}


@blp.delete("/me/totp")
@policy(AnyToken)
@blp.arguments(RemovalBody)
@blp.response(204)
@blp.alt_response(409)
@blp.alt_response(429)
def turn_totp_off(body: dict[str, Any]) -> Response:
    """Desativar a segunda etapa. / Have log-ins ask for no code any more."""
    use, caller = services(), current()
    must_know_password(body["password"])
    count_code(caller.id)
    with _wrong_codes_named(), changing(use.engine, use.cache) as change:
        credentials.turn_totp_off(
            change, use.settings, caller.id, body["otp"], session_id=caller.session_id, request_id=request_id()
        )
    return Response(status=204)


@contextmanager
def _guesses_counted() -> Iterator[None]:
    """Let only so many tokens that are not good be tried from one address."""
    use, origin = services(), origin_key()
    use.attempts.check(FAILURES_FROM_ADDRESS, origin)
    try:
        yield
    except InvalidLink:
        use.attempts.count(FAILURES_FROM_ADDRESS, origin)
        raise


@contextmanager
def _wrong_codes_named() -> Iterator[None]:
    """Name the field of a wrong code: whoever sends it is logged in all the same."""
    try:
        yield
    except WrongCode as error:
        raise Invalid({"otp": [error.detail]}, error.detail, code=error.reason) from None
