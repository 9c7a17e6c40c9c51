"""Judges a run: what clients saw, and what the database holds, against the promises.

Whatever is read is in a state of its own at every instant: an appointment, a slot, a command, an agenda. A read is right if it
shows a state that was current at some instant from what had been made known when it began to what had been decided when it ended.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from domain.settings import Settings
from tests import checks
from tests.faults.history import Call, Event, History

MARGIN_SECONDS: Final = 0.02  # by which two clocks of one machine are believed to agree
SHOWN: Final = 3  # cases of each promise

CHANGES: Final = ("book", "accept", "refuse", "cancel", "reschedule", "complete", "no_show", "expire")
COMMANDS: Final = (*CHANGES, "set_availability", "add_slot", "change_slot", "withdraw_slot")
UNTOLD: Final = ("completed", "no_show")
ENDED: Final = ("refused", "cancelled", "expired")
LEGAL: Final[Mapping[str | None, tuple[str, ...]]] = {
    None: ("requested",),
    "requested": ("requested", "accepted", "refused", "cancelled", "expired"),
    "accepted": ("requested", "cancelled", "completed", "no_show"),
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept, and the case that shows it."""

    promise: str
    case: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run measured. Times are seconds; each triple is the median, the 99th percentile and the longest."""

    acknowledged: int  # commands that were answered 202
    booked: int  # of them, bookings
    to_decision: tuple[float, float, float]  # from when a command was received until it was decided, by the database's clock
    to_answer: tuple[float, float, float]  # of all calls but those that wait on purpose
    failures: dict[str, int]  # 5xx, by status and code, and calls without an answer, by the exception


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCommand:
    """A command as the database holds it. Times are the database's clock, in seconds since 1970."""

    id: str
    seq: int
    kind: str
    actor: str
    doctor: str | None = None
    slot: str | None = None  # that it asks for, or that it made
    appointment: str | None = None
    status: str = "pending"
    code: str | None = None
    request: str | None = None  # the X-Request-ID that brought it
    received: float = 0.0
    decided: float = math.inf
    finished: float = math.inf  # when its batch was
    exceptions: tuple[str, ...] = ()  # where they begin, if it put an availability


