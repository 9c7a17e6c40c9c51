"""How personal data is sealed (AES-256-GCM, one key a person), looked up (keyed hashes) and kept out of logs.

A person's data key seals what is held about them, and the key ring from settings wraps that data key; destroying the
wrapped key erases the person. Everything sealed is bound to where it stands: in another row or column it can't be opened.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from domain.errors import HealthMedError

KEY_BYTES = 32
_NONCE_BYTES = 12  # 96 bits, NIST SP 800-38D 5.2.1.1; drawn at random, safe for 2**32 messages under one key (8.3)
_TAG_BYTES = 16
_SEALED, _WRAPPED = b"\x01", b"\x02"  # the first byte says which layout follows, so that another can be added
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)


class Unreadable(HealthMedError):
    """Um dado guardado não pôde ser aberto. / Stored data could not be opened."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class KeyRing:
    """Named secrets of 32 bytes: the first is used for what is new, every one of them for what is there already."""

    first: str
    keys: Mapping[str, bytes]

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """The ring that `id=base64,id=base64` makes. Raises ValueError that names the key at fault and never shows it."""
        keys: dict[str, bytes] = {}
        for place, entry in enumerate(text.split(","), start=1):
            key_id, separator, encoded = entry.strip().partition("=")
            if not separator or not _KEY_ID.fullmatch(key_id):
                raise ValueError(f"key {place} must read id=base64, its id 1 to 32 letters, digits, '-' or '_'")
            if key_id in keys:
                raise ValueError(f"key id {key_id!r} stands there twice")
            try:
                key = base64.b64decode(encoded, validate=True)
            except ValueError:
                raise ValueError(f"key {key_id!r} is not base64") from None
            if len(key) != KEY_BYTES:
                raise ValueError(f"key {key_id!r} must be {KEY_BYTES} bytes, not {len(key)}")
            if key in keys.values():
                raise ValueError(f"key {key_id!r} is the same secret as another one")
            keys[key_id] = key
        return cls(next(iter(keys)), MappingProxyType(keys))


def new_data_key(ring: KeyRing, person_id: UUID) -> tuple[bytes, bytes]:
    """A fresh data key for one person: the key itself, and the form wrapped by the ring that may be stored."""
    key = os.urandom(KEY_BYTES)
    return key, _wrap(ring, person_id, key)


def unwrap(ring: KeyRing, person_id: UUID, wrapped: bytes) -> bytes:
    """The data key that `wrapped` holds for this person.

    Raises Unreadable if it was made for somebody else, was altered, or needs a key that the ring no longer has.
    """
    key_id, box = _opened_envelope(wrapped)
    if key_id not in ring.keys:
        raise Unreadable
    return _open(ring.keys[key_id], box, _key_binding(person_id, key_id))


def rewrap(ring: KeyRing, person_id: UUID, wrapped: bytes) -> bytes:
    """The same data key wrapped by the ring's first key; the very same bytes if it is already. Raises Unreadable."""
    key = unwrap(ring, person_id, wrapped)
    key_id, _ = _opened_envelope(wrapped)
    return wrapped if key_id == ring.first else _wrap(ring, person_id, key)


def seal(key: bytes, text: str, *, context: str, row_id: UUID) -> bytes:
    """`text` encrypted under a person's data key for one column (`context`: "people.email") of one row; 29 bytes more."""
    return _SEALED + _shut(key, text.encode(), _binding(context, row_id))


def open_sealed(key: bytes, sealed: bytes, *, context: str, row_id: UUID) -> str:
    """The text that `seal` was given. Raises Unreadable for another key, context or row, and for anything altered."""
    if sealed[:1] != _SEALED:
        raise Unreadable
    return _open(key, sealed[1:], _binding(context, row_id)).decode()


def look_up_hash(hash_key: bytes, kind: str, normalised: str) -> bytes:
    """32 bytes by which a value is found, and kept unique, without being stored (HMAC-SHA256).

    `kind` ("cpf", "email", "idempotency_key" ...) keeps equal values of two kinds apart. There are only 10**9 CPFs:
    without a secret key outside the database, a hash of one is reversed in minutes.
    """
    return hmac.digest(hash_key, f"{kind}\0{normalised}".encode("utf-8", "surrogatepass"), "sha256")


def redact(text: str) -> str:
    """`text` without what looks like a CPF, an e-mail, a phone, a token, a secret link, or a password (hashed, in a URL)."""
    return _TELLING.sub(lambda found: f"[{found.lastgroup}]", text)


def redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that redacts every text of an event, however deep; it belongs right before the renderer.

    A net below the allow-list of fields, not in its place: it catches what an exception's message brought along.
    """
    return {name: _redacted(value) for name, value in event.items()}


def _redacted(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(inner) for inner in value]
    return value


def _wrap(ring: KeyRing, person_id: UUID, key: bytes) -> bytes:
    name = ring.first.encode()
    binding = _key_binding(person_id, ring.first)
    return _WRAPPED + bytes((len(name),)) + name + _shut(ring.keys[ring.first], key, binding)


def _opened_envelope(wrapped: bytes) -> tuple[str, bytes]:
    if len(wrapped) < 2 or wrapped[:1] != _WRAPPED:
        raise Unreadable
    end = 2 + wrapped[1]
    return wrapped[2:end].decode("ascii", "replace"), wrapped[end:]


def _key_binding(person_id: UUID, key_id: str) -> bytes:
    return _WRAPPED + f"data-key\0{key_id}\0".encode() + person_id.bytes


def _binding(context: str, row_id: UUID) -> bytes:
    return _SEALED + context.encode() + b"\0" + row_id.bytes


def _shut(key: bytes, plain: bytes, binding: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, binding)


def _open(key: bytes, box: bytes, binding: bytes) -> bytes:
    if len(box) < _NONCE_BYTES + _TAG_BYTES:
        raise Unreadable
    try:
        return AESGCM(key).decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], binding)
    except InvalidTag:
        raise Unreadable from None


# Word characters around eleven digits mean an id, not a CPF; a point and a digit, a fraction.
_TELLING = re.compile(
    r"""
    (?P<token>\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*)
  | (?P<password>\$argon2\S+|(?<=://)[^\s/@]*:[^\s/@]*(?=@))
  | (?P<link>(?:(?<=/calendar/)|(?<=\btoken=))[\w-]{20,})
  | (?P<email>(?<![\w.+-])[\w.+-]+(?:@|%40)[\w-]+(?:\.[\w-]+)+)
  | (?P<cpf>(?<!\w)(?<!\d\.)\d{3}[. ]?\d{3}[. ]?\d{3}[-/ ]?\d{2}(?!\w|\.\d))
  | (?P<phone>\+\d{10,15}\b|(?:\+55[ ]?)?\(?\b\d{2}\)?[ ]?9?\d{4}-\d{4}\b)
    """,
    re.VERBOSE,
)
