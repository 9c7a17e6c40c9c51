"""Room for what has had its time. The version before goes on archiving commands, without their keys and answers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# By default a fifth of a table may be dead before it is vacuumed: of these, whose rows all change soon, that is too much.
CHANGING = ("appointments", "batches", "commands", "notices", "slots")
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


def downgrade() -> None:
    for table in CHANGING:
        op.execute(f"alter table {table} reset ({', '.join(VACUUM)})")
    op.drop_table("archived_notices")
    for column in ("request_hash", "key_hash", "result", "error_detail"):
        op.drop_column("archived_commands", column)
