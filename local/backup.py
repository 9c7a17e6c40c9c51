"""`make backup` and `make restore`: a copy of the local stack's database and all that is written since, and the way back.

Base backups stand in STATE_DIR/backup; from the first one on, PostgreSQL keeps each finished piece of its log beside them, so the
database can be brought back as it was at any instant after a backup. The keys are in none of it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import psycopg2
from sqlalchemy import Engine, text

from domain import chains, database, erasure, privacy, upkeep
from domain.cache import Cache as Projections
from domain.cache import changing
from domain.migrations import upgrade
from domain.settings import Settings, SettingsError, load
from local.restart import running_stack
from local.servers import (
    APP,
    SUPERUSER,
    Cache,
    Postgres,
    ServerError,
    archive_command,
    asking,
    for_shell,
    postgres_program,
    write_secret,
)

KEPT = 7  # base backups; what is older goes, with the log that only it needs
ARCHIVE_SECONDS = 60.0
RECOVERY_SECONDS = 3600.0
TOO_EARLY = "recovery ended before configured recovery target was reached"


class Problem(Exception):
    """It can't be done; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base backup, and since when it can be brought back from."""

    folder: Path
    at: datetime

    @classmethod
    def all(cls, place: Path) -> list[Base]:
        """Those that are complete, the oldest first."""
        told = [(file.parent, json.loads(file.read_text())) for file in place.glob("base-*/backup.json")]
        return sorted((cls(folder, datetime.fromisoformat(each["at"])) for folder, each in told), key=lambda base: base.at)

    @property
    def first_piece(self) -> str:
        """The name of the first piece of the log that it needs."""
        label = (self.folder / "data" / "backup_label").read_text()
        return label.partition("(file ")[2].partition(")")[0]


def backup(state: Path) -> Base:
    """Take a base backup of the stack that runs in a state folder, and have its log kept from now on. Raises Problem."""
    if running_stack(state) is None:
        raise Problem(f"No stack runs in {state}: bring it up with `make up`, or set STATE_DIR to that of another one.")
    passwords, port = _own_database(state)
    place = state / "backup"
    for folder in (place, place / "wal"):
        folder.mkdir(mode=0o700, exist_ok=True)
    for draft in place.glob(".base-*"):
        shutil.rmtree(draft)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    draft, done = place / f".base-{stamp}", place / f"base-{stamp}"
    draft.mkdir(mode=0o700)
    where = ["-h", "127.0.0.1", "-p", str(port), "-U", SUPERUSER]
    secret = {"PGPASSWORD": passwords[SUPERUSER]}
    _run("pg_basebackup", *where, "-D", str(draft / "data"), "-X", "stream", "-c", "fast", **secret)
    _run("pg_verifybackup", "--quiet", str(draft / "data"))
    with asking(f"postgresql://{SUPERUSER}:{passwords[SUPERUSER]}@127.0.0.1:{port}/{SUPERUSER}") as cursor:
        cursor.execute("select clock_timestamp()")
        at = cursor.fetchall()[0][0]
        cursor.execute("select pg_logical_emit_message(true, 'healthmed', 'backup')")  # the log must go on after it
        cursor.execute("select pg_walfile_name(pg_switch_wal())")
        piece = cursor.fetchall()[0][0]
        _wait_until_kept(cursor, piece)
    # Of the roles, as the copy has them: not of what is in it, which only the key ring opens.
    write_secret(draft / "passwords.json", json.dumps(passwords))
    write_secret(draft / "backup.json", json.dumps({"at": at.isoformat()}))
    draft.rename(done)
    _forget_old(place)
    return Base(done, at)


