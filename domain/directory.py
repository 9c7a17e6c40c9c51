"""The directory: the doctors whom anyone may find, the order in which they are found, and their agendas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache as once
from functools import lru_cache
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    Uuid,
    and_,
    bindparam,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
)

from domain.answers import COUNTED, NOW, PageQuery, Rows, as_json, asked, field, instant, money, paged, resolved, turned
from domain.cache import Answer, Cache, Filled, Wanted
from domain.database import PREPARED
from domain.errors import Invalid
from domain.identifiers import Crm, Malformed, name_key
from domain.model import DoctorRecord, DoctorSpecialty, SlotRecord
from domain.schedule import Limits
from domain.settings import Settings
from domain.specialties import GENERAL_PRACTITIONER, SPECIALTIES

WALKED = 100  # open slots that are looked at, in the order of time, for each doctor on a page and before it
MOST_WALKED = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery(PageQuery):
    """Which doctors, in which order. A `cursor` stands for the whole query that it came from, at its next page."""

    specialty: Sequence[str] = ()  # any of these
    q: str | None = None
    state: str | None = None
    min_price: int | None = None
    max_price: int | None = None
    available_from: datetime | None = None
    available_until: datetime | None = None
    sort: str = "name"  # or price, or next_slot


@once
def specialties() -> Answer:
    """All specialties that can be searched."""
    items = [{"code": each.code, "name": each.name, "registered": each.registered} for each in SPECIALTIES.values()]
    return Answer.of(Filled(as_json({"items": items})))


def doctor(cache: Cache, doctor_id: UUID) -> Answer:
    """One verified doctor, with `bio`. Raises NotFound."""
    return cache.read(*at_doctor(doctor_id), lambda connection: _doctors(connection, cache, [doctor_id], bio=True)[0])


def at_doctor(doctor_id: UUID | str) -> Wanted:
    """Where one doctor is cached."""
    return f"doctor:{doctor_id}", "doctor"


def agenda(cache: Cache, doctor_id: UUID, from_: date | None = None, days: int = 7) -> Answer:
    """A verified doctor's bookable slots, by local date, from the doctor's today unless told. Raises NotFound and Invalid."""
    if from_ is not None and not date(1900, 1, 1) <= from_ <= date(2999, 1, 1):
        raise Invalid({"from": ["A data está fora do que há na agenda. / No agenda reaches to this date."]})
    return cache.read(*at_agenda(doctor_id, from_, days), lambda connection: _agenda(connection, cache, doctor_id, from_, days))


def at_agenda(doctor_id: UUID | str, from_: date | None = None, days: int = 7) -> Wanted:
    """Where the days of an agenda are cached."""
    return f"agenda:{doctor_id}", f"agenda:{from_ or ''}:{days}"


def search(cache: Cache, query: SearchQuery) -> Answer:
    """A page of verified doctors: ids from the directory, cards from the doctors' scopes. Raises Invalid for a bad cursor."""
    query, after, (scope, name) = at_search(cache.settings, query)
    listed = cache.read(scope, name, lambda connection: _search(connection, cache, query, after, scope != "directory"))
    page = json.loads(listed.body)
    found = cache.read_many(at_cards(page), lambda connection, wanted: _cards(connection, cache, wanted))
    cards = [card for card in found if card is not None]
    body = page_body(query, page, [card.body for card in cards])
    return replace(Answer.of(Filled(body)), degraded=listed.degraded or any(card.degraded for card in cards))


def at_search(settings: Settings, query: SearchQuery) -> tuple[SearchQuery, Any, Wanted]:
    """The query as it is meant, where its page begins, and where the page's ids are cached. Raises Invalid for a bad cursor."""
    query, after = resolved(settings, replace(query, specialty=sorted(set(query.specialty))))
    if query.available_from is not None or query.available_until is not None:
        scope = "directory-dates"  # which any slot may change
    else:
        scope = "directory-free" if query.sort == "next_slot" else "directory"  # doctors' first ones, or none
    return query, after, (scope, field("search", query, after))


def at_cards(page: Mapping[str, Any]) -> list[Wanted]:
    """Where the cards of a page are cached."""
    return [(f"doctor:{doctor_id}", "card") for doctor_id in page["ids"]]


def page_body(query: SearchQuery, page: Mapping[str, Any], cards: Iterable[bytes]) -> bytes:
    """A page as it is answered: its cards in the place of its ids."""
    rest = {"page": query.page, "page_size": query.page_size, **page}
    del rest["ids"]
    return b'{"items":[' + b",".join(cards) + b"]," + as_json(rest)[1:]


