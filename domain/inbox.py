"""The inbox: storing a command before anybody is told that it was accepted, and reading it back when it is decided."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text
from uuid_utils.compat import uuid7

from domain import personal, privacy
from domain.availability import Availability, Rule
from domain.commands import (
    Accept,
    AddSlot,
    Book,
    Cancel,
    ChangeSlot,
    Command,
    Complete,
    Erase,
    Expire,
    ExtendHorizon,
    Kind,
    NoShow,
    Refuse,
    Reschedule,
    SetAvailability,
    WithdrawSlot,
)
from domain.database import PREPARED
from domain.errors import Invalid, NotFound
from domain.schedule import Interval, Role
from domain.settings import Settings

SYSTEM: Final = UUID("00000000-0000-7000-8000-000000000000")  # the actor of what time brings
SECRET: Final = "commands.secret"  # the context under which a command's secret is sealed
PARKED: Final = -1  # the lane of what waits for other lanes: nobody drains it

COLUMNS: Final = (
    "id, lane, kind, actor_id, request_id, status, received_at, decided_at, batch_id, appointment_id, result, error_code,"
    " error_detail"
)
# The same of a command that was archived, which needs neither its lane nor its batch any more.
ARCHIVED: Final = COLUMNS.replace(" lane,", " null as lane,").replace(" batch_id,", " null as batch_id,")


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends a command, and the id of the request that brought it."""

    id: UUID
    role: Role
    request_id: str | None = None


def lane_of(person_id: UUID, lanes: int) -> int:
    """The lane of a schedule, the same in every process; it is stored at registration, so that a changed setting moves nobody."""
    return int.from_bytes(hashlib.sha256(person_id.bytes).digest()[:8]) % lanes


def send(
    connection: Connection,
    settings: Settings,
    sender: Sender,
    command: Command | Erase,
    *,
    key: str | None = None,
    fingerprint: bytes = b"",
) -> Row[Any]:
    """Store a command in the lane of the schedule it concerns; returns its row (`COLUMNS`). The caller commits, wakes, answers.

    With an idempotency `key`, whose `fingerprint` is method, path and parsed body, the same request of the same sender finds the
    command that is there already, whatever became of it. Raises NotFound for what is not there or not the sender's, and Invalid
    (`idempotency_key_reused`) for another request under the same key.
    """
    key_hash, request_hash = (None, None) if key is None else _hashes(settings, key, fingerprint)
    if isinstance(command, ChangeSlot):
        if key is not None and (found := sent_before(connection, settings, sender, key, fingerprint)) is not None:
            return found
        _refuse_empty_slot(connection, sender, command)
    command_id = uuid7()
    stored = _stored(command)
    secret = _sealed(connection, settings, sender.id, command_id, stored.secret)
    row = connection.execute(
        _SEND[stored.kind],
        {
            "id": command_id,
            "lane": lane_of(sender.id, settings.lanes),  # of what concerns no doctor's schedule
            "kind": stored.kind,
            "actor": sender.id,
            "role": sender.role,
            "slot_id": stored.slot_id,
            "appointment_id": stored.appointment_id,
            "payload": json.dumps(stored.payload or {}),
            "secret": secret,
            "key_hash": key_hash,
            "request_hash": request_hash,
            "request_id": sender.request_id,
        },
    ).one_or_none()
    if row is None and key is not None:  # the same request again; if it was sent twice at once, the other is committed by now
        row = sent_before(connection, settings, sender, key, fingerprint)
    if row is None:
        raise NotFound
    return row


def sent_before(connection: Connection, settings: Settings, sender: Sender, key: str, fingerprint: bytes) -> Row[Any] | None:
    """The command that this request stored when it was first sent, if it was. Raises Invalid (`idempotency_key_reused`)."""
    key_hash, request_hash = _hashes(settings, key, fingerprint)
    row = connection.execute(_SENT_BEFORE, {"actor": sender.id, "key_hash": key_hash}).one_or_none()
    # Of an erased person's requests not even the hash is left.
    if row is not None and row.request_hash is not None and bytes(row.request_hash) != request_hash:
        raise Invalid(
            detail="Esta Idempotency-Key já serviu a outro pedido. / This Idempotency-Key was used for another request.",
            code="idempotency_key_reused",
        )
    return row


