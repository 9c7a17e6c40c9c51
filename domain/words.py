"""The words in which the domain itself speaks to people: in their calendars, and in their lists of notices."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from typing import Any, Final
from zoneinfo import ZoneInfo

WORDS: Final[Mapping[str, Mapping[str, Any]]] = tomllib.loads(files("domain").joinpath("words.toml").read_text("utf-8"))


def moment(at: datetime, language: str, timezone: str) -> str:
    """An instant as somebody reads it, by the clock on their wall."""
    written: str = WORDS[language]["moment"]
    return at.astimezone(ZoneInfo(timezone)).strftime(written)
