"""Projections in Redis: filled by readers under a lease, invalidated before anything is reported, not believed when in doubt.

A scope is one hash, `{epoch}:{scope}`, with a field per variant and a field `lease`; to invalidate it is to delete the hash.
A field holds one line (ETag, until when it is fresh, who may read it) and the body, so that bytes can be passed on as they are.
docs/architecture.md, *Projections*, says why this is right; tests/domain/test_protocols.py tries every interleaving.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import structlog
from redis import RedisError
from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from uuid_utils.compat import uuid7

from domain import database
from domain.errors import NotFound, Unavailable
from domain.metrics import CACHE_READS
from domain.redis_server import BUDGET_SECONDS, RedisServer, Silent, new_budget
from domain.replica import Behind, Replica
from domain.settings import Settings

BELIEVED_SECONDS = 2.0  # a reading of the cache row is good for so long, counted from before it was asked for
MARK_SECONDS = 3.0  # after the mark nothing is reported, and the cache is not used again, any earlier
FINISH_SECONDS = 1.0  # an invalidation waits longer than a reader: giving up costs everybody the cache
LIFE_SECONDS = 3600
MOST_FIELDS = 999

ANSWER: Final = "answer"  # the one field of a command's scope
DECIDED: Final = "decided"  # the broker's channel on which decided commands are told to those who wait

LEASE: Final = "lease"  # the field of each scope that is no projection

_FLIGHT_SECONDS = 15.0
_BATCH_LOOKS = 50  # for the end of a batch: longer than the relay takes to finish what a crash left
_BATCH_PAUSE = 0.2

Wanted = tuple[str, str]  # a scope and a field of it
Ready = tuple[str, bytes]  # an ETag (without quotes) and its body
T = TypeVar("T")

_HIT, _MISSED, _WITHOUT = (CACHE_READS.labels(outcome).inc for outcome in ("hit", "miss", "without"))

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Filled:
    """What a fill read from Postgres. Time alone makes it wrong at `fresh_until`; `readers` may read it (None: anyone).

    `first` is what must have been done, with no connection held, before the answer is stored or given to anybody.
    """

    body: bytes
    fresh_until: datetime | None = None
    readers: frozenset[UUID] | None = None
    first: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A ready-made body with its strong ETag (without quotes). `degraded`: given while the database could not be reached."""

    body: bytes
    etag: str
    fresh_until: datetime | None = None
    readers: frozenset[UUID] | None = None
    degraded: bool = False

    @classmethod
    def of(cls, filled: Filled) -> Answer:
        """The answer that a fill makes."""
        return cls(filled.body, etag(filled.body), filled.fresh_until, filled.readers)


def etag(body: bytes) -> str:
    """A strong ETag, without its quotes."""
    return hashlib.blake2b(body, digest_size=12).hexdigest()


