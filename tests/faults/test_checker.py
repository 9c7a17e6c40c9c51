"""The checker is given small histories, written by hand: one that is right, and others that break one promise each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

import pytest

from tests.faults.checker import Kept, KeptCommand, KeptSlot, Violation, _unsent, shown, violations
from tests.faults.history import Call, Event, History

AHEAD = 1000.0  # of the clients' clock
DAY = "2026-12-01"


@dataclass
class Story:
    """What happened to a doctor D, patients P and Q, and the slots S (before noon), T (after noon) and U (of doctor E, as S).

    P books S at 1, D accepts at 2, P moves to T at 3, Q books S at 4 and cancels at 5: decided 0.2 s, known 0.3 s after each.
    """

    calls: list[Call] = field(default_factory=list)
    commands: dict[str, KeptCommand] = field(default_factory=dict)
    steps: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    people: dict[str, tuple[str, str]] = field(default_factory=lambda: {"a": ("P", "D"), "b": ("Q", "D")})
    slots: dict[str, KeptSlot] = field(
        default_factory=lambda: {
            "S": KeptSlot("D", DAY, 100, 200, "open"),
            "T": KeptSlot("D", DAY, 300, 400, "booked"),
            "U": KeptSlot("E", DAY, 150, 250, "open"),
        }
    )
    reads: set[tuple[str, str, int]] = field(default_factory=set)
    told: set[tuple[str, str, float]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.send(1, "book", "P", "a", "S", step="requested")
        self.send(2, "accept", "D", "a", step="accepted")
        self.send(3, "reschedule", "P", "a", "T", step="requested")
        self.send(4, "book", "Q", "b", "S", step="requested")
        self.send(5, "cancel", "Q", "b", step="cancelled")

    def send(
        self, at: float, kind: str, actor: str, appointment: str | None, slot: str | None = None, step: str | None = None
    ) -> None:
        """A command, acknowledged after 0.1 s, that does what it asks for."""
        number, due = f"c{len(self.commands) + 1}", AHEAD + at + 0.2
        command = self.commands[number] = KeptCommand(
            id=number, seq=len(self.commands), kind=kind, actor=actor, doctor="D", slot=slot, appointment=appointment,
            status="succeeded", request=f"send {number}", decided=due, finished=due + 0.1,
        )  # fmt: skip
        self.call(
            f"send {number}", kind, at, 202, {"status": "pending"}, actor=actor, key=f"key {number}", doctor="D", command=number
        )
        if step is not None and appointment is not None:
            self.steps.setdefault(appointment, []).append((step, number))
            self.told.add((appointment, "rescheduled" if kind == "reschedule" else step, command.decided))

    def call(self, op: str, f: str, at: float, status: int, shown: dict[str, object], **about: str | None) -> None:
        """A call that lasts 0.1 s."""
        begin = Event(op=op, process="1", kind="invoke", f=f, t=at, **about)  # type: ignore[arg-type]
        end = replace(begin, kind="ok" if status < 400 else "fail", t=at + 0.1, status=status, detail=shown)
        self.calls.append(Call(begin, end))

    def read(
        self, f: str, at: float, who: str | None = None, *, command: str | None = None, http: int = 200, **shown: object
    ) -> None:
        """A read of a command, of the appointment `a`, of a list, or of D's agenda or availability."""
        about = {"actor": who, "doctor": "D", "command": command, "appointment": "a" if f == "appointment" else None}
        self.call(f"read {len(self.calls)}", f, at, http, shown, **about)

    def change(self, command: str, **values: object) -> None:
        """Let a command be kept otherwise."""
        self.commands[command] = replace(self.commands[command], **values)  # type: ignore[arg-type]

    def judged(self) -> list[Violation]:
        kept = Kept(self.commands, self.steps, self.people, self.slots, frozenset(self.reads), frozenset(self.told))
        return [*violations(self.calls, kept, AHEAD)]

    def agenda(self, at: float, *slots: str) -> None:
        self.read("agenda", at, days=[DAY], slots=list(slots))


