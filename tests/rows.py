"""Rows for tests of the engine, put straight into Postgres: people with their keys, doctors with their slots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, Row, text
from uuid_utils.compat import uuid7

from domain import inbox, privacy
from domain.commands import Command, Erase
from domain.schedule import Role
from domain.settings import Settings


def tomorrow(hours: float = 0) -> datetime:
    """Noon of tomorrow in UTC, and so many hours later."""
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    return noon + timedelta(days=1, hours=hours)


def add_person(connection: Connection, settings: Settings, role: Role = Role.PATIENT, name: str = "Ana Souza") -> UUID:
    """A person who may act, with a data key and a sealed name."""
    person_id = uuid7()
    key, wrapped = privacy.new_data_key(settings.data_keys, person_id)
    private = privacy.seal(
        key, json.dumps({"name": name, "email": "ana@example.com"}), context="people.private", row_id=person_id
    )
    connection.execute(
        text("insert into people (id, role, private, email_confirmed_at) values (:id, :role, :private, clock_timestamp())"),
        {"id": person_id, "role": role, "private": private},
    )
    connection.execute(text("insert into person_keys values (:id, :wrapped)"), {"id": person_id, "wrapped": wrapped})
    return person_id


def add_doctor(connection: Connection, settings: Settings, *, lane: int = 0, name: str = "Bruno Lima", **values: object) -> UUID:
    """A verified doctor of São Paulo in a lane of the test's choice."""
    person_id = add_person(connection, settings, Role.DOCTOR, name)
    columns = {
        "id": person_id,
        "lane": lane,
        "status": "verified",
        "name": name,
        "search_name": name.lower(),
        "crm_number": str(person_id.int % 10**10),
        "crm_state": "SP",
        "price": 25000,
        "timezone": "America/Sao_Paulo",
        **values,
    }
    names, places = ", ".join(columns), ", ".join(f":{name}" for name in columns)
    connection.execute(text(f"insert into doctors ({names}) values ({places})"), columns)
    return person_id


def add_slot(connection: Connection, doctor_id: UUID, starts_at: datetime, minutes: int = 30, *, held: bool = True) -> UUID:
    """An open slot of the doctor's."""
    slot_id = uuid7()
    connection.execute(
        text(
            "insert into slots (id, doctor_id, during, status, held)"
            " values (:id, :doctor_id, tstzrange(:starts_at, :ends_at), 'open', :held)"
        ),
        {
            "id": slot_id,
            "doctor_id": doctor_id,
            "starts_at": starts_at,
            "ends_at": starts_at + timedelta(minutes=minutes),
            "held": held,
        },
    )
    return slot_id


def send(
    connection: Connection, settings: Settings, sender_id: UUID, command: Command | Erase, role: Role = Role.PATIENT
) -> Row[tuple[object]]:
    """Store a command as the API does."""
    return inbox.send(connection, settings, inbox.Sender(sender_id, role, "test"), command)


def outcomes(connection: Connection) -> Sequence[str]:
    """What became of the commands, in the order in which they were received: `succeeded`, or the code of the rejection."""
    return list(connection.execute(text("select coalesce(error_code, status) from commands order by seq")).scalars())
