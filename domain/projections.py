"""The bodies of every read of the contract, made from Postgres once and passed on as bytes until a command changes them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, Uuid, bindparam, func, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import aggregate_order_by

from domain import audit, inbox, privacy
from domain.answers import COUNTED, NOW, PageQuery, Rows, as_json, asked, field, given, instant, money, paged, resolved, turned
from domain.cache import ANSWER, Answer, Cache, Filled, Wanted
from domain.database import PREPARED
from domain.directory import DOCTOR_COLUMNS, doctor_named
from domain.model import AppointmentRecord, DoctorRecord, HistoryRecord, Person, PersonKey
from domain.privacy import KeyRing
from domain.schedule import AppointmentStatus, Role

PENDING_SECONDS = 5  # a pending command's answer is good for so long, should its invalidation be lost


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentQuery(PageQuery):
    """Which of one's own appointments, newest start first; a `cursor` as in a search."""

    status: Sequence[str] = ()  # any of these
    from_: datetime | None = None
    until: datetime | None = None
    overdue: bool = False


def appointments(cache: Cache, person_id: UUID, role: Role, query: AppointmentQuery) -> Answer:
    """A page of a patient's or a doctor's own appointments, without notes. Raises Invalid for a bad cursor."""
    query, after = resolved(cache.settings, query, person_id)
    return cache.read(
        *at_appointments(cache, person_id, role, query, after),
        lambda connection: _appointments(connection, cache, person_id, role, query, after),
        reader=person_id,
    )


def at_appointments(cache: Cache, person_id: UUID, role: Role, query: AppointmentQuery, after: Any) -> Wanted:
    """Where a page of somebody's own appointments is cached. Raises Unavailable."""
    return f"person:{person_id}", field(_reader_field("appointments", cache, person_id, role), query, after)


def appointment(cache: Cache, appointment_id: UUID, reader_id: UUID, role: Role) -> Answer:
    """One appointment with its notes and its history, for its patient or its doctor. Raises NotFound."""
    return cache.read(
        *at_appointment(cache, appointment_id, reader_id, role),
        lambda connection: _appointment(connection, cache, appointment_id, role),
        reader=reader_id,
    )


def at_appointment(cache: Cache, appointment_id: UUID | str, reader_id: UUID, role: Role) -> Wanted:
    """Where one appointment is cached for this reader. Raises Unavailable."""
    return f"appointment:{appointment_id}", _reader_field("appointment", cache, reader_id, role)


def command(cache: Cache, command_id: UUID, reader_id: UUID) -> Answer:
    """One command, for who sent it; a decided one only when its batch is finished. Raises NotFound."""
    return cache.read(
        *at_command(command_id),
        lambda connection: _command(connection, cache, command_id),
        reader=reader_id,
        primary=True,
    )


def at_command(command_id: UUID | str) -> Wanted:
    """Where one command is cached."""
    return f"command:{command_id}", ANSWER


def availability(cache: Cache, doctor_id: UUID) -> Answer:
    """A doctor's own rules and exceptions as last put. Raises NotFound."""
    return cache.read(
        f"person:{doctor_id}",
        "availability",
        lambda connection: _availability(connection, cache, doctor_id),
        reader=doctor_id,
    )


def refill(connection: Connection, cache: Cache, scope: str, name: str) -> Filled | None:
    """What belongs in a field of an appointment's, a command's or a person's scope. A doctor's fields name their reader."""
    kind, _, owner = scope.partition(":")
    what, _, rest = name.partition(":")
    role = Role.DOCTOR if rest and not rest.startswith("{") else Role.PATIENT
    match kind, what:
        case "appointment", "appointment":
            return _appointment(connection, cache, UUID(owner), role)
        case "command", _:
            return _command(connection, cache, UUID(owner))
        case "person", "appointments":
            return _appointments(connection, cache, UUID(owner), role, *asked(AppointmentQuery, rest))
        case "person", "availability":
            return _availability(connection, cache, UUID(owner))
    return None


