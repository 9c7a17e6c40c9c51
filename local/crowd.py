"""People by the thousand for load tests, logged in without a password being hashed: `python -m local.within local.crowd FILE`."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from itertools import count, islice, product
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from redis import Redis
from sqlalchemy import Connection, Engine, insert, text
from uuid_utils.compat import uuid7

from domain import consents, database, identity, inbox, logs, privacy, sessions, tokens
from domain.availability import Availability, Rule
from domain.cache import Cache, changing
from domain.commands import SetAvailability
from domain.identifiers import name_key
from domain.lanes import Drainer
from domain.model import ConsentRecord, DoctorRecord, DoctorSpecialty, Person, PersonKey, SessionRecord
from domain.schedule import Role
from domain.settings import Settings, SettingsError, current
from local.servers import write_secret

PORTION: Final = 2_000  # people in one transaction
DECIDED_SECONDS: Final = 120.0
LIFE: Final = timedelta(hours=4)  # of a token: longer than any load lasts
ADDRESS: Final = "127.0.0.1"
SPECIALTIES: Final = ("cardiologia", "dermatologia", "pediatria", "psiquiatria", "ginecologia-e-obstetricia")
PRICES: Final = (12_000, 18_000, 25_000, 32_000, 45_000)
STATES: Final = ("SP", "RJ", "MG", "RS", "BA", "PE")
MORNING: Final = clock(8)

_FIRST = "Ana Bruno Carla Diego Elisa Fábio Gabriela Heitor Isabel João Karina Lucas Marina Nelson Otávia Paulo Raquel Sérgio"
_LAST = "Almeida Barros Cardoso Duarte Esteves Ferreira Gomes Henriques Lopes Martins Nogueira Oliveira Pereira Queiroz Ramos"


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody of the crowd: the id, and an access token of a session that lives."""

    id: str
    token: str