def send_suspension(connection: Connection, settings: Settings, staff: Sender, doctor_id: UUID, reason: str) -> int | None:
    """Refuse a suspended doctor's open requests and cancel what was accepted, one command each; returns the lane to wake.

    The caller holds the doctor's row: however many there are, it is three statements.
    """
    key = personal.key_of(connection, settings, staff.id)
    if key is None:
        raise NotFound
    rows = []
    for row in connection.execute(_TO_COME, {"doctor_id": doctor_id}):
        command_id = uuid7()
        stored = _stored(Refuse(row.id, reason, "unavailable") if row.status == "requested" else Cancel(row.id, reason))
        secret = privacy.seal(key, json.dumps(stored.secret), context=SECRET, row_id=command_id)
        rows.append(
            {
                "id": str(command_id),
                "kind": stored.kind,
                "appointment_id": str(row.id),
                "payload": stored.payload or {},
                "secret": secret.hex(),
            }
        )
    parameters = {"rows": json.dumps(rows), "doctor_id": doctor_id, "actor": staff.id, "role": staff.role}
    lanes = connection.execute(_SEND_ALL, {**parameters, "request_id": staff.request_id}).scalars()
    return next(iter(lanes.all()), None)


def insert_due_expiries(connection: Connection) -> list[int]:
    """Store an `expire` for each request whose deadline has passed, once however many relays do so. Returns the lanes to wake.

    One that could not be decided waits again after a minute, since nothing else would ever free its slot.
    """
    # clock_timestamp() would bound no index: each look would read all requests that still have time.
    return list(
        connection.execute(
            text(
                "insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, appointment_id, payload, deadline)"
                " select uuidv7(), doctors.lane, 'expire', :system, 'system', doctors.id, due.id, '{}', due.expires_at"
                " from appointments due join doctors on doctors.id = due.doctor_id"
                " where due.status = 'requested' and due.expires_at <= statement_timestamp() and not exists (select from commands"
                f" where kind = 'expire' and appointment_id = due.id and deadline = due.expires_at and not {_FAILED})"
                " order by due.expires_at limit 1000"
                " on conflict (appointment_id, deadline) where kind = 'expire' do update set status = 'pending', attempts = 0,"
                " decided_at = null, batch_id = null, error_code = null, error_detail = null"
                f" where {_FAILED} returning commands.lane"
            ),
            {"system": SYSTEM},
        ).scalars()
    )


def insert_due_horizons(connection: Connection) -> list[int]:
    """Store today's `extend_horizon` for some of the doctors whose horizon has not moved today. Returns the lanes to wake.

    A few each second, the same ones first each day: nobody's booking is to wait behind the horizons of all doctors.
    """
    return list(
        connection.execute(
            text(
                "insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, payload, day)"
                " select uuidv7(), doctors.lane, 'extend_horizon', :system, 'system', doctors.id, '{}', current_date"
                " from availabilities due join doctors on doctors.id = due.doctor_id"
                " where due.extended_on < current_date and not exists (select from commands"
                " where kind = 'extend_horizon' and doctor_id = due.doctor_id and day = current_date)"
                " order by due.extended_on, due.doctor_id limit 25"
                " on conflict (doctor_id, day) where kind = 'extend_horizon' do nothing returning lane"
            ),
            {"system": SYSTEM},
        ).scalars()
    )


def restored(row: Any, secret: Mapping[str, Any]) -> Command:
    """The command that a row of the inbox holds, with what its sender wrote, already opened."""
    kind, payload = Kind(row.kind), row.payload
    match kind:
        case Kind.BOOK:
            return Book(row.slot_id, secret.get("notes"), payload.get("price"))
        case Kind.ACCEPT:
            return Accept(row.appointment_id, secret.get("join_url"))
        case Kind.REFUSE:
            return Refuse(row.appointment_id, secret.get("reason"), payload.get("refusal_kind"))
        case Kind.CANCEL:
            return Cancel(row.appointment_id, secret.get("reason"))
        case Kind.RESCHEDULE:
            return Reschedule(row.appointment_id, row.slot_id, secret.get("reason"), payload.get("price"))
        case Kind.COMPLETE:
            return Complete(row.appointment_id)
        case Kind.NO_SHOW:
            return NoShow(row.appointment_id)
        case Kind.EXPIRE:
            return Expire(row.appointment_id, row.deadline)
        case Kind.EXTEND_HORIZON:
            return ExtendHorizon(row.day)
        case Kind.SET_AVAILABILITY:
            held = restored_availability(payload["rules"], payload["exceptions"])
            return SetAvailability(held, tuple(secret.get("reasons", ())), payload.get("timezone"))
        case Kind.ADD_SLOT:
            return AddSlot(_interval(payload), payload.get("price"))
        case Kind.CHANGE_SLOT:
            return ChangeSlot(row.slot_id, _instant(payload, "starts_at"), _instant(payload, "ends_at"), payload.get("price"))
        case Kind.WITHDRAW_SLOT:
            return WithdrawSlot(row.slot_id)
        case Kind.ERASE:
            raise TypeError("an erasure touches no schedule")


