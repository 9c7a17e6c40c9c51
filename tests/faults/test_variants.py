"""The checker catches broken engines at work, and finds nothing wrong with the engine as it is; `make faults` tries them all."""

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
# In the order in which the fewest processes have to be launched again.
QUICK = [NAMED[name] for name in ("no relay", "no constraint and no row lock", "202 before the commit")]


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
