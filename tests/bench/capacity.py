"""What so many people at once need, worked out from what was measured: `python -m tests.bench.capacity` writes docs/capacity.md.

Change a figure here, from a newer run of what stands beside it, and run it again: nothing is typed into the page's tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "capacity.md"
STEPS: Final = (20_000, 200_000, 2_000_000)  # people at once
MIB, GIB = 2**20, 2**30

# Each input: its value, what it is, and where it comes from.
LOAD = "`make load SECONDS=60`"
CPU = "`python -m tests.load --users 12000 --think 18 --seconds 40`, ten seconds of it at 806 requests a second"
REST = "PSS (`/proc/PID/smaps_rollup`) of a local stack at rest"
ROWS = "`make growth`, *What a row takes*"
MEASURED: Final[Mapping[str, tuple[float, str, str]]] = {
    "requests": (0.0403, "requests of one person, a second (something every 30 s, following what it asked for)", CPU),
    "commands": (0.00217, "commands of one person, a second", LOAD),
    "api": (0.88, "ms of CPU for one request: API", CPU),
    "postgres": (0.47, "PostgreSQL, mails and decisions that follow included", CPU),
    "booking": (0.25, "booking workers", CPU),
    "notifications": (0.27, "notification workers", CPU),
    "redis": (0.11, "both Redis servers", CPU),
    "api_process": (97, "MiB of one API process, its parent's share included", REST),
    "connection": (0.02, "MiB of one open connection", "`make load`: our processes with 20,000 connections beside 2,000"),
    "worker": (85, "MiB of one worker process, its parent's share included", REST),
    "person": (770, "bytes of a person, with key and session", ROWS),
    "slot": (420, "bytes of a slot", ROWS),
    "appointment": (718, "bytes of an appointment", ROWS),
    "entry": (191, "bytes of an entry of its history", ROWS),
    "command": (474, "bytes of a command", ROWS),
    "notice": (299, "bytes of a notice", ROWS),
    "archived_command": (435, "bytes of an archived command", ROWS),
    "archived_notice": (256, "bytes of an archived notice", ROWS),
}
ASSUMED: Final[Mapping[str, tuple[float, str]]] = {
    "busy": (0.6, "of a core is used at the busiest: the rest is for a lost zone and the unforeseen"),
    "peak_hours": (5, "hours at the peak make a day's traffic"),
    "registered": (20, "people have an account for each who is there at the busiest"),
    "patients": (400, "of them to a doctor"),
    "appointments": (6, "appointments of an account in a year, each with 2.5 commands and entries, and 4 notices"),
    "slots": (10, "slots of a doctor a day, in the year's average; 60 days of them lie ahead"),
    "cached": (8, "projections are kept for each person at once, of 3 KiB with what Redis adds"),
    "answer": (2, "KiB of an answer, headers included; 304s make it less"),
    "pool": (9, "database connections of an API process at most (`POOL_SIZE` and one for the cache's row)"),
    "per_process": (10_000, "open connections of an API process at most"),
    "many": (500, "database connections that one PostgreSQL should hold without a pooler"),
    "largest": (64, "cores of the largest PostgreSQL that is easily had"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What so many people at once need. Sizes are in GiB, rates a second, `busy` shares of one core."""

    users: int
    requests: float
    commands: float
    api_processes: int
    api_pods: int
    api_memory: float
    booking_processes: int
    booking_pods: int
    notification_processes: int
    notification_pods: int
    pod_cores: float
    pod_memory: float
    postgres_busy: float
    postgres_cores: int
    replicas: int
    connections: int
    hot: float
    year: float
    cache_memory: float
    redis_busy: float
    egress: float
    lanes: int


