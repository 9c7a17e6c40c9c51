"""Who read or changed a person's data: append-only, and chained per person, so that nothing can be taken out unseen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from domain.chains import link
from domain.errors import Unavailable
from domain.schedule import Role

READ = "read"

_ATTEMPTS = 20  # each one lost means that somebody else wrote to the same chain meanwhile

# Two writers to one chain want the same position: the second waits for the first, inserts nothing, and looks again.
_APPEND = text(
    """
    insert into audit (subject_id, position, actor_id, actor_role, action, about, at, hour, hash)
    select subject_id, position, actor_id, actor_role, action, about, at, date_trunc('hour', at, 'UTC'), decode(hash, 'hex')
    from jsonb_to_recordset(cast(:rows as jsonb)) as r
        (subject_id uuid, position bigint, actor_id uuid, actor_role text, action text, about uuid, at timestamptz, hash text)
    order by subject_id
    on conflict do nothing
    """
)
_LAST = """
    select subject_id, coalesce(last.position, 0) as position, coalesce(last.hash, '') as hash, clock_timestamp() as now
    from unnest(cast(:subjects as uuid[])) as subjects(subject_id)
    left join lateral (
        select position, hash from audit where audit.subject_id = subjects.subject_id order by position desc limit 1
    ) as last on true
"""
_LAST_OF_ALL = text(_LAST)
_LAST_OF_UNREAD = text(
    f"""
    {_LAST} where not exists (
        select from audit
        where actor_id = :actor_id and audit.subject_id = subjects.subject_id and action = '{READ}'
              and hour = date_trunc('hour', clock_timestamp(), 'UTC')
    )
    """
)


def record(
    connection: Connection, subject_id: UUID, actor_id: UUID, actor_role: Role, action: str, about: UUID | None = None
) -> None:
    """Write down that somebody did something to a person's account, in the transaction that does it."""
    for _ in range(_ATTEMPTS):
        last = connection.execute(_LAST_OF_ALL, {"subjects": [str(subject_id)]}).all()
        if _append(connection, last, actor_id, actor_role, action, about):
            return
    raise Unavailable


def ensure_read(connection: Connection, reader_id: UUID, reader_role: Role, subject_ids: Iterable[UUID]) -> None:
    """Write down, before the answer, whose data somebody is about to read: once per reader, subject and hour.

    Nobody's own reading is written down. Costs one statement when it all stands there already.
    """
    subjects = [str(subject_id) for subject_id in set(subject_ids) if subject_id != reader_id]
    for _ in range(_ATTEMPTS):
        unread = connection.execute(_LAST_OF_UNREAD, {"subjects": subjects, "actor_id": reader_id}).all()
        if not unread:
            return
        _append(connection, unread, reader_id, reader_role, READ, None)
    raise Unavailable


def _append(
    connection: Connection, last: Sequence[Row[Any]], actor_id: UUID, actor_role: Role, action: str, about: UUID | None
) -> int:
    """Add an entry to each chain whose last one is given; how many of them were still the last."""
    rows = []
    for each in last:
        entry = {
            "subject_id": str(each.subject_id),
            "position": each.position + 1,
            "actor_id": str(actor_id),
            "actor_role": actor_role,
            "action": action,
            "about": about and str(about),
            "at": each.now.astimezone(UTC).isoformat(),
        }
        rows.append({**entry, "hash": link(bytes(each.hash), entry).hex()})
    return connection.execute(_APPEND, {"rows": json.dumps(rows)}).rowcount
