"""What happened between the doctors and patients of the demonstration, and what is to come: decided by the rules of everyone."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from domain import inbox
from domain.batches import decide_batch
from domain.cache import Change
from domain.commands import Accept, Book, Cancel, Command, Complete, NoShow, Refuse, Reschedule, SetAvailability
from domain.inbox import Sender
from domain.schedule import Interval, Limits, Role
from domain.settings import Settings
from local.people import AGENDAS

WITH_A_PAST: Final = 12  # so many doctors, the first ones, have seen patients before
LONG_AGO: Final = timedelta(days=40)  # when these put their availability
LATELY: Final = timedelta(minutes=10)  # when the others did
ANSWERED_AFTER: Final = timedelta(hours=2)
RECONSIDERED_AFTER: Final = timedelta(days=1)
DECIDED_AFTER: Final = timedelta(seconds=1)
REQUEST_ID: Final = "demonstration"  # by which its commands are told from real ones


class Course(StrEnum):
    """How an appointment went on after it was requested."""

    OPEN = "open"  # its doctor has not answered; it expires in time
    REFUSED = "refused"
    IN_PERSON = "in person"
    WITHDRAWN = "withdrawn"
    ACCEPTED = "accepted"
    COMPLETED = "completed"
    NO_SHOW = "no-show"
    MOVED = "moved"
    CANCELLED_BY_PATIENT = "cancelled by patient"
    CANCELLED_BY_DOCTOR = "cancelled by doctor"


@dataclass(frozen=True, slots=True)
class Visit:
    """One appointment's story, in days from now: when it is (the first free slot from `day` on) and when it was requested."""

    patient: int
    doctor: int
    day: float
    requested: float
    course: Course
    notes: str | None = None


# Between them every status, and several for the first two patients.
STORY: Final = (
    Visit(0, 0, -24, -31, Course.COMPLETED, "Pressão alta em casa nas últimas semanas."),
    Visit(0, 1, -12, -16.4, Course.COMPLETED),
    Visit(0, 2, -8, -11.2, Course.CANCELLED_BY_PATIENT),
    Visit(0, 3, 4, -2.6, Course.ACCEPTED, "Prefiro deixar a câmera desligada no início."),
    Visit(0, 4, 6, -0.12, Course.OPEN, "Primeira consulta."),
    Visit(0, 5, 9, -5.3, Course.REFUSED),
    Visit(0, 6, -6, -8.5, Course.OPEN),
    Visit(1, 0, -20, -26.7, Course.NO_SHOW),
    Visit(1, 2, -15, -19.9, Course.COMPLETED, "É para o meu filho."),
    Visit(1, 7, 3, -3.4, Course.ACCEPTED),
    Visit(1, 1, 7, -0.07, Course.OPEN),
    Visit(1, 8, 8, -4.8, Course.CANCELLED_BY_DOCTOR),
    Visit(2, 0, -17, -22.1, Course.COMPLETED),
    Visit(2, 9, 5, -4.2, Course.MOVED),
    Visit(2, 10, -9, -12.6, Course.IN_PERSON),
    Visit(3, 3, -21, -28.3, Course.COMPLETED, "Retorno."),
    Visit(3, 11, 2, -1.9, Course.ACCEPTED),
    Visit(4, 4, -11, -15.5, Course.COMPLETED),
    Visit(4, 0, 5, -0.15, Course.OPEN, "Levo os exames de março."),
    Visit(5, 5, -19, -25.8, Course.COMPLETED),
    Visit(5, 0, 10, -3.7, Course.ACCEPTED),
    Visit(6, 6, -14, -17.6, Course.CANCELLED_BY_PATIENT),
    Visit(6, 8, -7, -13.1, Course.ACCEPTED),  # over, and its doctor has not said how it went
    Visit(7, 7, -10, -14.9, Course.COMPLETED),
    Visit(7, 2, 6, -0.2, Course.OPEN),
    Visit(8, 11, -22, -29.4, Course.COMPLETED),
    Visit(8, 9, -13, -18.2, Course.OPEN),
    Visit(9, 10, 4, -2.3, Course.ACCEPTED, "I would rather speak English, if possible."),
    Visit(10, 2, -18, -24.5, Course.COMPLETED, "Consulta do Theo, acompanhado da mãe."),
    Visit(10, 2, 11, -3.1, Course.WITHDRAWN),
    Visit(11, 1, -9, -12.8, Course.NO_SHOW),
    Visit(11, 5, 3, -1.6, Course.ACCEPTED),
)