@dataclass(frozen=True, slots=True)
class KeptSlot:
    """A slot, as it is at the end."""

    doctor: str
    day: str  # the doctor's date
    starts_at: float
    ends_at: float
    status: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What the database holds when all is done."""

    commands: Mapping[str, KeptCommand]
    steps: Mapping[str, Sequence[tuple[str, str]]]  # of each appointment: the status, and the command that made it so
    people: Mapping[str, tuple[str, str]]  # of each appointment: its patient and its doctor
    slots: Mapping[str, KeptSlot]
    reads: frozenset[tuple[str, str, int]] = frozenset()  # in the audit: who read, about whom, in which hour since 1970
    told: frozenset[tuple[str, str, float]] = frozenset()  # in the notices: about which appointment, what, and due when
    sent: frozenset[str] = frozenset()  # the notices that were sent


def judge(
    history: History, engine: Engine, settings: Settings, mail: Path | None = None, *, patience: float = 30.0
) -> list[Violation]:
    """Wait until the stack has come to rest, `patience` seconds at most, and name every promise that was not kept.

    `mail` is the folder of the mail catcher: every notice that was sent must be there. Without it notices are not waited for,
    nor judged.
    """
    deadline = time.monotonic() + patience
    while not is_at_rest(engine, mail is not None) and time.monotonic() < deadline:
        time.sleep(0.1)
    ahead, drift = history.clock()
    kept = read(engine)
    found = [*violations(history.calls(), kept, ahead, MARGIN_SECONDS + drift)]
    if mail is not None:
        found += _unsent(kept, mail)
    for line in checks.violations(engine, settings):
        promise, _, case = line.partition(": ")
        if mail is not None or not promise.startswith("a notice"):
            found.append(Violation(promise, case))
    return found


def figures(history: History, engine: Engine) -> Figures:
    """What the run measured."""
    calls = history.calls()
    acknowledged = {call.end.command: call.begin.f for call in calls if call.end is not None and call.end.status == 202}
    commands = read(engine).commands
    decisions = [commands[each].decided - commands[each].received for each in acknowledged if each in commands]
    answers = [call.end.t - call.begin.t for call in calls if call.end is not None and call.begin.f != "command"]
    failures = Counter(_cause(call.end) for call in calls if call.end is not None and call.end.kind == "info")
    booked = sum(f == "book" for f in acknowledged.values())
    return Figures(len(acknowledged), booked, _spread(decisions), _spread(answers), dict(failures))


def shown(violations: Sequence[Violation]) -> str:
    """The violations as a person reads them, a few of each promise."""
    by_promise = defaultdict(list)
    for each in violations:
        by_promise[each.promise].append(each.case)
    lines = []
    for promise, cases in by_promise.items():
        lines.append(f"{promise}: {len(cases)}")
        lines += [f"    {case}" for case in cases[:SHOWN]]
    return "\n".join(lines) or "no violation"


def violations(calls: Sequence[Call], kept: Kept, ahead: float, margin: float = MARGIN_SECONDS) -> Iterator[Violation]:
    """Every promise that these calls and what was kept show broken.

    `ahead` is how far the database's clock is ahead of the calls', and `margin` by how much that may be wrong.
    """
    acknowledged = [call for call in calls if call.end is not None and call.end.status == 202]
    states = _States.replayed(kept, _reported(calls), ahead, margin)
    yield from states.broken
    yield from _lost(acknowledged, kept)
    yield from _unanswered(calls, acknowledged)
    yield from _twice(calls, kept)
    yield from _overtaken(calls, acknowledged, kept)
    yield from _misread(calls, kept, states)
    yield from _unaudited(calls, kept, ahead)
    yield from _untold(kept)


# Commands.


def _lost(acknowledged: Iterable[Call], kept: Kept) -> Iterator[Violation]:
    """An acknowledged command is there, as it was sent, and is decided."""
    for call in acknowledged:
        assert call.end is not None
        command = kept.commands.get(call.end.command or "")
        if command is None:
            yield Violation("an acknowledged command is lost", f"{call.begin.f} {call.end.command}, {call.begin.op}")
        elif (command.kind, command.actor) != (call.begin.f, call.begin.actor):
            yield Violation("an acknowledged command is another one", f"{call.begin.f} {command.id} became {command.kind}")
        elif command.status == "pending":
            yield Violation("an acknowledged command is not decided", f"{command.kind} {command.id}")


def _unanswered(calls: Sequence[Call], acknowledged: Iterable[Call]) -> Iterator[Violation]:
    """Whoever was told of a command finds it."""
    known: dict[str, float] = {}
    for call in acknowledged:
        assert call.end is not None and call.end.command is not None
        known[call.end.command] = min(call.end.t, known.get(call.end.command, math.inf))
    for call in calls:
        if call.begin.f == "command" and call.outcome == "fail" and known.get(call.begin.command or "", math.inf) < call.begin.t:
            yield Violation("an acknowledged command was not found", f"{call.begin.command}, {call.begin.op}")


def _twice(calls: Sequence[Call], kept: Kept) -> Iterator[Violation]:
    """One key is one command, to whoever sent it and in the database."""
    keys = {call.begin.op: (call.begin.actor, call.begin.key) for call in calls if call.begin.key is not None}
    made: defaultdict[tuple[str | None, str | None], set[str]] = defaultdict(set)
    for call in calls:
        if call.begin.op in keys and call.end is not None and call.end.command is not None and call.outcome == "ok":
            made[keys[call.begin.op]].add(call.end.command)
    for command in kept.commands.values():
        if command.request in keys:
            made[keys[command.request]].add(command.id)
    for (_, key), commands in made.items():
        if len(commands) > 1:
            yield Violation("one key made two commands", f"{key}: {', '.join(sorted(commands))}")


def _overtaken(calls: Sequence[Call], acknowledged: Sequence[Call], kept: Kept) -> Iterator[Violation]:
    """On one doctor's schedule, what was acknowledged before another command was sent is decided before it."""
    sent = {call.begin.op: call.begin.t for call in calls}
    told: dict[str, float] = {}
    for call in acknowledged:
        assert call.end is not None and call.end.command is not None
        told[call.end.command] = min(call.end.t, told.get(call.end.command, math.inf))
    of_doctor: defaultdict[str, list[tuple[float, KeptCommand]]] = defaultdict(list)
    for command_id, at in told.items():
        command = kept.commands.get(command_id)
        if command is not None and command.doctor is not None:
            of_doctor[command.doctor].append((at, command))
    for commands in of_doctor.values():
        commands.sort(key=lambda each: each[0])
        times = [at for at, _ in commands]
        latest: list[KeptCommand] = []  # of all that were acknowledged by then, the one that was decided last
        for _, command in commands:
            latest.append(max(latest[-1], command, key=_order) if latest else command)
        for _, command in commands:
            place = bisect.bisect_left(times, sent.get(command.request or "", -math.inf))
            if place and _order(latest[place - 1]) > _order(command):
                case = f"{latest[place - 1].kind} {latest[place - 1].id} by {command.kind} {command.id}"
                yield Violation("a command was overtaken", case)


