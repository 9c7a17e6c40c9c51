"""The relay: the system's only clock. It starts what time brings and finishes what a crash, or a lost message, left."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import structlog
from sqlalchemy import Connection, text

from domain import chains, database, erasure, inbox, logs, metrics, notices, retention, settings
from domain.cache import Cache, changing
from domain.settings import Settings, SettingsError
from workers.app import BOOKING, NOTIFICATIONS, Sender, beat

TURN_SECONDS: Final = 1.0
END_SECONDS: Final = 1  # in which a last turn ends, or is given up: what it has not committed another relay does
OVERDUE_SECONDS: Final = 3  # a command older than this should have been decided, or its wake-up was lost

_log = structlog.get_logger()


class Relay:
    """Does each of its steps once a second. All are idempotent: two relays do no more than one, and any may be killed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = database.connect(settings.database_url, pool_size=2)
        self._cache = Cache(settings, self._engine)
        self._sender = Sender(settings.broker_url)
        self._steps: tuple[Callable[[], object], ...] = (
            self.wake_overdue_lanes,
            self._cache.finish_left_over,
            self._cache.heal,
            self.expire_requests,
            self.extend_horizons,
            self.wake_notices,
            self.take_root,
            self.resume_erasures,
            self.keep_terms,
        )

    def run(self) -> NoReturn:
        """Take turns until the process is ended: SIGTERM lets the turn that goes on come to its end, if that is soon."""
        ending = pausing = False

        def end(*_: Any) -> None:
            nonlocal ending
            if pausing:
                _end()
            ending = True
            signal.alarm(END_SECONDS)

        signal.signal(signal.SIGALRM, _end)
        signal.signal(signal.SIGTERM, end)
        while True:
            began = time.monotonic()
            beat(self._settings.heartbeat_file)
            self.turn()
            metrics.RELAY_TURNS.inc()
            pausing = True
            if ending:
                _end()
            time.sleep(max(0.0, began + TURN_SECONDS - time.monotonic()))
            pausing = False

    def turn(self) -> None:
        """Do each step; one that fails, for whatever reason, stops no other and is tried again in the next turn."""
        for step in self._steps:
            try:
                step()
            except Exception as error:
                metrics.RELAY_FAILURES.labels(step.__name__).inc()
                _log.warning(
                    "relay_step_failed", task=step.__name__, error=type(error).__name__, sqlstate=database.sqlstate(error)
                )

    def wake_overdue_lanes(self) -> None:
        """Wake the lanes in which a command waits for too long, whatever their flags say.

        Not while as many wake-ups wait as there are lanes: if no worker takes them, more would only be a storm later.
        """
        with self._engine.connect() as connection:
            lanes = connection.execute(_OVERDUE, {"seconds": OVERDUE_SECONDS}).scalars().all()
        if lanes and self._sender.waiting(BOOKING) < self._settings.lanes:
            _log.info("lanes_overdue", lanes=lanes)
            self._drain(lanes)

    def expire_requests(self) -> None:
        """Let the requests lapse whose doctors did not decide in time."""
        self._insert(inbox.insert_due_expiries)

    def extend_horizons(self) -> None:
        """Let each doctor's slots reach a day further, each day."""
        self._insert(inbox.insert_due_horizons)

    def wake_notices(self) -> None:
        """Have the due notices sent, unless somebody is on the way already."""
        with self._engine.connect() as connection:
            due = notices.are_due(connection)
        if due and not self._sender.waiting(NOTIFICATIONS):
            self._sender.send_notices()

    def take_root(self) -> None:
        """Cover what was written to history and audit, and carry the root out of the database's reach, into the logs."""
        with self._engine.begin() as connection:
            root = chains.take_root(connection)
        if root is not None:
            _log.info(chains.ROOT_TAKEN, position=root.position, root=root.root.hex(), until=root.until.isoformat())

    def resume_erasures(self) -> None:
        """Come back to the people whose appointments to come had to be cancelled before they could be erased."""
        self._insert(lambda connection: erasure.resume(connection, self._settings))

    def keep_terms(self) -> None:
        """Archive and erase what has outlived its term, a portion each turn."""
        with changing(self._engine, self._cache) as change:
            retention.keep_terms(change)

    def _insert(self, due: Callable[[Connection], Iterable[int]]) -> None:
        with self._engine.begin() as connection:
            lanes = due(connection)
        self._drain(lanes)

    def _drain(self, lanes: Iterable[int]) -> None:
        for lane in sorted(set(lanes)):
            self._sender.drain(lane)


_OVERDUE = text(
    "select distinct lane from commands where status = 'pending' and lane >= 0"
    " and received_at < clock_timestamp() - make_interval(secs => :seconds)"
)


def main() -> NoReturn:
    """Run a relay with the settings of the environment."""
    signal.signal(signal.SIGTERM, _end)
    try:
        chosen = settings.current()
    except SettingsError as error:
        sys.exit(f"settings: {error}")
    logs.configure(chosen.log_level)
    database.bound_waits()
    if chosen.metrics_port:
        metrics.serve(chosen.metrics_port)
    Relay(chosen).run()


def _end(*_: Any) -> NoReturn:
    os._exit(0)  # an orderly exit would wait for whatever does not answer


if __name__ == "__main__":
    main()
