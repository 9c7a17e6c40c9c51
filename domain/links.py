"""Secret links, sent by mail: whoever brings the token of one reads the mail there. Each is good once, and for a while."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text
from uuid_utils.compat import uuid7

from domain import notices, personal, privacy, tokens
from domain.errors import Invalid
from domain.notices import LINK_LIFE, Kind
from domain.settings import Settings

EMAIL: Final = "links.email"  # the context under which a link's address is sealed


class InvalidLink(Invalid):
    """O link não vale mais; peça outro. / The link is no longer good; ask for another one."""

    code = "invalid_link"

    def __init__(self) -> None:
        super().__init__({"token": [(self.__class__.__doc__ or "").strip()]})


@dataclass(frozen=True, slots=True)
class Link:
    """What a token proves: that its person's mail is read, or that the mail to `email` is."""

    person_id: UUID
    email: str | None


def send(
    connection: Connection,
    settings: Settings,
    person_id: UUID,
    kind: Kind,
    *,
    email: str | None = None,
    request_id: str | None = None,
) -> None:
    """Have a link mailed to somebody, or to the address `email` that they want to be theirs.

    For a person without a key, whom nobody can write to, it does the same work.
    """
    token, token_hash = tokens.new_link_token()
    key = personal.key_of(connection, settings, person_id) or privacy.new_data_key(settings.data_keys, person_id)[0]
    link_id = uuid7()
    connection.execute(
        text(
            "insert into links (id, person_id, kind, token_hash, email, expires_at)"
            " values (:id, :person_id, :kind, :token_hash, :email, clock_timestamp() + :life)"
        ),
        {
            "id": link_id,
            "person_id": person_id,
            "kind": kind,
            "token_hash": token_hash,
            "email": email and privacy.seal(key, email, context=EMAIL, row_id=link_id),
            "life": LINK_LIFE[kind],
        },
    )
    secret = {"token": token} if email is None else {"token": token, "to": email}
    notices.tell(connection, person_id, kind, secret=secret, key=key, request_id=request_id)


def whose(connection: Connection, kind: Kind, token: str) -> UUID:
    """Whose good link has this token. Raises InvalidLink."""
    person_id: UUID | None = connection.execute(
        text(f"select person_id from links where {_GOOD}"), _sought(kind, token)
    ).scalar_one_or_none()
    if person_id is None:
        raise InvalidLink
    return person_id


def take(connection: Connection, settings: Settings, kind: Kind, token: str) -> Link:
    """Use up the link that has this token. Of two at once, one gets it. Raises InvalidLink."""
    person_id = whose(connection, kind, token)
    connection.execute(text("select from people where id = :id for no key update"), {"id": person_id})  # before their links
    row = connection.execute(
        text(
            f"delete from links using person_keys where {_GOOD} and person_keys.person_id = links.person_id"
            " returning links.id, links.email, wrapped"
        ),
        _sought(kind, token),
    ).one_or_none()
    if row is None:
        raise InvalidLink
    if row.email is None:
        return Link(person_id, None)
    key = privacy.unwrap(settings.data_keys, person_id, bytes(row.wrapped))
    return Link(person_id, privacy.open_sealed(key, bytes(row.email), context=EMAIL, row_id=row.id))


def drop_all(connection: Connection, person_id: UUID) -> None:
    """Make every link of somebody's worthless."""
    connection.execute(text("delete from links where person_id = :id"), {"id": person_id})


_GOOD = "token_hash = :token_hash and kind = :kind and expires_at > clock_timestamp()"


def _sought(kind: Kind, token: str) -> dict[str, Any]:
    return {"kind": kind, "token_hash": tokens.link_token_hash(token)}
