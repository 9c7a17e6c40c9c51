"""What people, staff and time may ask of a schedule: each a small immutable value, decided once by `domain.booking`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from domain.availability import Availability
from domain.schedule import Interval, Role


class Kind(StrEnum):
    """The kinds of command, as the contract names them."""

    BOOK = "book"
    ACCEPT = "accept"
    REFUSE = "refuse"
    CANCEL = "cancel"
    RESCHEDULE = "reschedule"
    COMPLETE = "complete"
    NO_SHOW = "no_show"
    EXPIRE = "expire"
    EXTEND_HORIZON = "extend_horizon"
    SET_AVAILABILITY = "set_availability"
    ADD_SLOT = "add_slot"
    CHANGE_SLOT = "change_slot"
    WITHDRAW_SLOT = "withdraw_slot"
    ERASE = "erase"


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who sent a command and when: the part that all commands share."""

    id: UUID
    actor_id: UUID
    actor: Role
    doctor_id: UUID | None
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Book:
    """Request a slot. `price` is what the patient was shown, in minor units."""

    slot_id: UUID
    notes: str | None = None
    price: int | None = None


@dataclass(frozen=True, slots=True)
class Accept:
    """Accept a request; `join_url` is where the consultation takes place."""

    appointment_id: UUID
    join_url: str | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse a request, saying why."""

    appointment_id: UUID
    reason: str | None
    refusal_kind: str | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel an appointment, saying why."""

    appointment_id: UUID
    reason: str | None


@dataclass(frozen=True, slots=True)
class Reschedule:
    """Move an appointment to another slot of the same doctor, in one step."""

    appointment_id: UUID
    slot_id: UUID
    reason: str | None = None
    price: int | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    """Say that the consultation took place."""

    appointment_id: UUID


@dataclass(frozen=True, slots=True)
class NoShow:
    """Say that the patient did not come."""

    appointment_id: UUID


@dataclass(frozen=True, slots=True)
class Expire:
    """Lapse a request whose doctor did not decide by `deadline`; one that has moved on is left alone."""

    appointment_id: UUID
    deadline: datetime


@dataclass(frozen=True, slots=True)
class ExtendHorizon:
    """Make the slots that the passing of `day` brings within reach."""

    day: date


@dataclass(frozen=True, slots=True)
class SetAvailability:
    """Replace the whole availability; without `timezone` that stays as it was."""

    availability: Availability
    reasons: tuple[str | None, ...] = ()
    timezone: str | None = None


@dataclass(frozen=True, slots=True)
class AddSlot:
    """Make one extra slot; without `price` it costs what the doctor charges."""

    during: Interval
    price: int | None = None


@dataclass(frozen=True, slots=True)
class ChangeSlot:
    """Change an open slot's times or price; None leaves a value as it is."""

    slot_id: UUID
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    price: int | None = None


@dataclass(frozen=True, slots=True)
class WithdrawSlot:
    """Take an open slot out of the agenda for good."""

    slot_id: UUID


@dataclass(frozen=True, slots=True)
class Erase:
    """Erase its sender, a patient: it touches no schedule, and is decided by `domain.erasure`.

    All their sessions end but `session_id`, in which the answer can be read.
    """

    session_id: UUID | None = None


Command = (
    Book
    | Accept
    | Refuse
    | Cancel
    | Reschedule
    | Complete
    | NoShow
    | Expire
    | ExtendHorizon
    | SetAvailability
    | AddSlot
    | ChangeSlot
    | WithdrawSlot
)
