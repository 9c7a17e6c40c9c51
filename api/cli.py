"""The staff's command line: `python -m api.cli --help`, with the settings of the environment.

It exits with 0 if all is well, 1 if something is not as it should be or can't be done, and 2 if it was called wrongly.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, Row
from uuid_utils.compat import uuid7

from domain import credentials, database, identity, lives, logs, noticeboard, notices, verification
from domain.cache import Cache, changing
from domain.errors import HealthMedError, Invalid, NotFound
from domain.identifiers import Malformed, parse_crm
from domain.inbox import Sender
from domain.lives import Life
from domain.rebuilding import rebuild
from domain.schedule import Role
from domain.settings import Settings, SettingsError, current

LISTED = 100  # notices at most
DECISIONS = {"verify": "verified", "reject": "rejected", "suspend": "suspended"}


def main() -> int:
    """Do what this process was called for; returns the exit code."""
    arguments = sys.argv[1:]
    _parser().parse_args(arguments)  # `--help` and wrong calls are answered without any settings
    try:
        settings = current()
    except SettingsError as error:
        return _fail(*(f"setting {line}" for line in str(error).splitlines()), code=2)
    logs.configure("WARNING")
    database.bound_waits()
    return run(arguments, settings)


def run(arguments: Sequence[str], settings: Settings) -> int:
    """Do what the arguments ask for; returns the exit code. Raises SystemExit for arguments that make no sense."""
    asked = _parser().parse_args(arguments)
    engine = database.connect(settings.database_url, pool_size=2)
    try:
        return int(asked.do(asked, engine, settings))
    except Invalid as error:
        return _fail(error.detail, *(f"{field}: {said}" for field, each in error.errors.items() for said in each))
    except HealthMedError as error:
        return _fail(error.detail)
    except Malformed as error:
        return _fail(str(error))
    except Exception as error:
        if not database.is_the_worlds_fault(error):
            raise
        return _fail("The database can't be reached, or has no time: nothing was changed.")
    finally:
        engine.dispose()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.cli", description="The staff's command line.")
    commands = parser.add_subparsers(metavar="command", required=True)

    making = commands.add_parser("create-staff", help="make a staff account; the password is asked for, or read from stdin")
    making.add_argument("login", help="the e-mail address to log in with")
    making.add_argument("name")
    making.set_defaults(do=_create_staff)

    for decision, done in DECISIONS.items():
        deciding = commands.add_parser(decision, help=f"have a doctor {done}")
        deciding.add_argument("doctor", help="the CRM, as in 123456/SP, or the id")
        deciding.add_argument("--by", required=True, metavar="LOGIN", help="the staff account that answers for it")
        deciding.add_argument("--reason", help="what the doctor reads of why")
        deciding.set_defaults(do=_decide_on_doctor, decision=decision)

    helping = commands.add_parser(
        "remove-totp", help="take off the second factor of somebody who lost it and proved who they are"
    )
    helping.add_argument("login", help="the e-mail address, CPF or CRM")
    helping.add_argument("--by", required=True, metavar="LOGIN", help="the staff account that answers for it")
    helping.set_defaults(do=_remove_totp)

    telling = commands.add_parser("command", help="tell what became of a command")
    telling.add_argument("id", type=UUID)
    telling.set_defaults(do=_tell_life)

    listing = commands.add_parser("notices", help="list the notices that mail could not bring; who looks is written down")
    listing.add_argument("--state", choices=noticeboard.STATES, default="undeliverable")
    listing.add_argument("--by", required=True, metavar="LOGIN", help="the staff account that looks")
    listing.set_defaults(do=_list_notices)

    sending = commands.add_parser("resend", help="have a notice mailed again")
    sending.add_argument("id", type=UUID, help="the notice, as `command` and GET /staff/notices name it")
    sending.set_defaults(do=_resend)
    rebuilding = commands.add_parser(
        "rebuild", help="fill every cached projection again, and tell which were not as they should be"
    )
    rebuilding.set_defaults(do=_rebuild)
    return parser


def _create_staff(asked: argparse.Namespace, engine: Engine, settings: Settings) -> int:
    password = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    person_id = identity.create_staff(engine, settings, name=asked.name, login=asked.login, password=password)
    return _say(f"staff {person_id} logs in as {asked.login}")


def _decide_on_doctor(asked: argparse.Namespace, engine: Engine, settings: Settings) -> int:
    request_id = str(uuid7())
    with _cache(engine, settings) as cache, changing(engine, cache) as change:
        staff = Sender(_staff(change.connection, settings, asked.by), Role.STAFF, request_id)
        doctor_id = _doctor(change.connection, asked.doctor)
        lane = verification.decide(change, settings, staff, doctor_id, asked.decision, asked.reason)
        status = verification.doctor_for_staff(change.connection, doctor_id)["status"]
    _say(f"doctor {doctor_id} is {status} (request {request_id})")
    if lane is not None:
        _say("what was open or to come is refused or cancelled within seconds, one command each")
    return 0


def _remove_totp(asked: argparse.Namespace, engine: Engine, settings: Settings) -> int:
    request_id = str(uuid7())
    with _cache(engine, settings) as cache, changing(engine, cache) as change:
        staff = Sender(_staff(change.connection, settings, asked.by), Role.STAFF, request_id)
        person_id = credentials.whose(change.connection, settings, asked.login)
        if person_id is None:
            raise NotFound("Não há conta com este login. / There is no account with this log-in.")
        credentials.take_totp_off(change, person_id, staff)
    return _say(f"{person_id} logs in by password alone from now on; every session has ended (request {request_id})")


def _tell_life(asked: argparse.Namespace, engine: Engine, settings: Settings) -> int:
    with engine.connect() as connection:
        told = lives.life(connection, asked.id)
    return _say(*(f"{name:<12}{what}" for name, what in _lines(told)))


def _list_notices(asked: argparse.Namespace, engine: Engine, settings: Settings) -> int:
    with engine.begin() as connection:
        staff_id = _staff(connection, settings, asked.by)
        items, total = noticeboard.troubled(connection, settings, staff_id, asked.state, limit=LISTED, offset=0)
    for each in items:
        person = each["person"]
        whom = f"{person['role']} {person['id']} {person['name']} <{person['email']}>"
        _say(f"{each['id']} {each['kind']} to {whom}: due {_instant(each['due_at'])}, {each.get('reason', 'tried again')}")
    return _say(f"{total} {asked.state}{f', the newest {LISTED} shown' if total > LISTED else ''}")


def _resend(asked: argparse.Namespace, engine: Engine, settings: Settings) -> int:
    with engine.begin() as connection:
        notice_id = notices.resend(connection, asked.id)
    return _say(f"notice {notice_id} goes out within seconds")


def _rebuild(asked: argparse.Namespace, engine: Engine, settings: Settings) -> int:
    right = wrong = 0
    with _cache(engine, settings) as cache:
        for (scope, field), is_right in rebuild(cache):
            if is_right:
                right += 1
            else:
                wrong += 1
                _say(f"{scope} {field} was not what the database says: it is filled anew when it is next read")
    _say(f"{right + wrong} projections rebuilt, {wrong} of them differed")
    return 1 if wrong else 0


def _lines(told: Life) -> Iterator[tuple[str, str]]:
    """A command's life, line by line, each with its name."""
    command = told.command
    yield "command", f"{command.id} ({'archived' if command.archived else f'lane {command.lane}, number {command.seq}'})"
    yield "asked", f"{command.kind}, by {command.actor_role} {command.actor_id}"
    yield "request", command.request_id or "none: it came with time"
    yield "received", _instant(command.received_at)
    if command.status == "pending":
        waits = _span(command.now - command.received_at)
        yield "decided", f"not yet: it waits for {waits}, and was tried {command.attempts} times by itself"
        return
    outcome = command.error_code or command.status
    yield "decided", f"{_instant(command.decided_at)}, {_span(command.decided_at - command.received_at)} later: {outcome}"
    if command.error_detail is not None:
        yield "", command.error_detail
    for step in told.steps:
        yield "", f"appointment {step.appointment_id} {step.status} by {step.by}"
    if command.finished_at is not None:
        later = _span(command.finished_at - command.decided_at)
        yield (
            "projected",
            f"{_instant(command.finished_at)}, {later} later: batch {command.batch_id}, {len(command.scopes)} scopes",
        )
    elif command.scopes is not None:
        yield "projected", f"not yet: batch {command.batch_id}, which nobody is told of before"
    for notice in told.notices:
        yield "notified", f"{notice.kind} to {notice.role} {notice.person_id}: {_fate(notice)} (notice {notice.id})"


