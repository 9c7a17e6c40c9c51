"""The local SMTP server keeps what it is given."""

from __future__ import annotations

import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from local.servers import free_port

MESSAGE = b"Subject: Consulta\r\nTo: ana@example.com\r\n\r\n.Uma linha com ponto\r\n\xc3\xa9\r\n"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "local.mail", str(port), tmp_path])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.02)
    yield port
    process.terminate()
    process.wait()


def test_each_message_is_kept_byte_for_byte_in_the_order_it_came(port: int, tmp_path: Path):
    with smtplib.SMTP("127.0.0.1", port) as client:
        for number in range(12):
            client.sendmail("agenda@healthmed.example", ["ana@example.com"], MESSAGE + f"{number}\r\n".encode())
    kept = sorted(tmp_path.glob("*.eml"))
    assert [file.read_bytes() for file in kept] == [MESSAGE + f"{number}\r\n".encode() for number in range(12)]
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".eml"]
