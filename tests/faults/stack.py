"""The whole stack as real processes that a test kills, freezes, restarts and cuts off from each other as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import psutil
import psycopg2
import redis
from aiosmtpd.smtp import SMTP, Envelope, Session
from sqlalchemy import Engine

from domain import database
from domain.settings import Settings, load
from local.mail import Catcher
from local.servers import Broker, Cache, Postgres, Replica, Server, free_port, write_secret
from local.up import Service, Stack
from tests.faults.proxy import Proxy

ENDS = ("api", "others")  # of a proxied connection to a server: the API's, and that of everybody else
SERVICES = ("api", "relay", "booking", "notifications")
URLS = {"database": "DATABASE_URL", "broker": "BROKER_URL", "cache": "CACHE_URL"}


class Mailbox(Catcher):
    """A mail server in a thread of the test, which keeps what it takes; `answer` is what it says to each recipient instead."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.answer: str | None = None
        self._loop = asyncio.new_event_loop()
        self._sessions: list[SMTP] = []
        logging.getLogger("mail.log").setLevel(logging.WARNING)
        self._thread = threading.Thread(target=self._run, name="mailbox", daemon=True)
        self._thread.start()

    async def handle_RCPT(self, _: SMTP, session: Session, envelope: Envelope, address: str, options: Sequence[str]) -> str:
        """What aiosmtpd calls for each recipient."""
        if self.answer is None:
            envelope.rcpt_tos.append(address)
        return self.answer or "250 OK"

    def close(self) -> None:
        """Take no more mail, and hang up."""
        self._loop.call_soon_threadsafe(self._hang_up)
        self._thread.join(5)

    def _run(self) -> None:
        server = self._loop.run_until_complete(self._loop.create_server(self._answer, "127.0.0.1", self.port))
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0.05))  # in which those who were hung up on are forgotten
        self._loop.close()

    def _answer(self) -> SMTP:
        session = SMTP(self, hostname="localhost", enable_SMTPUTF8=True, loop=self._loop)
        self._sessions.append(session)
        return session

    def _hang_up(self) -> None:
        for session in self._sessions:
            if session.transport is not None:
                session.transport.abort()
        self._loop.stop()


