"""Where people are logged in: families of refresh tokens in Postgres, and "alive" as the one thing that is cached of them."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, text
from uuid_utils.compat import uuid7

from domain import personal, privacy, tokens
from domain.cache import Answer, Cache, Change, Filled, Wanted, changing
from domain.database import PREPARED
from domain.errors import NotAuthenticated, NotFound
from domain.schedule import Role
from domain.settings import Settings
from domain.tokens import Pair

IDLE_LIFE: Final = timedelta(days=7)
WHOLE_LIFE: Final = timedelta(days=30)
GRACE: Final = timedelta(seconds=10)  # a double click: the same refresh token again gives the same successor
ORIGIN: Final = "sessions.origin"  # the context under which a session's origin is sealed
REMEMBERED: Final = timedelta(days=180)  # how long an address that logged in counts as known

# What is cached of a session that lives, of one whose person has been erased, and of staff's without a second factor.
ALIVE: Final = b"{}"
ERASED: Final = b'{"erased":true}'
WITHOUT_TOTP: Final = b'{"totp":false}'

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a log-in came from."""

    address: str
    agent: str


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session as its owner may see it."""

    id: UUID
    created_at: datetime
    refreshed_at: datetime
    expires_at: datetime
    origin: Origin | None


def open_session(connection: Connection, settings: Settings, person_id: UUID, role: Role, origin: Origin) -> Pair:
    """Start a session for somebody who has proved who they are; returns its first tokens. Raises NotAuthenticated."""
    session_id, refresh_id = uuid7(), uuid7()
    key = personal.key_of(connection, settings, person_id, held=True)
    if key is None:  # erased since the password was read
        raise NotAuthenticated
    told = json.dumps({"address": origin.address, "agent": origin.agent[:200]})
    row = connection.execute(
        text(
            """
            insert into sessions (id, person_id, address_hash, origin, refresh_id, refreshed_at, created_at, expires_at)
            select :id, :person_id, :address_hash, :origin, :refresh_id, now, now, now + :idle
            from clock_timestamp() as now returning refreshed_at, expires_at
            """
        ),
        {
            "id": session_id,
            "person_id": person_id,
            "address_hash": address_hash(settings, origin.address),
            "origin": privacy.seal(key, told, context=ORIGIN, row_id=session_id),
            "refresh_id": refresh_id,
            "idle": IDLE_LIFE,
        },
    ).one()
    return tokens.mint_pair(
        settings.jwt_keys,
        person_id=person_id,
        session_id=session_id,
        role=role,
        refresh_id=refresh_id,
        issued_at=row.refreshed_at,
        refresh_until=row.expires_at,
    )


def refresh(engine: Engine, cache: Cache, settings: Settings, session_id: UUID, token_id: UUID) -> Pair:
    """The tokens that follow a refresh token, which dies by it.

    The same one again within 10 seconds gets the same successor; later it is taken for stolen, and the whole session ends,
    its access tokens at once. Raises NotAuthenticated.
    """
    with engine.begin() as connection:
        row = connection.execute(_LOCKED, {"id": session_id}).one_or_none()
        if row is None or row.revoked_at is not None or row.expires_at <= row.now:
            raise NotAuthenticated
        if token_id == row.refresh_id:
            row = connection.execute(_ROTATED, {"id": session_id, "next": uuid7(), "idle": IDLE_LIFE, "whole": WHOLE_LIFE}).one()
        elif token_id != row.previous_refresh_id or row.now - row.refreshed_at > GRACE:
            row = None
    if row is None:
        _log.warning("refresh_token_reused", session_id=str(session_id))
        with changing(engine, cache) as change:
            end(change, session_id)
        raise NotAuthenticated
    return tokens.mint_pair(
        settings.jwt_keys,
        person_id=row.person_id,
        session_id=session_id,
        role=Role(row.role),
        refresh_id=row.refresh_id,
        issued_at=row.refreshed_at,
        refresh_until=row.expires_at,
    )


def end(change: Change, session_id: UUID) -> None:
    """End a session: its refresh tokens and its access tokens are dead once the change is made."""
    change.connection.execute(
        text("update sessions set revoked_at = clock_timestamp() where id = :id and revoked_at is null"), {"id": session_id}
    )
    change.touch(scope(session_id))


def end_own(change: Change, person_id: UUID, session_id: UUID) -> None:
    """End one of a person's own sessions. Raises NotFound for any other, and for one that is over."""
    own = change.connection.execute(
        text("select from sessions where id = :id and person_id = :person_id and revoked_at is null"),
        {"id": session_id, "person_id": person_id},
    ).one_or_none()
    if own is None:
        raise NotFound
    end(change, session_id)


