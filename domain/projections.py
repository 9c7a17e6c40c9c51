"""The bodies of every read of the contract, made from Postgres once and passed on as bytes until a command changes them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache as once
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Row,
    Select,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from domain import audit, inbox, privacy
from domain.cache import ANSWER, Answer, Cache, Filled, Wanted
from domain.errors import Invalid
from domain.identifiers import Crm, Malformed, name_key
from domain.model import AppointmentRecord, DoctorRecord, DoctorSpecialty, HistoryRecord, Person, PersonKey, SlotRecord
from domain.privacy import KeyRing
from domain.schedule import AppointmentStatus, Limits, Role
from domain.specialties import GENERAL_PRACTITIONER, SPECIALTIES

PENDING_SECONDS = 5  # a pending command's answer is good for so long, should its invalidation be lost
COUNTED = 1000  # a list's total is counted up to here

Query = TypeVar("Query", "SearchQuery", "AppointmentQuery")
Rows = Select[*tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """Which doctors, in which order. A `cursor` stands for the whole query that it came from, at its next page."""

    specialty: Sequence[str] = ()  # any of these
    q: str | None = None
    state: str | None = None
    max_price: int | None = None
    available_from: datetime | None = None
    available_until: datetime | None = None
    sort: str = "name"  # or price, or next_slot
    page: int = 1
    page_size: int = 20
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class AppointmentQuery:
    """Which of one's own appointments, newest start first; a `cursor` as in a search."""

    status: Sequence[str] = ()  # any of these
    from_: datetime | None = None
    until: datetime | None = None
    overdue: bool = False
    page: int = 1
    page_size: int = 20
    cursor: str | None = None


@once
def specialties() -> Answer:
    """All specialties that can be searched."""
    items = [{"code": each.code, "name": each.name, "registered": each.registered} for each in SPECIALTIES.values()]
    return Answer.of(Filled(_json({"items": items})))


def doctor(cache: Cache, doctor_id: UUID) -> Answer:
    """One verified doctor, with `bio`. Raises NotFound."""
    return cache.read(f"doctor:{doctor_id}", "doctor", lambda connection: _doctors(connection, cache, [doctor_id], bio=True)[0])


def agenda(cache: Cache, doctor_id: UUID, from_: date | None = None, days: int = 7) -> Answer:
    """A verified doctor's bookable slots, by local date, from the doctor's today unless told. Raises NotFound and Invalid."""
    if from_ is not None and not date(1900, 1, 1) <= from_ <= date(2999, 1, 1):
        raise Invalid({"from": ["A data está fora do que há na agenda. / No agenda reaches to this date."]})
    field = f"agenda:{from_ or ''}:{days}"
    return cache.read(f"doctor:{doctor_id}", field, lambda connection: _agenda(connection, cache, doctor_id, from_, days))


def search(cache: Cache, query: SearchQuery) -> Answer:
    """A page of verified doctors: ids from the directory, cards from the doctors' scopes. Raises Invalid for a bad cursor."""
    query, after = _resolved(cache, replace(query, specialty=sorted(set(query.specialty))))
    free = query.sort == "next_slot" or query.available_from is not None or query.available_until is not None
    scope = "directory-free" if free else "directory"
    listed = cache.read(scope, _field("search", query, after), lambda connection: _search(connection, cache, query, after, free))
    page = json.loads(listed.body)
    cards = [
        card
        for card in cache.read_many(
            [(f"doctor:{doctor_id}", "card") for doctor_id in page["ids"]],
            lambda connection, wanted: _cards(connection, cache, wanted),
        )
        if card is not None
    ]
    rest = {"page": query.page, "page_size": query.page_size, "total": page["total"], **_next(page["next"])}
    body = b'{"items":[' + b",".join(card.body for card in cards) + b"]," + _json(rest)[1:]
    return replace(Answer.of(Filled(body)), degraded=listed.degraded or any(card.degraded for card in cards))


def appointments(cache: Cache, person_id: UUID, role: Role, query: AppointmentQuery) -> Answer:
    """A page of a patient's or a doctor's own appointments, without notes. Raises Invalid for a bad cursor."""
    query, after = _resolved(cache, query, person_id)
    field = _field(_reader_field("appointments", cache, person_id, role), query, after)
    return cache.read(
        f"person:{person_id}",
        field,
        lambda connection: _appointments(connection, cache, person_id, role, query, after),
        reader=person_id,
    )


