"""`make load`: 20,000 people on a stack of its own, each with a connection; then all of them want the same ten slots."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from domain import database, logs
from domain.settings import Settings, load
from local import crowd
from local.crowd import Crowd
from local.servers import free_port
from tests.checks import violations
from tests.load import scenes
from tests.load.people import ACKNOWLEDGED, ANSWERED, DECIDED, DOCTORS_DO, PATIENTS_DO, READ, SHED, Tally
from tests.load.scenes import percentile
from tests.load.watch import Watch, total

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 90.0
PATIENTS_A_DOCTOR = 39
WANTED = 10  # slots, by everybody at once
MIB = 1 << 20
FLAT = 0.10  # by how much the processes' memory may differ between the first and the last third of the time


@dataclass(slots=True)
class Report:
    """The table, and whether every target was met."""

    failed: int = 0

    def line(self, what: str, measured: str, target: str = "", *, met: bool = True) -> None:
        """One figure, beside its target where there is one."""
        self.failed += not met
        print(
            f"  {what:<44} {measured:>16}   {target:<14} {'' if not target else 'met' if met else 'MISSED'}".rstrip(), flush=True
        )

    def under(self, what: str, values: list[float] | object, share: float, limit: float) -> None:
        """A percentile in seconds."""
        found = percentile(values, share)  # type: ignore[arg-type]
        self.line(f"{what}, p{share:g}", _span(found), f"< {_span(limit)}", met=found < limit)

    def none(self, what: str, found: list[str]) -> None:
        """What should not be, and each case if it is."""
        self.line(what, str(len(found)), "0", met=not found)
        for each in found[:20]:
            print(f"      {each}")


def main() -> int:
    """Run both scenes and judge them; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="make load")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long is measured")
    parser.add_argument("--think", type=float, default=30.0, help="seconds between two things that somebody does, on average")
    parser.add_argument("--ramp", type=float, help="within how many seconds they all come; 6 ms for each unless given")
    parser.add_argument("--processes", type=int, default=2, help="of the client")
    asked = parser.parse_args()
    asked.ramp = asked.ramp or max(5.0, asked.users * 0.006)
    logs.configure("WARNING")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and nothing that was started is left behind
    report = Report()
    with _stack() as (base_url, settings, pid):
        engine = database.connect(settings.database_url, pool_size=2)
        try:
            people = _gather(engine, settings, asked.users)
            with Watch(pid) as watch:
                _stay(report, watch, asked, base_url, people, engine, settings)
                _rush(report, asked, base_url, people, engine, settings)
            took = time.monotonic()
            broken = violations(engine, settings)
            report.none(f"promises that are broken ({time.monotonic() - took:.0f} s to tell)", broken)
        finally:
            engine.dispose()
    print("every target met" if not report.failed else f"{report.failed} targets missed")
    return 1 if report.failed else 0


