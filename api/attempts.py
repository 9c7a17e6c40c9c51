"""How often something may be tried: counted on the broker for all processes, and by each for itself while the broker is gone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from limits import RateLimitItem, parse_many
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter, RateLimiter
from redis import Redis

from domain.errors import TooMany
from domain.settings import Settings

WITHOUT_SECONDS: Final = 2.0
_ROUNDED: Final = 0.01  # seconds

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Limit:
    """So many in each of some windows: the wider ones make delays grow with failures, and nobody is locked out for good."""

    name: str
    windows: tuple[RateLimitItem, ...]

    @classmethod
    def of(cls, name: str, windows: str) -> Limit:
        """The limit that a text such as `5 per 30 seconds; 30 per hour` describes."""
        return cls(name, tuple(parse_many(windows)))


FAILURES_OF_ACCOUNT: Final = Limit.of("account", "5 per 30 seconds; 10 per 5 minutes; 30 per hour")
FAILURES_FROM_KNOWN: Final = Limit.of("known", "10 per 30 seconds; 30 per 5 minutes; 120 per hour")
CODES_OF_ACCOUNT: Final = Limit.of("codes", "10 per 5 minutes; 50 per day")  # right ones too: each is good once
FAILURES_FROM_ADDRESS: Final = Limit.of("address", "200 per 5 minutes; 1000 per hour")
REGISTRATIONS: Final = Limit.of("registrations", "1000 per hour")
LINKS_TO_ADDRESSES: Final = Limit.of("links", "10 per day")  # that one account wants to be its own
LINKS_FROM_ADDRESS: Final = Limit.of("forgotten", "200 per hour")
CLASHES: Final = Limit.of("clashes", "60 per hour")  # each answers whether somebody is registered


class Attempts:
    """Counts attempts under a limit and a key that holds no personal data. With RATE_LIMITS off it counts nothing."""

    def __init__(self, settings: Settings, broker: Redis) -> None:
        self._on = settings.rate_limits
        shared = RedisStorage(
            settings.broker_url, connection_pool=broker.connection_pool, key_prefix="limit", wrap_exceptions=True
        )
        self._shared = MovingWindowRateLimiter(shared)
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._own_until = 0.0

    def check(self, limit: Limit, key: str) -> None:
        """Raise TooMany, which says when to try again, if one more would exceed the limit."""
        if not self._on:
            return
        standing = self._each(limit, lambda counts, window: counts.get_window_stats(window, limit.name, key))
        ends = [window.reset_time for window in standing if window.remaining < 1]
        if ends:
            # Whoever waits so long is let through: the broker tells its times a little short.
            raise TooMany(retry_after=max(1, math.ceil(max(ends) - time.time() + _ROUNDED)))

    def count(self, limit: Limit, key: str) -> None:
        """Count one more. Raises TooMany if it exceeds the limit: what it was about is then not to be answered."""
        if self._on and not all(self._each(limit, lambda counts, window: counts.hit(window, limit.name, key))):
            self.check(limit, key)

    def _each(self, limit: Limit, ask: Callable[[RateLimiter, RateLimitItem], Told]) -> list[Told]:
        if time.monotonic() >= self._own_until:
            try:
                return [ask(self._shared, window) for window in limit.windows]
            except StorageError:
                self._own_until = time.monotonic() + WITHOUT_SECONDS
        return [ask(self._own, window) for window in limit.windows]
