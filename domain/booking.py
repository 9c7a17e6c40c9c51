"""The rules of a schedule: a command and the state it meets go in, a decision comes out; no clock, no database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from domain import availability as rules
from domain.availability import Availability
from domain.commands import (
    Accept,
    AddSlot,
    Book,
    Cancel,
    ChangeSlot,
    Command,
    Complete,
    Envelope,
    Expire,
    ExtendHorizon,
    NoShow,
    Refuse,
    Reschedule,
    SetAvailability,
    WithdrawSlot,
)
from domain.schedule import (
    Appointment,
    AppointmentStatus,
    AppointmentTexts,
    Doctor,
    Interval,
    Limits,
    Patient,
    Role,
    Slot,
    SlotStatus,
)

REJECTIONS = {
    "slot_taken": "Este horário já foi reservado. / This slot is taken.",
    "slot_not_found": "Este horário não existe mais. / This slot is no longer there.",
    "slot_in_past": "Este horário já começou ou passou. / This slot has begun or is over.",
    "outside_booking_window": "Este horário está fora do prazo de reserva. / The slot is too soon or too far ahead.",
    "patient_busy": "Você já tem uma consulta neste horário. / You already have an appointment at that time.",
    "price_changed": "O preço mudou; confira o novo valor. / The price has changed; please look again.",
    "too_many_reschedules": "Esta consulta já foi remarcada vezes demais. / It was rescheduled too often.",
    "too_many_open_requests": "Há pedidos demais aguardando resposta. / Too many requests are waiting for an answer.",
    "invalid_transition": "A situação da consulta não permite isso. / The state of the appointment does not allow it.",
    "too_late_to_cancel": "O prazo para isso já passou. / It is too late for that.",
    "slot_overlaps": "O horário se sobrepõe a outro. / The slot overlaps another one.",
    "slot_not_open": "Só um horário livre pode ser alterado. / Only an open slot can be changed.",
    "doctor_not_bookable": "Este profissional não está recebendo agendamentos. / This doctor can't be booked.",
    "account_closed": "Esta conta está encerrada. / This account is closed.",
    "internal_error": "O pedido não pôde ser decidido; nada mudou. / It could not be decided; nothing was changed.",
}


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rule said no."""

    code: str

    @property
    def detail(self) -> str:
        """What a person reads of it."""
        return REJECTIONS[self.code]


@dataclass(frozen=True, slots=True)
class Transition:
    """One step in an appointment's life, as its history keeps it."""

    appointment_id: UUID
    status: AppointmentStatus
    by: Role
    actor_id: UUID
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """That a person must be told something of an appointment, at `due_at`: one kind at one instant is one notice."""

    appointment_id: UUID
    person_id: UUID
    kind: str
    due_at: datetime
    sequence: int = field(compare=False)
    during: Interval = field(compare=False)  # told as it is now, however late it is told


@dataclass(frozen=True, slots=True)
class NewAvailability:
    """What a doctor's availability became. `put` says that the doctor put it; else only its horizon moved."""

    doctor_id: UUID
    availability: Availability
    reasons: tuple[str | None, ...]
    timezone: str
    put: bool


@dataclass(frozen=True, slots=True)
class Effect:
    """What a command changes: whole new values of slots and appointments, and what follows from them."""

    slots: tuple[Slot, ...] = ()
    appointments: tuple[Appointment, ...] = ()
    transitions: tuple[Transition, ...] = ()
    notices: tuple[Notice, ...] = ()
    availability: NewAvailability | None = None
    appointment_id: UUID | None = None
    result: dict[str, Any] | None = None


Decision = Effect | Rejection


