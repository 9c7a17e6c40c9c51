"""Room for what has had its time, and indexes by which what is due, or asked for, is found without reading all that is not.

The indexes are built while the version before goes on writing. That version archives commands without their keys and answers.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# By default a fifth of a table may be dead before it is vacuumed: of these, whose rows all change soon, that is too much.
CHANGING = ("appointments", "batches", "commands", "notices", "slots")
INDEXES = (
    "ix_appointments_doctor_id_status",
    "ix_availabilities_extended_on",
    "ix_notices_settled",
    "ix_sessions_over",
    "uq_archived_commands_idempotency",
)
VACUUM = ("autovacuum_vacuum_scale_factor", "autovacuum_analyze_scale_factor")


def upgrade() -> None:
    op.add_column("archived_commands", sa.Column("error_detail", sa.Text(), nullable=True))
    op.add_column("archived_commands", sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("archived_commands", sa.Column("key_hash", sa.LargeBinary(), nullable=True))
    op.add_column("archived_commands", sa.Column("request_hash", sa.LargeBinary(), nullable=True))
    op.create_table(
        "archived_notices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("appointment_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("during", postgresql.TSTZRANGE(), nullable=True),
        sa.Column("command_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dropped_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("drop_reason", sa.Text(), nullable=True),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["appointment_id"], ["appointments.id"], name=op.f("fk_archived_notices_appointment_id")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_archived_notices_person_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_archived_notices")),
    )
    op.create_index("ix_archived_notices_person_id", "archived_notices", ["person_id", "id"])
    op.create_index("ix_archived_notices_appointment_id", "archived_notices", ["appointment_id"])
    settings = ", ".join(f"{name} = 0.02" for name in VACUUM)
    for table in CHANGING:
        op.execute(f"alter table {table} set ({settings})")
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
    for table in CHANGING:
        op.execute(f"alter table {table} reset ({', '.join(VACUUM)})")
    op.drop_table("archived_notices")
    for column in ("request_hash", "key_hash", "result", "error_detail"):
        op.drop_column("archived_commands", column)


def _build(name: str, table: str, columns: list[Any], **options: Any) -> None:
    """Build an index without keeping writers out; what an earlier attempt left unfinished goes first."""
    with op.get_context().autocommit_block():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
