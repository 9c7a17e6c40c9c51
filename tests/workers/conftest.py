"""Real worker and relay processes, a mail server that does as it is told, and a booking to work on."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from sqlalchemy import Engine, text

from domain.cache import Cache
from domain.commands import Accept, Book, Command, Erase
from domain.database import connect
from domain.lanes import Drainer
from domain.schedule import Role
from domain.settings import Settings
from local.process import Process
from local.servers import Broker, free_port
from local.up import Service
from tests import rows
from workers.app import Sender

WORKER = ["-m", "celery", "-A", "workers.app", "worker", "-P", "prefork", "-c", "1", "--without-mingle", "--without-gossip"]


def until(claim: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until a claim holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
    return found


@dataclass
class MailServer:
    """An SMTP server that keeps what it takes. `answer` may say no: it gets the recipient, and returns a reply or None."""

    port: int
    taken: list[EmailMessage] = field(default_factory=list)
    answer: Callable[[str], str | None] = lambda _: None
    controller: Controller | None = None
    sessions: list[SMTP] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def handle_RCPT(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]) -> str:
        reply = self.answer(address)
        if reply is None:
            envelope.rcpt_tos.append(address)
        return reply or "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.taken.append(message)
        return "250 OK"

    def start(self) -> None:
        logging.getLogger("mail.log").setLevel(logging.WARNING)
        self.controller = _Controller(self, hostname="127.0.0.1", port=self.port)
        self.controller.start()

    def stop(self) -> None:
        if self.controller is not None:
            asyncio.run_coroutine_threadsafe(self._hang_up(), self.controller.loop).result(5)
            self.controller.stop()
            self.controller = None

    async def _hang_up(self) -> None:
        for session in self.sessions:
            if session.transport is not None:
                session.transport.abort()
        await asyncio.sleep(0.02)  # in which they are forgotten


class _Controller(Controller):
    def factory(self) -> SMTP:
        session = super().factory()
        self.handler.sessions.append(session)
        return session


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    """A mail server that takes everything, until it is told otherwise."""
    server = MailServer(free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(settings: Settings, mail_server: MailServer) -> Settings:
    """The settings, with this test's own mail server."""
    return replace(settings, smtp_url=mail_server.url)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """A pool of the test's own."""
    engine = connect(settings.database_url, pool_size=5)
    yield engine
    engine.dispose()


@pytest.fixture
def sender(broker: Broker) -> Sender:
    """A sender of tasks."""
    return Sender(broker.url)


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path, mail_server: MailServer) -> Iterator[Callable[..., Process]]:
    """Starts processes of the stack, and ends them after the test."""
    processes: list[Process] = []

    def start(*arguments: str, **settings: str) -> Process:
        environment = {"PATH": "/usr/bin:/bin", "SMTP_URL": mail_server.url, **environ, **settings}
        process = Service("tested", [sys.executable, *arguments], environment, tmp_path / f"{len(processes)}.log")
        process.launch()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def start_worker(start: Callable[..., Process], tmp_path: Path) -> Callable[..., Process]:
    """Starts a Celery worker for one queue and waits until it listens."""

    def start_worker(queue: str, **settings: str) -> Process:
        heartbeat = tmp_path / f"{queue}.heartbeat"
        process = start(*WORKER, "-Q", queue, "-n", f"{queue}@%h", HEARTBEAT_FILE=str(heartbeat), **settings)
        until(lambda: " ready." in process.log.read_text() or not process.running)
        assert process.running, process.last_words()
        return process

    return start_worker


@dataclass(frozen=True)
class Booking:
    """A patient's appointment with a doctor, and how to go on with it."""

    engine: Engine
    settings: Settings
    doctor_id: UUID
    patient_id: UUID
    slot_id: UUID
    drainer: Drainer

    @property
    def appointment_id(self) -> UUID:
        with self.engine.connect() as connection:
            return connection.execute(text("select id from appointments where slot_id = :id"), {"id": self.slot_id}).scalar_one()

    def ask(self, command: Command | Erase, *, by_doctor: bool = False) -> UUID:
        """Store a command as the API does, without waking anybody."""
        who, role = (self.doctor_id, Role.DOCTOR) if by_doctor else (self.patient_id, Role.PATIENT)
        with self.engine.begin() as connection:
            return rows.send(connection, self.settings, who, command, role).id

    def decide(self, command: Command, *, by_doctor: bool = False) -> None:
        """Store a command and decide it here and now."""
        command_id = self.ask(command, by_doctor=by_doctor)
        self.drainer.drain(LANE)
        assert self.status_of(command_id) == "succeeded"

    def status_of(self, command_id: UUID) -> str:
        with self.engine.connect() as connection:
            return connection.execute(text("select status from commands where id = :id"), {"id": command_id}).scalar_one()

    def request(self) -> UUID:
        self.decide(Book(self.slot_id, notes="Dor no peito"))
        return self.appointment_id

    def accept(self) -> UUID:
        appointment_id = self.request()
        self.decide(Accept(appointment_id, "https://meet.example/sala"), by_doctor=True)
        return appointment_id


LANE = 7


@pytest.fixture
def booking(engine: Engine, settings: Settings, cache_server: object, broker: Broker, sender: Sender) -> Booking:
    """A doctor with one open slot tomorrow, and a patient who may book it."""
    with engine.begin() as connection:
        doctor_id = rows.add_doctor(connection, settings, lane=LANE)
        patient_id = rows.add_person(connection, settings)
        slot_id = rows.add_slot(connection, doctor_id, rows.tomorrow())
    drainer = Drainer(settings, engine, Cache(settings, engine), sender._broker)
    return Booking(engine, settings, doctor_id, patient_id, slot_id, drainer)
