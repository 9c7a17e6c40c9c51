"""The plain values that the rules read and return: slots, appointments, the people they concern, and their limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class SlotStatus(StrEnum):
    """Where a slot stands. Only open and booked slots take up the doctor's time."""

    OPEN = "open"
    BOOKED = "booked"
    WITHDRAWN = "withdrawn"  # by its doctor: remembered, so that the availability does not make it again
    DROPPED = "dropped"  # no longer held by the availability: may be made again


class AppointmentStatus(StrEnum):
    """Where an appointment stands, as the contract names it."""

    REQUESTED = "requested"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    COMPLETED = "completed"
    NO_SHOW = "no_show"

    @property
    def active(self) -> bool:
        """Whether an appointment in this status holds its slot (DESIGN: all but refused, cancelled and expired)."""
        return self not in (AppointmentStatus.REFUSED, AppointmentStatus.CANCELLED, AppointmentStatus.EXPIRED)


class Role(StrEnum):
    """Who acts: the three kinds of person who log in, and time itself."""

    DOCTOR = "doctor"
    PATIENT = "patient"
    STAFF = "staff"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """A half-open stretch of time, [starts_at, ends_at), in aware datetimes."""

    starts_at: datetime
    ends_at: datetime

    def overlaps(self, other: Interval) -> bool:
        """Whether the two share an instant."""
        return self.starts_at < other.ends_at and other.starts_at < self.ends_at

    def within(self, other: Interval) -> bool:
        """Whether this one lies wholly inside the other."""
        return other.starts_at <= self.starts_at and self.ends_at <= other.ends_at


@dataclass(frozen=True, slots=True)
class Slot:
    """One bookable interval of one doctor."""

    id: UUID
    doctor_id: UUID
    during: Interval
    status: SlotStatus
    held: bool  # whether the availability (or the doctor's own hand) holds it: a freed slot that is not held is dropped
    extra: bool = False  # made or changed by hand: an edit of the availability leaves it alone
    price: int | None = None  # minor units; None: the doctor's price

    @property
    def occupies(self) -> bool:
        """Whether it takes up its doctor's time."""
        return self.status in (SlotStatus.OPEN, SlotStatus.BOOKED)


@dataclass(frozen=True, slots=True)
class Doctor:
    """What the rules need to know of a doctor."""

    id: UUID
    verified: bool
    suspended: bool
    timezone: str
    price: int  # minor units
    currency: str


@dataclass(frozen=True, slots=True)
class Patient:
    """What the rules need to know of a patient."""

    id: UUID
    closing: bool = False
    email_confirmed: bool = True


@dataclass(frozen=True, slots=True)
class AppointmentTexts:
    """What people wrote about an appointment; None where the stored text stays as it is."""

    notes: str | None = None
    reason: str | None = None
    join_url: str | None = None


@dataclass(frozen=True, slots=True)
class Appointment:
    """A patient's hold on a slot. Texts stand apart: the rules never read them."""

    id: UUID
    slot_id: UUID
    doctor_id: UUID
    patient_id: UUID
    during: Interval
    price: int
    currency: str
    status: AppointmentStatus
    requested_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    reschedules: int = 0
    sequence: int = 0  # the iCalendar SEQUENCE: one higher at each change of time, and when what a calendar holds ends
    refusal_kind: str | None = None
    texts: AppointmentTexts = AppointmentTexts()


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that the rules obey. Durations are seconds."""

    request_ttl: int = 86400
    request_lead: int = 3600
    booking_notice: int = 7200
    booking_horizon_days: int = 60
    cancel_notice: int = 0
    max_open_requests: int = 10
    max_open_requests_per_doctor: int = 3
    max_reschedules: int = 3
    reminders: tuple[int, ...] = (86400, 3600)
    confirm_email: bool = False
