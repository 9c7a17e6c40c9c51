"""Every figure that operators watch, by its name in Prometheus: what processes count, and what the database tells."""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from typing import Any, Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, Row, event, text

from domain import notices

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # where processes put what they count, so that any of them can tell all

_name: str | None = None


def _process() -> str:
    return _name or str(os.getpid())


def name_process(name: str) -> None:
    """Count under a name rather than a process id: for processes that often give way to another in the same place.

    Each id leaves files that are read at every scrape. Two processes that live at once must never have one name.
    """
    global _name
    _name = name


if FOLDER in os.environ:  # before the first figure is made, as the library asks
    values.ValueClass = values.MultiProcessValue(_process)  # type: ignore[no-untyped-call]

_SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)

REQUESTS: Final = Counter("healthmed_requests", "Requests answered.", ("method", "route", "status"))
REQUEST_SECONDS: Final = Histogram(
    "healthmed_request_seconds", "Time that a request took.", ("method", "route"), buckets=_SECONDS
)
ACKNOWLEDGED: Final = Counter("healthmed_commands_acknowledged", "Commands answered 202.", ("kind",))
WAKE_UPS: Final = Counter(
    "healthmed_wake_ups", "Wake-ups of lanes that this process handed to the broker, or could not.", ("outcome",)
)
DECIDED: Final = Counter("healthmed_commands_decided", "Commands decided, by how.", ("kind", "status", "code"))
DECISION_SECONDS: Final = Histogram(
    "healthmed_decision_seconds", "From a command's receipt to its decision, by the database's clock.", buckets=_SECONDS
)
BATCH_COMMANDS: Final = Histogram(
    "healthmed_batch_commands", "Commands decided in one transaction.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
)
BATCH_SECONDS: Final = Histogram("healthmed_batch_seconds", "Time that the transaction of a batch took.", buckets=_SECONDS)
LANE_LOCKS: Final = Counter(
    "healthmed_lane_locks", "Attempts to take a lane's Redis lock: taken, held by another, or no answer.", ("outcome",)
)
LOCK_WAIT_SECONDS: Final = Histogram(
    "healthmed_lock_wait_seconds", "Time that a batch waited for its Postgres row locks.", buckets=_SECONDS
)
BATCHES_FAILED: Final = Counter("healthmed_batches_failed", "Batches that were rolled back, by whose fault it was.", ("fault",))
CACHE_READS: Final = Counter("healthmed_cache_reads", "Projections looked for in the cache, by what came of it.", ("outcome",))
MAILS: Final = Counter("healthmed_mails", "Notices that were due, by what became of them.", ("kind", "outcome"))
POOL_CONNECTIONS: Final = Gauge(
    "healthmed_pool_connections", "Database connections in use by a process of the API.", multiprocess_mode="livesum"
)
POOL_SIZE: Final = Gauge(
    "healthmed_pool_size", "Database connections that a process of the API may use.", multiprocess_mode="livesum"
)
RELAY_TURNS: Final = Counter("healthmed_relay_turns", "Turns that the relay took.")
RELAY_FAILURES: Final = Counter("healthmed_relay_failures", "Steps of the relay that failed.", ("step",))
SHED: Final = Counter("healthmed_requests_shed", "Requests turned away with 503 because too many were being answered.")


def count_decided(commands: Sequence[Row[Any]]) -> None:
    """Count the commands of one committed batch."""
    BATCH_COMMANDS.observe(len(commands))
    for (kind, status, code), number in Tally((row.kind, row.status, row.error_code or "") for row in commands).items():
        DECIDED.labels(kind, status, code).inc(number)
    for row in commands:
        DECISION_SECONDS.observe((row.decided_at - row.received_at).total_seconds())


def watch_pool(engine: Engine) -> None:
    """Count the connections of an engine that are in use, beside those that may be."""
    POOL_SIZE.inc(engine.pool.size())  # type: ignore[attr-defined]
    event.listen(engine, "checkout", lambda *_: POOL_CONNECTIONS.inc())
    event.listen(engine, "checkin", lambda *_: POOL_CONNECTIONS.dec())


def counted() -> bytes:
    """What processes of this folder (or only this one) have counted, as Prometheus reads it."""
    return generate_latest(_registry())


def serve(port: int) -> None:
    """Answer Prometheus on a port of its own, in a thread, with what the processes of this folder have counted."""
    start_http_server(port, registry=_registry())


def stored(connection: Connection) -> bytes:
    """What the database tells of work that waits, as Prometheus reads it."""
    asked = CollectorRegistry()
    asked.register(_Stored(connection))
    return generate_latest(asked)


def _registry() -> CollectorRegistry:
    if FOLDER not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


class _Stored(Collector):
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing in advance: it would cost a query."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Tell how far deciding, projecting and mailing are behind. Every query reads an index of what is not done yet."""
        backlog = GaugeMetricFamily("healthmed_lane_backlog_commands", "Commands that wait in a lane.", labels=["lane"])
        age = GaugeMetricFamily("healthmed_lane_age_seconds", "Age of the oldest command that waits in a lane.", labels=["lane"])
        waiting, oldest = 0, 0.0
        for lane, number, seconds in self._connection.execute(_BACKLOG):
            backlog.add_metric([str(lane)], number)
            age.add_metric([str(lane)], seconds)
            waiting, oldest = waiting + number, max(oldest, seconds)
        yield backlog
        yield age
        yield GaugeMetricFamily("healthmed_backlog_commands", "Commands that wait in any lane.", waiting)
        yield GaugeMetricFamily("healthmed_backlog_age_seconds", "Age of the oldest command that waits; 0 if none does.", oldest)

        unfinished, in_use, epoch = self._connection.execute(_PROJECTED).one()
        told = "Age of the oldest batch whose projections are not known to be gone; 0 if there is none."
        yield GaugeMetricFamily("healthmed_oldest_unprojected_batch_seconds", told, unfinished)
        yield GaugeMetricFamily("healthmed_cache_in_use", "Whether the cache may be believed (1) or is out of use (0).", in_use)
        yield GaugeMetricFamily("healthmed_cache_epoch", "How often the cache was put in use, and once more.", epoch)

        due = notices.oldest_due(self._connection)
        told = "For how long the oldest notice that is neither sent nor given up has been due; 0 if none is."
        yield GaugeMetricFamily("healthmed_oldest_due_notice_seconds", told, 0.0 if due is None else due.total_seconds())


# Without the lane of what waits for something else, such as a person's appointments to end before an erasure.
_BACKLOG: Final = text(
    """
    select lane, count(*), greatest(extract(epoch from clock_timestamp() - min(received_at)), 0)::float
    from commands where status = 'pending' and lane >= 0 group by lane
    """
)
_PROJECTED: Final = text(
    """
    select coalesce(extract(epoch from clock_timestamp() - oldest), 0)::float, in_use::int, epoch
    from cache, (select min(created_at) as oldest from batches where finished_at is null)
    """
)