def _order(command: KeptCommand) -> tuple[float, int]:
    return command.decided, command.seq


# What is read.


def _reported(calls: Iterable[Call]) -> dict[str, float]:
    """When each command was first shown to be decided."""
    reported: dict[str, float] = {}
    for call in calls:
        end = call.end
        if end is not None and end.command is not None and end.detail.get("status") in ("succeeded", "rejected"):
            reported[end.command] = min(end.t, reported.get(end.command, math.inf))
    return reported


@dataclass(slots=True)
class _Line:
    """The states of one thing in their order: from when each may be seen, and from when it must be."""

    first: Any
    may: list[float] = field(default_factory=list)
    must: list[float] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)

    def add(self, may: float, must: float, state: Any) -> None:
        """What it became."""
        self.may.append(may)
        self.must.append(must)
        self.states.append(state)

    def possible(self, begin: float, end: float) -> Sequence[Any]:
        """What a read from `begin` to `end` may show."""
        floor = 0
        for place in range(len(self.must), 0, -1):
            if self.must[place - 1] <= begin:
                floor = place
                break
        return [self.first, *self.states][floor : bisect.bisect_right(self.may, end) + 1]


@dataclass(slots=True)
class _States:
    """The state of everything at every instant, by the clients' clock, as the database's history tells it."""

    commands: dict[str, _Line] = field(default_factory=dict)  # "pending", then how it was decided
    appointments: defaultdict[str, _Line] = field(
        default_factory=lambda: defaultdict(lambda: _Line(0))
    )  # the number of its steps
    slots: dict[str, _Line] = field(default_factory=dict)  # whether it is open
    agendas: defaultdict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))  # of a doctor's day
    exceptions: dict[str, _Line] = field(default_factory=dict)  # of each doctor's availability
    broken: list[Violation] = field(default_factory=list)

    @classmethod
    def replayed(cls, kept: Kept, reported: Mapping[str, float], ahead: float, margin: float) -> _States:
        """Let every command be decided again, in order, and tell where that broke a promise.

        What a command did may be seen from its decision, and must be from when its batch was finished, or it was reported.
        """
        states = cls()
        made = {command.slot for command in kept.commands.values() if command.kind == "add_slot"}
        for slot, facts in kept.slots.items():
            states.slots[slot] = _Line(first=slot not in made)
            states.agendas[facts.doctor, facts.day].append(slot)
        places: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for appointment, steps in kept.steps.items():
            for number, (_, command_id) in enumerate(steps):
                places[command_id].append((appointment, number))
        holding = _Holding(kept, states.broken)
        for command in sorted(kept.commands.values(), key=_order):
            line = states.commands[command.id] = _Line("pending")
            if command.status == "pending":
                continue
            must = min(command.finished - ahead + margin, reported.get(command.id, math.inf))
            when = command.decided - ahead - margin, must
            line.add(*when, command.status)
            if command.status == "rejected":
                continue
            if command.kind in CHANGES:
                for appointment, number in places[command.id]:
                    states.appointments[appointment].add(*when, number + 1)
                    for slot, is_open in holding.step(command, appointment, number):
                        if slot in states.slots:
                            states.slots[slot].add(*when, is_open)
            elif command.kind in ("add_slot", "withdraw_slot") and command.slot in states.slots:
                states.slots[command.slot].add(*when, command.kind == "add_slot")
            elif command.kind == "set_availability" and command.doctor is not None:
                states.exceptions.setdefault(command.doctor, _Line(None)).add(*when, command.exceptions)
        return states


