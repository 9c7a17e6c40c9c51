"""docs/security.md leaves no item of the standard out, and names no test that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()

# How many items each section of ASVS 5.0 has at levels 1 and 2; its items of level 3 come last, save where the numbers are named.
SECTIONS = """
    1.1:2 1.2:9 1.3:11 1.4:3 1.5:2 2.1:3 2.2:3 2.3:4 2.4:1 3.2:2 3.3:4 3.4:6 3.5:5 3.7:2 4.1:3 4.2:1 4.3:2 4.4:4 5.1:1 5.2:3 5.3:2
    5.4:3 6.1:3 6.2:12 6.3:4 6.4:4 6.5:5 6.6:3 6.8:4 7.1:3 7.2:4 7.3:2 7.4:5 7.5:2 7.6:2 8.1:2 8.2:3 8.3:1 8.4:1 9.1:3 9.2:4
    10.1:2 10.2:2 10.3:4 10.4:11 10.5:5 10.6:2 10.7:3 11.1:2 11.2:3 11.3:3 11.4:4 11.5:1 11.6:1 12.1:3 12.2:2 12.3:4 13.1:1 13.2:5
    13.3:2 13.4:5 14.1:2 14.2:4 14.3:3 15.1:3 15.2:3 15.3:7 16.1:1 16.2:5 16.3:4 16.4:3 16.5:3 17.1:1 17.2:4 17.3:2
"""


def items(cell: str) -> set[str]:
    """The items that a cell such as `1.1.1, 1.2.6–8` names."""
    named = set()
    for section, first, last in re.findall(r"(\d+\.\d+)\.(\d+)(?:–(\d+))?", cell):
        named |= {f"{section}.{n}" for n in range(int(first), int(last or first) + 1)}
    return named


def test_every_item_of_levels_1_and_2_is_answered_once() -> None:
    wanted = set()
    for section in SECTIONS.split():
        name, _, count = section.partition(":")
        wanted |= {f"{name}.{n}" for n in range(1, int(count) + 1)}
    answered: list[str] = []
    for line in TEXT.splitlines():
        if re.match(r"\| \d+\.\d+\.\d+", line):
            answered += items(line.split("|")[1])
    assert len(wanted) == 253
    assert sorted(answered) == sorted(set(answered))
    assert set(answered) == wanted


def test_every_test_that_is_named_is_there() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    there = {name for file in files for name in re.findall(r"(?m)^def (test_\w+)", file.read_text())}
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 80
    assert named - there == set()


def test_every_file_that_is_named_is_there() -> None:
    for name in re.findall(r"`((?:api|domain|workers|\.ci)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name
