"""The application that a server serves, with the settings of its environment, in a process that is forked and patched by now."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from gevent import monkey
from gevent.socket import wait_read, wait_write

from api.app import create_app
from domain.database import Wait, bound_waits
from domain.passwords import limit_hashing
from domain.settings import SettingsError, current


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
    bound_waits(_gently(wait_read), _gently(wait_write))
else:
    bound_waits()
limit_hashing(max(1, (os.cpu_count() or 1) // settings.api_workers))
app = create_app(settings)
