"""Waiting for a decision: one subscription a process, which wakes whoever waits for the commands that it names."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final
from uuid import UUID

from redis import Redis, RedisError

from domain.cache import DECIDED, Answer

SOON_SECONDS: Final = 0.25  # a command that was just stored is decided by then, unless many wait


class Waiters:
    """Those of one process who wait for decisions. A message may be lost, so each looks again every second."""

    def __init__(self, broker: Redis) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._waiting: dict[str, set[threading.Event]] = {}
        self._listener: threading.Thread | None = None
        self._stopping = self._released = False

    def release(self) -> None:
        """Have everybody answered at once, as things stand, from now on."""
        with self._lock:
            self._released = True
            waiting = [event for events in self._waiting.values() for event in events]
        for event in waiting:
            event.set()

    def stop(self) -> None:
        """Listen no more; who still waits goes on looking every second."""
        with self._lock:
            self._stopping = True
            listener = self._listener
        if listener is not None:
            with contextlib.suppress(RedisError):
                self._broker.publish(DECIDED, "")
            listener.join(timeout=1.0)

    def wait(
        self, command_id: UUID, seconds: float, read: Callable[[], Answer], at_hand: Callable[[], bool] = lambda: True
    ) -> Answer:
        """What `read` answers as soon as the command is decided, or after so many seconds as it stands.

        Only a pending command's answer carries `fresh_until`; a decided one stays as it is. One that is not `at_hand` is most
        likely about to be decided, and then stored: to read it from Postgres right now would cost more than all the rest.
        """
        deadline = time.monotonic() + seconds
        with self.expecting(str(command_id)) as woken:  # before the first look, or a decision in between would be missed
            if not at_hand():
                woken.wait(min(seconds, SOON_SECONDS))
                woken.clear()
            while (answer := read()).fresh_until is not None and (left := deadline - time.monotonic()) > 0:
                if self._released:
                    break
                woken.wait(min(left, 1.0))
                woken.clear()
            return answer

    @contextlib.contextmanager
    def expecting(self, name: str) -> Iterator[threading.Event]:
        """What is set once the command of this id is told to be decided, which may be missed, or everybody is released."""
        woken = threading.Event()
        self._register(name, woken)
        try:
            yield woken
        finally:
            self._forget(name, woken)

    def _register(self, name: str, woken: threading.Event) -> None:
        with self._lock:
            self._waiting.setdefault(name, set()).add(woken)
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="waiters", daemon=True)
                self._listener.start()

    def _forget(self, name: str, woken: threading.Event) -> None:
        with self._lock:
            others = self._waiting[name]
            others.discard(woken)
            if not others:
                del self._waiting[name]

    def _listen(self) -> None:
        while not self._stopping:
            try:
                with self._broker.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
                    subscription.subscribe(DECIDED)
                    while not self._stopping:
                        message = subscription.get_message(timeout=5.0)
                        if message is not None:
                            self._wake(message["data"])
            except (RedisError, OSError):
                time.sleep(1.0)  # a broker that is gone is asked again no oftener than its waiters look for themselves

    def _wake(self, data: bytes | str) -> None:
        names = (data.decode() if isinstance(data, bytes) else data).split()
        with self._lock:
            woken = [event for name in names for event in self._waiting.get(name, ())]
        for event in woken:
            event.set()