def end_all(change: Change, person_id: UUID, *, but: UUID | None = None) -> None:
    """End every session of a person, save one."""
    rows = change.connection.execute(
        text(
            """
            update sessions set revoked_at = clock_timestamp()
            where person_id = :person_id and id is distinct from :but and revoked_at is null
            returning id
            """
        ),
        {"person_id": person_id, "but": but},
    )
    change.touch(*(scope(session_id) for session_id in rows.scalars()))


def open_sessions(connection: Connection, settings: Settings, person_id: UUID) -> list[OpenSession]:
    """A person's sessions that are not over, newest first."""
    rows = connection.execute(
        text(
            """
            select sessions.id, created_at, refreshed_at, expires_at, origin, wrapped
            from sessions join person_keys using (person_id)
            where person_id = :person_id and revoked_at is null and expires_at > clock_timestamp()
            order by created_at desc, sessions.id limit 100
            """
        ),
        {"person_id": person_id},
    ).all()
    key = privacy.unwrap(settings.data_keys, person_id, bytes(rows[0].wrapped)) if rows else b""
    return [OpenSession(row.id, row.created_at, row.refreshed_at, row.expires_at, _origin(key, row)) for row in rows]


def scope(session_id: UUID) -> str:
    """The scope of what is cached of a session."""
    return f"session:{session_id}"


def standing(session_id: UUID) -> Wanted:
    """Where it is cached how a session stands."""
    return scope(session_id), "alive"


def read(cache: Cache, session_id: UUID) -> Answer:
    """How a session stands, as it is cached or filled now. Raises NotFound if it is over."""
    return cache.read(*standing(session_id), lambda connection: alive(connection, session_id))


def alive(connection: Connection, session_id: UUID) -> Filled | None:
    """What is cached of a session: how it stands. None, which is never cached, if it is over."""
    row = connection.execute(_STANDING, {"id": session_id}).one_or_none()
    if row is None:
        return None
    body = ERASED if row.status == "erased" else WITHOUT_TOTP if row.without_totp else ALIVE
    return Filled(body, fresh_until=row.expires_at)


def known_address(connection: Connection, settings: Settings, person_id: UUID, address: str) -> bool:
    """Whether a person has logged in from this address in the last half year."""
    known = connection.execute(
        text(
            """
            select exists (
                select from sessions where person_id = :person_id and address_hash = :address_hash
                                           and created_at > clock_timestamp() - :remembered
            )
            """
        ),
        {
            "person_id": person_id,
            "address_hash": address_hash(settings, address),
            "remembered": REMEMBERED,
        },
    )
    return bool(known.scalar_one())


def address_hash(settings: Settings, address: str) -> bytes:
    """A keyed hash of where a request comes from; of an IPv6 address only the network, since its owner has all of that."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return privacy.look_up_hash(settings.hash_key, "address", address)
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False).network_address
    return privacy.look_up_hash(settings.hash_key, "address", str(parsed))


def _origin(key: bytes, row: Any) -> Origin | None:
    if row.origin is None:
        return None
    told = json.loads(privacy.open_sealed(key, bytes(row.origin), context=ORIGIN, row_id=row.id))
    return Origin(told["address"], told["agent"])


_STANDING = text(
    """
    select expires_at, people.status, role = 'staff' and not exists (
        select from second_factors where second_factors.person_id = people.id and confirmed_at is not null
    ) as without_totp
    from sessions join people on people.id = person_id
    where sessions.id = :id and revoked_at is null and expires_at > clock_timestamp()
    """
).execution_options(**PREPARED)
_LOCKED = text(
    """
    select person_id, role, refresh_id, previous_refresh_id, refreshed_at, expires_at, revoked_at, clock_timestamp() as now
    from sessions join people on people.id = person_id
    where sessions.id = :id and people.status = 'active' for no key update of sessions
    """
)
_ROTATED = text(
    """
    update sessions set previous_refresh_id = refresh_id, refresh_id = :next, refreshed_at = now.at,
                        expires_at = least(now.at + :idle, sessions.created_at + :whole)
    from people, (select clock_timestamp() as at) as now
    where sessions.id = :id and people.id = person_id
    returning person_id, role, refresh_id, refreshed_at, expires_at
    """
)
