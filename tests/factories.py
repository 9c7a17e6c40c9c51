"""People who are registered and logged in, made without a request: for tests that are about something else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from itertools import count
from typing import Any
from uuid import UUID

from redis import Redis
from sqlalchemy import Engine, text

from domain import identity, passwords, sessions
from domain.cache import Cache
from domain.commands import Accept, Book
from domain.identifiers import Crm
from domain.identity import NewDoctor, NewPatient
from domain.lanes import Drainer
from domain.schedule import Role
from domain.settings import Settings
from tests import rows

PASSWORD = "uma senha bem comprida"

_numbers = count(1)
_hashed: list[str] = []


def cpf(number: int | None = None) -> str:
    """A well-formed CPF of 11 digits; another one with each call, unless a number is given."""
    digits = [int(digit) for digit in f"{next(_numbers) + 100_000_000 if number is None else number:09}"]
    for _ in range(2):
        weighed = sum(weight * digit for weight, digit in zip(range(len(digits) + 1, 1, -1), digits, strict=True))
        digits.append((10 * weighed) % 11 % 10)
    return "".join(map(str, digits))


def password_hash() -> str:
    """The hash of PASSWORD, made once: hashing is slow on purpose."""
    if not _hashed:
        _hashed.append(passwords.hash_password(PASSWORD))
    return _hashed[0]


def patient_body(**values: Any) -> dict[str, Any]:
    """What somebody registers with as a patient; a value of None leaves its field out."""
    number = next(_numbers)
    body = {
        "name": "Ana Souza",
        "email": f"ana.souza{number}@example.com",
        "cpf": cpf(),
        "password": PASSWORD,
        "birth_date": "1990-05-17",
        "accepts_terms": True,
        **values,
    }
    return {name: value for name, value in body.items() if value is not None}


def doctor_body(**values: Any) -> dict[str, Any]:
    """What somebody registers with as a doctor; a value of None leaves its field out."""
    number = next(_numbers)
    body = {
        "name": "Bruno Lima",
        "email": f"bruno.lima{number}@example.com",
        "crm": f"{100000 + number}/SP",
        "password": PASSWORD,
        "specialties": [{"code": "cardiologia", "rqe": "12345"}],
        "price": {"amount": 25000, "currency": "BRL"},
        **values,
    }
    return {name: value for name, value in body.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Someone:
    """A person who is logged in."""

    id: UUID
    login: str
    access: str
    refresh: str

    @property
    def headers(self) -> dict[str, str]:
        """What their requests carry."""
        return bearer(self.access)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True, slots=True)
class Accounts:
    """Registers people and logs them in; all have PASSWORD."""

    engine: Engine
    settings: Settings
    cache: Cache
    broker: Redis

    def decide(self) -> None:
        """Have every waiting command decided, as a worker does."""
        drainer = Drainer(self.settings, self.engine, self.cache, self.broker)
        with self.engine.connect() as connection:
            pending = "select distinct lane from commands where status = 'pending' and lane >= 0"
            waiting = connection.execute(text(pending)).scalars().all()
        for lane in waiting:
            drainer.drain(lane)

    def appointment(self, doctor: Someone, patient: Someone, *, hours: float = 0, accepted: bool = False) -> UUID:
        """An appointment of tomorrow, so many hours after noon in UTC; its id."""
        with self.engine.begin() as connection:
            slot_id = rows.add_slot(connection, doctor.id, rows.tomorrow(hours))
            rows.send(connection, self.settings, patient.id, Book(slot_id))
        self.decide()
        with self.engine.begin() as connection:
            appointment_id: UUID = connection.execute(
                text("select id from appointments where slot_id = :id"), {"id": slot_id}
            ).scalar_one()
            if accepted:
                rows.send(connection, self.settings, doctor.id, Accept(appointment_id), Role.DOCTOR)
        self.decide()
        return appointment_id

    def patient(self, **values: Any) -> Someone:
        """A patient."""
        number = next(_numbers)
        new = NewPatient(
            **{
                "name": "Ana Souza",
                "email": f"ana{number}@example.com",
                "cpf": cpf(),
                "password": PASSWORD,
                "birth_date": date(1990, 5, 17),
                **values,
            }
        )
        with self.engine.begin() as connection:
            person_id = identity.insert_patient(connection, self.settings, new, password_hash())
        return self.logged_in(person_id, Role.PATIENT, new.email)

    def doctor(self, *, status: str = "verified", **values: Any) -> Someone:
        """A doctor, verified unless said otherwise."""
        number = next(_numbers)
        new = NewDoctor(
            **{
                "name": "Bruno Lima",
                "email": f"bruno{number}@example.com",
                "crm": Crm(str(200_000 + number), "", "SP"),
                "password": PASSWORD,
                "price": 25000,
                **values,
            }
        )
        with self.engine.begin() as connection:
            person_id = identity.insert_doctor(connection, self.settings, new, password_hash())
            connection.execute(text("update doctors set status = :status where id = :id"), {"status": status, "id": person_id})
        return self.logged_in(person_id, Role.DOCTOR, str(new.crm))

    def staff(self) -> Someone:
        """Somebody of the staff."""
        login = f"equipe{next(_numbers)}@healthmed.example"
        person_id = identity.create_staff(self.engine, self.settings, name="Célia Rocha", login=login, password=PASSWORD)
        return self.logged_in(person_id, Role.STAFF, login)

    def logged_in(self, person_id: UUID, role: Role, login: str) -> Someone:
        """Another session of somebody who is registered."""
        origin = sessions.Origin("127.0.0.1", "tests")
        with self.engine.begin() as connection:
            pair = sessions.open_session(connection, self.settings, person_id, role, origin)
        return Someone(person_id, login, pair.access, pair.refresh)
