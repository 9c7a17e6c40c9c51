"""Fills again whatever is cached, wherever it belongs, to tell whether the cache holds what the database says."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

from sqlalchemy import Connection

from domain import directory, feeds, projections, sessions
from domain.cache import Cache, Filled, Wanted


def rebuild(cache: Cache) -> Iterator[tuple[Wanted, bool]]:
    """Each cached projection, and whether it was as it should be; see `Cache.rebuild`."""
    return cache.rebuild(lambda connection, scope, name: refill(connection, cache, scope, name))


def refill(connection: Connection, cache: Cache, scope: str, name: str) -> Filled | None:
    """What belongs where this is cached."""
    kind, _, owner = scope.partition(":")
    match kind, name:
        case ("calendar-link", _) | ("person", "calendar"):
            return feeds.refill(connection, cache, scope, name)
        case (("doctor" | "agenda" | "directory" | "directory-free" | "directory-dates"), _):
            return directory.refill(connection, cache, scope, name)
        case (("appointment" | "command" | "person"), _):
            return projections.refill(connection, cache, scope, name)
        case "session", _:
            return sessions.alive(connection, UUID(owner))
    return None
