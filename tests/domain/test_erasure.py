"""Erasing a patient among the other commands of a lane, and at the same time as those of other lanes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text

from domain import batches, erasure, personal, sessions
from domain.cache import Cache
from domain.commands import Accept, Book, Cancel, Command, Erase, Kind
from domain.database import connect
from domain.inbox import PARKED, lane_of
from domain.lanes import Drainer
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Broker, Postgres
from local.servers import Cache as CacheServer
from tests.rows import add_doctor, add_person, add_slot, outcomes, send, tomorrow


@pytest.fixture
def engine(settings: Settings, postgres: Postgres, broker: Broker, cache_server: CacheServer) -> Iterator[Engine]:
    """The database, as a worker sees it."""
    engine = connect(settings.database_url, pool_size=8)
    yield engine
    engine.dispose()


@pytest.fixture
def drainer(engine: Engine, settings: Settings, broker: Broker) -> Drainer:
    """What decides."""
    return Drainer(settings, engine, Cache(settings, engine), Redis.from_url(broker.url))


def one(connection: Connection, query: str, **values: object) -> object:
    """The one value that a query finds."""
    return connection.execute(text(query), values).scalar_one()


def resume(engine: Engine, settings: Settings) -> list[int]:
    """Do what the relay does each second."""
    with engine.begin() as connection:
        return erasure.resume(connection, settings)


def test_an_erasure_keeps_its_place_among_the_commands_of_its_lane(engine: Engine, settings: Settings, drainer: Drainer) -> None:
    with engine.begin() as connection:
        patient = add_person(connection, settings)
        lane = lane_of(patient, settings.lanes)
        doctor = add_doctor(connection, settings, lane=lane)
        before, after, others = (add_slot(connection, doctor, tomorrow(hours)) for hours in range(3))
        other = add_person(connection, settings)
        send(connection, settings, patient, Book(before, notes="Tosse"))
        send(connection, settings, patient, Erase())
        send(connection, settings, patient, Book(after, notes="Tosse"))
        send(connection, settings, other, Book(others))
    assert not drainer.drain(lane)
    with engine.begin() as connection:
        assert outcomes(connection) == ["succeeded", "pending", "account_closed", "succeeded", "succeeded"]
        assert one(connection, "select kind from commands order by seq desc limit 1") == "cancel"
        assert one(connection, "select lane from commands where kind = 'erase'") == PARKED
        assert one(connection, "select max(attempts) from commands") == 0, "nothing failed on the way"
    assert resume(engine, settings) == [lane]
    assert not drainer.drain(lane)
    with engine.begin() as connection:
        assert one(connection, "select status from commands where kind = 'erase'") == "succeeded"
        assert one(connection, "select status from people where id = :id", id=patient) == "erased"
        assert one(connection, "select count(*) from person_keys where person_id = :id", id=other) == 1


def test_a_parked_erasure_is_resumed_only_when_nothing_waits(engine: Engine, settings: Settings, drainer: Drainer) -> None:
    with engine.begin() as connection:
        patient = add_person(connection, settings)
        lane = lane_of(patient, settings.lanes)
        doctor = add_doctor(connection, settings, lane=lane + 1)
        slot = add_slot(connection, doctor, tomorrow())
        send(connection, settings, patient, Book(slot))
    drainer.drain(lane + 1)
    with engine.begin() as connection:
        appointment = one(connection, "select id from appointments")
        assert isinstance(appointment, UUID)
        send(connection, settings, doctor, Accept(appointment, "https://sala.example/1"), Role.DOCTOR)
        send(connection, settings, patient, Erase())
    drainer.drain(lane)
    assert resume(engine, settings) == []
    drainer.drain(lane + 1)  # accepts, then cancels: each sealed under a key that must still be there
    with engine.begin() as connection:
        assert one(connection, "select status from appointments") == "cancelled"
    assert resume(engine, settings) == [lane]
    assert resume(engine, settings) == []
    drainer.drain(lane)
    with engine.begin() as connection:
        assert outcomes(connection) == ["succeeded", "succeeded", "succeeded", "succeeded"]


def test_a_key_is_never_destroyed_under_a_command_that_needs_it(engine: Engine, settings: Settings, drainer: Drainer) -> None:
    """Patients are erased while doctors and patients act on their appointments, in other lanes and other threads."""
    patients, doctors = 12, 3
    with engine.begin() as connection:
        people = [add_person(connection, settings) for _ in range(patients)]
        lanes = sorted({lane_of(person, settings.lanes) for person in people})
        free = [lane for lane in range(settings.lanes) if lane not in lanes][:doctors]
        agendas = {lane: add_doctor(connection, settings, lane=lane) for lane in free}
        for number, person in enumerate(people):
            slot = add_slot(connection, agendas[free[number % doctors]], tomorrow(number))
            send(connection, settings, person, Book(slot, notes="Tosse"))
    for lane in free:
        drainer.drain(lane)
    with engine.begin() as connection:
        rows = connection.execute(text("select id, patient_id, doctor_id from appointments")).all()
        assert len(rows) == patients
        for row in rows:
            acts: list[tuple[UUID, Command | Erase, Role]] = [
                (row.doctor_id, Accept(row.id, "https://sala.example/1"), Role.DOCTOR),
                (row.patient_id, Erase(), Role.PATIENT),
                (row.doctor_id, Cancel(row.id, "Imprevisto"), Role.DOCTOR),
                (row.patient_id, Cancel(row.id, "Não posso mais"), Role.PATIENT),
            ]
            for actor, command, role in acts:
                send(connection, settings, actor, command, role)

    def work(mine: list[int]) -> None:
        for lane in mine:
            drainer.drain(lane)

    for _ in range(6):
        threads = [threading.Thread(target=work, args=(mine,)) for mine in (free, lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        resume(engine, settings)
    with engine.begin() as connection:
        assert one(connection, "select count(*) from commands where status = 'pending'") == 0
        assert one(connection, "select count(*) from commands where error_code = 'internal_error'") == 0
        assert one(connection, "select count(*) from people where status = 'erased'") == patients
        assert one(connection, "select count(*) from appointments where active") == 0


def turn(engine: Engine, settings: Settings, drainer: Drainer, patient: UUID) -> None:
    """Drain the lane of the doctor and that of the patient, and do what the relay does each second."""
    for lane in {0, lane_of(patient, settings.lanes)}:
        drainer.drain(lane)
    resume(engine, settings)


def patient_with_appointments(connection: Connection, settings: Settings, count: int) -> UUID:
    """A patient whose requests wait to be decided by one doctor, and whose erasure comes after."""
    patient, doctor = add_person(connection, settings), add_doctor(connection, settings)
    for hour in range(count):
        send(connection, settings, patient, Book(add_slot(connection, doctor, tomorrow(hour))))
    return patient


def test_an_erasure_fails_when_an_appointment_cannot_be_cancelled(
    engine: Engine, settings: Settings, drainer: Drainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would send a cancellation each second for good."""
    with engine.begin() as connection:
        patient = patient_with_appointments(connection, settings, 1)
    decide = batches._decide

    def fail_to_cancel(row: Any, work: Any) -> Any:
        if row.kind == Kind.CANCEL:
            raise RuntimeError("broken")
        return decide(row, work)

    turn(engine, settings, drainer, patient)
    monkeypatch.setattr(batches, "_decide", fail_to_cancel)
    with engine.begin() as connection:
        send(connection, settings, patient, Erase())
    for _ in range(2 * erasure.CANCELLATIONS + 4):
        turn(engine, settings, drainer, patient)
    with engine.begin() as connection:
        assert one(connection, "select count(*) from commands where kind = 'cancel'") == erasure.CANCELLATIONS
        row = connection.execute(text("select error_code, error_detail from commands where kind = 'erase'")).one()
        assert row.error_code == "internal_error"
        assert "ref." in row.error_detail


