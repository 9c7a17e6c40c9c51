import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_jwt_extended import JWTManager, get_jwt, jwt_required
from hypothesis import given
from hypothesis import strategies as st

from domain import tokens
from domain.errors import NotAuthenticated
from domain.privacy import KeyRing
from domain.schedule import Role
from domain.tokens import (
    Claims,
    Type,
    decode_key,
    flask_jwt_settings,
    link_token_hash,
    mint,
    mint_pair,
    new_link_token,
    read,
)

PERSON, SESSION, TOKEN = (UUID(f"0193f7a2-000{n}-7abc-9def-123456789012") for n in range(3))
RING = KeyRing("2026", {"2026": os.urandom(32), "2025": os.urandom(32)})
LEEWAY = int(tokens.LEEWAY.total_seconds())


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    tokens._genuine.cache_clear()


@pytest.fixture
def client() -> FlaskClient:
    """An API of two routes whose tokens flask-jwt-extended checks, set up as `domain.tokens` says."""
    app = Flask("tokens")
    app.config.update(flask_jwt_settings())
    manager = JWTManager(app)

    @manager.decode_key_loader
    def key_for(header: dict[str, Any], claims: dict[str, Any]) -> bytes:
        return decode_key(RING, header, claims)

    @app.get("/access")
    @jwt_required()
    def access() -> dict[str, Any]:
        return get_jwt()

    @app.get("/refresh")
    @jwt_required(refresh=True)
    def refresh() -> dict[str, Any]:
        return get_jwt()

    return app.test_client()


def claims_of(kind: Type = Type.ACCESS, age: int = 0, life: int = 900) -> Claims:
    issued_at = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=age)
    return Claims(kind, PERSON, SESSION, Role.PATIENT, TOKEN, issued_at, issued_at + timedelta(seconds=life))


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def payload_of(token: str) -> dict[str, Any]:
    middle = token.split(".")[1]
    payload: dict[str, Any] = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    return payload


def forge(payload: dict[str, Any], *, alg: str = "HS256", kid: Any = "2026", key: bytes | None = None) -> str:
    """A token signed by hand, right in everything that isn't asked to be wrong."""
    head = part({"typ": "JWT", "alg": alg, "kid": kid} if kid is not None else {"typ": "JWT", "alg": alg})
    signed = f"{head}.{part(payload)}"
    digest = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}.get(alg, hashlib.sha256)
    signature = b"" if alg == "none" else hmac.new(key or RING.keys["2026"], signed.encode(), digest).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def forged(**changes: Any) -> Callable[[], str]:
    """A token with these claims changed; a claim that is None is left out."""

    def make() -> str:
        payload = payload_of(mint(RING, claims_of())) | changes
        return forge({name: value for name, value in payload.items() if value is not None})

    return make


def edited() -> str:
    head, _, signature = mint(RING, claims_of()).split(".")
    return f"{head}.{part(payload_of(mint(RING, claims_of())) | {'role': 'staff'})}.{signature}"


def genuine_payload() -> dict[str, Any]:
    return payload_of(mint(RING, claims_of()))


