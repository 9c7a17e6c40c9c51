"""Indexes by which what is due, or asked for, is found without reading all that is not: built while the version before writes.

Each is built outside any transaction. One that was interrupted is begun anew by running the migration again.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEXES = (
    "ix_appointments_doctor_id_status",
    "ix_availabilities_extended_on",
    "ix_notices_settled",
    "ix_sessions_over",
    "uq_archived_commands_idempotency",
)


def upgrade() -> None:
    _build(
        "uq_archived_commands_idempotency",
        "archived_commands",
        ["actor_id", "key_hash"],
        unique=True,
        postgresql_where=sa.text("key_hash is not null"),
    )
    _build("ix_appointments_doctor_id_status", "appointments", ["doctor_id", "status", "starts_at", "id"])
    _build("ix_availabilities_extended_on", "availabilities", ["extended_on", "doctor_id"])
    _build(
        "ix_notices_settled",
        "notices",
        [sa.text("coalesce(sent_at, dropped_at)")],
        postgresql_where=sa.text("sent_at is not null or dropped_at is not null"),
    )
    _build("ix_sessions_over", "sessions", [sa.text("coalesce(revoked_at, expires_at)")])


def downgrade() -> None:
    for index in INDEXES:
        op.drop_index(index)


def _build(name: str, table: str, columns: list[Any], **options: Any) -> None:
    with op.get_context().autocommit_block():
        op.execute("set lock_timeout = 0")  # it waits for transactions that began before, and nobody waits for it
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
        op.execute("reset lock_timeout")
