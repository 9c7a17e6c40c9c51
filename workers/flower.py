"""Flower, behind its password: it starts only where a setting opens it, and where nobody could guess the log-in."""

from __future__ import annotations

import sys

from celery import Celery

from domain import settings
from domain.settings import SettingsError
from workers.configuration import configuration


def main() -> None:
    """Run Flower with the options of the command line. It reads its log-in from FLOWER_BASIC_AUTH by itself."""
    try:
        chosen = settings.current()
    except SettingsError as error:
        sys.exit(f"settings: {error}")
    if not chosen.flower:
        sys.exit("settings: FLOWER: is off, so that nothing of the workers is shown")
    if chosen.flower_login is None:
        sys.exit("settings: FLOWER_BASIC_AUTH: is required and not set")
    # Not the workers' own app, which would load all that decides and mails: what there is to show comes in events.
    app = Celery("healthmed")
    app.conf.update(configuration(chosen.broker_url))
    app.start(["flower", *sys.argv[1:]])


if __name__ == "__main__":
    main()