def refill(connection: Connection, cache: Cache, scope: str, name: str) -> Filled | None:
    """What belongs in a field of a doctor's or an agenda's scope, or of one of the directory's."""
    what, _, rest = name.partition(":")
    if what == "search":
        query, after = asked(SearchQuery, rest)
        return _search(connection, cache, query, after, scope != "directory")
    doctor_id = UUID(scope.partition(":")[2])
    if what == "agenda":
        from_, _, days = rest.partition(":")
        return _agenda(connection, cache, doctor_id, date.fromisoformat(from_) if from_ else None, int(days))
    return _doctors(connection, cache, [doctor_id], bio=what == "doctor")[0]


# The booking window, by the database's clock: a slot may be booked if it starts no sooner and no later than this.
def _soonest(limits: Limits) -> ColumnElement[datetime]:
    return NOW + timedelta(seconds=limits.booking_notice)


def _latest(limits: Limits) -> ColumnElement[datetime]:
    return NOW + timedelta(days=limits.booking_horizon_days)


def _fresh_until(limits: Limits, leaves: datetime | None, enters: datetime | None) -> datetime | None:
    """When time alone changes what is bookable: the next slot leaves the booking window, or another one enters it."""
    turns = []
    if leaves is not None:
        turns.append(leaves - timedelta(seconds=limits.booking_notice))
    if enters is not None:
        turns.append(enters - timedelta(days=limits.booking_horizon_days))
    return min(turns, default=None)


def _bookable(limits: Limits) -> ColumnElement[bool]:
    return and_(_OPEN, SlotRecord.starts_at.between(_soonest(limits), _latest(limits)))


_VERIFIED = DoctorRecord.status == "verified"
_OPEN = SlotRecord.status == "open"


def _cards(connection: Connection, cache: Cache, wanted: Sequence[Wanted]) -> list[Filled | None]:
    return _doctors(connection, cache, [UUID(scope.removeprefix("doctor:")) for scope, _ in wanted], bio=False)


@once
def _shown(limits: Limits) -> Select[Any]:
    """What finds doctors as they are shown: made once, since that takes SQLAlchemy longer than to send it."""
    first = select(func.min(SlotRecord.starts_at)).where(SlotRecord.doctor_id == DoctorRecord.id).correlate(DoctorRecord)
    registered = (
        select(func.jsonb_object_agg(DoctorSpecialty.code, DoctorSpecialty.rqe))
        .where(DoctorSpecialty.doctor_id == DoctorRecord.id)
        .correlate(DoctorRecord)
    )
    return (
        select(
            *DOCTOR_COLUMNS,
            DoctorRecord.bio,
            DoctorRecord.price,
            DoctorRecord.currency,
            DoctorRecord.timezone,
            registered.scalar_subquery().label("specialties"),
            first.where(_bookable(limits)).scalar_subquery().label("next_slot_at"),
            first.where(_OPEN, SlotRecord.starts_at > _latest(limits)).scalar_subquery().label("enters"),
        )
        .where(DoctorRecord.id == func.any(bindparam("ids", type_=ARRAY(Uuid()))), _VERIFIED)
        .execution_options(**PREPARED)
    )


def _doctors(connection: Connection, cache: Cache, ids: Sequence[UUID], *, bio: bool) -> list[Filled | None]:
    limits = cache.settings.limits
    rows = connection.execute(_shown(limits), {"ids": ids})
    found = {row.doctor_id: row for row in rows}
    return [_doctor(found[each], limits, bio) if each in found else None for each in ids]


DOCTOR_COLUMNS = (
    DoctorRecord.id.label("doctor_id"),
    DoctorRecord.name.label("doctor_name"),
    DoctorRecord.crm_number,
    DoctorRecord.crm_suffix,
    DoctorRecord.crm_state,
)


def doctor_named(row: Row[Any]) -> dict[str, Any]:
    crm = Crm(row.crm_number, row.crm_suffix, row.crm_state)
    return {"id": str(row.doctor_id), "name": row.doctor_name, "crm": str(crm)}


