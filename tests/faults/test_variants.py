"""The checker catches a broken engine at work, and finds nothing wrong with the engine as it is; `make faults` tries a dozen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from domain import database
from local.servers import free_port
from tests.faults import variants
from tests.faults.checker import shown
from tests.faults.clients import SETTINGS
from tests.faults.stack import FaultStack
from tests.faults.variants import SOUND, VARIANTS, Trial, Variant

NAMED = {each.name: each for each in VARIANTS}
QUICK = [NAMED["no constraint and no row lock"]]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A stack on which variants are tried."""
    database.bound_waits()
    folder = tmp_path_factory.mktemp("variants")
    with FaultStack(folder / "stack", free_port(), **variants.PATCHED, API_WORKERS="1", LOG_LEVEL="WARNING", **SETTINGS) as stack:
        yield Trial(stack)


def test_the_engine_as_it_is_breaks_no_promise(trial: Trial) -> None:
    found = trial.violations(SOUND, 1)
    assert not found, shown(found)


@pytest.mark.parametrize("variant", QUICK, ids=lambda each: each.name)
def test_a_broken_engine_is_caught(trial: Trial, variant: Variant) -> None:
    found = trial.violations(variant, 1)
    assert variant.promises & {each.promise for each in found}, shown(found)
