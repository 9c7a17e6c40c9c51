"""Draining a lane: one worker at a time, batch by batch, telling the world's trouble from a command that can't be decided."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

import structlog
from redis import Redis
from redis.exceptions import RedisError
from redis.lock import Lock
from sqlalchemy import Engine, text

from domain import metrics, traces
from domain.batches import Decided, decide_batch, reject
from domain.booking import Rejection
from domain.cache import Cache
from domain.commands import Kind
from domain.database import autocommit, is_the_worlds_fault, sqlstate
from domain.projections import decided as answer_of
from domain.settings import Settings

LOCK_SECONDS: Final = 5  # short, so that a dead worker holds up its lane for seconds only
TURN_SECONDS: Final = 2.0  # after which other lanes get their turn
ATTEMPTS: Final = 3  # failures after which a command is rejected
TRIES: Final = 5  # how often a lane may be begun in vain before its first command is suspected of killing its worker
BEGUN_SECONDS: Final = 300  # for so long the beginnings are counted
SLOW_SECONDS: Final = 4.0  # as long as a statement may take: a suspect that was interrupted after so long was too slow itself

log = structlog.get_logger()


def flag_name(lane: int) -> str:
    """The broker's key that says a wake-up for this lane is on its way."""
    return f"wake:{lane}"