def need(users: int) -> Need:
    """Work it out."""
    m = {name: value for name, (value, *_) in MEASURED.items()} | {name: value for name, (value, _) in ASSUMED.items()}
    requests, commands = users * m["requests"], users * m["commands"]

    def busy(what: str) -> float:
        """Cores that are busy with it."""
        return requests * m[what] / 1000

    def processes(what: str) -> int:
        return ceil(busy(what) / m["busy"])

    # Two processes a pod; in three zones, one of which may be lost.
    api_pods = max(3, ceil(max(processes("api"), users / m["per_process"]) / 2))
    booking_pods, notification_pods = (max(2, ceil(processes(each) / 2)) for each in ("booking", "notifications"))
    workers = 2 * (booking_pods + notification_pods)
    api_memory = (2 * api_pods * m["api_process"] + users * m["connection"]) / 1024
    people = users * m["registered"]
    appointments, slots_a_day = people * m["appointments"], people / m["patients"] * m["slots"]
    lasting = m["appointment"] + 2.5 * m["entry"]
    hot, kept = (2.5 * m[f"{form}command"] + 4 * m[f"{form}notice"] for form in ("", "archived_"))
    postgres = max(2, _instance(busy("postgres") / m["busy"]))
    return Need(
        users=users,
        requests=requests,
        commands=commands,
        api_processes=2 * api_pods,
        api_pods=api_pods,
        api_memory=api_memory,
        booking_processes=2 * booking_pods,
        booking_pods=booking_pods,
        notification_processes=2 * notification_pods,
        notification_pods=notification_pods,
        pod_cores=2 * api_pods + workers + 2 * 0.1,
        pod_memory=api_memory + workers * m["worker"] / 1024 + 2 * 0.2,
        postgres_busy=busy("postgres"),
        postgres_cores=min(postgres, int(m["largest"])),
        # More than the largest can do is read elsewhere; one replica is there for reads that are not hot in any case.
        replicas=0 if users <= STEPS[0] else max(1, ceil(postgres / m["largest"]) - 1),
        connections=int(2 * api_pods * m["pool"] + 2 * workers + 2 * 2),
        hot=(appointments * 90 / 365 * (lasting + hot) + slots_a_day * 60 * m["slot"] + people * m["person"]) / GIB,
        year=(appointments * (lasting + kept) + 365 * slots_a_day * m["slot"]) / GIB,
        cache_memory=users * m["cached"] * 3 / 2**20,
        redis_busy=busy("redis"),
        egress=requests * m["answer"] * m["peak_hours"] * 3600 * 30 / 2**20,
        lanes=max(64, _instance(8 * booking_pods)),
    )


def _instance(cores: float) -> int:
    """The next power of two, as machines come."""
    return int(2 ** ceil(log2(max(1, cores))))


TABLE: Final[Sequence[tuple[str, Callable[[Need], str]]]] = (
    ("requests a second", lambda n: f"{n.requests:,.0f}"),
    ("commands a second", lambda n: f"{n.commands:,.0f}"),
    ("API: pods of two processes", lambda n: f"{n.api_pods:,}"),
    ("API: memory", lambda n: f"{n.api_memory:,.1f} GiB"),
    ("booking workers: pods of two processes", lambda n: f"{n.booking_pods:,}"),
    ("notification workers: pods of two processes", lambda n: f"{n.notification_pods:,}"),
    ("relays", lambda _: "2"),
    ("`LANES`, to be set before the first doctor registers", lambda n: f"{n.lanes}"),
    ("PostgreSQL: cores that are busy", lambda n: f"{n.postgres_busy:,.1f}"),
    ("PostgreSQL: cores of the primary", lambda n: f"{n.postgres_cores}"),
    ("PostgreSQL: read replicas of that size (beside the standby)", lambda n: f"{n.replicas}"),
    ("PostgreSQL: connections at most", lambda n: f"{n.connections:,}"),
    ("PostgreSQL: people, and the tables that are written (better all in memory)", lambda n: f"{n.hot:,.0f} GiB"),
    ("PostgreSQL: what a year adds", lambda n: f"{n.year:,.0f} GiB"),
    ("cache: memory", lambda n: f"{max(0.5, n.cache_memory):,.1f} GiB"),
    ("both Redis: share of one core", lambda n: f"{n.redis_busy:.0%}"),
    ("answers sent in a month", lambda n: f"{n.egress:,.0f} GiB"),
)
# What a month costs is the sum of these, each times its price.
PRICED: Final[Sequence[tuple[str, str, Callable[[Need], float]]]] = (
    ("core", "core of the pods", lambda n: n.pod_cores),
    ("memory", "GiB of the pods", lambda n: n.pod_memory),
    ("database", "core of PostgreSQL (primary, standby, replicas)", lambda n: n.postgres_cores * (2 + n.replicas)),
    ("storage", "GiB of PostgreSQL, after a year, each copy", lambda n: 1.3 * (n.hot + n.year) * (2 + n.replicas)),
    ("redis", "GiB of Redis (cache, and a broker of 1)", lambda n: max(0.5, n.cache_memory) + 1),
    ("egress", "GiB sent", lambda n: n.egress),
    ("fixed", "cluster, load balancer, logs", lambda _: 1),
)


