"""What an operator runs by hand: rewrapping keys under a new one, keeping terms, revealing what the law keeps."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine, text
from uuid_utils.compat import uuid7

from domain import inbox, privacy, upkeep
from domain import settings as all_settings
from domain.cache import Cache
from domain.commands import Accept, Book, Complete, Erase
from domain.database import connect
from domain.lanes import Drainer
from domain.privacy import KeyRing, Unreadable
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Broker, Postgres
from local.servers import Cache as CacheServer
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow


@pytest.fixture
def engine(settings: Settings, postgres: Postgres, broker: Broker, cache_server: CacheServer) -> Iterator[Engine]:
    """The database, as an operator's command sees it."""
    engine = connect(settings.database_url, pool_size=4)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(engine: Engine, settings: Settings) -> Cache:
    """The projections."""
    return Cache(settings, engine)


def ring(*ids: str) -> KeyRing:
    """A ring of the keys of these names, the first one for what is new."""
    return KeyRing.parse(",".join(f"{name}={base64.b64encode(name.encode()[:1] * 32).decode()}" for name in ids))


def held(engine: Engine, settings: Settings, doctor: UUID, patient: UUID, drainer: Drainer) -> UUID:
    """An appointment with notes that has taken place."""
    with engine.begin() as connection:
        slot = add_slot(connection, doctor, tomorrow())
        send(connection, settings, patient, Book(slot, notes="Tosse seca"))
    drainer.drain(0)
    with engine.begin() as connection:
        appointment: UUID = connection.execute(text("select id from appointments")).scalar_one()
        send(connection, settings, doctor, Accept(appointment), Role.DOCTOR)
    drainer.drain(0)
    back = "tstzrange(lower(during) - interval '3 days', upper(during) - interval '3 days')"
    with engine.begin() as connection:
        connection.execute(text(f"update slots set during = {back}"))
        connection.execute(text(f"update appointments set during = {back}"))
        send(connection, settings, doctor, Complete(appointment), Role.DOCTOR)
    drainer.drain(0)
    return appointment


def erased(engine: Engine, settings: Settings, patient: UUID, drainer: Drainer) -> None:
    """Erase a patient who has nothing to come."""
    with engine.begin() as connection:
        lane = send(connection, settings, patient, Erase()).lane
    drainer.drain(lane)


@pytest.fixture
def drainer(engine: Engine, settings: Settings, cache: Cache, broker: Broker) -> Drainer:
    """What decides."""
    return Drainer(settings, engine, cache, Redis.from_url(broker.url))


def test_every_key_is_rewrapped_under_a_new_one_while_both_are_read(engine: Engine, settings: Settings, drainer: Drainer) -> None:
    old, both, new = (replace(settings, data_keys=keys) for keys in (ring("old"), ring("new", "old"), ring("new")))
    with engine.begin() as connection:
        people = [add_person(connection, old) for _ in range(upkeep.PORTION + 2)]
        doctor = add_doctor(connection, old)
    worker = replace(drainer, settings=old)
    appointment = held(engine, old, doctor, people[0], worker)
    erased(engine, old, people[0], worker)

    assert upkeep.rewrap(engine, both) == (
        len(people) + 1,
        [],
    )  # a doctor's too; the erased one's is gone, their consultation has its own
    assert upkeep.rewrap(engine, both) == (0, [])
    with engine.begin() as connection:
        rows = connection.execute(text("select person_id as id, wrapped from person_keys")).all()
        rows += connection.execute(text("select appointment_id, wrapped from retained")).all()
        assert len(rows) == len(people) + 1
        for row in rows:
            privacy.unwrap(new.data_keys, row.id if hasattr(row, "id") else row.appointment_id, bytes(row.wrapped))
            with pytest.raises(Unreadable):
                privacy.unwrap(old.data_keys, row[0], bytes(row.wrapped))
        sent = inbox.send(
            connection, both, inbox.Sender(people[1], Role.PATIENT), Book(add_slot(connection, doctor, tomorrow()), "Febre")
        )
        assert sent.status == "pending"
    assert appointment


def test_a_key_that_cannot_be_opened_is_named_and_left_alone(engine: Engine, settings: Settings) -> None:
    both = replace(settings, data_keys=ring("new", "old"))
    with engine.begin() as connection:
        fine, lost = add_person(connection, both), add_person(connection, replace(settings, data_keys=ring("gone")))
    assert upkeep.rewrap(engine, both) == (0, [lost])
    assert fine != lost


def count(engine: Engine, table: str) -> int:
    """How many rows a table has."""
    with engine.begin() as connection:
        return int(connection.execute(text(f"select count(*) from {table}")).scalar_one())