@dataclass(slots=True)
class _Holding:
    """Who holds what, while the history is replayed."""

    kept: Kept
    broken: list[Violation]
    slot_of: dict[str, str] = field(default_factory=dict)  # of each active appointment
    of_person: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # those, of each patient and doctor
    done: Counter[str] = field(default_factory=Counter)  # steps of each appointment

    def step(self, command: KeptCommand, appointment: str, number: int) -> Iterator[tuple[str, bool]]:
        """Take one step of an appointment; which slots are open by it, and which no more."""
        steps = self.kept.steps[appointment]
        status = steps[number][0]
        before = steps[number - 1][0] if number else None
        if number != self.done[appointment] or status not in LEGAL.get(before, ()):
            self._break("an illegal transition", f"{appointment} from {before} to {status} by {command.kind} {command.id}")
        self.done[appointment] += 1
        held = self.slot_of.get(appointment)
        if held is not None and (status in ENDED or command.kind == "reschedule"):
            self._let_go(appointment)
            yield held, True
        if command.kind in ("book", "reschedule") and command.slot is not None:
            self._hold(appointment, command.slot)
            yield command.slot, False

    def _let_go(self, appointment: str) -> None:
        del self.slot_of[appointment]
        for person in self.kept.people[appointment]:
            self.of_person[person].discard(appointment)

    def _hold(self, appointment: str, slot: str) -> None:
        patient, doctor = self.kept.people[appointment]
        for other in self.of_person[doctor]:
            if self.slot_of[other] == slot:
                self._break("a slot had two active appointments at a time", f"{slot}: {other} and {appointment}")
            elif self._meet(self.slot_of[other], slot):
                self._break("a doctor was in two places at a time", f"{doctor}: {other} and {appointment}")
        for other in self.of_person[patient]:
            if self.slot_of[other] != slot and self._meet(self.slot_of[other], slot):
                self._break("a patient was in two places at a time", f"{patient}: {other} and {appointment}")
        self.slot_of[appointment] = slot
        for person in (patient, doctor):
            self.of_person[person].add(appointment)

    def _meet(self, one: str, other: str) -> bool:
        first, second = self.kept.slots[one], self.kept.slots[other]
        return first.starts_at < second.ends_at and second.starts_at < first.ends_at

    def _break(self, promise: str, case: str) -> None:
        self.broken.append(Violation(promise, case))


def _misread(calls: Sequence[Call], kept: Kept, states: _States) -> Iterator[Violation]:
    """Nobody sees less than was reported, nothing goes backwards, and nothing is shown that isn't so."""
    of_person: defaultdict[str, list[str]] = defaultdict(list)
    for appointment, people in kept.people.items():
        for person in people:
            of_person[person].append(appointment)
    seen: dict[tuple[str, str, str | None], int] = {}  # how far each reader has seen each appointment
    for call in sorted((call for call in calls if call.outcome == "ok"), key=lambda call: call.end.t):  # type: ignore[union-attr]
        begin, end = call.begin, call.end
        assert end is not None
        shown = end.detail
        if shown.get("degraded") or not shown:  # given while the database can't be reached, or 304
            continue
        where = f"{begin.f}, {begin.op}"
        if begin.f in (*COMMANDS, "command") and end.command in states.commands:
            yield from _misread_command(kept.commands[end.command], states.commands[end.command], call, where)
        elif begin.f == "appointment" and begin.appointment is not None:
            steps = [status for status, _ in kept.steps.get(begin.appointment, ())]
            number = len(shown["steps"])
            possible = states.appointments[begin.appointment].possible(begin.t, end.t)
            if shown["steps"] != steps[:number] or shown["status"] != shown["steps"][-1]:
                yield Violation("a read shows what never was", f"{where}: {shown['steps']} of {steps}")
            elif number not in possible:
                reader = (begin.process, begin.appointment, begin.actor)
                backwards = number < seen.get(reader, 0)
                yield _stale(backwards, f"{where}: {number} steps, not {possible} of {begin.appointment}")
            seen[begin.process, begin.appointment, begin.actor] = number
        elif begin.f == "appointments":
            yield from _misread_list(call, kept, states, of_person[begin.actor or ""], where)
        elif begin.f == "agenda":
            yield from _misread_agenda(call, kept, states, where)
        elif begin.f == "availability" and begin.doctor in states.exceptions:
            possible = states.exceptions[begin.doctor].possible(begin.t, end.t)
            exceptions = tuple(shown["exceptions"])
            if exceptions not in possible and None not in possible:
                yield _stale(False, f"{where}: {exceptions}, not {possible}")


