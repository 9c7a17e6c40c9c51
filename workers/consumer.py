"""What is ours in the part of a worker that listens to the broker: outliving a lost one, and showing that it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import celery.concurrency.asynpool
import celery.concurrency.prefork
import celery.worker.consumer
import kombu.transport.redis
import structlog
from celery import bootsteps

from domain import settings
from workers.app import app, beat

HEARTBEAT_SECONDS: Final = 1

_log = structlog.get_logger()


class Consumer(celery.worker.consumer.Consumer):
    """Celery's, but it looks for a lost broker every second: its own pauses grow to half a minute, and bookings would wait."""

    def ensure_connected(self, connection: Any) -> Any:
        """Wait for the broker."""
        connection.ensure_connection = partial(connection.ensure_connection, interval_start=1, interval_step=0, interval_max=1)
        return super().ensure_connected(connection)


class Heartbeat(bootsteps.StartStopStep):
    """Touches HEARTBEAT_FILE while the consumer's event loop turns, so that a probe can tell a worker that hangs.

    While the consumer waits for a lost broker its loop stands still by right; then a thread stands in, since a worker that is
    killed for its broker's sake comes back no better.
    """

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.file = settings.current().heartbeat_file
        self.enabled = self.file is not None
        self.loop_stands = True
        self.timer: Any = None
        if self.enabled:
            threading.Thread(target=self._stand_in, name="heartbeat", daemon=True).start()

    def start(self, consumer: Any) -> None:
        """The loop is about to turn: from now on it must show that it does."""
        self.loop_stands = False
        self.timer = consumer.timer.call_repeatedly(HEARTBEAT_SECONDS, self._beat)

    def stop(self, consumer: Any) -> None:
        """The broker is lost, or the worker ends."""
        self.loop_stands = True
        if self.timer is not None:
            self.timer.cancel()

    def _stand_in(self) -> None:
        while True:
            if self.loop_stands:
                self._beat()
            time.sleep(HEARTBEAT_SECONDS)

    def _beat(self) -> None:
        beat(self.file)


class QoS(kombu.transport.redis.QoS):
    """kombu's, but it gives up what it can't tell the broker: the message comes again, which is harmless.

    kombu goes on counting a message whose acknowledgement was not answered, so that a worker of one process would never be given
    anything again; and what it can't give back over a connection that is closed by now ends the worker.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. Raises one of the connection's errors."""
        with self._giving_up(delivery_tag):
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, or away. Raises one of the connection's errors."""
        with self._giving_up(delivery_tag):
            super().reject(delivery_tag, requeue=requeue)

    @contextmanager
    def _giving_up(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._quick_ack(delivery_tag)
            if isinstance(error, AttributeError):  # what kombu makes of a channel that was closed meanwhile
                raise ConnectionResetError("the connection that brought the message is gone") from error
            raise

    def restore_unacked(self, client: Any = None) -> None:
        """Give everything back, as far as that is possible."""
        try:
            super().restore_unacked(client)
        except Exception as error:
            _log.warning("messages_not_given_back", count=len(self._delivered), error=type(error).__name__)
            self._delivered.clear()


class Channel(kombu.transport.redis.Channel):
    """kombu's, with our QoS, and passing over what is no message: no JSON, or nothing in an envelope, would end the worker."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            _log.error("message_unreadable", error=type(error).__name__)
            return True


class Pool(celery.concurrency.asynpool.AsynPool):
    """Celery's, but no process of it that ends takes its worker along.

    One that was ended for a lost connection, and is still in the pool when the next one is made up for, has nothing left to
    watch: kombu tells so by an error that Celery 5.7 does not expect. One that ends before the worker has first reached the
    broker would be taken for a pool that can't start; it is replaced like any other.
    """

    def did_start_ok(self) -> bool:
        """Whether to go on."""
        return True

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        if getattr(proc, "_sentinel_poll", 0) is not None:
            super()._track_child_process(proc, hub)


app.steps["consumer"].add(Heartbeat)
celery.concurrency.prefork.TaskPool.Pool = Pool
kombu.transport.redis.Transport.Channel = Channel
