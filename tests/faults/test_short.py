"""One fault of each kind, one after another, on one stack under one load that is judged: the short version of `make faults`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import pytest

from domain import database
from local.crowd import gather
from local.servers import free_port
from tests.faults.checker import shown
from tests.faults.clients import SETTINGS
from tests.faults.ground import Ground
from tests.faults.matrix.chaos import HARMS, planned
from tests.faults.stack import FaultStack

# How long each lasts, in seconds. The relay is doubled and messages come ten times over while all else happens.
WHILE: Final = ("relay doubled", "messages doubled")
EACH: Final = {
    "mail gone": 1.0,
    "broker killed": 0.5,
    "broker emptied": 0.5,
    "cache frozen": 2.0,
    "cache lost to the others": 2.0,
    "database killed": 0.5,
    "booking killed": 0.5,
    "booking bereft": 0.0,
    "api killed": 0.5,
}


def test_a_seed_plans_the_same_chaos_again() -> None:
    plan = planned(7, 600)
    assert plan == planned(7, 600) != planned(8, 600)
    harmed: set[str] = set()
    for _, name, begins in plan:
        thing = name.split()[0]
        assert (thing in harmed) is not begins
        harmed ^= {thing}
        assert len(harmed) <= 3
    assert not harmed
    assert {name for _, name, _ in plan} == set(HARMS)


@pytest.mark.timeout(300)  # on a machine that has much else to do; half a minute on one that has not
def test_what_is_acknowledged_outlives_one_fault_of_each_kind(tmp_path: Path) -> None:
    database.bound_waits()
    with FaultStack(tmp_path / "stack", free_port(), proxied=True, API_WORKERS="1", LOG_LEVEL="WARNING", **SETTINGS) as stack:
        crowd = gather(stack.engine, stack.settings, doctors=3, patients=24, slots_a_day=4)
        ground = Ground(stack, crowd, [], tmp_path, scale=0.0, seed=20261124)
        relays, messages = (HARMS[name](ground) for name in WHILE)
        with ground.load(rate=25, clients=6) as run, relays, messages:
            for name, seconds in EACH.items():
                booked = run.booked
                with HARMS[name](ground):
                    time.sleep(seconds)
                run.await_bookings(booked + 2, 30)  # it goes on by itself
        ground.judge()
    assert not ground.violations, shown(ground.violations)
    assert run.figures is not None
    assert run.figures.booked > 2 * len(EACH)
