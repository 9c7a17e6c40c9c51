"""A database that was lost comes back as it was at an instant: all that was acknowledged before it, and nothing after it."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine, create_engine, text

from domain import migrations
from domain.cache import Cache
from domain.commands import Book, Erase
from domain.lanes import Drainer
from domain.settings import Settings, load
from local import archive, restart
from local.backup import Base, backup, main
from local.servers import Broker, Postgres, write_secret
from local.servers import Cache as CacheServer
from tests.checks import violations
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow

SECRETS = ("JWT_KEYS", "DATA_KEYS", "HASH_KEY")


@dataclass
class Machine:
    """What a stack keeps in its state folder, without its processes: the database, and a hand that decides."""

    state: Path
    environ: dict[str, str]
    postgres: Postgres = field(init=False)

    def __post_init__(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        if not (self.state / "secrets.json").exists():
            write_secret(self.state / "secrets.json", json.dumps({name: self.environ[name] for name in SECRETS}))
        self.postgres = Postgres(self.state / "postgres", archive=self.state / "backup" / "wal", options={"fsync": "off"})

    @property
    def settings(self) -> Settings:
        """The settings that its processes would have."""
        return load({**self.environ, "DATABASE_URL": self.postgres.url, "DATABASE_MIGRATION_URL": self.postgres.migration_url})

    @contextmanager
    def up(self) -> Iterator[Engine]:
        """Run, and hold the folder as a stack does."""
        with (self.state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(str(os.getpid()))
            lock.flush()
            self.postgres.start()
            try:
                settings = self.settings
                migrations.upgrade(settings.database_migration_url, app_url=settings.database_url)
                write_secret(self.state / "settings.json", json.dumps({"DATABASE_URL": self.postgres.url}))
                engine = create_engine(settings.database_url)
                yield engine
                engine.dispose()
            finally:
                self.postgres.stop()

    def decide(self, engine: Engine, lane: int) -> None:
        """Decide what waits in a lane."""
        settings = self.settings
        cache = Cache(settings, engine)
        with closing(Redis.from_url(settings.broker_url)) as broker:
            Drainer(settings, engine, cache, broker).drain(lane)
        cache.stop()


class Clinic:
    """Somebody who books one slot after another, and remembers when each was acknowledged."""

    def __init__(self, machine: Machine, engine: Engine) -> None:
        self._machine, self._engine = machine, engine
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        self.acknowledged: dict[UUID, datetime] = {}
        with engine.begin() as connection:
            self.doctor = add_doctor(connection, machine.settings)
            self.patient, self.leaver = (add_person(connection, machine.settings) for _ in range(2))

    def __enter__(self) -> Clinic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _go_on(self) -> None:
        settings = self._machine.settings
        for number in range(10_000):
            if self._stopped.is_set():
                return
            with self._engine.begin() as connection:
                slot = add_slot(connection, self.doctor, tomorrow(number), 30)
            with self._engine.begin() as connection:
                command = send(connection, settings, self.patient, Book(slot))
            self.acknowledged[command.id] = datetime.now(UTC)
            if number % 25 == 0:
                self._machine.decide(self._engine, 0)
            time.sleep(0.01)


@dataclass
class Make:
    """`make restore`, as whoever typed it sees it."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def restore(self, state: Path, *options: str) -> tuple[int, str]:
        """The exit code, and what was said, where it belongs."""
        self.monkeypatch.setenv("STATE_DIR", str(state))
        self.capsys.readouterr()
        try:
            code = main(["restore", *options])
        except SystemExit as ended:
            code = int(str(ended.code))
        said = self.capsys.readouterr()
        assert not (said.out if code else said.err)
        return code, said.err if code else said.out


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Make:
    return Make(monkeypatch, capsys)


@pytest.fixture
def machine(tmp_path: Path, environ: dict[str, str], broker: Broker, cache_server: CacheServer) -> Machine:
    return Machine(tmp_path / "a state", environ)