def play(change: Change, settings: Settings, doctors: Sequence[UUID], patients: Sequence[UUID]) -> None:
    """Let everything happen, each command received and decided when the story says.

    The past knows the contract's own limits, whatever this stack's settings are. What people should have been told then is
    dropped, so that nobody gets mail about it now. Raises RuntimeError if a command is rejected: the rules won't have the story.
    """
    stage = _Stage(change, settings, change.connection.execute(text("select clock_timestamp()")).scalar_one())
    stage.put_availabilities(doctors)
    stage.play(doctors, patients)
    stage.let_time_pass(doctors)
    # The change that all this is part of is made known as a whole, for all the batches in it.
    change.connection.execute(_CLOSE_BATCHES, {"ids": stage.batches})
    change.connection.execute(_DROP_NOTICES, {"people": [str(each) for each in (*doctors, *patients)]})


@dataclass(frozen=True, slots=True, order=True)
class _Step:
    """A command of the story, and when it is received."""

    at: datetime
    sender: Sender = field(compare=False)
    command: Command = field(compare=False)
    visit: Visit | None = field(default=None, compare=False)  # which one begins with it


@dataclass(slots=True)
class _Stage:
    change: Change
    settings: Settings
    now: datetime
    batches: list[str] = field(default_factory=list)

    def put_availabilities(self, doctors: Sequence[UUID]) -> None:
        for place, doctor_id in enumerate(doctors):
            put = SetAvailability(AGENDAS[place % len(AGENDAS)])
            self._send(_Step(self.now - (LONG_AGO if place < WITH_A_PAST else LATELY), _doctor(doctor_id), put))

    def play(self, doctors: Sequence[UUID], patients: Sequence[UUID]) -> None:
        """The whole story, in the order of time."""
        agendas = _Agendas(self.change.connection, doctors[:WITH_A_PAST])
        steps: list[_Step] = []
        slots: dict[Visit, tuple[_Slot, _Slot]] = {}
        for visit in STORY:
            doctor_id, patient_id, day = doctors[visit.doctor], patients[visit.patient], self._day(visit.day)
            slot = agendas.take(doctor_id, patient_id, day)
            later = agendas.take(doctor_id, patient_id, day) if visit.course is Course.MOVED else slot
            slots[visit] = slot, later
            steps.append(_Step(self._day(visit.requested), _patient(patient_id), Book(slot.id, visit.notes), visit))
        heapq.heapify(steps)
        while steps:
            step = heapq.heappop(steps)
            row = self._send(step)
            if step.visit is not None:
                doctor = _doctor(doctors[step.visit.doctor])
                for following in _afterwards(step.visit.course, row.appointment_id, step, doctor, *slots[step.visit]):
                    heapq.heappush(steps, following)

    def let_time_pass(self, doctors: Sequence[UUID]) -> None:
        """What time has brought since, as the relay would have it: requests that lapsed, and the horizon of today."""
        inbox.insert_due_expiries(self.change.connection)
        inbox.insert_due_horizons(self.change.connection)
        brought = self.change.connection.execute(_BROUGHT_BY_TIME, {"doctors": [str(each) for each in doctors]}).all()
        for row in brought:
            self._decide(row, row.deadline)

    def _send(self, step: _Step) -> Row[Any]:
        return self._decide(inbox.send(self.change.connection, self.settings, step.sender, step.command), step.at)

    def _decide(self, row: Row[Any], at: datetime | None) -> Row[Any]:
        """Have a command that has just been stored received and decided at an instant of the past; None is the present."""
        connection, settings = self.change.connection, self.settings
        if at is not None:
            settings = replace(settings, limits=Limits())
            connection.execute(_RECEIVED_AT, {"id": row.id, "at": at})
            at += DECIDED_AFTER
        decided = decide_batch(connection, settings, row.lane, only=row.id, now=at)
        assert decided is not None
        (after,) = decided.commands
        if after.status != "succeeded":
            raise RuntimeError(f"the rules will not have the demonstration's {row.kind} of {at}: {after.error_code}")
        self.change.touch(*decided.scopes)
        self.batches.append(str(decided.batch_id))
        return after

    def _day(self, days: float) -> datetime:
        return self.now + timedelta(days=days)


