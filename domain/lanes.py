"""Draining a lane: one worker at a time, batch by batch, telling the world's trouble from a command that can't be decided."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

import structlog
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import RedisError
from sqlalchemy import Engine, text

from domain import metrics, traces
from domain.batches import Decided, decide_batch, reject
from domain.booking import Rejection
from domain.cache import Cache
from domain.commands import Kind
from domain.database import PREPARED, autocommit, is_the_worlds_fault, sqlstate
from domain.projections import decided as answer_of
from domain.settings import Settings

LOCK_SECONDS: Final = 5  # short, so that a dead worker holds up its lane for seconds only
TURN_SECONDS: Final = 2.0  # after which other lanes get their turn
ATTEMPTS: Final = 3  # failures after which a command is rejected
TRIES: Final = 5  # how often a lane may be begun in vain before its first command is suspected of killing its worker
BEGUN_SECONDS: Final = 300  # for so long the beginnings are counted
TOGETHER: Final = 16  # lanes drained by one task at most
GATHER_SECONDS: Final = 0.005  # in which more come, for a batch costs much and a command in it little
FEW: Final = 32  # commands of a batch for which that is worth while
BUSY_SECONDS: Final = 0.1  # after a batch of several, in which it is likely that more come
TROUBLED: Final = -1  # in the place of how often a lane was begun
WAITING: Final = "waiting"  # the broker's set of lanes that a task on its way will drain along with its own
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
    _busy_until: float = field(init=False, default=0.0)
    _reads: Engine = field(init=False)
    _take: Script = field(init=False)
    _renew: Script = field(init=False)
    _release: Script = field(init=False)

    def __post_init__(self) -> None:
        self._reads = autocommit(self.engine)
        self._take, self._renew, self._release = map(self.broker.register_script, (_TAKE, _RENEW, _RELEASE))

    def claim(self, lane: int) -> tuple[list[int], int | None]:
        """What a wake-up of a lane is to drain: the lane, and with it some that wait; and one more to be woken, if more wait.

        While there is much to do, though not so much that batches are large, it lets some more come first.
        """
        if time.monotonic() < self._busy_until:
            time.sleep(GATHER_SECONDS)
        try:
            waiting = [int(each) for each in self.broker.spop(WAITING, TOGETHER + 1)]  # type: ignore[union-attr]
        except RedisError:
            waiting = []
        another = waiting.pop() if len(waiting) > TOGETHER else None
        return list(dict.fromkeys([lane, *waiting])), another

    def drain(self, *lanes: int) -> list[int]:
        """Decide what waits in some lanes, for two seconds at most; those in which more waits, so that the caller must wake them.

        A batch costs much and a command in it little, so what waits in several lanes is first decided in common. What is left,
        and whatever was begun in vain before, is decided lane by lane: no lane's trouble is another's for long.
        If another worker holds a lane, it is left alone with its flag: the holder looks once more after it lets go.
        What the world did (a lost database, a limit of time) ends the drain, and the relay tries again.
        """
        until = time.monotonic() + TURN_SECONDS
        try:
            alone = self._drain_together(lanes, until) if len(lanes) > 1 else lanes
            return [lane for lane in alone if (len(lanes) > 1 and time.monotonic() >= until) or self._drain_one(lane, until)]
        except Exception as error:
            if not self._is_the_worlds(error):
                raise
            log.warning("lane_stopped", lanes=lanes, error=type(error).__name__, sqlstate=sqlstate(error))
        return []

    def _drain_together(self, lanes: Sequence[int], until: float) -> Sequence[int]:
        """Decide in common batches what waits in lanes that have no trouble; those which must be drained one by one."""
        with self._held(lanes) as (hold, begun):
            together = [lane for lane in lanes if begun[lane] > 0]
            if together and not self._decide(together, hold, until, self.settings.lane_batch):
                return lanes
        return [*(lane for lane in lanes if begun[lane] == TROUBLED), *self._waiting(together)]

    def _drain_one(self, lane: int, until: float) -> bool:
        """Decide what waits in a lane; whether more does when time is up."""
        while True:
            with self._held([lane]) as (hold, begun):
                if not begun[lane]:
                    return False
                self._decide_all(lane, hold, until, begun[lane])
            if not self._waiting([lane]):
                return False
            if time.monotonic() >= until:
                return True

    def _decide_all(self, lane: int, hold: str, until: float, begun: int) -> None:
        """Decide batch by batch, each half as large for each time that the lane was begun in vain.

        So a database that has become too slow for whole batches holds up no lane for good.
        """
        if begun > TRIES and self._others_moved_on(lane):
            self._decide_singly(lane, hold, until, suspect=True)
        elif not self._decide([lane], hold, until, max(self.settings.lane_batch >> (begun - 1), 1)):
            self._decide_singly(lane, hold, until)

    def _decide(self, lanes: Sequence[int], hold: str, until: float, most: int) -> bool:
        """Decide batch by batch until none is full or time is up; False if one failed by what a command holds."""
        while True:
            began = time.monotonic()
            try:
                with self.engine.begin() as connection:
                    decided = decide_batch(connection, self.settings, *lanes, most=most)
            except Exception as error:
                if self._is_the_worlds(error):
                    metrics.BATCHES_FAILED.labels("world").inc()
                    raise
                metrics.BATCHES_FAILED.labels("command").inc()
                log.warning("batch_failed", lanes=lanes, error=type(error).__name__, sqlstate=sqlstate(error))
                return False
            if decided is None:
                return True
            self._finish(decided, began)
            if len(decided.commands) < most or time.monotonic() >= until:
                return True
            self._keep(lanes, hold, done=True)

    def _decide_singly(self, lane: int, hold: str, until: float, *, suspect: bool = False) -> None:
        """Decide one command at a time, so that a faulty one fails alone: its third failure rejects it, before any later one."""
        for command_id in self._first(lane):
            self._keep([lane], hold)
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
                if not (suspect and (isinstance(error, MemoryError) or time.monotonic() - began >= SLOW_SECONDS)):
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
        self._busy_until = time.monotonic() + BUSY_SECONDS if 1 < len(decided.commands) < FEW else 0.0
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
        return is_the_worlds_fault(error) or isinstance(error, (MemoryError, *self.interruptions))

    def _waiting(self, lanes: Sequence[int]) -> list[int]:
        """Those of the lanes in which something waits."""
        if not lanes:
            return []
        with self._reads.connect() as connection:
            return list(connection.execute(_WAITING, {"lanes": list(lanes)}).scalars())

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

    @contextmanager
    def _held(self, lanes: Sequence[int]) -> Iterator[tuple[str, dict[int, int]]]:
        """Hold the locks of some lanes; how often each was begun since anything was last decided in it, 0 if another holds it.

        Their flags are cleared when they are taken, and once more when they are let go of. Among several, one that was begun in
        vain is not taken (`TROUBLED`).
        """
        hold, counts = uuid4().hex, [1] * len(lanes)
        try:
            counts = self._take(args=[hold, LOCK_SECONDS, BEGUN_SECONDS, *lanes])
            metrics.LANE_LOCKS.labels("taken").inc(sum(count > 0 for count in counts))
            metrics.LANE_LOCKS.labels("held").inc(counts.count(0))
        except RedisError:
            metrics.LANE_LOCKS.labels("unanswered").inc(len(lanes))
        begun = dict(zip(lanes, counts, strict=True))
        taken = [lane for lane in lanes if begun[lane] > 0]
        try:
            yield hold, begun
        except BaseException:
            self._let_go(taken, hold)
            raise
        self._let_go(taken, hold, done=True)

    def _keep(self, lanes: Sequence[int], hold: str, *, done: bool = False) -> None:
        """Hold the locks for longer; if something was done, clear the flags before the next look."""
        with suppress(RedisError):
            self._renew(args=[hold, LOCK_SECONDS, int(done), *lanes])

    def _let_go(self, lanes: Sequence[int], hold: str, *, done: bool = False) -> None:
        if lanes:
            with suppress(RedisError):
                self._release(args=[hold, int(done), *lanes])


# Each does for some lanes in one round trip what must be done one after the other, and touches no lock of another's.
_TAKE = """
local counts = {}
for n = 4, #ARGV do
    local lane = ARGV[n]
    if redis.call('EXISTS', 'lane:' .. lane) == 1 then
        counts[n - 3] = 0
    elseif #ARGV > 4 and redis.call('EXISTS', 'begun:' .. lane) == 1 then
        counts[n - 3] = -1
    else
        redis.call('SET', 'lane:' .. lane, ARGV[1], 'EX', ARGV[2])
        redis.call('DEL', 'wake:' .. lane)
        counts[n - 3] = redis.call('INCR', 'begun:' .. lane)
        redis.call('EXPIRE', 'begun:' .. lane, ARGV[3])
    end
end
return counts
"""
_RENEW = """
for n = 4, #ARGV do
    if redis.call('GET', 'lane:' .. ARGV[n]) == ARGV[1] then redis.call('EXPIRE', 'lane:' .. ARGV[n], ARGV[2]) end
    if ARGV[3] == '1' then redis.call('DEL', 'wake:' .. ARGV[n], 'begun:' .. ARGV[n]) end
end
"""
_RELEASE = """
for n = 3, #ARGV do
    if redis.call('GET', 'lane:' .. ARGV[n]) == ARGV[1] then redis.call('DEL', 'lane:' .. ARGV[n]) end
    if ARGV[2] == '1' then redis.call('DEL', 'wake:' .. ARGV[n], 'begun:' .. ARGV[n]) end
end
"""

_WAITING = text(
    "select lane from unnest(cast(:lanes as int[])) as lane"
    " where exists (select from commands where commands.lane = lane.lane and status = 'pending')"
).execution_options(**PREPARED)
