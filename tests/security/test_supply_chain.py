"""What is installed is what was chosen: pinned, hashed, and each direct dependency with its reason."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", ".ci/image.lock", ".ci/chart.lock", ".ci/scan.lock"]


def direct() -> set[str]:
    """The names of what setup.cfg asks for."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    names = (re.match(r"[\w.-]+", line) for block in asked for line in block.splitlines())
    return {plain(name[0]) for name in names if name}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_with_its_hashes(lock: str) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text(), flags=re.IGNORECASE)
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+ ", entry), entry[:80]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]


def test_every_direct_dependency_is_locked_and_has_its_reason() -> None:
    locked = {plain(name) for name in re.findall(r"(?m)^([\w.-]+)==", (ROOT / "requirements.lock").read_text())}
    reasons = (ROOT / "docs" / "dependencies.md").read_text().lower()
    for name in direct():
        assert name in locked
        assert re.search(rf"^\|[^|]*\b{re.escape(name)}\b", plain_table(reasons), flags=re.MULTILINE), name


def plain_table(text: str) -> str:
    return "\n".join(re.sub(r"[_.]+", "-", line) if line.startswith("|") else line for line in text.splitlines())


def test_nothing_is_installed_without_its_hash_and_nothing_is_compiled() -> None:
    files = [each for each in (ROOT / name for name in ("Makefile", "Dockerfile", ".ci/run")) if each.exists()]
    installs = [line for file in files for line in file.read_text().splitlines() if "pip install" in line]
    assert installs
    for line in installs:
        assert "--require-hashes" in line
        assert "--only-binary :all:" in line
