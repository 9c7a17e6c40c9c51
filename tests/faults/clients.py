"""A load of real clients over HTTP: patients and doctors who book, decide, cancel, edit and read, and write down all they see."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from local.crowd import Crowd, Member
from tests.faults.history import Event, History

# What a stack under such a load needs besides the defaults: its patients ask for much at a time.
SETTINGS: Final = {"RATE_LIMITS": "off", "MAX_OPEN_REQUESTS": "1000", "MAX_OPEN_REQUESTS_PER_DOCTOR": "1000"}

API: Final = "/api/v1"
TIMEOUT_SECONDS: Final = 10.0  # of a call, beyond what it asks to wait
HELD_SECONDS: Final = 2  # `Prefer: wait`
DAYS: Final = 7  # of an agenda, from the day after tomorrow on: all that anybody books
HOT: Final = 4  # so many slots of each doctor are wanted by everybody
PAUSE_SECONDS: Final = 0.25  # before a call is made again that nobody knows the end of
REASON: Final = {"reason": "Tive um imprevisto"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    etag: str | None
    degraded: bool  # marked as given while the database can't be reached
    body: Any


@dataclass(frozen=True, slots=True)
class Booked:
    """An appointment that was told to somebody, and who may act on it."""

    id: str
    patient: Member
    doctor: Member


@dataclass(slots=True)
class Shared:
    """What the clients of a load tell each other, so that they get into each other's way."""

    appointments: list[Booked] = field(default_factory=list)
    slots: dict[str, list[str]] = field(default_factory=dict)  # of each doctor, as the agenda last showed them
    added: dict[str, list[str]] = field(default_factory=dict)  # slots of each doctor's that were added by hand
    bookings: int = 0  # acknowledged
    gave_up: int = 0  # commands that no answer came to, however often they were sent
    lock: threading.Lock = field(default_factory=threading.Lock)


class Load:
    """Clients in threads, 16 unless told otherwise. What each one tries comes from `seed`; how they meet does not.

    `patience` is for how many seconds a client sends a command, and asks what became of it, before it gives up.
    """

    def __init__(
        self, base_url: str, crowd: Crowd, history: History, seed: int, clients: int = 16, *, patience: float = 40.0
    ) -> None:
        self.shared = Shared()
        self._stopping = threading.Event()
        self._failed: list[BaseException] = []
        self._rate: float | None = None
        run = uuid4().hex[:6]  # loads of one history must not be taken for each other
        self._clients = [
            _Client(self.shared, base_url, crowd, history, random.Random(f"{seed} {number}"), f"{run}-{number}", patience)
            for number in range(clients)
        ]
        self._threads: list[threading.Thread] = []

    def start(self, *, rate: float | None = None) -> None:
        """Let the clients begin; `rate` is how many things they do a second, all of them together (None: all they can)."""
        self._stopping.clear()
        self._rate = rate and rate / len(self._clients)
        self._threads = [threading.Thread(target=self._run, args=[client], daemon=True) for client in self._clients]
        for thread in self._threads:
            thread.start()

    def stop(self, patience: float = 60.0) -> None:
        """Let each client end what it has begun, and come back when all have. Raises what a client raised that is no fault."""
        self._stopping.set()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError(f"a client did not come to its end in {patience:.0f} seconds")
        if self._failed:
            raise self._failed[0]

    def run(self, *, bookings: int | None = None, seconds: float | None = None, rate: float | None = None) -> None:
        """Start, wait until so many more bookings are acknowledged or so many seconds have passed, and stop."""
        self.start(rate=rate)
        self.wait(bookings=bookings, seconds=seconds)
        self.stop()

    def wait(self, *, bookings: int | None = None, seconds: float | None = None) -> None:
        """Wait until so many more bookings are acknowledged or so many seconds have passed, whichever comes first."""
        until = time.monotonic() + (seconds if seconds is not None else 3600)
        enough = self.shared.bookings + bookings if bookings is not None else None
        while time.monotonic() < until and not self._failed and (enough is None or self.shared.bookings < enough):
            time.sleep(0.02)

    def _run(self, client: _Client) -> None:
        due = time.monotonic()
        try:
            while not self._stopping.is_set():
                if self._rate is not None:
                    due = max(due + client.chance.expovariate(self._rate), time.monotonic() - 1)
                    if self._stopping.wait(max(0.0, due - time.monotonic())):
                        break
                client.act()
        except BaseException as error:
            self._failed.append(error)
        finally:
            client.close()