def add_right_reads(story: Story) -> None:
    """What may be seen, at the edge of what may be seen."""
    steps = ["requested", "accepted", "requested"]
    story.read("appointment", 1.15, "P", steps=steps[:1], status="requested")  # ends when it may have been committed
    story.read("appointment", 2.1, "P", steps=steps[:1], status="requested")  # begins when it need not have been made known
    story.read("appointment", 2.2, "P", steps=steps[:2], status="accepted")
    story.read("appointment", 3.4, "P", steps=steps, status="requested")
    story.read("appointments", 4.4, "Q", items={"b": "requested"}, total=1)
    story.read("appointments", 5.1, "Q", items={"b": "requested"}, total=1)
    story.read("appointments", 5.4, "Q", items={"b": "cancelled"}, total=1)
    story.read("appointments", 4.4, "P", items={}, total=150)  # it may stand on another page
    story.agenda(0.5, "S", "T")
    story.agenda(1.25, "S", "T")
    story.agenda(1.4, "T")
    story.agenda(3.4, "S")
    story.agenda(4.4)
    story.agenda(5.4, "S")
    story.read("command", 1.1, "P", command="c1", status="pending")
    story.read("command", 1.4, "P", command="c1", status="succeeded", appointment_id="a")
    story.read("appointment", 2.5, "D", steps=steps[:2], status="accepted")
    story.reads.add(("D", "P", 0))


def test_nothing_is_found_wrong_with_what_is_right() -> None:
    story = Story()
    add_right_reads(story)
    assert story.judged() == []


def a_command_that_is_nowhere(story: Story) -> None:
    del story.commands["c5"], story.steps["b"][1:]


def a_command_in_the_place_of_another(story: Story) -> None:
    story.change("c4", actor="P")


def a_command_that_waits_for_ever(story: Story) -> None:
    story.change("c5", status="pending", decided=math.inf, finished=math.inf)
    del story.steps["b"][1:]


def a_command_that_its_sender_does_not_find(story: Story) -> None:
    story.read("command", 1.15, "P", command="c1", http=404, code="not_found")


def a_key_that_is_answered_with_two_commands(story: Story) -> None:
    story.call("again", "book", 9, 200, {"status": "pending"}, actor="P", key="key c1", command="c9")


def a_key_that_stored_two_commands(story: Story) -> None:
    """One of which nobody was told of."""
    story.calls.append(Call(Event(op="again", process="1", kind="invoke", f="book", t=1, actor="P", key="key c1"), None))
    story.change("c2", request="again")


def a_command_that_overtakes(story: Story) -> None:
    """The later one is in a batch before the earlier one's."""
    story.send(6, "add_slot", "D", None, "V")
    story.send(6.5, "add_slot", "D", None, "W")
    story.change("c6", decided=AHEAD + 6.9, finished=AHEAD + 7)


def a_command_that_overtakes_within_its_batch(story: Story) -> None:
    story.send(6, "add_slot", "D", None, "V")
    story.send(6.5, "add_slot", "D", None, "W")
    story.change("c6", decided=AHEAD + 6.9, finished=AHEAD + 7, seq=20)
    story.change("c7", decided=AHEAD + 6.9, finished=AHEAD + 7, seq=10)


def a_slot_that_is_taken_twice_for_a_while(story: Story) -> None:
    """And is free again in the end."""
    story.people |= {"x": ("R", "D")}
    story.send(4.4, "book", "R", "x", "S", step="requested")
    story.send(4.7, "cancel", "R", "x", step="cancelled")
    story.change("c4", decided=AHEAD + 4.2)


def a_patient_in_two_places(story: Story) -> None:
    story.people |= {"x": ("Q", "E")}
    story.send(4.4, "book", "Q", "x", "U", step="requested")


def a_doctor_in_two_places(story: Story) -> None:
    story.slots["V"] = KeptSlot("D", DAY, 150, 250, "booked")
    story.people |= {"x": ("R", "D")}
    story.send(4.4, "book", "R", "x", "V", step="requested")


def a_step_that_must_not_be(story: Story) -> None:
    story.send(6, "accept", "D", "b", step="accepted")


