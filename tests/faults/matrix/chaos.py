"""X1: everything at random, several things at a time; and each kind of harm by itself, for the short version in `make test`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Final

from local.servers import Server
from tests.faults.checker import is_at_rest
from tests.faults.ground import Ground, until
from tests.faults.matrix.rows import row
from tests.faults.matrix.workers import duplicated

Harm = Callable[[Ground], AbstractContextManager[object]]

HARMS: Final[dict[str, Harm]] = {}  # the first word of each is what it harms


def harm(name: str) -> Callable[[Callable[[Ground], Iterator[None]]], Harm]:
    """Put a function into the harms: what it did before its `yield` is mended after it."""

    def put(do: Callable[[Ground], Iterator[None]]) -> Harm:
        HARMS[name] = contextmanager(do)
        return HARMS[name]

    return put


@harm("broker killed")
def broker_killed(ground: Ground) -> Iterator[None]:
    """It comes back with what its file holds."""
    ground.stack.broker.kill()
    yield
    ground.stack.broker.start()


@harm("broker emptied")
def broker_emptied(ground: Ground) -> Iterator[None]:
    """It comes back with nothing."""
    ground.stack.broker.erase()
    yield
    ground.stack.broker.start()


@harm("broker frozen")
def broker_frozen(ground: Ground) -> Iterator[None]:
    """It answers nobody, and closes nothing."""
    yield from _frozen(ground.stack.broker)


@harm("cache killed")
def cache_killed(ground: Ground) -> Iterator[None]:
    """It comes back empty, as it always does."""
    ground.stack.cache.kill()
    yield
    ground.stack.cache.start()


@harm("cache frozen")
def cache_frozen(ground: Ground) -> Iterator[None]:
    """It comes back with all that it held."""
    yield from _frozen(ground.stack.cache)


@harm("cache losing replies")
def cache_losing_replies(ground: Ground) -> Iterator[None]:
    """What was asked for is done, and nobody is told."""
    proxies = [ground.stack.proxies[end, "cache"] for end in ("api", "others")]
    for proxy in proxies:
        proxy.lose_every(20)
    yield
    for proxy in proxies:
        proxy.heal()


@harm("database killed")
def database_killed(ground: Ground) -> Iterator[None]:
    """All of it at once, as a power cut would."""
    ground.stack.postgres.kill()
    yield
    ground.stack.postgres.start()


@harm("database frozen")
def database_frozen(ground: Ground) -> Iterator[None]:
    """Transactions stay open, with their locks."""
    yield from _frozen(ground.stack.postgres)


@harm("api killed")
def api_killed(ground: Ground) -> Iterator[None]:
    """With all that it was about to answer."""
    yield from _killed(ground, "api")


@harm("booking killed")
def booking_killed(ground: Ground) -> Iterator[None]:
    """With all that it was deciding."""
    yield from _killed(ground, "booking")


@harm("booking bereft")
def booking_bereft(ground: Ground) -> Iterator[None]:
    """One of its processes dies."""
    if (child := ground.stack.child("booking", ground.chance)) is not None:
        child.kill()
    yield


@harm("booking frozen")
def booking_frozen(ground: Ground) -> Iterator[None]:
    """It goes on with locks that it has lost."""
    worker = ground.stack.service("booking")
    worker.freeze()
    yield
    worker.thaw()


@harm("relay killed")
def relay_killed(ground: Ground) -> Iterator[None]:
    """Nobody finishes what is left."""
    yield from _killed(ground, "relay")


@harm("relay doubled")
def relay_doubled(ground: Ground) -> Iterator[None]:
    """Two do what one should."""
    second = ground.stack.second("relay")
    yield
    ground.stack.end(second)


@harm("messages doubled")
def messages_doubled(ground: Ground) -> Iterator[None]:
    """Each comes ten times over, in any order."""
    with duplicated(ground):
        yield


@harm("notifications killed")
def notifications_killed(ground: Ground) -> Iterator[None]:
    """A mail may have been sent and not be noted."""
    yield from _killed(ground, "notifications")


@harm("mail refused")
def mail_refused(ground: Ground) -> Iterator[None]:
    """The mail server asks to come back later."""
    ground.stack.mailbox.answer = "451 later"
    yield
    ground.stack.mailbox.answer = None


@harm("mail gone")
def mail_gone(ground: Ground) -> Iterator[None]:
    """The mail server can't be reached."""
    ground.stack.proxies["mail"].refuse()
    yield
    ground.stack.proxies["mail"].heal()


def _cut_off(end: str, server: str, ground: Ground) -> Iterator[None]:
    """Some can't reach it, and can't tell; others can."""
    proxy = ground.stack.proxies[end, server]
    proxy.swallow()
    yield
    proxy.heal()


for _server in ("broker", "cache", "database"):
    HARMS[f"{_server} lost to the API"] = partial(contextmanager(_cut_off), "api", _server)
    HARMS[f"{_server} lost to the others"] = partial(contextmanager(_cut_off), "others", _server)


@row("X1", "everything at random, up to three things at a time", "all is decided once it is over", stack="proxied")
def chaos(ground: Ground) -> None:
    plan = planned(ground.seed, ground.long(600, least=25))
    active: dict[str, AbstractContextManager[object]] = {}
    with ground.load(rate=30) as run:
        begun = time.monotonic()
        for at, name, begins in plan:
            time.sleep(max(0.0, begun + at - time.monotonic()))
            if begins:
                print(f"{at:6.1f} s: {name}", flush=True)
                active[name] = HARMS[name](ground)
                active[name].__enter__()
            else:
                active.pop(name).__exit__(None, None, None)
        healed = ground.stack.superuser("select clock_timestamp()::text")[0][0]
        time.sleep(1)
    until(lambda: is_at_rest(ground.stack.engine, told=True), 300)  # a mail that met several faults is tried again after minutes
    waited = (
        "select coalesce(max(extract(epoch from decided_at - %s::timestamptz)), 0)::float from commands where received_at < %s"
    )
    ground.note("harms", len(plan) // 2)
    ground.note("all decided after the last of them", ground.stack.superuser(waited, (healed, healed))[0][0], "s", most=30)
    ground.note_decisions(run, p99=None, most=None)


def planned(seed: int, seconds: float) -> list[tuple[float, str, bool]]:
    """When each harm begins and ends: up to three at a time, and never two of one thing. The same seed makes the same plan."""
    chance = random.Random(seed)
    steps: list[tuple[float, str, bool]] = []
    busy: dict[str, float] = {}  # until when each thing is harmed
    at = 0.0
    while (at := at + chance.uniform(0.2, 3)) < seconds:
        name, end = chance.choice(sorted(HARMS)), min(at + chance.uniform(0.2, 8), seconds)
        thing = name.split()[0]
        if busy.get(thing, 0) < at and sum(over > at for over in busy.values()) < 3:
            busy[thing] = end
            steps += [(at, name, True), (end, name, False)]
    return sorted(steps)


def _frozen(server: Server) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


def _killed(ground: Ground, name: str) -> Iterator[None]:
    service = ground.stack.service(name)
    service.kill()
    yield
    service.launch()
