"""Real HTTP calls that show themselves: each request and its answer, readable, with nothing in it that opens an account."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

TIMEOUT_SECONDS: Final = 30.0  # longer than any `Prefer: wait`
WIDTH: Final = 110
SHOWN_ITEMS: Final = 2
SHOWN_HEADERS: Final = ("Authorization", "Idempotency-Key", "Prefer", "If-None-Match", "Location", "ETag", "WWW-Authenticate")

_TOKEN = re.compile(r"\b(eyJ[\w-]{6})[\w.-]+([\w-]{4})\b")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `shown` is the whole exchange as a person reads it."""

    status: int
    headers: http.client.HTTPMessage
    body: Any  # parsed JSON, or None
    shown: str


def call(
    base_url: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request, over a connection of its own. Raises OSError or HTTPException if no answer comes."""
    base = urlsplit(base_url)
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    payload = None
    if body is not None:
        sent["Content-Type"] = "application/json"
        payload = json.dumps(body, ensure_ascii=False).encode()
    kind = http.client.HTTPSConnection if base.scheme == "https" else http.client.HTTPConnection
    connection = kind(base.hostname or "", base.port, timeout=TIMEOUT_SECONDS)
    began = time.monotonic()
    try:
        connection.request(method, f"{base.path}{path}", payload, sent)
        response = connection.getresponse()
        received = response.read()
    finally:
        connection.close()
    took = (time.monotonic() - began) * 1000
    answered = json.loads(received) if received and "json" in response.headers.get("Content-Type", "") else None
    lines = [f"→ {method} {path}", *_told(sent), *_told_body(body)]
    lines += [f"← {response.status} {response.reason}  ({took:.0f} ms)", *_told(response.headers), *_told_body(answered)]
    return Answer(response.status, response.headers, answered, "\n".join(f"  {line}" for line in lines))


def _told(headers: Mapping[str, str] | http.client.HTTPMessage) -> list[str]:
    return [f"    {name}: {_shortened(headers[name])}" for name in SHOWN_HEADERS if name in headers]


def _told_body(body: Any) -> list[str]:
    if body is None:
        return []
    return [f"    {line}" for line in _laid_out(_fit_to_show(body), 4).splitlines()]


def _fit_to_show(value: Any, name: str = "") -> Any:
    """Passwords hidden, tokens shortened, and of long lists only the beginning."""
    if isinstance(value, dict):
        return {key: _fit_to_show(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        shown = [_fit_to_show(inner) for inner in value[:SHOWN_ITEMS]]
        return shown if len(shown) == len(value) else [*shown, f"… + {len(value) - len(shown)}"]
    if isinstance(value, str):
        return "••••••••" if name == "password" else _shortened(value)
    return value


def _shortened(text: str) -> str:
    return _TOKEN.sub(r"\1…\2", text)


def _laid_out(value: Any, indent: int) -> str:
    """JSON in which whatever fits stands in one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    inner, margin = indent + 2, "  "
    if isinstance(value, list):
        opening, closing = "[]"
        parts = [_laid_out(each, inner) for each in value]
    else:
        opening, closing = "{}"
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(each, inner + len(key) + 4)}" for key, each in value.items()]
    body = ",\n".join(parts).replace("\n", f"\n{margin}")
    return f"{opening}\n{margin}{body}\n{closing}"
