"""Broken variants of the engine, each of which the checker must catch, under a load that finds the engine itself without fault.

A process is told by `BROKEN` in its environment what is broken in it (see tests/faults/patched.py). All that is tried, the engine
as it is included, is `slow`: it pauses where a race is won or lost, and its lanes are locked by nobody but Postgres.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from sqlalchemy import Connection, text

from local.crowd import gather
from tests.conftest import EMPTY
from tests.faults.checker import Violation, judge
from tests.faults.clients import Load
from tests.faults.harm import ignore_lane_locks
from tests.faults.history import History
from tests.faults.stack import SERVICES, FaultStack

PATIENCE_SECONDS: Final = 4.0  # until a command must be decided, under no fault
BOOKINGS, SECONDS, ROUNDS = 60, 8.0, 3  # of a load: so many, or so long; and so often, if it shows nothing
# How the constraints that keep appointments apart are made, and dropped.
HELD: Final = """
    select format('alter table appointments add constraint %I %s', conname, pg_get_constraintdef(oid)),
        format('alter table appointments drop constraint %I', conname)
    from pg_constraint where contype = 'x' and conrelid = 'appointments'::regclass
    union all select indexdef, format('drop index %I', indexname)
    from pg_indexes where tablename = 'appointments' and indexname = 'uq_appointments_slot_id_active'