def appointment(cache: Cache, appointment_id: UUID, reader_id: UUID, role: Role) -> Answer:
    """One appointment with its notes and its history, for its patient or its doctor. Raises NotFound."""
    return cache.read(
        f"appointment:{appointment_id}",
        _reader_field("appointment", cache, reader_id, role),
        lambda connection: _appointment(connection, cache, appointment_id, reader_id, role),
        reader=reader_id,
    )


def command(cache: Cache, command_id: UUID, reader_id: UUID) -> Answer:
    """One command, for who sent it; a decided one only when its batch is finished. Raises NotFound."""
    return cache.read(
        f"command:{command_id}", ANSWER, lambda connection: _command(connection, cache, command_id), reader=reader_id
    )


def availability(cache: Cache, doctor_id: UUID) -> Answer:
    """A doctor's own rules and exceptions as last put. Raises NotFound."""
    return cache.read(
        f"person:{doctor_id}",
        "availability",
        lambda connection: _availability(connection, cache, doctor_id),
        reader=doctor_id,
    )


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
    return Filled(_json(command_body(row)), readers=frozenset([row.actor_id]))


def scopes_showing(connection: Connection, person_id: UUID) -> list[str]:
    """Every scope that shows a person's name. To be called after the change, in its transaction: its lock keeps new ones out."""
    rows = connection.execute(_SHOWING, {"id": person_id}).all()
    scopes = {f"person:{person_id}"}
    for row in rows:
        scopes |= {f"appointment:{row.id}", f"person:{row.doctor_id}", f"person:{row.patient_id}"}
    if connection.execute(text("select exists (select from doctors where id = :id)"), {"id": person_id}).scalar_one():
        scopes |= {f"doctor:{person_id}", "directory", "directory-free"}
    return sorted(scopes)


_SHOWING = text("select id, doctor_id, patient_id from appointments where doctor_id = :id or patient_id = :id")


