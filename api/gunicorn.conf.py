"""How gunicorn serves the API: gevent workers, every wait bounded, and the application made after the fork."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
from typing import Any
from uuid import uuid4

from gunicorn import glogging, util
from prometheus_client.multiprocess import mark_process_dead

from domain import logs
from domain.settings import SettingsError, current


class Logger(glogging.Logger):
    """gunicorn's own messages, as lines like all others."""

    def setup(self, cfg: Any) -> None:
        """Hand gunicorn's error log to the root's handler."""
        super().setup(cfg)
        logs.configure(_settings.log_level)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


def write_problem(client: socket.socket, status: int, reason: str, message: str) -> None:
    """Answer what never became a request, such as a header that is too long, with a problem document too."""
    code = reason.lower().replace(" ", "_").replace("-", "_")
    body = json.dumps(
        {
            "type": f"urn:healthmed:problem:{code}",
            "title": reason,
            "status": status,
            "detail": f"O pedido não pôde ser lido. / The request could not be read: {reason}.",
            "code": code,
        },
        ensure_ascii=False,
    ).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nX-Request-ID: {uuid4()}\r\n"
        "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\r\n"
    )
    util.write_nonblock(client, head.encode("latin-1") + body)


def post_fork(server: Any, worker: Any) -> None:
    """Heed a SIGTERM that comes before the worker itself can: it would be the master's to hear, and not be sent again."""
    signal.signal(signal.SIGTERM, lambda *_: setattr(worker, "alive", False))


def child_exit(server: Any, worker: Any) -> None:
    """A dead process holds no connection any more."""
    mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Remove what the processes counted, if nobody gave a folder for it."""
    if _counts is not None:
        shutil.rmtree(_counts, ignore_errors=True)


try:
    _settings = current()
except SettingsError as error:
    raise SystemExit(f"settings: {error}") from None

util.write_error = write_problem

_counts = None
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # where processes put their figures, so that any of them can tell all
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = _counts = tempfile.mkdtemp(prefix="healthmed-metrics-")

bind = (os.environ.get("BIND") or f"127.0.0.1:{_settings.port}").split(",")
workers = _settings.api_workers
worker_class = "api.worker.Worker"
worker_connections = 12_000
control_socket_disable = True  # it would lie in the home folder, one for all stacks
preload_app = False  # engines, clients and threads belong to one process

timeout = 15
graceful_timeout = 20
keepalive = 75

limit_request_line = 8190
limit_request_fields = 64
limit_request_field_size = 8190
forwarded_allow_ips = ""  # the application itself trusts a stated number of proxies, and nobody else

logger_class = Logger
loglevel = "warning"
accesslog = None  # the application writes a line for each request, without its query
proc_name = "healthmed-api"