def _misread_command(kept: KeptCommand, line: _Line, call: Call, where: str) -> Iterator[Violation]:
    assert call.end is not None
    shown, possible = call.end.detail, line.possible(call.begin.t, call.end.t)
    if shown["status"] not in possible:
        yield _stale(False, f"{where}: {kept.kind} {kept.id} is {shown['status']}, not {possible}")
    told = shown["status"], shown.get("appointment_id"), shown.get("code")
    if told[0] != "pending" and told[0] == kept.status and told[1:] != (kept.appointment, kept.code):
        yield Violation("a command was told to be decided otherwise", f"{where}: {told} of {kept}")


def _misread_list(call: Call, kept: Kept, states: _States, own: Sequence[str], where: str) -> Iterator[Violation]:
    assert call.end is not None
    items, whole = call.end.detail["items"], call.end.detail["total"] <= len(call.end.detail["items"])
    for appointment in own:
        possible = states.appointments[appointment].possible(call.begin.t, call.end.t)
        statuses = [kept.steps[appointment][number - 1][0] if number else None for number in possible]
        status = items.get(appointment)
        if status not in statuses and (status is not None or whole):
            yield _stale(False, f"{where}: {appointment} is {status}, not {statuses}")
    for appointment in items.keys() - set(own):
        yield Violation("a read shows what never was", f"{where}: {appointment}")


def _misread_agenda(call: Call, kept: Kept, states: _States, where: str) -> Iterator[Violation]:
    assert call.end is not None
    shown = set(call.end.detail["slots"])
    for slot in itertools.chain(*(states.agendas[call.begin.doctor or "", day] for day in call.end.detail["days"])):
        possible = states.slots[slot].possible(call.begin.t, call.end.t)
        if (slot in shown) not in possible and kept.slots[slot].status != "dropped":
            yield _stale(False, f"{where}: slot {slot} is {'open' if slot in shown else 'not open'}")
    for slot in shown - kept.slots.keys():
        yield Violation("a read shows what never was", f"{where}: slot {slot}")


def _stale(backwards: bool, case: str) -> Violation:
    return Violation("a reader saw a projection go backwards" if backwards else "a read shows less than was reported", case)


# What is written down and told.


