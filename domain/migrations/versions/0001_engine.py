"""The engine: people, schedules, the inbox, and what follows from decisions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SYSTEM = "00000000-0000-7000-8000-000000000000"
APPEND_ONLY = ("history", "audit", "roots")
TABLES = (
    "retained",
    "notices",
    "history",
    "appointments",
    "slots",
    "doctor_specialties",
    "commands",
    "availabilities",
    "archived_commands",
    "sessions",
    "second_factors",
    "recovery_codes",
    "person_keys",
    "links",
    "doctors",
    "corrections",
    "consents",
    "calendar_links",
    "audit",
    "roots",
    "people",
    "cache",
    "batches",
)


def upgrade() -> None:
    op.execute("create extension if not exists btree_gist")
    op.execute("create extension if not exists pg_trgm")
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index(
        "ix_batches_unfinished", "batches", ["created_at"], unique=False, postgresql_where=sa.text("finished_at is null")
    )
    op.create_table(
        "cache",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("in_use", sa.Boolean(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_cache_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cache")),
    )
    op.create_table(
        "people",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="active", nullable=False),
        sa.Column("language", sa.Text(), server_default="pt-BR", nullable=False),
        sa.Column("timezone", sa.Text(), server_default="America/Sao_Paulo", nullable=False),
        sa.Column("email_hash", sa.LargeBinary(), nullable=True),
        sa.Column("cpf_hash", sa.LargeBinary(), nullable=True),
        sa.Column("private", sa.LargeBinary(), nullable=True),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("password_changed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("email_confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint("role in ('patient', 'doctor', 'staff', 'system')", name=op.f("ck_people_role")),
        sa.CheckConstraint("status in ('active', 'closing', 'erased')", name=op.f("ck_people_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
    )
    op.create_index("uq_people_cpf_hash", "people", ["cpf_hash"], unique=True, postgresql_where=sa.text("cpf_hash is not null"))
    op.create_index(
        "uq_people_email_hash", "people", ["email_hash"], unique=True, postgresql_where=sa.text("email_hash is not null")
    )
    op.create_table(
        "roots",
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_roots")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("subject_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=False),
        sa.Column("actor_role", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("about", sa.Uuid(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["people.id"], name=op.f("fk_audit_actor_id")),
        sa.ForeignKeyConstraint(["subject_id"], ["people.id"], name=op.f("fk_audit_subject_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sa.UniqueConstraint("subject_id", "position", name=op.f("uq_audit_subject_id_position")),
    )
    op.create_index("ix_audit_at", "audit", ["at"], unique=False)
    op.create_index(
        "uq_audit_read", "audit", ["actor_id", "subject_id", "hour"], unique=True, postgresql_where=sa.text("action = 'read'")
    )
    op.create_table(
        "calendar_links",
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_calendar_links_person_id")),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_calendar_links")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_calendar_links_token_hash")),
    )
    op.create_table(
        "consents",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("text_hash", sa.LargeBinary(), nullable=False),
        sa.Column("given_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_consents_person_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consents")),
    )
    op.create_index(
        "uq_consents_standing",
        "consents",
        ["person_id", "kind", "version"],
        unique=True,
        postgresql_where=sa.text("withdrawn_at is null"),
    )
    op.create_table(
        "corrections",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("reason", sa.LargeBinary(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["people.id"], name=op.f("fk_corrections_actor_id")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_corrections_person_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_corrections")),
    )
    op.create_index("ix_corrections_person_id", "corrections", ["person_id", "id"], unique=False)
    op.create_table(
        "doctors",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending_verification", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("search_name", sa.Text(), nullable=False),
        sa.Column("crm_number", sa.Text(), nullable=False),
        sa.Column("crm_suffix", sa.Text(), server_default="", nullable=False),
        sa.Column("crm_state", sa.Text(), nullable=False),
        sa.Column("bio", sa.Text(), nullable=True),
        sa.Column("price", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), server_default="BRL", nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("pending", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("verified_by", sa.Uuid(), nullable=True),
        sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("verification_reason", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint(
            "status in ('pending_verification', 'verified', 'rejected', 'suspended')", name=op.f("ck_doctors_status")
        ),
        sa.CheckConstraint("price >= 0", name=op.f("ck_doctors_price")),
        sa.ForeignKeyConstraint(["id"], ["people.id"], name=op.f("fk_doctors_id")),
        sa.ForeignKeyConstraint(["verified_by"], ["people.id"], name=op.f("fk_doctors_verified_by")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_doctors")),
    )
    op.create_index(
        "ix_doctors_search_name",
        "doctors",
        ["search_name"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"search_name": "gin_trgm_ops"},
    )
    op.create_index(
        "ix_doctors_status_crm_state",
        "doctors",
        ["status", "crm_state", "search_name", "id"],
        unique=False,
        postgresql_include=["price"],
    )
    op.create_index("ix_doctors_status_price", "doctors", ["status", "price", "id"], unique=False)
    op.create_index(
        "ix_doctors_status_search_name",
        "doctors",
        ["status", "search_name", "id"],
        unique=False,
        postgresql_include=["price", "crm_state"],
    )
    op.create_index(
        "uq_doctors_crm", "doctors", ["crm_number", "crm_state"], unique=True, postgresql_where=sa.text("status <> 'rejected'")
    )
    op.create_table(
        "links",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("email", sa.LargeBinary(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind in ('confirm_email', 'password_forgotten')", name=op.f("ck_links_kind")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_links_person_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_links")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_links_token_hash")),
    )
    op.create_index("ix_links_person_id", "links", ["person_id", "kind"], unique=False)
    op.create_table(
        "person_keys",
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_person_keys_person_id")),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_person_keys")),
    )
    op.create_table(
        "recovery_codes",
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_recovery_codes_person_id")),
        sa.PrimaryKeyConstraint("person_id", "hash", name=op.f("pk_recovery_codes")),
    )
    op.create_table(
        "second_factors",
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_second_factors_person_id")),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_second_factors")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("address_hash", sa.LargeBinary(), nullable=True),
        sa.Column("origin", sa.LargeBinary(), nullable=True),
        sa.Column("refresh_id", sa.Uuid(), nullable=False),
        sa.Column("previous_refresh_id", sa.Uuid(), nullable=True),
        sa.Column("refreshed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_sessions_person_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_index("ix_sessions_person_id", "sessions", ["person_id", "created_at"], unique=False)
    op.create_table(
        "archived_commands",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=False),
        sa.Column("actor_role", sa.Text(), nullable=False),
        sa.Column("doctor_id", sa.Uuid(), nullable=True),
        sa.Column("slot_id", sa.Uuid(), nullable=True),
        sa.Column("appointment_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["people.id"], name=op.f("fk_archived_commands_actor_id")),
        sa.ForeignKeyConstraint(["doctor_id"], ["doctors.id"], name=op.f("fk_archived_commands_doctor_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_archived_commands")),
    )
    op.create_index("ix_archived_commands_actor_id", "archived_commands", ["actor_id", "id"], unique=False)
    op.create_table(
        "availabilities",
        sa.Column("doctor_id", sa.Uuid(), nullable=False),
        sa.Column("rules", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("exceptions", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("reasons", sa.LargeBinary(), nullable=True),
        sa.Column("extended_on", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(["doctor_id"], ["doctors.id"], name=op.f("fk_availabilities_doctor_id")),
        sa.PrimaryKeyConstraint("doctor_id", name=op.f("pk_availabilities")),
    )
    op.create_table(
        "commands",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True, cache=1), nullable=False),
        sa.Column("lane", sa.SmallInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=False),
        sa.Column("actor_role", sa.Text(), nullable=False),
        sa.Column("doctor_id", sa.Uuid(), nullable=True),
        sa.Column("slot_id", sa.Uuid(), nullable=True),
        sa.Column("appointment_id", sa.Uuid(), nullable=True),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("day", sa.Date(), nullable=True),
        sa.Column("key_hash", sa.LargeBinary(), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("batch_id", sa.Uuid(), nullable=True),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.CheckConstraint("status in ('pending', 'succeeded', 'rejected')", name=op.f("ck_commands_status")),
        sa.ForeignKeyConstraint(["actor_id"], ["people.id"], name=op.f("fk_commands_actor_id")),
        sa.ForeignKeyConstraint(["doctor_id"], ["doctors.id"], name=op.f("fk_commands_doctor_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
        sa.UniqueConstraint("seq", name=op.f("uq_commands_seq")),
    )
    op.create_index("ix_commands_actor_id", "commands", ["actor_id", "id"], unique=False)
    op.create_index(
        "ix_commands_decided_at", "commands", ["decided_at"], unique=False, postgresql_where=sa.text("status <> 'pending'")
    )
    op.create_index(
        "ix_commands_pending", "commands", ["lane", "seq"], unique=False, postgresql_where=sa.text("status = 'pending'")
    )
    op.create_index(
        "uq_commands_expire", "commands", ["appointment_id", "deadline"], unique=True, postgresql_where=sa.text("kind = 'expire'")
    )
    op.create_index(
        "uq_commands_extend_horizon",
        "commands",
        ["doctor_id", "day"],
        unique=True,
        postgresql_where=sa.text("kind = 'extend_horizon'"),
    )
    op.create_index(
        "uq_commands_idempotency",
        "commands",
        ["actor_id", "key_hash"],
        unique=True,
        postgresql_where=sa.text("key_hash is not null"),
    )
    op.create_table(
        "doctor_specialties",
        sa.Column("doctor_id", sa.Uuid(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("rqe", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["doctor_id"], ["doctors.id"], name=op.f("fk_doctor_specialties_doctor_id")),
        sa.PrimaryKeyConstraint("doctor_id", "code", name=op.f("pk_doctor_specialties")),
    )
    op.create_index("ix_doctor_specialties_code_doctor_id", "doctor_specialties", ["code", "doctor_id"], unique=False)
    op.create_table(
        "slots",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("doctor_id", sa.Uuid(), nullable=False),
        sa.Column("during", postgresql.TSTZRANGE(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), sa.Computed("lower(during)", persisted=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), sa.Computed("upper(during)", persisted=True), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("held", sa.Boolean(), nullable=False),
        sa.Column("extra", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("price", sa.BigInteger(), nullable=True),
        postgresql.ExcludeConstraint(
            (sa.column("doctor_id"), "="),
            (sa.column("during"), "&&"),
            where=sa.text("status in ('open', 'booked')"),
            using="gist",
            name="ex_slots_doctor_during",
        ),
        sa.CheckConstraint("status in ('open', 'booked', 'withdrawn', 'dropped')", name=op.f("ck_slots_status")),
        sa.CheckConstraint("not isempty(during)", name=op.f("ck_slots_during")),
        sa.CheckConstraint("price >= 0", name=op.f("ck_slots_price")),
        sa.ForeignKeyConstraint(["doctor_id"], ["doctors.id"], name=op.f("fk_slots_doctor_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slots")),
        sa.UniqueConstraint("id", "doctor_id", name=op.f("uq_slots_id_doctor_id")),
    )
    op.create_index("ix_slots_doctor_id_starts_at", "slots", ["doctor_id", "starts_at"], unique=False)
    op.create_index(
        "ix_slots_open", "slots", ["doctor_id", "starts_at"], unique=False, postgresql_where=sa.text("status = 'open'")
    )
    op.create_index(
        "ix_slots_open_starts_at", "slots", ["starts_at", "doctor_id"], unique=False, postgresql_where=sa.text("status = 'open'")
    )
    op.create_table(
        "appointments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("slot_id", sa.Uuid(), nullable=False),
        sa.Column("doctor_id", sa.Uuid(), nullable=False),
        sa.Column("patient_id", sa.Uuid(), nullable=False),
        sa.Column("during", postgresql.TSTZRANGE(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), sa.Computed("lower(during)", persisted=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), sa.Computed("upper(during)", persisted=True), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("price", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reschedules", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sequence", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("refusal_kind", sa.Text(), nullable=True),
        sa.Column("notes", sa.LargeBinary(), nullable=True),
        sa.Column("reason", sa.LargeBinary(), nullable=True),
        sa.Column("join_url", sa.LargeBinary(), nullable=True),
        sa.Column("history_length", sa.SmallInteger(), nullable=False),
        sa.Column("history_hash", sa.LargeBinary(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.column("doctor_id"), "="),
            (sa.column("during"), "&&"),
            where=sa.text("active"),
            using="gist",
            name="ex_appointments_doctor_during",
        ),
        postgresql.ExcludeConstraint(
            (sa.column("patient_id"), "="),
            (sa.column("during"), "&&"),
            where=sa.text("active"),
            using="gist",
            name="ex_appointments_patient_during",
        ),
        sa.CheckConstraint(
            "status in ('requested', 'accepted', 'refused', 'cancelled', 'expired', 'completed', 'no_show')",
            name=op.f("ck_appointments_status"),
        ),
        sa.ForeignKeyConstraint(["doctor_id"], ["doctors.id"], name=op.f("fk_appointments_doctor_id")),
        sa.ForeignKeyConstraint(["patient_id"], ["people.id"], name=op.f("fk_appointments_patient_id")),
        sa.ForeignKeyConstraint(
            ["slot_id", "doctor_id"], ["slots.id", "slots.doctor_id"], name=op.f("fk_appointments_slot_id_doctor_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_appointments")),
    )
    op.create_index("ix_appointments_doctor_id_starts_at", "appointments", ["doctor_id", "starts_at", "id"], unique=False)
    op.create_index(
        "ix_appointments_expires_at",
        "appointments",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'requested'"),
    )
    op.create_index("ix_appointments_patient_id_starts_at", "appointments", ["patient_id", "starts_at", "id"], unique=False)
    op.create_index(
        "uq_appointments_slot_id_active", "appointments", ["slot_id"], unique=True, postgresql_where=sa.text("active")
    )
    op.create_table(
        "history",
        sa.Column("appointment_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=False),
        sa.Column("command_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.LargeBinary(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["actor_id"], ["people.id"], name=op.f("fk_history_actor_id")),
        sa.ForeignKeyConstraint(["appointment_id"], ["appointments.id"], name=op.f("fk_history_appointment_id")),
        sa.PrimaryKeyConstraint("appointment_id", "position", name=op.f("pk_history")),
    )
    op.create_index("ix_history_at", "history", ["at"], unique=False)
    op.create_table(
        "notices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("appointment_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sequence", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("during", postgresql.TSTZRANGE(), nullable=True),
        sa.Column("secret", sa.LargeBinary(), nullable=True),
        sa.Column("command_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dropped_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("drop_reason", sa.Text(), nullable=True),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["appointment_id"], ["appointments.id"], name=op.f("fk_notices_appointment_id")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_notices_person_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notices")),
    )
    op.create_index(
        "ix_notices_due",
        "notices",
        ["next_try_at"],
        unique=False,
        postgresql_where=sa.text("sent_at is null and dropped_at is null"),
    )
    op.create_index("ix_notices_person_id", "notices", ["person_id", "id"], unique=False)
    op.create_index(
        "ix_notices_undelivered",
        "notices",
        ["dropped_at"],
        unique=False,
        postgresql_where=sa.text("drop_reason in ('address_refused', 'undeliverable', 'faulty')"),
    )
    op.create_index(
        "uq_notices_once",
        "notices",
        ["appointment_id", "person_id", "kind", "due_at"],
        unique=True,
        postgresql_where=sa.text("appointment_id is not null"),
    )
    op.create_table(
        "retained",
        sa.Column("appointment_id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("retained_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["appointment_id"], ["appointments.id"], name=op.f("fk_retained_appointment_id")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name=op.f("fk_retained_person_id")),
        sa.PrimaryKeyConstraint("appointment_id", name=op.f("pk_retained")),
    )
    op.create_index("ix_retained_person_id", "retained", ["person_id"], unique=False)

    op.execute(
        """
        create function refuse_change() returns trigger language plpgsql as $$
        begin
            raise exception '% is append-only', tg_table_name using errcode = 'insufficient_privilege';
        end $$
        """
    )
    for table in APPEND_ONLY:
        op.execute(
            f"create trigger append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )
    op.execute(f"insert into people (id, role) values ('{SYSTEM}', 'system')")
    op.execute("insert into cache (id, epoch, in_use) values (1, 1, true)")


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    op.execute("drop function refuse_change()")
