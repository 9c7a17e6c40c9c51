"""The calendar feed: a secret address that a person's own calendar program reads, and what stands there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Row, text

from domain import audit, calendars, privacy, tokens
from domain.cache import Answer, Cache, Change, Filled
from domain.calendars import Entry, EntryStatus
from domain.identifiers import Crm
from domain.privacy import KeyRing
from domain.schedule import AppointmentStatus, Interval, Role
from domain.settings import Settings
from domain.words import WORDS, moment

KEPT: Final = timedelta(days=30)  # for so long what is over stays in the feed
MOST: Final = 1000  # entries


def new_link(change: Change, settings: Settings, person_id: UUID, role: Role) -> str:
    """Give somebody's calendar a secret address; the one it had is good no more. Only its hash is stored."""
    token, token_hash = tokens.new_link_token()
    former = change.connection.execute(
        text(
            """
            insert into calendar_links (person_id, token_hash) values (:person, :hash)
            on conflict (person_id) do update set token_hash = excluded.token_hash, created_at = clock_timestamp()
            returning old.token_hash
            """
        ),
        {"person": person_id, "hash": token_hash},
    ).scalar_one()
    if former is not None:
        change.touch(_scope(bytes(former)))
    audit.record(change.connection, person_id, person_id, role, "calendar_link_made")
    return f"{settings.public_url}/api/v1/calendar/{token}.ics"


def end_link(change: Change, person_id: UUID, role: Role) -> None:
    """Let the address of somebody's calendar be good no more, if it has one."""
    ended = change.connection.execute(
        text("delete from calendar_links where person_id = :person returning token_hash"), {"person": person_id}
    ).scalar_one_or_none()
    if ended is not None:
        change.touch(_scope(bytes(ended)))
        audit.record(change.connection, person_id, person_id, role, "calendar_link_ended")


def feed(cache: Cache, token: str) -> Answer:
    """The appointments of whoever's link has this token, as iCalendar text. Raises NotFound.

    Whoever learns the address reads it without logging in, and calendar programs keep it on servers of their own: so it names
    no patient and tells nothing that anybody wrote.
    """
    token_hash = tokens.link_token_hash(token)
    whose = cache.read(_scope(token_hash), "whose", lambda connection: _whose(connection, token_hash))
    person_id = UUID(whose.body.decode())
    answer = cache.read(
        f"person:{person_id}", "calendar", lambda connection: _feed(connection, cache.settings, person_id), reader=person_id
    )
    return replace(answer, degraded=answer.degraded or whose.degraded)


def refill(connection: Connection, cache: Cache, scope: str, name: str) -> Filled | None:
    """What belongs in a calendar link's scope, or in the field `calendar` of a person's."""
    _, _, owner = scope.partition(":")
    if name == "whose":
        return _whose(connection, bytes.fromhex(owner))
    return _feed(connection, cache.settings, UUID(owner))


def _scope(token_hash: bytes) -> str:
    return f"calendar-link:{token_hash.hex()}"


def _whose(connection: Connection, token_hash: bytes) -> Filled | None:
    person_id = connection.execute(
        text("select person_id from calendar_links where token_hash = :hash"), {"hash": token_hash}
    ).scalar_one_or_none()
    return None if person_id is None else Filled(str(person_id).encode())


def _feed(connection: Connection, settings: Settings, person_id: UUID) -> Filled | None:
    reader = connection.execute(_READER, {"person": person_id}).one_or_none()
    if reader is None:
        return None
    rows = connection.execute(_ENTRIES, {"person": person_id, "kept": KEPT, "most": MOST})
    entries = [_entry(row, reader, settings.data_keys) for row in rows]
    year = reader.now.astimezone(ZoneInfo(reader.timezone)).year
    return Filled(calendars.feed(entries, reader.timezone, year), readers=frozenset([person_id]))


def _entry(row: Row[Any], reader: Row[Any], ring: KeyRing) -> Entry:
    words: Mapping[str, str] = WORDS[reader.language]["calendar"]
    waits = row.status == AppointmentStatus.REQUESTED
    join_url = None
    if row.join_url is not None and row.wrapped is not None and not waits:
        key = privacy.unwrap(ring, row.patient_id, bytes(row.wrapped))
        join_url = privacy.open_sealed(key, bytes(row.join_url), context="appointments.join_url", row_id=row.id)
    told = {
        "doctor": row.doctor_name,
        "crm": Crm(row.crm_number, row.crm_suffix, row.crm_state),
        "join_url": join_url,
        "until": moment(row.expires_at, reader.language, reader.timezone),
    }
    lines = [words["doctor"]] if reader.role == Role.PATIENT else []
    if waits:
        lines.append(words[f"{reader.role}_waits"])
    if join_url is not None:
        lines.append(words["place"])
    return Entry(
        appointment_id=row.id,
        during=Interval(row.starts_at, row.ends_at),
        status=EntryStatus.TENTATIVE if waits else EntryStatus.CONFIRMED,
        sequence=row.sequence,
        changed_at=row.changed_at,
        timezone=reader.timezone,
        title=words["requested" if waits else "title"],
        description="\n".join(line.format_map(told) for line in lines),
        join_url=join_url,
    )


_READER = text(
    """
    select role, language, coalesce(doctors.timezone, people.timezone) as timezone, statement_timestamp() as now
    from people join person_keys on person_id = people.id left join doctors on doctors.id = people.id where people.id = :person
    """
)
# What is refused, cancelled or expired is no longer there, and so goes from whatever calendar reads this.
_ENTRIES = text(
    """
    select appointments.id, appointments.patient_id, appointments.starts_at, appointments.ends_at, appointments.status,
        appointments.sequence, appointments.expires_at, appointments.join_url, wrapped, last.at as changed_at,
        doctors.name as doctor_name, crm_number, crm_suffix, crm_state
    from appointments join doctors on doctors.id = doctor_id left join person_keys on person_id = patient_id
        join history last on last.appointment_id = appointments.id and last.position = history_length
    where (patient_id = :person or doctor_id = :person) and active and ends_at > statement_timestamp() - :kept
    order by appointments.starts_at, appointments.id limit :most
    """
)
