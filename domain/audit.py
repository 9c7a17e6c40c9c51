"""Who read or changed a person's data: append-only, and chained per person, so that nothing can be taken out unseen."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import Connection, text

from domain.errors import Unavailable
from domain.schedule import Role

READ = "read"

_ATTEMPTS = 20  # each one lost means that somebody else wrote to the same chain meanwhile

# One statement, so that it holds with and without a transaction around it. Two writers to one chain want the same position:
# the second waits for the first, inserts nothing, and looks again.
_APPEND = text(
    """
    insert into audit (subject_id, position, actor_id, actor_role, action, about, at, hour, hash)
    select subject_id, position, :actor_id, :actor_role, :action, :about, at, date_trunc('hour', at, 'UTC'),
           sha256(previous || convert_to(concat_ws('|', subject_id, position, cast(:actor_id as uuid), :actor_role, :action,
               coalesce(cast(:about as uuid)::text, ''), (extract(epoch from at) * 1000000)::bigint), 'UTF8'))
    from (
        select subject_id, coalesce(last.position, 0) + 1 as position, coalesce(last.hash, '') as previous,
               clock_timestamp() as at
        from unnest(cast(:subjects as uuid[])) as subjects(subject_id)
        left join lateral (
            select position, hash from audit where audit.subject_id = subjects.subject_id order by position desc limit 1
        ) as last on true
        order by subject_id
    ) as links
    on conflict do nothing
    returning subject_id
    """
)
_UNREAD = text(
    """
    select subject_id from unnest(cast(:subjects as uuid[])) as subjects(subject_id)
    where not exists (
        select from audit
        where actor_id = :actor_id and audit.subject_id = subjects.subject_id and action = 'read'
              and hour = date_trunc('hour', clock_timestamp(), 'UTC')
    )
    """
)


def record(
    connection: Connection, subject_id: UUID, actor_id: UUID, actor_role: Role, action: str, about: UUID | None = None
) -> None:
    """Write down that somebody did something to a person's account, in the transaction that does it."""
    for _ in range(_ATTEMPTS):
        if _append(connection, [subject_id], actor_id, actor_role, action, about):
            return
    raise Unavailable


def ensure_read(connection: Connection, reader_id: UUID, reader_role: Role, subject_ids: Iterable[UUID]) -> None:
    """Write down, before the answer, whose data somebody is about to read: once per reader, subject and hour.

    Nobody's own reading is written down. Costs one statement when it all stands there already.
    """
    subjects = sorted({subject_id for subject_id in subject_ids if subject_id != reader_id})
    for _ in range(_ATTEMPTS):
        unread = list(
            connection.execute(_UNREAD, {"subjects": [str(each) for each in subjects], "actor_id": reader_id}).scalars()
        )
        if not unread:
            return
        _append(connection, unread, reader_id, reader_role, READ, None)
    raise Unavailable


def _append(
    connection: Connection,
    subjects: list[UUID],
    actor_id: UUID,
    actor_role: Role,
    action: str,
    about: UUID | None,
) -> list[UUID]:
    rows = connection.execute(
        _APPEND,
        {
            "subjects": [str(each) for each in subjects],
            "actor_id": actor_id,
            "actor_role": actor_role,
            "action": action,
            "about": about,
        },
    )
    return list(rows.scalars())
