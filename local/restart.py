"""`make restart`: new processes take the place of those of a running stack, one after another, and no request fails."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from local.up import RESTARTS

LOOK_SECONDS = 0.1
RESTART_SECONDS = 400.0


def main() -> int:
    """Ask the stack of STATE_DIR to restart, and wait until it has; the exit code is 1 if it did not, or none runs there."""
    state = Path(os.environ.get("STATE_DIR") or ".state")
    stack = running_stack(state)
    if stack is None:
        return _fail(f"No stack runs in {state}: bring it up with `make up`, or set STATE_DIR to that of another one.")
    told = state / RESTARTS
    told.unlink(missing_ok=True)
    os.kill(stack, signal.SIGUSR2)
    deadline = time.monotonic() + RESTART_SECONDS
    while not told.exists():
        if running_stack(state) != stack:
            return _fail("The stack ended meanwhile.")
        if time.monotonic() > deadline:
            return _fail(f"The stack did not restart within {RESTART_SECONDS:.0f} seconds; see {state / 'log'}.")
        time.sleep(LOOK_SECONDS)
    problem = json.loads(told.read_text())["problem"]
    if problem is not None:
        return _fail(f"Not restarted, and nothing has changed for the processes that were not replaced yet: {problem}")
    sys.stdout.write("Restarted: API, workers and relay are new, and no request was refused for it.\n")
    return 0


def running_stack(state: Path) -> int | None:
    """The process id of the stack that holds a state folder, if one does."""
    try:
        with (state / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return int((state / "lock").read_text())
    except OSError:
        pass
    return None


def _fail(line: str) -> int:
    sys.stderr.write(f"{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