def test_an_erasure_cancels_so_many_appointments_at_once(
    engine: Engine, settings: Settings, drainer: Drainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "MOST_CANCELLED", 2)
    with engine.begin() as connection:
        patient = patient_with_appointments(connection, settings, 3)
    turn(engine, settings, drainer, patient)
    with engine.begin() as connection:
        send(connection, settings, patient, Erase())
    drainer.drain(lane_of(patient, settings.lanes))
    with engine.begin() as connection:
        assert one(connection, "select count(*) from commands where kind = 'cancel'") == 2
    for _ in range(4):
        turn(engine, settings, drainer, patient)
    with engine.begin() as connection:
        assert one(connection, "select count(*) from commands where kind = 'cancel'") == 3
        assert one(connection, "select status from people where id = :id", id=patient) == "erased"


def test_a_log_in_that_commits_during_an_erasure_ends_with_it(engine: Engine, settings: Settings, drainer: Drainer) -> None:
    with engine.begin() as connection:
        patient = add_person(connection, settings)
        send(connection, settings, patient, Erase())
    eraser = threading.Thread(target=drainer.drain, args=(lane_of(patient, settings.lanes),))
    with engine.begin() as connection:
        sessions.open_session(connection, settings, patient, Role.PATIENT, sessions.Origin("192.0.2.1", "a browser"))
        eraser.start()
        eraser.join(0.5)
    eraser.join()
    with engine.begin() as connection:
        assert one(connection, "select status from people where id = :id", id=patient) == "erased"
        session_id = one(connection, "select id from sessions where revoked_at is not null and origin is null")
        scopes = one(connection, "select scopes from batches where 'command:' || (select id from commands) = any(scopes)")
        assert f"session:{session_id}" in scopes


def test_a_key_that_a_log_in_holds_is_not_destroyed_under_it(engine: Engine, settings: Settings, drainer: Drainer) -> None:
    with engine.begin() as connection:
        patient = add_person(connection, settings)
        send(connection, settings, patient, Erase())
    eraser = threading.Thread(target=drainer.drain, args=(lane_of(patient, settings.lanes),))
    with engine.begin() as connection:
        assert personal.key_of(connection, settings, patient, held=True)
        eraser.start()
        eraser.join(0.5)
        with engine.connect() as other:
            assert one(other, "select count(*) from person_keys where person_id = :id", id=patient) == 1
    eraser.join()
    with engine.begin() as connection:
        assert personal.key_of(connection, settings, patient, held=True) is None