def _unaudited(calls: Sequence[Call], kept: Kept, ahead: float) -> Iterator[Violation]:
    """What a doctor reads of a patient is in the audit of that hour."""
    for call in calls:
        if call.outcome != "ok" or call.end is None or not call.end.detail:
            continue
        if call.begin.f == "appointment":
            read = [call.begin.appointment]
        elif call.begin.f == "appointments":
            read = list(call.end.detail["items"])
        else:
            continue
        hours = {int((at + ahead) // 3600) for at in (call.begin.t - 2, call.end.t)}
        for appointment in read:
            patient, doctor = kept.people.get(appointment or "", ("", ""))
            if call.begin.actor == doctor and not any((doctor, patient, hour) in kept.reads for hour in hours):
                yield Violation("a read of a patient's data is not in the audit", f"{doctor} of {patient}, {call.begin.op}")


def _untold(kept: Kept) -> Iterator[Violation]:
    """Of every step that somebody must be told of, somebody is."""
    for appointment, steps in kept.steps.items():
        for status, command_id in steps:
            command = kept.commands.get(command_id)
            kind = "rescheduled" if command is not None and command.kind == "reschedule" else status
            if command is not None and status not in UNTOLD and (appointment, kind, command.decided) not in kept.told:
                yield Violation("nobody is told of a step", f"{appointment} {status}, by {command.kind} {command.id}")


def _unsent(kept: Kept, mail: Path) -> Iterator[Violation]:
    """A notice that is noted as sent was."""
    caught = {_notice(file) for file in mail.glob("*.eml")}
    for notice in kept.sent - caught:
        yield Violation("a notice is noted as sent and was not", notice)


def _notice(file: Path) -> str:
    head = file.read_bytes().partition(b"\n\n")[0].partition(b"\r\n\r\n")[0]
    return str(message_from_bytes(head)["Message-ID"]).strip("<> ").partition("@")[0]


# The database.


def read(engine: Engine) -> Kept:
    """What the database holds now."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        for limit in ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(text(f"set local {limit} = 0"))
        return _read(connection)


def _read(connection: Connection) -> Kept:
    commands = {
        row.id: KeptCommand(
            id=row.id,
            seq=row.seq,
            kind=row.kind,
            actor=row.actor,
            doctor=row.doctor,
            slot=row.slot,
            appointment=row.appointment,
            status=row.status,
            code=row.error_code,
            request=row.request_id,
            received=row.received,
            decided=math.inf if row.decided is None else row.decided,
            finished=math.inf if row.finished is None else row.finished,
            exceptions=tuple(_instant(each["starts_at"]) for each in row.exceptions or ()),
        )
        for row in connection.execute(_COMMANDS)
    }
    steps: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in connection.execute(_STEPS):
        steps[row.appointment].append((row.status, row.command))
    return Kept(
        commands=commands,
        steps=steps,
        people={row.id: (row.patient, row.doctor) for row in connection.execute(_PEOPLE)},
        slots={
            row.id: KeptSlot(row.doctor, row.day, row.starts_at, row.ends_at, row.status) for row in connection.execute(_SLOTS)
        },
        reads=frozenset((row.actor, row.subject, row.hour) for row in connection.execute(_READS)),
        told=frozenset((row.appointment, row.kind, row.due) for row in connection.execute(_TOLD)),
        sent=frozenset(connection.execute(_SENT).scalars()),
    )


def _instant(written: str) -> str:
    return written.replace("+00:00", "Z")


def is_at_rest(engine: Engine, told: bool) -> bool:
    """Whether nothing waits: no command, no batch and, if everybody is to be `told`, no notice that is due."""
    with engine.connect() as connection:
        return bool(connection.execute(_AT_REST, {"told": told}).scalar_one())


def _cause(end: Event) -> str:
    return str(end.detail.get("error") or f"{end.status} {end.detail.get('code')}")


def _spread(values: Iterable[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    if not ordered:
        return math.nan, math.nan, math.nan
    at = lambda part: ordered[min(len(ordered) - 1, int(len(ordered) * part))]  # noqa: E731
    return at(0.5), at(0.99), ordered[-1]


_COMMANDS = text(
    """
    select commands.id::text, seq, kind, actor_id::text as actor, doctor_id::text as doctor,
        coalesce(slot_id::text, result ->> 'slot_id') as slot, appointment_id::text as appointment, status, error_code,
        request_id, cast(extract(epoch from received_at) as float) as received,
        cast(extract(epoch from decided_at) as float) as decided, cast(extract(epoch from finished_at) as float) as finished,
        payload -> 'exceptions' as exceptions
    from commands left join batches on batches.id = batch_id
    """
)
_STEPS = text(
    "select appointment_id::text as appointment, status, command_id::text as command from history"
    " order by appointment_id, position"
)
_PEOPLE = text("select id::text, patient_id::text as patient, doctor_id::text as doctor from appointments")
_SLOTS = text(
    """
    select slots.id::text, doctor_id::text as doctor, cast(cast(starts_at at time zone timezone as date) as text) as day,
        cast(extract(epoch from starts_at) as float) as starts_at, cast(extract(epoch from ends_at) as float) as ends_at,
        slots.status
    from slots join doctors on doctors.id = doctor_id
    """
)
_READS = text(
    """
    select actor_id::text as actor, subject_id::text as subject, cast(extract(epoch from hour) / 3600 as int) as hour
    from audit where action = 'read'
    """
)
_TOLD = text(
    """
    select appointment_id::text as appointment, kind, cast(extract(epoch from due_at) as float) as due
    from notices where appointment_id is not null
    """
)
_SENT = text("select id::text from notices where sent_at is not null")
_AT_REST = text(
    """
    select not exists (select from commands where status = 'pending')
        and not exists (select from batches where finished_at is null)
        and not (:told and exists (
            select from notices where sent_at is null and dropped_at is null and due_at <= clock_timestamp()))
    """
)
