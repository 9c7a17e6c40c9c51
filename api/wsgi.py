"""The application that a server serves, and what its process needs beside it: made once that is forked and patched."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from gevent import monkey
from gevent.socket import wait_read, wait_write

from api.app import create_app
from api.hot import HotReads
from api.hot_commands import HotCommands
from api.shedding import Door
from domain.database import Wait, bound_waits
from domain.passwords import limit_hashing
from domain.settings import SettingsError, current

GARBAGE = 10_000  # more objects made than let go of, before the youngest are looked through


def _gently(wait: Callable[..., object]) -> Wait:
    """Wait for a file descriptor as gevent does, while other greenlets go on."""

    def ready(fileno: int, seconds: float) -> bool:
        try:
            wait(fileno, timeout=seconds)
        except TimeoutError:
            return False
        return True

    return ready


try:
    settings = current()
except SettingsError as error:
    sys.exit(f"settings: {error}")

if monkey.is_module_patched("socket"):
    bound_waits(_gently(wait_read), _gently(wait_write), poll=monkey.get_original("select", "poll"))
else:
    bound_waits()
limit_hashing(max(1, (os.cpu_count() or 1) // settings.api_workers))
app = create_app(settings)
hot_commands = HotCommands(app, app.wsgi_app) if settings.hot_reads else None
hot = HotReads(app, hot_commands) if hot_commands is not None else None
if hot is not None:
    app.wsgi_app = hot  # type: ignore[method-assign]
door = Door(settings)

# What is there by now stays, so nothing is gained by looking through it for garbage again and again; nor, with ten thousand
# connections, by looking as often as a small program does.
gc.collect()
gc.freeze()
gc.set_threshold(GARBAGE, 20, 20)


def leave() -> None:
    """This process is about to end: say so to whoever balances load, and answer who waits for a decision as things stand."""
    app.extensions["healthmed"].leave()