def _gather(engine: Engine, settings: Settings, users: int) -> Crowd:
    began = time.monotonic()
    doctors = max(1, users // (PATIENTS_A_DOCTOR + 1))
    people = crowd.gather(engine, settings, doctors=doctors, patients=users - doctors)
    print(f"{doctors} doctors and {users - doctors} patients registered in {time.monotonic() - began:.0f} s", flush=True)
    return people


def _stay(
    report: Report, watch: Watch, asked: argparse.Namespace, base_url: str, people: Crowd, engine: Engine, settings: Settings
) -> None:
    users, seconds = asked.users, asked.seconds
    print(f"\n{users:,} people for {seconds:g} s, after {asked.ramp:g} s of coming; each does something every {asked.think:g} s")
    print(f"  of 100 things, patients: {_mix(PATIENTS_DO)}\n                 doctors: {_mix(DOCTORS_DO)}")
    before, began = watch.cpu(), time.monotonic()
    seen = scenes.stay(base_url, people, ramp=asked.ramp, seconds=seconds, think=asked.think, processes=asked.processes)
    spent, ended = watch.cpu(), time.monotonic()
    spent.subtract(before)
    try:
        rested, left = scenes.rest(engine, settings), ""
    except TimeoutError as error:
        rested, left = scenes.GRACE_SECONDS, str(error)
    requests = seen.counts["sent"]
    report.line(
        "connections open, at the least",
        f"{seen.counts['open']:,}",
        f">= {users * 0.995:,.0f}",
        met=seen.counts["open"] >= users * 0.995,
    )
    report.line("requests", f"{requests:,}")
    report.line("requests a second", f"{sum(len(seen.seconds[each]) for each in (READ, ACKNOWLEDGED)) / seconds:,.0f}")
    report.none("errors", _told(seen))
    report.line("told to come back (503)", f"{seen.counts[SHED]:,}", "0", met=not seen.counts[SHED])
    report.under("reads", seen.seconds[READ], 99, 0.5)
    report.under("acknowledgements (202)", seen.seconds[ACKNOWLEDGED], 99, 1.0)
    report.line("reads, p50", _span(percentile(seen.seconds[READ], 50)))
    report.line("acknowledgements, p50", _span(percentile(seen.seconds[ACKNOWLEDGED], 50)))
    report.line("commands known to be decided, p50, p99", " ".join(_span(percentile(seen.seconds[DECIDED], n)) for n in (50, 99)))
    report.line(
        "commands acknowledged and not decided",
        str(seen.counts[ACKNOWLEDGED] - seen.counts[DECIDED]),
        "0",
        met=seen.counts[ACKNOWLEDGED] == seen.counts[DECIDED],
    )
    for name, number in sorted(seen.counts.items()):
        if name not in (READ, ACKNOWLEDGED, DECIDED, SHED, "open", "sent"):
            report.line(f"    {name}", f"{number:,}")
    report.line("queues empty after", f"{rested:.1f} s", f"< {scenes.GRACE_SECONDS:g} s", met=not left)
    if left:
        print(f"      {left}")
    _memory(report, watch, began + asked.ramp, ended)
    whole = sum(spent.values())
    report.line("CPU-seconds of the stack per 1,000 requests", f"{whole / max(1, requests) * 1000:.2f}")
    for name, used in spent.most_common():
        report.line(f"    {name}", f"{used / max(1, requests) * 1000:.2f}")
    report.line("share of one core that the stack took", f"{whole / (ended - began):.0%}")


def _memory(report: Report, watch: Watch, since: float, until: float) -> None:
    """Our own processes must not grow; the servers fill what they are given."""
    held = [(at, sizes) for at, sizes in watch.memory if since <= at <= until]
    if len(held) < 6:
        report.line("memory", "too short to tell")
        return
    third = len(held) // 3
    for servers in (False, True):
        sizes = [total(each, servers=servers) for _, each in held]
        first, last = statistics.median(sizes[:third]), statistics.median(sizes[-third:])
        name = "PostgreSQL and Valkey" if servers else "our processes"
        target = "" if servers else f"within {FLAT:.0%}"
        report.line(
            f"memory (PSS) of {name}, MiB",
            f"{first / MIB:.0f} to {last / MIB:.0f}",
            target,
            met=servers or last < first * (1 + FLAT),
        )


def _rush(report: Report, asked: argparse.Namespace, base_url: str, people: Crowd, engine: Engine, settings: Settings) -> None:
    seconds = 10.0
    slots = scenes.free_slots(base_url, people.doctors[-1], WANTED)
    print(f"\n{len(people.patients):,} patients want the same {WANTED} slots within {seconds:g} s")
    seen = scenes.rush(base_url, people, slots, ramp=asked.ramp, seconds=seconds, processes=asked.processes)
    won = seen.counts["rush succeeded"]
    report.line(
        "winners, and appointments there are",
        f"{won}, {scenes.holders(engine, slots)}",
        f"{WANTED}, {WANTED}",
        met=won == scenes.holders(engine, slots) == WANTED,
    )
    answered = len(seen.seconds[ANSWERED])
    report.line(
        "patients who know, decided and read", f"{answered:,}", f"{len(people.patients):,}", met=answered == len(people.patients)
    )
    report.none("errors", _told(seen))
    report.under("from wanting to knowing", seen.seconds[ANSWERED], 100, 60.0)
    report.line("from wanting to knowing, p50", _span(percentile(seen.seconds[ANSWERED], 50)))
    report.line("acknowledged, p99", _span(percentile(seen.seconds[ACKNOWLEDGED], 99)))
    report.line("told to come back (503), and did", f"{seen.counts[SHED]:,}")
    scenes.rest(engine, settings)


def _told(seen: Tally) -> list[str]:
    return [f"{what} ({number} times)" for what, number in seen.errors.most_common()]


def _mix(does: dict[str, int]) -> str:
    return ", ".join(f"{what} {share}" for what, share in Counter(does).most_common())


def _span(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


@contextmanager
def _stack() -> Iterator[tuple[str, Settings, int]]:
    """A whole stack in a folder of its own: where it is, its settings, and the process that all others come from."""
    with tempfile.TemporaryDirectory(prefix="healthmed-load-") as folder:
        state, port = Path(folder) / "state", free_port()
        environ = {**os.environ, "STATE_DIR": str(state), "PORT": str(port), "RATE_LIMITS": "off"}
        up = subprocess.Popen([sys.executable, "-m", "local.up"], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not (state / "demo.json").exists():
                if up.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the stack did not come up")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", load(json.loads((state / "settings.json").read_text())), up.pid
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(40)


if __name__ == "__main__":
    sys.exit(main())