class Cache:
    """The projections, as one process reads, fills and invalidates them. Make it after a fork."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self._reads = database.autocommit(engine)
        self._replica = Replica(settings.database_replica_url, engine) if settings.database_replica_url else None
        self._server = RedisServer(settings.cache_url)
        self._broker = RedisServer(settings.broker_url)
        self._row = _Row(settings)
        self._flights = _Flights()

    def start(self) -> None:
        """Read the `cache` row now and then each second; until this is called every read comes from Postgres."""
        self._row.start()

    def stop(self) -> None:
        """Read the row no more and close the connections."""
        self._row.stop()
        self._server.close()
        self._broker.close()
        if self._replica is not None:
            self._replica.close()

    @property
    def without_database(self) -> bool:
        """Whether the last look at the `cache` row found no database."""
        return self._row.unreachable

    def now(self) -> datetime:
        """The database's clock: never behind it, and ahead by the time of a round trip at most. Raises Unavailable."""
        return datetime.fromtimestamp(self._row.latest(), UTC)

    def hour(self) -> datetime:
        """The hour that it is by the database's clock; at its end rather too long than too short. Raises Unavailable."""
        return datetime.fromtimestamp(self._row.earliest() // 3600 * 3600, UTC)

    def new_budget(self) -> None:
        """Begin a request, which may spend 300 ms on Redis from here on."""
        new_budget()

    def answers(self) -> bool:
        """Whether the cache server answers now."""
        try:
            self._server.insist([("PING",)], BUDGET_SECONDS)
        except (RedisError, OSError):
            return False
        return True

    def read(
        self,
        scope: str,
        field: str,
        fill: Callable[[Connection], Filled | None],
        *,
        reader: UUID | None = None,
        primary: bool = False,
    ) -> Answer:
        """One projection, from Redis in one round trip, or filled from Postgres.

        A fill must not depend on who reads: it says in `readers` who may, and that is checked here, on hits too. A reader's calls
        that missed under the same lease share one fill. With `primary` no replica is asked: one may be ahead, too.
        Raises NotFound where there is nothing or nothing for this `reader`, and Unavailable where Postgres can't be reached and
        nothing is cached.
        """
        (answer,) = self.read_many([(scope, field)], lambda connection, _: [fill(connection)], reader=reader, primary=primary)
        if answer is None:
            raise NotFound
        return answer

    def read_many(
        self,
        wanted: Sequence[Wanted],
        fill: Callable[[Connection, Sequence[Wanted]], Sequence[Filled | None]],
        *,
        reader: UUID | None = None,
        primary: bool = False,
        looked: bool = False,
    ) -> list[Answer | None]:
        """Several projections at once, like `read`; what is not cached is filled by one call. None where there is nothing.

        Whoever has `looked` and found none of them spares the first look.
        """
        epoch = self._row.epoch()
        if epoch is None and self.without_database:
            return self._without_database(wanted, reader)
        try:
            answers = self._cached(None if looked else epoch, wanted)
            missing = [place for place, answer in enumerate(answers) if answer is None]
            if len(missing) < len(wanted):
                _HIT(len(wanted) - len(missing))
            if missing:
                (_WITHOUT if epoch is None else _MISSED)(len(missing))
                filled = self._filled(epoch, [wanted[place] for place in missing], fill, reader, primary)
                for place, answer in zip(missing, filled, strict=True):
                    answers[place] = answer
        except (DBAPIError, PoolTimeout) as error:
            # A pool that gives no connection tells little by itself; beside a row that could not be read for as long, enough.
            gone = self._row.epoch() is None if isinstance(error, PoolTimeout) else database.is_unreachable(error)
            if not gone:
                raise
            return self._without_database(wanted, reader)
        return [_for_reader(answer, reader) for answer in answers]

    def at_hand(self, wanted: Sequence[Wanted], reader: UUID | None = None) -> list[Ready] | None:
        """Several projections, like `look`; None unless each is there."""
        found = self.look(wanted, reader)
        return None if found is None or None in found else cast(list[Ready], found)

    def look(self, wanted: Sequence[Wanted], reader: UUID | None = None) -> list[Ready | None] | None:
        """Several projections from Redis in one round trip; None for each that is not there, fresh, and for this reader.

        For whoever has another way to answer: nothing is filled, and nothing at all given while the database can't be reached.
        """
        epoch = self._row.epoch()
        if epoch is None or self.without_database:
            return None
        try:
            values = self._server.ask([("HGET", f"{epoch}:{scope}", name) for scope, name in wanted])
        except Silent:
            return None
        now, own = self._row.latest(), str(reader).encode()
        found: list[Ready | None] = []
        for value in values:
            ready = None
            if value is not None:
                head, _, body = value.partition(b"\n")
                tag, fresh_until, readers = head.split(b" ")
                is_fresh = fresh_until == b"-" or float(fresh_until) > now
                if is_fresh and (readers == b"*" or own in readers.split(b",")):
                    ready = tag.decode(), body
            found.append(ready)
        _HIT(len(found) - found.count(None))
        return found

    def _cached(self, epoch: int | None, wanted: Sequence[Wanted]) -> list[Answer | None]:
        if epoch is None or not wanted:
            return [None] * len(wanted)
        try:
            values = self._server.ask([("HGET", f"{epoch}:{scope}", name) for scope, name in wanted])
        except Silent:
            return [None] * len(wanted)
        return [self._fresh(value) for value in values]

    def _fresh(self, value: bytes | None) -> Answer | None:
        if value is None:
            return None
        answer = _unpacked(value)
        return answer if answer.fresh_until is None or self.now() < answer.fresh_until else None

    def _filled(
        self,
        epoch: int | None,
        wanted: Sequence[Wanted],
        fill: Callable[[Connection, Sequence[Wanted]], Sequence[Filled | None]],
        reader: UUID | None,
        primary: bool,
    ) -> list[Answer | None]:
        """Fill what is missing: take the leases, and only then read Postgres; share a fill with whoever saw the same lease.

        Only with the same reader: what must be done first is not done for one who may not read.
        """
        answers: list[Answer | None] = [None] * len(wanted)
        mine: dict[int, _Flight] = {}
        others: dict[int, _Flight] = {}
        for place, (lease, value) in enumerate(self._take_leases(epoch, wanted)):
            if (cached := self._fresh(value)) is not None:
                answers[place] = cached
                continue
            flight, is_mine = self._flights.join((epoch, *wanted[place], reader), lease)
            (mine if is_mine else others)[place] = flight
        if mine:
            with self._flights.landing(mine.values()):
                missing = [wanted[place] for place in mine]
                filled = self.look_up(lambda connection: fill(connection, missing), primary=primary)
                for flight, each in zip(mine.values(), filled, strict=True):
                    if each is not None and _may_read(each.readers, reader) and each.first is not None:
                        each.first()
                    flight.answer = None if each is None else Answer.of(each)
                self._store(epoch, [(wanted[place], flight) for place, flight in mine.items()], reader)
        for place, flight in (mine | others).items():
            answers[place] = flight.landed()
        return answers

    def look_up(self, read: Callable[[Connection], T], *, primary: bool = False) -> T:
        """What `read` finds in Postgres, as it is now or later: in a replica that is sure to hold that, or else in the primary.

        It must do nothing but read: what a replica breaks off is read once more. With `primary` no replica is asked.
        """
        if self._replica is not None and not primary:
            with contextlib.suppress(Behind):
                return self._replica.look_up(read)
        with self._reads.connect() as connection:
            return read(connection)

    def _take_leases(self, epoch: int | None, wanted: Sequence[Wanted]) -> Sequence[tuple[bytes | None, bytes | None]]:
        """The lease of each scope, made if there was none, and the value if somebody stored it meanwhile."""
        if epoch is not None:
            lease = secrets.token_bytes(9)
            takes = [("EVAL", _TAKE, 1, f"{epoch}:{scope}", name, lease, LIFE_SECONDS) for scope, name in wanted]
            with contextlib.suppress(Silent):
                return [(found[1], found[0]) for found in self._server.ask(takes)]
        return [(None, None)] * len(wanted)

    def _store(self, epoch: int | None, fills: Iterable[tuple[Wanted, _Flight]], reader: UUID | None) -> None:
        """Store what was filled under the leases that were taken, unless they are gone; what can't be stored is not."""
        stores = [
            ("EVAL", _STORE, 1, f"{epoch}:{scope}", flight.lease, name, _packed(flight.answer), LIFE_SECONDS, MOST_FIELDS)
            for (scope, name), flight in fills
            if flight.lease is not None and flight.answer is not None and _may_read(flight.answer.readers, reader)
        ]
        if stores:
            with contextlib.suppress(Silent):
                self._server.ask(stores)

    def _without_database(self, wanted: Sequence[Wanted], reader: UUID | None) -> list[Answer | None]:
        """What the cache last held, however old: better than nothing, and marked as such."""
        epoch = self._row.last_epoch()
        if epoch is None:
            raise Unavailable(retry_after=1)
        try:
            values = self._server.ask([("HGET", f"{epoch}:{scope}", name) for scope, name in wanted])
        except Silent:
            raise Unavailable(retry_after=1) from None
        if None in values:
            raise Unavailable(retry_after=1)
        return [_for_reader(_unpacked(value, degraded=True), reader) for value in values]

    def finish(self, batch_id: UUID, scopes: Iterable[str], answers: Mapping[UUID, Filled] = MappingProxyType({})) -> None:
        """Make a committed batch known: invalidate its scopes, store its commands' answers, and only then let it be reported.

        If the cache does not answer it is marked out of use, and 3 seconds pass, after which nobody believes it any more.
        """
        scopes = tuple(scopes)
        self._make_known(scopes, answers)
        self._tell(scopes)  # who waits finds the answer in the cache; that the batch is finished is for whoever does not
        with self._reads.connect() as connection:
            connection.execute(_FINISHED, {"ids": [batch_id]})

    def finish_if_needed(self, batch_id: UUID | None) -> None:
        """Finish the batch of a decided command, if nobody has: for whoever is about to report one."""
        if batch_id is None:
            return
        with self._reads.connect() as connection:
            row = connection.execute(_UNFINISHED, {"id": batch_id}).one_or_none()
        if row is not None:
            self.finish_once(batch_id, row.scopes)

    def finish_touching(self, *scopes: str) -> None:
        """Finish the batches that touch any of these scopes, if nobody has: for whoever read what they changed, and tells it."""
        with self._reads.connect() as connection:
            rows = connection.execute(_UNFINISHED_OF, {"scopes": list(scopes)}).all()
        for row in rows:
            self.finish_once(row.id, row.scopes)

    def finish_once(self, batch_id: UUID, scopes: Iterable[str]) -> None:
        """Finish a batch that many may be about to report: those of one process share the work."""
        flight, is_mine = self._flights.join(("batch", batch_id), b"")
        if is_mine:
            with self._flights.landing([flight]):
                self.finish(batch_id, scopes)
        flight.landed()

    def finish_left_over(self) -> int:
        """Finish the batches that a crash left unprojected, those older than 5 seconds; returns how many there were."""
        with self.engine.begin() as connection:
            rows = connection.execute(_LEFT_OVER).all()
            scopes = tuple({scope: None for row in rows for scope in row.scopes})
            if rows:
                self._make_known(scopes, {})
                connection.execute(_FINISHED, {"ids": [row.id for row in rows]})
        self._tell(scopes)
        return len(rows)

    def heal(self) -> bool:
        """Put a cache that was marked in use again under the next epoch, if it is time and it answers; returns whether it did."""
        with self._reads.connect() as connection:
            row = connection.execute(_CACHE_ROW).one()
        if row.in_use or row.age < MARK_SECONDS or not self.answers():
            return False
        with self._reads.connect() as connection:
            return connection.execute(_HEAL, {"epoch": row.epoch}).rowcount == 1

    def rebuild(self, fill: Callable[[Connection, str, str], Filled | None]) -> Iterator[tuple[Wanted, bool]]:
        """Fill again all that is cached and in time; each projection, and whether it was cached as it should be.

        Where one was not, its scope is invalidated, so that the next reader fills it. What a batch changes meanwhile is not
        wrong, and its end is waited for. Raises Unavailable if the cache is out of use or silent, or a batch does not end.
        """
        with self._reads.connect() as connection:
            row = connection.execute(_CACHE_ROW).one()
            if not row.in_use:
                raise Unavailable(retry_after=round(MARK_SECONDS))
            prefix = f"{row.epoch}:"
            for scope in [key.removeprefix(prefix) for key in self._keys(prefix)]:
                fields = self._fields(prefix + scope)
                found = {
                    name: self._is_right(connection, prefix, (scope, name), fields, fill(connection, scope, name))
                    for name, value in sorted(fields.items())
                    if name != LEASE and self._fresh(value) is not None
                }
                if not all(found.values()):
                    self._insist(("UNLINK", prefix + scope))
                for name, right in found.items():
                    yield (scope, name), right

    def _is_right(
        self, connection: Connection, prefix: str, wanted: Wanted, fields: Mapping[str, bytes], filled: Filled | None
    ) -> bool:
        scope, name = wanted
        cached = _unpacked(fields[name])
        if filled is not None and (filled.body, filled.readers) == (cached.body, cached.readers):
            return True
        self._await_batches(connection, scope)
        now = self._fields(prefix + scope)
        # Whatever was committed before the fill is invalidated by now, unless that was forgotten.
        stayed = all(now.get(each) == fields.get(each) for each in (name, LEASE))
        return not stayed or self._fresh(fields[name]) is None

    def _await_batches(self, connection: Connection, scope: str) -> None:
        for _ in range(_BATCH_LOOKS):
            if not connection.execute(_TOUCHING, {"scope": scope}).scalar_one():
                return
            time.sleep(_BATCH_PAUSE)
        raise Unavailable(retry_after=1)

    def _keys(self, prefix: str) -> list[str]:
        keys: set[str] = set()
        cursor = b"0"
        while True:
            cursor, found = self._insist(("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", 1000))
            keys.update(key.decode() for key in found)
            if cursor == b"0":
                return sorted(keys)

    def _fields(self, key: str) -> dict[str, bytes]:
        flat = self._insist(("HGETALL", key))
        return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}

    def _insist(self, command: tuple[Any, ...]) -> Any:
        try:
            return self._server.insist([command], FINISH_SECONDS)[0]
        except (RedisError, OSError):
            raise Unavailable(retry_after=1) from None

    def _make_known(self, scopes: Sequence[str], answers: Mapping[UUID, Filled]) -> None:
        with self._reads.connect() as connection:  # after the commit: a mark that came before is seen
            row = connection.execute(_CACHE_ROW).one()
        if row.in_use and scopes:
            try:
                self._server.insist(_invalidation(row.epoch, scopes, answers), FINISH_SECONDS)
            except (RedisError, OSError) as error:
                log.warning("cache_marked_out_of_use", error=type(error).__name__)
                with self._reads.connect() as connection:
                    connection.execute(_MARK, {"epoch": row.epoch})
                    row = connection.execute(_CACHE_ROW).one()
        if not row.in_use and row.age < MARK_SECONDS:  # some process may believe its last reading for so long
            time.sleep(MARK_SECONDS - row.age)

    def _tell(self, scopes: Iterable[str]) -> None:
        """Wake those who wait for a decision. What is lost here they find out by themselves within a second."""
        decided = [scope.removeprefix("command:") for scope in scopes if scope.startswith("command:")]
        if decided:
            with contextlib.suppress(Silent):
                self._broker.ask([("PUBLISH", DECIDED, " ".join(decided))])