def command_body(row: Row[Any]) -> dict[str, Any]:
    """A command as the contract shows it, from a row of `inbox.COLUMNS`."""
    body = {"id": str(row.id), "kind": row.kind, "status": row.status, "received_at": instant(row.received_at)}
    if row.status == "pending":
        return body
    body["decided_at"] = instant(row.decided_at)
    if row.appointment_id is not None:
        body["appointment_id"] = str(row.appointment_id)
    if row.result is not None:
        body["result"] = row.result
    if row.error_code is not None:
        body["error"] = {"code": row.error_code, "detail": row.error_detail}
    return body


def decided(row: Row[Any]) -> Filled:
    """The answer of a decided command (a row of `inbox.COLUMNS`), as its batch stores it."""
    return Filled(as_json(command_body(row)), readers=frozenset([row.actor_id]))


def scopes_showing(connection: Connection, person_id: UUID) -> list[str]:
    """Every scope that shows a person's name. To be called after the change, in its transaction: its lock keeps new ones out."""
    rows = connection.execute(_SHOWING, {"id": person_id}).all()
    scopes = {f"person:{person_id}"}
    for row in rows:
        scopes |= {f"appointment:{row.id}", f"person:{row.doctor_id}", f"person:{row.patient_id}"}
    if connection.execute(text("select exists (select from doctors where id = :id)"), {"id": person_id}).scalar_one():
        scopes |= {f"doctor:{person_id}", f"agenda:{person_id}", "directory", "directory-free", "directory-dates"}
    return sorted(scopes)


_SHOWING = text("select id, doctor_id, patient_id from appointments where doctor_id = :id or patient_id = :id")


_APPOINTMENT = (
    select(
        AppointmentRecord.id,
        AppointmentRecord.slot_id,
        AppointmentRecord.patient_id,
        AppointmentRecord.starts_at,
        AppointmentRecord.ends_at,
        AppointmentRecord.price,
        AppointmentRecord.currency,
        AppointmentRecord.status,
        AppointmentRecord.requested_at,
        AppointmentRecord.decided_at,
        AppointmentRecord.reason,
        AppointmentRecord.join_url,
        *DOCTOR_COLUMNS,
        Person.private,
        PersonKey.wrapped,
    )
    .join(DoctorRecord, DoctorRecord.id == AppointmentRecord.doctor_id)
    .join(Person, Person.id == AppointmentRecord.patient_id)
    .outerjoin(PersonKey, PersonKey.person_id == AppointmentRecord.patient_id)
)
_HISTORY = (
    select(
        func.jsonb_agg(
            aggregate_order_by(
                func.jsonb_build_array(
                    HistoryRecord.status, HistoryRecord.at, HistoryRecord.by, func.encode(HistoryRecord.reason, "hex")
                ),
                HistoryRecord.position,
            )
        )
    )
    .where(HistoryRecord.appointment_id == AppointmentRecord.id)
    .correlate(AppointmentRecord)
    .scalar_subquery()
    .label("history")
)
# Statements are made once: to make one, and to recognise it, takes SQLAlchemy longer than to send it.
_ONE_APPOINTMENT = (
    _APPOINTMENT.add_columns(AppointmentRecord.notes, _HISTORY)
    .where(AppointmentRecord.id == bindparam("appointment_id"))
    .execution_options(**PREPARED)
)
_OWN = bindparam("person_id", type_=Uuid())
# When the next accepted appointment of somebody's will be over.
_OVER_NEXT = {
    role: select(func.min(AppointmentRecord.ends_at)).where(
        own == _OWN, AppointmentRecord.status == AppointmentStatus.ACCEPTED, AppointmentRecord.ends_at > NOW
    )
    for role, own in ((Role.DOCTOR, AppointmentRecord.doctor_id), (Role.PATIENT, AppointmentRecord.patient_id))
}