class _Client:
    """One client: it does one thing after another, in the name of anybody."""

    def __init__(
        self, shared: Shared, base_url: str, crowd: Crowd, history: History, chance: random.Random, process: str, patience: float
    ) -> None:
        self.chance = chance
        self._shared = shared
        self._crowd = crowd
        self._history = history
        self._process = process
        self._patience = patience
        place = urlsplit(base_url)
        self._lines = [_Line(place.hostname or "", place.port or 80) for _ in range(2)]
        self._numbers = itertools.count()
        self._from = (datetime.now(UTC) + timedelta(days=2)).date()
        self._actions: Sequence[tuple[int, Callable[[], object]]] = (
            (50, self._book),
            (14, self._decide),
            (10, self._cancel),
            (6, self._reschedule),
            (14, self._look),
            (4, self._edit_slots),
            (2, self._edit_availability),
        )

    def act(self) -> None:
        """Do the next thing."""
        weights, actions = zip(*self._actions, strict=True)
        self.chance.choices(actions, weights)[0]()

    def close(self) -> None:
        """Hang up."""
        for line in self._lines:
            line.close()

    # What people do.

    def _book(self) -> None:
        patient, doctor = self.chance.choice(self._crowd.patients), self.chance.choice(self._crowd.doctors)
        if (slot := self._some_slot(doctor)) is None:
            return
        body = {"slot_id": slot}
        if self.chance.random() < 0.5:  # the API answers plain bookings another way
            body["notes"] = "Dor de cabeça há três dias."
        command = self._command("book", patient, "POST", "/appointments", body, doctor=doctor.id, slot=slot)
        if command is not None and command["status"] == "succeeded":
            booked = Booked(command["appointment_id"], patient, doctor)
            with self._shared.lock:
                self._shared.appointments.append(booked)
            self._read_own(booked)

    def _decide(self) -> None:
        if (booked := self._some_appointment()) is not None:
            met = {"join_url": "https://salas.example/1"}
            what, body = self.chance.choice([("accept", met), ("accept", {}), ("refuse", REASON)])
            self._act_on(what, booked, booked.doctor, body)

    def _cancel(self) -> None:
        if (booked := self._some_appointment()) is not None:
            self._act_on("cancel", booked, self.chance.choice([booked.patient, booked.doctor]), REASON)

    def _reschedule(self) -> None:
        booked = self._some_appointment()
        if booked is not None and (slot := self._some_slot(booked.doctor)) is not None:
            self._act_on("reschedule", booked, booked.patient, {"slot_id": slot}, slot=slot)

    def _act_on(self, what: str, booked: Booked, who: Member, body: Any, slot: str | None = None) -> None:
        path = f"/appointments/{booked.id}/{what}"
        command = self._command(what, who, "POST", path, body, doctor=booked.doctor.id, appointment=booked.id, slot=slot)
        if command is not None and command["status"] == "succeeded":
            if what in ("refuse", "cancel"):
                with self._shared.lock:
                    self._shared.appointments = [each for each in self._shared.appointments if each.id != booked.id]
            self._read_own(booked)

    def _look(self) -> None:
        if self.chance.random() < 0.5 and (booked := self._some_appointment()) is not None:
            self._read_own(booked)
        else:
            self._read_agenda(self.chance.choice(self._crowd.doctors))

    def _edit_slots(self) -> None:
        """Add a slot between those of the rules, or take one away that was added."""
        doctor = self.chance.choice(self._crowd.doctors)
        with self._shared.lock:
            added = self._shared.added.setdefault(doctor.id, [])
            slot = added.pop() if added and self.chance.random() < 0.4 else None
        if slot is not None:
            self._command("withdraw_slot", doctor, "DELETE", f"/doctors/me/slots/{slot}", None, doctor=doctor.id, slot=slot)
        else:
            day = self._from + timedelta(days=self.chance.randrange(DAYS))
            begin = datetime(day.year, day.month, day.day, 21, tzinfo=UTC) + timedelta(minutes=15 * self.chance.randrange(12))
            body = {"starts_at": begin.isoformat(), "ends_at": (begin + timedelta(minutes=15)).isoformat()}
            command = self._command("add_slot", doctor, "POST", "/doctors/me/slots", body, doctor=doctor.id)
            if command is not None and command["status"] == "succeeded":
                with self._shared.lock:
                    added.append(command["result"]["slot_id"])
        self._read_agenda(doctor)

    def _edit_availability(self) -> None:
        """Put the availability anew as it is, but for an exception far off by which readers tell one edit from another."""
        doctor = self.chance.choice(self._crowd.doctors)
        answer = self._call("availability", doctor, "GET", "/doctors/me/availability", doctor=doctor.id)
        if answer is None or answer.status != 200:
            return
        begin = datetime(2040, 1, 1, tzinfo=UTC) + timedelta(minutes=self.chance.randrange(10**7))
        exception = {"starts_at": begin.isoformat(), "ends_at": (begin + timedelta(minutes=1)).isoformat()}
        body = {"rules": answer.body["rules"], "exceptions": [exception]}
        self._command("set_availability", doctor, "PUT", "/doctors/me/availability", body, doctor=doctor.id)
        self._call("availability", doctor, "GET", "/doctors/me/availability", doctor=doctor.id)

    # What they read.

    def _read_own(self, booked: Booked) -> None:
        """What those see whom an appointment concerns, one thing or another."""
        who = self.chance.choice([booked.patient, booked.patient, booked.doctor])
        match self.chance.randrange(3):
            case 0:
                self._call("appointment", who, "GET", f"/appointments/{booked.id}", appointment=booked.id)
            case 1:
                self._call("appointments", who, "GET", "/appointments?page_size=100", doctor=booked.doctor.id)
            case _:
                self._read_agenda(booked.doctor)

    def _read_agenda(self, doctor: Member) -> None:
        path = f"/doctors/{doctor.id}/agenda?from={self._from}&days={DAYS}"
        answer = self._call("agenda", None, "GET", path, doctor=doctor.id)
        if answer is not None and answer.status == 200:
            self._shared.slots[doctor.id] = [slot["id"] for day in answer.body["days"] for slot in day["slots"]]

    def _some_slot(self, doctor: Member) -> str | None:
        """One of a doctor's slots, as they were when somebody last looked: often one that everybody wants."""
        if doctor.id not in self._shared.slots or self.chance.random() < 0.1:
            self._read_agenda(doctor)
        slots = self._shared.slots.get(doctor.id)
        if not slots:
            return None
        return self.chance.choice(slots[:HOT] if self.chance.random() < 0.5 else slots)

    def _some_appointment(self) -> Booked | None:
        with self._shared.lock:
            return self.chance.choice(self._shared.appointments) if self._shared.appointments else None

    # How a command is sent, by whoever wants to be sure of it.

    def _command(self, f: str, who: Member, method: str, path: str, body: Any, **about: str | None) -> dict[str, Any] | None:
        """Send a command until it is acknowledged, under one key, and read it until it is decided; None if it never was."""
        about["key"] = uuid4().hex
        if self.chance.random() < 0.05:  # two at once
            self._call(f, who, method, path, body, twice=True, **about)
        deadline = time.monotonic() + self._patience
        while (answer := self._call(f, who, method, path, body, **about)) is None or answer.status >= 500:
            if time.monotonic() > deadline:
                with self._shared.lock:
                    self._shared.gave_up += 1
                return None
            time.sleep(PAUSE_SECONDS * self.chance.uniform(0.5, 1.5))
        if answer.status != 202:
            return None
        if f == "book":
            with self._shared.lock:
                self._shared.bookings += 1
        if self.chance.random() < 0.05:  # once more, however late
            self._call(f, who, method, path, body, **about)
        return self._decided(answer.body, who, deadline)

    def _decided(self, command: dict[str, Any], who: Member, deadline: float) -> dict[str, Any] | None:
        held = {"Prefer": f"wait={HELD_SECONDS}"} if self.chance.random() < 0.8 else {}
        while command["status"] == "pending":
            if time.monotonic() > deadline:
                return None
            answer = self._call("command", who, "GET", f"/commands/{command['id']}", headers=held, command=command["id"])
            if answer is None or answer.status != 200:
                time.sleep(PAUSE_SECONDS)
            else:
                command = answer.body
            if not held:
                time.sleep(0.05)
        return command

    def _call(
        self,
        f: str,
        who: Member | None,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        twice: bool = False,
        **about: str | None,
    ) -> Answer | None:
        """One call and what came of it, written down; with `twice`, the same a second time while the first is under way."""
        about["actor"] = None if who is None else who.id
        sent = dict(headers or {})
        if who is not None:
            sent["Authorization"] = f"Bearer {who.token}"
        if "key" in about:
            sent["Idempotency-Key"] = str(about["key"])
        payload = None if body is None else json.dumps(body).encode()
        if payload is not None:
            sent["Content-Type"] = "application/json"
        calls = []
        for line in self._lines[: 1 + twice]:
            op = f"{self._process}-{next(self._numbers)}"
            begun = Event(op=op, process=self._process, kind="invoke", f=f, t=time.monotonic(), **about)  # type: ignore[arg-type]
            self._history.add(begun)
            calls.append((line, begun, line.send(method, API + path, payload, {**sent, "X-Request-ID": op})))
        answers = [self._ended(line, begun, error, about) for line, begun, error in calls]
        return answers[0]

    def _ended(self, line: _Line, begun: Event, error: str | None, about: dict[str, str | None]) -> Answer | None:
        answer = error or line.receive()
        known: dict[str, Any] = {"op": begun.op, "process": begun.process, "f": begun.f, "t": time.monotonic(), **about}
        if isinstance(answer, str):
            self._history.add(Event(kind="info", detail={"error": answer}, **known))
            return None
        known |= {"status": answer.status, "etag": answer.etag}
        if answer.status >= 400:
            code = answer.body.get("code") if isinstance(answer.body, dict) else None
            self._history.add(Event(kind="info" if answer.status >= 500 else "fail", detail={"code": code}, **known))
        else:
            if isinstance(answer.body, dict) and "kind" in answer.body:
                known["command"] = answer.body["id"]
            seen = _seen(begun.f, answer.body) | ({"degraded": True} if answer.degraded else {})
            self._history.add(Event(kind="ok", detail=seen, **known))
        return answer


