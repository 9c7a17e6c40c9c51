"""A load of real clients over HTTP: patients and doctors who book, decide, cancel and read, and write down all they see."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from tests.faults.history import History


@dataclass(frozen=True, slots=True)
class Somebody:
    """A person of the crowd, and the access token that lets a client act as them."""

    id: UUID
    token: str


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who takes part in a load. All slots are bookable for as long as it lasts."""

    patients: tuple[Somebody, ...]
    doctors: tuple[Somebody, ...]
    slots: dict[UUID, tuple[UUID, ...]]  # of each doctor


class Load:
    """Clients in threads. All that is random comes from `seed`; how the threads meet does not."""

    def __init__(self, base_url: str, crowd: Crowd, history: History, seed: int, clients: int = 16) -> None:
        raise NotImplementedError

    def start(self, *, rate: float | None = None) -> None:
        """Let the clients begin; `rate` is of bookings a second, by all of them together (None: as fast as they can)."""

    def stop(self, patience: float = 30.0) -> None:
        """Let each client end what it has begun, its last command decided, and come back when they all have."""

    def run(self, *, bookings: int | None = None, seconds: float | None = None, rate: float | None = None) -> None:
        """Start, wait until so many bookings were acknowledged or so many seconds have passed, and stop."""
