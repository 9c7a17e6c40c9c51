"""Runs a command of the project with the settings of a local stack: `python -m local.within api.cli --help`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Become `python -m` with what was given, in the environment of the stack of STATE_DIR; 2 if none has run there."""
    file = Path(os.environ.get("STATE_DIR") or ".state") / "settings.json"
    try:
        settings = json.loads(file.read_text("utf-8"))
    except OSError:
        sys.stderr.write(f"There is no {file}: bring the stack up with `make up`, or set STATE_DIR to that of another one.\n")
        sys.exit(2)
    os.execve(sys.executable, [sys.executable, "-m", *sys.argv[1:]], {**os.environ, **settings})


if __name__ == "__main__":
    main()
