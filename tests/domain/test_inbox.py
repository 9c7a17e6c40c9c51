"""What the inbox stores for others, all at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from domain import batches, inbox
from domain.commands import Accept, Book
from domain.inbox import Sender
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Postgres
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow

REASON = "O médico deixou de atender."


@pytest.fixture
def engine(postgres: Postgres, settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.database_url)
    yield engine
    engine.dispose()


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """The statements that are sent meanwhile."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


def doctor_with(connection: Connection, settings: Settings, lane: int, requested: int, accepted: int) -> UUID:
    """A doctor of this lane with so many appointments to come, the accepted ones first."""
    doctor = add_doctor(connection, settings, lane=lane)
    for hour in range(requested + accepted):
        send(connection, settings, add_person(connection, settings), Book(add_slot(connection, doctor, tomorrow(hour))))
    batches.decide_batch(connection, settings, lane)
    query = "select id from appointments where doctor_id = :id order by starts_at limit :accepted"
    for appointment_id in connection.execute(text(query), {"id": doctor, "accepted": accepted}).scalars():
        send(connection, settings, doctor, Accept(appointment_id), Role.DOCTOR)
    batches.decide_batch(connection, settings, lane)
    return doctor


def test_a_suspension_takes_as_many_statements_however_much_is_to_come(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        staff = Sender(add_person(connection, settings, Role.STAFF), Role.STAFF, "request-1")
        idle, little, busy = (
            doctor_with(connection, settings, lane, requested, accepted)
            for lane, (requested, accepted) in enumerate([(0, 0), (1, 1), (7, 8)])
        )
    with engine.begin() as connection:
        lanes, statements = [], []
        for doctor in (idle, little, busy):
            with counted(engine) as sent:
                lanes.append(inbox.send_suspension(connection, settings, staff, doctor, REASON))
            statements.append(len(sent))
        assert lanes == [None, 1, 2]
        assert len(set(statements)) == 1, statements
        kinds = "select kind from commands where lane = 2 and status = 'pending' and request_id = 'request-1' order by seq"
        assert list(connection.execute(text(kinds)).scalars()) == ["cancel"] * 8 + ["refuse"] * 7


def test_what_a_suspension_sends_is_decided_with_its_reason(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        staff = Sender(add_person(connection, settings, Role.STAFF), Role.STAFF)
        doctor = doctor_with(connection, settings, 0, 1, 1)
        inbox.send_suspension(connection, settings, staff, doctor, REASON)
        batches.decide_batch(connection, settings, 0)
        ended = "select status, refusal_kind, reason is not null as with_reason from appointments order by starts_at"
        assert connection.execute(text(ended)).all() == [("cancelled", None, True), ("refused", "unavailable", True)]
        assert connection.execute(text("select count(*) from commands where error_code is not null")).scalar() == 0
