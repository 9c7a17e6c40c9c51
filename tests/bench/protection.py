"""What audit and encryption cost: bookings with a note, stored and decided, with them and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from domain import batches, privacy
from domain.commands import Book
from tests.rows import add_doctor, add_person, add_slot, send, tomorrow

if TYPE_CHECKING:
    from tests.bench.__main__ import Bench

TURNS = 16  # of each kind
NOTES = "Dor no peito desde ontem, que piora ao respirar. Tomo losartana e tenho alergia a dipirona. " * 3


@contextmanager
def unprotected() -> Iterator[None]:
    """Nothing is sealed, hashed or written down while inside."""

    def write_no_history(connection: Any, work: Any) -> Any:
        work.history.clear()
        return write(connection, work)

    write = batches._write
    with (
        patch.object(privacy, "seal", lambda key, plain, **_: plain.encode()),
        patch.object(privacy, "open_sealed", lambda key, sealed, **_: sealed.decode()),
        patch.object(privacy, "unwrap", lambda ring, person_id, wrapped: wrapped),
        patch.object(batches, "link", lambda previous, entry: b""),
        patch.object(batches, "_write", write_no_history),
    ):
        yield


def booked_per_second(bench: Bench) -> tuple[float, float]:
    """Bookings stored (one transaction each) and decided (in batches) each second, with protection and without.

    Each is the best of several turns by turns: what else the machine does only ever slows down.
    """
    best = [0.0, 0.0]
    for turn in range(2 * TURNS):
        bare = turn % 4 in (1, 2)  # each as often first as second
        with unprotected() if bare else nullcontext():
            best[bare] = max(best[bare], _book(bench))
    return best[0], best[1]


def _book(bench: Bench, number: int = 60, lane: int = 11) -> float:
    with bench.engine.begin() as connection:
        doctors = [add_doctor(connection, bench.settings, lane=lane) for _ in range(30)]
        asked = [
            (add_person(connection, bench.settings), add_slot(connection, doctors[n % 30], tomorrow(n // 30)))
            for n in range(number)
        ]
    begun = time.perf_counter()
    for person_id, slot_id in asked:
        with bench.engine.begin() as connection:
            send(connection, bench.settings, person_id, Book(slot_id, notes=NOTES))
    left = number
    while left:
        with bench.engine.begin() as connection:
            decided = batches.decide_batch(connection, bench.settings, lane)
        assert decided is not None
        left -= len(decided.commands)
    return number / (time.perf_counter() - begun)
