"""The way of the schema, one step a file, safe to run while the version before still serves."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

APPEND_ONLY = ("history", "audit", "roots")


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    return config


def upgrade(url: str, revision: str = "head", *, app_url: str | None = None) -> None:
    """Bring the schema at `url` up to `revision`; a second caller waits for the first.

    The role of `app_url`, if it is another one, may then use the data, but neither change the schema nor rewrite what is
    append-only.
    """
    command.upgrade(_config(url), revision)
    role = make_url(app_url).username if app_url else None
    if role and role != make_url(url).username:
        _grant(url, role)


def is_ready(url: str) -> bool:
    """Whether the schema at `url` is as new as this version's, or newer: after a rollback the version before serves on it.

    Raises sqlalchemy.exc.SQLAlchemyError while the database can't be asked.
    """
    script = ScriptDirectory.from_config(_config(url))
    engine = create_engine(url, connect_args={"connect_timeout": 3})
    try:
        with engine.connect() as connection:
            there = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    known = {each.revision for each in script.walk_revisions()}
    return there is not None and (there == script.get_current_head() or there not in known)


def downgrade(url: str, revision: str = "base") -> None:
    """Take the schema at `url` back to `revision`."""
    command.downgrade(_config(url), revision)


def _grant(url: str, role: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        quoted = engine.dialect.identifier_preparer.quote(role)
        connection.execute(text(f"grant select, insert, update, delete on all tables in schema public to {quoted}"))
        connection.execute(text(f"grant usage, select on all sequences in schema public to {quoted}"))
        connection.execute(text(f"revoke update, delete on {', '.join(APPEND_ONLY)} from {quoted}"))
        connection.execute(text(f"revoke insert, update, delete on alembic_version from {quoted}"))
    engine.dispose()
