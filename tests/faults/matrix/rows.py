"""The fault matrix as a table: each row a function that does its harm on the ground it is given, and notes what it measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.faults.ground import Ground


@dataclass(frozen=True, slots=True)
class Row:
    """A fault, what is to happen under it beyond the promises, and how it is tried out; `stack` is what that stands on."""

    name: str
    fault: str
    expected: str
    stack: str
    run: Callable[[Ground], None]


ROWS: Final[dict[str, Row]] = {}


def row(name: str, fault: str, expected: str, *, stack: str = "plain") -> Callable[[Callable[[Ground], None]], Row]:
    """Put a function into the matrix."""

    def put(run: Callable[[Ground], None]) -> Row:
        ROWS[name] = Row(name, fault, expected, stack, run)
        return ROWS[name]

    return put
