"""Runs a process of the stack with something of it broken: `python -m tests.faults.patched MODULE:FUNCTION PROGRAM ...`.

FUNCTION is called in each of its processes before the work begins; PROGRAM is what would follow `python -m`. So the engine itself
needs no switch for its tests.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def patches(names: str) -> Callable[[], None]:
    """All that is named, `MODULE:FUNCTION` by comma, as one."""

    def patch() -> None:
        for each in names.split(","):
            module, _, function = each.partition(":")
            getattr(import_module(module), function)()

    return patch


def main() -> None:
    """Become the program, patched."""
    patch = patches(sys.argv[1])
    program, sys.argv = sys.argv[2], sys.argv[2:]
    if program == "gunicorn":  # its workers must be gevent's before anything of ours is touched
        _in_each_worker(patch)
    else:
        patch()
    runpy.run_module(program, run_name="__main__", alter_sys=True)


def _in_each_worker(patch: Callable[[], None]) -> None:
    from gunicorn.workers import base

    load = base.Worker.load_wsgi

    def load_patched(worker: Any) -> None:
        patch()
        load(worker)

    base.Worker.load_wsgi = load_patched


if __name__ == "__main__":
    main()