class Restored(Postgres):
    """A copy of a base backup, brought forward by what was kept of the log, to an instant or to the end."""

    def __init__(self, directory: Path, base: Base, pieces: Sequence[Path], at: datetime | None) -> None:
        self._base = base
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        shutil.copy(base.folder / "passwords.json", directory)
        fetched = archive_command("fetch", "%p", *(f"{for_shell(place)}/%f" for place in pieces))
        options = {"restore_command": fetched, "archive_mode": "off", "recovery_target_action": "promote"}
        if at is not None:
            options["recovery_target_time"] = at.isoformat()
        super().__init__(directory, options=options)

    def recover(self) -> bool:
        """Start it, and wait until all is brought back; False if the log ends before the instant. Raises Problem."""
        self.launch()
        deadline = time.monotonic() + RECOVERY_SECONDS
        while self._recovers():
            if not self.running:
                if TOO_EARLY in self.log.read_text(errors="replace"):
                    return False
                raise Problem(f"The database could not be brought back: {self.last_words()} (more in {self.log})")
            if time.monotonic() > deadline:
                raise Problem(f"The database was not brought back within an hour; see {self.log}.")
            time.sleep(0.1)
        return True

    def _recovers(self) -> bool:
        try:
            with asking(self._url(SUPERUSER, SUPERUSER)) as cursor:
                cursor.execute("select pg_is_in_recovery()")
                return bool(cursor.fetchall()[0][0])
        except psycopg2.OperationalError:
            return True

    def _initialise(self) -> None:
        self.data.mkdir(mode=0o700)
        # By whoever the server is, to whom all of it must belong.
        copied = self._spawn(["/bin/cp", "-R", f"{self._base.folder / 'data'}/.", self.data], not_root=self.data)
        if copied.wait() != 0:
            raise Problem(f"The backup could not be copied: {self.last_words()}")
        self._spawn(["/usr/bin/env", "touch", self.data / "recovery.signal"], not_root=self.data).wait()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a restore brought back: until when, and what was done so that nothing comes back that must not."""

    last_change: datetime | None
    ended_early: bool  # the log did not reach as far as was asked for
    sessions: int
    buried: int
    kept: Path  # where what stood there before is


def restore(state: Path, source: Path, at: datetime | None, given: Mapping[str, str]) -> Outcome:
    """Put the database of an instant (of the end, if none) in the place of a state folder's. Raises Problem or SettingsError.

    What was there is moved aside and kept, and nothing of it is touched before all else is done.
    """
    if given.get("DATABASE_URL"):
        raise Problem("DATABASE_URL names a database of your own: restore it by its own means; docs/operations.md says how.")
    secrets = state / "secrets.json"
    if not secrets.exists():
        raise Problem(f"{secrets} is not there: without the keys that the stack had, nobody's data can be read.")
    bases = [base for base in Base.all(source) if at is None or base.at <= at]
    if not bases:
        earliest = min((base.at for base in Base.all(source)), default=None)
        raise Problem(
            f"There is no backup in {source}."
            if earliest is None
            else f"The oldest backup in {source} is of {_told(earliest)}: nothing before can be brought back."
        )
    place = state / "restoring"
    shutil.rmtree(place, ignore_errors=True)
    pieces = [source / "wal", *([state / "postgres" / "data" / "pg_wal"] if source == state / "backup" else [])]
    with contextlib.ExitStack() as running:
        server, early = _recovered(running, place / "postgres", bases[-1], pieces, at)
        cache = Cache(place / "cache")
        running.callback(cache.kill)
        cache.start()
        kept = {**json.loads(secrets.read_text()), **{name: value for name, value in given.items() if value}}
        urls = {"DATABASE_URL": server.url, "DATABASE_MIGRATION_URL": server.migration_url, "CACHE_URL": cache.url}
        settings = load({**kept, **urls, "BROKER_URL": cache.url, "LOCAL_STACK": "on"})
        erased: list[UUID] = []
        if at is not None and not early:  # who was erased since must not come back: the rest of the log tells
            whole, _ = _recovered(running, place / "whole", bases[-1], pieces, None)
            with asking(whole.superuser_url) as cursor:
                cursor.execute("select id from people where status = 'erased' order by id")
                erased = [UUID(person) for (person,) in cursor]
            whole.kill()
        upgrade(settings.database_migration_url, app_url=settings.database_url)
        engine = database.connect(settings.database_url, pool_size=2)
        try:
            last = _check(engine, settings)
            sessions = upkeep.restored(engine)
            with changing(engine, Projections(settings, engine)) as change:
                buried = len(erasure.bury(change, settings, erased))
        finally:
            engine.dispose()
        server.stop(30)
    if source == state / "backup":  # so that a later restore follows this turn of the log
        for turn in (server.data / "pg_wal").glob("*.history"):
            shutil.copy(turn, source / "wal")
    return Outcome(last, early, sessions, buried, _take_the_place(state, place, source))


def _recovered(
    running: contextlib.ExitStack, folder: Path, base: Base, pieces: Sequence[Path], at: datetime | None
) -> tuple[Restored, bool]:
    """A server with what was brought back, and whether the log ended before the instant."""
    server = Restored(folder, base, pieces, at)
    running.callback(server.kill)
    if server.recover():
        return server, False
    server.kill()
    server = Restored(folder, base, pieces, None)
    running.callback(server.kill)
    server.recover()
    return server, True


def _check(engine: Engine, settings: Settings) -> datetime | None:
    """Refuse what can't be read or was altered; when it was last changed."""
    with engine.connect() as connection:
        key = connection.execute(text("select person_id, wrapped from person_keys limit 1")).one_or_none()
        if key is not None:
            try:
                privacy.unwrap(settings.data_keys, key.person_id, bytes(key.wrapped))
            except privacy.Unreadable:
                raise Problem("These backups were made under other keys: put their secrets.json in the state folder.") from None
        flaws = list(chains.verify(connection, {}))
        if flaws:
            raise Problem(f"What was brought back does not verify, in {len(flaws)} places, the first in {flaws[0].table}.")
        last: datetime | None = connection.execute(
            text("select greatest((select max(received_at) from commands), (select max(at) from history))")
        ).scalar_one()
        return last


def _take_the_place(state: Path, place: Path, source: Path) -> Path:
    """Move what stands there aside, and what was brought back in its place; where the former is now."""
    aside = state / f"before-restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"
    aside.mkdir(mode=0o700)
    # The broker's wake-ups, limits and locks are of commands that may never have been; a cache forgets by itself.
    names = ["postgres", "broker", *(["backup"] if source != state / "backup" else [])]
    for name in names:
        if (state / name).exists():
            (state / name).rename(aside / name)
    (place / "postgres").rename(state / "postgres")
    shutil.rmtree(place, ignore_errors=True)
    return aside


