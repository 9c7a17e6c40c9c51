"""Models of the three protocols between processes, tried in every interleaving; each rule left out must show its fault.

They are small on purpose: change a rule here first, then in `domain.lanes` and `domain.cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import pytest

State = Any


def explore(start: Hashable, steps: Callable[[State], Iterator[State]], fault: Callable[[State, bool], bool]) -> bool:
    """Whether any state that can be reached is a fault; `fault` is told the state and whether nothing can move any more."""
    seen, waiting = {start}, [start]
    while waiting:
        state = waiting.pop()
        following = list(steps(state))
        if fault(state, not following):
            return True
        for each in following:
            if each not in seen:
                seen.add(each)
                waiting.append(each)
    return False


def put(items: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    """The tuple with another value in one place."""
    return (*items[:place], value, *items[place + 1 :])


class Lane(NamedTuple):
    """Commands pending and decided, the lane's flag and lock, tasks in the queue, and where each sender and worker stands."""

    pending: frozenset[int]
    decided: frozenset[int]
    flag: bool
    holder: int | None
    queue: int
    senders: tuple[str, ...]
    workers: tuple[Any, ...]


def lane_steps(clears_after: bool, looks: bool, wakes_at_its_end: bool) -> Callable[[Lane], Iterator[Lane]]:
    def steps(lane: Lane) -> Iterator[Lane]:
        for n, at in enumerate(lane.senders):
            if at == "new":
                yield lane._replace(pending=lane.pending | {n}, senders=put(lane.senders, n, "wake"))
            elif at == "wake":
                yield lane._replace(flag=True, senders=put(lane.senders, n, "done" if lane.flag else "send"))
            elif at == "send":
                yield lane._replace(queue=lane.queue + 1, senders=put(lane.senders, n, "done"))
        for n, at in enumerate(lane.workers):

            def go(to: Any, n: int = n, **values: Any) -> Lane:
                return lane._replace(workers=put(lane.workers, n, to), **values)

            if at == "idle" and lane.queue:
                yield go("try", queue=lane.queue - 1)
            elif at == "try":  # the loser leaves the flag
                yield go("clear", holder=n) if lane.holder is None else go("idle")
            elif at == "clear":
                yield go("read", flag=False)
                if lane.decided and lane.pending and lane.queue < 2:  # its turn is over
                    yield go("over", holder=None)
            elif at == "over":
                yield go("wake", flag=False) if wakes_at_its_end else (go("idle") if lane.flag else go("wake", flag=True))
            elif at == "wake":
                yield go("idle", queue=lane.queue + 1)
            elif at == "read":
                yield go(("commit", lane.pending)) if lane.pending else go("release")
            elif isinstance(at, tuple):  # it looks again only after it has let go, or goes on if its batch was full
                after = {"pending": lane.pending - at[1], "decided": lane.decided | at[1]}
                yield go("release", **after)
                yield go("clear", **after)
            elif at == "release":
                yield go("clear after" if clears_after else ("look" if looks else "idle"), holder=None)
            elif at == "clear after":
                yield go("look" if looks else "idle", flag=False)
            elif at == "look":
                yield go("try" if lane.pending else "idle")

    return steps


@pytest.mark.parametrize(
    ("left_out", "faulty"),
    [({}, False), ({"looks": False}, True), ({"clears_after": False}, True), ({"wakes_at_its_end": False}, True)],
    ids=["as built", "no look after release", "no clear after release", "an ended turn wakes only if unflagged"],
)
def test_no_command_is_left_behind_by_wake_ups(left_out: dict[str, bool], faulty: bool) -> None:
    rules = {"clears_after": True, "looks": True, "wakes_at_its_end": True, **left_out}
    start = Lane(frozenset(), frozenset(), False, None, 0, ("new",) * 3, ("idle",) * 3)
    assert explore(start, lane_steps(**rules), lambda lane, stuck: stuck and bool(lane.pending or lane.flag)) is faulty


class Waiting(NamedTuple):
    """How many lanes wait for a worker, tasks in the queue, and where each sender and worker stands."""

    waiting: int
    queue: int
    senders: tuple[str, ...]
    workers: tuple[Any, ...]


