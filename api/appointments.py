"""Appointments: what a patient and a doctor have with each other, and what they may ask of it."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from flask import Response
from marshmallow import Schema, ValidationError, fields, post_load, validate
from sqlalchemy import text

from api.auth import Doctor, Patient, current, policy
from api.commands import stores
from api.reading import reading
from api.schemas import (
    Blueprint,
    Body,
    Choice,
    Flag,
    Id,
    Instant,
    Money,
    MoneyBody,
    Nothing,
    PageQuery,
    Part,
    Several,
    Text,
)
from api.services import services
from domain import projections
from domain.commands import Accept, Book, Cancel, Command, Complete, NoShow, Refuse, Reschedule
from domain.errors import NotAllowed
from domain.projections import AppointmentQuery
from domain.schedule import AppointmentStatus, Role

REFUSALS: Final = ("unavailable", "in_person_needed", "other_specialty", "other")

blp = Blueprint("appointments", __name__, description="Consultas / Appointments")


class JoinUrl(Text):
    """An https address where two people can meet: with a host, and without anybody's password in it."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> str:
        address = super()._deserialize(value, attr, data, **options)
        try:
            parts = urlsplit(address)
            sane = parts.scheme == "https" and "." in (parts.hostname or "") and parts.port != 0
        except ValueError:
            sane = False
        if not sane or "@" in parts.netloc or any(character.isspace() or character in '"<>\\' for character in address):
            raise ValidationError("Deve ser um endereço https://. / Must be an https:// address.")
        return address


def _reason(**options: Any) -> Text:
    return Text(least=3, most=500, lines=True, **options)


class Booking(Body):
    """Which slot a patient wants, and the price that was shown."""

    slot_id = Id(required=True)
    notes = Text(least=0, most=1000, lines=True)
    price = Part(MoneyBody)

    @post_load
    def _command(self, data: dict[str, Any], **_: Any) -> Book:
        return Book(data["slot_id"], data.get("notes") or None, data.get("price"))


class Acceptance(Body):
    """Where the consultation takes place."""

    join_url = JoinUrl(most=2000)


class Refusal(Body):
    """Why a request is refused."""

    reason = _reason(required=True)
    kind = Choice(REFUSALS, attribute="refusal_kind")


class Cancellation(Body):
    """Why an appointment is cancelled."""

    reason = _reason(required=True)


class Rescheduling(Body):
    """The slot to move to, and the price that was shown."""

    slot_id = Id(required=True)
    reason = _reason()
    price = Part(MoneyBody)


class ListQuery(PageQuery):
    """Which of one's own appointments; a cursor stands for all of it."""

    status = Several(AppointmentStatus)
    from_ = Instant(data_key="from")
    until = Instant()
    overdue = Flag()
    cursor = Text(most=1000)

    @post_load
    def _query(self, data: dict[str, Any], **_: Any) -> AppointmentQuery:
        return AppointmentQuery(**data)


class PartOfDoctor(Schema):
    """The doctor of an appointment."""

    id = fields.UUID(required=True)
    name = fields.String(required=True)
    crm = fields.String(required=True)


class PartOfPatient(Schema):
    """The patient of an appointment."""

    id = fields.UUID(required=True)
    name = fields.String(required=True, allow_none=True)


class HistoryEntry(Schema):
    """One transition of an appointment."""

    status = fields.String(required=True, validate=validate.OneOf(list(AppointmentStatus)))
    at = fields.AwareDateTime(required=True)
    by = fields.String(required=True, validate=validate.OneOf(list(Role)))
    reason = fields.String()


class ListedAppointment(Schema):
    """An appointment in a list."""

    id = fields.UUID(required=True)
    doctor = fields.Nested(PartOfDoctor, required=True)
    patient = fields.Nested(PartOfPatient, required=True)
    slot_id = fields.UUID(required=True)
    starts_at = fields.AwareDateTime(required=True)
    ends_at = fields.AwareDateTime(required=True)
    price = fields.Nested(Money, required=True)
    status = fields.String(required=True, validate=validate.OneOf(list(AppointmentStatus)))
    reason = fields.String()
    requested_at = fields.AwareDateTime(required=True)
    decided_at = fields.AwareDateTime()
    join_url = fields.String()


