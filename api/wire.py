"""Requests as a client writes them, where there is but one way to read them, and answers as gunicorn writes them.

For what is answered before a server has parsed it; who sends anything less plain is no worse off, only dearer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from io import BytesIO
from time import time
from typing import TYPE_CHECKING, Final

from gunicorn import SERVER

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# What every server reads alike: a target without escapes, names without underscores, and no value but of printable ASCII.
_HEAD: Final = re.compile(rb"([A-Z]{3,6}) (/api/v1/[a-z0-9/-]+) HTTP/1\.1((?:\r\n[A-Za-z0-9-]+:[\t -~]*){1,64})")
_FIELD: Final = re.compile(r"\r\n([^:]+):[\t ]*([^\r]*)")
_SERVERS: Final = frozenset(  # what only a server does
    ["HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_UPGRADE", "HTTP_HTTP2_SETTINGS", "HTTP_TRAILER", "HTTP_TE"]
)
_CONNECTION: Final = ("close", "keep-alive")
_NAMES: Final = 256  # of headers, remembered as CGI calls them


def environ_of(head: bytes, body: bytes, address: str) -> WSGIEnvironment | None:
    """What a plain request without a query asks of an application, by its head less the blank line, and its whole body.

    None if it could be read in another way, or its connection is not to stay open.
    """
    line = _HEAD.fullmatch(head)
    if line is None:
        return None
    method, path, rest = line.groups()
    fields = _FIELD.findall(rest.decode())
    environ = {_cgi_name(name): value.rstrip() for name, value in fields}
    if len(environ) < len(fields) or not _SERVERS.isdisjoint(environ):
        return None
    if environ.get("HTTP_CONNECTION", "keep-alive").lower() != "keep-alive":
        return None
    environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"] = method.decode(), path.decode(), ""
    return {**environ, **_SERVER, "REMOTE_ADDR": address, "wsgi.input": BytesIO(body), "wsgi.errors": sys.stderr}


def written(status: str, headers: Iterable[tuple[str, str]], body: bytes, *, keep: bool = True) -> bytes:
    """A whole answer, which says whether its sender would `keep` the connection."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    begun = f"HTTP/1.1 {status}\r\nServer: {SERVER}\r\nDate: {_date(int(time()))}\r\nConnection: {_CONNECTION[keep]}\r\n"
    return f"{begun}{lines}\r\n".encode("latin-1") + body


_SERVER: Final = {
    "SCRIPT_NAME": "",
    "SERVER_NAME": "",
    "SERVER_PORT": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


@lru_cache(_NAMES)
def _cgi_name(name: str) -> str:
    upper = name.upper().replace("-", "_")
    return upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{upper}"


@lru_cache(1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