def test_what_was_acknowledged_before_an_instant_comes_back_and_nothing_else(
    machine: Machine, make: Make, tmp_path: Path
) -> None:
    with machine.up() as engine, Clinic(machine, engine) as clinic:
        with engine.begin() as connection:
            session = connection.execute(_LOG_IN, {"person": clinic.patient}).scalar_one()
        base = backup(machine.state)
        time.sleep(0.3)
        at = datetime.now(UTC)
        time.sleep(0.3)
        with engine.begin() as connection:
            lane = send(connection, machine.settings, clinic.leaver, Erase()).lane
        machine.decide(engine, lane)
        with engine.connect() as connection:
            assert connection.execute(_STATUS, {"person": clinic.leaver}).scalar_one() == "erased"
            epoch = connection.execute(text("select epoch from cache")).scalar_one()
        assert make.restore(machine.state) == (1, f"A stack is using {machine.state}: stop it first.\n")
    before = {command for command, told in clinic.acknowledged.items() if told < at}
    assert base.at < at
    assert 0 < len(before) < len(clinic.acknowledged)

    code, said = make.restore(machine.state, "--at", at.isoformat())
    assert code == 0, said
    assert "1 sessions were ended" in said
    assert "1 people are being erased again" in said
    (kept,) = machine.state.glob("before-restore-*")
    assert (kept / "postgres" / "data" / "PG_VERSION").exists()

    again = Machine(machine.state, machine.environ)
    with again.up() as engine:
        with engine.connect() as connection:
            rows = connection.execute(text("select id, received_at from commands where kind = 'book'")).all()
            assert before <= {row.id for row in rows}
            assert all(row.received_at <= at for row in rows)
            assert connection.execute(_STATUS, {"person": clinic.leaver}).scalar_one() == "closing"
            assert connection.execute(_ENDED, {"session": session}).scalar_one()
            assert connection.execute(text("select epoch from cache")).scalar_one() > epoch + 1_000_000
        again.decide(engine, 0)
        again.decide(engine, lane)
        with engine.connect() as connection:
            assert connection.execute(_STATUS, {"person": clinic.leaver}).scalar_one() == "erased"
            assert connection.execute(text("select count(*) from commands where status = 'pending'")).scalar_one() == 0
        assert violations(engine, again.settings, patience=600) == []  # nobody mails here, nor finishes what was under way
        with engine.begin() as connection:
            late = send(connection, again.settings, clinic.patient, Book(add_slot(connection, clinic.doctor, tomorrow(-3)))).id
        backup(again.state)
        missing = Machine(tmp_path / "elsewhere", {**machine.environ, "DATA_KEYS": "other=" + "A" * 43 + "="})

    # The disk is lost: what was kept of the log, that of the restored database too, is all there is; and no other keys open it.
    source = machine.state / "backup"
    code, said = make.restore(missing.state, "--from", str(source))
    assert (code, said) == (1, "These backups were made under other keys: put their secrets.json in the state folder.\n")
    assert not list(missing.state.glob("before-restore-*"))
    write_secret(missing.state / "secrets.json", (machine.state / "secrets.json").read_text())
    code, said = make.restore(missing.state, "--from", str(source), "--at", (datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert code == 0, said
    assert "What was kept of the log ends before" in said
    other = Machine(missing.state, machine.environ)
    with other.up() as engine, engine.connect() as connection:
        assert {row.id for row in connection.execute(text("select id from commands where kind = 'book'"))} >= before | {late}


def test_what_cannot_be_brought_back_is_one_clear_line_and_touches_nothing(make: Make, tmp_path: Path) -> None:
    state = tmp_path / "state"
    make.monkeypatch.setenv("DATABASE_URL", "postgresql://somebody@db.example/healthmed")
    code, said = make.restore(state)
    assert (code, "a database of your own" in said) == (1, True)
    make.monkeypatch.delenv("DATABASE_URL")
    code, said = make.restore(state)
    assert (code, "secrets.json is not there" in said) == (1, True)
    write_secret(state / "secrets.json", "{}")
    assert make.restore(state) == (1, f"There is no backup in {state / 'backup'}.\n")
    base = state / "backup" / "base-1"
    base.mkdir(parents=True)
    write_secret(base / "backup.json", json.dumps({"at": "2026-11-24T12:00:00+00:00"}))
    code, said = make.restore(state, "--at", "2026-11-24T08:59:00-03:00")
    assert (code, len(said.splitlines())) == (1, 1)
    assert "is of 2026-11-24T12:00:00.000Z: nothing before can be brought back" in said
    assert make.restore(state, "--at", "2026-11-24T09:00:00")[0] == 2  # of which time zone?
    assert Base.all(state / "backup") == [Base(base, datetime(2026, 11, 24, 12, tzinfo=UTC))]
    assert sorted(each.name for each in state.iterdir()) == ["backup", "lock", "secrets.json"]


@pytest.mark.parametrize("ask", [lambda: main(["backup"]), restart.main])
def test_without_a_stack_there_is_nothing_to_back_up_or_restart(
    ask: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lock").write_text(str(os.getpid()))  # left by one that has ended
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    assert ask() == 1
    told = capsys.readouterr().err
    assert told == f"No stack runs in {tmp_path}: bring it up with `make up`, or set STATE_DIR to that of another one.\n"


def test_a_piece_of_the_log_is_kept_once_and_never_replaced(tmp_path: Path) -> None:
    piece, kept, back = tmp_path / "piece", tmp_path / "wal" / "0001", tmp_path / "back"
    piece.write_bytes(b"one" * 100_000)
    archive.keep(str(piece), str(kept))  # nobody has asked for it
    assert not kept.parent.exists()
    kept.parent.mkdir()
    archive.keep(str(piece), str(kept))
    archive.keep(str(piece), str(kept))  # as after a crash between keeping it and noting that
    archive.fetch(str(back), str(tmp_path / "none"), str(kept))
    assert back.read_bytes() == piece.read_bytes()
    piece.write_bytes(b"two" * 100_000)
    with pytest.raises(SystemExit):
        archive.keep(str(piece), str(kept))
    with pytest.raises(SystemExit):
        archive.fetch(str(back), str(tmp_path / "none"))
    assert [each.name for each in kept.parent.iterdir()] == ["0001.gz"]


_LOG_IN = text(
    "insert into sessions (id, person_id, refresh_id, refreshed_at, expires_at) values"
    " (uuidv7(), :person, uuidv7(), clock_timestamp(), clock_timestamp() + interval '1 day') returning id"
)
_STATUS = text("select status from people where id = :person")
_ENDED = text("select revoked_at is not null from sessions where id = :session")
