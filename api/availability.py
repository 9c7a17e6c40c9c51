"""Availability: when a doctor works, and the slots that are made, moved or withdrawn by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from flask import Response
from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema

from api.auth import Doctor, current, policy
from api.commands import stores
from api.reading import reading
from api.schemas import Blueprint, Body, Clock, Day, Instant, Many, MoneyBody, Nothing, Part, Text, Whole, Zone
from api.services import services
from domain import projections
from domain.availability import Availability, Rule, overlapping
from domain.commands import AddSlot, ChangeSlot, Command, SetAvailability, WithdrawSlot
from domain.schedule import Interval

MAX_RULES: Final = 100
MAX_EXCEPTIONS: Final = 500
SHORTEST_SLOT: Final = timedelta(minutes=5)
LONGEST_SLOT: Final = timedelta(hours=24)

_AFTER = "O fim tem de vir depois do início. / The end must come after the start."
_LENGTH = "Um horário dura de 5 minutos a 24 horas. / A slot lasts from 5 minutes to 24 hours."
# So that a slot can be told in every time zone: the years of a calendar end at 9999.
_conceivable = validate.Range(
    datetime(2000, 1, 1, tzinfo=UTC),
    datetime(2200, 1, 1, tzinfo=UTC),
    error="Deve ficar entre os anos 2000 e 2200. / Must lie between the years 2000 and 2200.",
)

blp = Blueprint("availability", __name__, description="Disponibilidade / Availability")


class RuleBody(Body):
    """A range of one weekday that is cut into slots; an `end` of 00:00 is the midnight that closes the day."""

    weekday = Whole(1, 7, required=True)
    start = Clock(required=True)
    end = Clock(required=True)
    slot_minutes = Whole(5, 240, required=True)
    valid_from = Day()
    valid_until = Day()

    @post_load
    def _rule(self, data: dict[str, Any], **_: Any) -> Rule:
        try:
            return Rule(**data)
        except ValueError as wrong:
            raise ValidationError(str(wrong)) from None


class ExceptionBody(Body):
    """Time off."""

    starts_at = Instant(required=True)
    ends_at = Instant(required=True)
    reason = Text(least=0, most=500, lines=True)

    @validates_schema
    def _in_order(self, data: dict[str, Any], **_: Any) -> None:
        if data["ends_at"] <= data["starts_at"]:
            raise ValidationError(_AFTER, "ends_at")


class AvailabilityBody(Body):
    """The whole availability, which replaces the one before it."""

    rules = Many(Part(RuleBody), most=MAX_RULES, required=True)
    exceptions = Many(Part(ExceptionBody), most=MAX_EXCEPTIONS, required=True)
    timezone = Zone()

    @validates_schema
    def _apart(self, data: dict[str, Any], **_: Any) -> None:
        if (pair := overlapping(data["rules"])) is not None:
            first, second = pair
            raise ValidationError({"rules": {second: [f"Sobrepõe-se à regra {first}. / Overlaps rule {first}."]}})

    @post_load
    def _command(self, data: dict[str, Any], **_: Any) -> SetAvailability:
        off = data["exceptions"]
        held = Availability(tuple(data["rules"]), tuple(Interval(each["starts_at"], each["ends_at"]) for each in off))
        return SetAvailability(held, tuple(each.get("reason") or None for each in off), data.get("timezone"))


class SlotChange(Body):
    """What is to become of an open slot: any of its times and its price."""

    starts_at = Instant(validate=_conceivable)
    ends_at = Instant(validate=_conceivable)
    price = Part(MoneyBody)

    @validates_schema
    def _sensible(self, data: dict[str, Any], **_: Any) -> None:
        if not data:
            raise ValidationError("Diga o que mudar. / Say what to change.")
        if "starts_at" in data and "ends_at" in data:
            if data["ends_at"] <= data["starts_at"]:
                raise ValidationError(_AFTER, "ends_at")
            if not SHORTEST_SLOT <= data["ends_at"] - data["starts_at"] <= LONGEST_SLOT:
                raise ValidationError(_LENGTH, "ends_at")


class ExtraSlot(SlotChange):
    """One slot more, which costs what the doctor charges unless it has a price of its own."""

    starts_at = Instant(required=True, validate=_conceivable)
    ends_at = Instant(required=True, validate=_conceivable)

    @post_load
    def _command(self, data: dict[str, Any], **_: Any) -> AddSlot:
        return AddSlot(Interval(data["starts_at"], data["ends_at"]), data.get("price"))


class AvailabilityRule(Schema):
    """A weekly rule, as answered."""

    weekday = fields.Integer(required=True)
    start = fields.String(required=True)
    end = fields.String(required=True)
    slot_minutes = fields.Integer(required=True)
    valid_from = fields.Date(allow_none=True)
    valid_until = fields.Date(allow_none=True)


class AvailabilityException(Schema):
    """Time off, as answered."""

    starts_at = fields.AwareDateTime(required=True)
    ends_at = fields.AwareDateTime(required=True)
    reason = fields.String(allow_none=True)


class WholeAvailability(Schema):
    """The rules and exceptions as last put."""

    rules = fields.List(fields.Nested(AvailabilityRule), required=True)
    exceptions = fields.List(fields.Nested(AvailabilityException), required=True)
    timezone = fields.String(required=True)


@blp.get("/doctors/me/availability")
@policy(Doctor)
@blp.response(200, WholeAvailability)
@blp.alt_response(304)
def show_availability() -> Response:
    """Ver a própria disponibilidade. / Read one's own availability."""
    return reading(projections.availability(services().cache, current().id))


@blp.put("/doctors/me/availability")
@policy(Doctor)
@blp.arguments(AvailabilityBody)
@stores
def set_availability(asked: SetAvailability) -> Command:
    """Trocar toda a disponibilidade. / Replace the whole availability."""
    return asked


@blp.post("/doctors/me/slots")
@policy(Doctor)
@blp.arguments(ExtraSlot)
@stores
def add_slot(asked: AddSlot) -> Command:
    """Criar um horário avulso. / Make an extra slot."""
    return asked


@blp.patch("/doctors/me/slots/<uuid:slot_id>")
@policy(Doctor)
@blp.arguments(SlotChange)
@stores
def change_slot(asked: dict[str, Any], slot_id: UUID) -> Command:
    """Mudar um horário livre. / Change an open slot."""
    return ChangeSlot(slot_id, **asked)


@blp.delete("/doctors/me/slots/<uuid:slot_id>")
@policy(Doctor)
@blp.arguments(Nothing, required=False)
@stores
def withdraw_slot(_: dict[str, Any], slot_id: UUID) -> Command:
    """Retirar um horário livre. / Withdraw an open slot."""
    return WithdrawSlot(slot_id)
