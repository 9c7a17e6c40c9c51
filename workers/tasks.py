"""The tasks: thin, and nothing is lost or done twice if one is lost or done twice, since what they do stands in Postgres."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import Any

from billiard import current_process
from celery import signals
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Engine

from domain import database, metrics, settings, traces
from domain.cache import Cache
from domain.lanes import Drainer
from domain.settings import Settings
from workers import mail
from workers.app import Sender, app, connect


@dataclass(frozen=True, slots=True)
class _Process:
    """What one worker process works with, all of it made after the fork."""

    settings: Settings
    engine: Engine
    drainer: Drainer
    sender: Sender


_process: _Process


@signals.celeryd_init.connect
def serve_figures(**_: Any) -> None:
    """Answer Prometheus for all processes of this worker, if a port is set."""
    port = settings.current().metrics_port
    if port:
        metrics.serve(port)


@signals.worker_before_create_process.connect
def share_memory(**_: Any) -> None:
    """Have what a worker's processes share stay shared: to look for garbage there would write to its every page."""
    gc.freeze()


@signals.worker_process_init.connect
def begin(**_: Any) -> None:
    """Give a new worker process connections of its own."""
    global _process
    database.bound_waits()
    metrics.name_process(f"{os.getppid()}-{current_process().index}")
    chosen = settings.current()
    traces.start(chosen, "worker")
    engine = database.connect(chosen.database_url, pool_size=2)
    drainer = Drainer(chosen, engine, Cache(chosen, engine), connect(chosen.broker_url), interruptions=(SoftTimeLimitExceeded,))
    _process = _Process(chosen, engine, drainer, Sender(chosen.broker_url))


@app.task(name="drain")
def drain(lane: int) -> None:
    """Decide what waits in a lane, and in others that wait for a worker; those whose turn was too short are drained again."""
    lanes, another = _process.drainer.claim(lane)
    if another is not None:
        _process.sender.drain(another)
    for each in _process.drainer.drain(*lanes):
        _process.sender.drain(each)


# A mail server may be slow; the limits still end before the broker hands the task to somebody else.
@app.task(name="send_notices", soft_time_limit=40, time_limit=50)
def send_notices() -> None:
    """Send the notices that are due."""
    mail.send_due(_process.engine, _process.settings)
