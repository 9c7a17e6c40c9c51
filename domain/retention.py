"""Terms: what is archived, and what is erased because nothing asks for it any more."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from domain.cache import Change

PORTION: Final = 1000  # rows of each kind at a time, so that nobody waits for it
ARCHIVE_DAYS: Final = 90  # after which what was decided, told or made known only lies in the way
SESSION_DAYS: Final = 180  # as long as an address that logged in counts as known (domain.sessions)
YEARS: Final = 20  # Lei 13.787/2018, art. 6: records of consultations, counted from the last entry


def keep_terms(change: Change) -> int:
    """Do one portion of what the terms ask for; how many rows it was. Nothing is left to do when it is none."""
    connection = change.connection
    done: int = sum(
        connection.execute(statement, {"portion": PORTION}).scalar_one()
        for statement in (_ARCHIVE_COMMANDS, _ARCHIVE_NOTICES, _FORGET_BATCHES, _FORGET_SESSIONS, _FORGET_RETAINED)
    )
    return done + _forget_texts(connection, change)


def _forget_texts(connection: Connection, change: Change) -> int:
    """Empty the texts of consultations whose term is over. Reasons in the history stay sealed, and go with the patient's key."""
    rows = connection.execute(_FORGET_TEXTS, {"portion": PORTION}).all()
    for row in rows:
        change.touch(f"appointment:{row.id}", f"person:{row.patient_id}", f"person:{row.doctor_id}")
    return len(rows)


_COMMAND = (
    "id, seq, kind, actor_id, actor_role, doctor_id, slot_id, appointment_id, status, error_code, error_detail, result,"
    " key_hash, request_hash, request_id, received_at, decided_at"
)
# Nobody asked for what moved a horizon, or was answered: there is one for each doctor and day, and nothing to keep of it.
_ARCHIVE_COMMANDS = text(
    f"""
    with gone as (
        delete from commands where id = any(array(
            select id from commands
            where status <> 'pending' and decided_at < statement_timestamp() - interval '{ARCHIVE_DAYS} days'
            order by decided_at limit :portion for update skip locked
        )) returning {_COMMAND}
    ), kept as (
        insert into archived_commands ({_COMMAND}) select {_COMMAND} from gone where kind <> 'extend_horizon'
    )
    select count(*) from gone
    """
)
_NOTICE = (
    "id, person_id, appointment_id, kind, due_at, during, command_id, created_at, attempts, sent_at, dropped_at, drop_reason,"
    " read_at"
)
_ARCHIVE_NOTICES = text(
    f"""
    with gone as (
        delete from notices where id = any(array(
            select id from notices where (sent_at is not null or dropped_at is not null)
                and coalesce(sent_at, dropped_at) < statement_timestamp() - interval '{ARCHIVE_DAYS} days'
            order by coalesce(sent_at, dropped_at) limit :portion for update skip locked
        )) returning {_NOTICE}
    ), kept as (
        insert into archived_notices ({_NOTICE}) select {_NOTICE} from gone
    )
    select count(*) from gone
    """
)
# Ids are made of the time (RFC 9562), so those of a term's other end need no index of their own.
_FORGET_BATCHES = text(
    f"""
    with gone as (
        delete from batches where id = any(array(
            select id from batches
            where id < (select uuidv7(interval '-{ARCHIVE_DAYS} days')) and finished_at is not null
            order by id limit :portion for update skip locked
        )) returning id
    )
    select count(*) from gone
    """
)
_FORGET_SESSIONS = text(
    f"""
    with gone as (
        delete from sessions where id = any(array(
            select id from sessions
            where coalesce(revoked_at, expires_at) < statement_timestamp() - interval '{SESSION_DAYS} days'
            order by coalesce(revoked_at, expires_at) limit :portion for update skip locked
        )) returning id
    )
    select count(*) from gone
    """
)
# Looked up for each by itself, however few the database expects: to join them all would be to read all of the history.
_LAST_ENTRY = f"""
    cross join lateral (
        select at < clock_timestamp() - interval '{YEARS} years' as is_over from history
        where appointment_id = appointments.id and position = history_length offset 0
    ) as last
"""
_FORGET_RETAINED = text(
    f"""
    with gone as (
        delete from retained where appointment_id = any(array(
            select appointment_id from retained join appointments on appointments.id = appointment_id {_LAST_ENTRY}
            where appointment_id < (select uuidv7(interval '-{YEARS} years')) and is_over
            order by appointment_id limit :portion
        )) returning appointment_id
    )
    select count(*) from gone
    """
)
_FORGET_TEXTS = text(
    f"""
    update appointments set notes = null, reason = null, join_url = null where id = any(array(
        select appointments.id from appointments {_LAST_ENTRY}
        where appointments.id < (select uuidv7(interval '-{YEARS} years')) and is_over
            and num_nonnulls(notes, reason, join_url) > 0
        order by appointments.id limit :portion for update of appointments skip locked
    )) returning id, patient_id, doctor_id
    """
)
