"""X1: everything at random, several things at a time; and each kind of harm by itself, for the short version in `make test`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from local.servers import Server
from tests.faults.ground import Ground
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


@harm("broker in parts")
def broker_cut_off(ground: Ground) -> Iterator[None]:
    """Some can't reach it, and can't tell."""
    yield from _cut_off(ground, "broker")


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


@harm("cache in parts")
def cache_cut_off(ground: Ground) -> Iterator[None]:
    """Some can't reach it, and others read from it."""
    yield from _cut_off(ground, "cache")


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


@harm("database in parts")
def database_cut_off(ground: Ground) -> Iterator[None]:
    """Some can't reach it."""
    yield from _cut_off(ground, "database")


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


@row("X1", "everything at random, up to three things at a time", "all is decided once it is over", stack="proxied")
def chaos(ground: Ground) -> None:
    active: dict[str, tuple[float, AbstractContextManager[object]]] = {}
    done = 0
    with ground.load(rate=60) as run:
        end = time.monotonic() + ground.long(600, least=25)
        while active or time.monotonic() < end:
            for name in [name for name, (until, _) in active.items() if time.monotonic() >= min(until, end)]:
                active.pop(name)[1].__exit__(None, None, None)
            harmed = {name.split()[0] for name in active}
            free = [name for name in HARMS if name.split()[0] not in harmed]
            if len(active) < 3 and time.monotonic() < end and ground.chance.random() < 0.3:
                name, seconds = ground.chance.choice(free), ground.chance.uniform(0.2, 8)
                print(f"{name} for {seconds:.1f} s", flush=True)
                harming = HARMS[name](ground)
                harming.__enter__()
                active[name] = time.monotonic() + seconds, harming
                done += 1
            time.sleep(0.2)
        healed = ground.stack.superuser("select clock_timestamp()::text")[0][0]
        time.sleep(1)
    waited = (
        "select coalesce(max(extract(epoch from decided_at - %s::timestamptz)), 0)::float from commands where received_at < %s"
    )
    ground.note("harms", done)
    ground.note("all decided after the last of them", ground.stack.superuser(waited, (healed, healed))[0][0], "s", most=30)
    ground.note_decisions(run, p99=None, most=None)


def _frozen(server: Server) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


def _killed(ground: Ground, name: str) -> Iterator[None]:
    service = ground.stack.service(name)
    service.kill()
    yield
    service.launch()


def _cut_off(ground: Ground, server: str) -> Iterator[None]:
    proxy = ground.stack.proxies[ground.chance.choice(["api", "others"]), server]
    proxy.swallow()
    yield
    proxy.heal()
