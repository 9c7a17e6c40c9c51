"""How Alembic runs a migration here: one at a time, and never waiting long for a lock that the serving version holds."""

import time

from alembic import context
from sqlalchemy import create_engine, text

from domain.model import Base

ADVISORY_LOCK = 7_406_001

# The lock is the session's, since building an index beside writers ends the transaction. It is asked for again and again rather
# than waited for: whoever waits in a statement is waited for by such a build.
engine = create_engine(context.config.attributes["url"], connect_args={"connect_timeout": 3, "options": "-c lock_timeout=5000"})
with engine.connect() as connection:
    while not connection.execute(text("select pg_try_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK}).scalar_one():
        connection.rollback()
        time.sleep(0.2)
    connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