"""

LOST = "an acknowledged command is lost"
NOT_FOUND = "an acknowledged command was not found"
NOT_DECIDED = "an acknowledged command is not decided"
TWO_COMMANDS = "one key made two commands"
OVERTAKEN = "a command was overtaken"
TAKEN_TWICE = "a slot had two active appointments at a time"
ILLEGAL = "an illegal transition"
STALE = "a read shows less than was reported"
BACKWARDS = "a reader saw a projection go backwards"
UNAUDITED = "a read of a patient's data is not in the audit"
UNCHAINED = "a chain does not verify"
UNSENT = "a notice is noted as sent and was not"


def do() -> None:
    """Break what `BROKEN` names in this process."""
    for name in os.environ.get("BROKEN", "").split():
        BREAKS[name]()


def slow() -> None:
    """No fault: where two may meet they have more time to."""
    batches, cache = (import_module(f"domain.{name}") for name in ("batches", "cache"))
    ignore_lane_locks()
    _precede(batches, "_write", lambda *_: time.sleep(0.02))  # read, and not yet written
    _precede(cache.Cache, "finish", lambda *_: time.sleep(0.02))  # committed, and not yet made known
    _precede(cache.Cache, "_store", lambda *_: time.sleep(0.08))  # read, and not yet stored


def no_row_locks() -> None:
    """Commands, doctors and people are read as if they were locked. The constraints go with `unguarded`."""
    batches = import_module("domain.batches")
    batches._LOCK = _rewritten(batches._LOCK, " for no key update", "")


def acknowledged_early() -> None:
    """202 is answered before the commit."""
    inbox = import_module("domain.inbox")
    send = inbox.send

    def send_and_commit_later(connection: Connection, *arguments: Any, **named: Any) -> Any:
        apart = getattr(connection.engine, "_proxied", connection.engine).connect()  # which commits nothing by itself
        try:
            row = send(apart, *arguments, **named)
        except BaseException:
            apart.close()
            raise

        def commit() -> None:
            time.sleep(0.2)
            apart.commit()
            apart.close()

        threading.Thread(target=commit).start()
        return row

    inbox.send = send_and_commit_later


def past_reads() -> None:
    """What the rules need is read as it was before the rows were locked, and no lane is held until the commit (`slow`)."""
    batches = import_module("domain.batches")
    lock, read = batches._lock, batches._read
    local = threading.local()

    def lock_after_looking(connection: Connection, *arguments: Any) -> Any:
        local.past = connection.engine.connect().execution_options(isolation_level="REPEATABLE READ")
        local.past.execute(text("select 1"))
        time.sleep(0.2)  # in which another worker decides, and commits
        if not (ids := lock(connection, *arguments)):
            local.past.close()
        return ids

    def read_the_past(connection: Connection, *arguments: Any) -> Any:
        with local.past:
            work = read(_Past(connection, local.past, batches._READ_COMMANDS), *arguments)
            # With the commands, which may be newer than the past, came their slots.
            as_was = text(f"select id as slot_id, {batches._SLOT} from slots where id = any(cast(:ids as uuid[]))")
            slots = local.past.execute(as_was, {"ids": [str(each) for each in work.schedule.slots]}).all()
        work.schedule.slots.update({row.slot_id: batches._slot(row) for row in slots})
        work.stored_slots.update(work.schedule.slots)
        return work

    batches._lock, batches._read = lock_after_looking, read_the_past


@dataclass
class _Past:
    """A connection that shows the past, but for what was asked."""

    present: Connection
    past: Connection
    asked: Any

    def execute(self, statement: Any, *arguments: Any) -> Any:
        return (self.present if statement is self.asked else self.past).execute(statement, *arguments)


def fills_without_lease() -> None:
    """Whatever was read is stored, however long ago."""
    cache = import_module("domain.cache")
    kept = "if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return 0 end"
    assert kept in cache._STORE
    cache._STORE = cache._STORE.replace(kept, "")


def reported_early() -> None:
    """A command reads as decided before what it changed is invalidated."""
    cache = import_module("domain.cache")
    finish = cache.Cache.finish

    def finish_twice(self: Any, batch_id: Any, scopes: Any, *answers: Any) -> None:
        reported = [scope for scope in scopes if scope.startswith("command:")]
        finish(self, batch_id, reported, *answers)
        time.sleep(0.1)
        finish(self, batch_id, [scope for scope in scopes if scope not in reported])

    cache.Cache.finish = finish_twice


def hung_cache_believed() -> None:
    """A cache that does not answer is not marked out of use, and readers look at no mark."""
    cache = import_module("domain.cache")
    cache._Row.epoch = cache._Row.last_epoch
    cache._MARK = text("select cast(:epoch as int)")


def unaudited() -> None:
    """Nobody writes down what is read."""
    import_module("domain.audit").ensure_read = lambda *_: None


def history_left_out() -> None:
    """An acceptance is not in the history."""
    batches = import_module("domain.batches")
    write = batches._write

    def write_most(connection: Connection, work: Any) -> Any:
        work.history = [row for row in work.history if row["status"] != "accepted"]
        return write(connection, work)

    batches._write = write_most


def keys_forgotten() -> None:
    """Each request is a new command, whatever its key."""
    inbox = import_module("domain.inbox")
    send = inbox.send
    inbox.send = lambda *arguments, **named: send(*arguments, **{**named, "key": None})


def last_come_first_served() -> None:
    """Of those that wait the latest is decided, alone."""
    lanes, batches = import_module("domain.lanes"), import_module("domain.batches")
    batches._LOCK = _rewritten(batches._LOCK, "order by seq limit :limit", "order by seq desc limit 1")
    decide = lanes.decide_batch
    lanes.decide_batch = lambda *arguments, **named: decide(*arguments, **{**named, "most": 1})


def mail_not_sent() -> None:
    """A mail counts as sent when it was written."""
    import_module("workers.mail").Courier.send = lambda *_: None


def _precede(owner: Any, name: str, before: Callable[..., object]) -> None:
    """Have something done before each call of a function."""
    function = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        before(*arguments)
        return function(*arguments, **named)

    setattr(owner, name, call)


def _rewritten(statement: Any, old: str, new: str) -> Any:
    assert old in statement.text, old
    return text(statement.text.replace(old, new))


BREAKS: Final[Mapping[str, Callable[[], None]]] = {
    break_.__name__: break_
    for break_ in (
        slow, no_row_locks, acknowledged_early, past_reads, fills_without_lease, reported_early, hung_cache_believed, unaudited,
        history_left_out, keys_forgotten, last_come_first_served, mail_not_sent,
    )
}  # fmt: skip

Trouble = Callable[[FaultStack], object]


@dataclass(frozen=True, slots=True)
class Variant:
    """What is broken, where, and what of it the checker must find at least: one of `promises`."""

    name: str
    promises: frozenset[str]
    broken: Mapping[str, str] = field(default_factory=dict)  # of each service, the names of what is broken in it
    constrained: bool = True  # whether the database still holds its constraints
    trouble: Trouble | None = None  # after a while, while the load goes on
    without: str | None = None  # a service that does not run
    mail: bool = False  # whether notices are judged


def _lose_wake_ups(stack: FaultStack) -> None:
    """The broker goes, with all that it held, and does not come back before the load has ended."""
    stack.broker.erase()
    time.sleep(1.0)


def _cut_cache_off(stack: FaultStack) -> None:
    """The workers can't reach the cache for a while; the API can."""
    stack.proxies["others", "cache"].swallow()
    time.sleep(4.0)
    stack.proxies["others", "cache"].heal()
    time.sleep(0.5)


def _everywhere(name: str) -> dict[str, str]:
    return dict.fromkeys(("api", "booking", "relay"), name)


