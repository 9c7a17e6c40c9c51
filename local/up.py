"""`make up`: the whole stack on this machine, kept running until it is told to stop."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import redis

from domain.settings import SettingsError, load
from local.process import Process
from local.servers import Broker, Cache, Postgres, Server, ServerError, free_port, write_secret

LOOK_SECONDS = 0.1
READY_SECONDS = 60.0
PORT_SECONDS = 2.0
BACKLOG = 2048
SERVICES = ("mail", "schema", "seed", "api", "flower", "relay", "booking", "notifications")
RESTARTED = ("api", "booking", "notifications", "relay")
RESTARTS = "restarted.json"  # what came of the last restart
LEAVE_SECONDS = 40.0  # for a process whose place is taken to finish what it holds
# Between two launches of one process, so that one that can't live doesn't take the machine for itself.
LAUNCH_SECONDS = 1.0
# Together less than the 30 seconds in which everything must have ended.
API_SECONDS, WORKER_SECONDS, SERVER_SECONDS = 9.0, 11.0, 5.0


class Problem(Exception):
    """The stack can't come up; the message is one line for a person."""


class Stopped(Exception):
    """Somebody asked for the end."""


class Service(Process):
    """One process of Health&Med itself. It inherits the sockets that it is given, under the same numbers."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environ: Mapping[str, str],
        log: Path,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        super().__init__(name, log)
        self._command = command
        self._environ = environ
        self._sockets = sockets

    def launch(self, stdout: int | None = None) -> None:
        self.kill()
        fds = [each.fileno() for each in self._sockets]
        self.process = self._spawn(self._command, environ=self._environ, stdout=stdout, pass_fds=fds)


class Stack:
    """Everything that runs, how it is configured, and in which order it comes and goes."""

    def __init__(self, given: Mapping[str, str]) -> None:
        """Take hold of the state folder and settle every setting. Raises Problem or SettingsError; nothing runs yet."""
        self._stopping = self._to_restart = False
        self._launched: dict[Process, float] = {}
        self._leaving: list[Service] = []
        self._state = Path(given.get("STATE_DIR") or ".state").resolve()
        self._log, self._mail, self._metrics = (self._state / name for name in ("log", "mail", "metrics"))
        self._lock = self._occupy()
        self._servers = self._choose_servers(given)
        self._mail_port, self._flower_port = free_port(), free_port()
        self._environ = self._configure(given)
        self._settings = load(self._environ)
        self._socket: socket.socket | None = None
        self._services = self._describe_services()

    def ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler: everything ends at the next look."""
        self._stopping = True

    def ask_to_restart(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler: at the next look, new processes take the place of those that serve."""
        self._to_restart = True

    def start(self) -> None:
        """Bring everything up, seed the demonstration and say where it all is. Raises Problem, ServerError or Stopped."""
        self._socket = _listen(self._settings.port)
        self._services["api"] = self._make("api")
        self._launch("mail")
        for server in self._servers.values():
            server.start()
            self._launched[server] = time.monotonic()
        self._check_given_servers()
        self._run("schema")
        # These only read, so they may come up while the seed writes; nobody may decide before it is done.
        self._launch("api", "flower")
        people = json.loads(self._run("seed"))
        self._launch("relay", "booking", "notifications")
        self._wait_until_ready()
        write_secret(self._state / "settings.json", json.dumps(dict(self._settings.given)))
        demo = {"base_url": self._base, **people, "services": self._addresses()}
        write_secret(self._state / "demo.json", json.dumps(demo, ensure_ascii=False, indent=2))
        self._say_where()

    def supervise(self) -> None:
        """Launch again what dies, and restart when asked to, until a signal comes."""
        while not self._stopping:
            self._tend()
            if self._to_restart:
                self._to_restart = False
                try:
                    self.restart()
                except Problem as problem:
                    _say(f"Not restarted: {problem}")
                    self._tell_restarted(str(problem))
                else:
                    self._tell_restarted(None)

    def restart(self, *names: str) -> None:
        """Have new processes, of whatever code is there now, take the place of those that serve, and let the old ones finish.

        No request fails: the API's listening socket is this process's, so it stays open, and what the kernel has accepted waits
        there for whichever process comes. Raises Problem if a new one does not work: the old one then stays. Raises Stopped.
        """
        self._run("schema")
        for name in names or RESTARTED:
            old = self._services[name]
            own = _listen(free_port()) if name == "api" else None  # to ask the new one, where the old one doesn't answer
            new = self._make(name, *([own] if own else []))
            new.launch()
            self._leaving.append(new)  # so that it ends if it is never more than tried
            self._wait_until_works(name, new, own)
            self._launched.pop(old)
            self._launched[new] = time.monotonic()
            self._services[name], self._leaving = new, [old]
            old.ask()
            self._wait(LEAVE_SECONDS, lambda old=old: not old.running)  # type: ignore[misc]
            old.kill()
            self._leaving.clear()

    def _tend(self) -> None:
        """Wait a moment, and launch again what died meanwhile."""
        time.sleep(LOOK_SECONDS)
        for process, launched in self._launched.items():
            if process.running or time.monotonic() - launched < LAUNCH_SECONDS:
                continue
            _say(f"{process.name} ended ({process.exit_status}) and is started again.")
            self._launched[process] = time.monotonic()
            try:
                process.launch()
            except (ServerError, OSError) as error:
                _say(f"{process.name} can't be started again yet: {error}")

    def _wait(self, seconds: float, holds: Callable[[], bool]) -> bool:
        """Whether something came true within so many seconds. Raises Stopped."""
        deadline = time.monotonic() + seconds
        while not holds():
            if self._stopping:
                raise Stopped
            if time.monotonic() > deadline:
                return False
            self._tend()
        return True

    def _wait_until_works(self, name: str, new: Service, own: socket.socket | None) -> None:
        def works() -> bool:
            if not new.running:
                raise Problem(f"{name} ended while starting ({new.exit_status}); see {new.log}.")
            if own is not None:
                return _is_ready(own.getsockname()[1])
            return name == "relay" or self._listens(new)

        try:
            if not self._wait(READY_SECONDS, works):
                raise Problem(f"{name} was not ready after {READY_SECONDS:.0f} seconds; see {new.log}.")
        except Problem:
            new.kill()
            self._leaving.remove(new)
            raise

    def _tell_restarted(self, problem: str | None) -> None:
        """Tell whoever asked for a restart what came of it."""
        write_secret(self._state / RESTARTS, json.dumps({"at": time.time(), "problem": problem}))

    def stop(self) -> None:
        """End everything, those who ask before those who are asked, within 30 seconds."""
        if self._socket is not None:
            self._socket.close()
        services = [*self._services.values(), *self._leaving]
        api = [service for service in services if service.name == "api"]
        _stop(api, API_SECONDS)
        _stop([service for service in services if service not in api], WORKER_SECONDS)
        _stop(list(self._servers.values()), SERVER_SECONDS)

    def _occupy(self) -> object:
        """Make the state folder and hold it, so that no second stack uses it."""
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self._state / "lock").open("a")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            shutil.rmtree(self._metrics, ignore_errors=True)
            for folder in (self._log, self._mail, self._metrics):
                folder.mkdir(mode=0o700, exist_ok=True)
        except BlockingIOError:
            raise Problem(f"Another stack is using {self._state}: stop it, or set another STATE_DIR.") from None
        except OSError as error:
            raise Problem(f"STATE_DIR {self._state} can't be used: {error.strerror}.") from None
        return lock

    def _choose_servers(self, given: Mapping[str, str]) -> dict[str, Server]:
        """The servers that nobody gave us, by the setting that tells where they are."""
        servers: dict[str, Server] = {}
        if not given.get("DATABASE_URL"):
            servers["DATABASE_URL"] = Postgres(
                self._state / "postgres", log=self._log / "postgres.log", archive=self._state / "backup" / "wal"
            )
        if not given.get("BROKER_URL"):
            servers["BROKER_URL"] = Broker(self._state / "broker", log=self._log / "broker.log")
        if not given.get("CACHE_URL"):
            servers["CACHE_URL"] = Cache(self._state / "cache", log=self._log / "cache.log")
        return servers

    def _configure(self, given: Mapping[str, str]) -> dict[str, str]:
        """The environment of every process: what was given, over what the stack itself knows."""
        processes = str(min(8, len(os.sched_getaffinity(0))))
        port = given.get("PORT") or "8000"
        known = {
            **self._keep_secrets(),
            "PORT": port,
            "SMTP_URL": f"smtp://127.0.0.1:{self._mail_port}",
            "API_WORKERS": processes,
            "BOOKING_WORKERS": processes,
            **{name: server.url for name, server in self._servers.items()},
        }
        if isinstance(postgres := self._servers.get("DATABASE_URL"), Postgres):
            known["DATABASE_MIGRATION_URL"] = postgres.migration_url
        return {
            **known,
            **{name: value for name, value in given.items() if value or name not in known},
            "LOCAL_STACK": "on",
            "STATE_DIR": str(self._state),
            "PROMETHEUS_MULTIPROC_DIR": str(self._metrics),
        }

    def _keep_secrets(self) -> dict[str, str]:
        """The stack's own secrets, made once: a later start must read what an earlier one wrote."""
        file = self._state / "secrets.json"
        if not file.exists():
            made = {name: base64.b64encode(secrets.token_bytes(32)).decode() for name in ("jwt", "data", "hash")}
            kept = {
                "JWT_KEYS": f"local={made['jwt']}",
                "DATA_KEYS": f"local={made['data']}",
                "HASH_KEY": made["hash"],
                "FLOWER_BASIC_AUTH": f"flower:{secrets.token_urlsafe(18)}",
            }
            write_secret(file, json.dumps(kept))
        return dict(json.loads(file.read_text()))

    def _describe_services(self) -> dict[str, Service]:
        return {name: self._make(name) for name in SERVICES if name != "flower" or self._settings.flower}

    def _make(self, name: str, *sockets: socket.socket) -> Service:
        """A service, with sockets that it listens on besides what all of its kind do."""
        celery: list[str | Path] = [sys.executable, "-m", "celery", "-A", "workers.app"]
        worker = [*celery, "worker", "-P", "prefork", "--without-mingle", "--without-gossip"]
        booking = ["-Q", "booking", "-n", "booking@%h", "-c", str(self._settings.booking_workers)]
        commands: dict[str, list[str | Path]] = {
            "mail": [sys.executable, "-m", "local.mail", str(self._mail_port), self._mail],
            "schema": [sys.executable, "-m", "domain.migrations"],
            "seed": [sys.executable, "-m", "local.seed"],
            "api": [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.wsgi:app"],
            "flower": [sys.executable, "-m", "workers.flower", "--address=127.0.0.1", f"--port={self._flower_port}"],
            "relay": [sys.executable, "-m", "workers.relay"],
            "booking": [*worker, *booking],
            "notifications": [*worker, "-Q", "notifications", "-n", "notifications@%h", "-c", "1"],
        }
        environ = self._environ
        if name == "api" and self._socket is not None:
            sockets = (self._socket, *sockets)
            environ = {**environ, "BIND": ",".join(f"fd://{each.fileno()}" for each in sockets)}
        return Service(name, commands[name], environ, self._log / f"{name}.log", sockets)

    def _launch(self, *names: str) -> None:
        for name in names:
            if service := self._services.get(name):
                service.launch()
                self._launched[service] = time.monotonic()

    def _run(self, name: str) -> bytes:
        """Run a service that ends by itself, and give what it printed."""
        service = self._services[name]
        service.launch(stdout=subprocess.PIPE)
        while (process := service.process) is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                printed, _ = process.communicate(timeout=LOOK_SECONDS)
                break
            self._look()
        if process is None or process.returncode != 0:
            raise Problem(f"{name} failed: {service.last_words()} (more in {service.log})")
        return printed

    def _look(self) -> None:
        """Raises Stopped, or Problem if something has ended that should still run."""
        if self._stopping:
            raise Stopped
        for process in self._launched:
            if not process.running:
                raise Problem(f"{process.name} ended while starting: {process.last_words()} (more in {process.log})")

    def _check_given_servers(self) -> None:
        """One clear line, rather than one of each process, for a given server that isn't there."""
        if "DATABASE_URL" not in self._servers:
            with _reaching("DATABASE_URL", self._settings.database_url):
                _connect(self._settings.database_url)
            with _reaching("DATABASE_MIGRATION_URL", self._settings.database_migration_url):
                _connect(self._settings.database_migration_url)
        for name, url in (("BROKER_URL", self._settings.broker_url), ("CACHE_URL", self._settings.cache_url)):
            if name not in self._servers:
                with _reaching(name, url), redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
                    client.ping()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not (_is_ready(self._settings.port) and self._workers_listen() and self._flower_listens()):
            self._look()
            if time.monotonic() > deadline:
                raise Problem(f"The stack is not ready after {READY_SECONDS:.0f} seconds; see {self._log}/*.log.")
            time.sleep(LOOK_SECONDS)

    def _workers_listen(self) -> bool:
        """Whether both workers wait at the broker, where the stack's own can tell: else the first bookings would wait."""
        if "BROKER_URL" not in self._servers:
            return True
        return all(self._listens(self._services[name]) for name in ("booking", "notifications"))

    def _listens(self, worker: Service) -> bool:
        """Whether a worker waits at the broker."""
        with redis.Redis.from_url(self._settings.broker_url, socket_timeout=2) as client:
            waiting = {each["addr"] for each in client.client_list() if each["cmd"] == "brpop"}
        return bool(waiting & worker.addresses())

    def _flower_listens(self) -> bool:
        if "flower" not in self._services:
            return True
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._flower_port)) == 0

    def _addresses(self) -> dict[str, Any]:
        """Where the services are, as `demo.json` tells it: with their passwords, in a file that only its owner reads."""
        login = self._environ["FLOWER_BASIC_AUTH"]
        return {
            "database_url": self._environ["DATABASE_URL"],
            "broker_url": self._environ["BROKER_URL"],
            "cache_url": self._environ["CACHE_URL"],
            "flower_url": f"http://{login}@127.0.0.1:{self._flower_port}" if "flower" in self._services else None,
            "mail_dir": str(self._mail),
        }

    @property
    def _base(self) -> str:
        """Where the API listens, whatever the world outside calls it."""
        return f"http://127.0.0.1:{self._settings.port}"

    def _say_where(self) -> None:
        places = {
            "API": f"{self._base}/api/v1",
            "Documentation": f"{self._base}/api/docs" if self._settings.public_docs else "off",
            "Flower": f"http://127.0.0.1:{self._flower_port}" if "flower" in self._services else "off",
            "PostgreSQL": _place(self._environ["DATABASE_URL"]),
            "Broker, cache": f"{_place(self._environ['BROKER_URL'])}, {_place(self._environ['CACHE_URL'])}",
            "Mail": f"{self._mail}/*.eml",
            "Logs": f"{self._log}/*.log",
            "Log-ins": f"{self._state}/demo.json",
        }
        lines = [f"  {what:<14} {where}" for what, where in places.items()]
        print("Health&Med is up. Ctrl-C stops it.", *lines, f"ready {self._base}", sep="\n", flush=True)


