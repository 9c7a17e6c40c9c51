"""What people must be told: claiming notices, whether it still has a point, and what its mail may say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Row, text
from uuid_utils.compat import uuid7

from domain import privacy
from domain.database import PREPARED
from domain.errors import Conflict, NotFound
from domain.identifiers import Crm
from domain.privacy import KeyRing
from domain.schedule import AppointmentStatus, Interval, Role

CLAIM_SECONDS: Final = 60  # longer than any attempt lasts: the task that makes it is killed before
GIVE_UP_AFTER: Final = timedelta(days=1)
FAULTS: Final = 5  # attempts at a mail that we ourselves can't write

FIRST_PAUSE_SECONDS: Final = 10
SECRET: Final = "notices.secret"  # the context under which a notice's secret is sealed
_LONGEST_PAUSE = timedelta(minutes=4)
_LONGEST_PAUSE_AFTER_REFUSAL = timedelta(hours=1)


class Kind(StrEnum):
    """What a notice tells."""

    REQUESTED = "requested"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    RESCHEDULED = "rescheduled"
    EXPIRED = "expired"
    REMINDER = "reminder"
    ALREADY_REGISTERED = "already_registered"
    CONFIRM_EMAIL = "confirm_email"  # to the address that is to be confirmed, whosever it may be
    EMAIL_CHANGING = "email_changing"  # to the address that the account has until then
    PASSWORD_FORGOTTEN = "password_forgotten"
    PASSWORD_CHANGED = "password_changed"
    TOTP_ON = "totp_on"
    TOTP_OFF = "totp_off"


# How long the secret link that a mail brings is good.
LINK_LIFE: Final[Mapping[str, timedelta]] = {
    Kind.CONFIRM_EMAIL: timedelta(days=1),
    Kind.PASSWORD_FORGOTTEN: timedelta(minutes=30),
}


class Drop(StrEnum):
    """Why a notice is never sent."""

    TOO_LATE = "too_late"
    NOT_ACCEPTED = "not_accepted"  # a reminder of a visit that will not be
    MOVED = "moved"  # a reminder of a time that no longer holds
    ERASED = "erased"  # there is nobody left to tell
    REFUSED = "address_refused"  # for a day, by the mail server: staff should ask the person for another address
    UNDELIVERABLE = "undeliverable"  # for a day, whatever the reason
    FAULTY = "faulty"  # our own mistake, told in the log


UNDELIVERED: Final = (Drop.REFUSED, Drop.UNDELIVERABLE, Drop.FAULTY)  # what somebody should have been told, and was not


class Failure(StrEnum):
    """How an attempt to send failed."""

    UNREACHABLE = "unreachable"  # nothing can be sent now, to anybody
    DELAYED = "delayed"  # the server asks to come back, or broke off
    REFUSED = "refused"  # the server will not have this mail or this address
    FAULTY = "faulty"  # we could not write the mail


@dataclass(frozen=True, slots=True)
class Notice:
    """A claimed notice, at its `attempts`-th attempt; `now` is when it was claimed, by the database's clock."""

    id: UUID
    person_id: UUID
    appointment_id: UUID | None
    kind: str  # a Kind, unless the row is faulty: one bad row stops no other
    due_at: datetime
    created_at: datetime
    sequence: int
    during: Interval | None
    request_id: str | None
    attempts: int
    now: datetime


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom a notice is for, opened."""

    role: Role
    name: str
    email: str
    language: str
    timezone: str


@dataclass(frozen=True, slots=True)
class Visit:
    """What a mail may tell of an appointment: never its notes."""

    appointment_id: UUID
    during: Interval  # as it was when the notice was made
    status: AppointmentStatus  # as it is now
    doctor: str
    crm: str
    patient: str | None  # None once the patient is erased
    deadline: datetime | None  # until when the doctor may decide, while that stands
    by: Role | None  # who ended it
    reason: str | None  # the doctor's or the staff's own words, for the patient
    refusal_kind: str | None
    join_url: str | None
    rescheduled: bool
    others: tuple[tuple[Interval, AppointmentStatus], ...]  # the doctor's other appointments of that day


@dataclass(frozen=True, slots=True)
class Letter:
    """All that the mail of one notice is written from."""

    notice: Notice
    recipient: Recipient
    visit: Visit | None
    token: str | None = None  # of the secret link that the mail brings


def tell(
    connection: Connection,
    person_id: UUID,
    kind: Kind,
    *,
    secret: Mapping[str, str] | None = None,
    key: bytes | None = None,
    request_id: str | None = None,
) -> None:
    """Have somebody told of what is no appointment, as soon as may be.

    `secret`, which is sealed under their `key` until the mail is sent, may hold a link's `token`, and an address `to` send it to.
    """
    notice_id = uuid7()
    sealed = privacy.seal(key, json.dumps(secret), context=SECRET, row_id=notice_id) if key and secret else None
    connection.execute(
        text(
            "insert into notices (id, person_id, kind, due_at, next_try_at, secret, request_id)"
            " select :id, :person_id, :kind, now, now, :secret, :request_id from clock_timestamp() as now"
        ),
        {"id": notice_id, "person_id": person_id, "kind": kind, "secret": sealed, "request_id": request_id},
    )


def claim(connection: Connection) -> Notice | None:
    """Take on the notice that has been due longest, as `claim_some` does."""
    return next(iter(claim_some(connection, 1)), None)


def claim_some(connection: Connection, most: int) -> list[Notice]:
    """Take on those notices that have been due longest: nobody else sends them for a minute. The caller commits, then sends.

    Of the notices about one appointment to one person only the oldest unsent one is ever claimed, so they arrive in order.
    """
    rows = connection.execute(_CLAIM, {"seconds": CLAIM_SECONDS, "most": most}).all()
    return [
        Notice(
            row.id, row.person_id, row.appointment_id, row.kind, row.due_at, row.created_at, row.sequence,
            None if row.starts_at is None else Interval(row.starts_at, row.ends_at), row.request_id, row.attempts, row.now,
        )
        for row in sorted(rows, key=lambda row: row.tried_at)
    ]  # fmt: skip


def release(connection: Connection, untried: Sequence[Notice]) -> None:
    """Leave to others what was claimed and not tried."""
    connection.execute(_RELEASE, {"ids": [each.id for each in untried]})


def letter(connection: Connection, ring: KeyRing, reminders: Sequence[int], notice: Notice) -> Letter | Drop:
    """What is to be written, as things stand now, or why nothing is. Raises privacy.Unreadable."""
    row = connection.execute(_LETTER, {"id": notice.id}).one()
    if row.recipient_private is None or row.recipient_key is None:
        return Drop.ERASED
    if notice.kind in LINK_LIFE and notice.now - notice.created_at >= LINK_LIFE[notice.kind]:
        return Drop.TOO_LATE
    drop = pointless(notice, _Standing.of(row), reminders) if notice.appointment_id is not None else None
    if drop is not None:
        return drop
    private = _private(ring, notice.person_id, row.recipient_key, row.recipient_private)
    secret = _secret(ring, notice, row)
    role = Role(row.role)
    timezone = row.doctor_timezone if role is Role.DOCTOR else row.timezone
    # Whoever wants an address to be theirs can't put words in a mail to it, not even as a name.
    name = "" if notice.kind == Kind.CONFIRM_EMAIL else private["name"]
    recipient = Recipient(role, name, secret.get("to", private["email"]), row.language, timezone)
    visit = _visit(connection, ring, notice, row, role) if notice.appointment_id else None
    return Letter(notice, recipient, visit, secret.get("token"))


def pointless(notice: Notice, appointment: _Standing, reminders: Sequence[int]) -> Drop | None:
    """Why nobody should be told any more, if so. What has happened is told however late, but nobody is called to what is past.

    A reminder has no point once the visit is off or moved, once it begins, or once the next of the `reminders` (seconds before
    the start) is due.
    """
    during = notice.during or appointment.during
    if notice.kind == Kind.REMINDER:
        if appointment.status is not AppointmentStatus.ACCEPTED:
            return Drop.NOT_ACCEPTED
        if notice.sequence != appointment.sequence:
            return Drop.MOVED
        if notice.now >= during.starts_at:
            return Drop.TOO_LATE
        later = (during.starts_at - timedelta(seconds=seconds) for seconds in reminders)
        return Drop.TOO_LATE if any(notice.due_at < moment <= notice.now for moment in later) else None
    if notice.kind == Kind.REQUESTED:
        deadline = appointment.expires_at if notice.sequence == appointment.sequence else during.starts_at
        return Drop.TOO_LATE if notice.now >= deadline else None
    if notice.kind == Kind.ACCEPTED:
        return Drop.TOO_LATE if notice.now >= during.ends_at else None
    return None


def mark_sent(connection: Connection, notice: Notice) -> None:
    """The mail server has taken it."""
    connection.execute(_SENT, {"id": notice.id})


def mark_failed(connection: Connection, notice: Notice, failure: Failure) -> None:
    """Leave it for later, or give it up."""
    match after(notice, failure):
        case Drop() as reason:
            drop(connection, notice, reason)
        case pause:
            connection.execute(
                text("update notices set claimed_until = null, next_try_at = clock_timestamp() + :pause where id = :id"),
                {"id": notice.id, "pause": pause},
            )


def drop(connection: Connection, notice: Notice, reason: Drop) -> None:
    """It is never sent, and staff can see why."""
    connection.execute(
        text(
            "update notices set dropped_at = clock_timestamp(), drop_reason = :reason, claimed_until = null, secret = null"
            " where id = :id"
        ),
        {"id": notice.id, "reason": reason},
    )


def after(notice: Notice, failure: Failure) -> timedelta | Drop:
    """How long to wait after a failed attempt: twice as long each time, four minutes at most, an hour after refusals.

    The world's trouble is given up a day after the notice was due; our own mistake, which time won't mend, after a few attempts.
    """
    if failure is Failure.FAULTY and notice.attempts >= FAULTS:
        return Drop.FAULTY
    if notice.now - max(notice.due_at, notice.created_at) >= GIVE_UP_AFTER:
        return Drop.REFUSED if failure is Failure.REFUSED else Drop.UNDELIVERABLE
    longest = _LONGEST_PAUSE_AFTER_REFUSAL if failure is Failure.REFUSED else _LONGEST_PAUSE
    doublings = min(notice.attempts - 1, 16)
    return min(timedelta(seconds=FIRST_PAUSE_SECONDS << doublings), longest)


def resend(connection: Connection, notice_id: UUID) -> UUID:
    """Have a notice mailed again; returns which one is: itself while it waits, else a copy that is due now.

    Raises NotFound, and Conflict for one that is not due yet, or that brought what only its recipient knows by now.
    """
    row = connection.execute(_AGAIN, {"id": notice_id}).one_or_none()
    if row is None:
        raise NotFound("Não há este aviso. / There is no such notice.")
    if not row.is_due:
        raise Conflict("Este aviso ainda não venceu. / This notice is not due yet.")
    if row.waits:
        connection.execute(text("update notices set next_try_at = clock_timestamp() where id = :id"), {"id": notice_id})
        return notice_id
    if row.kind in LINK_LIFE or row.kind == Kind.EMAIL_CHANGING:
        raise Conflict("O link deste aviso não é mais conhecido; a pessoa pode pedir outro. / Its link is no longer known here.")
    copied: UUID = connection.execute(_COPY, {"id": notice_id}).scalar_one()
    return copied


def are_due(connection: Connection) -> bool:
    """Whether a notice could be tried now."""
    return bool(connection.execute(_ARE_DUE).scalar_one())


def oldest_due(connection: Connection) -> timedelta | None:
    """For how long the oldest notice that is neither sent nor given up has been due; None if none is."""
    age: timedelta | None = connection.execute(
        text(
            "select max(statement_timestamp() - due_at) from notices where sent_at is null and dropped_at is null"
            " and due_at <= statement_timestamp() and next_try_at <= statement_timestamp() + :longest"
        ),
        {"longest": _LONGEST_PAUSE_AFTER_REFUSAL},
    ).scalar_one()
    return age


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where an appointment stands when its notice is about to be sent."""

    status: AppointmentStatus
    sequence: int
    during: Interval
    expires_at: datetime

    @classmethod
    def of(cls, row: Row[Any]) -> _Standing:
        return cls(AppointmentStatus(row.status), row.sequence, Interval(row.starts_at, row.ends_at), row.expires_at)


