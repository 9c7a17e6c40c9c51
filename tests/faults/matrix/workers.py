"""W1 to W7: workers killed, restarted, out of memory, fed with poison, duplicates and disorder, and frozen."""

from __future__ import annotations

import itertools
import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import redis
from sqlalchemy import text

from domain.commands import Book
from domain.database import connect
from domain.schedule import Role
from tests import rows
from tests.faults.ground import Ground, quantile, until
from tests.faults.harm import BOOKING_POINTS, MAIL_POINTS, Deaths
from tests.faults.matrix.rows import row
from workers.app import BOOKING

QUEUE_COPIES = 10


@row("W1", "a worker's process killed at each dangerous point", "rolled back, done again or nothing left to do: one effect each")
def killed_at_points(ground: Ground) -> None:
    stack, kills = ground.stack, 0
    with ground.load(rate=30) as run:
        other = stack.second("booking")  # which goes on while the one that is to die is restarted for each point
        stack.wait_until_ready()
        for name, points in (("notifications", MAIL_POINTS), ("booking", BOOKING_POINTS)):
            for point in points:
                kills += kill_at(ground, name, point, ground.many(17))
            stack.restart(name)
        stack.end(other)
        ground.note("all decided after the last of them", until(lambda: not ground.overdue()), "s", most=10)
    ground.note("kills", kills)
    ground.note_decisions(run, p99=10)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("W2", "all of one of two booking workers killed, and started again", "the relay wakes what it left, the other decides it")
def killed_whole(ground: Ground) -> None:
    stack = ground.stack
    worker, kills = stack.service("booking"), ground.many(50)
    with ground.load(rate=30) as run:
        other = stack.second("booking")
        stack.wait_until_ready()
        for _ in range(kills):
            worker.kill()
            worker.launch()
            time.sleep(ground.chance.uniform(0.2, 1))
            ground.settle()
        stack.wait_until_ready()
        stack.end(other)
    ground.note("kills", kills)
    ground.note_decisions(run, p99=10)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("W3", "rolling restarts under load: the new one first, then SIGTERM to the old one", "no command fails, each ends by itself")
def rolled(ground: Ground) -> None:
    stack = ground.stack
    slowest, unclean, restarts = 0.0, 0, ground.many(20)
    with ground.load(rate=30) as run:
        for name in itertools.islice(itertools.cycle(["booking", "notifications", "relay", "booking"]), restarts):
            new = stack.second(name)
            stack.wait_until_ready()
            begun = time.monotonic()
            unclean += stack.replace(name, new) != 0
            slowest = max(slowest, time.monotonic() - begun)
    ground.note("restarts", restarts)
    ground.note("slowest end", slowest, "s", most=40)
    ground.note("exit codes other than 0", unclean, most=0)
    ground.note_decisions(run, p99=8)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("W4", "a worker's process out of memory", "as if it were killed: nobody's command is to blame")
def out_of_memory(ground: Ground) -> None:
    stack = ground.stack
    refused = "select count(*) from commands where error_code = 'internal_error'"
    before = stack.superuser(refused)[0][0]
    failed = stack.logged("MemoryError")
    with ground.load(rate=60) as run:
        begun = time.monotonic()
        while time.monotonic() - begun < ground.long(30, least=8):
            for child in stack.service("booking").family()[1:]:
                size = child.memory_info().vms
                child.rlimit(resource.RLIMIT_AS, (size + 65536, size + 65536))  # what it has, and next to nothing more
            time.sleep(1.5)
        stack.service("booking").kill()
        stack.service("booking").launch()
    ground.note("MemoryErrors and deaths logged", stack.logged("MemoryError") + stack.logged("WorkerLost") - failed, least=1)
    ground.note("commands that were blamed for it", stack.superuser(refused)[0][0] - before, most=0)
    ground.note_decisions(run, p99=None)


@row("W5", "poison: no JSON, unknown tasks, unknown lanes, a command that nobody can decide", "it alone is rejected")
def poisoned(ground: Ground) -> None:
    stack = ground.stack
    restarts, started = stack.logged("WorkerLost"), _now(ground)
    with ground.load(rate=60) as run:
        time.sleep(ground.long(15, least=5))
        poured, begun = _now(ground), time.monotonic()
        while time.monotonic() - begun < ground.long(15, least=5):
            _poison(ground)
            time.sleep(0.1)
        bad = _undecidable(ground)
        until(lambda: _status(ground, bad) == "rejected", 60)
        time.sleep(2)
    calm, harmed = (_to_decision(ground, started, poured, order) for order in ("<", ">="))
    ground.note("bookings' p99 without poison", calm, "s")
    ground.note("with", harmed, "s", most=max(calm * 1.2, calm + 0.25))
    ground.note("the faulty command's rejection: internal_error", int(_code(ground, bad) == "internal_error"), least=1)
    ground.note("worker restarts", stack.logged("WorkerLost") - restarts, most=5)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("W6", "every message ten times, in any order", "what is decided is not decided again")
