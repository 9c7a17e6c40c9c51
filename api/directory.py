"""The directory: specialties, the doctors whom anyone may find, and their agendas."""

from __future__ import annotations

from datetime import date
from typing import Any, Final
from uuid import UUID

from flask import Response
from marshmallow import Schema, ValidationError, fields, post_load, validate, validates

from api.auth import Anyone, policy
from api.reading import PUBLIC, reading
from api.schemas import MAX_PRICE, Blueprint, Choice, Day, Instant, Money, PageQuery, Query, Several, Specialty, Text, Whole
from api.services import services
from domain import directory
from domain.directory import SearchQuery
from domain.identifiers import STATES, Malformed, name_key
from domain.specialties import SPECIALTIES

HOURLY: Final = "public, max-age=3600"  # the one answer that no command changes

blp = Blueprint("directory", __name__, description="Profissionais / Doctors")


class DoctorQuery(PageQuery):
    """Which doctors, and in which order; a cursor stands for all of it."""

    specialty = Several(SPECIALTIES)
    q = Text(least=0, most=100)
    state = Choice(sorted(STATES))
    min_price = Whole(0, MAX_PRICE)
    max_price = Whole(0, MAX_PRICE)
    available_from = Instant()
    available_until = Instant()
    sort = Choice(["name", "price", "next_slot"], load_default="name")
    cursor = Text(most=4000)

    @validates("q")
    def _readable(self, value: str, **_: Any) -> None:
        try:
            name_key(value)
        except Malformed as malformed:
            raise ValidationError(f"{malformed} / The text has invalid characters.") from None

    @post_load
    def _query(self, data: dict[str, Any], **_: Any) -> SearchQuery:
        return SearchQuery(**data)


class AgendaQuery(Query):
    """Which days of an agenda: the doctor's dates."""

    # Days that every time zone has, with room for a month more.
    from_ = Day(
        data_key="from",
        validate=validate.Range(
            date(2000, 1, 1), date(2199, 12, 31), error="Deve ficar entre 2000 e 2199. / Must lie between 2000 and 2199."
        ),
    )
    days = Whole(1, 31, load_default=7)


class SpecialtyItem(Schema):
    """A specialty that can be looked for."""

    code = fields.String(required=True)
    name = fields.String(required=True)
    registered = fields.Boolean(required=True)


class SpecialtyList(Schema):
    """All of them, by name."""

    items = fields.List(fields.Nested(SpecialtyItem), required=True)


class FoundDoctor(Schema):
    """A doctor, as a search shows them."""

    id = fields.UUID(required=True)
    name = fields.String(required=True)
    crm = fields.String(required=True)
    specialties = fields.List(fields.Nested(Specialty), required=True)
    price = fields.Nested(Money, required=True)
    timezone = fields.String(required=True)
    next_slot_at = fields.AwareDateTime(required=True, allow_none=True)


class OneDoctor(FoundDoctor):
    """One doctor, in full."""

    bio = fields.String(required=True, allow_none=True)


class DoctorPage(Schema):
    """A page of doctors; `total` is counted up to 1,000, and `next` is the cursor of the next page."""

    items = fields.List(fields.Nested(FoundDoctor), required=True)
    page = fields.Integer(required=True)
    page_size = fields.Integer(required=True)
    total = fields.Integer(required=True)
    next = fields.String(allow_none=True)


class AgendaSlot(Schema):
    """A slot that can be booked."""

    id = fields.UUID(required=True)
    starts_at = fields.AwareDateTime(required=True)
    ends_at = fields.AwareDateTime(required=True)
    price = fields.Nested(Money, required=True)


class AgendaDay(Schema):
    """A day of the doctor's, and its slots."""

    date = fields.Date(required=True)
    slots = fields.List(fields.Nested(AgendaSlot), required=True)


class Agenda(Schema):
    """The slots of a doctor that can be booked, by day."""

    doctor_id = fields.UUID(required=True)
    timezone = fields.String(required=True)
    price = fields.Nested(Money, required=True)
    days = fields.List(fields.Nested(AgendaDay), required=True)


@blp.get("/specialties")
@policy(Anyone)
@blp.response(200, SpecialtyList)
@blp.alt_response(304)
def list_specialties() -> Response:
    """Ver as especialidades. / List the specialties."""
    return reading(directory.specialties(), HOURLY)


@blp.get("/doctors")
@policy(Anyone)
@blp.arguments(DoctorQuery, location="query")
@blp.response(200, DoctorPage)
@blp.alt_response(304)
def search_doctors(asked: SearchQuery) -> Response:
    """Procurar profissionais. / Search for doctors."""
    return reading(directory.search(services().cache, asked), PUBLIC)


@blp.get("/doctors/<uuid:doctor_id>")
@policy(Anyone)
@blp.response(200, OneDoctor)
@blp.alt_response(304)
def show_doctor(doctor_id: UUID) -> Response:
    """Ver um profissional. / Read one doctor."""
    return reading(directory.doctor(services().cache, doctor_id), PUBLIC)


@blp.get("/doctors/<uuid:doctor_id>/agenda")
@policy(Anyone)
@blp.arguments(AgendaQuery, location="query")
@blp.response(200, Agenda)
@blp.alt_response(304)
def show_agenda(asked: dict[str, Any], doctor_id: UUID) -> Response:
    """Ver os horários que se podem reservar. / Read the slots that can be booked."""
    return reading(directory.agenda(services().cache, doctor_id, **asked), PUBLIC)