# What is full first, and what to do then: a share that one person takes of it, by the needs of the largest step.
LIMITS: Final[Sequence[tuple[str, Callable[[Need], float], str]]] = (
    (
        "the database's connections, at 500",
        lambda n: n.connections / ASSUMED["many"][0],
        "a smaller `POOL_SIZE`, since few wait at once; then PgBouncer between, one for each zone (*Connections*, below)",
    ),
    (
        "one core of the cache's Redis, at 60%",
        lambda n: n.redis_busy / ASSUMED["busy"][0],
        "Valkey's `io-threads`; then several, each with a part of the scopes (*The cache*, below)",
    ),
    (
        "PostgreSQL's primary, at 60% of 64 cores",
        lambda n: n.postgres_busy / ASSUMED["busy"][0] / ASSUMED["largest"][0],
        "read replicas (`DATABASE_REPLICA_URL`), from which is filled; then several installations (*Parts*, below)",
    ),
    (
        "512 GiB of memory for what is written",
        lambda n: n.hot / 512,
        "nothing breaks, but reads wait for the disk. A smaller `BOOKING_HORIZON_DAYS`; then several installations",
    ),
    (
        "64 booking workers, one a lane",
        lambda n: n.booking_processes / 64,
        "more `LANES`, which hold for doctors who register from then on; so set them well before",
    ),
)


def limits() -> list[tuple[float, str, str]]:
    """At how many people each limit is reached, in that order."""
    most = need(STEPS[-1])
    return sorted((STEPS[-1] / share(most), what, then) for what, share, then in LIMITS)


def tables() -> dict[str, list[str]]:
    """The parts of the page, by name."""
    needs = [need(users) for users in STEPS]
    head = ["people at once", *(f"{users:,}" for users in STEPS)]
    align = "| --- |" + " ---: |" * len(STEPS)
    return {
        "measured": [
            "| input | value | measured by |",
            "| --- | ---: | --- |",
            *(f"| {what} | {value:g} | {source} |" for value, what, source in MEASURED.values()),
        ],
        "assumed": [
            "| assumption | value |",
            "| --- | ---: |",
            *(f"| {what} | {value:g} |" for value, what in ASSUMED.values()),
        ],
        "needs": [_row(head), align, *(_row([name, *map(shown, needs)]) for name, shown in TABLE)],
        "limits": [
            "| full | at about so many people at once | what then |",
            "| --- | ---: | --- |",
            *(f"| {what} | {float(f'{users:.1g}'):,.0f} | {then} |" for users, what, then in limits()),
        ],
        "cost": [
            _row([head[0], "price", *head[1:]]),
            "| --- | --- |" + " ---: |" * len(STEPS),
            *(_row([what, f"`{name}`", *(f"{amount(each):,.0f}" for each in needs)]) for name, what, amount in PRICED),
        ],
    }


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cost(users: int, prices: Mapping[str, float]) -> float:
    """What a month costs at such prices, each for one of its kind and a month; those that are not given cost nothing."""
    found = need(users)
    return sum(prices.get(name, 0.0) * amount(found) for name, _, amount in PRICED)


def main(arguments: Sequence[str]) -> int:
    """Write the page's tables; with prices, as `core=25 memory=3`, print what a month costs instead."""
    if arguments:
        prices = {name: float(price) for name, _, price in (each.partition("=") for each in arguments)}
        if unknown := sorted(set(prices) - {name for name, *_ in PRICED}):
            sys.exit(f"no such price: {', '.join(unknown)}; there are {', '.join(name for name, *_ in PRICED)}")
        for users in STEPS:
            print(f"{users:>10,} people at once: {cost(users, prices):,.0f} a month")
        return 0
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in tables().items():
        begin, end = f"<!-- {name}, written by tests/bench/capacity.py -->\n", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = "".join([head, begin, "\n", "\n".join(lines), "\n\n", end, tail])
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
