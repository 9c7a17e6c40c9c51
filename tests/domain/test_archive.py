"""What has had its time leaves the tables that are written, bit by bit, and nothing that was promised goes with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text

from domain import inbox, notices, personal, projections, retention, upkeep
from domain.cache import Cache, Change
from domain.commands import Book, Erase
from domain.database import connect
from domain.errors import Invalid, NotFound
from domain.inbox import Sender, lane_of
from domain.lanes import Drainer
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Broker, Postgres
from local.servers import Cache as CacheServer
from tests.rows import add_doctor, add_person, add_slot, tomorrow

OLD, YOUNG = "91 days", "89 days"


@dataclass(frozen=True)
class Inbox:
    """A doctor's lane, and a patient who sends commands under keys."""

    engine: Engine
    settings: Settings
    cache: Cache
    drainer: Drainer
    doctor_id: UUID
    patient_id: UUID

    def book(self, hours: float, key: str, notes: str = "Tosse") -> UUID:
        """Ask for a new slot."""
        with self.engine.begin() as connection:
            slot_id = add_slot(connection, self.doctor_id, tomorrow(hours))
            return UUID(str(self.send(connection, Book(slot_id, notes=notes), key).id))

    def send(self, connection: Connection, command: Book, key: str, fingerprint: bytes = b"POST") -> inbox.Row[object]:
        """Send a command under a key."""
        sender = Sender(self.patient_id, Role.PATIENT)
        return inbox.send(connection, self.settings, sender, command, key=key, fingerprint=fingerprint)

    def age(self, span: str) -> None:
        """Let all that was decided, and told, be so long ago."""
        with self.engine.begin() as connection:
            connection.execute(text(f"update commands set decided_at = decided_at - interval '{span}'"))
            connection.execute(text(f"update notices set sent_at = clock_timestamp() - interval '{span}'"))

    def count(self, table: str) -> int:
        """How many rows a table has."""
        with self.engine.begin() as connection:
            return int(connection.execute(text(f"select count(*) from {table}")).scalar_one())


@pytest.fixture
def engine(settings: Settings, postgres: Postgres, broker: Broker, cache_server: CacheServer) -> Iterator[Engine]:
    """The database, as the relay sees it."""
    engine = connect(settings.database_url, pool_size=4)
    yield engine
    engine.dispose()


@pytest.fixture
def box(engine: Engine, settings: Settings, broker: Broker) -> Iterator[Inbox]:
    """An empty inbox."""
    cache = Cache(settings, engine)
    cache.start()
    with engine.begin() as connection:
        doctor_id, patient_id = add_doctor(connection, settings), add_person(connection, settings)
    yield Inbox(engine, settings, cache, Drainer(settings, engine, cache, Redis.from_url(broker.url)), doctor_id, patient_id)
    cache.stop()


def test_an_archived_command_reads_as_it_always_did(box: Inbox) -> None:
    granted = box.book(0, "a")
    with box.engine.begin() as connection:
        slot_id = connection.execute(text("select id from slots")).scalar_one()
        refused = box.send(connection, Book(slot_id), "b").id
    box.drainer.drain(0)
    before = [projections.command(box.cache, each, box.patient_id) for each in (granted, refused)]
    assert [b'"slot_taken"' in each.body for each in before] == [False, True]
    with box.engine.begin() as connection:
        connection.execute(text(f"update commands set decided_at = decided_at - interval '{OLD}'"))
    assert upkeep.keep_terms(box.engine, box.cache) == 2
    with box.engine.begin() as connection:
        connection.execute(text(f"update archived_commands set decided_at = decided_at + interval '{OLD}'"))
    uncached = Cache(box.settings, box.engine)  # never started
    after = [projections.command(uncached, each, box.patient_id) for each in (granted, refused)]
    assert [(each.body, each.etag) for each in after] == [(each.body, each.etag) for each in before]
    with pytest.raises(NotFound):
        projections.command(uncached, granted, box.doctor_id)


def test_a_key_is_good_for_one_request_however_late_it_comes_again(box: Inbox) -> None:
    command_id = box.book(0, "a")
    box.drainer.drain(0)
    box.age(OLD)
    upkeep.keep_terms(box.engine, box.cache)
    with box.engine.begin() as connection:
        slot_id = add_slot(connection, box.doctor_id, tomorrow(5))
        again = box.send(connection, Book(slot_id), "a")
        assert (again.id, again.status) == (command_id, "succeeded")
        with pytest.raises(Invalid, match="Idempotency-Key"):
            box.send(connection, Book(slot_id), "a", b"PUT")
    assert box.count("commands") == 0