@lru_cache(maxsize=256)
def _listing(role: Role, query: AppointmentQuery, after: tuple[str, str] | None) -> tuple[Rows, Any]:
    """What finds a page of anybody's appointments, and what counts them all: made once for what everybody asks alike."""
    conditions = [(AppointmentRecord.doctor_id if role is Role.DOCTOR else AppointmentRecord.patient_id) == _OWN]
    if query.status:
        conditions.append(AppointmentRecord.status.in_(query.status))
    if query.from_ is not None:
        conditions.append(AppointmentRecord.starts_at >= query.from_)
    if query.until is not None:
        conditions.append(AppointmentRecord.starts_at < query.until)
    if query.overdue:
        conditions += [AppointmentRecord.status == AppointmentStatus.ACCEPTED, AppointmentRecord.ends_at <= NOW]
    counted = select(literal(1)).select_from(AppointmentRecord).where(*conditions).limit(COUNTED).subquery()
    order = (AppointmentRecord.starts_at, AppointmentRecord.id)
    found: Rows = _APPOINTMENT.where(*conditions).order_by(*(column.desc() for column in order))
    if after is not None:
        found = found.where(tuple_(*order) < tuple_(literal(datetime.fromisoformat(after[0])), literal(UUID(after[1]))))
    return paged(found, query, after), select(func.count()).select_from(counted)


def _appointments(
    connection: Connection, cache: Cache, person_id: UUID, role: Role, query: AppointmentQuery, after: Any
) -> Filled:
    own = {"person_id": person_id}
    fresh_until = connection.execute(_OVER_NEXT[role], own).scalar_one() if query.overdue else None
    asked_alike = replace(query, status=tuple(query.status), cursor=None)
    found, counted = _listing(role, asked_alike, None if after is None else tuple(after))
    rows = connection.execute(found, own).all()
    if query.page == 1 and after is None and len(rows) <= query.page_size:  # as most people's lists are
        total = len(rows)
    else:
        total = connection.execute(counted, own).scalar_one()
    page, following = turned(cache.settings, query, rows, "starts_at", person_id)
    opened = _Opened(cache.settings.data_keys)
    body = {
        "items": [_listed(row, opened) for row in page],
        "page": query.page,
        "page_size": query.page_size,
        "total": total,
        **following,
    }
    return _private(cache, as_json(body), person_id, role, {row.patient_id for row in page}, fresh_until)


def _appointment(connection: Connection, cache: Cache, appointment_id: UUID, role: Role) -> Filled | None:
    row = connection.execute(_ONE_APPOINTMENT, {"appointment_id": appointment_id}).one_or_none()
    if row is None:
        return None
    opened = _Opened(cache.settings.data_keys)
    body = {
        **_listed(row, opened),
        "notes": opened.of_patient(row, row.notes, "appointments.notes"),
        "history": [
            {
                "status": status,
                "at": instant(datetime.fromisoformat(at)),
                "by": by,
                **given(reason=opened.of_patient(row, reason and bytes.fromhex(reason), f"history.reason.{position}")),
            }
            for position, (status, at, by, reason) in enumerate(row.history or (), start=1)
        ],
    }
    owner_id = row.doctor_id if role is Role.DOCTOR else row.patient_id
    return _private(cache, as_json(body), owner_id, role, {row.patient_id}, None)


def _private(
    cache: Cache, body: bytes, owner_id: UUID, role: Role, patients: Collection[UUID], fresh_until: datetime | None
) -> Filled:
    """An answer for one person. What a doctor reads of patients is written down first; its field says for which hour it was."""

    def write_down() -> None:
        with cache.engine.begin() as connection:
            audit.ensure_read(connection, owner_id, role, patients)

    first = write_down if role is Role.DOCTOR and patients else None
    return Filled(body, fresh_until, frozenset([owner_id]), first)


def _reader_field(name: str, cache: Cache, reader_id: UUID, role: Role) -> str:
    """The field for this kind of reader. A doctor's holds for an hour: then the reading must stand in the audit once more."""
    return f"{name}:{reader_id}:{cache.hour():%Y%m%d%H}" if role is Role.DOCTOR else name


