"""Who the load is made of: patients and doctors, what they do and how often, and what comes of it."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import uuid4

from local.crowd import SPECIALTIES, Member
from tests.load.wire import Answer, Lost, Wire, request

DECIDED_WITHIN: Final = 60.0  # a command that is not decided by then is an error
WAIT: Final = 10  # seconds, as clients who wait say in `Prefer`
LONGEST_PAUSE: Final = 20.0  # before somebody who was told to come back does so
REMEMBERED: Final = 4  # paths of which a client keeps the ETag

READ, ACKNOWLEDGED, DECIDED, ANSWERED, SHED = "read", "acknowledged", "decided", "answered", "shed"

# Of 100 things that a patient does, and that a doctor does. To book is to read an agenda, to ask, and to follow the request.
PATIENTS_DO: Final = {
    "search": 30, "agenda": 26, "doctor": 16, "appointments": 12, "appointment": 8, "account": 4, "book": 3, "cancel": 1,
}  # fmt: skip
DOCTORS_DO: Final = {"decide": 50, "appointments": 20, "agenda": 15, "availability": 10, "cancel": 5}
DECIDES_AT_MOST: Final = 10  # requests at one go
REFUSES: Final = 0.15  # of them


@dataclass(slots=True)
class Tally:
    """What one process saw: how long everything took in seconds, by what it was, how often it came, and what went wrong."""

    seconds: defaultdict[str, array[float]] = field(default_factory=lambda: defaultdict(partial(array, "d")))
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    since: float = 0.0  # what was due before, on the way up, is not timed

    def took(self, what: str, due: float) -> None:
        """Time something from when it was due, whenever it was sent."""
        if due >= self.since:
            self.seconds[what].append(time.monotonic() - due)

    def wrong(self, what: str, told: object) -> None:
        """Something is not as it should be; of an answer its status and code are told."""
        self.errors[f"{what}: {told}"] += 1

    def add(self, other: Tally) -> None:
        """Take in what another process saw."""
        for what, values in other.seconds.items():
            self.seconds[what].extend(values)
        self.counts += other.counts
        self.errors += other.errors


@dataclass(slots=True)
class Person:
    """Somebody with a connection of their own, who now and then does something and is told apart from all others."""

    member: Member
    wire: Wire
    tally: Tally
    doctors: Sequence[str]
    chance: random.Random
    busy: float = 0.0  # seconds of the last thing that were spent waiting on purpose, and so don't count as the server's
    tags: dict[str, str] = field(default_factory=dict)
    theirs: list[str] = field(default_factory=list)  # appointments that they know of, newest last

    async def live(self, does: dict[str, int], think: float, until: float) -> None:
        """Do something at instants drawn beforehand, `think` seconds apart on average, whatever comes of it.

        What comes late because the one before took long is timed from when it was due (no coordinated omission).
        """
        names, weights = list(does), list(does.values())
        due = time.monotonic() + self.chance.expovariate(1 / think)
        while due < until:
            await _sleep_until(due)
            self.busy = 0.0
            (what,) = self.chance.choices(names, weights)
            try:
                await getattr(self, what)(due)
            except Lost as error:
                self.tally.wrong(what, error)
            due += self.busy + self.chance.expovariate(1 / think)

    async def ask(self, asked: bytes) -> Answer:
        """The answer to a request; who is told to come back (503 with Retry-After) does so, and that is counted. Raises Lost.

        Later each time, or those who come back would themselves be the load that keeps the rest away.
        """
        times = 0
        while (answer := await self.wire.ask(asked)).status == 503 and (pause := answer.header(b"retry-after")):
            self.tally.counts[SHED] += 1
            times += 1
            await asyncio.sleep(min(float(pause) * times, LONGEST_PAUSE) * self.chance.uniform(0.5, 1.5))
        return answer

    async def read(self, what: str, path: str, due: float | None = None) -> Answer | None:
        """Read something, with the ETag of the last time if that is remembered; None for a 304 and for what should not be."""
        due = time.monotonic() if due is None else due
        headers = {"If_None_Match": tag} if (tag := self.tags.get(path)) else {}
        answer = await self.ask(request("GET", path, self.member.token, **headers))
        self.tally.took(READ, due)
        self.tally.took(what, due)
        self.tally.counts[READ] += 1
        if answer.status == 304 and tag:
            self.tally.counts["304"] += 1
            return None
        if answer.status != 200:
            self.tally.wrong(what, answer)
            return None
        if tag := answer.header(b"etag"):
            self.tags.pop(path, None)
            self.tags[path] = tag
            if len(self.tags) > REMEMBERED:
                del self.tags[next(iter(self.tags))]
        return answer

    async def command(self, kind: str, path: str, body: object, due: float | None = None) -> dict[str, Any] | None:
        """Send a command and follow it until it is decided, by polls or by waiting; None if it was not taken."""
        due = time.monotonic() if due is None else due
        key = str(uuid4())
        answer = await self.ask(request("POST", path, self.member.token, body, Idempotency_Key=key))
        self.tally.took(ACKNOWLEDGED, due)
        self.tally.took(kind, due)
        if answer.status != 202:
            self.tally.wrong(kind, answer)
            return None
        self.tally.counts[ACKNOWLEDGED] += 1
        # Half of all clients wait for the decision, half look each second.
        decided = await self.follow(answer, waits=self.chance.random() < 0.5)
        if decided is not None:
            self.tally.took(DECIDED, due)
            self.tally.counts[f"{kind} {_outcome(decided)}"] += 1
            self.tally.counts[DECIDED] += 1
        return decided

    async def follow(self, acknowledged: Answer, *, waits: bool) -> dict[str, Any] | None:
        """How a command reads once it is decided, by waiting for that or by looking each second; None if it never is."""
        path = (acknowledged.header(b"location") or "").removeprefix("/api/v1")
        began = time.monotonic()
        while time.monotonic() - began < DECIDED_WITHIN:
            if waits:
                answer = await self.ask(request("GET", path, self.member.token, Prefer=f"wait={WAIT}"))
            else:
                await asyncio.sleep(float(acknowledged.header(b"retry-after") or 1))
                due = time.monotonic()
                answer = await self.ask(request("GET", path, self.member.token))
                self.tally.took(READ, due)
                self.tally.took("poll", due)
                self.tally.counts[READ] += 1
            if answer.status != 200:
                self.tally.wrong("poll", answer)
                return None
            if (told := answer.json())["status"] != "pending":
                self.busy += time.monotonic() - began
                return dict(told)
        self.tally.wrong("poll", f"not decided within {DECIDED_WITHIN:.0f} s")
        return None

    def one_doctor(self) -> str:
        """Some are asked for far more often than others: the first tenth of them by a third of all."""
        return self.doctors[int(len(self.doctors) * self.chance.random() ** 2)]

    # What patients do.

    async def search(self, due: float) -> None:
        """Look for a doctor."""
        asked = self.chance.choice(
            (
                f"specialty={self.chance.choice(SPECIALTIES)}",
                f"specialty={self.chance.choice(SPECIALTIES)}&sort=next_slot",
                f"specialty={self.chance.choice(SPECIALTIES)}&sort=price&page={self.chance.randint(1, 3)}",
                f"state=SP&max_price={self.chance.choice((20_000, 30_000))}&sort=price",
                f"q={self.chance.choice(('ana', 'silva', 'duarte', 'paulo', 'gomes'))}",
                "sort=next_slot",
            )
        )
        await self.read("search", f"/doctors?{asked}", due)

    async def doctor(self, due: float) -> None:
        """Look at a doctor."""
        await self.read("doctor", f"/doctors/{self.one_doctor()}", due)

    async def agenda(self, due: float) -> None:
        """Look at a doctor's next week."""
        await self.read("agenda", f"/doctors/{self.one_doctor()}/agenda", due)

    async def appointments(self, due: float) -> None:
        """Look at what one has."""
        await self.read("appointments", "/appointments", due)

    async def appointment(self, due: float) -> None:
        """Look at one of them, or at all while one knows of none."""
        if self.theirs:
            await self.read("appointment", f"/appointments/{self.chance.choice(self.theirs)}", due)
        else:
            await self.appointments(due)

    async def account(self, due: float) -> None:
        """Look at one's account."""
        await self.read("account", "/me", due)

    async def book(self, due: float) -> None:
        """Take one of the slots that a week of some agenda shows, and look at what one has got."""
        week = _today() + timedelta(days=self.chance.randint(0, 50))
        path = f"/doctors/{self.one_doctor()}/agenda?from={week}"
        self.tags.pop(path, None)
        shown = await self.read("agenda", path, due)
        slots = [slot["id"] for day in shown.json()["days"] for slot in day["slots"]] if shown is not None else []
        if not slots:
            self.tally.counts["nothing free"] += 1
            return
        decided = await self.command("book", "/appointments", {"slot_id": self.chance.choice(slots)})
        if decided is not None and decided["status"] == "succeeded":
            self.theirs = [*self.theirs[-3:], decided["appointment_id"]]
            await self.must_show(decided["appointment_id"], "requested", "accepted", "refused", "cancelled")

    async def cancel(self, due: float) -> None:
        """Cancel the oldest appointment that one knows of; look at the list while there is none."""
        if not self.theirs:
            await self.appointments(due)
            return
        appointment_id = self.theirs.pop(0)
        decided = await self.command("cancel", f"/appointments/{appointment_id}/cancel", {"reason": "Tive um imprevisto."}, due)
        if decided is not None and decided["status"] == "succeeded":
            await self.must_show(appointment_id, "cancelled")

    # What doctors do.

    async def decide(self, due: float) -> None:
        """Accept or refuse what waits, one after another."""
        path = f"/appointments?status=requested&page_size={DECIDES_AT_MOST}"
        self.tags.pop(path, None)
        shown = await self.read("requests", path, due)
        for item in shown.json()["items"] if shown is not None else ():
            appointment_id = item["id"]
            if self.chance.random() < REFUSES:
                body = {"reason": "Estarei fora nesse dia.", "kind": "unavailable"}
                await self.command("refuse", f"/appointments/{appointment_id}/refuse", body)
                continue
            body = {"join_url": f"https://salas.healthmed.example/{appointment_id}"}
            decided = await self.command("accept", f"/appointments/{appointment_id}/accept", body)
            if decided is not None and decided["status"] == "succeeded":
                self.theirs = [*self.theirs[-3:], appointment_id]
                await self.must_show(appointment_id, "accepted", "cancelled")

    async def availability(self, due: float) -> None:
        """Look at the rules that one has put."""
        await self.read("availability", "/doctors/me/availability", due)

    async def must_show(self, appointment_id: str, *statuses: str) -> None:
        """Read what a command that succeeded did: it is there already (read your writes), unless others went on from it."""
        self.tags.pop(f"/appointments/{appointment_id}", None)
        shown = await self.read("appointment", f"/appointments/{appointment_id}")
        if shown is not None and (status := shown.json()["status"]) not in statuses:
            self.tally.wrong("read your writes", f"{appointment_id} is {status}, not {' or '.join(statuses)}")

    # What everybody does when ten slots are wanted by all.

    async def rush(self, slots: Sequence[str], due: float) -> None:
        """Ask for one of the slots, and wait until one knows."""
        await _sleep_until(due)
        body = {"slot_id": self.chance.choice(slots)}
        try:
            answer = await self.ask(request("POST", "/appointments", self.member.token, body, Idempotency_Key=str(uuid4())))
            self.tally.took(ACKNOWLEDGED, due)
            if answer.status != 202:
                self.tally.wrong("rush", answer)
                return
            self.tally.counts[ACKNOWLEDGED] += 1
            decided = await self.follow(answer, waits=True)
        except Lost as error:
            self.tally.wrong("rush", error)
            return
        if decided is not None:
            self.tally.took(ANSWERED, due)
            self.tally.counts[f"rush {_outcome(decided)}"] += 1


