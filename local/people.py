"""The people of the demonstration, read from the two tables beside this module: made up, with well-formed CRMs and CPFs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import date, time
from pathlib import Path
from typing import Final

from domain.availability import Availability, Rule
from domain.identifiers import name_key, parse_crm
from domain.identity import NewDoctor, NewPatient, RegisteredSpecialty, Representative


def _doctors(status: str) -> tuple[NewDoctor, ...]:
    """The doctors who are to have this status. The seed gives them passwords."""
    return tuple(
        NewDoctor(
            name=row["name"],
            email=f"{_mailbox(row['name'])}@medicos.example",
            password="",
            crm=parse_crm(row["crm"]),
            price=int(row["price"]),
            specialties=tuple(RegisteredSpecialty(*each.split(":")) for each in row["specialties"].split()),
            bio=row["bio"],
            timezone=row["timezone"],
        )
        for row in _table("doctors.csv")
        if row["status"] == status
    )


def _patients() -> tuple[NewPatient, ...]:
    return tuple(
        NewPatient(
            name=row["name"],
            email=f"{_mailbox(row['name'])}@pacientes.example",
            password="",
            birth_date=date.fromisoformat(row["birth_date"]),
            cpf=row["cpf"] or None,
            phone=row["phone"],
            language=row["language"],
            timezone=row["timezone"],
            representative=Representative(guardian, row["representative_cpf"]) if (guardian := row["representative"]) else None,
        )
        for row in _table("patients.csv")
    )


def _table(name: str) -> Iterator[dict[str, str]]:
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _mailbox(name: str) -> str:
    words = name_key(name).split()
    return f"{words[0]}.{words[-1]}"


def _week(days: str, start: str, end: str, slot_minutes: int) -> tuple[Rule, ...]:
    """The same range on several weekdays, each an ISO digit."""
    return tuple(Rule(int(day), time.fromisoformat(start), time.fromisoformat(end), slot_minutes) for day in days)


VERIFIED: Final = _doctors("verified")
PENDING: Final = _doctors("pending_verification")
SUSPENDED: Final = _doctors("suspended")
PATIENTS: Final = _patients()
STAFF: Final = {"equipe@healthmed.example": "Marina Tavares", "atendimento@healthmed.example": "Rogério Sampaio"}

# Doctors have these in turn. None of them leaves more than two days in a row without a slot.
AGENDAS: Final = (
    Availability(_week("135", "09:00", "11:00", 30)),
    Availability(_week("12345", "18:00", "19:30", 45)),
    Availability(_week("1245", "08:00", "10:00", 40)),
    Availability(_week("246", "09:00", "10:20", 20)),
    Availability(_week("1235", "14:00", "17:00", 60)),
    Availability(_week("135", "07:00", "08:00", 20) + _week("6", "10:00", "12:00", 40)),
)