@dataclass(slots=True)
class Change:
    """A transaction of the API's own that changes something cached: its connection, and the scopes that it touches."""

    connection: Connection
    scopes: dict[str, None] = field(default_factory=dict)

    def touch(self, *scopes: str) -> None:
        """Have these scopes invalidated once the transaction has committed."""
        self.scopes.update(dict.fromkeys(scopes))


@contextlib.contextmanager
def changing(engine: Engine, cache: Cache) -> Iterator[Change]:
    """One transaction; when it is left, what it changed is committed and shown to everyone."""
    with engine.begin() as connection:
        change = Change(connection)
        yield change
        batch_id = record_batch(connection, change.scopes) if change.scopes else None
    if batch_id is not None:
        cache.finish(batch_id, change.scopes)


def record_batch(connection: Connection, scopes: Iterable[str]) -> UUID:
    """Note which scopes a transaction touches, in the transaction itself, so that a crash can't hide it from the relay."""
    batch_id = uuid7()
    connection.execute(_RECORD, {"id": batch_id, "scopes": list(scopes)})
    return batch_id


def _may_read(readers: frozenset[UUID] | None, reader: UUID | None) -> bool:
    return readers is None or reader in readers


def _for_reader(answer: Answer | None, reader: UUID | None) -> Answer | None:
    return answer if answer is not None and _may_read(answer.readers, reader) else None


