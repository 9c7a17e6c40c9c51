"""What people log in with: proving it, and changing it in a way that leaves nobody logged in who only knew what was before."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from domain import audit, identity, links, notices, passwords, privacy, second_factor, sessions
from domain.cache import Cache, Change, changing
from domain.errors import NotAuthenticated, NotFound
from domain.identifiers import Malformed, parse_cpf, parse_crm
from domain.identity import Account
from domain.inbox import SYSTEM, Sender
from domain.notices import Kind
from domain.schedule import Role
from domain.second_factor import Enrolment
from domain.sessions import Origin
from domain.settings import Settings
from domain.tokens import Pair

MOST_LIVE_LINKS: Final = 5  # to one account: whoever asks for more still has a mail whose link is good


def log_in(engine: Engine, settings: Settings, account: Account, code: str | None, origin: Origin) -> Pair:
    """Open a session for somebody whose password is right. Raises second_factor.CodeRequired and WrongCode, and NotAuthenticated.

    Whoever changes what an account is protected by holds its key's row, and then ends the sessions that there are: a log-in
    comes before, and its session ends with the others, or after, and finds what it proved no longer enough.
    """
    with engine.begin() as connection:
        connection.execute(text("select from person_keys where person_id = :id for share"), {"id": account.id})
        row = connection.execute(
            text("select password_changed_at from people where id = :id and status = 'active'"), {"id": account.id}
        ).one_or_none()
        if row is None or row.password_changed_at != account.password_changed_at:
            raise NotAuthenticated
        second_factor.check(connection, settings, account.id, code)
        return sessions.open_session(connection, settings, account.id, account.role, origin)


def set_password(
    change: Change, person_id: UUID, password_hash: str, *, session_id: UUID | None, request_id: str | None = None
) -> None:
    """Give an account a new password, end its sessions but this one, and make every link worthless that was mailed before.

    Without a session it was chosen by way of a mail: so that address is confirmed. Raises NotFound.
    """
    connection = change.connection
    _hold(connection, person_id)
    connection.execute(
        text(
            """
            update people set password_hash = :hash, password_changed_at = clock_timestamp(),
                              email_confirmed_at = case when :by_mail then coalesce(email_confirmed_at, clock_timestamp())
                                                   else email_confirmed_at end
            where id = :id
            """
        ),
        {"id": person_id, "hash": password_hash, "by_mail": session_id is None},
    )
    links.drop_all(connection, person_id)
    _changed(change, person_id, session_id, Kind.PASSWORD_CHANGED, request_id)


def forget_password(engine: Engine, settings: Settings, login: str, *, request_id: str | None = None) -> None:
    """Mail whoever this log-in (an e-mail address, CPF or CRM) belongs to a link by which to choose another password.

    The same work is done and committed if it belongs to nobody, as if that were a person; what is then left is nothing.
    """
    with engine.begin() as connection:
        person_id = whose(connection, settings, login) or SYSTEM
        live = connection.execute(
            text("select count(*) from links where person_id = :id and kind = :kind and expires_at > clock_timestamp()"),
            {"id": person_id, "kind": Kind.PASSWORD_FORGOTTEN},
        ).scalar_one()
        if settings.rate_limits and live >= MOST_LIVE_LINKS:
            person_id = SYSTEM
        links.send(connection, settings, person_id, Kind.PASSWORD_FORGOTTEN, request_id=request_id)
        connection.execute(
            text(
                """
                with unsaid as (delete from notices where person_id = :nobody)
                delete from links where person_id = :nobody or (person_id = :id and expires_at <= clock_timestamp())
                """
            ),
            {"id": person_id, "nobody": SYSTEM},
        )


def reset_password(
    engine: Engine, cache: Cache, settings: Settings, token: str, password: str, *, request_id: str | None = None
) -> None:
    """Let whoever has the token of a mailed link choose another password; every session of the account ends.

    Raises links.InvalidLink, and Invalid for a password that they may not choose.
    """
    with engine.connect() as connection:
        person_id = links.whose(connection, Kind.PASSWORD_FORGOTTEN, token)
        identity.check_new_password(connection, settings, person_id, password, field="password")
    hashed = passwords.hash_password(password)
    with changing(engine, cache) as change:
        links.take(change.connection, settings, Kind.PASSWORD_FORGOTTEN, token)
        set_password(change, person_id, hashed, session_id=None, request_id=request_id)


def ask_for_email(
    connection: Connection, settings: Settings, person_id: UUID, email: str, *, request_id: str | None = None
) -> None:
    """Mail a link to an address that is to be somebody's, and tell the one that is, if it is another."""
    links.send(connection, settings, person_id, Kind.CONFIRM_EMAIL, email=email, request_id=request_id)
    key, former = _private(connection, settings, person_id)
    if former["email"] != email:
        notices.tell(connection, person_id, Kind.EMAIL_CHANGING, secret={"to": former["email"]}, key=key, request_id=request_id)


