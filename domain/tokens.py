"""Access and refresh tokens (JWTs signed by a ring of keys, with and without flask-jwt-extended), and secret links."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final
from uuid import UUID, uuid5

import jwt

from domain.errors import NotAuthenticated
from domain.privacy import KeyRing
from domain.schedule import Role

ISSUER: Final = "healthmed"
AUDIENCE: Final = "healthmed-api"
ALGORITHM: Final = "HS256"
ACCESS_LIFE = timedelta(minutes=15)
LEEWAY = timedelta(seconds=10)  # how far the clocks of two machines may be apart

_REQUIRED = ("iss", "aud", "type", "sub", "sid", "role", "jti", "iat", "exp")


class Type(StrEnum):
    """What a token is good for: calls, or its own renewal."""

    ACCESS = "access"
    REFRESH = "refresh"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: who, in which session, as what, and from when until when, in whole seconds."""

    type: Type
    person_id: UUID
    session_id: UUID
    role: Role
    id: UUID
    issued_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, repr=False)
class Pair:
    """The two tokens that a log-in or a refresh answers with."""

    access: str
    refresh: str


def mint(ring: KeyRing, claims: Claims) -> str:
    """The token that says `claims`, signed by the ring's first key. The same claims make the same token."""
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "type": claims.type,
        "sub": str(claims.person_id),
        "sid": str(claims.session_id),
        "role": claims.role,
        "jti": str(claims.id),
        "iat": int(claims.issued_at.timestamp()),
        "exp": int(claims.expires_at.timestamp()),
    }
    return jwt.encode(payload, ring.keys[ring.first], ALGORITHM, headers={"kid": ring.first})


def mint_pair(
    ring: KeyRing,
    *,
    person_id: UUID,
    session_id: UUID,
    role: Role,
    refresh_id: UUID,
    issued_at: datetime,
    refresh_until: datetime,
) -> Pair:
    """Both tokens of one step of a session. The same arguments make the same pair: a double click gets one successor.

    `refresh_id` is new with each refresh. The access token lives 15 minutes, and no longer than the refresh token.
    """
    refresh = Claims(Type.REFRESH, person_id, session_id, role, refresh_id, issued_at, refresh_until)
    access_until = min(issued_at + ACCESS_LIFE, refresh_until)
    access = Claims(Type.ACCESS, person_id, session_id, role, uuid5(refresh_id, "access"), issued_at, access_until)
    return Pair(mint(ring, access), mint(ring, refresh))


def read(ring: KeyRing, token: str, expected: Type) -> Claims:
    """What a genuine token of the expected type says. Whether its session is still alive is for the caller to ask.

    Raises NotAuthenticated for anything forged, altered, expired, of the other type, or made for somebody else. That a
    token's signature is good is remembered: 170 µs the first time, a few after that.
    """
    try:
        claims = _genuine(ring, token)
    except (jwt.InvalidTokenError, ValueError):
        raise NotAuthenticated from None
    if claims.type is not expected or claims.expires_at.timestamp() <= time.time() - LEEWAY.total_seconds():
        raise NotAuthenticated
    return claims


def flask_jwt_settings() -> dict[str, Any]:
    """The configuration that makes flask-jwt-extended refuse what `read` refuses, together with `decode_key`."""
    return {
        "JWT_TOKEN_LOCATION": ["headers"],
        "JWT_ALGORITHM": ALGORITHM,
        "JWT_DECODE_ALGORITHMS": [ALGORITHM],
        "JWT_DECODE_ISSUER": ISSUER,
        "JWT_DECODE_AUDIENCE": AUDIENCE,
        "JWT_DECODE_LEEWAY": int(LEEWAY.total_seconds()),
    }


def decode_key(ring: KeyRing, header: Mapping[str, Any], claims: Mapping[str, Any]) -> bytes:
    """The key that a token claims to be signed with, for flask-jwt-extended's `decode_key_loader`.

    It sees header and claims before the signature is checked, and refuses what flask-jwt-extended would let pass: there
    a token without a type counts as an access token, and one without an expiry never expires.
    Raises jwt.InvalidTokenError for a key that isn't in the ring, a missing claim, or an unknown type.
    """
    for claim in _REQUIRED:
        if claims.get(claim) is None:
            raise jwt.MissingRequiredClaimError(claim)
    if claims["type"] not in (Type.ACCESS, Type.REFRESH):
        raise jwt.InvalidTokenError("unknown token type")
    key = ring.keys.get(str(header.get("kid")))
    if key is None:
        raise jwt.InvalidTokenError("unknown key")
    return key


def new_link_token() -> tuple[str, bytes]:
    """A secret for one link (reset, confirmation, calendar): a token of 256 random bits, and its hash to be stored."""
    token = secrets.token_urlsafe(32)
    return token, link_token_hash(token)


def link_token_hash(token: str) -> bytes:
    """The 32 bytes under which a link's token is stored; so random a token needs neither salt nor key."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


# Tokens are remembered only if genuine, so that forged ones push out nothing; about 1 kB each.
@lru_cache(maxsize=16_384)
def _genuine(ring: KeyRing, token: str) -> Claims:
    unproved = jwt.decode_complete(token, options={"verify_signature": False})
    payload = jwt.decode(
        token,
        decode_key(ring, unproved["header"], unproved["payload"]),
        algorithms=[ALGORITHM],
        issuer=ISSUER,
        audience=AUDIENCE,
        leeway=LEEWAY,
    )
    return Claims(
        Type(payload["type"]),
        UUID(payload["sub"]),
        UUID(payload["sid"]),
        Role(payload["role"]),
        UUID(payload["jti"]),
        datetime.fromtimestamp(payload["iat"], UTC),
        datetime.fromtimestamp(payload["exp"], UTC),
    )
