"""The Celery app, and `wake`: all that the API needs to know of the workers."""

from __future__ import annotations

import json
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import structlog
from celery import Celery, signals
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from domain import logs, settings
from domain.lanes import WAITING
from domain.metrics import WAKE_UPS
from workers.configuration import BOOKING, NOTIFICATIONS, configuration

FLAG_SECONDS: Final = 5  # how long one wake-up of a lane stands for all; a lost one heals when it has gone

_log = structlog.get_logger()


def connect(broker_url: str) -> Redis:
    """A client of the broker, with limits of one second and no second try: a lock whose answer was lost would look taken."""
    return Redis.from_url(broker_url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))


class Sender:
    """Publishes tasks with limits of one second and no second try: the relay makes up for what is lost.

    `wake` hands a lane to a thread of its own, one a process, which a lane that waits already costs nothing: many commands make
    one wake-up. It works in plain threads and under gevent alike.
    """

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("healthmed-sender", set_as_current=False)
        self._celery.conf.update(configuration(broker_url))
        self._celery.conf.broker_connection_timeout = 1
        self._celery.conf.broker_transport_options = {"socket_timeout": 1, "socket_connect_timeout": 1, "max_retries": 0}
        self._broker = connect(broker_url)
        self._flag = self._broker.register_script(_FLAG)
        self._writer = Celery("healthmed-writer", set_as_current=False)
        self._writer.conf.update(configuration("memory://"), broker_transport_options={})
        self._written = cache(self._write)
        self._waiting: set[int] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def wake(self, lane: int) -> None:
        """Have a lane drained soon. Returns at once and raises nothing."""
        with self._changed:
            self._waiting.add(lane)
            if self._thread is None:  # only now, so that it is this process's own and not one lost in a fork
                self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
                self._thread.start()
            self._changed.notify()

    def drain(self, lane: int) -> None:
        """Have a lane drained, whatever its flag says. Raises what the broker's client raises."""
        self._publish("drain", BOOKING, lane)

    def send_notices(self) -> None:
        """Have the due notices sent. Raises what the broker's client raises."""
        self._publish("send_notices", NOTIFICATIONS)

    def waiting(self, queue: str) -> int:
        """How many tasks wait in a queue. Raises redis.RedisError."""
        return int(self._broker.llen(queue))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lanes, self._waiting = self._waiting, set()
            try:
                self._wake_unflagged(lanes)
            except Exception as error:
                WAKE_UPS.labels("failed").inc(len(lanes))
                _log.warning("wake-ups not sent", lanes=sorted(lanes), error=type(error).__name__)
                time.sleep(1)

    def _wake_unflagged(self, lanes: set[int]) -> None:
        written = self._written(next(iter(lanes)))
        message = written.text.replace(written.task_id, str(uuid4())).replace(written.delivery_tag, str(uuid4()))
        if fresh := self._flag(args=[FLAG_SECONDS, BOOKING, message, *lanes]):
            WAKE_UPS.labels("sent").inc(fresh)

    def _write(self, lane: int) -> _Written:
        """The task that has a lane drained, as Celery and kombu write it: to a queue in memory, once a lane."""
        task_id = self._writer.send_task("drain", (lane,), queue=BOOKING).id
        with self._writer.connection_for_read() as connection:
            message = connection.default_channel._get(BOOKING)
        return _Written(json.dumps(message), task_id, message["properties"]["delivery_tag"])

    def _publish(self, task: str, queue: str, *arguments: int) -> None:
        self._celery.send_task(task, arguments, queue=queue)


class _Written(NamedTuple):
    """A message as the broker holds it, and what in it must be another each time."""

    text: str
    task_id: str
    delivery_tag: str


# Lanes that have no flag get one and join those that wait; if none waited yet, the task that takes them all is sent. All of it
# in one round trip, where kombu alone needs longer, and so that no flag stands for a task that was not sent.
# Like a flag, this stands for five seconds at most. Returns the count of the new ones.
_FLAG = f"""
local fresh = {{}}
for n = 4, #ARGV do
    if redis.call('SET', 'wake:' .. ARGV[n], 1, 'NX', 'EX', ARGV[1]) then fresh[#fresh + 1] = ARGV[n] end
end
if #fresh == 0 then return 0 end
if redis.call('SADD', '{WAITING}', unpack(fresh)) < redis.call('SCARD', '{WAITING}') then return #fresh end
redis.call('EXPIRE', '{WAITING}', ARGV[1])
redis.call('LPUSH', ARGV[2], ARGV[3])
return #fresh
"""

_sender: Sender | None = None


def send_wake_ups_to(broker_url: str) -> None:
    """Choose the broker of this process's wake-ups; until this is called it is the environment's."""
    global _sender
    _sender = Sender(broker_url)


def wake(lane: int) -> None:
    """Have a lane drained soon: hands it to this process's background sender, returns at once and raises nothing."""
    if _sender is None:
        send_wake_ups_to(settings.current().broker_url)
    _sender.wake(lane)  # type: ignore[union-attr]


def beat(file: Path | None) -> None:
    """Show a probe that this process lives; a file that can't be written is the probe's to notice."""
    if file is not None:
        try:
            file.touch()
        except OSError as error:
            _log.warning("no heartbeat", error=type(error).__name__)


app = Celery("healthmed", include=["workers.tasks"])
# A promise: whoever imports this module without running Celery, as the API does, needs no complete environment.
app.add_defaults(lambda: configuration(settings.current().broker_url))


@signals.setup_logging.connect
def _write_logs_our_way(**_: Any) -> None:
    logs.configure(settings.current().log_level)