def test_decided_commands_are_archived_after_ninety_days(
    engine: Engine, settings: Settings, cache: Cache, drainer: Drainer
) -> None:
    with engine.begin() as connection:
        patient, doctor = add_person(connection, settings), add_doctor(connection, settings)
        for hours in range(3):
            send(connection, settings, patient, Book(add_slot(connection, doctor, tomorrow(hours)), notes="Tosse"))
    drainer.drain(0)
    assert upkeep.keep_terms(engine, cache) == 0
    with engine.begin() as connection:
        send(connection, settings, patient, Book(add_slot(connection, doctor, tomorrow(9))))
        connection.execute(text("update commands set received_at = received_at - interval '91 days'"))  # one waits all that time
        connection.execute(
            text(
                "update commands set decided_at = decided_at - interval '91 days' where seq < (select max(seq) - 1 from commands)"
            )
        )
    assert upkeep.keep_terms(engine, cache) == 2
    assert (count(engine, "commands"), count(engine, "archived_commands")) == (2, 2)
    with engine.begin() as connection:
        row = connection.execute(text("select * from archived_commands order by seq limit 1")).one()
    assert (row.kind, row.status, row.actor_id, row.doctor_id) == ("book", "succeeded", patient, doctor)


def test_a_consultation_that_was_kept_goes_after_twenty_years(
    engine: Engine, settings: Settings, cache: Cache, drainer: Drainer, postgres: Postgres
) -> None:
    with engine.begin() as connection:
        patient, other, doctor = (
            add_person(connection, settings),
            add_person(connection, settings),
            add_doctor(connection, settings),
        )
    kept = held(engine, settings, doctor, patient, drainer)
    erased(engine, settings, patient, drainer)
    assert count(engine, "retained") == 1
    superuser = connect(postgres.superuser_url.replace("postgresql:", "postgresql+psycopg2:"), pool_size=1)

    def age(years: int, days: int) -> UUID:
        """Let what was kept be so old: the ids, which are made of the time, too."""
        with superuser.begin() as connection:
            connection.execute(text("set session_replication_role = replica"))
            span = {"years": f"{years} years {days} days"}
            old = connection.execute(text("select uuidv7(-cast(:years as interval))"), span).scalar_one()
            for table, column in (("appointments", "id"), ("history", "appointment_id"), ("retained", "appointment_id")):
                connection.execute(text(f"update {table} set {column} = :id"), {"id": old})
            connection.execute(text("update history set at = clock_timestamp() - cast(:years as interval)"), span)
            return UUID(str(old))

    age(19, 364)
    assert upkeep.keep_terms(engine, cache) == 0
    age(20, 1)
    with engine.begin() as connection:  # somebody whose account still stands, and whose consultation is as old
        connection.execute(text("update appointments set patient_id = :id, notes = 'x'"), {"id": other})
    assert upkeep.keep_terms(engine, cache) == 2
    superuser.dispose()
    assert count(engine, "retained") == 0
    with engine.begin() as connection:
        assert connection.execute(text("select num_nonnulls(notes, reason, join_url) from appointments")).scalar_one() == 0
    assert kept


def test_sessions_that_are_long_over_go(engine: Engine, settings: Settings, cache: Cache) -> None:
    with engine.begin() as connection:
        patient = add_person(connection, settings)
        for days in (1, 179, 181, 300):
            connection.execute(
                text(
                    "insert into sessions (id, person_id, refresh_id, refreshed_at, expires_at) select"
                    " uuidv7(-cast(:age as interval)), :person, :refresh, now() - cast(:age as interval),"
                    " now() - cast(:age as interval)"
                ),
                {"age": timedelta(days=days), "person": patient, "refresh": uuid7()},
            )
    assert upkeep.keep_terms(engine, cache) == 2
    assert count(engine, "sessions") == 2


def test_batches_that_are_long_finished_go(engine: Engine, settings: Settings, cache: Cache) -> None:
    with engine.begin() as connection:
        for days, finished in ((1, True), (91, True), (91, False)):
            connection.execute(
                text("insert into batches (id, scopes, finished_at) values (uuidv7(-cast(:age as interval)), '{}', :finished)"),
                {"age": timedelta(days=days), "finished": tomorrow() if finished else None},
            )
    assert upkeep.keep_terms(engine, cache) == 1
    assert count(engine, "batches") == 2


def test_the_command_line_does_what_it_says(
    engine: Engine,
    settings: Settings,
    drainer: Drainer,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(all_settings, "current", lambda: all_settings.load(environ))
    with engine.begin() as connection:
        patient, doctor = add_person(connection, settings, name="Zulmira"), add_doctor(connection, settings)
    appointment = held(engine, settings, doctor, patient, drainer)
    erased(engine, settings, patient, drainer)
    capsys.readouterr()

    def run(*arguments: str, given: str = "") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        return upkeep.main(arguments), capsys.readouterr().out

    assert run("rewrap") == (0, "0 keys rewrapped, 0 unreadable\n")
    assert run("retain") == (0, "0 rows archived or erased\n")
    assert run("tombstones") == (0, f"{patient}\n")
    assert run("bury", given=f"{patient}\n{uuid7()}\n\n") == (0, "0 of 2 are being erased again\n")
    status, told = run("reveal", str(appointment))
    assert status == 0
    assert "Zulmira" in told
    assert "Tosse seca" in told
    assert run("reveal", str(uuid7())) == (1, "")
    with pytest.raises(SystemExit):
        run("erase everybody")
