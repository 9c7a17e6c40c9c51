"""V1 and G1 to G3: broken engines that must be caught, backup and restore under load, restarts and overload."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from domain import database
from local.crowd import gather
from local.servers import free_port
from tests.faults import overload, restarts, variants
from tests.faults.checker import shown
from tests.faults.clients import SETTINGS
from tests.faults.ground import Ground, quantile
from tests.faults.matrix.rows import row
from tests.faults.stack import FaultStack


@row("V1", "engines that are broken on purpose, and the engine as it is", "each is caught by what it breaks", stack="none")
def broken_engines(ground: Ground) -> None:
    database.bound_waits()
    missed, rounds = [], ground.many(3)
    with tempfile.TemporaryDirectory(dir=ground.folder) as folder:
        stack = FaultStack(Path(folder) / "stack", free_port(), proxied=True, **variants.PATCHED, LOG_LEVEL="WARNING", **SETTINGS)
        with stack:
            trial = variants.Trial(stack)
            for _ in range(rounds):
                ground.violations += trial.violations(variants.SOUND, ground.chance.randrange(2**32))
            for variant in variants.VARIANTS:
                found = trial.violations(variant, ground.chance.randrange(2**32))
                print(f"{variant.name}\n{shown(found)}", flush=True)
                if not variant.promises & {violation.promise for violation in found}:
                    missed.append(variant.name)
    ground.note("loads of the engine as it is", rounds)
    ground.note("broken engines", len(variants.VARIANTS))
    ground.note(" and ".join(["not caught", *missed]), len(missed), most=0)


@row(
    "G1",
    "the database lost, and restored as of an instant, under load",
    "all acknowledged before it, nothing after",
    stack="none",
)
def restored(ground: Ground) -> None:
    _pytest(ground, "tests/faults/test_backup.py")


@row("G2", "everything of ours replaced under load (`make restart`)", "no request fails, nobody is let go of", stack="none")
def restarted(ground: Ground) -> None:
    with tempfile.TemporaryDirectory(dir=ground.folder) as folder:
        told = restarts.rehearse(ground.many(20), Path(folder))
    ground.note("restarts", told.restarts, least=1)
    ground.note("answers", sum(told.statuses.values()))
    ground.note("requests that failed", len(told.failed), most=0)
    ground.note("commands not decided", told.undecided, most=0)
    ground.note("p99 of the answers", quantile(told.waits, 0.99), "s")
    ground.note("exit code of the stack", told.code, most=0)
    _pytest(ground, "tests/faults/test_graceful.py")


@row("G3", "three times as much asked as can be done", "the rest is shed at once with 503 and Retry-After", stack="none")
def overloaded(ground: Ground) -> None:
    own, others = overload.halves()
    os.sched_setaffinity(0, own)
    with tempfile.TemporaryDirectory(dir=ground.folder) as folder, overload.stand(Path(folder) / "stack") as stack:
        crowd = Path(folder) / "crowd.json"
        gather(stack.engine, stack.settings, doctors=100, patients=500).write(crowd)
        for what in ("reads", "bookings"):
            best, under = ground.long(8, least=4), ground.long(20, least=6)
            measured = overload.measure(what, stack.settings.port, crowd, others, best=best, under=under)
            ground.note(f"{what}: best", measured.best.rate, "/s")
            ground.note("served at three times that", 100 * measured.share, "%", least=80)
            ground.note("p99 of what was let in", measured.p99, "s", most=2)


def _pytest(ground: Ground, *modules: str) -> None:
    """Run tests that stand by themselves, and note how many passed."""
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", *modules], capture_output=True, text=True, timeout=600)
    words = ran.stdout.split()
    passed = int(words[words.index("passed") - 1]) if "passed" in words else 0
    if ran.returncode:
        print(ran.stdout[-4000:])
    ground.note("tests passed", passed, least=1)
    ground.note("exit code", ran.returncode, most=0)