def a_step_out_of_order(story: Story) -> None:
    story.send(6, "cancel", "P", "a", step="cancelled")
    story.send(7, "accept", "D", "a", step="accepted")
    story.steps["a"] = [*story.steps["a"][:3], story.steps["a"][4], story.steps["a"][3]]


def a_read_of_what_is_over(story: Story) -> None:
    story.read("appointment", 2.4, "P", steps=["requested"], status="requested")


def a_read_that_goes_back(story: Story) -> None:
    story.read("appointment", 2.2, "P", steps=["requested", "accepted"], status="accepted")
    story.read("appointment", 2.4, "P", steps=["requested"], status="requested")


def a_read_of_what_never_was(story: Story) -> None:
    story.read("appointment", 2.4, "P", steps=["requested", "refused"], status="refused")


def a_read_of_what_is_lost(story: Story) -> None:
    """An appointment that somebody has seen is in the database no more, with the command that made it."""
    story.read("appointment", 4.4, "Q", steps=["requested"], status="requested")
    story.calls[-1] = Call(*(replace(event, appointment="x") for event in (story.calls[-1].begin, story.calls[-1].end) if event))


def a_read_after_it_was_reported(story: Story) -> None:
    """The database says that the batch was finished long after, but somebody was told before."""
    story.change("c2", finished=AHEAD + 9)
    story.read("command", 2.2, "D", command="c2", status="succeeded", appointment_id="a")
    story.read("appointment", 2.35, "P", steps=["requested"], status="requested")


def a_list_that_lacks_something(story: Story) -> None:
    story.read("appointments", 1.4, "P", items={}, total=0)


def a_list_that_is_late(story: Story) -> None:
    story.read("appointments", 5.4, "Q", items={"b": "requested"}, total=1)


def a_list_with_what_is_anothers(story: Story) -> None:
    story.read("appointments", 5.4, "P", items={"a": "requested", "b": "cancelled"}, total=2)


def an_agenda_with_a_taken_slot(story: Story) -> None:
    story.agenda(1.4, "S", "T")


def an_agenda_without_a_freed_slot(story: Story) -> None:
    story.agenda(5.4)


def an_agenda_with_a_slot_of_nobodys(story: Story) -> None:
    story.agenda(5.4, "S", "X")


def an_agenda_without_an_added_slot(story: Story) -> None:
    story.send(6, "add_slot", "D", None, "V")
    story.slots["V"] = KeptSlot("D", DAY, 500, 600, "open")
    story.agenda(5.5, "S")
    story.agenda(6.4, "S")


def an_availability_that_is_late(story: Story) -> None:
    story.send(6, "set_availability", "D", None)
    story.send(7, "set_availability", "D", None)
    story.change("c6", exceptions=("x",))
    story.change("c7", exceptions=("y",))
    story.read("availability", 6.4, "D", exceptions=["x"])
    story.read("availability", 7.4, "D", exceptions=["x"])


def a_command_that_waits_again(story: Story) -> None:
    story.read("command", 1.4, "P", command="c1", status="pending")


def a_command_that_was_told_otherwise(story: Story) -> None:
    story.read("command", 1.4, "P", command="c1", status="succeeded", appointment_id="b")


def a_read_that_nobody_wrote_down(story: Story) -> None:
    story.read("appointment", 2.4, "D", steps=["requested", "accepted"], status="accepted")


def a_list_that_nobody_wrote_down(story: Story) -> None:
    story.read("appointments", 5.4, "D", items={"a": "requested", "b": "cancelled"}, total=2)
    story.reads.add(("D", "P", 0))


def a_step_of_which_nobody_is_told(story: Story) -> None:
    story.told.remove(("a", "rescheduled", story.commands["c3"].decided))


LESS = "a read shows less than was reported"
NEVER = "a read shows what never was"
UNAUDITED = "a read of a patient's data is not in the audit"