@dataclass(slots=True)
class Drainer:
    """Drains lanes in one worker process. `interruptions` are what the caller's limit of time raises: the world's fault too."""

    settings: Settings
    engine: Engine
    cache: Cache
    broker: Redis
    interruptions: tuple[type[BaseException], ...] = ()
    _reads: Engine = field(init=False)

    def __post_init__(self) -> None:
        self._reads = autocommit(self.engine)

    def drain(self, lane: int) -> bool:
        """Decide what waits in a lane, for two seconds at most; whether more waits, so that the caller must wake the lane.

        If another worker holds the lane, it ends at once and leaves the flag: the holder looks once more after it lets go.
        What the world did (a lost database, a limit of time) ends the drain, and the relay tries again.
        """
        until = time.monotonic() + TURN_SECONDS
        lock = Lock(self.broker, f"lane:{lane}", timeout=LOCK_SECONDS, blocking=False, raise_on_release_error=False)
        try:
            while self._taken(lock):
                try:
                    self._decide_all(lane, lock, until)
                finally:
                    self._let_go(lock)
                self._clear_flag(lane)
                if not self._waits(lane):
                    return False
                if time.monotonic() >= until:
                    return True
        except Exception as error:
            if not self._is_the_worlds(error):
                raise
            log.warning("lane_stopped", lane=lane, error=type(error).__name__, sqlstate=sqlstate(error))
        return False

    def _decide_all(self, lane: int, lock: Lock, until: float) -> None:
        """Decide batch by batch, each half as large for each time that the lane was begun in vain.

        So a database that has become too slow for whole batches holds up no lane for good.
        """
        begun = self._begin(lane)
        if begun > TRIES and self._others_moved_on(lane):
            self._decide_singly(lane, lock, until, suspect=True)
            return
        most = max(self.settings.lane_batch >> (begun - 1), 1)
        while True:
            began = time.monotonic()
            try:
                with self.engine.begin() as connection:
                    decided = decide_batch(connection, self.settings, lane, most=most)
            except Exception as error:
                if self._is_the_worlds(error):
                    metrics.BATCHES_FAILED.labels("world").inc()
                    raise
                metrics.BATCHES_FAILED.labels("command").inc()
                log.warning("batch_failed", lane=lane, error=type(error).__name__, sqlstate=sqlstate(error))
                self._decide_singly(lane, lock, until)
                return
            if decided is None:
                return
            self._finish(decided, began)
            if len(decided.commands) < most or time.monotonic() >= until:
                return
            self._keep(lock)
            self._clear_flag(lane)

    def _decide_singly(self, lane: int, lock: Lock, until: float, *, suspect: bool = False) -> None:
        """Decide one command at a time, so that a faulty one fails alone: its third failure rejects it, before any later one."""
        for command_id in self._first(lane):
            self._keep(lock)
            while (attempts := self._attempt(command_id)) is not None:
                if attempts > ATTEMPTS or self._decide_one(lane, command_id, attempts, suspect):
                    break
            if attempts is not None and attempts > ATTEMPTS:
                self._reject(command_id, "its worker did not survive it")
            if time.monotonic() >= until:
                return

    def _decide_one(self, lane: int, command_id: UUID, attempts: int, suspect: bool) -> bool:
        began = time.monotonic()
        try:
            with self.engine.begin() as connection:
                decided = decide_batch(connection, self.settings, lane, only=command_id)
        except Exception as error:
            if self._is_the_worlds(error):
                if not (suspect and time.monotonic() - began >= SLOW_SECONDS):
                    self._take_back(command_id)
                raise
            if attempts < ATTEMPTS:
                return False
            self._reject(command_id, type(error).__name__)
            return True
        if decided is not None:
            self._finish(decided, began)
        return True

    def _reject(self, command_id: UUID, error: str) -> None:
        reference = uuid4().hex[:12]
        log.error("command_rejected", command_id=str(command_id), reference=reference, error=error)
        no = Rejection("internal_error")
        began = time.monotonic()
        with self.engine.begin() as connection:
            decided = reject(connection, command_id, no.code, f"{no.detail} (ref. {reference})")
        if decided is not None:
            self._finish(decided, began)

    def _finish(self, decided: Decided, began: float) -> None:
        seconds = time.monotonic() - began
        self.cache.finish(decided.batch_id, decided.scopes, {row.id: answer_of(row) for row in decided.commands})
        log.info(
            "batch_decided",
            batch_id=str(decided.batch_id),
            count=len(decided.commands),
            command_ids=[str(row.id) for row in decided.commands],
            request_ids=[row.request_id for row in decided.commands],
        )
        metrics.BATCH_SECONDS.observe(seconds)
        metrics.count_decided(decided.commands)
        if decided.commands:
            traces.decided(decided.commands, decided.commands[0].lane, seconds)
        for row in decided.commands:
            if row.kind == Kind.ERASE and row.status == "succeeded":  # the list of the erased must outlive the database
                log.info("person_erased", person_id=str(row.actor_id))

    def _is_the_worlds(self, error: BaseException) -> bool:
        return is_the_worlds_fault(error) or isinstance(error, self.interruptions)

    def _waits(self, lane: int) -> bool:
        with self._reads.connect() as connection:
            return bool(
                connection.execute(
                    text("select exists (select from commands where lane = :lane and status = 'pending')"), {"lane": lane}
                ).scalar_one()
            )

    def _first(self, lane: int) -> list[UUID]:
        with self._reads.connect() as connection:
            return list(
                connection.execute(
                    text("select id from commands where lane = :lane and status = 'pending' order by seq limit :limit"),
                    {"lane": lane, "limit": self.settings.lane_batch},
                ).scalars()
            )

    def _others_moved_on(self, lane: int) -> bool:
        """Whether other lanes have decided anything since the oldest command that waits here came."""
        with self._reads.connect() as connection:
            return bool(
                connection.execute(
                    text(
                        """
                        select exists (select from commands where lane <> :lane and decided_at > (
                            select received_at from commands where lane = :lane and status = 'pending' order by seq limit 1))
                        """
                    ),
                    {"lane": lane},
                ).scalar_one()
            )

    def _attempt(self, command_id: UUID) -> int | None:
        """Count an attempt before it is made, so that one which ends in death is counted; None if there is nothing to decide."""
        return self._count(command_id, "attempts + 1")

    def _take_back(self, command_id: UUID) -> None:
        try:
            self._count(command_id, "greatest(attempts - 1, 0)")
        except Exception as error:
            if not self._is_the_worlds(error):
                raise
            log.warning("attempt_not_taken_back", command_id=str(command_id), error=type(error).__name__)

    def _count(self, command_id: UUID, attempts: str) -> int | None:
        with self.engine.begin() as connection:
            return connection.execute(
                text(f"update commands set attempts = {attempts} where id = :id and status = 'pending' returning attempts"),
                {"id": command_id},
            ).scalar()

    # The lock is for speed only, Postgres is for truth: whatever Redis does or doesn't answer, the lane goes on.

    def _taken(self, lock: Lock) -> bool:
        token = uuid4().hex
        try:
            taken = bool(lock.acquire(token=token))
        except RedisError:
            lock.local.token = token.encode()  # it may be ours all the same, and must not stay so when the lane is let go
            metrics.LANE_LOCKS.labels("unanswered").inc()
            return True
        metrics.LANE_LOCKS.labels("taken" if taken else "held").inc()
        return taken

    def _keep(self, lock: Lock) -> None:
        try:
            lock.reacquire()
        except RedisError:
            pass

    def _let_go(self, lock: Lock) -> None:
        try:
            lock.release()
        except RedisError:
            pass

    def _begin(self, lane: int) -> int:
        """Clear the flag, and count how often the lane was begun since anything was last decided in it."""
        try:
            with self.broker.pipeline(transaction=False) as pipe:
                pipe.delete(flag_name(lane))
                pipe.incr(f"begun:{lane}")
                pipe.expire(f"begun:{lane}", BEGUN_SECONDS)
                return int(pipe.execute()[1])
        except RedisError:
            return 1

    def _clear_flag(self, lane: int) -> None:
        try:
            self.broker.delete(flag_name(lane), f"begun:{lane}")
        except RedisError:
            pass
