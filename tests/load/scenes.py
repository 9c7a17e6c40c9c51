"""The scenes of a load: people who come and stay, and people who all want the same; and when the stack has come to rest."""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from redis import Redis
from sqlalchemy import Engine, text

from domain.settings import Settings
from local.crowd import Crowd, Member
from tests.load.people import Part, Tally, take_part
from workers.app import BOOKING, NOTIFICATIONS

GRACE_SECONDS = 120.0  # for the stack to come to rest
SPARE_FILES = 200  # that a process has open besides its connections


def stay(base_url: str, crowd: Crowd, *, ramp: float, seconds: float, think: float, processes: int = 1, seed: int = 1) -> Tally:
    """Let everybody come within `ramp` seconds, and do what they do for `seconds`; what was seen, of that time."""
    return _play(_part(base_url, crowd, seed, ramp, seconds, think), processes)


def rush(
    base_url: str, crowd: Crowd, slots: Sequence[str], *, ramp: float, seconds: float, processes: int = 1, seed: int = 2
) -> Tally:
    """Let all patients, once they are connected, ask for one of these slots within `seconds`."""
    return _play(replace(_part(base_url, crowd, seed, ramp, seconds, 0.0), doctors=(), slots=slots), processes)


def free_slots(base_url: str, doctor: Member, number: int) -> list[str]:
    """The ids of a doctor's first free slots from the day after tomorrow on."""
    with urllib.request.urlopen(f"{base_url}/api/v1/doctors/{doctor.id}/agenda?days=31") as answer:
        days = json.load(answer)["days"]
    found = [slot["id"] for day in days[2:] for slot in day["slots"]][:number]
    if len(found) < number:
        raise RuntimeError(f"the doctor has only {len(found)} free slots")
    return found


def holders(engine: Engine, slots: Sequence[str]) -> int:
    """How many active appointments these slots have."""
    with engine.connect() as connection:
        query = text("select count(*) from appointments where active and slot_id = any(cast(:slots as uuid[]))")
        found: int = connection.execute(query, {"slots": list(slots)}).scalar_one()
        return found


def rest(engine: Engine, settings: Settings) -> float:
    """Wait until nothing is under way any more; after how many seconds. Raises TimeoutError, which says what is left."""
    began = time.monotonic()
    with Redis.from_url(settings.broker_url) as broker:
        while left := _under_way(engine, broker):
            if time.monotonic() - began > GRACE_SECONDS:
                raise TimeoutError(f"after {GRACE_SECONDS:.0f} s there are still {left}")
            time.sleep(0.2)
    return time.monotonic() - began


def _under_way(engine: Engine, broker: Redis) -> str:
    with engine.connect() as connection:
        left = dict(connection.execute(_LEFT).one()._mapping)
    left |= {f"messages in {queue}": broker.llen(queue) for queue in (BOOKING, NOTIFICATIONS)}
    left |= {"messages that were taken": broker.hlen("unacked")}
    return ", ".join(f"{number} {what}" for what, number in left.items() if number)


def _part(base_url: str, crowd: Crowd, seed: int, ramp: float, seconds: float, think: float) -> Part:
    place = urlsplit(base_url)
    begins = time.monotonic() + 2.0  # by when every process is there
    return Part(
        host=place.hostname or "",
        port=place.port or 80,
        patients=crowd.patients,
        doctors=crowd.doctors,
        directory=[each.id for each in crowd.doctors],
        seed=seed,
        begins=begins,
        measured=begins + ramp,
        ends=begins + ramp + seconds,
        think=think,
    )


def _play(part: Part, processes: int) -> Tally:
    """Play a part in as many processes as are asked for, and more if one may not have so many connections."""
    people = len(part.patients) + len(part.doctors)
    with _files() as most:
        processes = max(processes, -(-people // (most - SPARE_FILES)))
        if processes == 1:
            return take_part(part)
        parts = [
            replace(part, patients=part.patients[n::processes], doctors=part.doctors[n::processes], seed=part.seed * 1000 + n)
            for n in range(processes)
        ]
        whole = Tally()
        with multiprocessing.get_context("forkserver").Pool(processes) as pool:
            for tally in pool.map(take_part, parts, chunksize=1):
                whole.add(tally)
        return whole


@contextmanager
def _files() -> Iterator[int]:
    """As many open files as one process may have, for this one and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so many of 100 do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] if ordered else 0.0


_LEFT = text(
    """
    select
        (select count(*) from commands where status = 'pending') as "commands undecided",
        (select count(*) from batches where finished_at is null) as "batches unfinished",
        (select count(*) from notices where sent_at is null and dropped_at is null and due_at <= clock_timestamp())
            as "notices unsent"
    """
)
