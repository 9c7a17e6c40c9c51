"""The one transaction that decides: lock a lane's waiting commands, read what the rules need, let them decide, write it all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text
from uuid_utils.compat import uuid7

from domain import erasure, inbox, metrics, privacy
from domain.booking import Decision, NewAvailability, Notice, Rejection, Schedule, Transition, decide
from domain.chains import link
from domain.commands import Envelope, Kind
from domain.database import PREPARED
from domain.schedule import Appointment, AppointmentStatus, Doctor, Interval, Limits, Patient, Role, Slot, SlotStatus
from domain.settings import Settings

# These look at the whole of a doctor's agenda, not at one slot of it.
_WIDE = (Kind.SET_AVAILABILITY, Kind.EXTEND_HORIZON, Kind.ADD_SLOT, Kind.CHANGE_SLOT)
_ALONE = (Kind.ERASE, Kind.SET_AVAILABILITY)
AGENDAS: Final = 8  # looked at by one batch: more would take longer than a transaction may


class Clash(Exception):
    """A constraint kept out what the rules had allowed: what they were shown was not the truth."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A committed batch: what it touched, and the commands it decided."""

    batch_id: UUID
    scopes: tuple[str, ...]
    commands: tuple[Row[Any], ...]


def decide_batch(
    connection: Connection,
    settings: Settings,
    *lanes: int,
    most: int | None = None,
    only: UUID | None = None,
    now: datetime | None = None,
) -> Decided | None:
    """Decide the oldest commands that wait in some lanes, `most` (or `LANE_BATCH`) at once, or `only` one; None if nothing waits.

    They are decided as at `now`, which is the present by the database's clock unless a demonstration's past is made.

    The caller commits. Locks are taken in one order everywhere: commands by seq, then doctors by id, then people by id.
    Raises Clash, and whatever the database or a faulty command raises: then nothing is changed.
    """
    with metrics.LOCK_WAIT_SECONDS.time():
        ids = _lock(connection, lanes, most or settings.lane_batch, only)
    if not ids:
        return None
    work = _read(connection, settings, ids, now)
    if work.commands[0].kind == Kind.ERASE:
        step = erasure.erase(connection, settings, work.commands[0])
        outcomes = [step.outcome] if step.outcome else []
        return _finish_commands(connection, outcomes, list(step.scopes), work.schedule.now)
    for row in work.commands:
        work.take(row, _decide(row, work))
    return _write(connection, work)


def reject(connection: Connection, command_id: UUID, code: str, detail: str) -> Decided | None:
    """Reject a command that can't be decided, without looking at what it asks; None if it was decided meanwhile."""
    row = connection.execute(
        text("select id from commands where id = :id and status = 'pending' for no key update"), {"id": command_id}
    ).one_or_none()
    if row is None:
        return None
    scopes = [f"command:{command_id}"]
    outcome = {"id": str(command_id), "status": "rejected", "error_code": code, "error_detail": detail}
    return _finish_commands(connection, [outcome], scopes, None)


