"""`make demo`: the way of a booking through real HTTP, step by step, each request and answer shown; ends at the first wrong one.

`python -m local.demo [BASE_URL or demo.json]` uses the stack of STATE_DIR if that one answers, else a fresh one of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from local.exchange import Answer, call
from local.servers import free_port

ROOT: Final = Path(__file__).resolve().parents[1]
READY_SECONDS: Final = 90.0
STOP_SECONDS: Final = 35.0
DECIDED_SECONDS: Final = 30.0
SPECIALTY: Final = {"code": "cardiologia", "rqe": "48215"}
FIRST_PRICE: Final = {"amount": 28000, "currency": "BRL"}
PRICE: Final = {"amount": 25000, "currency": "BRL"}
NAMES: Final = (
    "Alice Bárbara Diana Elisa Flávia Isadora Júlia Larissa Natália Olívia Regina Sônia",
    "Borges Caldeira Dourado Escobar Frota Galvão Holanda Macedo Novaes Paiva Quadros Rezende",
    "Almada Bicalho Corrêa Duarte Espíndola Flores Garcez Horta Lacerda Mattos Neri Ornelas",
)
JOIN_URL: Final = "https://salas.healthmed.example/demonstracao"

Json = dict[str, Any]


class Wrong(Exception):
    """Something is not as it should be; the message is one line that says what."""


class NoStack(Exception):
    """There is no stack to show anything on; the message is one line that says why."""


@dataclass(slots=True)
class Person:
    """Somebody who takes part, and what they are logged in with."""

    role: str
    log_in: Mapping[str, str]
    token: str = ""


@dataclass(slots=True)
class Journey:
    """The steps in their order. Each leaves what the next ones need."""

    base_url: str
    staff: Person
    patient: Person  # whose log-in is a CPF
    rival: Person  # whose log-in is an e-mail address
    doctor: Person = field(init=False)
    doctor_name: str = field(init=False)
    doctor_id: str = field(init=False)
    _steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.doctor_name = " ".join(secrets.choice(each.split()) for each in NAMES)
        number = secrets.randbelow(9_000_000) + 1_000_000
        password = secrets.token_urlsafe(16)
        self.doctor = Person("doctor", {"crm": f"CRM/SP {number}", "password": password})

    def run(self) -> None:
        """Go all the way. Raises Wrong at the first step that isn't as it should be."""
        try:
            self._go()
        except (OSError, http.client.HTTPException) as error:
            raise Wrong(f"Step {self._steps}: no answer came ({error}).") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Wrong(f"Step {self._steps}: an answer is not of the contract's form ({error!r}).") from error

    def _go(self) -> None:
        self.register_and_verify()
        self.publish()
        self.log_in_as_patient()
        agenda = self.find()
        slots = self.choose(agenda, 3)
        refused, accepted = self.book(slots[0], slots[1])
        self.refuse(refused, slots[0])
        self.accept(accepted, slots[1])
        self.cancel(accepted, slots[1])
        self.race(slots[2])
        self.log_out()

    def register_and_verify(self) -> None:
        """A doctor nobody knows becomes one whom everybody finds."""
        self._step("Um médico se cadastra e a equipe o verifica", "A doctor registers and staff verifies them")
        new = {
            "name": self.doctor_name,
            "email": f"{secrets.token_hex(6)}@medicos.example",
            **self.doctor.log_in,
            "specialties": [SPECIALTY],
            "price": FIRST_PRICE,
            "bio": "Cardiologia clínica, com tempo para ouvir.",
        }
        account = self._ask(201, "POST", "/doctors", new)
        self._check(account["status"] == "pending_verification", "a new doctor must wait for verification")
        self.doctor_id = account["id"]
        self._ask(404, "GET", f"/doctors/{self.doctor_id}")
        self._log_in(self.staff)
        query = urlencode({"status": "pending_verification", "q": self.doctor_name, "page_size": 100})
        waiting = self._ask(200, "GET", f"/staff/doctors?{query}", by=self.staff)["items"]
        self._check(self.doctor_id in [each["id"] for each in waiting], "staff must see who waits for verification")
        path = f"/doctors/{self.doctor_id}/verification"
        verified = self._ask(200, "POST", path, {"decision": "verify"}, by=self.staff)
        self._check(verified["status"] == "verified", "the doctor must be verified now")

    def publish(self) -> None:
        """The doctor says when they work and what they charge."""
        self._step(
            "O médico entra pelo CRM, publica a disponibilidade e o preço",
            "The doctor logs in by CRM, publishes availability and a price",
        )
        self._log_in(self.doctor)
        rules = [{"weekday": day, "start": "08:00", "end": "18:00", "slot_minutes": 30} for day in range(1, 8)]
        availability = {"rules": rules, "exceptions": [], "timezone": "America/Sao_Paulo"}
        decided = self._command("PUT", "/doctors/me/availability", availability, by=self.doctor)
        self._check(decided["result"]["slots_open"] > 0, "the availability must have made slots")
        account = self._ask(200, "PATCH", "/doctors/me", {"price": PRICE}, by=self.doctor)
        self._check(account["price"] == PRICE, "the new price must apply at once")

    def log_in_as_patient(self) -> None:
        """One patient by CPF and then by e-mail, to the same account."""
        self._step("O paciente entra pelo CPF e pelo e-mail", "The patient logs in by CPF and by e-mail")
        self._log_in(self.patient)
        account = self._ask(200, "GET", "/me", by=self.patient)
        self._check(account["role"] == "patient", "the account must be a patient's")
        self._ask(204, "POST", "/auth/logout", by=self.patient)
        by_email = {"login": account["email"], "password": self.patient.log_in["password"]}
        self._log_in(Person("patient", {**by_email, "password": "não é esta a senha"}), status=401)
        self.patient.log_in = by_email
        self._log_in(self.patient)
        again = self._ask(200, "GET", "/me", by=self.patient)
        self._check(again["id"] == account["id"], "both log-ins must lead to the same account")

    def find(self) -> Json:
        """By specialty to the doctor, and on to the agenda."""
        self._step(
            "O paciente procura por especialidade e abre a agenda", "The patient searches by specialty and opens the agenda"
        )
        self._ask(200, "GET", "/specialties")
        query = urlencode({"specialty": SPECIALTY["code"], "q": self.doctor_name, "sort": "next_slot", "page_size": 100})
        items = self._ask(200, "GET", f"/doctors?{query}")["items"]
        found = next((each for each in items if each["id"] == self.doctor_id), None)
        self._check(found is not None, "the search must find the doctor")
        assert found is not None
        self._check(found["price"] == PRICE, "the search must show the price as published")
        self._check(found["next_slot_at"] is not None, "the search must show the next free slot")
        agenda = self._agenda()
        self._check(agenda["price"] == PRICE, "the agenda must show the price as published")
        return agenda

    def choose(self, agenda: Json, count: int) -> list[Json]:
        """So many slots at which both patients are free; not of the first, which time may take away meanwhile."""
        self._log_in(self.rival)
        taken: list[tuple[datetime, datetime]] = []
        for person in (self.patient, self.rival):
            path = "/appointments?status=requested,accepted&page_size=100"
            taken += [_times(each) for each in self._ask(200, "GET", path, by=person)["items"]]
        chosen: list[Json] = []
        slots = [slot for day in agenda["days"] for slot in day["slots"]]
        for slot in slots[len(slots) // 2 :]:
            starts_at, ends_at = _times(slot)
            if len(chosen) < count and not any(starts_at < end and start < ends_at for start, end in taken):
                chosen.append(slot)
        self._check(len(chosen) == count, f"the agenda must have {count} slots that suit both patients")
        return chosen

    def book(self, first: Json, second: Json) -> tuple[str, str]:
        """Two requests; the first is sent twice, as after a broken connection, and is still one."""
        self._step("O paciente pede dois horários e acompanha os pedidos", "The patient requests two slots and polls")
        key = secrets.token_hex(8)
        wish = {"slot_id": first["id"], "notes": "Palpitações à noite.", "price": PRICE}
        begun = self._ask(202, "POST", "/appointments", wish, by=self.patient, headers={"Idempotency-Key": key})
        again = self._ask(202, "POST", "/appointments", wish, by=self.patient, headers={"Idempotency-Key": key})
        self._check(again["id"] == begun["id"], "the same key must answer the same command")
        one = self._decided(begun["id"], self.patient)
        self._check(one["status"] == "succeeded", "the first request must succeed")
        two = self._command("POST", "/appointments", {"slot_id": second["id"]}, by=self.patient)
        for appointment_id in (one["appointment_id"], two["appointment_id"]):
            self._check(self._appointment(appointment_id)["status"] == "requested", "the appointment must be requested")
        for slot in (first, second):
            self._check(not self._is_open(slot), "a requested slot must have left the agenda")
        return one["appointment_id"], two["appointment_id"]

    def refuse(self, appointment_id: str, slot: Json) -> None:
        """The slot is free again."""
        self._step("O médico recusa um pedido, dizendo por quê", "The doctor refuses one request, saying why")
        waiting = self._ask(200, "GET", "/appointments?status=requested", by=self.doctor)["items"]
        self._check(appointment_id in [each["id"] for each in waiting], "the doctor must see the request")
        reason = "Neste caso é melhor uma consulta presencial."
        path = f"/appointments/{appointment_id}/refuse"
        self._command("POST", path, {"reason": reason, "kind": "in_person_needed"}, by=self.doctor)
        refused = self._appointment(appointment_id)
        self._check(refused["status"] == "refused", "the appointment must be refused")
        self._check(refused["reason"] == reason, "the patient must read the reason")
        self._check(self._is_open(slot), "a refused request must free its slot")

    def accept(self, appointment_id: str, slot: Json) -> None:
        """Both see where the consultation takes place."""
        self._step("O médico aceita o outro pedido", "The doctor accepts the other request")
        self._command("POST", f"/appointments/{appointment_id}/accept", {"join_url": JOIN_URL}, by=self.doctor)
        accepted = self._appointment(appointment_id)
        self._check(accepted["status"] == "accepted", "the appointment must be accepted")
        self._check(accepted["join_url"] == JOIN_URL, "the patient must see where the consultation takes place")
        self._check(accepted["price"] == PRICE, "the price must be the one at booking")
        self._check(
            [each["status"] for each in accepted["history"]] == ["requested", "accepted"], "the history must tell both steps"
        )
        self._check(not self._is_open(slot), "an accepted slot must not be in the agenda")
        self._ask(404, "GET", f"/appointments/{appointment_id}", by=self.rival)

    def cancel(self, appointment_id: str, slot: Json) -> None:
        """Without a reason nothing happens; with one the slot is free again."""
        self._step("O paciente cancela, com justificativa", "The patient cancels with a justification")
        path = f"/appointments/{appointment_id}/cancel"
        problem = self._ask(422, "POST", path, {"reason": ""}, by=self.patient)
        self._check("reason" in problem["errors"], "the problem must name the missing reason")
        self._command("POST", path, {"reason": "Tive um imprevisto no trabalho."}, by=self.patient)
        cancelled = self._appointment(appointment_id)
        self._check(cancelled["status"] == "cancelled", "the appointment must be cancelled")
        self._check(cancelled["history"][-1]["by"] == "patient", "the history must say who cancelled")
        self._check(self._is_open(slot), "a cancelled appointment must free its slot")
        self._command("POST", f"/appointments/{appointment_id}/accept", by=self.doctor, expected="invalid_transition")

    def race(self, slot: Json) -> None:
        """Both at the same instant; one gets it, the other is told so."""
        self._step("Dois pacientes disputam um horário", "Two patients race for one slot")
        racers = (self.patient, self.rival)
        start = threading.Barrier(len(racers))

        def run(person: Person) -> Answer:
            start.wait()
            return self._call("POST", "/appointments", {"slot_id": slot["id"]}, by=person)

        with ThreadPoolExecutor(len(racers)) as threads:
            answers = list(threads.map(run, racers))
        sent = [self._shown(answer, 202) for answer in answers]
        decided = [self._decided(command["id"], person) for command, person in zip(sent, racers, strict=True)]
        told = sorted(each["error"]["code"] if each["status"] == "rejected" else each["status"] for each in decided)
        self._check(told == ["slot_taken", "succeeded"], f"one must win and the other be told slot_taken, not {told}")
        winner, won = next(pair for pair in zip(racers, decided, strict=True) if pair[1]["status"] == "succeeded")
        path = f"/appointments/{won['appointment_id']}/cancel"
        self._command("POST", path, {"reason": "Fim da demonstração."}, by=winner)

    def log_out(self) -> None:
        """Their tokens are dead at once."""
        self._step("Todos saem", "Everybody logs out")
        for person in (self.patient, self.rival, self.doctor, self.staff):
            self._ask(204, "POST", "/auth/logout", by=person)
        self._ask(401, "GET", "/me", by=self.patient)

    def _step(self, portuguese: str, english: str) -> None:
        self._steps += 1
        print(f"\n━━ {self._steps}. {portuguese}\n     {english}\n", flush=True)

    def _log_in(self, person: Person, status: int = 200) -> None:
        answer = self._ask(status, "POST", f"/auth/{person.role}", person.log_in)
        if status == 200:
            person.token = answer["access_token"]

    def _agenda(self) -> Json:
        """The doctor's next days; asked again with its ETag, they have not changed."""
        path = f"/doctors/{self.doctor_id}/agenda?days=14"
        answer = self._call("GET", path)
        agenda = self._shown(answer, 200)
        self._ask(304, "GET", path, headers={"If-None-Match": answer.headers.get("ETag", "")})
        return agenda

    def _is_open(self, slot: Json) -> bool:
        """Whether the agenda of its day shows a slot."""
        day = slot["starts_at"][:10]
        agenda = self._ask(200, "GET", f"/doctors/{self.doctor_id}/agenda?from={day}&days=1")
        return slot["id"] in [each["id"] for each in agenda["days"][0]["slots"]]

    def _appointment(self, appointment_id: str) -> Json:
        return self._ask(200, "GET", f"/appointments/{appointment_id}", by=self.patient)

    def _command(self, method: str, path: str, body: Any = None, *, by: Person, expected: str = "succeeded") -> Json:
        """Send a command and wait for its decision: `succeeded`, or the code of the rejection that is expected."""
        sent = self._ask(202, method, path, body, by=by)
        decided = self._decided(sent["id"], by)
        told = decided["error"]["code"] if decided["status"] == "rejected" else decided["status"]
        self._check(told == expected, f"{method} {path} must be decided as {expected}, not {told}")
        return decided

    def _decided(self, command_id: str, by: Person) -> Json:
        deadline = time.monotonic() + DECIDED_SECONDS
        while True:
            command = self._ask(200, "GET", f"/commands/{command_id}", by=by, headers={"Prefer": "wait=10"})
            if command["status"] != "pending":
                return command
            self._check(time.monotonic() < deadline, "the command must be decided in time")

    def _ask(
        self,
        status: int,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: Person | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        return self._shown(self._call(method, path, body, by=by, headers=headers), status)

    def _call(
        self, method: str, path: str, body: Any = None, *, by: Person | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        token = by.token if by else None
        return call(self.base_url, method, f"/api/v1{path}", body, token=token, headers=headers)

    def _shown(self, answer: Answer, status: int) -> Json:
        print(answer.shown, end="\n\n", flush=True)
        self._check(answer.status == status, f"the answer must be {status}, not {answer.status}")
        return answer.body if isinstance(answer.body, dict) else {}

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Wrong(f"Step {self._steps}: {otherwise}.")


def main(arguments: list[str]) -> int:
    """Go the journey; the exit code is 1 for a step that isn't as it should be, and 2 without a stack to go it on."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with _stack(arguments[0] if arguments else "") as demo:
            print(f"Health&Med: {demo['base_url']}")
            journey_of(demo).run()
    except (NoStack, Wrong) as error:
        print(f"✗ {error}", file=sys.stderr)
        return 2 if isinstance(error, NoStack) else 1
    except KeyboardInterrupt:
        return 130
    print("✓ Tudo certo: cada passo foi como devia. / All is well: every step was as it should be.")
    return 0


def journey_of(demo: Json) -> Journey:
    """The journey of the demonstration's first people."""
    by_cpf = next(each for each in demo["patients"] if "@" not in each["login"])
    by_email = next(each for each in demo["patients"] if "@" in each["login"])
    staff, patient, rival = (
        Person(role, {"login": each["login"], "password": each["password"]})
        for role, each in (("staff", demo["staff"][0]), ("patient", by_cpf), ("patient", by_email))
    )
    return Journey(demo["base_url"], staff, patient, rival)


@contextlib.contextmanager
def _stack(given: str) -> Iterator[Json]:
    """What `demo.json` says of a stack that answers: the given one, else the one of STATE_DIR, else a fresh one."""
    is_address = given.startswith(("http://", "https://"))
    file = Path(given) if given and not is_address else Path(os.environ.get("STATE_DIR") or ".state") / "demo.json"
    demo = _read(file)
    if demo and is_address:
        demo["base_url"] = given.rstrip("/")
    if demo and _answers(demo["base_url"]):
        yield demo
    elif given:
        raise NoStack(f"No stack answers at {demo['base_url']}." if demo else f"{file} is not there: its log-ins are needed.")
    else:
        with _fresh_stack() as demo:
            yield demo


def _read(file: Path) -> Json | None:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NoStack(f"{file} can't be read: {error}.") from None


def _answers(base_url: str) -> bool:
    try:
        return call(base_url, "GET", "/healthz").status == 200
    except (OSError, http.client.HTTPException):
        return False


@contextlib.contextmanager
def _fresh_stack() -> Iterator[Json]:
    """A stack in a folder of its own, which ends with the demonstration."""
    print("No stack is running, so one is started, and stopped at the end ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="healthmed-demo-") as folder:
        state, printed = Path(folder) / "state", Path(folder) / "printed"
        environ = {**os.environ, "STATE_DIR": str(state), "PORT": str(free_port())}
        with printed.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-m", "local.up"], cwd=ROOT, env=environ, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not (demo := _read(state / "demo.json")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NoStack(f"The stack did not start: {printed.read_text(errors='replace').strip()}")
                time.sleep(0.1)
            yield demo
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()


def _times(each: Json) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(each["starts_at"]), datetime.fromisoformat(each["ends_at"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