FORGERIES: dict[str, Callable[[], str]] = {
    "alg none": lambda: forge(genuine_payload(), alg="none"),
    "alg none with a signature": lambda: forge(genuine_payload(), alg="None"),
    "stronger alg": lambda: forge(genuine_payload(), alg="HS512"),
    "asymmetric alg": lambda: forge(genuine_payload(), alg="RS256"),
    "edited payload": edited,
    "no signature": lambda: mint(RING, claims_of()).rpartition(".")[0] + ".",
    "unknown kid": lambda: forge(genuine_payload(), kid="2024"),
    "no kid": lambda: forge(genuine_payload(), kid=None),
    "kid of another type": lambda: forge(genuine_payload(), kid=["2026"]),
    "kid of the other key": lambda: forge(genuine_payload(), kid="2025"),
    "key of somebody else": lambda: forge(genuine_payload(), key=os.urandom(32)),
    "empty key": lambda: forge(genuine_payload(), kid="", key=b"\0"),
    "expired": lambda: mint(RING, claims_of(age=900 + LEEWAY + 1)),
    "expired 31 seconds ago": lambda: mint(RING, claims_of(age=931)),
    "issued in the future": lambda: mint(RING, claims_of(age=-31)),
    "never expiring": forged(exp=None),
    "without a type": forged(type=None),
    "of an unknown type": forged(type="confirm"),
    "of a list of types": forged(type=["access"]),
    "for another audience": forged(aud="portal"),
    "for nobody": forged(aud=None),
    "from another issuer": forged(iss="someone"),
    "from nobody": forged(iss=None),
    "without a subject": forged(sub=None),
    "without a session": forged(sid=None),
    "without a role": forged(role=None),
    "without an id": forged(jti=None),
    "empty": lambda: "e30.e30.",
    "garbage": lambda: "not.a.token",
    "refresh as access": lambda: mint(RING, claims_of(Type.REFRESH)),
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_token_is_refused(forgery: Callable[[], str]) -> None:
    with pytest.raises(NotAuthenticated):
        read(RING, forgery(), Type.ACCESS)


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_flask_jwt_extended_refuses_a_forged_token(client: FlaskClient, forgery: Callable[[], str]) -> None:
    answer = client.get("/access", headers={"Authorization": f"Bearer {forgery()}"})
    assert answer.status_code in (401, 422), answer.json


def test_the_forger_makes_good_tokens_when_nothing_is_wrong(client: FlaskClient) -> None:
    token = forge(genuine_payload())
    assert read(RING, token, Type.ACCESS).person_id == PERSON
    assert client.get("/access", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@given(st.text())
def test_no_text_makes_reading_a_token_fail_otherwise(text: str) -> None:
    with pytest.raises(NotAuthenticated):
        read(RING, text, Type.ACCESS)


@pytest.mark.parametrize("kind", Type)
def test_a_token_says_what_it_was_made_to_say(client: FlaskClient, kind: Type) -> None:
    claims = claims_of(kind)
    token = mint(RING, claims)
    assert read(RING, token, kind) == claims
    answer = client.get(f"/{kind}", headers={"Authorization": f"Bearer {token}"})
    assert answer.json is not None
    assert answer.json | {"fresh": None} == {
        "iss": "healthmed",
        "aud": "healthmed-api",
        "type": str(kind),
        "sub": str(PERSON),
        "sid": str(SESSION),
        "role": "patient",
        "jti": str(TOKEN),
        "iat": claims.issued_at.timestamp(),
        "exp": claims.expires_at.timestamp(),
        "fresh": None,
    }


def test_an_access_token_renews_nothing(client: FlaskClient) -> None:
    token = mint(RING, claims_of(Type.ACCESS))
    with pytest.raises(NotAuthenticated):
        read(RING, token, Type.REFRESH)
    assert client.get("/refresh", headers={"Authorization": f"Bearer {token}"}).status_code == 422


def test_clocks_may_be_apart_for_less_than_half_a_minute() -> None:
    assert LEEWAY <= 30
    assert read(RING, mint(RING, claims_of(age=900 + LEEWAY - 2)), Type.ACCESS)
    assert read(RING, mint(RING, claims_of(age=2 - LEEWAY)), Type.ACCESS)


def test_a_remembered_token_expires_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    token = mint(RING, claims_of())
    assert read(RING, token, Type.ACCESS)
    later = time.time() + 900 + LEEWAY
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(NotAuthenticated):
        read(RING, token, Type.ACCESS)


def test_a_remembered_token_is_good_for_its_own_ring_only() -> None:
    token = mint(RING, claims_of())
    assert read(RING, token, Type.ACCESS)
    with pytest.raises(NotAuthenticated):
        read(KeyRing("2026", {"2026": os.urandom(32)}), token, Type.ACCESS)


def test_the_first_key_signs_and_all_others_still_verify(client: FlaskClient) -> None:
    before = KeyRing("2025", RING.keys)
    for token in (mint(before, claims_of()), mint(RING, claims_of())):
        assert read(RING, token, Type.ACCESS)
        assert client.get("/access", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert mint(before, claims_of()) != mint(RING, claims_of())


def pair(refresh_id: UUID = TOKEN, refresh_life: timedelta = timedelta(days=7)) -> tokens.Pair:
    issued_at = datetime(2026, 12, 1, 12, 0, 0, 123456, tzinfo=UTC)
    return mint_pair(
        RING,
        person_id=PERSON,
        session_id=SESSION,
        role=Role.DOCTOR,
        refresh_id=refresh_id,
        issued_at=issued_at,
        refresh_until=issued_at + refresh_life,
    )


def test_a_double_click_gets_the_same_successor() -> None:
    assert pair() == pair()
    assert pair() != pair(SESSION)


def test_the_two_tokens_of_a_pair_differ_in_type_id_and_life() -> None:
    access, refresh = payload_of(pair().access), payload_of(pair().refresh)
    assert (access["type"], refresh["type"]) == ("access", "refresh")
    assert refresh["jti"] == str(TOKEN) != access["jti"]
    assert access["exp"] - access["iat"] == 15 * 60
    assert refresh["exp"] - refresh["iat"] == 7 * 24 * 3600


def test_an_access_token_never_outlives_its_refresh_token() -> None:
    access = payload_of(pair(refresh_life=timedelta(minutes=3)).access)
    assert access["exp"] - access["iat"] == 3 * 60


def test_tokens_are_not_shown_when_a_pair_is_printed() -> None:
    assert pair().access not in repr(pair())


def test_a_link_token_is_long_random_and_stored_only_as_its_hash() -> None:
    made = [new_link_token() for _ in range(1000)]
    assert len({token for token, _ in made}) == 1000
    for token, stored in made:
        assert len(base64.urlsafe_b64decode(token + "=")) == 32
        assert link_token_hash(token) == stored
        assert len(stored) == 32
        assert token.encode() not in stored


def test_any_text_may_be_looked_up_as_a_link_token() -> None:
    assert link_token_hash("\ud800") != link_token_hash("\ud801")