def _seen(f: str, body: Any) -> dict[str, Any]:
    """What an answer showed, as the checker needs it."""
    match f:
        case "agenda":
            days = body["days"]
            return {"days": [day["date"] for day in days], "slots": [slot["id"] for day in days for slot in day["slots"]]}
        case "appointment":
            return {"steps": [step["status"] for step in body["history"]], "status": body["status"]}
        case "appointments":
            return {"items": {each["id"]: each["status"] for each in body["items"]}, "total": body["total"]}
        case "availability":
            return {"exceptions": [each["starts_at"] for each in body["exceptions"]]}
    told = {name: body[name] for name in ("status", "appointment_id") if name in body}
    return {**told, "code": body["error"]["code"]} if "error" in body else told


class _Line:
    """One keep-alive connection, opened when it is needed."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._connection: http.client.HTTPConnection | None = None

    def send(self, method: str, path: str, payload: bytes | None, headers: dict[str, str]) -> str | None:
        """Send a request; what went wrong, if something did."""
        if self._connection is not None and _was_closed(self._connection.sock):
            self.close()  # by the server, since nobody said anything: what is sent there would be lost
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self._place, timeout=TIMEOUT_SECONDS)
                self._connection.connect()
                self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.request(method, path, payload, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return type(error).__name__
        return None

    def receive(self) -> Answer | str:
        """The answer to what was sent, or what went wrong."""
        assert self._connection is not None
        try:
            response = self._connection.getresponse()
            received = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return type(error).__name__
        if response.will_close:
            self.close()
        body = json.loads(received) if received and "json" in (response.headers.get("Content-Type") or "") else None
        return Answer(response.status, response.headers.get("ETag"), "Warning" in response.headers, body)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _was_closed(idle: socket.socket) -> bool:
    """Whether the other side has hung up."""
    return bool(select.select([idle], [], [], 0)[0])
