"""Measures deciding, sending, reading and searching on servers of its own, and prints each ratio beside its target."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from sqlalchemy import Engine, create_engine, text
from uuid_utils.compat import uuid7

from domain import batches, database, directory, logs, migrations
from domain.cache import Cache
from domain.commands import Book
from domain.settings import Settings, load
from local.servers import Broker, Postgres
from local.servers import Cache as CacheServer
from tests.bench.commands import print_commands
from tests.bench.directory import FEW, MANY, searched
from tests.bench.http import print_reads
from tests.bench.protection import booked_per_second
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow

DOCTORS = 256
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """What a measurement needs."""

    settings: Settings
    engine: Engine
    cache: Cache


def decided_per_second(bench: Bench, *, batch: int, number: int, hot: bool) -> float:
    """Bookings decided each second by one worker's transaction, spread over doctors or all after one slot."""
    with bench.engine.begin() as connection:
        doctors = [add_doctor(connection, bench.settings) for _ in range(DOCTORS)]
        one = add_slot(connection, doctors[0], tomorrow(-1))
    for first in range(0, number, 100):  # no transaction may last longer than its role allows
        with bench.engine.begin() as connection:
            for n in range(first, min(first + 100, number)):
                slot_id = one if hot else add_slot(connection, doctors[n % DOCTORS], tomorrow(n // DOCTORS / 2))
                send(connection, bench.settings, add_person(connection, bench.settings), Book(slot_id))
    settings = replace(bench.settings, lane_batch=batch)
    begun = time.perf_counter()
    left = number
    while left:
        with bench.engine.begin() as connection:
            decided = batches.decide_batch(connection, settings, 0)
        assert decided is not None
        left -= len(decided.commands)
    return number / (time.perf_counter() - begun)


def sent_per_second(bench: Bench) -> float:
    """Bookings stored and committed each second over one connection."""
    with bench.engine.begin() as connection:
        slot_id = add_slot(connection, add_doctor(connection, bench.settings, lane=9), tomorrow())
        person_id = add_person(connection, bench.settings)

    def send_one() -> None:
        with bench.engine.begin() as connection:
            send(connection, bench.settings, person_id, Book(slot_id))

    return per_second(send_one)


def inserted_per_second(bench: Bench) -> float:
    """Bare rows of the same kind inserted and committed each second over one connection."""

    def insert_one() -> None:
        with bench.engine.begin() as connection:
            connection.execute(text("insert into batches (id, scopes) values (:id, '{}')"), {"id": uuid7()})

    return per_second(insert_one)


def read_per_second(bench: Bench) -> tuple[float, float]:
    """Agendas of a week read each second: from the cache, and from Postgres."""
    with bench.engine.begin() as connection:
        doctor_id = add_doctor(connection, bench.settings)
        for n in range(200):
            add_slot(connection, doctor_id, tomorrow(n / 2))
    without = Cache(bench.settings, bench.engine)  # never started: it believes no cache
    cached = per_second(lambda: directory.agenda(bench.cache, doctor_id))
    uncached = per_second(lambda: directory.agenda(without, doctor_id, tomorrow().date(), 7))
    without.stop()
    return cached, uncached


def per_second(action: Callable[[], object], seconds: float = 1.0) -> float:
    """How often something is done each second."""
    action()
    done, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        action()
        done += 1
    return done / spent


def main() -> None:
    """Run every measurement in turn, round by round, and print medians."""
    logs.configure("WARNING")
    with benched() as bench:
        rounds = []
        for _ in range(ROUNDS):
            cached, uncached = read_per_second(bench)
            protected, unprotected = booked_per_second(bench)
            rounds.append(
                {
                    "decided, batches of 200, spread": decided_per_second(bench, batch=200, number=2000, hot=False),
                    "decided, batches of 1, spread": decided_per_second(bench, batch=1, number=150, hot=False),
                    "decided, batches of 200, one slot": decided_per_second(bench, batch=200, number=2000, hot=True),
                    "decided, batches of 1, one slot": decided_per_second(bench, batch=1, number=150, hot=True),
                    "sent and committed": sent_per_second(bench),
                    "bare rows committed": inserted_per_second(bench),
                    "agendas read from the cache": cached,
                    "agendas read from Postgres": uncached,
                    "booked, with audit and encryption": protected,
                    "booked, without": unprotected,
                }
            )
        print_reads(bench.settings)
        print(flush=True)
    print(f"{'each second, median of ' + str(ROUNDS) + ' rounds':44}{'':>10}")
    for name in rounds[0]:
        print(f"  {name:42}{median(each[name] for each in rounds):>10,.0f}")
    print(f"\n{'ratio, median of the rounds':44}{'measured':>10}  target")
    for name, of, to, target in RATIOS:
        ratio = median(each[of] / each[to] for each in rounds)
        print(f"  {name:42}{ratio:>10.2f}  {'' if target is None else f'at least {target}'}")
    print(f"\n{f'search, ms (p95), among {FEW} and {MANY} doctors':48}{'few':>8}{'many':>8}{'ratio':>7}  target")
    for name, few, many in searched(bench.settings):
        print(f"  {name:46}{few * 1000:>8.1f}{many * 1000:>8.1f}{many / few:>7.2f}  at most 3", flush=True)
    print()
    print_commands()


RATIOS: list[tuple[str, str, str, float | None]] = [
    ("batches of 200 to batches of 1, spread", "decided, batches of 200, spread", "decided, batches of 1, spread", 8),
    ("the same, on one slot", "decided, batches of 200, one slot", "decided, batches of 1, one slot", 20),
    ("sending a command to a bare row", "sent and committed", "bare rows committed", None),
    ("booking with audit and encryption to without", "booked, with audit and encryption", "booked, without", 0.9),
    ("reading from the cache to Postgres", "agendas read from the cache", "agendas read from Postgres", None),
]


@contextmanager
def benched() -> Iterator[Bench]:
    """Servers of the bench's own, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="healthmed-bench-") as folder:
        servers = (Postgres(Path(folder) / "postgres"), Broker(Path(folder) / "broker"), CacheServer(Path(folder) / "cache"))
        for server in servers:
            server.start()
        postgres, broker, cache_server = servers
        migrations.upgrade(postgres.migration_url.replace("postgresql:", "postgresql+psycopg2:"), app_url=postgres.url)
        key = base64.b64encode(b"k" * 32).decode()
        settings = load(
            {
                "LOCAL_STACK": "on",
                "DATABASE_URL": postgres.url,
                "BROKER_URL": broker.url,
                "CACHE_URL": cache_server.url,
                "JWT_KEYS": f"bench={key}",
                "DATA_KEYS": f"bench={key}",
                "HASH_KEY": key,
            }
        )
        database.bound_waits()
        engine = create_engine(settings.database_url, hide_parameters=True)
        cache = Cache(settings, engine)
        cache.start()
        try:
            yield Bench(settings, engine, cache)
        finally:
            cache.stop()
            engine.dispose()
            for server in reversed(servers):
                server.stop()


if __name__ == "__main__":
    main()
