"""The bodies of every read of the contract, made from Postgres once and passed on as bytes until a command changes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from domain.cache import Answer, Cache, Filled
from domain.schedule import Role


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """Which doctors, in which order. A `cursor` stands for the whole query that it came from, its next page."""

    specialty: tuple[str, ...] = ()  # any of these
    q: str | None = None
    state: str | None = None
    max_price: int | None = None
    available_from: datetime | None = None
    available_until: datetime | None = None
    sort: str = "name"  # or price, or next_slot
    page: int = 1
    page_size: int = 20
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class AppointmentQuery:
    """Which of one's own appointments, newest start first. A `cursor` stands for the whole query that it came from, its next page."""

    status: tuple[str, ...] = ()
    from_: datetime | None = None
    until: datetime | None = None
    overdue: bool = False
    page: int = 1
    page_size: int = 20
    cursor: str | None = None


def specialties() -> Answer:
    """All specialties that can be searched."""
    raise NotImplementedError


def doctor(cache: Cache, doctor_id: UUID) -> Answer:
    """One verified doctor, with `bio`. Raises NotFound."""
    raise NotImplementedError


def agenda(cache: Cache, doctor_id: UUID, from_: date | None = None, days: int = 7) -> Answer:
    """A verified doctor's bookable slots, by local date, from the doctor's today unless told. Raises NotFound and Invalid."""
    raise NotImplementedError


def search(cache: Cache, query: SearchQuery) -> Answer:
    """A page of verified doctors. Raises Invalid for a cursor that is none."""
    raise NotImplementedError


def appointments(cache: Cache, person_id: UUID, role: Role, query: AppointmentQuery) -> Answer:
    """A page of a patient's or a doctor's own appointments. Raises Invalid for a cursor that is none."""
    raise NotImplementedError


def appointment(cache: Cache, appointment_id: UUID, reader_id: UUID, role: Role) -> Answer:
    """One appointment with its history, for its patient or its doctor. Raises NotFound."""
    raise NotImplementedError


def command(cache: Cache, command_id: UUID, reader_id: UUID) -> Answer:
    """One command, for who sent it; decided ones only when their batch is finished. Raises NotFound."""
    raise NotImplementedError


def availability(cache: Cache, doctor_id: UUID) -> Answer:
    """A doctor's own rules and exceptions as last put. Raises NotFound."""
    raise NotImplementedError


def command_body(row: Row[Any]) -> dict[str, Any]:
    """A command as the contract shows it, from a row of `inbox.COLUMNS`."""
    raise NotImplementedError


def decided(row: Row[Any]) -> Filled:
    """The answer of a decided command (a row of `inbox.COLUMNS`), for `Cache.finish`."""
    raise NotImplementedError


def scopes_showing(connection: Connection, person_id: UUID) -> list[str]:
    """Every scope that shows a person's name. Call it after the change, in its transaction: the changed row's lock keeps new ones out."""
    raise NotImplementedError