def _own_database(state: Path) -> tuple[dict[str, str], int]:
    """The roles' passwords of a running stack's own PostgreSQL, and its port. Raises Problem if it uses another one."""
    passwords, settings = state / "postgres" / "passwords.json", state / "settings.json"
    if passwords.exists() and settings.exists():
        known: dict[str, str] = json.loads(passwords.read_text())
        url = urlsplit(json.loads(settings.read_text())["DATABASE_URL"])
        if url.password == known[APP] and url.port is not None:
            return known, url.port
    raise Problem(
        "The stack uses a database of your own (DATABASE_URL): back it up by its own means; docs/operations.md says how."
    )


def _wait_until_kept(cursor: psycopg2.extensions.cursor, piece: str) -> None:
    deadline = time.monotonic() + ARCHIVE_SECONDS
    while True:
        cursor.execute(
            "select last_archived_wal, last_failed_time > coalesce(last_archived_time, '-infinity') from pg_stat_archiver"
        )
        kept, fails = cursor.fetchall()[0]
        if kept is not None and kept[8:24] >= piece[8:24]:
            return
        if time.monotonic() > deadline:
            why = "keeping it fails" if fails else "it takes too long"
            raise Problem(
                f"The log is not being kept ({why}; see log/postgres.log): nothing after the backup could be brought back."
            )
        time.sleep(0.1)


def _forget_old(place: Path) -> None:
    bases = Base.all(place)
    for base in bases[:-KEPT]:
        shutil.rmtree(base.folder)
    needed = bases[-KEPT:][0].first_piece
    for piece in (place / "wal").glob("*.gz"):
        if len(piece.name) == 27 and piece.name[8:24] < needed[8:24]:  # not of a turn's history
            piece.unlink()


def _run(program: str, *options: str, **environ: str) -> None:
    ended = subprocess.run(
        [postgres_program(program), *options],
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines()
        raise Problem(f"{program} failed: {lines[-1] if lines else 'it said nothing'}")


@contextlib.contextmanager
def _held(state: Path) -> Iterator[None]:
    """Keep every stack out of the state folder meanwhile. Raises Problem if one is in it."""
    with contextlib.ExitStack() as held:
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            fcntl.flock(held.enter_context((state / "lock").open("a")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(f"A stack is using {state}: stop it first.") from None
        except OSError as error:
            raise Problem(f"STATE_DIR {state} can't be used: {error.strerror}.") from None
        yield


def _told(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _instant(said: str) -> datetime:
    at = datetime.fromisoformat(said)
    if at.tzinfo is None:
        raise ValueError
    return at


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; the exit code is 0 if it is done, 1 if it can't be, and 2 if it was called wrongly."""
    parser = argparse.ArgumentParser(prog="python -m local.backup", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("backup", help="take a base backup of the running stack")
    restoring = commands.add_parser("restore", help="bring the database back, while the stack is down")
    restoring.add_argument(
        "--at", type=_instant, help="as it was at this instant, such as 2026-12-01T09:00:00-03:00; else the end"
    )
    restoring.add_argument("--from", dest="source", type=Path, help="the folder of the backups; that of STATE_DIR by default")
    asked = parser.parse_args(arguments)
    os.umask(0o077)
    state = Path(os.environ.get("STATE_DIR") or ".state").resolve()
    try:
        return _back_up(state) if asked.command == "backup" else _bring_back(state, asked)
    except SettingsError as error:
        return _say(*(f"Setting {line}" for line in str(error).splitlines()), code=2)
    except (Problem, ServerError) as error:
        return _say(str(error), code=1)
    except (OSError, psycopg2.Error) as error:
        return _say(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", code=1)


def _back_up(state: Path) -> int:
    began = time.monotonic()
    base = backup(state)
    size = sum(file.stat().st_size for file in base.folder.rglob("*") if file.is_file())
    return _say(
        f"Backed up to {base.folder}: {size / 1e6:.0f} MB in {time.monotonic() - began:.1f} s, read again and verified.",
        f"It can be brought back as of {_told(base.at)} or any later instant; what is written is kept within a minute.",
    )


def _bring_back(state: Path, asked: argparse.Namespace) -> int:
    source = (asked.source or state / "backup").resolve()
    with _held(state):
        outcome = restore(state, source, asked.at, os.environ)
    last = _told(outcome.last_change) if outcome.last_change else "before any"
    lines = [f"Brought back from {source}; the last command or decision in it is of {last}."]
    if outcome.ended_early:
        lines.append(f"What was kept of the log ends before {_told(asked.at)}: everything that there is was brought back.")
    lines += [
        f"{outcome.sessions} sessions were ended, so everybody logs in again; {outcome.buried} people are being erased again.",
        f"What was there before is in {outcome.kept}: remove it when the new is right. Now: make up, and then make backup.",
    ]
    return _say(*lines)


def _say(*lines: str, code: int = 0) -> int:
    (sys.stderr if code else sys.stdout).write("".join(f"{line}\n" for line in lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
