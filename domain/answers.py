"""The forms that answers share: JSON, instants, money, and pages of lists with their cursors."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, DateTime, Row, Select, func

from domain.errors import Invalid
from domain.settings import Settings

COUNTED = 1000  # a list's total is counted up to here
NOW: ColumnElement[datetime] = func.statement_timestamp(type_=DateTime(timezone=True))

Rows = Select[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """Which page of a list. A `cursor` stands for the whole query that it came from, at its next page."""

    page: int = 1
    page_size: int = 20
    cursor: str | None = None


Query = TypeVar("Query", bound=PageQuery)


def instant(at: datetime) -> str:
    """An instant in UTC, as the contract writes it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def money(amount: int, currency: str) -> dict[str, Any]:
    """An amount of minor units, as the contract writes it."""
    return {"amount": amount, "currency": currency}


def as_json(document: Mapping[str, Any]) -> bytes:
    """A document as the bytes that are sent."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def given(**values: str | None) -> dict[str, str]:
    """Those of the fields that have a value."""
    return {name: value for name, value in values.items() if value is not None}


def paged(found: Rows, query: PageQuery, after: Any) -> Rows:
    """One row more than the page holds, which tells whether there is a next one."""
    found = found.limit(query.page_size + 1)
    return found if after is not None else found.offset((query.page - 1) * query.page_size)


def turned(
    settings: Settings, query: PageQuery, found: Sequence[Row[Any]], key: str, owner_id: UUID | None = None
) -> tuple[Sequence[Row[Any]], dict[str, str]]:
    """The page of what `paged` found, and if there is a next one, the cursor to it: it begins after the last row's `key` and id.

    It is good for its owner only.
    """
    page = found[: query.page_size]
    if len(found) == len(page):
        return page, {}
    following = _document(replace(query, page=query.page + 1))
    content = as_json({"query": following, "after": [_plain(getattr(page[-1], key)), str(page[-1].id)]})
    signed = _signature(settings, query, owner_id, content) + content
    return page, {"next": base64.urlsafe_b64encode(signed).rstrip(b"=").decode()}


# A cursor holds its query and where its page begins, signed: so it works alone, and nobody can write one.
_SIGNATURE_BYTES = 12
_INSTANTS = ("available_from", "available_until", "from_", "until")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _document(query: PageQuery) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(query).items() if value not in (None, (), []) and name != "cursor"}


def field(name: str, query: PageQuery, after: Any) -> str:
    """The field of a list's page: all that `asked` needs to fill it again."""
    return f"{name}:{as_json({'query': _document(query), 'after': after}).decode()}"


def asked(kind: type[Query], name: str) -> tuple[Query, Any]:
    """The query that the field of a list's page answers, and where its page begins."""
    document = json.loads(name[name.index("{") :])
    return _restored(kind, document["query"]), document["after"]


def resolved(settings: Settings, query: Query, owner_id: UUID | None = None) -> tuple[Query, Any]:
    """The query that a cursor stands for and where its page begins; a query without one as it is. Raises Invalid."""
    if query.cursor is None:
        return query, None
    try:
        decoded = base64.b64decode(query.cursor + "=" * (-len(query.cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        decoded = b""
    signature, content = decoded[:_SIGNATURE_BYTES], decoded[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(settings, query, owner_id, content)):
        raise Invalid({"cursor": ["Cursor inválido. / Not a cursor of this list."]})
    document = json.loads(content)
    return _restored(type(query), document["query"]), document["after"]


def _restored(kind: type[Query], document: Mapping[str, Any]) -> Query:
    values: dict[str, Any] = {
        name: datetime.fromisoformat(value) if name in _INSTANTS else value for name, value in document.items()
    }
    return kind(**values)


def _signature(settings: Settings, query: PageQuery, owner_id: UUID | None, content: bytes) -> bytes:
    purpose = f"cursor\0{type(query).__name__}\0{owner_id}\0".encode()
    return hmac.digest(settings.hash_key, purpose + content, "sha256")[:_SIGNATURE_BYTES]