def duplicated_and_shuffled(ground: Ground) -> None:
    with ground.load() as run, duplicated(ground) as copies:
        run.await_bookings(ground.many(3_000))
    ground.note("messages, copied", len(copies), least=ground.many(100))
    ground.note_decisions(run, p99=8)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("W7", "a worker frozen for 90 s with its locks, then going on", "others take over, it finds everything decided")
def frozen(ground: Ground) -> None:
    stack = ground.stack
    worker = stack.service("booking")
    with ground.load(rate=40) as run:
        other = stack.second("booking")
        stack.wait_until_ready()
        worker.freeze()
        time.sleep(ground.long(90, least=12))
        worker.thaw()
        time.sleep(3)
        stack.end(other)
    ground.note_decisions(run, p99=None, most=30)
    ground.note("5xx or no answer", run.unanswered(), most=0)


def kill_at(ground: Ground, name: str, point: str, times: int) -> int:
    """Restart a service so that it dies at a point when told to, and tell it so many times; how often it died.

    Each time what came meanwhile is decided before it is told again: a worker that dies more often than a lock lives decides
    nothing.
    """
    deaths = Deaths(ground.folder, point)
    ground.stack.restart(name, **deaths.environ)
    killed = 0
    for _ in range(times):
        deaths.order()
        try:
            until(lambda: deaths.done, 30)
            killed += 1
        except TimeoutError:
            deaths.take_back()
        time.sleep(ground.chance.uniform(0.5, 1))
        ground.settle()
    return killed


@contextmanager
def duplicated(ground: Ground) -> Iterator[list[bytes]]:
    """Whatever comes to the queue of bookings is taken out, shuffled, and put back ten times over; what was copied."""
    copied: list[bytes] = []
    stop = threading.Event()

    def copy() -> None:
        with redis.Redis.from_url(ground.stack.settings.broker_url, socket_timeout=1) as client:
            while not stop.wait(0.02):
                with suppress(redis.RedisError):  # the broker may be harmed at the same time
                    _copy(client)

    def _copy(client: redis.Redis) -> None:
        first = client.blpop([BOOKING], timeout=0.1)  # in its turn with the workers, who leave nothing there to be found
        messages = [] if first is None else [first[1], *(client.lpop(BOOKING, 100) or [])]
        kept = set(copied[-2000:])
        fresh = [each for each in messages if each not in kept]
        again = [each for each in messages if each in kept] + fresh * QUEUE_COPIES
        ground.chance.shuffle(again)
        copied.extend(fresh)
        if again and client.llen(BOOKING) < 2000:
            client.rpush(BOOKING, *again)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield copied
    finally:
        stop.set()
        thread.join()


def _poison(ground: Ground) -> None:
    with ground.stack.redis(ground.stack.broker) as client:
        real = {
            "body": "W1tdLCB7fSwge31d",  # [[], {}, {}]
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": ground.chance.choice(["drain", "explode", "os.system"]), "id": "0", "root_id": "0"},
            "properties": {
                "delivery_tag": "0",
                "delivery_info": {"exchange": "", "routing_key": BOOKING},
                "body_encoding": "base64",
            },
        }
        client.lpush(BOOKING, json.dumps(real))
        client.lpush(BOOKING, ground.chance.choice(["{", "[]", "null", "\x00\xff", json.dumps({"body": 1})]))


def _undecidable(ground: Ground) -> UUID:
    """A booking whose sealed notes nobody can open."""
    engine = connect(ground.stack.settings.database_url, pool_size=1)
    slot = ground.stack.superuser("select id from slots where status = 'open' and starts_at > now() + interval '3 days' limit 1")
    with engine.begin() as connection:
        sender = UUID(ground.spare.pop().id)
        command = rows.send(connection, ground.stack.settings, sender, Book(UUID(str(slot[0][0])), "x"), Role.PATIENT)
        connection.execute(text("update commands set secret = '\\x00ff' where id = :id"), {"id": command.id})
    engine.dispose()
    return UUID(str(command.id))


def _now(ground: Ground) -> str:
    """What the database's clock shows."""
    return str(ground.stack.superuser("select clock_timestamp()::text")[0][0])


def _to_decision(ground: Ground, since: str, poured: str, order: str) -> float:
    """How long 99% of the bookings waited at most that came before the poison was poured, or after; but for the faulty one."""
    query = (
        "select extract(epoch from decided_at - received_at)::float from commands where kind = 'book' and received_at >= %s"
        f" and received_at {order} %s and error_code is distinct from 'internal_error'"
    )
    return quantile([waited for (waited,) in ground.stack.superuser(query, (since, poured))], 0.99)


def _status(ground: Ground, command: UUID) -> str:
    return str(ground.stack.superuser("select status from commands where id = %s", (str(command),))[0][0])


def _code(ground: Ground, command: UUID) -> str:
    return str(ground.stack.superuser("select error_code from commands where id = %s", (str(command),))[0][0])