def _visit(connection: Connection, ring: KeyRing, notice: Notice, row: Row[Any], reader: Role) -> Visit:
    now = _Standing.of(row)
    during = notice.during or now.during
    by = None if row.ended_by is None else Role(row.ended_by)
    patient = texts = None
    if row.patient_private is not None and row.patient_key is not None:
        patient = _private(ring, row.patient_id, row.patient_key, row.patient_private)["name"]
        key = privacy.unwrap(ring, row.patient_id, bytes(row.patient_key))
        texts = {name: _text(key, row, name) for name in ("reason", "join_url")}
    # A patient's own words may tell of an illness, and nobody else's stand there when a patient has ended it.
    told = reader is Role.PATIENT and by in (Role.DOCTOR, Role.STAFF)
    return Visit(
        appointment_id=row.appointment_id,
        during=during,
        status=now.status,
        doctor=row.doctor_name,
        crm=str(Crm(row.crm_number, row.crm_suffix, row.crm_state)),
        patient=patient,
        deadline=now.expires_at if notice.sequence == now.sequence and by is None else None,
        by=by,
        reason=texts["reason"] if texts and told else None,
        refusal_kind=row.refusal_kind,
        join_url=texts["join_url"] if texts else None,
        rescheduled=row.reschedules > 0,
        others=_others(connection, row, during) if notice.kind == Kind.REQUESTED else (),
    )