def stored_availability(availability: Availability) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rules and exceptions as JSON holds them: local times as HH:MM, instants in UTC."""
    rules = [
        {
            "weekday": rule.weekday,
            "start": f"{rule.start:%H:%M}",
            "end": f"{rule.end:%H:%M}",
            "slot_minutes": rule.slot_minutes,
            "valid_from": rule.valid_from and rule.valid_from.isoformat(),
            "valid_until": rule.valid_until and rule.valid_until.isoformat(),
        }
        for rule in availability.rules
    ]
    return rules, [_stored_interval(each) for each in availability.time_off]


def restored_availability(rules: list[dict[str, Any]], exceptions: list[dict[str, Any]]) -> Availability:
    """The availability that `stored_availability` made JSON of."""
    return Availability(
        tuple(
            Rule(
                rule["weekday"],
                time.fromisoformat(rule["start"]),
                time.fromisoformat(rule["end"]),
                rule["slot_minutes"],
                date.fromisoformat(rule["valid_from"]) if rule["valid_from"] else None,
                date.fromisoformat(rule["valid_until"]) if rule["valid_until"] else None,
            )
            for rule in rules
        ),
        tuple(_interval(each) for each in exceptions),
    )


# Where a command goes: the schedule it concerns, found only if it is there and the sender may act on it.
_OWN = " from doctors where doctors.id = :actor"
_SLOT = " from slots join doctors on doctors.id = slots.doctor_id where slots.id = :slot_id"
_APPOINTMENT = (
    " from appointments join doctors on doctors.id = appointments.doctor_id where appointments.id = :appointment_id"
    " and (:role = 'staff' or appointments.doctor_id = :actor{or_patient})"
)
_AS_DOCTOR = _APPOINTMENT.format(or_patient="")
_TARGETS: Final[Mapping[Kind, str]] = {
    Kind.BOOK: _SLOT,
    Kind.ACCEPT: _AS_DOCTOR,
    Kind.REFUSE: _AS_DOCTOR,
    Kind.CANCEL: _APPOINTMENT.format(or_patient=" or appointments.patient_id = :actor"),
    Kind.RESCHEDULE: " from appointments join doctors on doctors.id = appointments.doctor_id"
    " where appointments.id = :appointment_id and appointments.patient_id = :actor"
    " and exists (select from slots where slots.id = :slot_id)",
    Kind.COMPLETE: _AS_DOCTOR,
    Kind.NO_SHOW: _AS_DOCTOR,
    Kind.SET_AVAILABILITY: _OWN,
    Kind.ADD_SLOT: _OWN,
    Kind.CHANGE_SLOT: _SLOT + " and doctors.id = :actor",
    Kind.WITHDRAW_SLOT: _SLOT + " and doctors.id = :actor",
    Kind.ERASE: " from (select cast(:lane as smallint) as lane, cast(null as uuid) as id) as doctors where true",
}
# Both by one snapshot, or a command that is just being archived would be in neither.
_NEW: Final = "".join(
    f" and not exists (select from {table} sent where sent.actor_id = :actor and sent.key_hash = :key_hash)"
    for table in ("commands", "archived_commands")
)
# Made once: to find the parameters in so long a text takes 140 microseconds.
_SEND: Final = {
    kind: text(
        "insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, slot_id, appointment_id, payload, secret,"
        f" key_hash, request_hash, request_id) select :id, doctors.lane, :kind, :actor, :role, doctors.id, :slot_id,"
        f" :appointment_id, cast(:payload as jsonb), :secret, :key_hash, :request_hash, :request_id {target}{_NEW}"
        f" on conflict (actor_id, key_hash) where key_hash is not null do nothing returning {COLUMNS}"
    ).execution_options(**PREPARED)
    for kind, target in _TARGETS.items()
}
_SENT_BEFORE: Final = text(
    f"select {COLUMNS}, request_hash from commands where actor_id = :actor and key_hash = :key_hash union all"
    f" select {ARCHIVED}, request_hash from archived_commands where actor_id = :actor and key_hash = :key_hash"
)


_TO_COME: Final = text(
    """
    select id, status from appointments where doctor_id = :doctor_id
        and (status = 'requested' or status = 'accepted' and starts_at > clock_timestamp()) order by starts_at
    """
)
_SEND_ALL: Final = text(
    """
    insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, appointment_id, payload, secret, request_id)
    select r.id, lane, kind, :actor, :role, doctors.id, appointment_id, payload, decode(secret, 'hex'), :request_id
    from doctors, rows from (jsonb_to_recordset(cast(:rows as jsonb))
        as (id uuid, kind text, appointment_id uuid, payload jsonb, secret text)) with ordinality
        as r (id, kind, appointment_id, payload, secret, place)
    where doctors.id = :doctor_id order by place returning lane
    """
)


_FAILED: Final = (
    "(commands.status = 'rejected' and commands.error_code = 'internal_error'"
    " and commands.decided_at < clock_timestamp() - interval '1 minute')"
)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A command as its row holds it: ids, what may be read, and what a person wrote."""

    kind: Kind
    slot_id: UUID | None = None
    appointment_id: UUID | None = None
    payload: dict[str, Any] | None = None
    secret: dict[str, Any] | None = None


