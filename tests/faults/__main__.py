"""`make faults`: the fault matrix, row by row on real stacks, and the table of what was measured.

`ROWS="R1 W3"` runs these alone, `SCALE=0.1` shrinks numbers and times, `SEED=7` replays what is random.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from domain import database, logs
from local.crowd import Crowd, gather
from local.servers import Postgres, free_port
from tests.faults.checker import shown
from tests.faults.clients import SETTINGS
from tests.faults.disk import REFUSED
from tests.faults.ground import Ground
from tests.faults.matrix import ROWS, Row
from tests.faults.stack import FaultStack

# Rows that share a stack, one after another, the longest first. What is in BESIDE mostly waits, and goes on beside the others.
BESIDE: Final = (("M1",),)
# Hold the same figure with and without harm, or how much the machine can do, against it.
ALONE: Final = (("A2", "W5"), ("B2",), ("G3",))
BUNDLES: Final = (
    ("X1",),
    ("W1", "A1", "W4"),
    ("R4", "R6", "R7", "P5", "P2", "P3"),
    ("G1", "G2"),
    ("R1", "R3", "P1", "P4"),
    ("W2", "W3", "D1", "B1"),
    ("R2", "R5", "T1"),
    ("P6", "W6", "W7"),
    ("V1",),
    ("T2",),
    ("P7",),
)
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
AT_ONCE, SMALL_AT_ONCE = 3, 4  # small ones mostly wait until a mail that nobody noted is tried again
DISK_MEGABYTES: Final = 200
DOCTORS, PATIENTS, SPARE = 90, 600, 20


def main() -> int:
    """Run the rows that are asked for; 1 if any of them did not hold, or could not be run."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows; all unless given")
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)  # run these on one stack here, and write down how it went
    asked = parser.parse_args()
    scale, seed = float(os.environ.get("SCALE") or 1), int(os.environ.get("SEED") or time.time())
    names = [name.upper() for name in asked.rows or (os.environ.get("ROWS") or "").split() or ROWS]
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}: there are {', '.join(ROWS)}")
    if asked.bundle:
        run_bundle([ROWS[name] for name in names], scale, seed, asked.bundle)
        return 0
    print(f"SCALE={scale:g} SEED={seed}", flush=True)
    begun = time.monotonic()
    results = run_all(names, scale, seed)
    table = report(results, scale, seed, time.monotonic() - begun)
    target = Path(os.environ.get("STATE_DIR") or ".state")
    target.mkdir(exist_ok=True)
    (target / "faults.md").write_text(table, "utf-8")
    if scale == 1 and len(results) == len(ROWS):
        before, mark, _, end, after = re.split(
            "(<!-- faults[^>]*-->)(.*)(<!-- end -->)", DOCUMENT.read_text("utf-8"), flags=re.DOTALL
        )
        DOCUMENT.write_text(f"{before}{mark}\n\n{table}\n{end}{after}", "utf-8")
    held = sum(each["held"] for each in results)
    print(f"\n{held} of {len(results)} rows held, in {time.monotonic() - begun:.0f} s; the table is in {target / 'faults.md'}")
    return 0 if held == len(results) else 1


def run_all(names: Sequence[str], scale: float, seed: int) -> list[dict[str, Any]]:
    """Run the bundles that hold these rows, each in a process of its own."""
    beside, others, alone = (
        [wanted for bundle in bundles if (wanted := tuple(name for name in bundle if name in names))]
        for bundles in (BESIDE, BUNDLES, ALONE)
    )
    with tempfile.TemporaryDirectory(prefix="healthmed-faults-") as folder:
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(AT_ONCE if scale > 0.5 else SMALL_AT_ONCE) as several:
            running = [
                pool.submit(_run_apart, bundle, scale, seed, Path(folder) / "-".join(bundle))
                for pool, bundles in ((one, beside), (several, others))
                for bundle in bundles
            ]
            results = [result for each in running for result in each.result()]
        for bundle in alone:
            results += _run_apart(bundle, scale, seed, Path(folder) / "-".join(bundle))
    return sorted(results, key=lambda each: list(ROWS).index(each["row"]))


