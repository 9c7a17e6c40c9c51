"""The application that gunicorn serves, with the settings of its environment."""

from __future__ import annotations

import sys

from api.app import create_app
from domain.settings import SettingsError, current

try:
    app = create_app(current())
except SettingsError as error:
    sys.exit(f"settings: {error}")