def instant(at: datetime) -> str:
    """An instant in UTC, as the contract writes it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def money(amount: int, currency: str) -> dict[str, Any]:
    """An amount of minor units, as the contract writes it."""
    return {"amount": amount, "currency": currency}


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _next(cursor: str | None) -> dict[str, str]:
    return {} if cursor is None else {"next": cursor}


_NOW: ColumnElement[datetime] = func.statement_timestamp(type_=DateTime(timezone=True))


# The booking window, by the database's clock: a slot may be booked if it starts no sooner and no later than this.
def _soonest(limits: Limits) -> ColumnElement[datetime]:
    return _NOW + timedelta(seconds=limits.booking_notice)


def _latest(limits: Limits) -> ColumnElement[datetime]:
    return _NOW + timedelta(days=limits.booking_horizon_days)


def _fresh_until(limits: Limits, leaves: datetime | None, enters: datetime | None) -> datetime | None:
    """When time alone changes what is bookable: the next slot leaves the booking window, or another one enters it."""
    turns = []
    if leaves is not None:
        turns.append(leaves - timedelta(seconds=limits.booking_notice))
    if enters is not None:
        turns.append(enters - timedelta(days=limits.booking_horizon_days))
    return min(turns, default=None)


_VERIFIED = DoctorRecord.status == "verified"
_OPEN = SlotRecord.status == "open"
_OWN_OPEN = and_(SlotRecord.doctor_id == DoctorRecord.id, _OPEN)


def _cards(connection: Connection, cache: Cache, wanted: Sequence[Wanted]) -> list[Filled | None]:
    return _doctors(connection, cache, [UUID(scope.removeprefix("doctor:")) for scope, _ in wanted], bio=False)


def _doctors(connection: Connection, cache: Cache, ids: Sequence[UUID], *, bio: bool) -> list[Filled | None]:
    limits = cache.settings.limits
    first = select(func.min(SlotRecord.starts_at)).where(_OWN_OPEN).correlate(DoctorRecord)
    registered = (
        select(func.jsonb_object_agg(DoctorSpecialty.code, DoctorSpecialty.rqe))
        .where(DoctorSpecialty.doctor_id == DoctorRecord.id)
        .correlate(DoctorRecord)
    )
    rows = connection.execute(
        select(
            *_DOCTOR_COLUMNS,
            DoctorRecord.bio,
            DoctorRecord.price,
            DoctorRecord.currency,
            DoctorRecord.timezone,
            registered.scalar_subquery().label("specialties"),
            first.where(SlotRecord.starts_at.between(_soonest(limits), _latest(limits))).scalar_subquery().label("next_slot_at"),
            first.where(SlotRecord.starts_at > _latest(limits)).scalar_subquery().label("enters"),
        ).where(DoctorRecord.id.in_(ids), _VERIFIED)
    )
    found = {row.doctor_id: row for row in rows}
    return [_doctor(found[each], limits, bio) if each in found else None for each in ids]


_DOCTOR_COLUMNS = (
    DoctorRecord.id.label("doctor_id"),
    DoctorRecord.name.label("doctor_name"),
    DoctorRecord.crm_number,
    DoctorRecord.crm_suffix,
    DoctorRecord.crm_state,
)


def _doctor_named(row: Row[Any]) -> dict[str, Any]:
    crm = Crm(row.crm_number, row.crm_suffix, row.crm_state)
    return {"id": str(row.doctor_id), "name": row.doctor_name, "crm": str(crm)}


def _doctor(row: Row[Any], limits: Limits, bio: bool) -> Filled:
    rqes = row.specialties or {}
    body = {
        **_doctor_named(row),
        "specialties": [
            {"code": code, "name": each.name, "rqe": rqes[code]} for code, each in SPECIALTIES.items() if code in rqes
        ],
        "price": money(row.price, row.currency),
        "timezone": row.timezone,
        "next_slot_at": row.next_slot_at and instant(row.next_slot_at),
    }
    if bio:
        body["bio"] = row.bio
    # While there is a next slot, one that comes within reach at the far end of the window changes nothing.
    enters = row.enters if row.next_slot_at is None else None
    return Filled(_json(body), _fresh_until(limits, row.next_slot_at, enters))


# A midnight that a change of clocks skips or repeats is read one way here and another way there: three hours more, then by date.
_AGENDA = text(
    """
    select doctors.timezone, doctors.price, doctors.currency, first.day as first_day,
           slots.id, slots.starts_at, slots.ends_at, slots.price as own_price,
           slots.starts_at > statement_timestamp() + :horizon as enters
    from doctors
    cross join lateral (
        select coalesce(cast(:from_ as date), cast(statement_timestamp() at time zone doctors.timezone as date)) as day
    ) as first
    left join slots on slots.doctor_id = doctors.id and slots.status = 'open'
        and slots.starts_at >= statement_timestamp() + :notice
        and slots.starts_at >= cast(first.day as timestamp) at time zone doctors.timezone - interval '3 hours'
        and slots.starts_at < cast(first.day + :days as timestamp) at time zone doctors.timezone + interval '3 hours'
    where doctors.id = :doctor_id and doctors.status = 'verified'
    order by slots.starts_at
    """
)


def _agenda(connection: Connection, cache: Cache, doctor_id: UUID, from_: date | None, days: int) -> Filled | None:
    limits = cache.settings.limits
    rows = connection.execute(
        _AGENDA,
        {
            "doctor_id": doctor_id,
            "from_": from_,
            "days": days,
            "notice": timedelta(seconds=limits.booking_notice),
            "horizon": timedelta(days=limits.booking_horizon_days),
        },
    ).all()
    if not rows:
        return None
    one, zone = rows[0], ZoneInfo(rows[0].timezone)
    by_day: dict[date, list[dict[str, Any]]] = {one.first_day + timedelta(days=n): [] for n in range(days)}
    leaves = enters = None
    for row in rows:
        if row.id is None or (day := row.starts_at.astimezone(zone).date()) not in by_day:
            continue
        if row.enters:
            enters = enters or row.starts_at
            continue
        leaves = leaves or row.starts_at
        price = one.price if row.own_price is None else row.own_price
        by_day[day].append(
            {
                "id": str(row.id),
                "starts_at": row.starts_at.astimezone(zone).isoformat(),
                "ends_at": row.ends_at.astimezone(zone).isoformat(),
                "price": money(price, one.currency),
            }
        )
    body = {
        "doctor_id": str(doctor_id),
        "timezone": one.timezone,
        "price": money(one.price, one.currency),
        "days": [{"date": day.isoformat(), "slots": slots} for day, slots in by_day.items()],
    }
    turns = [_fresh_until(limits, leaves, enters)]
    if from_ is None:
        turns.append(datetime.combine(one.first_day + timedelta(days=1), time(), zone).astimezone(UTC))
    return Filled(_json(body), min((turn for turn in turns if turn is not None), default=None))


def _search(connection: Connection, cache: Cache, query: SearchQuery, after: Any, free: bool) -> Filled:
    limits = cache.settings.limits
    wanted = and_(*_conditions(query, limits))
    counted = select(literal(1)).select_from(DoctorRecord).where(wanted).limit(COUNTED).subquery()
    total = connection.execute(select(func.count()).select_from(counted)).scalar_one()
    if query.sort == "next_slot":
        rows = _by_next_slot(connection, limits, wanted, query, after, many=total == COUNTED)
    else:
        rows = _by_column(connection, wanted, query, after)
    page, more = rows[: query.page_size], rows[query.page_size :]
    cursor = None
    if more:
        cursor = _cursor(cache, query, [_plain(page[-1].key), str(page[-1].id)])
    fresh_until = None
    if free:  # any doctor's slot that leaves or enters the window may change a page: sooner than needed, but cheap to tell
        starts = select(func.min(SlotRecord.starts_at)).where(_OPEN)
        leaves, enters = connection.execute(
            select(
                starts.where(SlotRecord.starts_at >= _soonest(limits)).scalar_subquery(),
                starts.where(SlotRecord.starts_at > _latest(limits)).scalar_subquery(),
            )
        ).one()
        fresh_until = _fresh_until(limits, leaves, enters)
    return Filled(_json({"ids": [str(row.id) for row in page], "total": total, "next": cursor}), fresh_until)


def _conditions(query: SearchQuery, limits: Limits) -> Iterable[ColumnElement[bool]]:
    yield _VERIFIED
    if query.specialty:
        yield or_(*_with_specialty(query.specialty))
    if query.q:
        try:
            key = name_key(query.q)
        except Malformed as error:
            raise Invalid({"q": [str(error)]}) from None
        yield DoctorRecord.search_name.contains(key, autoescape=True)
    if query.state is not None:
        yield DoctorRecord.crm_state == query.state.upper()
    if query.max_price is not None:
        yield DoctorRecord.price <= query.max_price
    if query.available_from is not None or query.available_until is not None:
        bookable = [_OWN_OPEN, SlotRecord.starts_at.between(_soonest(limits), _latest(limits))]
        if query.available_from is not None:
            bookable.append(SlotRecord.starts_at >= query.available_from)
        if query.available_until is not None:
            bookable.append(SlotRecord.starts_at < query.available_until)
        yield exists().where(*bookable).correlate(DoctorRecord)


def _with_specialty(codes: Sequence[str]) -> Iterable[ColumnElement[bool]]:
    registered = [code for code in codes if code != GENERAL_PRACTITIONER]
    if registered:
        yield DoctorRecord.id.in_(select(DoctorSpecialty.doctor_id).where(DoctorSpecialty.code.in_(registered)))
    if GENERAL_PRACTITIONER in codes:
        yield ~exists().where(DoctorSpecialty.doctor_id == DoctorRecord.id).correlate(DoctorRecord)


def _by_column(connection: Connection, wanted: ColumnElement[bool], query: SearchQuery, after: Any) -> Sequence[Row[Any]]:
    key: Any = DoctorRecord.price if query.sort == "price" else DoctorRecord.search_name
    found = select(DoctorRecord.id, key.label("key")).where(wanted).order_by(key, DoctorRecord.id)
    if after is not None:
        found = found.where(tuple_(key, DoctorRecord.id) > tuple_(literal(after[0]), literal(UUID(after[1]))))
    return connection.execute(_paged(found, query, after)).all()


def _by_next_slot(
    connection: Connection, limits: Limits, wanted: ColumnElement[bool], query: SearchQuery, after: Any, *, many: bool
) -> Sequence[Row[Any]]:
    """Doctors by their next free slot, those without one last.

    Few doctors are asked one by one. Where many are wanted, the open slots are walked in the order of time instead, taking each
    doctor's first: enough of them come soon, however many there are.
    """
    at = None if after is None or after[0] is None else datetime.fromisoformat(after[0])
    if many and (after is None or at is not None):
        rows = connection.execute(_paged(_walk(limits, wanted, at, after), query, after)).all()
        if len(rows) > query.page_size:
            return rows
    first = (
        select(func.min(SlotRecord.starts_at).label("starts_at"))
        .where(_OWN_OPEN, SlotRecord.starts_at.between(_soonest(limits), _latest(limits)))
        .correlate(DoctorRecord)
        .lateral("first")
    )
    key = first.c.starts_at
    found = (
        select(DoctorRecord.id, key.label("key"))
        .join(first, literal(True))
        .where(wanted)
        .order_by(key.nulls_last(), DoctorRecord.id)
    )
    if at is not None:
        found = found.where(or_(key.is_(None), tuple_(key, DoctorRecord.id) > tuple_(literal(at), literal(UUID(after[1])))))
    elif after is not None:
        found = found.where(key.is_(None), DoctorRecord.id > UUID(after[1]))
    return connection.execute(_paged(found, query, after)).all()


def _walk(limits: Limits, wanted: ColumnElement[bool], at: datetime | None, after: Any) -> Rows:
    earlier = SlotRecord.__table__.alias("earlier")
    walked: Rows = (
        select(SlotRecord.doctor_id.label("id"), SlotRecord.starts_at.label("key"))
        .join(DoctorRecord, DoctorRecord.id == SlotRecord.doctor_id)
        .where(
            _OPEN,
            SlotRecord.starts_at.between(_soonest(limits), _latest(limits)),
            wanted,
            ~exists()
            .where(
                earlier.c.doctor_id == SlotRecord.doctor_id,
                earlier.c.status == "open",
                earlier.c.starts_at >= _soonest(limits),
                earlier.c.starts_at < SlotRecord.starts_at,
            )
            .correlate(SlotRecord),
        )
        .order_by(SlotRecord.starts_at, SlotRecord.doctor_id)
    )
    if at is not None:
        walked = walked.where(tuple_(SlotRecord.starts_at, SlotRecord.doctor_id) > tuple_(literal(at), literal(UUID(after[1]))))
    return walked


def _paged(found: Rows, query: SearchQuery | AppointmentQuery, after: Any) -> Rows:
    """One row more than the page holds, which tells whether there is a next one."""
    found = found.limit(query.page_size + 1)
    return found if after is not None else found.offset((query.page - 1) * query.page_size)


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
        *_DOCTOR_COLUMNS,
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


def _appointments(
    connection: Connection, cache: Cache, person_id: UUID, role: Role, query: AppointmentQuery, after: Any
) -> Filled:
    own = AppointmentRecord.doctor_id if role is Role.DOCTOR else AppointmentRecord.patient_id
    conditions = [own == person_id]
    if query.status:
        conditions.append(AppointmentRecord.status.in_(query.status))
    if query.from_ is not None:
        conditions.append(AppointmentRecord.starts_at >= query.from_)
    if query.until is not None:
        conditions.append(AppointmentRecord.starts_at < query.until)
    fresh_until = None
    if query.overdue:
        accepted = AppointmentRecord.status == AppointmentStatus.ACCEPTED
        ends = select(func.min(AppointmentRecord.ends_at)).where(own == person_id, accepted, AppointmentRecord.ends_at > _NOW)
        fresh_until = connection.execute(ends).scalar_one()
        conditions += [accepted, AppointmentRecord.ends_at <= _NOW]
    counted = select(literal(1)).select_from(AppointmentRecord).where(*conditions).limit(COUNTED).subquery()
    total = connection.execute(select(func.count()).select_from(counted)).scalar_one()
    order = (AppointmentRecord.starts_at, AppointmentRecord.id)
    found: Rows = _APPOINTMENT.where(*conditions).order_by(*(column.desc() for column in order))
    if after is not None:
        found = found.where(tuple_(*order) < tuple_(literal(datetime.fromisoformat(after[0])), literal(UUID(after[1]))))
    rows = connection.execute(_paged(found, query, after)).all()
    page, more = rows[: query.page_size], rows[query.page_size :]
    cursor = _cursor(cache, query, [_plain(page[-1].starts_at), str(page[-1].id)], person_id) if more else None
    opened = _Opened(cache.settings.data_keys)
    body = {
        "items": [_listed(row, opened) for row in page],
        "page": query.page,
        "page_size": query.page_size,
        "total": total,
        **_next(cursor),
    }
    return _private(cache, _json(body), person_id, role, {row.patient_id for row in page}, fresh_until)


def _appointment(connection: Connection, cache: Cache, appointment_id: UUID, reader_id: UUID, role: Role) -> Filled | None:
    wanted = _APPOINTMENT.add_columns(AppointmentRecord.notes, _HISTORY).where(AppointmentRecord.id == appointment_id)
    row = connection.execute(wanted).one_or_none()
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
                **_given(reason=opened.of_patient(row, reason and bytes.fromhex(reason), f"history.reason.{position}")),
            }
            for position, (status, at, by, reason) in enumerate(row.history or (), start=1)
        ],
    }
    owner_id = row.doctor_id if role is Role.DOCTOR else row.patient_id
    return _private(cache, _json(body), owner_id, role, {row.patient_id}, None)


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
        "doctor": _doctor_named(row),
        "patient": {"id": str(row.patient_id), "name": opened.name(row)},
        "slot_id": str(row.slot_id),
        "starts_at": instant(row.starts_at),
        "ends_at": instant(row.ends_at),
        "price": money(row.price, row.currency),
        "status": row.status,
        "requested_at": instant(row.requested_at),
        **_given(
            reason=opened.of_patient(row, row.reason, "appointments.reason"),
            decided_at=row.decided_at and instant(row.decided_at),
            join_url=opened.of_patient(row, row.join_url, "appointments.join_url"),
        ),
    }


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


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
)


def _command(connection: Connection, cache: Cache, command_id: UUID) -> Filled | None:
    row = connection.execute(_COMMAND, {"id": command_id}).one_or_none()
    if row is None:
        return None
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
        "rules": [_given(**rule) for rule in row.rules or ()],
        "exceptions": [
            {
                "starts_at": instant(datetime.fromisoformat(each["starts_at"])),
                "ends_at": instant(datetime.fromisoformat(each["ends_at"])),
                **_given(reason=reason),
            }
            for each, reason in zip(exceptions, reasons, strict=True)
        ],
    }
    return Filled(_json(body), readers=frozenset([doctor_id]))


# A cursor holds its query and where its page begins, signed: so it works alone, and nobody can write one.
_SIGNATURE_BYTES = 12
_INSTANTS = ("available_from", "available_until", "from_", "until")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _document(query: SearchQuery | AppointmentQuery) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(query).items() if value not in (None, (), []) and name != "cursor"}


def _field(name: str, query: SearchQuery | AppointmentQuery, after: Any) -> str:
    """The field of a list's page: short, whatever was searched for."""
    return f"{name}:{hashlib.blake2b(_json({'query': _document(query), 'after': after}), digest_size=12).hexdigest()}"


