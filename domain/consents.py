"""What a patient agreed to: which text, in which version, and when; and what they no longer agree to."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from types import MappingProxyType
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text
from uuid_utils.compat import uuid7

from domain import audit
from domain.errors import NotFound
from domain.schedule import Role

TERMS: Final = "terms"
TELECONSULTATION: Final = "teleconsultation"


@dataclass(frozen=True, slots=True)
class Offer:
    """A text that can be agreed to, by language."""

    kind: str
    version: str
    title: Mapping[str, str]
    text: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Consent:
    """What somebody agreed to; `text_hash` is the SHA-256 of the text as they read it."""

    kind: str
    version: str
    text_hash: bytes
    given_at: datetime
    withdrawn_at: datetime | None


def _offers() -> Mapping[str, Offer]:
    read = tomllib.loads(files("domain").joinpath("consents.toml").read_text("utf-8"))
    return MappingProxyType(
        {
            kind: Offer(kind, told["version"], told["title"], {language: text.strip() for language, text in told["text"].items()})
            for kind, told in read.items()
        }
    )


OFFERS: Final = _offers()


def give(connection: Connection, person_id: UUID, kind: str) -> Consent:
    """Let a patient agree to a text as it stands today; who has done so already has done so then."""
    offer = OFFERS[kind]
    language = connection.execute(text("select language from people where id = :id"), {"id": person_id}).scalar_one()
    given = connection.execute(
        text(
            "insert into consents (id, person_id, kind, version, text_hash) values (:id, :person_id, :kind, :version, :hash)"
            " on conflict (person_id, kind, version) where withdrawn_at is null do nothing"
        ),
        {
            "id": uuid7(),
            "person_id": person_id,
            "kind": kind,
            "version": offer.version,
            "hash": hashlib.sha256(offer.text[language].encode()).digest(),
        },
    )
    if given.rowcount:
        audit.record(connection, person_id, person_id, Role.PATIENT, "consent_given")
    return next(each for each in consents(connection, person_id) if each.kind == kind and each.withdrawn_at is None)


def withdraw(connection: Connection, person_id: UUID, kind: str) -> None:
    """Let a patient no longer agree, from now on. Raises NotFound where there is nothing to withdraw."""
    if "\0" in kind:  # no text in Postgres can hold it
        raise NotFound
    withdrawn = connection.execute(
        text(
            "update consents set withdrawn_at = clock_timestamp()"
            " where person_id = :person_id and kind = :kind and withdrawn_at is null"
        ),
        {"person_id": person_id, "kind": kind},
    )
    if not withdrawn.rowcount:
        raise NotFound
    audit.record(connection, person_id, person_id, Role.PATIENT, "consent_withdrawn")


def consents(connection: Connection, person_id: UUID) -> list[Consent]:
    """All that a person ever agreed to, newest first."""
    rows = connection.execute(
        text(
            "select kind, version, text_hash, given_at, withdrawn_at from consents where person_id = :person_id order by id desc"
        ),
        {"person_id": person_id},
    )
    return [Consent(row.kind, row.version, bytes(row.text_hash), row.given_at, row.withdrawn_at) for row in rows]