@dataclass(slots=True)
class Schedule:
    """The state that a batch's commands meet in turn; `now` is when they are decided, by the database's clock."""

    now: datetime
    limits: Limits
    new_id: Callable[[], UUID]
    doctors: dict[UUID, Doctor] = field(default_factory=dict)
    patients: dict[UUID, Patient] = field(default_factory=dict)
    slots: dict[UUID, Slot] = field(default_factory=dict)
    appointments: dict[UUID, Appointment] = field(default_factory=dict)
    availabilities: dict[UUID, Availability] = field(default_factory=dict)
    _of_patient: dict[UUID, set[UUID]] = field(default_factory=lambda: defaultdict(set))
    _of_doctor: dict[UUID, set[UUID]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for appointment in self.appointments.values():
            self._of_patient[appointment.patient_id].add(appointment.id)
        for slot in self.slots.values():
            self._of_doctor[slot.doctor_id].add(slot.id)

    def apply(self, effect: Effect) -> None:
        """Let the commands that follow meet what this effect changed."""
        for slot in effect.slots:
            self.slots[slot.id] = slot
            self._of_doctor[slot.doctor_id].add(slot.id)
        for appointment in effect.appointments:
            self.appointments[appointment.id] = appointment
            self._of_patient[appointment.patient_id].add(appointment.id)
        if (new := effect.availability) is not None:
            self.availabilities[new.doctor_id] = new.availability
            self.doctors[new.doctor_id] = replace(self.doctors[new.doctor_id], timezone=new.timezone)

    def active_of(self, patient_id: UUID, but: UUID | None = None) -> Iterable[Appointment]:
        """A patient's active appointments, all but one."""
        for each in self._of_patient[patient_id]:
            appointment = self.appointments[each]
            if appointment.status.active and each != but:
                yield appointment

    def slots_of(self, doctor_id: UUID) -> list[Slot]:
        """The slots of a doctor that the batch has read or made."""
        return [self.slots[each] for each in self._of_doctor[doctor_id]]

    @property
    def horizon(self) -> Interval:
        """How far slots are made: a day further than they may be booked, since the horizon moves once a day."""
        return Interval(self.now, self.now + timedelta(days=self.limits.booking_horizon_days + 1))


def decide(envelope: Envelope, command: Command, schedule: Schedule) -> Decision:
    """The decision on one command.

    Limits in time are judged at `envelope.received_at`, so that a backlog makes nobody late; only whether a freed slot
    is open again is judged at `schedule.now`.
    """
    match command:
        case Book():
            return _book(envelope, command, schedule)
        case Accept():
            return _accept(envelope, command, schedule)
        case Refuse():
            return _refuse(envelope, command, schedule)
        case Cancel():
            return _cancel(envelope, command, schedule)
        case Reschedule():
            return _reschedule(envelope, command, schedule)
        case Complete():
            return _close(envelope, command.appointment_id, AppointmentStatus.COMPLETED, schedule)
        case NoShow():
            return _close(envelope, command.appointment_id, AppointmentStatus.NO_SHOW, schedule)
        case Expire():
            return _expire(envelope, command, schedule)
        case SetAvailability():
            return _set_availability(envelope, command, schedule)
        case ExtendHorizon():
            return _extend_horizon(envelope, schedule)
        case AddSlot():
            return _add_slot(envelope, command, schedule)
        case ChangeSlot():
            return _change_slot(envelope, command, schedule)
        case WithdrawSlot():
            return _withdraw_slot(envelope, command, schedule)


def expires_at(requested_at: datetime, starts_at: datetime, limits: Limits) -> datetime:
    """When an undecided request lapses: so long after it was made, or so long before it starts, whichever is first."""
    return min(requested_at + timedelta(seconds=limits.request_ttl), starts_at - timedelta(seconds=limits.request_lead))


def _book(envelope: Envelope, command: Book, schedule: Schedule) -> Decision:
    patient = schedule.patients[envelope.actor_id]
    if patient.closing:
        return Rejection("account_closed")
    slot = schedule.slots.get(command.slot_id)
    doctor = schedule.doctors.get(slot.doctor_id) if slot else None
    if slot is None or doctor is None:
        return Rejection("slot_not_found")
    price = doctor.price if slot.price is None else slot.price
    if (no := _unbookable(envelope, slot, doctor, price, command.price, schedule)) is not None:
        return no
    if (no := _overcommitted(patient.id, doctor.id, slot.during, schedule)) is not None:
        return no
    appointment = Appointment(
        id=schedule.new_id(),
        slot_id=slot.id,
        doctor_id=doctor.id,
        patient_id=patient.id,
        during=slot.during,
        price=price,
        currency=doctor.currency,
        status=AppointmentStatus.REQUESTED,
        requested_at=envelope.received_at,
        expires_at=expires_at(envelope.received_at, slot.during.starts_at, schedule.limits),
        texts=AppointmentTexts(notes=command.notes),
    )
    return Effect(
        slots=(replace(slot, status=SlotStatus.BOOKED),),
        appointments=(appointment,),
        transitions=(_step(appointment, envelope),),
        notices=_tell(appointment, "requested", schedule, appointment.doctor_id),
        appointment_id=appointment.id,
    )


def _unbookable(
    envelope: Envelope, slot: Slot, doctor: Doctor, price: int, shown: int | None, schedule: Schedule
) -> Rejection | None:
    """Why nobody could take this slot now, if so."""
    starts_at, received_at, limits = slot.during.starts_at, envelope.received_at, schedule.limits
    if not doctor.verified or doctor.suspended:
        return Rejection("doctor_not_bookable")
    if not slot.occupies:
        return Rejection("slot_not_found")
    if starts_at <= received_at:
        return Rejection("slot_in_past")
    if slot.status is SlotStatus.BOOKED:
        return Rejection("slot_taken")
    soonest = received_at + timedelta(seconds=limits.booking_notice)
    if not soonest <= starts_at <= received_at + timedelta(days=limits.booking_horizon_days):
        return Rejection("outside_booking_window")
    if shown is not None and shown != price:
        return Rejection("price_changed")
    return None


def _overcommitted(
    patient_id: UUID, doctor_id: UUID, during: Interval, schedule: Schedule, moving: UUID | None = None
) -> Rejection | None:
    """Why this patient can't take this time, if so; the appointment that is being moved doesn't count."""
    others = list(schedule.active_of(patient_id, but=moving))
    if any(each.during.overlaps(during) for each in others):
        return Rejection("patient_busy")
    waiting = [each for each in others if each.status is AppointmentStatus.REQUESTED]
    with_doctor = sum(each.doctor_id == doctor_id for each in waiting)
    limits = schedule.limits
    if len(waiting) >= limits.max_open_requests or with_doctor >= limits.max_open_requests_per_doctor:
        return Rejection("too_many_open_requests")
    return None


def _accept(envelope: Envelope, command: Accept, schedule: Schedule) -> Decision:
    appointment = _own(envelope, command.appointment_id, schedule)
    if appointment is None or not _undecided(appointment, envelope):
        return Rejection("invalid_transition")
    if schedule.doctors[appointment.doctor_id].suspended:  # staff's refusal is on its way and would come too late
        return Rejection("doctor_not_bookable")
    accepted = replace(
        appointment,
        status=AppointmentStatus.ACCEPTED,
        decided_at=schedule.now,
        texts=AppointmentTexts(join_url=command.join_url),
    )
    both = (accepted.patient_id, accepted.doctor_id)
    return Effect(
        appointments=(accepted,),
        transitions=(_step(accepted, envelope),),
        notices=_tell(accepted, "accepted", schedule, *both) + _reminders(accepted, schedule, *both),
        appointment_id=accepted.id,
    )


def _refuse(envelope: Envelope, command: Refuse, schedule: Schedule) -> Decision:
    appointment = _own(envelope, command.appointment_id, schedule)
    if appointment is None or not _undecided(appointment, envelope):
        return Rejection("invalid_transition")
    refused = replace(_ended(appointment, AppointmentStatus.REFUSED, command.reason, schedule), refusal_kind=command.refusal_kind)
    told = [refused.patient_id]
    if appointment.reschedules:  # then it stands in the calendar of its doctor too
        told.append(refused.doctor_id)
    return Effect(
        slots=_freed(appointment, schedule),
        appointments=(refused,),
        transitions=(_step(refused, envelope, command.reason),),
        notices=_tell(refused, "refused", schedule, *told),
        appointment_id=refused.id,
    )


def _cancel(envelope: Envelope, command: Cancel, schedule: Schedule) -> Decision:
    appointment = _own(envelope, command.appointment_id, schedule)
    if appointment is None or not _to_come(appointment, envelope):
        return Rejection("invalid_transition")
    if _too_late(appointment, envelope, schedule):
        return Rejection("too_late_to_cancel")
    cancelled = _ended(appointment, AppointmentStatus.CANCELLED, command.reason, schedule)
    return Effect(
        slots=_freed(appointment, schedule),
        appointments=(cancelled,),
        transitions=(_step(cancelled, envelope, command.reason),),
        notices=_tell(cancelled, "cancelled", schedule, cancelled.patient_id, cancelled.doctor_id),
        appointment_id=cancelled.id,
    )


def _reschedule(envelope: Envelope, command: Reschedule, schedule: Schedule) -> Decision:
    appointment = _own(envelope, command.appointment_id, schedule)
    if appointment is None or not _to_come(appointment, envelope):
        return Rejection("invalid_transition")
    if schedule.patients[appointment.patient_id].closing:
        return Rejection("account_closed")
    if _too_late(appointment, envelope, schedule):
        return Rejection("too_late_to_cancel")
    if appointment.reschedules >= schedule.limits.max_reschedules:
        return Rejection("too_many_reschedules")
    doctor, slot = schedule.doctors[appointment.doctor_id], schedule.slots.get(command.slot_id)
    if slot is None or slot.doctor_id != doctor.id:
        return Rejection("slot_not_found")
    price = doctor.price if slot.price is None else slot.price
    if (no := _unbookable(envelope, slot, doctor, price, command.price, schedule)) is not None:
        return no
    if (no := _overcommitted(appointment.patient_id, doctor.id, slot.during, schedule, appointment.id)) is not None:
        return no
    moved = replace(
        appointment,
        slot_id=slot.id,
        during=slot.during,
        price=price,
        status=AppointmentStatus.REQUESTED,
        requested_at=envelope.received_at,
        expires_at=expires_at(envelope.received_at, slot.during.starts_at, schedule.limits),
        decided_at=None,
        reschedules=appointment.reschedules + 1,
        sequence=appointment.sequence + 1,
        texts=AppointmentTexts(reason=command.reason),
    )
    return Effect(
        slots=(*_freed(appointment, schedule), replace(slot, status=SlotStatus.BOOKED)),
        appointments=(moved,),
        transitions=(_step(moved, envelope, command.reason),),
        notices=_tell(moved, "rescheduled", schedule, moved.patient_id, moved.doctor_id),
        appointment_id=moved.id,
    )


def _close(envelope: Envelope, appointment_id: UUID, status: AppointmentStatus, schedule: Schedule) -> Decision:
    appointment = _own(envelope, appointment_id, schedule)
    if appointment is None or appointment.status is not AppointmentStatus.ACCEPTED:
        return Rejection("invalid_transition")
    if envelope.received_at < appointment.during.starts_at:
        return Rejection("invalid_transition")
    closed = replace(appointment, status=status, texts=AppointmentTexts())
    return Effect(appointments=(closed,), transitions=(_step(closed, envelope),), appointment_id=closed.id)


def _expire(envelope: Envelope, command: Expire, schedule: Schedule) -> Decision:
    appointment = schedule.appointments.get(command.appointment_id)
    if (
        appointment is None
        or appointment.status is not AppointmentStatus.REQUESTED
        or appointment.expires_at != command.deadline
        or envelope.received_at < command.deadline
    ):
        return Rejection("invalid_transition")
    expired = _ended(appointment, AppointmentStatus.EXPIRED, None, schedule)
    return Effect(
        slots=_freed(appointment, schedule),
        appointments=(expired,),
        transitions=(_step(expired, envelope),),
        notices=_tell(expired, "expired", schedule, expired.patient_id, expired.doctor_id),
        appointment_id=expired.id,
    )


def _set_availability(envelope: Envelope, command: SetAvailability, schedule: Schedule) -> Decision:
    doctor = schedule.doctors[envelope.actor_id]
    doctor = replace(doctor, timezone=command.timezone or doctor.timezone)
    revision = rules.revise(
        doctor, schedule.slots_of(doctor.id), command.availability, schedule.horizon, schedule.now, schedule.new_id
    )
    stranded = {slot.id for slot in revision.stranded}
    outside = sorted(
        (each for each in schedule.appointments.values() if each.slot_id in stranded and each.status.active),
        key=lambda each: each.during,
    )
    return Effect(
        slots=revision.changed + revision.made,
        availability=NewAvailability(doctor.id, command.availability, command.reasons, doctor.timezone, put=True),
        result={
            "appointments_outside": [str(each.id) for each in outside],
            "slots_open": sum(
                slot.status is SlotStatus.OPEN and slot.during.starts_at > schedule.now
                for slot in _after(schedule.slots_of(doctor.id), revision.changed + revision.made)
            ),
        },
    )


def _extend_horizon(envelope: Envelope, schedule: Schedule) -> Decision:
    doctor_id = envelope.doctor_id
    if doctor_id is None or doctor_id not in schedule.availabilities:
        return Rejection("invalid_transition")
    doctor, held = schedule.doctors[doctor_id], schedule.availabilities[doctor_id]
    revision = rules.revise(doctor, schedule.slots_of(doctor_id), held, schedule.horizon, schedule.now, schedule.new_id)
    return Effect(
        slots=revision.changed + revision.made,
        availability=NewAvailability(doctor_id, held, (), doctor.timezone, put=False),
    )


def _add_slot(envelope: Envelope, command: AddSlot, schedule: Schedule) -> Decision:
    if command.during.starts_at <= envelope.received_at:
        return Rejection("slot_in_past")
    if _collides(command.during, schedule.slots_of(envelope.actor_id)):
        return Rejection("slot_overlaps")
    doctor_id, price = envelope.actor_id, command.price
    slot = Slot(schedule.new_id(), doctor_id, command.during, SlotStatus.OPEN, held=True, extra=True, price=price)
    return Effect(slots=(slot,), result={"slot_id": str(slot.id)})


def _change_slot(envelope: Envelope, command: ChangeSlot, schedule: Schedule) -> Decision:
    slot = schedule.slots.get(command.slot_id)
    if slot is None or slot.doctor_id != envelope.actor_id or slot.status is not SlotStatus.OPEN:
        return Rejection("slot_not_open")
    during = Interval(command.starts_at or slot.during.starts_at, command.ends_at or slot.during.ends_at)
    if min(slot.during.starts_at, during.starts_at) <= envelope.received_at:
        return Rejection("slot_in_past")
    others = [each for each in schedule.slots_of(slot.doctor_id) if each.id != slot.id]
    if during.ends_at <= during.starts_at or _collides(during, others):
        return Rejection("slot_overlaps")
    price = slot.price if command.price is None else command.price
    changed = replace(slot, during=during, price=price, held=True, extra=True)
    if slot.extra or during == slot.during:
        left: tuple[Slot, ...] = ()
    else:  # the rules would make a slot again where this one was, though its doctor has moved it away
        left = (Slot(schedule.new_id(), slot.doctor_id, slot.during, SlotStatus.WITHDRAWN, held=False),)
    return Effect(slots=(changed, *left), result={"slot_id": str(slot.id)})


def _withdraw_slot(envelope: Envelope, command: WithdrawSlot, schedule: Schedule) -> Decision:
    slot = schedule.slots.get(command.slot_id)
    if slot is None or slot.doctor_id != envelope.actor_id or slot.status is not SlotStatus.OPEN:
        return Rejection("slot_not_open")
    if slot.during.starts_at <= envelope.received_at:
        return Rejection("slot_in_past")
    return Effect(slots=(replace(slot, status=SlotStatus.WITHDRAWN, held=False),), result={"slot_id": str(slot.id)})


def _own(envelope: Envelope, appointment_id: UUID, schedule: Schedule) -> Appointment | None:
    """The appointment, if it is the sender's to act on: checked again here, though the inbox has looked."""
    appointment = schedule.appointments.get(appointment_id)
    if appointment is None:
        return None
    owners = {Role.PATIENT: appointment.patient_id, Role.DOCTOR: appointment.doctor_id}
    return appointment if owners.get(envelope.actor, envelope.actor_id) == envelope.actor_id else None


def _undecided(appointment: Appointment, envelope: Envelope) -> bool:
    """Whether it still waits for its doctor: a request that has lapsed does not, though nobody has said so yet."""
    return appointment.status is AppointmentStatus.REQUESTED and envelope.received_at < appointment.expires_at


def _to_come(appointment: Appointment, envelope: Envelope) -> bool:
    return appointment.status is AppointmentStatus.ACCEPTED or _undecided(appointment, envelope)


def _too_late(appointment: Appointment, envelope: Envelope, schedule: Schedule) -> bool:
    notice = timedelta(seconds=schedule.limits.cancel_notice if envelope.actor is Role.PATIENT else 0)
    return envelope.received_at >= appointment.during.starts_at - notice


def _ended(appointment: Appointment, status: AppointmentStatus, reason: str | None, schedule: Schedule) -> Appointment:
    # A calendar drops an entry only for a higher SEQUENCE (RFC 5546, 3.2.5). A request that was never moved is in none.
    sequence = appointment.sequence + (status is AppointmentStatus.CANCELLED or appointment.reschedules > 0)
    texts = AppointmentTexts(reason=reason)
    return replace(appointment, status=status, decided_at=schedule.now, sequence=sequence, texts=texts)


def _freed(appointment: Appointment, schedule: Schedule) -> tuple[Slot, ...]:
    """What becomes of the slot that an appointment lets go of."""
    slot = schedule.slots[appointment.slot_id]
    revision = rules.free(
        schedule.doctors[slot.doctor_id],
        slot,
        schedule.slots_of(slot.doctor_id),
        lambda: schedule.availabilities.get(slot.doctor_id, Availability()),
        schedule.horizon,
        schedule.now,
        schedule.new_id,
    )
    return revision.changed + revision.made


def _after(slots: Iterable[Slot], changes: Iterable[Slot]) -> Iterable[Slot]:
    return ({slot.id: slot for slot in slots} | {slot.id: slot for slot in changes}).values()


def _collides(during: Interval, slots: Sequence[Slot]) -> bool:
    return any(slot.occupies and slot.during.overlaps(during) for slot in slots)


def _step(appointment: Appointment, envelope: Envelope, reason: str | None = None) -> Transition:
    return Transition(appointment.id, appointment.status, envelope.actor, envelope.actor_id, reason)


def _tell(appointment: Appointment, kind: str, schedule: Schedule, *people: UUID) -> tuple[Notice, ...]:
    return tuple(Notice(appointment.id, each, kind, schedule.now, appointment.sequence, appointment.during) for each in people)


def _reminders(appointment: Appointment, schedule: Schedule, *people: UUID) -> tuple[Notice, ...]:
    times = (appointment.during.starts_at - timedelta(seconds=before) for before in schedule.limits.reminders)
    return tuple(
        Notice(appointment.id, each, "reminder", due_at, appointment.sequence, appointment.during)
        for due_at in times
        if due_at > schedule.now
        for each in people
    )
