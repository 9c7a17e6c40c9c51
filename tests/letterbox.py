"""The mails that wait to be sent, taken as the worker takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.message import EmailMessage

from sqlalchemy import Engine

from domain import notices
from domain.notices import Drop
from domain.settings import Settings
from workers.mail import compose

_TOKEN = re.compile(r"#token=([\w-]{43})\b")


def mails(engine: Engine, settings: Settings) -> list[EmailMessage]:
    """Every mail that is due, sent."""
    return list(_sent(engine, settings))


def token(mail: EmailMessage) -> str:
    """The token of the link in a mail: the same in its text and its HTML."""
    parts = [part.get_content() for part in mail.iter_parts()]
    (found,) = {found for part in parts for found in _TOKEN.findall(part)}
    return str(found)


def _sent(engine: Engine, settings: Settings) -> Iterator[EmailMessage]:
    while True:
        with engine.begin() as connection:
            notice = notices.claim(connection)
            if notice is None:
                return
            letter = notices.letter(connection, settings.data_keys, settings.limits.reminders, notice)
            if isinstance(letter, Drop):
                notices.drop(connection, notice, letter)
            else:
                notices.mark_sent(connection, notice)
                yield compose(letter, settings)
