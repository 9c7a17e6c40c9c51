"""Logs of every process: one JSON object a line on stderr, with allow-listed fields and no personal data."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from structlog.typing import Processor

from domain.privacy import redact_event

# An allow-list: what is not here is not written, so that nobody logs a person's data by passing it along.
FIELDS: Final = frozenset(
    [
        "timestamp",
        "level",
        "event",
        "logger",
        "process",
        "request_id",
        "request_ids",
        "command_id",
        "command_ids",
        "reference",
        "batch_id",
        "notice_id",
        "appointment_id",
        "doctor_id",
        "session_id",
        "person_id",
        "method",
        "route",
        "status",
        "milliseconds",
        "lane",
        "lanes",
        "kind",
        "code",
        "role",
        "reason",
        "error",
        "sqlstate",
        "where",
        "attempts",
        "count",
        "seconds",
        "task",
        "queue",
        "epoch",
        "in_use",
        "position",
        "root",
        "until",
        "host",
        "port",
        "version",
    ]
)


def configure(level: str = "INFO") -> None:
    """Write this process's logs, those of libraries too, as JSON lines. May be called again."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    lines = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[_allow_listed, redact_event, structlog.processors.JSONRenderer(ensure_ascii=False)],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def line_writer(logger: logging.Logger, event: str, **constants: str | int) -> Callable[..., None]:
    """What writes an event with these fields, and those that it is called with, in which no sender may have written anything.

    For the line of each request: the way through the processors costs more than a read from Redis.
    """
    constant = json.dumps({"event": event, "logger": logger.name, "level": "info", **constants})[:-1]

    def write(**fields: str | float | None) -> None:
        if logger.isEnabledFor(logging.INFO):
            fields["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            varying = "".join([f', "{name}": {_shown(value)}' for name, value in fields.items()])
            with contextlib.suppress(OSError):
                os.write(2, f"{constant}{varying}}}\n".encode())

    return write


def _shown(value: str | float | None) -> str:
    return f'"{value}"' if isinstance(value, str) else "null" if value is None else str(value)


def _allow_listed(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    exc_info = event.get("_record") and event["_record"].exc_info
    kept = {name: value for name, value in event.items() if name in FIELDS}
    if exc_info and exc_info[0] is not None:  # the type only: a driver's message carries values of the row
        kept["error"] = exc_info[0].__name__
    return kept
