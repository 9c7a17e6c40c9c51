"""The promises, as far as one look at a stack that has come to rest can tell whether they were kept: for load and fault tests."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Engine, text

from domain import chains
from domain.cache import Cache
from domain.errors import Unavailable
from domain.rebuilding import rebuild
from domain.settings import Settings

EXPIRES_WITHIN = 10.0  # seconds after its deadline a request has expired, by the contract
SHOWN = 5  # of each kind

# What must be empty, whatever constraints there are: these queries rely on none. Each row is one violation, in a few words.
PROMISES = {
    "a command is not decided": """
        select id || ', a ' || kind || ' of ' || received_at from commands
        where status = 'pending' and received_at < clock_timestamp() - make_interval(secs => :patience) order by seq
    """,
    "a decided command does not say when, or in which batch": """
        select id::text from commands where status <> 'pending' and (decided_at is null or batch_id is null)
    """,
    "a batch is not finished": """
        select id::text from batches
        where finished_at is null and created_at < clock_timestamp() - make_interval(secs => :patience)
    """,
    "a request should have expired": """
        select id || ', due at ' || expires_at from appointments
        where status = 'requested' and expires_at < clock_timestamp() - make_interval(secs => :patience + :expires_within)
    """,
    "one key made two commands": """
        select actor_id || ' ' || encode(key_hash, 'hex') from commands
        where key_hash is not null group by actor_id, key_hash having count(*) > 1
    """,
    "a slot has two active appointments": """
        select slot_id::text from appointments where active group by slot_id having count(*) > 1
    """,
    "a patient is in two places at a time": """
        select id::text from (
            select id, starts_at, max(ends_at) over (
                partition by patient_id order by starts_at, id rows between unbounded preceding and 1 preceding
            ) as busy_until from appointments where active
        ) as placed where starts_at < busy_until
    """,
    "a doctor is in two places at a time": """
        select id::text from (
            select id, starts_at, max(ends_at) over (
                partition by doctor_id order by starts_at, id rows between unbounded preceding and 1 preceding
            ) as busy_until from appointments where active
        ) as placed where starts_at < busy_until
    """,
    "two slots of a doctor overlap": """
        select id::text from (
            select id, starts_at, max(ends_at) over (
                partition by doctor_id order by starts_at, id rows between unbounded preceding and 1 preceding
            ) as busy_until from slots where status in ('open', 'booked')
        ) as placed where starts_at < busy_until
    """,
    "an active appointment's slot is not booked, or is at another time": """
        select appointments.id::text from appointments left join slots on slots.id = slot_id
        where active and (slots.status, slots.during, slots.doctor_id)
            is distinct from ('booked', appointments.during, appointments.doctor_id)
    """,
    "a booked slot has no active appointment": """
        select id::text from slots
        where status = 'booked' and not exists (select from appointments where slot_id = slots.id and active)
    """,
    "an appointment is active that should not be, or the other way about": """
        select id || ', ' || status from appointments where active = (status in ('refused', 'cancelled', 'expired'))
    """,
    "an appointment is not as its history ends": """
        select id || ', ' || appointments.status from appointments left join history
            on appointment_id = id and position = history_length
        where appointments.status is distinct from history.status
    """,
    "an illegal transition": """
        select appointment_id || ' ' || position || ', ' || coalesce(before, 'nothing') || ' to ' || status from (
            select appointment_id, position, status,
                lag(status) over (partition by appointment_id order by position) as before from history
        ) as steps
        where (coalesce(before, '-'), status) not in (
            ('-', 'requested'), ('requested', 'requested'), ('requested', 'accepted'), ('requested', 'refused'),
            ('requested', 'cancelled'), ('requested', 'expired'),
            ('accepted', 'requested'), ('accepted', 'cancelled'), ('accepted', 'completed'), ('accepted', 'no_show')
        )
    """,
    "a command did not do once, and only when granted, what it asks for": """
        select coalesce(asked.id, command_id) || ', ' || coalesce(kind, 'unknown') from (
            select id, kind, status from commands union all select id, kind, status from archived_commands
        ) as asked full join (select command_id, count(*) as steps from history group by command_id) as done on command_id = id
        where coalesce(steps, 0) <> case when status = 'succeeded' and kind in (
            'book', 'accept', 'refuse', 'cancel', 'reschedule', 'complete', 'no_show', 'expire'
        ) then 1 else 0 end
    """,
    "a notice was due and is not sent": """
        select id || ', ' || kind || ' due at ' || due_at from notices
        where sent_at is null and dropped_at is null
            and greatest(due_at, created_at) < clock_timestamp() - make_interval(secs => :patience) order by due_at
    """,
    "a notice was given up": """
        select id || ', ' || drop_reason from notices where drop_reason in ('address_refused', 'undeliverable', 'faulty')
    """,
}


def violations(engine: Engine, settings: Settings, *, patience: float = 0.0) -> list[str]:
    """Every promise that is not kept, one line for each case that shows it, a few of a kind; empty is as it should be.

    Commands, batches and notices younger than `patience` seconds may be under way still; with none, the stack must have come to
    rest. Projections that differ from the database are thrown away, as `Cache.rebuild` does. It takes a second per 50,000 rows.
    """
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        connection.execute(text("set local statement_timeout = 0"))
        connection.execute(text("set local transaction_timeout = 0"))
        connection.execute(text("set local idle_in_transaction_session_timeout = 0"))
        found = [*broken(connection, patience), *_flaws(connection)]
    return [*found, *_stale(engine, settings)]


def broken(connection: Connection, patience: float = 0.0) -> Iterator[str]:
    """The promises of the tables that are not kept: what a query can tell."""
    given = {"patience": patience, "expires_within": EXPIRES_WITHIN}
    for promise, query in PROMISES.items():
        statement = text(query)
        wanted = {name: value for name, value in given.items() if name in statement.compile().params}
        yield from _few(promise, connection.execute(statement, wanted).scalars().all())


def _flaws(connection: Connection) -> Iterator[str]:
    told = (f"{flaw.table} {flaw.chain} {flaw.position}, {flaw.what}" for flaw in chains.verify(connection, {}))
    yield from _few("a chain does not verify", list(told))


def _stale(engine: Engine, settings: Settings) -> Iterator[str]:
    cache = Cache(settings, engine)
    cache.start()
    try:
        wrong = [f"{scope} {field}" for (scope, field), is_right in rebuild(cache) if not is_right]
    except Unavailable:
        yield "projections can't be judged: the cache is out of use or silent, or a batch does not end"
    else:
        yield from _few("a projection is not what the database says", wrong)
    finally:
        cache.stop()


def _few(promise: str, cases: list[str] | tuple[str, ...]) -> Iterator[str]:
    yield from (f"{promise}: {case}" for case in cases[:SHOWN])
    if len(cases) > SHOWN:
        yield f"{promise}: {len(cases) - SHOWN} more"
