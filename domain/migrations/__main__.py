"""`python -m domain.migrations` brings the schema up to date, as the role that may; with `wait`, it waits until that was done."""

import sys
import time

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from domain.migrations import is_ready, upgrade
from domain.settings import SettingsError, current

LOOK_SECONDS = 1.0


def _wait(url: str) -> None:
    """Wait for the schema, and tell each time that the reason changes. Whoever started this sets the limit of time."""
    told = ""
    while True:
        try:
            if is_ready(url):
                return
            why = "the schema is not there yet, or older than this version"
        except SQLAlchemyError as error:
            why = f"the database can't be asked ({type(error).__name__})"
        if why != told:
            sys.stderr.write(f"waiting: {why}\n")
            told = why
        time.sleep(LOOK_SECONDS)


try:
    settings = current()
except SettingsError as error:
    sys.exit(f"settings: {error}")
app, owner = settings.database_url, settings.database_migration_url
if sys.argv[1:] == ["wait"]:
    _wait(app)
    sys.exit()
if not settings.local_stack and make_url(app).username == make_url(owner).username:
    sys.exit("settings: DATABASE_MIGRATION_URL: needs a role of its own, or the application could change the schema")
upgrade(owner, app_url=app)