def _fate(notice: Row[Any]) -> str:
    attempts = f"{notice.attempts} attempt{'s' if notice.attempts != 1 else ''}"
    if notice.sent_at is not None:
        return f"sent {_instant(notice.sent_at)}, {attempts}"
    if notice.dropped_at is not None:
        return f"given up {_instant(notice.dropped_at)}: {notice.drop_reason}, {attempts}"
    return f"due {_instant(notice.due_at)}, {attempts}"


@contextmanager
def _cache(engine: Engine, settings: Settings) -> Iterator[Cache]:
    cache = Cache(settings, engine)
    try:
        yield cache
    finally:
        cache.stop()


def _staff(connection: Connection, settings: Settings, login: str) -> UUID:
    account = identity.account_of(connection, settings, Role.STAFF, login)
    if account is None:
        raise NotFound(f"Não há conta de equipe {login}. / There is no staff account {login}.")
    return account.id


def _doctor(connection: Connection, named: str) -> UUID:
    try:
        return UUID(named)
    except ValueError:
        account = identity.account_of_doctor(connection, parse_crm(named))
    if account is None:
        raise NotFound(f"Não há médico com o CRM {named}. / There is no doctor with the CRM {named}.")
    return account.id


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _span(time: timedelta) -> str:
    seconds = time.total_seconds()
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _say(*lines: str) -> int:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _fail(*lines: str, code: int = 1) -> int:
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
