"""`python -m domain.migrations` brings the schema up to date, as the role that may change it."""

from domain.migrations import upgrade
from domain.settings import current

upgrade(current().database_migration_url, app_url=current().database_url)
