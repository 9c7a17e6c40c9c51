"""The demonstration: whole, well formed, decided by the rules, made once, and silent about its past."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from domain import identity, passwords
from domain.database import connect
from domain.identifiers import parse_cpf, parse_crm
from domain.schedule import AppointmentStatus
from domain.settings import Settings
from local import story
from local.people import PATIENTS, PENDING, SUSPENDED, VERIFIED
from local.seed import seed
from local.servers import Broker, Cache, Postgres
from tests.conftest import start_again

ROOT = Path(__file__).resolve().parents[2]


class Database:
    """The database, as whoever may see everything."""

    def __init__(self, postgres: Postgres) -> None:
        self._url = postgres.superuser_url

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self._url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        finally:
            connection.close()

    def value(self, query: str) -> Any:
        ((value,),) = self.rows(query)
        return value

    def counts(self) -> dict[str, int]:
        tables = self.rows("select tablename from pg_tables where schemaname = 'public'")
        return {name: self.value(f'select count(*) from "{name}"') for (name,) in tables}


@dataclass
class Seeded:
    """What one demonstration is, read before the next test empties the database."""

    log_ins: dict[str, Any]
    again: dict[str, Any]
    counts: dict[str, int]
    counts_again: dict[str, int]
    facts: dict[str, list[tuple[Any, ...]]]


FACTS = {
    "statuses": "select status, count(*) from appointments group by status",
    "ended": "select count(*) from appointments where ends_at < now() and status in ('completed', 'no_show')",
    "overdue": "select count(*) from appointments where ends_at < now() and status = 'accepted'",
    "to come": "select count(*) from appointments where starts_at > now() and status in ('requested', 'accepted')",
    "out of order": """
        select a.at, b.at from history a join history b using (appointment_id)
        where b.position = a.position + 1 and b.at < a.at
    """,
    "untimely": """
        select id from appointments
        where requested_at > starts_at or decided_at > now() or requested_at > now()
              or status = 'requested' and expires_at < now() + interval '1 hour'
    """,
    "decided early": "select id from commands where decided_at < received_at or received_at > now()",
    "pending": "select id from commands where status <> 'succeeded'",
    "due notices": "select id from notices where sent_at is null and dropped_at is null and due_at <= now()",
    "dropped notices": "select distinct drop_reason from notices where dropped_at is not null",
    "reminders": "select count(*) from notices where kind = 'reminder' and dropped_at is null and due_at > now()",
    "unfinished": "select id from batches where finished_at is null",
    "doctors": """
        select id::text, status, timezone, crm_state, price,
               (select count(*) from slots where doctor_id = doctors.id and status = 'open' and starts_at > now()),
               (select max(starts_at) - now() from slots where doctor_id = doctors.id and status = 'open')
        from doctors
    """,
    "specialties": "select distinct code from doctor_specialties",
    "hashes": "select id::text, password_hash from people where role <> 'system'",
    "horizons": "select count(*) from availabilities where extended_on < current_date",
}


@pytest.fixture(scope="module")
def seeded(postgres: Postgres, broker: Broker, cache_server: Cache, settings: Settings) -> Seeded:
    for server in (postgres, broker, cache_server):
        start_again(server)
    database = Database(postgres)
    log_ins = seed(settings)
    counts = database.counts()
    again = seed(settings)
    facts = {name: database.rows(query) for name, query in FACTS.items()}
    return Seeded(dict(log_ins), dict(again), counts, database.counts(), facts)


def test_a_second_run_tells_the_same_and_doubles_nothing(seeded: Seeded):
    assert seeded.again == seeded.log_ins
    assert seeded.counts_again == seeded.counts


def test_there_are_verified_doctors_enough_in_many_specialties_states_and_time_zones(seeded: Seeded):
    by_status = Counter(status for _, status, *_ in seeded.facts["doctors"])
    assert by_status == {"verified": len(VERIFIED), "pending_verification": len(PENDING), "suspended": len(SUSPENDED)}
    assert by_status["verified"] >= 30
    assert len(seeded.facts["specialties"]) >= 12
    assert sum(not doctor.specialties for doctor in VERIFIED) >= 3
    assert len({state for _, _, _, state, *_ in seeded.facts["doctors"]}) >= 10
    assert len({timezone for _, _, timezone, *_ in seeded.facts["doctors"]}) >= 5
    assert len({price for *_, price, _, _ in seeded.facts["doctors"]}) >= 10


def test_every_doctor_can_be_booked_for_as_long_as_anyone_can(seeded: Seeded):
    for *_, slots, reach in seeded.facts["doctors"]:
        assert slots >= 50
        assert reach.days >= 57  # two days in a row may be without a slot
    assert seeded.facts["horizons"] == [(0,)]


def test_appointments_stand_in_every_status_in_the_past_and_to_come(seeded: Seeded):
    assert dict(seeded.facts["statuses"]).keys() == set(AppointmentStatus)
    assert seeded.facts["ended"][0][0] >= 10
    assert seeded.facts["overdue"][0][0] >= 1
    assert seeded.facts["to come"][0][0] >= 8


def test_all_was_decided_when_it_was_received_and_in_order(seeded: Seeded):
    assert seeded.facts["out of order"] == []
    assert seeded.facts["untimely"] == []
    assert seeded.facts["decided early"] == []
    assert seeded.facts["pending"] == []
    assert seeded.facts["unfinished"] == []


def test_nobody_gets_mail_about_what_is_past_but_reminders_of_what_is_to_come(seeded: Seeded):
    assert seeded.facts["due notices"] == []
    assert seeded.facts["dropped notices"] == [("demonstration",)]
    assert seeded.facts["reminders"][0][0] >= 10


def test_everybody_who_is_listed_can_log_in_and_only_they(seeded: Seeded, settings: Settings):
    listed = [*seeded.log_ins["doctors"], *seeded.log_ins["patients"]]
    hashes = dict(seeded.facts["hashes"])
    assert len({each["password"] for each in (*listed, *seeded.log_ins["staff"])}) == len(listed) + 2
    for each in (listed[0], listed[-1]):
        assert passwords.verify_password(hashes[each["id"]], each["password"])
    assert len(hashes) == len(listed) + len(seeded.log_ins["staff"]) + len(PENDING) + len(SUSPENDED)
    assert "" not in hashes.values()
    verified = {doctor_id for doctor_id, status, *_ in seeded.facts["doctors"] if status == "verified"}
    assert {each["id"] for each in seeded.log_ins["doctors"]} == verified


def test_log_ins_are_well_formed_cpfs_e_mails_and_crms(seeded: Seeded):
    logins = [each["login"] for each in seeded.log_ins["patients"]]
    cpfs = [parse_cpf(login) for login in logins if "@" not in login]
    assert len(cpfs) >= 4
    assert len(logins) - len(cpfs) >= 4
    assert all(str(parse_crm(each["crm"])) == each["crm"] for each in seeded.log_ins["doctors"])
    assert len({patient.cpf for patient in PATIENTS if patient.cpf}) == sum(patient.cpf is not None for patient in PATIENTS)


def test_its_people_could_have_registered_themselves(postgres: Postgres, settings: Settings):
    without_cpf = [patient for patient in PATIENTS if patient.cpf is None]
    minors = [patient for patient in PATIENTS if patient.representative]
    assert without_cpf
    assert minors
    engine = connect(settings.database_url, pool_size=1)
    try:
        for patient in (without_cpf[0], minors[0]):
            assert identity.register_patient(engine, settings, replace(patient, password="uma senha de verdade 42"))
        assert identity.register_doctor(engine, settings, replace(VERIFIED[0], password="uma senha de verdade 42"))
    finally:
        engine.dispose()


def test_a_run_that_fails_leaves_nothing_that_the_next_one_trips_over(
    postgres: Postgres, broker: object, cache_server: object, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        broken.setattr(story, "STORY", (*story.STORY[:3], story.Visit(0, 0, -24, -3, story.Course.COMPLETED)))
        with pytest.raises(RuntimeError, match="slot_in_past"):
            seed(settings)
    database = Database(postgres)
    assert database.value("select count(*) from people where role not in ('staff', 'system')") == 0
    assert database.value("select count(*) from commands") == 0
    assert len(seed(settings)["patients"]) == len(PATIENTS)


def test_a_stack_with_narrow_limits_gets_the_whole_demonstration(
    postgres: Postgres, broker: object, cache_server: object, environ: dict[str, str]
):
    """As a program, whose output is what `make up` reads."""
    narrow = {
        "REQUEST_TTL_SECONDS": "1",
        "REQUEST_LEAD_SECONDS": "0",
        "BOOKING_HORIZON_DAYS": "1",
        "MAX_OPEN_REQUESTS": "1",
        "CONFIRM_EMAIL": "on",
        "LANES": "3",
        "LANE_BATCH": "1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "local.seed"], cwd=ROOT, env={**environ, **narrow}, capture_output=True, text=True, check=True
    )
    assert len(json.loads(run.stdout)["doctors"]) == len(VERIFIED)
    assert dict(Database(postgres).rows(FACTS["statuses"])).keys() == set(AppointmentStatus)


def test_a_wrong_setting_is_a_line_and_an_exit_code():
    run = subprocess.run([sys.executable, "-m", "local.seed"], cwd=ROOT, env={}, capture_output=True, text=True)
    assert run.returncode == 2
    assert "DATABASE_URL" in run.stderr
    assert "Traceback" not in run.stderr