@dataclass(frozen=True, slots=True)
class Crowd:
    """Everybody who was made: doctors who are verified and have an agenda, and patients."""

    doctors: tuple[Member, ...]
    patients: tuple[Member, ...]

    def write(self, file: Path) -> None:
        """Keep them where nobody but the file's owner can read their tokens."""
        write_secret(file, json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Crowd:
        """Those that `write` kept."""
        kept = json.loads(file.read_text("utf-8"))
        return cls(*(tuple(Member(**each) for each in kept[role]) for role in ("doctors", "patients")))


def gather(engine: Engine, settings: Settings, *, doctors: int, patients: int, slots_a_day: int = 8) -> Crowd:
    """Make so many people, their data sealed as everybody's is; no password opens their accounts, only these tokens do.

    Doctors have so many half hours from Monday to Friday, made by the command that makes everybody's. Raises RuntimeError outside
    a local stack, and if the agendas are not decided in time: with workers or without, that is done here.
    """
    if not settings.local_stack:
        raise RuntimeError("a crowd is made in a local stack only")
    cache = Cache(settings, engine)
    try:
        verified = _doctors(engine, settings, doctors)
        _publish(engine, settings, cache, verified, slots_a_day)
        with changing(engine, cache) as change:
            change.touch("directory", "directory-free", "directory-dates")
    finally:
        cache.stop()
    return Crowd(verified, _patients(engine, settings, patients))


@dataclass(slots=True)
class _Portion:
    """The rows of some people, to be inserted together."""

    settings: Settings
    role: Role
    rows: dict[type, list[dict[str, Any]]]
    members: list[Member]

    def add(self, name: str) -> UUID:
        """One more person, who is logged in."""
        settings, person_id, session_id, refresh_id, now = self.settings, uuid7(), uuid7(), uuid7(), datetime.now(UTC)
        key, wrapped = privacy.new_data_key(settings.data_keys, person_id)
        email = f"{person_id.hex}@multidao.example"
        private: dict[str, str | None] = {"name": name, "email": email}
        if self.role is Role.PATIENT:
            private |= {"cpf": None, "phone": None, "birth_date": "1990-05-17", "representative": None}
        self._add(
            Person,
            id=person_id,
            role=self.role,
            email_hash=identity.email_hash(settings, email),
            private=privacy.seal(key, json.dumps(private), context=identity.PRIVATE, row_id=person_id),
            email_confirmed_at=now,
        )
        self._add(PersonKey, person_id=person_id, wrapped=wrapped)
        origin = json.dumps({"address": ADDRESS, "agent": "local.crowd"})
        self._add(
            SessionRecord,
            id=session_id,
            person_id=person_id,
            address_hash=sessions.address_hash(settings, ADDRESS),
            origin=privacy.seal(key, origin, context=sessions.ORIGIN, row_id=session_id),
            refresh_id=refresh_id,
            refreshed_at=now,
            expires_at=now + sessions.IDLE_LIFE,
        )
        claims = tokens.Claims(tokens.Type.ACCESS, person_id, session_id, self.role, uuid7(), now, now + LIFE)
        self.members.append(Member(str(person_id), tokens.mint(settings.jwt_keys, claims)))
        return person_id

    def add_patient(self, name: str) -> None:
        """A patient, who has agreed to the terms."""
        offer = consents.OFFERS[consents.TERMS]
        text_hash = hashlib.sha256(offer.text["pt-BR"].encode()).digest()
        agreed = {"kind": offer.kind, "version": offer.version, "text_hash": text_hash}
        self._add(ConsentRecord, id=uuid7(), person_id=self.add(name), **agreed)

    def add_doctor(self, name: str, place: int) -> None:
        """A doctor, who is verified; specialties, prices and states are given in turn."""
        doctor_id = self.add(name)
        self._add(
            DoctorRecord,
            id=doctor_id,
            lane=inbox.lane_of(doctor_id, self.settings.lanes),
            status="verified",
            name=name,
            search_name=name_key(name),
            crm_number=str(secrets.randbelow(9 * 10**9) + 10**9),
            crm_state=STATES[place % len(STATES)],
            price=PRICES[place % len(PRICES)],
            timezone="America/Sao_Paulo",
        )
        self._add(DoctorSpecialty, doctor_id=doctor_id, code=SPECIALTIES[place % len(SPECIALTIES)], rqe=str(10_000 + place))

    def insert(self, connection: Connection) -> None:
        """Store everybody."""
        connection.execute(text("set local transaction_timeout = 0"))
        for record, rows in self.rows.items():
            connection.execute(insert(record), rows)

    def _add(self, record: type, **columns: Any) -> None:
        self.rows.setdefault(record, []).append(columns)


def _doctors(engine: Engine, settings: Settings, number: int) -> tuple[Member, ...]:
    portion = _Portion(settings, Role.DOCTOR, {}, [])
    for place, name in enumerate(islice(_names(), number)):
        portion.add_doctor(name, place)
    if number:
        with engine.begin() as connection:
            portion.insert(connection)
    return tuple(portion.members)


def _patients(engine: Engine, settings: Settings, number: int) -> tuple[Member, ...]:
    members: list[Member] = []
    names = _names()
    while len(members) < number:
        portion = _Portion(settings, Role.PATIENT, {}, [])
        for name in islice(names, min(PORTION, number - len(members))):
            portion.add_patient(name)
        with engine.begin() as connection:
            portion.insert(connection)
        members += portion.members
    return tuple(members)


def _publish(engine: Engine, settings: Settings, cache: Cache, doctors: Sequence[Member], slots_a_day: int) -> None:
    """Put the doctors' availability, and have it decided: by this process, or by a worker that holds the lane."""
    end = clock(8 + slots_a_day // 2, slots_a_day % 2 * 30)
    put = SetAvailability(Availability(tuple(Rule(weekday, MORNING, end, 30) for weekday in range(1, 6))))
    with engine.begin() as connection:
        for doctor in doctors:
            inbox.send(connection, settings, inbox.Sender(UUID(doctor.id), Role.DOCTOR, "crowd"), put)
    deadline = time.monotonic() + DECIDED_SECONDS
    with Redis.from_url(settings.broker_url, socket_timeout=5) as broker:
        drainer = Drainer(settings, engine, cache, broker)
        while waiting := _waiting(engine):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the crowd's agendas were not decided within {DECIDED_SECONDS:.0f} seconds")
            for lane in waiting:
                drainer.drain(lane)


def _waiting(engine: Engine) -> Sequence[int]:
    """The lanes in which an availability of the crowd's waits."""
    with engine.connect() as connection:
        pending = "select distinct lane from commands where status = 'pending' and request_id = 'crowd' order by lane"
        return connection.execute(text(pending)).scalars().all()


def _names() -> Iterator[str]:
    for number in count():
        for last, first, middle in product(_LAST.split(), _FIRST.split(), reversed(_LAST.split())):
            yield f"{first} {middle} {last}" + (f" {number}" if number else "")


def main() -> int:
    """Make the crowd that the command line asks for and write it to a file; 2 for a wrong setting, 1 for what else goes wrong."""
    parser = argparse.ArgumentParser(prog="local.crowd", description="Make people for a load test of a local stack.")
    parser.add_argument("file", type=Path, help="where to write their ids and access tokens, for its owner's eyes only")
    parser.add_argument("--doctors", type=int, default=500, help="how many, 500 unless given")
    parser.add_argument("--patients", type=int, default=19_500, help="how many, 19,500 unless given")
    asked = parser.parse_args()
    try:
        settings = current()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure("WARNING")
    engine = database.connect(settings.database_url, pool_size=2)
    began = time.monotonic()
    try:
        crowd = gather(engine, settings, doctors=asked.doctors, patients=asked.patients)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        engine.dispose()
    crowd.write(asked.file)
    took = time.monotonic() - began
    print(f"{len(crowd.doctors)} doctors and {len(crowd.patients)} patients in {took:.0f} s: {asked.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