def _stored(command: Command | Erase) -> _Stored:
    match command:
        case Book(slot_id, notes, price):
            return _Stored(Kind.BOOK, slot_id=slot_id, payload=_given(price=price), secret=_given(notes=notes))
        case Accept(appointment_id, join_url):
            return _Stored(Kind.ACCEPT, appointment_id=appointment_id, secret=_given(join_url=join_url))
        case Refuse(appointment_id, reason, refusal_kind):
            payload = _given(refusal_kind=refusal_kind)
            return _Stored(Kind.REFUSE, appointment_id=appointment_id, payload=payload, secret=_given(reason=reason))
        case Cancel(appointment_id, reason):
            return _Stored(Kind.CANCEL, appointment_id=appointment_id, secret=_given(reason=reason))
        case Reschedule(appointment_id, slot_id, reason, price):
            return _Stored(Kind.RESCHEDULE, slot_id, appointment_id, _given(price=price), _given(reason=reason))
        case Complete(appointment_id):
            return _Stored(Kind.COMPLETE, appointment_id=appointment_id)
        case NoShow(appointment_id):
            return _Stored(Kind.NO_SHOW, appointment_id=appointment_id)
        case SetAvailability(availability, reasons, timezone):
            rules, exceptions = stored_availability(availability)
            payload = {"rules": rules, "exceptions": exceptions, **_given(timezone=timezone)}
            return _Stored(Kind.SET_AVAILABILITY, payload=payload, secret=_given(reasons=list(reasons) if any(reasons) else None))
        case AddSlot(during, price):
            return _Stored(Kind.ADD_SLOT, payload={**_stored_interval(during), **_given(price=price)})
        case ChangeSlot(slot_id, starts_at, ends_at, price):
            payload = _given(starts_at=_utc(starts_at), ends_at=_utc(ends_at), price=price)
            return _Stored(Kind.CHANGE_SLOT, slot_id=slot_id, payload=payload)
        case WithdrawSlot(slot_id):
            return _Stored(Kind.WITHDRAW_SLOT, slot_id=slot_id)
        case Erase(session_id):
            return _Stored(Kind.ERASE, payload=_given(session_id=session_id and str(session_id)))
        case Expire() | ExtendHorizon():
            raise TypeError("only the relay stores what time brings")


def _hashes(settings: Settings, key: str, fingerprint: bytes) -> tuple[bytes, bytes]:
    """What is stored in the place of an idempotency key and of the request that it was sent with."""
    key_hash = privacy.look_up_hash(settings.hash_key, "idempotency_key", key)
    return key_hash, hmac.digest(settings.hash_key, fingerprint, "sha256")


def _refuse_empty_slot(connection: Connection, sender: Sender, command: ChangeSlot) -> None:
    slot = connection.execute(
        text("select starts_at, ends_at from slots where id = :id and doctor_id = :doctor_id"),
        {"id": command.slot_id, "doctor_id": sender.id},
    ).one_or_none()
    if slot is None:
        raise NotFound
    if (command.starts_at or slot.starts_at) >= (command.ends_at or slot.ends_at):
        raise Invalid({"ends_at": ["O fim tem de vir depois do início. / The end must come after the start."]})


def _sealed(
    connection: Connection, settings: Settings, sender_id: UUID, command_id: UUID, secret: Mapping[str, Any] | None
) -> bytes | None:
    if not secret:
        return None
    key = personal.key_of(connection, settings, sender_id)
    if key is None:  # erased meanwhile: whatever they wrote, the command is rejected before it is read
        return None
    return privacy.seal(key, json.dumps(secret), context=SECRET, row_id=command_id)


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _utc(instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(UTC).isoformat()


def _stored_interval(interval: Interval) -> dict[str, Any]:
    return {"starts_at": _utc(interval.starts_at), "ends_at": _utc(interval.ends_at)}


def _interval(stored: Mapping[str, Any]) -> Interval:
    return Interval(datetime.fromisoformat(stored["starts_at"]), datetime.fromisoformat(stored["ends_at"]))


def _instant(stored: Mapping[str, Any], name: str) -> datetime | None:
    return datetime.fromisoformat(stored[name]) if name in stored else None