def confirm_email(engine: Engine, settings: Settings, token: str) -> None:
    """Let the address to which a link was mailed be its person's. Raises links.InvalidLink and AlreadyRegistered."""
    with engine.begin() as connection:
        link = links.take(connection, settings, Kind.CONFIRM_EMAIL, token)
        assert link.email is not None
        changed = identity.change_email(connection, settings, link.person_id, link.email)
        if changed:  # what was mailed to the former address is no longer good
            links.drop_all(connection, link.person_id)
        role = Role(connection.execute(text("select role from people where id = :id"), {"id": link.person_id}).scalar_one())
        action = "email_changed" if changed else "email_confirmed"
        audit.record(connection, link.person_id, link.person_id, role, action)


def enrol(connection: Connection, settings: Settings, person_id: UUID) -> Enrolment:
    """Begin to give an account a second factor, which is asked for once confirmed. Raises second_factor.AlreadyOn."""
    _, private = _private(connection, settings, person_id)
    return second_factor.enrol(connection, settings, person_id, private["email"])


def turn_totp_on(
    change: Change, settings: Settings, person_id: UUID, code: str, *, session_id: UUID, request_id: str | None = None
) -> list[str]:
    """Ask for a code at every log-in from now on, and end the other sessions; returns the recovery codes. Raises as `confirm`."""
    _hold(change.connection, person_id)
    codes = second_factor.confirm(change.connection, settings, person_id, code)
    _changed(change, person_id, session_id, Kind.TOTP_ON, request_id)
    return codes


def turn_totp_off(
    change: Change, settings: Settings, person_id: UUID, code: str, *, session_id: UUID, request_id: str | None = None
) -> None:
    """Ask for codes no more, and end the other sessions. Raises second_factor.NotOn and WrongCode."""
    _hold(change.connection, person_id)
    second_factor.check(change.connection, settings, person_id, code)
    second_factor.remove(change.connection, person_id)
    _changed(change, person_id, session_id, Kind.TOTP_OFF, request_id)


def take_totp_off(change: Change, person_id: UUID, staff: Sender) -> None:
    """Let staff help somebody who has lost both app and recovery codes; all their sessions end. Raises second_factor.NotOn."""
    _hold(change.connection, person_id)
    second_factor.remove(change.connection, person_id)
    _changed(change, person_id, None, Kind.TOTP_OFF, staff.request_id, by=staff)


def whose(connection: Connection, settings: Settings, login: str) -> UUID | None:
    """Whom an e-mail address, a CPF or a CRM belongs to; None for any other text, too."""
    try:
        if "@" in login:
            column, sought = "email_hash", identity.email_hash(settings, login)
        elif any(each.isalpha() for each in login):
            account = identity.account_of_doctor(connection, parse_crm(login))
            return None if account is None else account.id
        else:
            column, sought = "cpf_hash", identity.cpf_hash(settings, parse_cpf(login))
    except Malformed:
        return None
    person_id: UUID | None = connection.execute(
        text(f"select id from people where {column} = :sought and status = 'active'"), {"sought": sought}
    ).scalar_one_or_none()
    return person_id


def _hold(connection: Connection, person_id: UUID) -> None:
    """The locks of a change to what protects an account, the person's first as everywhere. Raises NotFound for an erased one."""
    connection.execute(text("select from people where id = :id for no key update"), {"id": person_id})
    held = connection.execute(text("select from person_keys where person_id = :id for no key update"), {"id": person_id})
    if held.one_or_none() is None:
        raise NotFound


def _changed(
    change: Change,
    person_id: UUID,
    session_id: UUID | None,
    kind: Kind,
    request_id: str | None,
    *,
    by: Sender | None = None,
) -> None:
    """What every such change brings: the other sessions end, this one is looked at anew, and the owner is told."""
    connection = change.connection
    sessions.end_all(change, person_id, but=session_id)
    if session_id is not None:
        change.touch(sessions.scope(session_id))
    if by is None:
        role = Role(connection.execute(text("select role from people where id = :id"), {"id": person_id}).scalar_one())
        by = Sender(person_id, role, request_id or "")
    audit.record(connection, person_id, by.id, by.role, kind)
    notices.tell(connection, person_id, kind, request_id=request_id)


def _private(connection: Connection, settings: Settings, person_id: UUID) -> tuple[bytes, dict[str, Any]]:
    """A person's data key and what it seals of their account. Raises NotFound for an erased one."""
    row = connection.execute(
        text("select private, wrapped from people join person_keys on person_id = id where id = :id"), {"id": person_id}
    ).one_or_none()
    if row is None:
        raise NotFound
    key = privacy.unwrap(settings.data_keys, person_id, bytes(row.wrapped))
    opened = privacy.open_sealed(key, bytes(row.private), context=identity.PRIVATE, row_id=person_id)
    return key, json.loads(opened)