def _packed(answer: Answer) -> bytes:
    fresh_until = "-" if answer.fresh_until is None else repr(answer.fresh_until.timestamp())
    readers = "*" if answer.readers is None else ",".join(map(str, answer.readers))
    return f"{answer.etag} {fresh_until} {readers}\n".encode() + answer.body


def _unpacked(value: bytes, *, degraded: bool = False) -> Answer:
    head, _, body = value.partition(b"\n")
    tag, fresh_until, readers = head.decode().split(" ")
    return Answer(
        body,
        tag,
        None if fresh_until == "-" else datetime.fromtimestamp(float(fresh_until), UTC),
        None if readers == "*" else frozenset(map(UUID, filter(None, readers.split(",")))),
        degraded,
    )


def _invalidation(epoch: int, scopes: Sequence[str], answers: Mapping[UUID, Filled]) -> list[tuple[Any, ...]]:
    commands: list[tuple[Any, ...]] = [("UNLINK", *(f"{epoch}:{scope}" for scope in scopes))]
    for command_id, filled in answers.items():
        key = f"{epoch}:command:{command_id}"
        commands += [("HSET", key, ANSWER, _packed(Answer.of(filled))), ("EXPIRE", key, LIFE_SECONDS)]
    return commands


# The lease comes from before the fill's first look at Postgres; a value is stored only while it is still the same.
_TAKE = """
local found = redis.call('HMGET', KEYS[1], ARGV[1], 'lease')
if not found[2] then
    redis.call('HSET', KEYS[1], 'lease', ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    found[2] = ARGV[2]
end
return found
"""
_STORE = """
if redis.call('HGET', KEYS[1], 'lease') ~= ARGV[1] then return 0 end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) and redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""

_CACHE_ROW = text(
    "select epoch, in_use, cast(extract(epoch from clock_timestamp() - changed_at) as float) as age,"
    " cast(extract(epoch from clock_timestamp()) as float) as clock from cache"
).execution_options(**database.PREPARED)
_MARK = text("update cache set in_use = false, changed_at = clock_timestamp() where in_use and epoch = :epoch")
_HEAL = text(
    "update cache set epoch = epoch + 1, in_use = true, changed_at = clock_timestamp() where not in_use and epoch = :epoch"
)
_RECORD = text("insert into batches (id, scopes) values (:id, :scopes)").execution_options(**database.PREPARED)
# Nobody waits for the disk here: what a crash of the server takes back, the relay does again.
_FINISHED = text(
    "update batches set finished_at = clock_timestamp() from set_config('synchronous_commit', 'off', true)"
    " where id = any(cast(:ids as uuid[])) and finished_at is null"
).execution_options(**database.PREPARED)
_UNFINISHED = text("select scopes from batches where id = :id and finished_at is null")
_UNFINISHED_OF = text("select id, scopes from batches where finished_at is null and scopes && cast(:scopes as text[])")
_TOUCHING = text("select exists (select from batches where finished_at is null and :scope = any(scopes))")
_LEFT_OVER = text(
    "select id, scopes from batches where finished_at is null and created_at < clock_timestamp() - interval '5 seconds'"
    " order by created_at limit 100 for update skip locked"
)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the `cache` row said, the database's clock, and when by our own it was asked for and had."""

    epoch: int
    in_use: bool
    clock: float
    asked_at: float
    had_at: float


