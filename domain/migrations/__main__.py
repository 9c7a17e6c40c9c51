"""`python -m domain.migrations` brings the schema up to date, as the role that may change it."""

import sys

from sqlalchemy.engine import make_url

from domain.migrations import upgrade
from domain.settings import SettingsError, current

try:
    settings = current()
except SettingsError as error:
    sys.exit(f"settings: {error}")
app, owner = settings.database_url, settings.database_migration_url
if not settings.local_stack and make_url(app).username == make_url(owner).username:
    sys.exit("settings: DATABASE_MIGRATION_URL: needs a role of its own, or the application could change the schema")
upgrade(owner, app_url=app)