def test_only_what_is_old_and_settled_is_archived(box: Inbox) -> None:
    box.book(0, "a")
    box.drainer.drain(0)
    box.book(1, "b")  # waits
    box.age(YOUNG)
    assert upkeep.keep_terms(box.engine, box.cache) == 0
    with box.engine.begin() as connection:
        connection.execute(text("update commands set received_at = received_at - interval '1 year'"))
        for _ in range(2):
            notices.tell(connection, box.patient_id, notices.Kind.PASSWORD_CHANGED)
        connection.execute(text(f"update notices set sent_at = null, created_at = created_at - interval '{OLD}'"))
        sent, dropped, _waits = connection.execute(text("select id from notices order by id")).scalars().all()
        connection.execute(text(f"update notices set sent_at = now() - interval '{OLD}' where id = :id"), {"id": sent})
        given_up = f"update notices set dropped_at = now() - interval '{OLD}', drop_reason = 'undeliverable' where id = :id"
        connection.execute(text(given_up), {"id": dropped})
    assert upkeep.keep_terms(box.engine, box.cache) == 2
    assert (box.count("commands"), box.count("archived_notices"), box.count("notices")) == (2, 2, 1)


def test_what_moved_horizons_leaves_no_trace(box: Inbox) -> None:
    with box.engine.begin() as connection:
        connection.execute(
            text(
                "insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, payload, day, status, decided_at)"
                " select uuidv7(), 0, 'extend_horizon', :system, 'system', :doctor, '{}', current_date - 91, 'succeeded',"
                f" now() - interval '{OLD}'"
            ),
            {"system": inbox.SYSTEM, "doctor": box.doctor_id},
        )
    assert upkeep.keep_terms(box.engine, box.cache) == 1
    assert (box.count("commands"), box.count("archived_commands")) == (0, 0)


def test_two_relays_archive_each_row_once_and_a_killed_one_leaves_nothing_half_done(
    box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        box.book(n, str(n))
    box.drainer.drain(0)
    box.age(OLD)
    told = box.count("notices")
    monkeypatch.setattr(retention, "PORTION", 1)
    with box.engine.connect() as one, box.engine.connect() as other:
        assert retention.keep_terms(Change(one)) == 2, "a portion of each kind"
        assert retention.keep_terms(Change(other)) == 2, "nobody waits for the first"
        other.commit()
        one.rollback()  # it was killed
    assert (box.count("commands"), box.count("archived_commands")) == (2, 1)
    assert upkeep.keep_terms(box.engine, box.cache) == 2 + told - 1
    assert (box.count("archived_commands"), box.count("archived_notices")) == (3, told)
    assert box.count("commands") + box.count("notices") == 0


def test_an_erasure_finds_what_is_being_archived(box: Inbox) -> None:
    box.book(0, "a")
    box.drainer.drain(0)
    with box.engine.begin() as connection:
        connection.execute(text("update appointments set status = 'refused', active = false"))
    box.age(OLD)
    with box.engine.begin() as connection:
        lane = inbox.send(connection, box.settings, Sender(box.patient_id, Role.PATIENT), Erase()).lane
    assert lane == lane_of(box.patient_id, box.settings.lanes)
    eraser = threading.Thread(target=box.drainer.drain, args=(lane,))
    with box.engine.connect() as archiver:
        assert retention.keep_terms(Change(archiver)) > 0
        eraser.start()
        eraser.join(0.3)
        assert eraser.is_alive(), "it waits for the rows that are being moved"
        archiver.commit()
    eraser.join()
    with box.engine.begin() as connection:
        kept = connection.execute(text("select key_hash, request_hash from archived_commands")).one()
        assert (
            connection.execute(text("select status from people where id = :id"), {"id": box.patient_id}).scalar_one() == "erased"
        )
    assert kept.key_hash is not None
    assert kept.request_hash is None


def test_an_export_tells_what_was_archived(box: Inbox) -> None:
    command_id = box.book(0, "a")
    box.drainer.drain(0)
    box.age(OLD)
    upkeep.keep_terms(box.engine, box.cache)
    with box.engine.begin() as connection:
        told = personal.export(connection, box.settings, box.patient_id)["archived_commands"]
        assert [(each["id"], each["status"]) for each in told] == [(str(command_id), "succeeded")]
        told = personal.export(connection, box.settings, box.doctor_id)["archived_notices"]
        assert [(each["kind"], each["command_id"]) for each in told] == [("requested", str(command_id))]