class FaultStack(Stack):
    """The stack of `make up`, without a demonstration, each process of which can be had by its name.

    Nothing that dies is started again by itself. With `proxied`, a proxy of each end stands in front of each server:
    `proxies["api", "broker"]`, `proxies["others", "database"]` and so on; the mail server has one always, `proxies["mail"]`.
    With `replicated`, a replica follows the database, and reads may use it.
    `patched` names what is done to a service before its work begins, as tests/faults/patched.py takes it, and `environ` what it
    finds in its environment besides; both by the service's name.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        proxied: bool = False,
        replicated: bool = False,
        servers: Mapping[str, Server] | None = None,
        patched: Mapping[str, str] | None = None,
        environ: Mapping[str, Mapping[str, str]] | None = None,
        **settings: str,
    ) -> None:
        self._given_servers = dict(servers or {})
        self._lost: list[Server] = []
        self._generations = itertools.count(2)
        self.replica: Replica | None = None
        self._proxied, self._replicated = proxied, replicated
        self._patched = patched or {}
        self._given_environ = environ or {}
        self.proxies: dict[Any, Proxy] = {}
        self.mailbox = Mailbox(folder / "mail")
        self.proxies["mail"] = Proxy(self.mailbox.port)
        super().__init__(
            {
                "PATH": os.environ.get("PATH", ""),
                "STATE_DIR": str(folder),
                "PORT": str(port),
                "SMTP_URL": f"smtp://127.0.0.1:{self.proxies['mail'].port}",
                "RATE_LIMITS": "off",
                "FLOWER": "off",
                "API_WORKERS": "2",
                "BOOKING_WORKERS": "2",
                **settings,
            }
        )

    # How it comes and goes.

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close(keep=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(keep=kind is not None)

    def start(self) -> None:
        """Bring everything up, empty."""
        for server in self._servers.values():
            server.start()
        self._run("schema")
        if self._replicated:
            self.replica = Replica(self._state / "replica", self.postgres, log=self._log / "replica.log")
            self.replica.start()
            self._given_environ = {name: {"DATABASE_REPLICA_URL": self.replica.url} for name in SERVICES}
            self._services = self._describe_services()
        write_secret(self._state / "settings.json", json.dumps(dict(self._settings.given)))
        self._launch(*SERVICES)
        self._wait_until_ready()
        self._launched.clear()  # from now on, what dies is meant to

    def close(self, *, keep: bool = False) -> None:
        """End everything, and remove what it wrote unless that is to be looked at."""
        for proxy in self.proxies.values():
            proxy.heal()
        replicas = [self.replica] if self.replica else []
        for process in (*self._services.values(), *replicas, *self._servers.values(), *self._lost):
            process.kill()
        self.engine.dispose()
        for proxy in self.proxies.values():
            proxy.close()
        self.mailbox.close()
        self._lock.close()
        if not keep:
            shutil.rmtree(self._state, ignore_errors=True)

    # What there is.

    @property
    def base_url(self) -> str:
        """Where the API listens."""
        return self._base

    @property
    def folder(self) -> Path:
        """Where it keeps all that it writes; the logs are in `log`."""
        return self._state

    @property
    def postgres(self) -> Postgres:
        """The database server."""
        return cast(Postgres, self._servers["DATABASE_URL"])

    @property
    def broker(self) -> Broker:
        """The server of queue, locks and flags."""
        return cast(Broker, self._servers["BROKER_URL"])

    @property
    def cache(self) -> Cache:
        """The server of projections."""
        return cast(Cache, self._servers["CACHE_URL"])

    @cached_property
    def settings(self) -> Settings:
        """The stack's settings, as a process with no proxy before it has them."""
        return load(self._environ | {name: server.url for name, server in self._servers.items()})

    @cached_property
    def engine(self) -> Engine:
        """The database, for the test's own looks, whatever stands between the stack and it."""
        return database.connect(self.settings.database_url, pool_size=4)

    def service(self, name: str) -> Service:
        """A process of Health&Med itself: `api`, `relay`, `booking`, `notifications`, or a second generation."""
        return self._services[name]

    def environ(self, name: str) -> Mapping[str, str]:
        """The environment that a service is launched with."""
        return self._services[name]._environ

    def child(self, name: str, chance: random.Random) -> psutil.Process | None:
        """One of the children of a service, at random; None if it has none just now."""
        children = self.service(name).family()[1:]
        return chance.choice(children) if children else None

    def second(self, name: str, **environ: str) -> Service:
        """Launch one more of a service, as in a rolling restart; by default with the same environment."""
        first = self._services[name]
        number = next(self._generations)
        command = [str(part).replace(f"{name}@", f"{name}{number}@") for part in first._command]
        another = Service(f"{name}{number}", command, {**first._environ, **environ}, self._log / f"{name}{number}.log")
        self._services[another.name] = another
        another.launch()
        return another

    def restart(self, name: str, **environ: str) -> None:
        """Launch a process again, with this in its environment besides, and wait until it works."""
        service = self._services[name]
        service.kill()
        self._services[name] = self._describe(name, environ)
        self._services[name].launch()
        self.wait_until_ready()

    def end(self, service: Service, seconds: float = 40.0) -> int | None:
        """Ask a service to end, and wait; its exit code, or None if it had to be killed after so many seconds."""
        process = service.process
        service.ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process is not None:
                process.wait(seconds)
        code = process.poll() if process is not None else None
        service.kill()
        self._services = {name: each for name, each in self._services.items() if each is not service}
        return code

    def replace(self, name: str, new: Service) -> int | None:
        """End a service in whose place a second generation stands, as a rolling restart does; the old one's exit code."""
        old = self._services[name]
        code = self.end(old)
        self._services = {**{key: each for key, each in self._services.items() if each is not new}, name: new}
        return code

    def promote(self) -> None:
        """Have the replica be the primary, and every proxy before the old one lead to it."""
        assert self.replica is not None
        replica, self.replica = self.replica, None
        with psycopg2.connect(replica.superuser_url) as connection, connection.cursor() as cursor:
            cursor.execute("select pg_promote()")
        connection.close()
        old, self._servers["DATABASE_URL"] = self.postgres, replica
        self._lost.append(old)
        for end in ENDS:
            self.proxies[end, "database"].lead_to(replica.port)
        self.engine.dispose()
        for name in ("engine", "settings"):
            self.__dict__.pop(name, None)

    def wait_until_ready(self) -> None:
        """Wait until the API is ready and the workers listen."""
        self._wait_until_ready()

    def superuser(self, statement: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """What the database server answers to its superuser."""
        connection = psycopg2.connect(self.postgres.superuser_url, connect_timeout=3)
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def redis(self, server: Broker | Cache) -> Iterator[redis.Redis]:
        """A client of the test's own."""
        with redis.Redis.from_url(server.url, socket_timeout=2, socket_connect_timeout=2) as client:
            yield client

    def logged(self, words: str) -> int:
        """How many lines of all logs hold these words."""
        return sum(words in line for file in self._log.glob("*.log") for line in file.read_text(errors="replace").splitlines())

    # How it differs from the stack of `make up`.

    def _choose_servers(self, given: Mapping[str, str]) -> dict[str, Server]:
        servers = super()._choose_servers({**given, **dict.fromkeys(self._given_servers, "given")})
        return servers | self._given_servers

    def _describe_services(self) -> dict[str, Service]:
        services = super()._describe_services()
        self._commands = {name: service._command for name, service in services.items()}
        return services | {name: self._describe(name, {}) for name in SERVICES}

    def _describe(self, name: str, environ: Mapping[str, str]) -> Service:
        command = self._commands[name]
        if name in self._patched:
            python, option, *program = command
            command = [python, option, "tests.faults.patched", self._patched[name], *program]
        given = {**self._environ, **self._detours(name), **self._given_environ.get(name, {}), **environ}
        return Service(name, command, given, self._log / f"{name}.log")

    def _detours(self, name: str) -> dict[str, str]:
        if not self._proxied:
            return {}
        end = "api" if name == "api" else "others"
        return {setting: self._detour(end, place, self._servers[setting]) for place, setting in URLS.items()}

    def _detour(self, end: str, place: str, server: Server) -> str:
        if (end, place) not in self.proxies:
            self.proxies[end, place] = Proxy(server.port)
        proxy = self.proxies[end, place]
        parts = urlsplit(server.url)
        return parts._replace(netloc=parts.netloc.replace(f":{server.port}", f":{proxy.port}")).geturl()

    def _workers_listen(self) -> bool:
        workers = sum(name.startswith(("booking", "notifications")) and each.running for name, each in self._services.items())
        try:
            with self.redis(self.broker) as client:
                return sum(each["cmd"] == "brpop" for each in client.client_list()) >= workers
        except redis.RedisError:
            return False
