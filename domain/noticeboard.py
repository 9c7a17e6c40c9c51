"""Notices as people read them: their own, whatever became of the mails, and, for staff, those that no mail could bring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from domain import audit, privacy
from domain.answers import COUNTED
from domain.errors import NotFound
from domain.notices import UNDELIVERED, Kind
from domain.schedule import Role
from domain.settings import Settings
from domain.words import WORDS, moment


def own(
    connection: Connection, person_id: UUID, *, unread: bool | None = None, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of what somebody was told, newest first, and how many there are; `unread` leaves out the others."""
    wanted = {"person": person_id, "kinds": list(Kind), "unread": unread}
    rows = connection.execute(_OWN, {**wanted, "limit": limit, "offset": offset}).all()
    total: int = connection.execute(_COUNT_OWN, wanted).scalar_one()
    return [_told(row) for row in rows], total


def mark_read(connection: Connection, person_id: UUID, notice_id: UUID) -> None:
    """Note that somebody has read a notice of theirs; the first time counts. Raises NotFound."""
    marked = connection.execute(_MARK_READ, {"person": person_id, "kinds": list(Kind), "unread": None, "id": notice_id})
    if not marked.rowcount:
        raise NotFound


STATES: Final[Mapping[str, str]] = {
    "undeliverable": "drop_reason = any(:undelivered) and (email_confirmed_at is null or email_confirmed_at < dropped_at)",
    "delayed": "sent_at is null and dropped_at is null and attempts > 0",
}


def troubled(
    connection: Connection, settings: Settings, staff_id: UUID, state: str, *, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of the notices that mail has not brought, newest first, and how many there are, as far as is counted.

    The reading is written down. `undeliverable` were given up, and their recipients have confirmed no address since; `delayed`
    are tried again by themselves.
    """
    which = f"from notices join people on people.id = person_id join person_keys using (person_id) where {STATES[state]}"
    wanted = {"undelivered": list(UNDELIVERED)} if state == "undeliverable" else {}
    rows = connection.execute(
        text(
            "select notices.id, person_id, role, private, wrapped, appointment_id, kind, due_at, attempts, dropped_at,"
            f" drop_reason {which} order by coalesce(dropped_at, due_at) desc, notices.id desc limit :limit offset :offset"
        ),
        {**wanted, "limit": limit, "offset": offset},
    ).all()
    counted = text(f"select count(*) from (select {which} limit {COUNTED}) as counted")
    total: int = connection.execute(counted, wanted).scalar_one()
    audit.ensure_read(connection, staff_id, Role.STAFF, {row.person_id for row in rows})
    return [_troubled(row, settings) for row in rows], total


def _told(row: Row[Any]) -> dict[str, Any]:
    when = row.starts_at and moment(row.starts_at, row.language, row.timezone)
    told = {"id": row.id, "kind": row.kind, "at": row.due_at, "text": WORDS[row.language]["notices"][row.kind].format(when=when)}
    rest = {"appointment_id": row.appointment_id, "read_at": row.read_at}
    return told | {name: value for name, value in rest.items() if value is not None}


def _troubled(row: Row[Any], settings: Settings) -> dict[str, Any]:
    key = privacy.unwrap(settings.data_keys, row.person_id, bytes(row.wrapped))
    sealed = bytes(row.private)
    private = json.loads(privacy.open_sealed(key, sealed, context="people.private", row_id=row.person_id))
    told = {
        "id": row.id,
        "kind": row.kind,
        "due_at": row.due_at,
        "attempts": row.attempts,
        "person": {"id": row.person_id, "role": row.role, "name": private["name"], "email": private["email"]},
    }
    rest = {"appointment_id": row.appointment_id, "dropped_at": row.dropped_at, "reason": row.drop_reason}
    return told | {name: value for name, value in rest.items() if value is not None}


# What has happened is told as soon as it has; a reminder only of a visit that stands, unless its mail went out in time.
_TOLD = """
    from notices join people on people.id = person_id left join doctors on doctors.id = person_id
        left join appointments on appointments.id = appointment_id
    where person_id = :person and kind = any(:kinds) and due_at <= statement_timestamp()
        and (kind <> 'reminder' or sent_at is not null
            or (appointments.status = 'accepted' and appointments.sequence = notices.sequence))
        and (cast(:unread as boolean) is null or (read_at is null) = :unread)
"""
_OWN = text(
    f"""
    select notices.id, kind, due_at, read_at, appointment_id, language,
        coalesce(lower(notices.during), appointments.starts_at) as starts_at,
        coalesce(doctors.timezone, people.timezone) as timezone
    {_TOLD} order by due_at desc, notices.id desc limit :limit offset :offset
    """
)
_COUNT_OWN = text(f"select count(*) {_TOLD}")
_MARK_READ = text(
    f"""
    update notices set read_at = coalesce(read_at, clock_timestamp())
    where id = :id and exists (select from (select notices.id {_TOLD}) as told where told.id = :id)
    """
)