def _others(connection: Connection, row: Row[Any], during: Interval) -> tuple[tuple[Interval, AppointmentStatus], ...]:
    local = during.starts_at.astimezone(ZoneInfo(row.doctor_timezone))
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    rows = connection.execute(
        _OTHERS,
        {"doctor_id": row.doctor_id, "id": row.appointment_id, "from_": day, "until": day + timedelta(days=1)},
    )
    return tuple((Interval(each.starts_at, each.ends_at), AppointmentStatus(each.status)) for each in rows)


def _private(ring: KeyRing, person_id: UUID, wrapped: bytes, sealed: bytes) -> dict[str, Any]:
    key = privacy.unwrap(ring, person_id, bytes(wrapped))
    opened: dict[str, Any] = json.loads(privacy.open_sealed(key, bytes(sealed), context="people.private", row_id=person_id))
    return opened


def _secret(ring: KeyRing, notice: Notice, row: Row[Any]) -> dict[str, str]:
    if row.secret is None:
        return {}
    key = privacy.unwrap(ring, notice.person_id, bytes(row.recipient_key))
    opened: dict[str, str] = json.loads(privacy.open_sealed(key, bytes(row.secret), context=SECRET, row_id=notice.id))
    return opened


def _text(key: bytes, row: Row[Any], name: str) -> str | None:
    sealed = getattr(row, name)
    if sealed is None:
        return None
    return privacy.open_sealed(key, bytes(sealed), context=f"appointments.{name}", row_id=row.appointment_id)


