"""An SMTP server that delivers to a folder: `python -m local.mail PORT FOLDER` keeps each message as one .eml file."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from aiosmtpd.smtp import SMTP, Envelope, Session


class Catcher:
    """Keeps each message in `folder`, byte for byte, under a name that sorts by the time it came."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = itertools.count()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """What aiosmtpd calls for each message; 250 is answered when the file is there whole."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}-{next(self._count):06d}.eml"
        draft = self._folder / f".{name}"
        draft.write_bytes(cast(bytes, envelope.content))
        draft.rename(self._folder / name)
        return "250 OK"


async def serve(port: int, folder: Path) -> None:
    """Catch mail on `port` of 127.0.0.1 until cancelled."""
    catcher = Catcher(folder)
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(catcher, hostname="localhost", enable_SMTPUTF8=True), "127.0.0.1", port
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
