"""The life of one command, for whoever must tell what became of it: received, decided, projected, and whom it had told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from domain.errors import NotFound


@dataclass(frozen=True, slots=True)
class Life:
    """The rows that tell it: nothing in them was written by anybody."""

    command: Row[Any]
    steps: Sequence[Row[Any]]  # what it did to appointments
    notices: Sequence[Row[Any]]


def life(connection: Connection, command_id: UUID) -> Life:
    """What became of a command, archived ones too, of which less is known. Raises NotFound."""
    command = connection.execute(_COMMAND, {"id": command_id}).one_or_none()
    if command is None:
        raise NotFound("Não há este comando. / There is no such command.")
    parameters = {"id": command_id, "appointment": command.appointment_id}
    steps = connection.execute(_STEPS, parameters).all()
    return Life(command, steps, connection.execute(_NOTICES, parameters).all())


_COMMAND = text(
    """
    select commands.id, kind, actor_role, actor_id, doctor_id, appointment_id, request_id, lane, seq, status, attempts,
        error_code, error_detail, received_at, decided_at, batch_id, scopes, finished_at,
        clock_timestamp() as now, false as archived
    from commands left join batches on batches.id = batch_id where commands.id = :id
    union all
    select id, kind, actor_role, actor_id, doctor_id, appointment_id, request_id, null, seq, status, null,
        error_code, error_detail, received_at, decided_at, null, null, null, clock_timestamp(), true
    from archived_commands where id = :id
    """
)
# A command changes one appointment at most, by which its traces are found.
_STEPS = text(
    "select appointment_id, status, by from history where appointment_id = :appointment and command_id = :id order by position"
)
_NOTICES = text(
    """
    select told.id, kind, role, person_id, due_at, attempts, sent_at, dropped_at, drop_reason from (
        select id, kind, person_id, due_at, attempts, sent_at, dropped_at, drop_reason
        from notices where appointment_id = :appointment and command_id = :id
        union all
        select id, kind, person_id, due_at, attempts, sent_at, dropped_at, drop_reason
        from archived_notices where appointment_id = :appointment and command_id = :id
    ) as told join people on people.id = person_id order by due_at, told.id
    """
)