# Without an order the planner hopes to meet one soon, and reads the whole table, each second, when hardly any is due.
_ARE_DUE = text(
    """
    select exists (select from (
        select from notices where sent_at is null and dropped_at is null and next_try_at <= statement_timestamp()
        and (claimed_until is null or claimed_until <= statement_timestamp()) order by next_try_at limit 1) as first)
    """
)

# clock_timestamp() would bound no index: each look would read all reminders that are still to come.
# `not exists` would be joined: each mail would look at all that wait for one. This looks at them in turn, and stops at the first.
_CLAIM = text(
    """
    update notices set attempts = attempts + 1, claimed_until = clock_timestamp() + make_interval(secs => :seconds)
    where id = any(array(
        select id from notices due
        where sent_at is null and dropped_at is null and next_try_at <= statement_timestamp()
        and (claimed_until is null or claimed_until <= statement_timestamp())
        and (
            select true from notices older
            where older.appointment_id = due.appointment_id and older.person_id = due.person_id
            and older.sent_at is null and older.dropped_at is null
            and (older.due_at, older.sequence, older.id) < (due.due_at, due.sequence, due.id) limit 1) is null
        order by next_try_at limit :most for update skip locked))
    returning id, person_id, appointment_id, kind, due_at, created_at, sequence, lower(during) as starts_at,
        upper(during) as ends_at, request_id, attempts, next_try_at as tried_at, clock_timestamp() as now
    """
).execution_options(**PREPARED)
_SENT = text(
    "update notices set sent_at = clock_timestamp(), claimed_until = null, secret = null where id = :id"
).execution_options(**PREPARED)
_RELEASE = text(
    "update notices set claimed_until = null, attempts = attempts - 1"
    " where id = any(:ids) and sent_at is null and dropped_at is null"
)
_AGAIN = text(
    "select kind, due_at <= clock_timestamp() as is_due, sent_at is null and dropped_at is null as waits from notices"
    " where id = :id for no key update"
)
_COPY = text(
    """
    insert into notices (id, person_id, appointment_id, kind, due_at, sequence, during, command_id, request_id, next_try_at)
    select uuidv7(), person_id, appointment_id, kind, now, sequence, during, command_id, request_id, now
    from notices, clock_timestamp() as now where id = :id returning id
    """
)
_LETTER = text(
    """
    select notices.secret, recipient.role, recipient.language, recipient.timezone, recipient.private as recipient_private,
        recipient_key.wrapped as recipient_key, appointments.id as appointment_id, appointments.status,
        appointments.sequence, appointments.starts_at, appointments.ends_at, appointments.expires_at,
        appointments.reschedules, appointments.refusal_kind, appointments.reason, appointments.join_url,
        doctors.id as doctor_id, doctors.name as doctor_name, doctors.crm_number, doctors.crm_suffix, doctors.crm_state,
        doctors.timezone as doctor_timezone, patient.id as patient_id, patient.private as patient_private,
        patient_key.wrapped as patient_key, ended.by as ended_by
    from notices
    join people recipient on recipient.id = notices.person_id
    left join person_keys recipient_key on recipient_key.person_id = recipient.id
    left join appointments on appointments.id = notices.appointment_id
    left join doctors on doctors.id = coalesce(appointments.doctor_id, recipient.id)
    left join people patient on patient.id = appointments.patient_id
    left join person_keys patient_key on patient_key.person_id = patient.id
    left join history ended on ended.appointment_id = appointments.id and ended.position = appointments.history_length
        and ended.status in ('refused', 'cancelled', 'expired')
    where notices.id = :id
    """
).execution_options(**PREPARED)
_OTHERS = text(
    """
    select starts_at, ends_at, status from appointments
    where doctor_id = :doctor_id and active and id <> :id and starts_at >= :from_ and starts_at < :until order by starts_at
    """
).execution_options(**PREPARED)
