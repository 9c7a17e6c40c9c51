"""Flower starts only where it is opened, and never without its log-in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"FLOWER": "off", "FLOWER_BASIC_AUTH": "flower:whatever it is"}, "FLOWER"),
        ({"FLOWER": "on"}, "FLOWER_BASIC_AUTH"),
        ({"LOCAL_STACK": "off", "FLOWER": "on"}, "JWT_KEYS: is no random key"),
    ],
)
def test_it_does_not_start(environ: dict[str, str], given: dict[str, str], named: str) -> None:
    command = [sys.executable, "-m", "workers.flower"]
    ended = subprocess.run(command, cwd=ROOT, env={**environ, **given}, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_loads_nothing_of_what_decides_and_mails() -> None:
    code = "import sys, workers.flower; sys.exit(bool({'sqlalchemy', 'domain.lanes', 'workers.mail'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, check=False).returncode == 0