def _cursor(cache: Cache, query: SearchQuery | AppointmentQuery, after: Any, owner_id: UUID | None = None) -> str:
    following = _document(replace(query, page=query.page + 1))
    content = _json({"query": following, "after": after})
    return base64.urlsafe_b64encode(_signature(cache, query, owner_id, content) + content).rstrip(b"=").decode()


def _resolved(cache: Cache, query: Query, owner_id: UUID | None = None) -> tuple[Query, Any]:
    """The query that a cursor stands for and where its page begins; a query without one as it is. Raises Invalid."""
    if query.cursor is None:
        return query, None
    try:
        decoded = base64.b64decode(query.cursor + "=" * (-len(query.cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        decoded = b""
    signature, content = decoded[:_SIGNATURE_BYTES], decoded[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(cache, query, owner_id, content)):
        raise Invalid({"cursor": ["Cursor inválido. / Not a cursor of this list."]})
    document = json.loads(content)
    for name in _INSTANTS:
        if name in document["query"]:
            document["query"][name] = datetime.fromisoformat(document["query"][name])
    return type(query)(**document["query"]), document["after"]


def _signature(cache: Cache, query: SearchQuery | AppointmentQuery, owner_id: UUID | None, content: bytes) -> bytes:
    purpose = f"cursor\0{type(query).__name__}\0{owner_id}\0".encode()
    return hmac.digest(cache.settings.hash_key, purpose + content, "sha256")[:_SIGNATURE_BYTES]