# How a stack is described whose processes can be broken and mended: by launching them again.
PATCHED: Final[dict[str, Any]] = {
    "patched": dict.fromkeys(SERVICES, "tests.faults.variants:do"),
    "environ": {name: {"BROKEN": "slow"} for name in SERVICES},
}
SOUND: Final = Variant("the engine as it is", frozenset(), mail=True)
VARIANTS: Final = (
    Variant("no constraint and no row lock", frozenset({TAKEN_TWICE, ILLEGAL}), {"booking": "no_row_locks"}, constrained=False),
    Variant("202 before the commit", frozenset({LOST, NOT_FOUND, OVERTAKEN}), {"api": "acknowledged_early"}),
    Variant("no relay", frozenset({NOT_DECIDED}), trouble=_lose_wake_ups, without="relay"),
    Variant(
        "no lane held until the commit, the past read", frozenset({TAKEN_TWICE}), {"booking": "past_reads"}, constrained=False
    ),
    Variant("filled without a lease", frozenset({STALE, BACKWARDS}), {"api": "fills_without_lease"}),
    Variant("reported before it is invalidated", frozenset({STALE, BACKWARDS}), {"booking": "reported_early"}),
    Variant(
        "a cache that was cut off is believed",
        frozenset({STALE, BACKWARDS}),
        _everywhere("hung_cache_believed"),
        trouble=_cut_cache_off,
    ),
    Variant("no audit of reads", frozenset({UNAUDITED}), {"api": "unaudited"}),
    Variant("history left out", frozenset({UNCHAINED}), {"booking": "history_left_out"}),
    Variant("keys forgotten", frozenset({TWO_COMMANDS}), {"api": "keys_forgotten"}),
    Variant("last come, first served", frozenset({OVERTAKEN}), {"booking": "last_come_first_served"}),
    Variant("mail noted and not sent", frozenset({UNSENT}), {"notifications": "mail_not_sent"}, mail=True),
)


class Trial:
    """A stack on which variants are tried, one after another. Whatever the one before left is gone before the next begins."""

    def __init__(self, stack: FaultStack) -> None:
        self._stack = stack
        self._broken: dict[str, str] = {}
        self._numbers = itertools.count()

    def violations(self, variant: Variant, seed: int, *, clients: int = 8) -> list[Violation]:
        """What the checker finds of a variant under a load: a few rounds of it, if one does not show what is broken."""
        found: list[Violation] = []
        for number in range(ROUNDS if variant.promises else 1):
            self._break(variant)
            with contextlib.nullcontext() if variant.constrained else self._unconstrained(), self._emptied():
                found = self._round(variant, seed + number, clients)
            if variant.promises & {each.promise for each in found}:
                break
        return found

    def _round(self, variant: Variant, seed: int, clients: int) -> list[Violation]:
        stack = self._stack
        crowd = gather(stack.engine, stack.settings, doctors=2, patients=24, slots_a_day=3)
        history = History(stack.folder / f"history-{next(self._numbers)}.jsonl")
        load = Load(stack.base_url, crowd, history, seed, clients, patience=PATIENCE_SECONDS)
        load.start()
        load.wait(bookings=BOOKINGS, seconds=SECONDS)
        if variant.trouble is not None:
            variant.trouble(stack)
        load.stop()
        if not stack.broker.running:
            stack.broker.start()
        mail = stack.mailbox.folder if variant.mail else None
        found = judge(
            history, stack.engine, stack.settings, mail, patience=3 * PATIENCE_SECONDS if variant.mail else PATIENCE_SECONDS
        )
        history.close()
        return found

    def _break(self, variant: Variant) -> None:
        """Launch again, broken or whole, what is to run otherwise than it does."""
        stack = self._stack
        for name in SERVICES:
            broken = f"slow {variant.broken.get(name, '')}".strip()
            if name == variant.without:
                stack.service(name).kill()
            elif self._broken.get(name, "slow") != broken or not stack.service(name).running:
                stack.restart(name, BROKEN=broken)
            self._broken[name] = broken

    @contextlib.contextmanager
    def _emptied(self) -> Iterator[None]:
        """Forget at the end whatever was stored meanwhile."""
        try:
            yield
        finally:
            self._stack.superuser(EMPTY)
            for server in (self._stack.broker, self._stack.cache):
                with self._stack.redis(server) as client:
                    client.flushall()

    @contextlib.contextmanager
    def _unconstrained(self) -> Iterator[None]:
        """A database without the constraints that keep appointments apart."""
        held = self._stack.superuser(HELD)
        for _, drop in held:
            self._stack.superuser(drop)
        try:
            yield
        finally:
            for make, _ in held:
                self._stack.superuser(make)