class _Row:
    """The `cache` row, read each second over a connection of its own: a busy pool must not cost a process the cache."""

    def __init__(self, settings: Settings) -> None:
        self._engine = database.autocommit(database.connect(settings.database_url, pool_size=1))
        self._connection: Connection | None = None
        self._reading: _Reading | None = None
        self._looking = threading.Lock()
        self._stopped = threading.Event()
        self.unreachable = False  # whether the last look found no database

    def start(self) -> None:
        self._look()
        threading.Thread(target=self._watch, name="cache-row", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        with self._looking:
            self._drop()
        self._engine.dispose()

    def epoch(self) -> int | None:
        """The epoch of a cache that is to be believed now; else None."""
        reading = self._reading
        if reading is None or not reading.in_use or time.monotonic() - reading.asked_at >= BELIEVED_SECONDS:
            return None
        return reading.epoch

    def last_epoch(self) -> int | None:
        """The epoch of the cache when the database was last reached, if it was in use then."""
        reading = self._reading
        return reading.epoch if reading is not None and reading.in_use else None

    def latest(self) -> float:
        """What the database's clock shows at most."""
        reading = self._read()
        return reading.clock + time.monotonic() - reading.asked_at

    def earliest(self) -> float:
        """What the database's clock shows at least."""
        reading = self._read()
        return reading.clock + time.monotonic() - reading.had_at

    def _read(self) -> _Reading:
        if self._reading is None:
            self._look()
        if self._reading is None:
            raise Unavailable(retry_after=1)
        return self._reading

    def _watch(self) -> None:
        while not self._stopped.wait(1.0):
            self._look()

    def _look(self) -> None:
        with self._looking:
            if not self._stopped.is_set():
                self._look_twice()

    def _look_twice(self) -> None:
        for _ in range(2):  # a connection that was lost is not yet a database that can't be reached
            asked_at = time.monotonic()
            try:
                row = self._ask()
            except Exception as error:  # the process lives on this thread's word: nothing may end it
                self._drop()
                failed = error
            else:
                self._reading = _Reading(row.epoch, row.in_use, row.clock, asked_at, time.monotonic())
                self.unreachable = False
                return
            if time.monotonic() - asked_at > 1.0:
                break
        self.unreachable = database.is_unreachable(failed)
        log.warning("cache_row_unread", error=type(failed).__name__, unreachable=self.unreachable)

    def _ask(self) -> Row[Any]:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection.execute(_CACHE_ROW).one()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.invalidate()
                connection.close()


class _Flight:
    """One fill under way, and those who wait for it."""

    def __init__(self, key: tuple[Any, ...], lease: bytes | None) -> None:
        self.key = key
        self.lease = lease
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self.over = threading.Event()

    def landed(self) -> Answer | None:
        """What it brought, as soon as it is over. Raises what it raised."""
        if not self.over.wait(_FLIGHT_SECONDS):
            raise Unavailable(retry_after=1)
        if self.error is not None:
            raise self.error
        return self.answer


class _Flights:
    """The fills under way in this process, by what is filled and under which lease. Without a lease nothing is shared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[Any, ...], _Flight] = {}

    def join(self, what: tuple[Any, ...], lease: bytes | None) -> tuple[_Flight, bool]:
        """The flight that brings this, and whether the caller is the one to fly it."""
        key = (*what, lease)
        if lease is None:
            return _Flight(key, None), True
        with self._lock:
            if (flight := self._under_way.get(key)) is not None:
                return flight, False
            flight = self._under_way[key] = _Flight(key, lease)
            return flight, True

    @contextlib.contextmanager
    def landing(self, flights: Collection[_Flight]) -> Iterator[None]:
        """Whatever happens inside, these flights are over at its end, and their error is known to all who wait."""
        try:
            yield
        except BaseException as error:
            for flight in flights:
                flight.error = error if isinstance(error, Exception) else Unavailable(retry_after=1)
            raise
        finally:
            with self._lock:
                for flight in flights:
                    self._under_way.pop(flight.key, None)
            for flight in flights:
                flight.over.set()