def main() -> int:
    """Run the stack of this environment; the exit code is 2 for a wrong setting and 1 for what else went wrong."""
    os.umask(0o077)
    try:
        stack = Stack(os.environ)
    except SettingsError as error:
        _say(*(f"Setting {line}" for line in str(error).splitlines()))
        return 2
    except (Problem, ServerError) as error:
        _say(str(error))
        return 1
    signal.signal(signal.SIGUSR2, stack.ask_to_restart)
    signal.signal(signal.SIGTERM, stack.ask_to_stop)
    signal.signal(signal.SIGINT, stack.ask_to_stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else it is to outlive its terminal
        signal.signal(signal.SIGHUP, stack.ask_to_stop)
    try:
        stack.start()
        stack.supervise()
    except Stopped:
        pass
    except (Problem, ServerError) as error:
        _say(str(error))
        return 1
    finally:
        stack.stop()
    return 0


def _stop(processes: Sequence[Process], seconds: float) -> None:
    """Ask all at once, and wait for them together."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.ask()
    for process in processes:
        process.finish(max(0.0, deadline - time.monotonic()))


def _listen(port: int) -> socket.socket:
    """Listen there for the API. Raises Problem if it can't be; a stack that was killed takes a moment to let go of it."""
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(BACKLOG)
            return listener
        except OSError as error:
            listener.close()
            if time.monotonic() > deadline:
                raise Problem(f"PORT {port} can't be had: {error.strerror}. Set another one.") from None
        time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def _reaching(setting: str, url: str) -> Iterator[None]:
    try:
        yield
    except (psycopg2.Error, redis.RedisError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Problem(f"{setting} can't be reached at {_place(url)}: {reason}") from None


def _connect(url: str) -> None:
    psycopg2.connect(url.replace("postgresql+psycopg2:", "postgresql:"), connect_timeout=3).close()


def _place(url: str) -> str:
    """Host and port of an address, without its password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _say(*lines: str) -> None:
    with contextlib.suppress(OSError):
        print(*lines, sep="\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