class OneAppointment(ListedAppointment):
    """An appointment with its notes and its history."""

    notes = fields.String(required=True, allow_none=True)
    history = fields.List(fields.Nested(HistoryEntry), required=True)


class AppointmentPage(Schema):
    """A page of one's own appointments, the latest start first."""

    items = fields.List(fields.Nested(ListedAppointment), required=True)
    page = fields.Integer(required=True)
    page_size = fields.Integer(required=True)
    total = fields.Integer(required=True)
    next = fields.String(allow_none=True)


@blp.get("/appointments")
@policy(Patient | Doctor)
@blp.arguments(ListQuery, location="query")
@blp.response(200, AppointmentPage)
@blp.alt_response(304)
def list_appointments(asked: AppointmentQuery) -> Response:
    """Ver as próprias consultas. / List one's own appointments."""
    return reading(projections.appointments(services().cache, current().id, current().role, asked))


@blp.get("/appointments/<uuid:appointment_id>")
@policy(Patient | Doctor)
@blp.response(200, OneAppointment)
@blp.alt_response(304)
def show_appointment(appointment_id: UUID) -> Response:
    """Ver uma consulta e sua história. / Read an appointment and its history."""
    return reading(projections.appointment(services().cache, appointment_id, current().id, current().role))


@blp.post("/appointments")
@policy(Patient)
@blp.arguments(Booking)
@blp.alt_response(404)
@stores
def book(asked: Book) -> Command:
    """Pedir um horário. / Request a slot."""
    _refuse_unconfirmed()
    return asked


@blp.post("/appointments/<uuid:appointment_id>/accept")
@policy(Doctor)
@blp.arguments(Acceptance, required=False)
@stores
def accept(asked: dict[str, Any], appointment_id: UUID) -> Command:
    """Aceitar um pedido. / Accept a request."""
    return Accept(appointment_id, **asked)


@blp.post("/appointments/<uuid:appointment_id>/refuse")
@policy(Doctor)
@blp.arguments(Refusal)
@stores
def refuse(asked: dict[str, Any], appointment_id: UUID) -> Command:
    """Recusar um pedido, dizendo por quê. / Refuse a request, saying why."""
    return Refuse(appointment_id, **asked)


@blp.post("/appointments/<uuid:appointment_id>/cancel")
@policy(Patient | Doctor)
@blp.arguments(Cancellation)
@stores
def cancel(asked: dict[str, Any], appointment_id: UUID) -> Command:
    """Cancelar uma consulta, dizendo por quê. / Cancel an appointment, saying why."""
    return Cancel(appointment_id, **asked)


@blp.post("/appointments/<uuid:appointment_id>/reschedule")
@policy(Patient)
@blp.arguments(Rescheduling)
@stores
def reschedule(asked: dict[str, Any], appointment_id: UUID) -> Command:
    """Remarcar para outro horário do mesmo médico. / Move to another slot of the same doctor."""
    return Reschedule(appointment_id, **asked)


@blp.post("/appointments/<uuid:appointment_id>/complete")
@policy(Doctor)
@blp.arguments(Nothing, required=False)
@stores
def complete(_: dict[str, Any], appointment_id: UUID) -> Command:
    """Dizer que a consulta aconteceu. / Say that the consultation took place."""
    return Complete(appointment_id)


@blp.post("/appointments/<uuid:appointment_id>/no-show")
@policy(Doctor)
@blp.arguments(Nothing, required=False)
@stores
def miss(_: dict[str, Any], appointment_id: UUID) -> Command:
    """Dizer que o paciente não veio. / Say that the patient did not come."""
    return NoShow(appointment_id)


def _refuse_unconfirmed() -> None:
    """Raises NotAllowed if a patient must confirm the e-mail before booking, and hasn't."""
    if not services().settings.limits.confirm_email:
        return
    with services().reads.connect() as connection:
        confirmed = connection.execute(_CONFIRMED, {"id": current().id}).scalar_one()
    if not confirmed:
        raise NotAllowed(
            "Confirme seu e-mail antes de agendar. / Confirm your e-mail before booking.", code="email_not_confirmed"
        )


_CONFIRMED: Final = text("select email_confirmed_at is not null from people where id = :id")