@dataclass(frozen=True, slots=True)
class _Slot:
    id: UUID
    during: Interval


class _Agendas:
    """The slots of the doctors with a past, as the story gives them away."""

    def __init__(self, connection: Connection, doctors: Sequence[UUID]) -> None:
        self._free: dict[UUID, list[_Slot]] = defaultdict(list)
        self._of_patient: dict[UUID, list[Interval]] = defaultdict(list)
        for row in connection.execute(_SLOTS, {"doctors": [str(each) for each in doctors]}):
            self._free[row.doctor_id].append(_Slot(row.id, Interval(row.starts_at, row.ends_at)))

    def take(self, doctor_id: UUID, patient_id: UUID, since: datetime) -> _Slot:
        """The doctor's first slot from then on that nobody in the story has, at a time when the patient is free."""
        theirs = self._of_patient[patient_id]
        slot = next(
            each
            for each in self._free[doctor_id]
            if each.during.starts_at >= since and not any(each.during.overlaps(other) for other in theirs)
        )
        self._free[doctor_id].remove(slot)
        theirs.append(slot.during)
        return slot


def _afterwards(
    course: Course, appointment_id: UUID, request: _Step, doctor: Sender, slot: _Slot, later: _Slot
) -> Iterator[_Step]:
    """What follows a request."""
    patient = request.sender
    answered, reconsidered = request.at + ANSWERED_AFTER, request.at + RECONSIDERED_AFTER
    accept = Accept(appointment_id, f"https://salas.healthmed.example/{appointment_id.hex[-12:]}")
    match course:
        case Course.OPEN:
            return
        case Course.REFUSED:
            reason = "Estarei em congresso nesse dia; veja outro horário, por favor."
            yield _Step(answered, doctor, Refuse(appointment_id, reason, "unavailable"))
            return
        case Course.IN_PERSON:
            reason = "Este caso pede exame físico; procure atendimento presencial."
            yield _Step(answered, doctor, Refuse(appointment_id, reason, "in_person_needed"))
            return
        case Course.WITHDRAWN:
            yield _Step(answered, patient, Cancel(appointment_id, "Escolhi o dia errado."))
            return
    yield _Step(answered, doctor, accept)
    match course:
        case Course.COMPLETED:
            yield _Step(slot.during.ends_at, doctor, Complete(appointment_id))
        case Course.NO_SHOW:
            yield _Step(slot.during.ends_at, doctor, NoShow(appointment_id))
        case Course.MOVED:
            yield _Step(reconsidered, patient, Reschedule(appointment_id, later.id, "Surgiu uma viagem a trabalho."))
            yield _Step(reconsidered + ANSWERED_AFTER, doctor, accept)
        case Course.CANCELLED_BY_PATIENT:
            yield _Step(reconsidered, patient, Cancel(appointment_id, "Tive um imprevisto no trabalho."))
        case Course.CANCELLED_BY_DOCTOR:
            yield _Step(reconsidered, doctor, Cancel(appointment_id, "Fui chamado a um plantão de urgência."))


def _doctor(person_id: UUID) -> Sender:
    return Sender(person_id, Role.DOCTOR, REQUEST_ID)


def _patient(person_id: UUID) -> Sender:
    return Sender(person_id, Role.PATIENT, REQUEST_ID)


_RECEIVED_AT = text("update commands set received_at = :at where id = :id")
_SLOTS = text(
    "select id, doctor_id, starts_at, ends_at from slots where doctor_id = any(cast(:doctors as uuid[])) order by starts_at, id"
)
_BROUGHT_BY_TIME = text(
    """
    select id, lane, kind, deadline from commands
    where doctor_id = any(cast(:doctors as uuid[])) and actor_role = 'system' and status = 'pending' order by seq
    """
)
_CLOSE_BATCHES = text("update batches set finished_at = clock_timestamp() where id = any(cast(:ids as uuid[]))")
_DROP_NOTICES = text(
    """
    update notices set dropped_at = clock_timestamp(), drop_reason = 'demonstration'
    where person_id = any(cast(:people as uuid[])) and due_at <= clock_timestamp() and sent_at is null
    """
)