def _listed(row: Row[Any], opened: _Opened) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "doctor": doctor_named(row),
        "patient": {"id": str(row.patient_id), "name": opened.name(row)},
        "slot_id": str(row.slot_id),
        "starts_at": instant(row.starts_at),
        "ends_at": instant(row.ends_at),
        "price": money(row.price, row.currency),
        "status": row.status,
        "requested_at": instant(row.requested_at),
        **given(
            reason=opened.of_patient(row, row.reason, "appointments.reason"),
            decided_at=row.decided_at and instant(row.decided_at),
            join_url=opened.of_patient(row, row.join_url, "appointments.join_url"),
        ),
    }


class _Opened:
    """What is sealed under patients' keys, each key unwrapped once; None where it was erased with its key."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._keys: dict[UUID, bytes] = {}

    def name(self, row: Row[Any]) -> str | None:
        """The patient's name."""
        private = self._open(row, row.private, "people.private", row.patient_id)
        return None if private is None else str(json.loads(private)["name"])

    def of_patient(self, row: Row[Any], sealed: bytes | None, context: str) -> str | None:
        """What was written about the appointment of this row."""
        return self._open(row, sealed, context, row.id)

    def _open(self, row: Row[Any], sealed: bytes | None, context: str, row_id: UUID) -> str | None:
        if sealed is None or row.wrapped is None:
            return None
        if (key := self._keys.get(row.patient_id)) is None:
            key = self._keys[row.patient_id] = privacy.unwrap(self._ring, row.patient_id, bytes(row.wrapped))
        return privacy.open_sealed(key, bytes(sealed), context=context, row_id=row_id)


_COMMAND = text(
    f"select {', '.join(f'commands.{column}' for column in inbox.COLUMNS.split(', '))},"
    " statement_timestamp() as now, batches.scopes as unfinished"
    " from commands left join batches on batches.id = commands.batch_id and batches.finished_at is null"
    " where commands.id = :id"
).execution_options(**PREPARED)
_ARCHIVED_COMMAND = text(f"select {inbox.ARCHIVED} from archived_commands where id = :id")


def _command(connection: Connection, cache: Cache, command_id: UUID) -> Filled | None:
    row = connection.execute(_COMMAND, {"id": command_id}).one_or_none()
    if row is None:
        archived = connection.execute(_ARCHIVED_COMMAND, {"id": command_id}).one_or_none()
        return None if archived is None else decided(archived)
    filled = decided(row)
    if row.status == "pending":
        return replace(filled, fresh_until=row.now + timedelta(seconds=PENDING_SECONDS))
    if row.unfinished is not None:
        return replace(filled, first=lambda: cache.finish_once(row.batch_id, row.unfinished))
    return filled


_AVAILABILITY = text(
    "select doctors.timezone, rules, exceptions, reasons, wrapped from doctors"
    " left join availabilities on availabilities.doctor_id = doctors.id"
    " left join person_keys on person_keys.person_id = doctors.id where doctors.id = :id"
)


def _availability(connection: Connection, cache: Cache, doctor_id: UUID) -> Filled | None:
    row = connection.execute(_AVAILABILITY, {"id": doctor_id}).one_or_none()
    if row is None:
        return None
    exceptions = row.exceptions or []
    reasons: list[str | None] = [None] * len(exceptions)
    if row.reasons is not None and row.wrapped is not None:
        key = privacy.unwrap(cache.settings.data_keys, doctor_id, bytes(row.wrapped))
        reasons = json.loads(privacy.open_sealed(key, bytes(row.reasons), context="availabilities.reasons", row_id=doctor_id))
    body = {
        "timezone": row.timezone,
        "rules": [given(**rule) for rule in row.rules or ()],
        "exceptions": [
            {
                "starts_at": instant(datetime.fromisoformat(each["starts_at"])),
                "ends_at": instant(datetime.fromisoformat(each["ends_at"])),
                **given(reason=reason),
            }
            for each, reason in zip(exceptions, reasons, strict=True)
        ],
    }
    return Filled(as_json(body), readers=frozenset([doctor_id]))
