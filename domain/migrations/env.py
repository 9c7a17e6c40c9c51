"""How Alembic runs a migration here: one at a time, and never waiting long for a lock that the serving version holds."""

from alembic import context
from sqlalchemy import create_engine, text

from domain.model import Base

ADVISORY_LOCK = 7_406_001

engine = create_engine(context.config.attributes["url"], connect_args={"connect_timeout": 3})
with engine.begin() as connection:
    connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
    connection.execute(text("set local lock_timeout = '5s'"))
    context.configure(connection=connection, target_metadata=Base.metadata)
    context.run_migrations()
engine.dispose()
