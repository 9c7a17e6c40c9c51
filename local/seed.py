"""`python -m local.seed` makes the demonstration, unless it is there, and prints its log-ins; a second run prints the same."""

from __future__ import annotations

import base64
import hmac
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypedDict
from uuid import UUID

from sqlalchemy import Engine, text

from domain import database, identity, logs, passwords, verification
from domain.cache import Cache, Change, changing
from domain.identity import AlreadyRegistered
from domain.inbox import Sender
from domain.schedule import Role
from domain.settings import Settings, SettingsError, load
from local import story
from local.people import PATIENTS, PENDING, STAFF, SUSPENDED, VERIFIED

DOCTORS = (*VERIFIED, *PENDING, *SUSPENDED)


class LogIns(TypedDict):
    """What `demo.json` says of people."""

    staff: list[dict[str, str]]
    doctors: list[dict[str, str]]
    patients: list[dict[str, str]]


def main() -> int:
    """Seed the database of this environment; the exit code is 2 for a wrong setting."""
    try:
        settings = load(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    print(json.dumps(seed(settings), ensure_ascii=False))
    return 0


def seed(settings: Settings) -> LogIns:
    """Make the demonstration unless it is there; returns the log-ins of everybody but the doctors who can't be booked."""
    engine = database.connect(settings.database_url, pool_size=2)
    try:
        if not (there := _log_ins(engine, settings))["patients"]:
            _make(engine, settings)
            there = _log_ins(engine, settings)
        return there
    finally:
        engine.dispose()


def _make(engine: Engine, settings: Settings) -> None:
    """Make everybody but staff, and all that happened to them, in one transaction: whole or not at all."""
    for login, name in STAFF.items():
        with suppress(AlreadyRegistered):  # a run that was interrupted came this far
            identity.create_staff(engine, settings, name=name, login=login, password=_password(settings, login))
    cache = Cache(settings, engine)
    with ThreadPoolExecutor(os.cpu_count()) as threads, changing(engine, cache) as change:
        connection = change.connection
        connection.execute(text("set local transaction_timeout = 0"))
        # Hashing takes longest, so it goes on beside everything else.
        emails = [each.email for each in PATIENTS] + [each.email for each in DOCTORS]
        hashes = threads.map(lambda email: passwords.hash_password(_password(settings, email)), emails)
        patients = [identity.insert_patient(connection, settings, each, "") for each in PATIENTS]
        doctors = [identity.insert_doctor(connection, settings, each, "") for each in DOCTORS]
        _verify(change, settings, doctors)
        story.play(change, settings, doctors, patients)
        people = [str(each) for each in (*patients, *doctors)]
        connection.execute(_SETTLE, {"people": people, "hashes": list(hashes), "ago": story.LONG_AGO})
    cache.stop()


def _verify(change: Change, settings: Settings, doctors: Sequence[UUID]) -> None:
    """Let staff decide about all doctors but those who still wait for it."""
    account = identity.account_of(change.connection, settings, Role.STAFF, next(iter(STAFF)))
    assert account is not None
    staff = Sender(account.id, Role.STAFF, story.REQUEST_ID)
    for doctor_id, new in zip(doctors, DOCTORS, strict=True):
        if new not in PENDING:
            verification.decide(change, settings, staff, doctor_id, "verify", None)
        if new in SUSPENDED:
            verification.decide(change, settings, staff, doctor_id, "suspend", "Registro no conselho em revisão.")


def _log_ins(engine: Engine, settings: Settings) -> LogIns:
    """The log-ins of those who are there."""
    with engine.connect() as connection:
        return {
            "staff": [
                {"login": login, "password": _password(settings, login)}
                for login in STAFF
                if identity.account_of(connection, settings, Role.STAFF, login)
            ],
            "doctors": [
                {"id": str(account.id), "name": new.name, "crm": str(new.crm), "password": _password(settings, new.email)}
                for new in VERIFIED
                if (account := identity.account_of_doctor(connection, new.crm))
            ],
            "patients": [
                {"id": str(account.id), "login": login, "password": _password(settings, new.email)}
                for login, new in zip(_PATIENT_LOGINS, PATIENTS, strict=True)
                if (account := identity.account_of(connection, settings, Role.PATIENT, login))
            ],
        }


def _password(settings: Settings, email: str) -> str:
    """A password that nobody guesses, the same in every run of the stack that has these settings."""
    digest = hmac.digest(settings.hash_key, f"demonstration\0{email}".encode(), "sha256")
    letters = base64.b32encode(digest).decode().lower()
    return "-".join(letters[place : place + 4] for place in range(0, 16, 4))


# Every other patient who has a CPF logs in by it.
_PATIENT_LOGINS = [new.cpf if new.cpf and place % 2 == 0 else new.email for place, new in enumerate(PATIENTS)]

_SETTLE = text(
    """
    update people
    set password_hash = given.hash, created_at = clock_timestamp() - :ago, email_confirmed_at = clock_timestamp() - :ago
    from unnest(cast(:people as uuid[]), cast(:hashes as text[])) as given(id, hash)
    where people.id = given.id
    """
)


if __name__ == "__main__":
    sys.exit(main())