def waiting_steps(most: int, sends_on: bool, joins_first: bool) -> Callable[[Waiting], Iterator[Waiting]]:
    """A sender's lane joins those that wait, and it sends a task if none waited yet; a task takes so many, and may send on."""

    def steps(at: Waiting) -> Iterator[Waiting]:
        for n, sender in enumerate(at.senders):
            if sender == "new" and joins_first:
                yield at._replace(waiting=at.waiting + 1, senders=put(at.senders, n, "done" if at.waiting else "send"))
            elif sender == "new":
                yield at._replace(senders=put(at.senders, n, "join" if at.waiting else "send"))
            elif sender == "send":
                yield at._replace(queue=at.queue + 1, senders=put(at.senders, n, "done" if joins_first else "join"))
            elif sender == "join":
                yield at._replace(waiting=at.waiting + 1, senders=put(at.senders, n, "done"))
        for n, worker in enumerate(at.workers):
            if worker == "idle" and at.queue:
                yield at._replace(queue=at.queue - 1, workers=put(at.workers, n, "take"))
            elif worker == "take":  # one more than it can drain, if there are so many: that one it names in a task
                taken = min(at.waiting, most + 1)
                to = "send on" if taken > most and sends_on else "idle"
                yield at._replace(waiting=at.waiting - taken, workers=put(at.workers, n, to))
            elif worker == "send on":
                yield at._replace(queue=at.queue + 1, workers=put(at.workers, n, "idle"))

    return steps


@pytest.mark.parametrize(
    ("left_out", "faulty"),
    [({}, False), ({"sends_on": False}, True), ({"joins_first": False}, True)],
    ids=["as built", "a full worker sends no other", "a lane joins after the look"],
)
def test_no_lane_is_left_waiting_without_a_task(left_out: dict[str, bool], faulty: bool) -> None:
    rules = {"most": 1, "sends_on": True, "joins_first": True, **left_out}
    start = Waiting(0, 0, ("new",) * 5, ("idle",) * 2)
    assert explore(start, waiting_steps(**rules), lambda at, stuck: stuck and at.waiting > 0) is faulty  # type: ignore[arg-type]


class Projection(NamedTuple):
    """The version in the database, in its replica and the one reported; the cache's value and lease; who stands where."""

    version: int
    replayed: int
    reported: int
    value: int | None
    lease: int | None
    next_lease: int
    deciders: tuple[Any, ...]
    readers: tuple[Any, ...]
    evictions: int
    reads_left: tuple[int, ...]
    stale: bool


def projection_steps(
    leased: bool, lease_first: bool, invalidates_first: bool, drops_lease: bool, position: str
) -> Callable[[Projection], Iterator[Projection]]:
    def steps(at: Projection) -> Iterator[Projection]:
        if at.replayed < at.version:
            yield at._replace(replayed=at.replayed + 1)
        if at.evictions and (at.value is not None or at.lease is not None):
            yield at._replace(value=None, lease=None, evictions=at.evictions - 1)
        for n, decider in enumerate(at.deciders):

            def decide(to: Any, n: int = n, **values: Any) -> Projection:
                return at._replace(deciders=put(at.deciders, n, to), **values)

            gone = {"value": None, "lease": None if drops_lease else at.lease}
            if decider == "idle":
                first = "invalidate" if invalidates_first else "report early"
                yield decide((first, at.version + 1), version=at.version + 1)
            elif decider[0] == "invalidate":
                yield decide(("report", decider[1]), **gone)
            elif decider[0] == "report":
                yield decide(("done", 0), reported=max(at.reported, decider[1]))
            elif decider[0] == "report early":
                yield decide(("invalidate late", decider[1]), reported=max(at.reported, decider[1]))
            elif decider[0] == "invalidate late":
                yield decide(("done", 0), **gone)
        for n, reader in enumerate(at.readers):

            def read(to: Any, n: int = n, **values: Any) -> Projection:
                return at._replace(readers=put(at.readers, n, to), **values)

            def taken() -> tuple[int, dict[str, int]]:
                if at.lease is not None:
                    return at.lease, {}
                return at.next_lease, {"lease": at.next_lease, "next_lease": at.next_lease + 1}

            if reader == "idle" and at.reads_left[n]:
                yield read(("get", at.reported), reads_left=put(at.reads_left, n, at.reads_left[n] - 1))
            elif reader[0] == "get" and at.value is not None:
                yield read("idle", stale=at.stale or at.value < reader[1])
            elif reader[0] == "get" and lease_first:
                lease, made = taken()
                yield read(("read", reader[1], lease), **made)
                if position == "before the lease":
                    yield read(("lease", reader[1], at.version))
            elif reader[0] == "lease":
                lease, made = taken()
                yield read(("replica", reader[1], lease, reader[2]), **made)
            elif reader[0] == "get":
                yield read(("lease late", reader[1], at.version))
            elif reader[0] == "lease late":
                lease, made = taken()
                yield read(("store", reader[1], lease, reader[2]), **made)
            elif reader[0] == "read":
                yield read(("store", reader[1], reader[2], at.version))
                if position in ("after the lease", "unasked"):
                    yield read(("replica", reader[1], reader[2], at.version if position == "after the lease" else 0))
            elif reader[0] == "replica" and at.replayed >= reader[3]:  # else it reads the primary
                yield read(("store", reader[1], reader[2], at.replayed))
            elif reader[0] == "store":
                stored = {"value": reader[3]} if not leased or at.lease == reader[2] else {}
                yield read("idle", stale=at.stale or reader[3] < reader[1], **stored)

    return steps