@dataclass(frozen=True, slots=True)
class Part:
    """What one process of the load is to do, in instants of the machine's monotonic clock."""

    host: str
    port: int
    patients: Sequence[Member]
    doctors: Sequence[Member]
    directory: Sequence[str]  # all doctors' ids
    seed: int
    begins: float  # the first connection is opened; the last one is by `measured`
    measured: float
    ends: float
    think: float
    slots: Sequence[str] = ()  # of a stampede: who wants them asks between `measured` and `ends`


def take_part(part: Part) -> Tally:
    """Play a part, with nobody else in this process."""
    return asyncio.run(_play(part))


async def _play(part: Part) -> Tally:
    tally, chance = Tally(since=part.measured), random.Random(part.seed)
    rest = (tally, part.directory)
    everybody = [
        *(Person(each, Wire(part.host, part.port), *rest, random.Random(chance.random())) for each in part.patients),
        *(Person(each, Wire(part.host, part.port), *rest, random.Random(chance.random())) for each in part.doctors),
    ]
    chance.shuffle(everybody)
    doctors = {each.id for each in part.doctors}

    def life(person: Person) -> Coroutine[None, None, None]:
        if part.slots:
            return person.rush(part.slots, chance.uniform(part.measured, part.ends))
        return person.live(DOCTORS_DO if person.member.id in doctors else PATIENTS_DO, part.think, part.ends)

    async def come(person: Person, at: float) -> None:
        await _sleep_until(at)
        try:
            await person.wire.open()
        except Lost as error:
            tally.wrong("open", error)
        await life(person)

    async def count() -> None:
        """How many connections are open at once, looked at each second of the time that is measured."""
        await _sleep_until(part.measured)
        least = len(everybody)
        while time.monotonic() < part.ends:
            least = min(least, sum(person.wire.is_open for person in everybody))
            await asyncio.sleep(1)
        tally.counts["open"] = least

    ramp = max(0.0, part.measured - part.begins) * 0.8
    arrivals = (part.begins + ramp * place / len(everybody) for place in range(len(everybody)))
    async with asyncio.TaskGroup() as group:
        group.create_task(count())
        for person, at in zip(everybody, arrivals, strict=True):
            group.create_task(come(person, at))
    for person in everybody:
        tally.counts["sent"] += person.wire.sent
        tally.counts["reopened"] += person.wire.reopened
        person.wire.close()
    return tally


def _outcome(decided: dict[str, Any]) -> str:
    told: str = decided["error"]["code"] if decided["status"] == "rejected" else decided["status"]
    return told


async def _sleep_until(instant: float) -> None:
    if (left := instant - time.monotonic()) > 0:
        await asyncio.sleep(left)


def _today() -> date:
    return datetime.now(UTC).date()