@dataclass(slots=True)
class _Work:
    """What one batch has read and decided so far."""

    settings: Settings
    commands: Sequence[Row[Any]]
    schedule: Schedule
    wrapped: Mapping[UUID, bytes | None]  # people's data keys; None where it was destroyed
    histories: dict[UUID, tuple[int, bytes]]  # length and last hash, for each appointment that was there before
    slots: dict[UUID, Slot] = field(default_factory=dict)
    appointments: dict[UUID, Appointment] = field(default_factory=dict)
    texts: dict[UUID, dict[str, str | None]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    notices: dict[Notice, dict[str, Any]] = field(default_factory=dict)
    availabilities: dict[UUID, tuple[NewAvailability, bytes | None]] = field(default_factory=dict)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    scopes: dict[str, None] = field(default_factory=dict)  # ordered, each once
    keys: dict[UUID, bytes] = field(default_factory=dict)
    stored_slots: Mapping[UUID, Slot] = field(init=False)
    stored_appointments: Mapping[UUID, Appointment] = field(init=False)

    def __post_init__(self) -> None:
        self.stored_slots, self.stored_appointments = dict(self.schedule.slots), dict(self.schedule.appointments)

    def key_of(self, person_id: UUID) -> bytes:
        """The data key of one of the people that the batch has read."""
        if person_id not in self.keys:
            wrapped = self.wrapped[person_id]
            if wrapped is None:
                raise privacy.Unreadable
            self.keys[person_id] = privacy.unwrap(self.settings.data_keys, person_id, bytes(wrapped))
        return self.keys[person_id]

    def take(self, row: Row[Any], decision: Decision) -> None:
        """Keep one decision: let the commands after it meet it, and collect what is to be written."""
        self.scopes[f"command:{row.id}"] = None
        if isinstance(decision, Rejection):
            self.outcomes.append(
                {"id": str(row.id), "status": "rejected", "error_code": decision.code, "error_detail": decision.detail}
            )
            return
        self.schedule.apply(decision)
        self.outcomes.append(
            {
                "id": str(row.id),
                "status": "succeeded",
                "appointment_id": _text(decision.appointment_id),
                "result": decision.result,
            }
        )
        for slot in decision.slots:
            self.slots[slot.id] = slot
            self.touch(f"agenda:{slot.doctor_id}", "directory-dates")
        for appointment in decision.appointments:
            self._take_appointment(appointment)
        for step in decision.transitions:
            self.history.append(self._history(row, step))
        for notice in decision.notices:
            self.notices[notice] = _notice(row, notice)
        if (new := decision.availability) is not None:
            self._take_availability(new)

    def _take_appointment(self, appointment: Appointment) -> None:
        self.appointments[appointment.id] = appointment
        texts = self.texts.setdefault(appointment.id, {})
        if appointment.status is AppointmentStatus.REQUESTED:
            texts["join_url"] = None  # where an acceptance said to meet holds no longer once the request is open again
        written = appointment.texts
        given = {"notes": written.notes, "reason": written.reason, "join_url": written.join_url}
        texts.update({name: value for name, value in given.items() if value is not None})
        self.touch(f"appointment:{appointment.id}", f"person:{appointment.patient_id}", f"person:{appointment.doctor_id}")

    def _take_availability(self, new: NewAvailability) -> None:
        self.touch(f"doctor:{new.doctor_id}", f"agenda:{new.doctor_id}", f"person:{new.doctor_id}")
        if not new.put:
            if new.doctor_id not in self.availabilities:
                self.availabilities[new.doctor_id] = (new, None)
            return
        sealed = None
        if any(new.reasons):
            key, reasons = self.key_of(new.doctor_id), json.dumps(new.reasons)
            sealed = privacy.seal(key, reasons, context="availabilities.reasons", row_id=new.doctor_id)
        self.availabilities[new.doctor_id] = (new, sealed)

    def _history(self, row: Row[Any], step: Transition) -> dict[str, Any]:
        length, last = self.histories.get(step.appointment_id, (0, b""))
        reason = None
        if step.reason is not None:
            patient_id = self.schedule.appointments[step.appointment_id].patient_id
            key = self.key_of(patient_id)
            reason = privacy.seal(key, step.reason, context=f"history.reason.{length + 1}", row_id=step.appointment_id)
        entry = {
            "appointment_id": str(step.appointment_id),
            "position": length + 1,
            "status": step.status,
            "at": self.schedule.now.astimezone(UTC).isoformat(),
            "by": step.by,
            "actor_id": str(step.actor_id),
            "command_id": str(row.id),
            "reason": _hex(reason),
        }
        chained = link(last, entry)
        self.histories[step.appointment_id] = (length + 1, chained)
        return {**entry, "hash": chained.hex()}

    def touch(self, *scopes: str) -> None:
        for scope in scopes:
            self.scopes[scope] = None


def _decide(row: Row[Any], work: _Work) -> Decision:
    """What the rules say of one command. A closing person's is refused before anything of theirs is opened."""
    role = Role(row.actor_role)
    if role is Role.PATIENT and row.actor_status != "active":
        return Rejection("account_closed")
    secret: Mapping[str, Any] = {}
    if row.secret is not None:
        sealed, key = bytes(row.secret), work.key_of(row.actor_id)
        secret = json.loads(privacy.open_sealed(key, sealed, context=inbox.SECRET, row_id=row.id))
    envelope = Envelope(row.id, row.actor_id, role, row.doctor_id, row.received_at)
    return decide(envelope, inbox.restored(row, secret), work.schedule)


def _lock(connection: Connection, lanes: Sequence[int], limit: int, only: UUID | None) -> list[str]:
    parameters = {"lanes": list(lanes), "limit": limit, "only": only}
    # Whoever waited for another worker's rows finds them decided, and must look again before it believes that nothing is left.
    rows = connection.execute(_LOCK, parameters).all() or connection.execute(_LOCK, parameters).all()
    return [str(row.id) for row in rows]


def _read(connection: Connection, settings: Settings, ids: list[str], now: datetime | None) -> _Work:
    """Read what the rules need, in statements that come after the locks: so they see what the locks protect."""
    commands = _together(connection.execute(_READ_COMMANDS, {"ids": ids}).all())
    since = min(row.received_at for row in commands)
    named = _texts(row.appointment_id for row in commands)
    bookers = _texts(row.actor_id for row in commands if row.kind in (Kind.BOOK, Kind.RESCHEDULE))
    appointments = connection.execute(_READ_APPOINTMENTS, {"named": named, "patients": bookers, "since": since}).all()
    slots = [row for row in (*commands, *appointments) if row.slot_status is not None]
    wide = {row.doctor_id for row in commands if row.kind in _WIDE}
    # In the place of one that is let go of, and is not held, the rules make others.
    unheld = [row for row in slots if not row.held and row.slot_status in (SlotStatus.OPEN, SlotStatus.BOOKED)]
    if wide:
        parameters = {"doctors": _texts(wide), "since": since}
        slots = [*slots, *connection.execute(_READ_AGENDA_SLOTS, parameters)]
        appointments = [*appointments, *connection.execute(_READ_AGENDA_APPOINTMENTS, parameters)]
    if unheld:
        slots = [*slots, *connection.execute(_READ_SLOTS_AROUND, {"ids": _texts(row.slot_id for row in unheld)})]
    agendas: Sequence[Row[Any]] = ()
    if looked_at := _texts([*wide, *(row.slot_doctor_id for row in unheld)]):
        agendas = connection.execute(_READ_AVAILABILITIES, {"doctors": looked_at}).all()
    return _Work(
        settings=settings,
        commands=commands,
        schedule=Schedule(
            now=now or commands[0].now,
            limits=settings.limits,
            new_id=uuid7,
            doctors={row.doctor_id: _doctor(row) for row in commands if row.doctor_id},
            patients={row.patient_id: Patient(row.patient_id, row.patient_status != "active") for row in appointments}
            | {row.actor_id: Patient(row.actor_id, row.actor_status != "active") for row in commands},
            slots={row.slot_id: _slot(row) for row in slots},
            appointments={row.id: _appointment(row) for row in appointments},
            availabilities={row.doctor_id: inbox.restored_availability(row.rules, row.exceptions) for row in agendas},
        ),
        wrapped={row.patient_id: row.wrapped for row in appointments} | {row.actor_id: row.wrapped for row in commands},
        histories={row.id: (row.history_length, bytes(row.history_hash)) for row in appointments},
    )


def _together(rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """Those of a lane's first commands that are decided in one transaction; the rest waits for the next batch.

    An erasure, which looks at what those before it have written, and an edit are decided by themselves.
    """
    agendas: set[UUID] = set()
    for place, row in enumerate(rows):
        if row.kind in _WIDE:
            agendas.add(row.doctor_id)
        if row.kind in _ALONE or len(agendas) > AGENDAS:
            return rows[: max(place, 1)]
    return rows


def _texts(ids: Iterable[UUID | None]) -> list[str]:
    return sorted({str(each) for each in ids if each is not None})


def _doctor(row: Row[Any]) -> Doctor:
    verified, suspended = row.doctor_status == "verified", row.doctor_status == "suspended"
    return Doctor(row.doctor_id, verified, suspended, row.timezone, row.price, row.currency)


def _slot(row: Row[Any]) -> Slot:
    during = Interval(row.slot_starts_at, row.slot_ends_at)
    return Slot(row.slot_id, row.slot_doctor_id, during, SlotStatus(row.slot_status), row.held, row.extra, row.slot_price)


def _appointment(row: Row[Any]) -> Appointment:
    return Appointment(
        id=row.id,
        slot_id=row.slot_id,
        doctor_id=row.doctor_id,
        patient_id=row.patient_id,
        during=Interval(row.starts_at, row.ends_at),
        price=row.price,
        currency=row.currency,
        status=AppointmentStatus(row.status),
        requested_at=row.requested_at,
        expires_at=row.expires_at,
        decided_at=row.decided_at,
        reschedules=row.reschedules,
        sequence=row.sequence,
        refusal_kind=row.refusal_kind,
    )


def _write(connection: Connection, work: _Work) -> Decided:
    """Write final states. What moves leaves its constraints first, so that two appointments of one batch may swap places."""
    slots, appointments = work.slots.values(), work.appointments.values()
    if moved := [each.id for each in slots if each.id in work.stored_slots and work.stored_slots[each.id].during != each.during]:
        connection.execute(_LEAVE_SLOTS, {"ids": _texts(moved)})
    known = [each for each in appointments if each.id in work.stored_appointments]
    if any(work.stored_appointments[each.id].slot_id != each.slot_id for each in known):
        connection.execute(_LEAVE_APPOINTMENTS, {"ids": _texts(each.id for each in known)})
    for new, reasons in work.availabilities.values():
        _put_availability(connection, new, reasons, work.schedule.now)
    slot_rows = {each.id: _slot_row(each) for each in slots}
    appointment_rows = {each.id: _appointment_row(work, each) for each in appointments}
    return _finish_commands(
        connection,
        work.outcomes,
        list(work.scopes),
        work.schedule.now,
        changed_slots=[row for slot_id, row in slot_rows.items() if slot_id in work.stored_slots],
        new_slots=[row for slot_id, row in slot_rows.items() if slot_id not in work.stored_slots],
        changed_appointments=[row for each_id, row in appointment_rows.items() if each_id in work.stored_appointments],
        new_appointments=[row for each_id, row in appointment_rows.items() if each_id not in work.stored_appointments],
        history=work.history,
        notices=[*work.notices.values()],
        firsts=_firsts(work),
        limits=work.settings.limits,
    )


def _firsts(work: _Work) -> list[dict[str, Any]]:
    """Of each doctor whose slots change, when the first of these begins, or began before it was moved."""
    firsts: dict[UUID, datetime] = {}
    for slot in work.slots.values():
        for each in (slot, work.stored_slots.get(slot.id, slot)):
            firsts[slot.doctor_id] = min(each.during.starts_at, firsts.get(slot.doctor_id, each.during.starts_at))
    return [{"doctor_id": str(doctor_id), "starts_at": starts_at.isoformat()} for doctor_id, starts_at in firsts.items()]


def _finish_commands(
    connection: Connection,
    outcomes: Sequence[Mapping[str, Any]],
    scopes: list[str],
    decided_at: datetime | None,
    limits: Limits | None = None,
    **rows: Sequence[Mapping[str, Any]],
) -> Decided:
    """Write the `rows` of a batch, the scopes it touches and its outcomes, in one statement. Raises Clash: then nothing is."""
    parameters = {
        "rows": json.dumps({**rows, "outcomes": outcomes}),
        "guarded": sum(len(rows.get(name, ())) for name in _GUARDED),
        "batch_id": (batch_id := uuid7()),
        "scopes": scopes,
        "decided_at": decided_at,
        "notice": limits and limits.booking_notice,
        "horizon": limits and limits.booking_horizon_days,
        "first": outcomes[0]["id"] if outcomes else None,
    }
    decided = connection.execute(_FINISH, parameters).all()
    if len(decided) != len(outcomes):
        raise Clash
    moved = [doctor_id for row in decided for doctor_id in row.moved or ()]
    shown = (*(f"doctor:{doctor_id}" for doctor_id in moved), *(["directory-free"] if moved else ()))
    return Decided(batch_id, (*scopes, *shown), tuple(decided))


def _put_availability(connection: Connection, new: NewAvailability, reasons: bytes | None, now: datetime) -> None:
    rules, exceptions = inbox.stored_availability(new.availability)
    connection.execute(
        _PUT_AVAILABILITY if new.put else _MOVE_HORIZON,
        {
            "doctor_id": new.doctor_id,
            "rules": json.dumps(rules),
            "exceptions": json.dumps(exceptions),
            "reasons": reasons,
            "day": now.astimezone(UTC).date(),
        },
    )
    connection.execute(
        text("update doctors set timezone = :timezone where id = :id and timezone <> :timezone"),
        {"id": new.doctor_id, "timezone": new.timezone},
    )


def _appointment_row(work: _Work, each: Appointment) -> dict[str, Any]:
    length, last = work.histories[each.id]
    sealed = {
        name: _hex(privacy.seal(work.key_of(each.patient_id), written, context=f"appointments.{name}", row_id=each.id))
        for name, written in work.texts[each.id].items()
        if written is not None
    }
    return {
        "id": str(each.id),
        "slot_id": str(each.slot_id),
        "doctor_id": str(each.doctor_id),
        "patient_id": str(each.patient_id),
        "starts_at": each.during.starts_at.isoformat(),
        "ends_at": each.during.ends_at.isoformat(),
        "active": each.status.active,
        "status": each.status,
        "price": each.price,
        "currency": each.currency,
        "requested_at": each.requested_at.isoformat(),
        "expires_at": each.expires_at.isoformat(),
        "decided_at": each.decided_at and each.decided_at.isoformat(),
        "reschedules": each.reschedules,
        "sequence": each.sequence,
        "refusal_kind": each.refusal_kind,
        "history_length": length,
        "history_hash": last.hex(),
        "new_join_url": "join_url" in work.texts[each.id],
        **sealed,
    }


def _slot_row(each: Slot) -> dict[str, Any]:
    return {
        "id": str(each.id),
        "doctor_id": str(each.doctor_id),
        "starts_at": each.during.starts_at.isoformat(),
        "ends_at": each.during.ends_at.isoformat(),
        "status": each.status,
        "held": each.held,
        "extra": each.extra,
        "price": each.price,
    }


def _notice(row: Row[Any], notice: Notice) -> dict[str, Any]:
    return {
        "id": str(uuid7()),
        "person_id": str(notice.person_id),
        "appointment_id": str(notice.appointment_id),
        "kind": notice.kind,
        "due_at": notice.due_at.isoformat(),
        "sequence": notice.sequence,
        "starts_at": notice.during.starts_at.isoformat(),
        "ends_at": notice.during.ends_at.isoformat(),
        "command_id": str(row.id),
        "request_id": row.request_id,
    }


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


# Each array is filled before a row outside it is looked at, which keeps the order: commands, then doctors, then people.
_LOCK = text(
    """
    with batch as materialized (
        select id, seq, doctor_id, actor_id, actor_role, appointment_id from commands
        where status = 'pending' and id = any(array(
            select oldest.id from unnest(cast(:lanes as int[])) as wanted, lateral (
                select id, seq from commands
                where lane = wanted and status = 'pending' and (cast(:only as uuid) is null or id = :only)
                order by seq limit :limit
            ) as oldest order by oldest.seq limit :limit
        ))
        order by seq for no key update
    ), locked_doctors as materialized (
        select id from doctors where id = any(array(select doctor_id from batch)) order by id for no key update
    ), locked_people as materialized (
        select id from people where (select count(*) from locked_doctors) >= 0 and id = any(array(
            select actor_id from batch where actor_role = 'patient'
            union select patient_id from appointments where id = any(array(select appointment_id from batch))
        )) order by id for no key update
    )
    select id from batch where (select count(*) from locked_people) >= 0 order by seq
    """
).execution_options(**PREPARED)
_SLOT = """
    slots.doctor_id as slot_doctor_id, slots.starts_at as slot_starts_at, slots.ends_at as slot_ends_at,
    slots.status as slot_status, held, extra, slots.price as slot_price
"""
_READ_COMMANDS = text(
    f"""
    select commands.id, kind, actor_id, actor_role, commands.doctor_id, slot_id, appointment_id, payload, secret, deadline, day,
        received_at, request_id, clock_timestamp() as now, actors.status as actor_status, wrapped,
        doctors.status as doctor_status, doctors.timezone, doctors.price, currency, {_SLOT}
    from commands join people actors on actors.id = actor_id left join person_keys on person_id = actor_id
        left join doctors on doctors.id = commands.doctor_id left join slots on slots.id = slot_id
    where commands.id = any(cast(:ids as uuid[])) order by seq
    """
).execution_options(**PREPARED)
_APPOINTMENT = """
    appointments.id, slot_id, appointments.doctor_id, patient_id, appointments.starts_at, appointments.ends_at,
    appointments.price, currency, appointments.status, requested_at, expires_at, decided_at, reschedules, sequence,
    refusal_kind, history_length, history_hash, people.status as patient_status, wrapped
"""
_WITH_PATIENTS = "join people on people.id = patient_id left join person_keys on person_id = patient_id"
# By where they start, too, since that is indexed: none lasts longer than a day, and nobody's past is read again and again.
_NOT_OVER = "ends_at > :since and starts_at > cast(:since as timestamptz) - interval '1 day'"
# With each that a command names comes its slot.
_READ_APPOINTMENTS = text(
    f"""
    select {_APPOINTMENT}, {_SLOT} from appointments {_WITH_PATIENTS}
        left join slots on slots.id = case when appointments.id = any(cast(:named as uuid[])) then slot_id end
    where appointments.id = any(array(
        select unnest(cast(:named as uuid[]))
        union select id from appointments
        where patient_id = any(cast(:patients as uuid[])) and active and {_NOT_OVER}
    ))
    """
).execution_options(**PREPARED)
_READ_AGENDA_APPOINTMENTS = text(
    f"select {_APPOINTMENT} from appointments {_WITH_PATIENTS}"
    f" where doctor_id = any(cast(:doctors as uuid[])) and active and {_NOT_OVER}"
)
_READ_AGENDA_SLOTS = text(
    f"select id as slot_id, {_SLOT} from slots where doctor_id = any(cast(:doctors as uuid[])) and {_NOT_OVER}"
)
# Within a day of each.
_READ_SLOTS_AROUND = text(
    f"""
    select id as slot_id, {_SLOT} from slots where id = any(array(
        select around.id from slots freed join slots around on around.doctor_id = freed.doctor_id
            and around.starts_at between freed.starts_at - interval '2 days' and freed.ends_at + interval '1 day'
            and around.ends_at > freed.starts_at - interval '1 day' and around.status <> 'dropped'
        where freed.id = any(cast(:ids as uuid[]))
    ))
    """
).execution_options(**PREPARED)
_READ_AVAILABILITIES = text(
    "select doctor_id, rules, exceptions from availabilities where doctor_id = any(cast(:doctors as uuid[]))"
).execution_options(**PREPARED)
_LEAVE_APPOINTMENTS = text("update appointments set active = false where id = any(cast(:ids as uuid[]))")
_LEAVE_SLOTS = text("update slots set status = 'dropped' where id = any(cast(:ids as uuid[])) and status in ('open', 'booked')")

_SLOT_ROW = """
    (id uuid, doctor_id uuid, starts_at timestamptz, ends_at timestamptz, status text, held boolean, extra boolean, price bigint)
"""
_APPOINTMENT_ROW = """
    (id uuid, slot_id uuid, doctor_id uuid, patient_id uuid, starts_at timestamptz, ends_at timestamptz, active boolean,
     status text, price bigint, currency text, requested_at timestamptz, expires_at timestamptz, decided_at timestamptz,
     reschedules smallint, sequence smallint, refusal_kind text, notes text, reason text, join_url text, new_join_url boolean,
     history_length smallint, history_hash text)
"""
_GUARDED = ("changed_slots", "new_slots", "changed_appointments", "new_appointments")  # by constraints that skip what clashes
# All that a batch writes, in one round trip. What changes makes room for what is new, so it is counted first; what a constraint
# has skipped is not among the `guarded`, and then nothing else is written. A doctor's card, and the order by next free slot,
# change only if a first slot `moved`, while most bookings take a later one: the doctor's row is locked, so no other transaction
# changes the slots; that an earlier one came to be must be known by now. `record_batch` notes scopes where nothing is decided.
_FINISH = text(
    f"""
    with given as materialized (
        select cast(:rows as jsonb) as rows
    ), changed_slots as (
        update slots set
            during = tstzrange(r.starts_at, r.ends_at), status = r.status, held = r.held, extra = r.extra, price = r.price
        from given, jsonb_to_recordset(rows -> 'changed_slots') as r {_SLOT_ROW}
        where slots.id = r.id returning slots.id
    ), new_slots as (
        insert into slots (id, doctor_id, during, status, held, extra, price)
        select id, doctor_id, tstzrange(starts_at, ends_at), status, held, extra, price
        from given, jsonb_to_recordset(rows -> 'new_slots') as r {_SLOT_ROW}
        where (select count(*) from changed_slots) >= 0
        on conflict do nothing returning id
    ), changed_appointments as (
        update appointments set
            slot_id = r.slot_id, during = tstzrange(r.starts_at, r.ends_at), active = r.active, status = r.status,
            price = r.price, requested_at = r.requested_at, expires_at = r.expires_at, decided_at = r.decided_at,
            reschedules = r.reschedules, sequence = r.sequence, refusal_kind = r.refusal_kind,
            notes = coalesce(decode(r.notes, 'hex'), appointments.notes),
            reason = coalesce(decode(r.reason, 'hex'), appointments.reason),
            join_url = case when r.new_join_url then decode(r.join_url, 'hex') else appointments.join_url end,
            history_length = r.history_length, history_hash = decode(r.history_hash, 'hex')
        from given, jsonb_to_recordset(rows -> 'changed_appointments') as r {_APPOINTMENT_ROW}
        where appointments.id = r.id returning appointments.id
    ), new_appointments as (
        insert into appointments (id, slot_id, doctor_id, patient_id, during, active, status, price, currency, requested_at,
            expires_at, decided_at, reschedules, sequence, refusal_kind, notes, reason, join_url, history_length, history_hash)
        select id, slot_id, doctor_id, patient_id, tstzrange(starts_at, ends_at), active, status, price, currency, requested_at,
            expires_at, decided_at, reschedules, sequence, refusal_kind, decode(notes, 'hex'), decode(reason, 'hex'),
            decode(join_url, 'hex'), history_length, decode(history_hash, 'hex')
        from given, jsonb_to_recordset(rows -> 'new_appointments') as r {_APPOINTMENT_ROW}
        where (select count(*) from changed_appointments) >= 0
        on conflict do nothing returning id
    ), unclashed as materialized (
        select rows from given where ({" + ".join(f"(select count(*) from {each})" for each in _GUARDED)}) = cast(:guarded as int)
    ), written as (
        insert into history (appointment_id, position, status, at, by, actor_id, command_id, reason, hash)
        select appointment_id, position, status, at, by, actor_id, command_id, decode(reason, 'hex'), decode(hash, 'hex')
        from unclashed, jsonb_to_recordset(rows -> 'history') as r
            (appointment_id uuid, position smallint, status text, at timestamptz, by text, actor_id uuid, command_id uuid,
             reason text, hash text)
        on conflict do nothing returning position
    ), told as (
        insert into notices
            (id, person_id, appointment_id, kind, due_at, sequence, during, command_id, request_id, next_try_at)
        select id, person_id, appointment_id, kind, due_at, sequence, tstzrange(starts_at, ends_at), command_id, request_id,
            due_at
        from unclashed, jsonb_to_recordset(rows -> 'notices') as r
            (id uuid, person_id uuid, appointment_id uuid, kind text, due_at timestamptz, sequence smallint,
             starts_at timestamptz, ends_at timestamptz, command_id uuid, request_id text)
        on conflict (appointment_id, person_id, kind, due_at) where appointment_id is not null
        do update set sequence = excluded.sequence, during = excluded.during, next_try_at = excluded.next_try_at,
            command_id = excluded.command_id, request_id = excluded.request_id, dropped_at = null, drop_reason = null
        where notices.sent_at is null
    ), moved as materialized (
        select first.doctor_id
        from given, jsonb_to_recordset(rows -> 'firsts') as first (doctor_id uuid, starts_at timestamptz)
        where not exists (
            select from slots
            where slots.doctor_id = first.doctor_id and status = 'open' and slots.starts_at < first.starts_at
                and slots.starts_at >= statement_timestamp() + cast(:notice as int) * interval '1 second'
                and slots.starts_at <= statement_timestamp() + cast(:horizon as int) * interval '1 day'
        ) or exists (select from batches where finished_at is null and 'doctor:' || first.doctor_id = any(scopes))
    ), recorded as (
        insert into batches (id, scopes)
        select cast(:batch_id as uuid), cast(:scopes as text[]) || array(select 'doctor:' || doctor_id from moved)
            || array(select 'directory-free' from moved limit 1)
        from unclashed
    )
    update commands set
        status = r.status, appointment_id = coalesce(r.appointment_id, commands.appointment_id), result = r.result,
        error_code = r.error_code, error_detail = r.error_detail, batch_id = cast(:batch_id as uuid), secret = null,
        decided_at = coalesce(cast(:decided_at as timestamptz), clock_timestamp())
    from unclashed, jsonb_to_recordset(rows -> 'outcomes') as r
        (id uuid, status text, appointment_id uuid, result jsonb, error_code text, error_detail text)
    where commands.id = r.id
        and (select count(*) from written) = coalesce(jsonb_array_length(rows -> 'history'), 0)
    returning {", ".join(f"commands.{column}" for column in inbox.COLUMNS.split(", "))},
        case when commands.id = cast(:first as uuid) then array(select doctor_id from moved) end as moved
    """
).execution_options(**PREPARED)
_PUT_AVAILABILITY = text(
    """
    insert into availabilities (doctor_id, rules, exceptions, reasons, extended_on)
    values (:doctor_id, cast(:rules as jsonb), cast(:exceptions as jsonb), :reasons, :day)
    on conflict (doctor_id) do update set
        rules = excluded.rules, exceptions = excluded.exceptions, reasons = excluded.reasons, extended_on = excluded.extended_on
    """
)
_MOVE_HORIZON = text("update availabilities set extended_on = :day where doctor_id = :doctor_id")