@pytest.mark.parametrize(
    ("left_out", "faulty"),
    [
        ({}, False),
        ({"leased": False}, True),
        ({"lease_first": False}, True),
        ({"invalidates_first": False}, True),
        ({"drops_lease": False}, True),
        ({"position": "unasked"}, True),
        ({"position": "before the lease"}, True),
    ],
    ids=[
        "as built",
        "fills without a lease",
        "the lease after the read",
        "reported before invalidated",
        "the lease outlives the scope",
        "a replica is not asked what it holds",
        "the position before the lease",
    ],
)
def test_nobody_reads_less_than_was_reported(left_out: dict[str, Any], faulty: bool) -> None:
    built = {"leased": True, "lease_first": True, "invalidates_first": True, "drops_lease": True, "position": "after the lease"}
    rules = {**built, **left_out}
    start = Projection(0, 0, 0, None, None, 1, ("idle",) * 2, ("idle",) * 2, 2, (2, 2), False)
    assert explore(start, projection_steps(**rules), lambda at, stuck: at.stale) is faulty


class Mark(NamedTuple):
    """The row (in use, epoch, age), the cache's value in each epoch, a process's reading of the row, all in ticks of a second."""

    version: int
    reported: int
    row: tuple[bool, int, int]
    cache: tuple[int | None, ...]
    reading: tuple[bool, int, int]
    deciders: tuple[Any, ...]
    ticks: int
    stale: bool


def mark_steps(
    wait: int, believed: int, healed_after: int, new_epoch: bool, others_wait: bool
) -> Callable[[Mark], Iterator[Mark]]:
    def steps(at: Mark) -> Iterator[Mark]:
        in_use, epoch, age = at.row
        if at.ticks:
            aged = (*at.reading[:2], min(9, at.reading[2] + 1))
            yield at._replace(row=(in_use, epoch, min(9, age + 1)), reading=aged, ticks=at.ticks - 1)
        yield at._replace(reading=(in_use, epoch, 0))
        if not in_use and age >= healed_after and epoch < 2:
            yield at._replace(row=(True, epoch + new_epoch, 0))
        if at.reading[0] and at.reading[2] < believed:
            value = at.cache[at.reading[1]]
            if value is None:
                yield at._replace(cache=put(at.cache, at.reading[1], at.version))
            else:
                yield at._replace(stale=at.stale or value < at.reported)
        for n, decider in enumerate(at.deciders):

            def decide(to: Any, n: int = n, **values: Any) -> Mark:
                return at._replace(deciders=put(at.deciders, n, to), **values)

            if decider == "idle":
                yield decide(("look", at.version + 1), version=at.version + 1)
            elif decider[0] == "look" and in_use:
                yield decide(("invalidate", decider[1], epoch))
            elif decider[0] == "look":
                yield decide(("wait" if others_wait else "report", decider[1]))
            elif decider[0] == "invalidate":
                yield decide(("report", decider[1]), cache=put(at.cache, decider[2], None))
                marked = (False, epoch, 0) if in_use and epoch == decider[2] else at.row
                yield decide(("wait", decider[1]), row=marked)  # no answer: it marks the cache
            elif decider[0] == "wait" and (in_use or age >= wait):
                yield decide(("report", decider[1]))
            elif decider[0] == "report":
                yield decide(("done", 0), reported=max(at.reported, decider[1]))

    return steps


@pytest.mark.parametrize(
    ("changed", "faulty"),
    [
        ({}, False),
        ({"wait": 0}, True),
        ({"believed": 5}, True),
        ({"healed_after": 0}, True),
        ({"new_epoch": False}, True),
        ({"others_wait": False}, True),
    ],
    ids=["as built", "reported at the mark", "believed too long", "healed at once", "the old epoch again", "others don't wait"],
)
def test_a_cache_that_does_not_answer_is_never_believed(changed: dict[str, Any], faulty: bool) -> None:
    rules = {"wait": 3, "believed": 2, "healed_after": 3, "new_epoch": True, "others_wait": True, **changed}
    start = Mark(0, 0, (True, 0, 9), (0, None, None), (True, 0, 0), ("idle",) * 2, 9, False)
    assert explore(start, mark_steps(**rules), lambda at, stuck: at.stale) is faulty
