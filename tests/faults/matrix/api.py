"""A1 and A2: the API killed at each dangerous point, and clients that never finish what they say."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.faults.ground import Ground, Probe, quantile
from tests.faults.harm import API_POINTS
from tests.faults.matrix.rows import row
from tests.faults.matrix.workers import kill_at

SLOW_CLIENTS = 400


@row("A1", "an API process killed between commit and answer, and around", "the same key again finds the same command, one effect")
def killed_at_points(ground: Ground) -> None:
    kills = 0
    with ground.load(rate=60) as run:
        for point in API_POINTS:
            kills += kill_at(ground, "api", point, ground.many(10))
        ground.stack.restart("api")
    ground.note("kills", kills)
    ground.note("given up by a client that tried again", run.load.shared.gave_up, most=0)
    ground.note("calls that got no answer", run.unanswered())
    ground.note_decisions(run, p99=8)


@row("A2", "clients that send a byte a second, and never read", "the others notice nothing")
def slow_clients(ground: Ground) -> None:
    seconds = ground.long(15, least=5)
    path = f"/api/v1/doctors/{ground.crowd.doctors[0].id}"
    with ground.load(rate=30) as run:
        with Probe(ground.stack.base_url, path) as calm:
            time.sleep(seconds)
        begun = time.monotonic()
        with contextlib.ExitStack() as slow, Probe(ground.stack.base_url, path) as harmed:
            sockets = [slow.enter_context(socket.create_connection(ground.address.split(":"), 10)) for _ in range(SLOW_CLIENTS)]
            while time.monotonic() - begun < seconds:
                for client in sockets:
                    with contextlib.suppress(OSError):
                        client.send(b"POST /api/v1/appointments HTTP/1.1\r\nX-Slow: "[: 1 + int(time.monotonic() - begun)])
                time.sleep(1)
    ground.note("slow clients", SLOW_CLIENTS)
    ground.note("median of the others without them", quantile(calm.seconds, 0.5) * 1000, "ms")
    ground.note("with", quantile(harmed.seconds, 0.5) * 1000, "ms")
    ground.note("p99 with", harmed.p99, "s", most=max(2 * calm.p99, 0.5))
    ground.note("others not answered 200", sum(status != 200 for status in harmed.statuses), most=0)
    ground.note("5xx or no answer", run.unanswered(), most=0)
