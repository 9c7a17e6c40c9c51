"""What the documents name is there, and drawings are of today's text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.diagrams import FOLDER, mark

ROOT = Path()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *Path("docs").rglob("*.md")])


@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.dot")), ids=lambda source: source.stem)
def test_a_drawing_is_of_the_text_beside_it(source: Path) -> None:
    """Else `make diagrams`."""
    assert mark(source) in source.with_suffix(".svg").read_text("utf-8")


def test_every_drawing_is_shown_somewhere() -> None:
    shown = "".join(document.read_text("utf-8") for document in DOCUMENTS)
    assert {
        source.with_suffix(".svg").name for source in FOLDER.glob("*.dot") if source.with_suffix(".svg").name not in shown
    } == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|mailto:|#)([^)#\s]+)[^)]*\)", document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_target_of_make_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text("utf-8"), re.MULTILINE))
    text = document.read_text("utf-8")
    named = {
        name for command in re.findall(r"`make ([^`]*)`", text) for name in command.split() if re.fullmatch(r"[a-z-]+", name)
    }
    named |= set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert named - targets == set()


def test_every_process_of_the_chart_is_drawn() -> None:
    drawn = (FOLDER / "architecture.dot").read_text("utf-8")
    for name in ("api", "booking", "notifications", "relay", "flower"):
        assert re.search(rf"^\s+{name} \[", drawn, re.MULTILINE), name
