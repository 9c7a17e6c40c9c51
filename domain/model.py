"""The tables: what is true, and the constraints that keep it true even if all the code above is wrong."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSTZRANGE, ExcludeConstraint, Range
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """All tables share one naming convention, so that errors and tests can name a constraint."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012
        str: Text(),
        bytes: LargeBinary(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(),
        list[str]: ARRAY(Text()),
        Range[datetime]: TSTZRANGE(),
    }


class Person(Base):
    """Somebody who logs in, or `system`, the actor of what time brings. What is private is sealed under the person's own key."""

    __tablename__ = "people"
    __table_args__ = (
        CheckConstraint("role in ('patient', 'doctor', 'staff', 'system')", name="role"),
        CheckConstraint("status in ('active', 'closing', 'erased')", name="status"),
        Index("uq_people_email_hash", "email_hash", unique=True, postgresql_where=text("email_hash is not null")),
        Index("uq_people_cpf_hash", "cpf_hash", unique=True, postgresql_where=text("cpf_hash is not null")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    role: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="active")
    language: Mapped[str] = mapped_column(server_default="pt-BR")
    timezone: Mapped[str] = mapped_column(server_default="America/Sao_Paulo")
    email_hash: Mapped[bytes | None]
    cpf_hash: Mapped[bytes | None]
    private: Mapped[bytes | None]  # sealed JSON: name, email, cpf, phone, birth_date, representative
    password_hash: Mapped[str | None]
    password_changed_at: Mapped[datetime | None]
    email_confirmed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class PersonKey(Base):
    """The key of one person's data, wrapped by the key ring. Destroying the row erases what it sealed."""

    __tablename__ = "person_keys"

    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"), primary_key=True)
    wrapped: Mapped[bytes]


class DoctorRecord(Base):
    """What the public sees of a doctor, and where their commands are decided."""

    __tablename__ = "doctors"
    __table_args__ = (
        CheckConstraint("status in ('pending_verification', 'verified', 'rejected', 'suspended')", name="status"),
        CheckConstraint("price >= 0", name="price"),
        Index(
            "uq_doctors_crm",
            "crm_number",
            "crm_state",
            unique=True,
            postgresql_where=text("status <> 'rejected'"),
        ),
        Index("ix_doctors_search_name", "search_name", postgresql_using="gin", postgresql_ops={"search_name": "gin_trgm_ops"}),
        Index("ix_doctors_status_search_name", "status", "search_name", "id", postgresql_include=["price", "crm_state"]),
        Index("ix_doctors_status_crm_state", "status", "crm_state", "search_name", "id", postgresql_include=["price"]),
        Index("ix_doctors_status_price", "status", "price", "id"),
    )

    id: Mapped[UUID] = mapped_column(ForeignKey("people.id"), primary_key=True)
    lane: Mapped[int] = mapped_column(SmallInteger)
    status: Mapped[str] = mapped_column(server_default="pending_verification")
    name: Mapped[str]
    search_name: Mapped[str]
    crm_number: Mapped[str]
    crm_suffix: Mapped[str] = mapped_column(server_default="")
    crm_state: Mapped[str]
    bio: Mapped[str | None]
    price: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(server_default="BRL")
    timezone: Mapped[str]
    pending: Mapped[dict[str, Any] | None]  # a new name or new specialties, until staff has verified them
    verified_by: Mapped[UUID | None] = mapped_column(ForeignKey("people.id"))
    verified_at: Mapped[datetime | None]
    verification_reason: Mapped[bytes | None]  # sealed under the doctor's key


class DoctorSpecialty(Base):
    """A verified specialty of a doctor, with the number of its registration (RQE)."""

    __tablename__ = "doctor_specialties"
    __table_args__ = (Index("ix_doctor_specialties_code_doctor_id", "code", "doctor_id"),)

    doctor_id: Mapped[UUID] = mapped_column(ForeignKey("doctors.id"), primary_key=True)
    code: Mapped[str] = mapped_column(primary_key=True)
    rqe: Mapped[str]


class AvailabilityRecord(Base):
    """A doctor's weekly rules and exceptions, as last put."""

    __tablename__ = "availabilities"
    __table_args__ = (Index("ix_availabilities_extended_on", "extended_on", "doctor_id"),)

    doctor_id: Mapped[UUID] = mapped_column(ForeignKey("doctors.id"), primary_key=True)
    rules: Mapped[list[dict[str, Any]]] = mapped_column(JSONB())
    exceptions: Mapped[list[dict[str, Any]]] = mapped_column(JSONB())  # instants only
    reasons: Mapped[bytes | None]  # sealed JSON list, in the order of the exceptions
    extended_on: Mapped[date]  # the day on which the horizon was last moved


class SlotRecord(Base):
    """One bookable interval of one doctor. No two that take up the doctor's time overlap."""

    __tablename__ = "slots"
    __table_args__ = (
        CheckConstraint("status in ('open', 'booked', 'withdrawn', 'dropped')", name="status"),
        CheckConstraint("not isempty(during)", name="during"),
        CheckConstraint("price >= 0", name="price"),
        UniqueConstraint("id", "doctor_id"),
        ExcludeConstraint(
            ("doctor_id", "="),
            ("during", "&&"),
            where=text("status in ('open', 'booked')"),
            using="gist",
            name="ex_slots_doctor_during",
        ),
        Index("ix_slots_doctor_id_starts_at", "doctor_id", "starts_at"),
        Index("ix_slots_open", "doctor_id", "starts_at", postgresql_where=text("status = 'open'")),
        Index("ix_slots_open_starts_at", "starts_at", "doctor_id", postgresql_where=text("status = 'open'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    doctor_id: Mapped[UUID] = mapped_column(ForeignKey("doctors.id"))
    during: Mapped[Range[datetime]]
    starts_at: Mapped[datetime] = mapped_column(Computed("lower(during)", persisted=True))
    ends_at: Mapped[datetime] = mapped_column(Computed("upper(during)", persisted=True))
    status: Mapped[str]
    held: Mapped[bool]
    extra: Mapped[bool] = mapped_column(server_default=text("false"))
    price: Mapped[int | None] = mapped_column(BigInteger)


class AppointmentRecord(Base):
    """A patient's hold on a slot. Its price and times are copied in at booking."""

    __tablename__ = "appointments"
    __table_args__ = (
        CheckConstraint(
            "status in ('requested', 'accepted', 'refused', 'cancelled', 'expired', 'completed', 'no_show')", name="status"
        ),
        Index("uq_appointments_slot_id_active", "slot_id", unique=True, postgresql_where=text("active")),
        ExcludeConstraint(
            ("patient_id", "="), ("during", "&&"), where=text("active"), using="gist", name="ex_appointments_patient_during"
        ),
        ExcludeConstraint(
            ("doctor_id", "="), ("during", "&&"), where=text("active"), using="gist", name="ex_appointments_doctor_during"
        ),
        ForeignKeyConstraint(["slot_id", "doctor_id"], ["slots.id", "slots.doctor_id"]),
        Index("ix_appointments_patient_id_starts_at", "patient_id", "starts_at", "id"),
        Index("ix_appointments_doctor_id_starts_at", "doctor_id", "starts_at", "id"),
        Index("ix_appointments_doctor_id_status", "doctor_id", "status", "starts_at", "id"),
        Index("ix_appointments_expires_at", "expires_at", postgresql_where=text("status = 'requested'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    slot_id: Mapped[UUID]
    doctor_id: Mapped[UUID] = mapped_column(ForeignKey("doctors.id"))
    patient_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    during: Mapped[Range[datetime]]
    starts_at: Mapped[datetime] = mapped_column(Computed("lower(during)", persisted=True))
    ends_at: Mapped[datetime] = mapped_column(Computed("upper(during)", persisted=True))
    active: Mapped[bool]
    status: Mapped[str]
    price: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    requested_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]
    reschedules: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    sequence: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    refusal_kind: Mapped[str | None]
    notes: Mapped[bytes | None]  # this and the next two are sealed under the patient's key
    reason: Mapped[bytes | None]
    join_url: Mapped[bytes | None]
    history_length: Mapped[int] = mapped_column(SmallInteger)
    history_hash: Mapped[bytes]


class HistoryRecord(Base):
    """One transition of one appointment: append-only, each row's hash covering the one before it."""

    __tablename__ = "history"
    __table_args__ = (Index("ix_history_at", "at"),)

    appointment_id: Mapped[UUID] = mapped_column(ForeignKey("appointments.id"), primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    status: Mapped[str]
    at: Mapped[datetime]
    by: Mapped[str]
    actor_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    command_id: Mapped[UUID]
    reason: Mapped[bytes | None]  # sealed under the patient's key
    hash: Mapped[bytes]


class CommandRecord(Base):
    """The inbox: what was asked, and what was decided. A row here is what a 202 promises."""

    __tablename__ = "commands"
    __table_args__ = (
        CheckConstraint("status in ('pending', 'succeeded', 'rejected')", name="status"),
        Index("uq_commands_idempotency", "actor_id", "key_hash", unique=True, postgresql_where=text("key_hash is not null")),
        Index("ix_commands_pending", "lane", "seq", postgresql_where=text("status = 'pending'")),
        Index("ix_commands_actor_id", "actor_id", "id"),
        Index("uq_commands_expire", "appointment_id", "deadline", unique=True, postgresql_where=text("kind = 'expire'")),
        Index("uq_commands_extend_horizon", "doctor_id", "day", unique=True, postgresql_where=text("kind = 'extend_horizon'")),
        Index("ix_commands_decided_at", "decided_at", postgresql_where=text("status <> 'pending'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True, cache=1), unique=True)
    lane: Mapped[int] = mapped_column(SmallInteger)
    kind: Mapped[str]
    actor_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    actor_role: Mapped[str]
    doctor_id: Mapped[UUID | None] = mapped_column(ForeignKey("doctors.id"))
    slot_id: Mapped[UUID | None]
    appointment_id: Mapped[UUID | None]
    payload: Mapped[dict[str, Any]]  # times, prices and choices: nothing that a person wrote
    secret: Mapped[bytes | None]  # what a person wrote, sealed under the actor's key until the decision
    deadline: Mapped[datetime | None]
    day: Mapped[date | None]
    key_hash: Mapped[bytes | None]
    request_hash: Mapped[bytes | None]
    request_id: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))  # failures, counted one by one
    received_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    decided_at: Mapped[datetime | None]
    batch_id: Mapped[UUID | None]
    result: Mapped[dict[str, Any] | None]
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]


class ArchivedCommand(Base):
    """What remains of a command 90 days after its decision: who asked, when, under which key, and what was answered."""

    __tablename__ = "archived_commands"
    __table_args__ = (
        Index("ix_archived_commands_actor_id", "actor_id", "id"),
        Index(
            "uq_archived_commands_idempotency",
            "actor_id",
            "key_hash",
            unique=True,
            postgresql_where=text("key_hash is not null"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str]
    actor_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    actor_role: Mapped[str]
    doctor_id: Mapped[UUID | None] = mapped_column(ForeignKey("doctors.id"))
    slot_id: Mapped[UUID | None]
    appointment_id: Mapped[UUID | None]
    status: Mapped[str]
    error_code: Mapped[str | None]
    request_id: Mapped[str | None]
    received_at: Mapped[datetime]
    decided_at: Mapped[datetime]
    error_detail: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    key_hash: Mapped[bytes | None]
    request_hash: Mapped[bytes | None]


class BatchRecord(Base):
    """One transaction that changed something cached: what it touched, and when that was made known to the cache."""

    __tablename__ = "batches"
    __table_args__ = (Index("ix_batches_unfinished", "created_at", postgresql_where=text("finished_at is null")),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None]


class CacheRecord(Base):
    """The one row that says whether the cache may be believed, and under which epoch its keys stand."""

    __tablename__ = "cache"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    in_use: Mapped[bool]
    changed_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class NoticeRecord(Base):
    """One message that a person must get, claimed by one worker at a time and sent at least once."""

    __tablename__ = "notices"
    __table_args__ = (
        Index(
            "uq_notices_once",
            "appointment_id",
            "person_id",
            "kind",
            "due_at",
            unique=True,
            postgresql_where=text("appointment_id is not null"),
        ),
        Index("ix_notices_due", "next_try_at", postgresql_where=text("sent_at is null and dropped_at is null")),
        Index("ix_notices_person_id", "person_id", "id"),
        Index(
            "ix_notices_undelivered",
            "dropped_at",
            postgresql_where=text("drop_reason in ('address_refused', 'undeliverable', 'faulty')"),
        ),
        Index(
            "ix_notices_settled",
            text("coalesce(sent_at, dropped_at)"),
            postgresql_where=text("sent_at is not null or dropped_at is not null"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    appointment_id: Mapped[UUID | None] = mapped_column(ForeignKey("appointments.id"))
    kind: Mapped[str]
    due_at: Mapped[datetime]
    sequence: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    during: Mapped[Range[datetime] | None]  # when the appointment was to be, so that a late notice tells what was true
    secret: Mapped[bytes | None]  # sealed under the recipient's key: a link's token, a former address
    command_id: Mapped[UUID | None]  # whose decision it tells
    request_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    next_try_at: Mapped[datetime]
    claimed_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default=text("0"))
    sent_at: Mapped[datetime | None]
    dropped_at: Mapped[datetime | None]
    drop_reason: Mapped[str | None]
    read_at: Mapped[datetime | None]


class ArchivedNotice(Base):
    """What remains of a notice 90 days after it was sent or given up: whom it told what, when, and whether it was read."""

    __tablename__ = "archived_notices"
    __table_args__ = (
        Index("ix_archived_notices_person_id", "person_id", "id"),
        Index("ix_archived_notices_appointment_id", "appointment_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    appointment_id: Mapped[UUID | None] = mapped_column(ForeignKey("appointments.id"))
    kind: Mapped[str]
    due_at: Mapped[datetime]
    during: Mapped[Range[datetime] | None]
    command_id: Mapped[UUID | None]
    created_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(SmallInteger)
    sent_at: Mapped[datetime | None]
    dropped_at: Mapped[datetime | None]
    drop_reason: Mapped[str | None]
    read_at: Mapped[datetime | None]


class SessionRecord(Base):
    """One log-in and the family of refresh tokens that follows from it."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index("ix_sessions_person_id", "person_id", "created_at"),
        Index("ix_sessions_over", text("coalesce(revoked_at, expires_at)")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    address_hash: Mapped[bytes | None]  # keyed: an address that logged in before has a count of failures of its own
    origin: Mapped[bytes | None]  # sealed JSON: where the log-in came from, as its owner may read it
    refresh_id: Mapped[UUID]
    previous_refresh_id: Mapped[UUID | None]
    refreshed_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class LinkRecord(Base):
    """A secret link that was mailed to somebody: good once, and until it expires. Whoever has its token reads that mail."""

    __tablename__ = "links"
    __table_args__ = (
        CheckConstraint("kind in ('confirm_email', 'password_forgotten')", name="kind"),
        Index("ix_links_person_id", "person_id", "kind"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    kind: Mapped[str]
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    email: Mapped[bytes | None]  # the address that is confirmed by following it, sealed under the person's key
    expires_at: Mapped[datetime]


class CalendarLinkRecord(Base):
    """The secret address under which somebody's calendar reads their appointments. There is one at a time."""

    __tablename__ = "calendar_links"

    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"), primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class SecondFactorRecord(Base):
    """What makes somebody's one-time codes (RFC 6238). It is asked for once confirmed, and no code is good twice."""

    __tablename__ = "second_factors"

    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"), primary_key=True)
    secret: Mapped[bytes]  # base32, sealed under the person's key
    last_step: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))  # that of the last code which was used
    confirmed_at: Mapped[datetime | None]


class RecoveryCodeRecord(Base):
    """A code that stands in for a lost second factor, by its keyed hash. To use it is to delete it."""

    __tablename__ = "recovery_codes"

    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"), primary_key=True)
    hash: Mapped[bytes] = mapped_column(primary_key=True)


class AuditRecord(Base):
    """Who read or changed a person's data, and when: append-only, chained per person."""

    __tablename__ = "audit"
    __table_args__ = (
        UniqueConstraint("subject_id", "position"),
        Index("ix_audit_at", "at"),
        Index(
            "uq_audit_read",
            "actor_id",
            "subject_id",
            "hour",
            unique=True,
            postgresql_where=text("action = 'read'"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    subject_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    position: Mapped[int] = mapped_column(BigInteger)
    actor_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    actor_role: Mapped[str]
    action: Mapped[str]
    about: Mapped[UUID | None]
    at: Mapped[datetime]
    hour: Mapped[datetime]
    hash: Mapped[bytes]


class RootRecord(Base):
    """The hash of all that history and audit held up to an instant: append-only, and logged, so that a copy stands elsewhere."""

    __tablename__ = "roots"

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    until: Mapped[datetime]
    entries: Mapped[int] = mapped_column(BigInteger)
    root: Mapped[bytes]


class ConsentRecord(Base):
    """Which text a person agreed to, and when. A withdrawn consent stays, to show what held until then."""

    __tablename__ = "consents"
    __table_args__ = (
        Index(
            "uq_consents_standing",
            "person_id",
            "kind",
            "version",
            unique=True,
            postgresql_where=text("withdrawn_at is null"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    kind: Mapped[str]
    version: Mapped[str]
    text_hash: Mapped[bytes]
    given_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    withdrawn_at: Mapped[datetime | None]


class CorrectionRecord(Base):
    """A person's data that staff corrected, and why."""

    __tablename__ = "corrections"
    __table_args__ = (Index("ix_corrections_person_id", "person_id", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    actor_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    field: Mapped[str]
    reason: Mapped[bytes | None]  # sealed under the person's key
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class RetainedRecord(Base):
    """What the law keeps of an erased patient's consultation, under a key of its own that is destroyed with the row."""

    __tablename__ = "retained"
    __table_args__ = (Index("ix_retained_person_id", "person_id"),)

    appointment_id: Mapped[UUID] = mapped_column(ForeignKey("appointments.id"), primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"))
    wrapped: Mapped[bytes]
    document: Mapped[bytes]  # sealed JSON: who the patient was, and what was written
    retained_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