def _run_apart(bundle: tuple[str, ...], scale: float, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Run one bundle in a process of its own, and tell what it has written down."""
    folder.mkdir()
    result = folder / "result.jsonl"
    program = ["tests.faults", "--bundle", str(result), *bundle]
    if ROWS[bundle[0]].stack == "small disk":
        program = ["tests.faults.disk", str(folder / "disk"), str(DISK_MEGABYTES), *program]
    environ = {**os.environ, "SCALE": str(scale), "SEED": str(seed)}
    with (folder / "output").open("w") as output:
        ended = subprocess.run([sys.executable, "-m", *program], env=environ, stdout=output, stderr=subprocess.STDOUT)
    lines = result.read_text("utf-8").splitlines() if result.exists() else []
    results = [json.loads(line) for line in lines]
    why = "not run: this machine lets nobody mount a disk" if ended.returncode == REFUSED else "the run broke off"
    for name in bundle[len(results) :]:
        results.append({"row": name, "held": False, "figures": [why], "violations": _last_line(folder / "output")})
    for each in results:
        print(_line(each), flush=True)
    return results


def run_bundle(rows: Sequence[Row], scale: float, seed: int, result: Path) -> None:
    """Run rows that stand on the same stack, one after another, and write down how each went."""
    folder = result.parent
    with _ground(rows[0].stack, folder) as (stack, crowd, spare):
        ran = []
        for row in rows:
            ground = Ground(stack, crowd, spare, folder, scale, seed ^ hash_of(row.name))
            begun = time.monotonic()
            broken = _broken(row.run, ground)
            ran.append((row, ground, broken, time.monotonic() - begun))
            print(row.name, *ground.measured, sep="\n    ", flush=True)
        for row, ground, broken, seconds in ran:  # only now: a mail may take a minute to be tried again
            broken = broken or _broken(Ground.judge, ground)
            held = not broken and not ground.violations and all(figure.held for figure in ground.measured)
            told = {
                "row": row.name,
                "held": held,
                "seconds": seconds,
                "figures": [str(figure) + ("" if figure.held else " NOT HELD") for figure in ground.measured],
                "violations": broken or (shown(ground.violations) if ground.violations else ""),
            }
            with result.open("a", encoding="utf-8") as output:
                output.write(json.dumps(told) + "\n")
            if not held and stack is not None:
                kept = Path(os.environ.get("STATE_DIR") or ".state") / f"faults-{row.name}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("postgres*", "replica*", "mail", "broker*", "disk"))


def _broken(do: Callable[[Ground], None], ground: Ground) -> str:
    """What broke off what was to be done; empty if nothing did."""
    try:
        do(ground)
    except Exception:
        print(traceback.format_exc(), flush=True)
        return traceback.format_exc()
    return ""


def hash_of(name: str) -> int:
    """A number that is a row's own, the same in every process."""
    return int.from_bytes(name.encode(), "big")


@contextlib.contextmanager
def _ground(kind: str, folder: Path) -> Iterator[tuple[Any, Any, list[Any]]]:
    """The stack of a kind, with a crowd in it; none for those that bring their own."""
    if kind == "none":
        yield None, None, []
        return
    settings = {**SETTINGS, "BOOKING_HORIZON_DAYS": "14", "LOG_LEVEL": "WARNING", "BOOKING_WORKERS": "4"}
    servers = {}
    if kind == "small disk":
        wal = {"max_wal_size": "48MB", "min_wal_size": "32MB"}
        servers["DATABASE_URL"] = Postgres(folder / "disk" / "postgres", log=folder / "postgres.log", options=wal)
    patched = dict.fromkeys(("api", "relay", "booking", "notifications"), "tests.faults.harm:do")
    proxied = kind == "proxied"
    stack = FaultStack(
        folder / "state", free_port(), proxied=proxied, replicated=proxied, servers=servers, patched=patched, **settings
    )
    logs.configure("WARNING")
    database.bound_waits()
    with stack:
        crowd = gather(stack.engine, stack.settings, doctors=DOCTORS, patients=PATIENTS + SPARE, slots_a_day=16)
        yield stack, Crowd(crowd.doctors, crowd.patients[:PATIENTS]), list(crowd.patients[PATIENTS:])


def report(results: Sequence[dict[str, Any]], scale: float, seed: int, seconds: float) -> str:
    """The table, as docs/reliability.md shows it."""
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines = [
        f"`make faults SCALE={scale:g} SEED={seed}`, {datetime.now(UTC):%Y-%m-%d}, {machine}, {seconds / 60:.0f} minutes.",
        "",
        "| row | fault | what is to happen | measured (and its limit) | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in results:
        row = ROWS[each["row"]]
        verdict = "held" if each["held"] else "**not held**"
        lines.append(f"| {row.name} | {row.fault} | {row.expected} | {'; '.join(each['figures'])} | {verdict} |")
    return "\n".join(lines) + "\n"


def _last_line(file: Path) -> str:
    return file.read_text("utf-8").rstrip().rpartition("\n")[2][:500]


def _line(result: dict[str, Any]) -> str:
    row = ROWS[result["row"]]
    head = f"{row.name:3} {'held' if result['held'] else 'NOT HELD':8} {result.get('seconds', 0):4.0f} s  {row.fault}"
    return "\n".join([head, *(f"        {figure}" for figure in result["figures"]), *result["violations"].splitlines()])


if __name__ == "__main__":
    sys.exit(main())