def _doctor(row: Row[Any], limits: Limits, bio: bool) -> Filled:
    rqes = row.specialties or {}
    body = {
        **doctor_named(row),
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
    return Filled(as_json(body), _fresh_until(limits, row.next_slot_at, enters))


# A midnight that a change of clocks skips or repeats is read one way here and another way there: three hours more, then by date.
_AGENDA = text(
    """
    select doctors.timezone, doctors.price, doctors.currency, first.day as first_day,
           slots.id, slots.starts_at, slots.ends_at, slots.price as own_price,
           slots.starts_at > statement_timestamp() + cast(:horizon as interval) as enters
    from doctors
    cross join lateral (
        select coalesce(cast(:from_ as date), cast(statement_timestamp() at time zone doctors.timezone as date)) as day
    ) as first
    left join slots on slots.doctor_id = doctors.id and slots.status = 'open'
        and slots.starts_at >= statement_timestamp() + cast(:notice as interval)
        and slots.starts_at >= cast(first.day as timestamp) at time zone doctors.timezone - interval '3 hours'
        and slots.starts_at < cast(first.day + cast(:days as int) as timestamp) at time zone doctors.timezone + interval '3 hours'
    where doctors.id = :doctor_id and doctors.status = 'verified'
    order by slots.starts_at
    """
).execution_options(**PREPARED)


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
    return Filled(as_json(body), min((turn for turn in turns if turn is not None), default=None))


def _search(connection: Connection, cache: Cache, query: SearchQuery, after: Any, free: bool) -> Filled:
    limits = cache.settings.limits
    fresh_until = None
    # Any doctor's slot that leaves or enters the window may change a page: sooner than needed, but cheap to tell. It is told
    # before the page is read, or a slot that leaves in between would stay in it.
    if free:
        leaves, enters = connection.execute(_turns(limits)).one()
        fresh_until = _fresh_until(limits, leaves, enters)
    asked_alike = replace(query, specialty=tuple(query.specialty), cursor=None)
    total, rows = _found(connection, limits, asked_alike, None if after is None else tuple(after))
    page, following = turned(cache.settings, query, rows, "key")
    return Filled(as_json({"ids": [str(row.id) for row in page], "total": total, **following}), fresh_until)


@once
def _turns(limits: Limits) -> Select[datetime, datetime]:
    """When the next open slot leaves the booking window, and when another one enters it."""
    starts = select(func.min(SlotRecord.starts_at)).where(_OPEN)
    return select(
        starts.where(SlotRecord.starts_at >= _soonest(limits)).scalar_subquery(),
        starts.where(SlotRecord.starts_at > _latest(limits)).scalar_subquery(),
    )


def _wanted(limits: Limits, query: SearchQuery) -> ColumnElement[bool]:
    return and_(*_conditions(query, limits))


def _conditions(query: SearchQuery, limits: Limits) -> Iterable[ColumnElement[bool]]:
    yield _VERIFIED
    if query.specialty:
        yield _with_specialty(query.specialty)
    if query.state is not None:
        yield DoctorRecord.crm_state == query.state.upper()
    if query.min_price is not None:
        yield DoctorRecord.price >= query.min_price
    if query.max_price is not None:
        yield DoctorRecord.price <= query.max_price
    if query.q:
        try:
            key = name_key(query.q)
        except Malformed as error:
            raise Invalid({"q": [str(error)]}) from None
        yield DoctorRecord.search_name.contains(key, autoescape=True)
    if query.available_from is not None or query.available_until is not None:
        bookable = [SlotRecord.doctor_id == DoctorRecord.id, _bookable(limits)]
        if query.available_from is not None:
            bookable.append(SlotRecord.starts_at >= query.available_from)
        if query.available_until is not None:
            bookable.append(SlotRecord.starts_at < query.available_until)
        yield exists().where(*bookable).correlate(DoctorRecord)


def _with_specialty(codes: Sequence[str]) -> ColumnElement[bool]:
    registered = DoctorSpecialty.code.in_([code for code in codes if code != GENERAL_PRACTITIONER])
    own = DoctorSpecialty.doctor_id == DoctorRecord.id
    if GENERAL_PRACTITIONER not in codes:
        return DoctorRecord.id.in_(select(DoctorSpecialty.doctor_id).where(registered))
    if len(codes) == 1:
        return ~exists().where(own).correlate(DoctorRecord)
    # One look at each doctor's: joined by `or`, the two conditions would have everybody's specialties read first.
    any_of_them = select(func.bool_or(registered)).where(own).correlate(DoctorRecord).scalar_subquery()
    return func.coalesce(any_of_them, true())


def _found(
    connection: Connection, limits: Limits, query: SearchQuery, after: tuple[Any, ...] | None
) -> tuple[int, Sequence[Row[Any]]]:
    """How many doctors are wanted, as far as is counted, and a page of them.

    As few as are counted are put in order all at once. More of them than that stand close enough together to be met soon in
    the order of an index.
    """
    rows = connection.execute(_few(limits, query, after)).all()
    if rows[0].total < COUNTED:
        return rows[0].total, [row for row in rows if row.id is not None]
    if query.sort == "next_slot" and (after is None or after[0] is not None):
        rows = connection.execute(_walked(limits, query, after)).all()
        if len(rows) > query.page_size:
            return COUNTED, rows
    return COUNTED, connection.execute(_many(limits, query, after)).all()


# Made once for each query that many ask alike: to make one, and to recognise it, takes SQLAlchemy milliseconds.
_alike = lru_cache(maxsize=64)


@_alike
def _few(limits: Limits, query: SearchQuery, after: Any) -> Rows:
    """How many there are, up to COUNTED, and a page of them if they are fewer."""
    doctors = DoctorRecord.__table__
    counted = select(doctors.c.id, doctors.c.search_name, doctors.c.price).where(_wanted(limits, query)).limit(COUNTED)
    few = counted.cte("few").prefix_with("materialized")
    total = select(func.count()).select_from(few).scalar_subquery()
    page = paged(_in_order(few, limits, query, after).where(total < COUNTED), query, after).subquery("page")
    both: Rows = select(total.label("total"), page.c.id, page.c.key).select_from(
        select(1).subquery().outerjoin(page, literal(True))
    )
    return both.order_by(page.c.key.nulls_last(), page.c.id)


@_alike
def _walked(limits: Limits, query: SearchQuery, after: Any) -> Rows:
    return paged(_walk(limits, _wanted(limits, query), query, after), query, after)


@_alike
def _many(limits: Limits, query: SearchQuery, after: Any) -> Rows:
    return paged(_in_order(DoctorRecord.__table__, limits, query, after).where(_wanted(limits, query)), query, after)


def _in_order(doctors: FromClause, limits: Limits, query: SearchQuery, after: Any) -> Rows:
    """Doctors in the order that is asked for, those without a next free slot last."""
    found, key = doctors, doctors.c.price if query.sort == "price" else doctors.c.search_name
    if query.sort == "next_slot":
        own = and_(SlotRecord.doctor_id == doctors.c.id, _bookable(limits))
        first = select(func.min(SlotRecord.starts_at).label("starts_at")).where(own).correlate(doctors).lateral("first")
        found, key = doctors.join(first, literal(True)), first.c.starts_at
    ordered = select(doctors.c.id, key.label("key")).select_from(found).order_by(key.nulls_last(), doctors.c.id)
    if after is None:
        return ordered
    at, doctor_id = after[0], literal(UUID(after[1]))
    if at is None:
        return ordered.where(key.is_(None), doctors.c.id > doctor_id)
    if query.sort == "next_slot":
        at = datetime.fromisoformat(at)
    return ordered.where(or_(key.is_(None), tuple_(key, doctors.c.id) > tuple_(literal(at), doctor_id)))


def _walk(limits: Limits, wanted: ColumnElement[bool], query: SearchQuery, after: Any) -> Rows:
    """Doctors by their next free slot, met by walking the open slots in the order of time, as far as that is worth it."""
    near = select(SlotRecord.doctor_id, SlotRecord.starts_at).where(_bookable(limits))
    order = (SlotRecord.starts_at, SlotRecord.doctor_id)
    if after is not None:
        at, doctor_id = datetime.fromisoformat(after[0]), UUID(after[1])
        near = near.where(SlotRecord.starts_at >= at, tuple_(*order) > tuple_(literal(at), literal(doctor_id)))
    last = query.page_size * (query.page if after is None else 1) + 1
    slots = near.order_by(*order).limit(min(WALKED * last, MOST_WALKED)).subquery("near")
    earlier = SlotRecord.__table__.alias("earlier")
    is_first = ~exists().where(
        earlier.c.doctor_id == slots.c.doctor_id,
        earlier.c.status == "open",
        earlier.c.starts_at >= _soonest(limits),
        earlier.c.starts_at < slots.c.starts_at,
    ).correlate(slots)
    return (
        select(slots.c.doctor_id.label("id"), slots.c.starts_at.label("key"))
        .join(DoctorRecord, DoctorRecord.id == slots.c.doctor_id)
        .where(wanted, is_first)
        .order_by(slots.c.starts_at, slots.c.doctor_id)
    )