@pytest.mark.parametrize(
    ("happens", "promise"),
    [
        (a_command_that_is_nowhere, "an acknowledged command is lost"),
        (a_command_in_the_place_of_another, "an acknowledged command is another one"),
        (a_command_that_waits_for_ever, "an acknowledged command is not decided"),
        (a_command_that_its_sender_does_not_find, "an acknowledged command was not found"),
        (a_key_that_is_answered_with_two_commands, "one key made two commands"),
        (a_key_that_stored_two_commands, "one key made two commands"),
        (a_command_that_overtakes, "a command was overtaken"),
        (a_command_that_overtakes_within_its_batch, "a command was overtaken"),
        (a_slot_that_is_taken_twice_for_a_while, "a slot had two active appointments at a time"),
        (a_patient_in_two_places, "a patient was in two places at a time"),
        (a_doctor_in_two_places, "a doctor was in two places at a time"),
        (a_step_that_must_not_be, "an illegal transition"),
        (a_step_out_of_order, "an illegal transition"),
        (a_read_of_what_is_over, LESS),
        (a_read_that_goes_back, "a reader saw a projection go backwards"),
        (a_read_of_what_never_was, NEVER),
        (a_read_of_what_is_lost, NEVER),
        (a_read_after_it_was_reported, LESS),
        (a_list_that_lacks_something, LESS),
        (a_list_that_is_late, LESS),
        (a_list_with_what_is_anothers, NEVER),
        (an_agenda_with_a_taken_slot, LESS),
        (an_agenda_without_a_freed_slot, LESS),
        (an_agenda_with_a_slot_of_nobodys, NEVER),
        (an_agenda_without_an_added_slot, LESS),
        (an_availability_that_is_late, LESS),
        (a_command_that_waits_again, LESS),
        (a_command_that_was_told_otherwise, "a command was told to be decided otherwise"),
        (a_read_that_nobody_wrote_down, UNAUDITED),
        (a_list_that_nobody_wrote_down, UNAUDITED),
        (a_step_of_which_nobody_is_told, "nobody is told of a step"),
    ],
)
def test_what_is_wrong_is_found(happens: Callable[[Story], None], promise: str) -> None:
    story = Story()
    happens(story)
    found = story.judged()
    assert {violation.promise for violation in found} == {promise}, shown(found)


def test_what_is_shown_while_the_database_is_away_is_no_lie() -> None:
    story = Story()
    story.read("appointment", 2.4, "P", steps=["requested"], status="requested", degraded=True)
    assert story.judged() == []


def test_a_call_without_an_answer_may_have_done_anything_or_nothing() -> None:
    story = Story()
    for number, op in enumerate(("send c4", "never")):
        story.calls.append(Call(Event(op=op, process="2", kind="invoke", f="book", t=4, actor="Q", key=f"k{number}"), None))
    assert story.judged() == []


def test_a_notice_that_was_noted_as_sent_and_was_not_is_found(tmp_path: Path) -> None:
    (tmp_path / "1.eml").write_bytes(b"From: a\r\nMessage-ID: <n1@clinic.example>\r\n\r\nMessage-ID: <n2@clinic.example>\r\n")
    kept = Kept({}, {}, {}, {}, sent=frozenset({"n1", "n2"}))
    assert [violation.case for violation in _unsent(kept, tmp_path)] == ["n2"]


def test_a_history_is_read_as_it_was_written_however_many_write(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")

    def write(process: str) -> None:
        for number in range(50):
            common = {"op": f"{process}-{number}", "process": process, "f": "book", "detail": {"words": "é" * 50}}
            history.add(Event(kind="invoke", t=number, **common))  # type: ignore[arg-type]
            if number % 2:
                history.add(Event(kind="ok", t=number + 0.5, status=202, **common))  # type: ignore[arg-type]

    writers = [Thread(target=write, args=[str(number)]) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    calls = history.calls()
    assert len(calls) == 200
    assert {call.outcome for call in calls if call.end is None} == {"info"}
    assert sum(call.end is not None and call.end.detail == {"words": "é" * 50} for call in calls) == 100
    ahead, drift = history.clock()
    assert ahead > 0
    assert drift < 1
    history.close()
