"""Judges a run: what clients saw, and what the database holds, against the promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from domain.settings import Settings
from tests.faults.history import History


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept, and the case that shows it."""

    promise: str
    case: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run measured. Times are seconds; each triple is the median, the 99th percentile and the longest."""

    acknowledged: int  # commands that were answered 202
    booked: int  # of them, bookings
    to_decision: tuple[float, float, float]  # from a 202 until its command was decided, by the database's clock
    to_answer: tuple[float, float, float]  # of all calls but those that wait on purpose
    failures: dict[str, int]  # 5xx, by status and code, and calls without an answer, by the exception


def judge(
    history: History, engine: Engine, settings: Settings, mail: Path | None = None, *, patience: float = 30.0
) -> list[Violation]:
    """Wait until the stack has come to rest, `patience` seconds at most, and name every promise that was not kept.

    `mail` is the folder of the mail catcher: every notice that was sent must be there.
    """
    raise NotImplementedError


def figures(history: History, engine: Engine) -> Figures:
    """What the run measured."""
    raise NotImplementedError


def shown(violations: Sequence[Violation]) -> str:
    """The violations as a person reads them, a few of each promise."""
    raise NotImplementedError
