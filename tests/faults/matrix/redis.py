"""R1 to R7: Redis killed, emptied, hung, cut off, full, failed over without its last writes, and losing replies."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from local.servers import Broker
from tests.faults.ground import Ground, ask, until
from tests.faults.matrix.rows import row

DECIDED = 8.0  # seconds in which 99% are decided, however often Redis is lost
HUNG = 20.0


@row("R1", "broker killed, its file kept", "202 goes on, the relay wakes again")
def broker_killed(ground: Ground) -> None:
    with ground.load() as run:
        for _ in run.spread(ground.many(5_000), ground.many(20)):
            ground.stack.broker.kill()
            time.sleep(ground.chance.uniform(0, 1))
            ground.stack.broker.start()
    ground.note("kills", ground.many(20))
    ground.note_decisions(run, p99=DECIDED)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("R2", "broker and cache restarted empty", "the same; projections are filled again, what was revoked stays so")
def both_emptied(ground: Ground) -> None:
    stack = ground.stack
    revoked = {"Authorization": f"Bearer {_logged_out(ground)}"}
    statuses = []
    with ground.load() as run:
        for _ in run.spread(ground.many(5_000), ground.many(20)):
            stack.broker.erase()
            stack.cache.erase()
            stack.broker.start()
            stack.cache.start()
            statuses += [ask(ground.address, "/api/v1/me", revoked) for _ in range(3)]
    ground.note("restarts", ground.many(20))
    ground.note_decisions(run, p99=DECIDED)
    ground.note("5xx or no answer", run.unanswered(), most=0)
    ground.note("answers to a revoked token", sum(status != 401 for status in statuses), most=0)


@row("R3", "broker and cache hung for 20 s", "the API waits for neither, and no worker stays stuck")
def both_hung(ground: Ground) -> None:
    stack = ground.stack
    with ground.load(rate=50) as run:
        time.sleep(2)
        stack.broker.freeze()
        stack.cache.freeze()
        begun = time.monotonic()
        time.sleep(ground.long(HUNG, least=6))
        stack.broker.thaw()
        stack.cache.thaw()
        ended = time.monotonic()
        ground.note("decided again after", until(lambda: not ground.overdue(), 60), "s", most=30)
    ground.note("hung for", ended - begun, "s")
    ground.note("p99 of the API meanwhile", run.answer_p99(begun, ended), "s", most=1.5)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("R4", "API, and then workers, cut off from the broker (a black hole)", "half-open connections are noticed", stack="proxied")
def cut_off(ground: Ground) -> None:
    stack = ground.stack
    with ground.load(rate=50) as run:
        for end in ("api", "others"):
            proxy = stack.proxies[end, "broker"]
            proxy.swallow()
            time.sleep(ground.long(HUNG, least=6))
            proxy.heal()
            ground.note(f"{end}: decided again after", until(lambda: not ground.overdue(), 90), "s", most=60)
    ground.note_decisions(run, p99=None, most=None)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("R5", "broker full (maxmemory)", "publishing fails, 202 goes on, nothing is evicted, a figure tells")
def broker_full(ground: Ground) -> None:
    stack = ground.stack
    failed = _failed_wake_ups(ground)
    with ground.load(rate=50) as run, stack.redis(stack.broker) as client:
        limit = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 1)
        begun = time.monotonic()
        time.sleep(ground.long(20, least=4))
        acknowledged = sum(call.end is not None and call.end.status == 202 for call in run.calls(begun))
        client.config_set("maxmemory", limit)
        ground.note("decided again after", until(lambda: not ground.overdue(), 60), "s", most=30)
        ground.note("keys evicted", client.info("stats")["evicted_keys"], most=0)
    ground.note("acknowledged while it was full", acknowledged, least=1)
    ground.note("5xx or no answer", run.unanswered(), most=0)
    ground.note("failed wake-ups that /metrics tells of", _failed_wake_ups(ground) - failed, least=1)


@row("R6", "broker failed over to a replica without the last writes", "two may hold one lock; nothing twice", stack="proxied")
def failed_over(ground: Ground) -> None:
    stack = ground.stack
    with ground.load() as run, _replica(ground) as replica:
        run.await_bookings(ground.many(500, least=100))
        with stack.redis(replica) as client:
            client.replicaof("NO", "ONE")
        time.sleep(1)  # what is written now is lost
        stack.broker.freeze()
        for end in ("api", "others"):
            stack.proxies[end, "broker"].lead_to(replica.port)
        run.await_bookings(ground.many(1_000, least=200))
        stack.broker.thaw()
        for end in ("api", "others"):
            stack.proxies[end, "broker"].lead_to(stack.broker.port)
    ground.note_decisions(run, p99=DECIDED)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("R7", "every 50th reply of Redis lost", "what is done twice does no harm, no lock stays held for long", stack="proxied")
def replies_lost(ground: Ground) -> None:
    stack = ground.stack
    ends = [(end, server) for end in ("api", "others") for server in ("broker", "cache")]
    with ground.load() as run:
        for end in ends:
            stack.proxies[end].lose_every(50)
        time.sleep(ground.long(30, least=5))
        for end in ends:
            stack.proxies[end].heal()
    assert run.figures is not None
    ground.note("median to decision", run.figures.to_decision[0], "s", most=2)
    ground.note_decisions(run, p99=DECIDED)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@contextmanager
def _replica(ground: Ground) -> Iterator[Broker]:
    """A broker that follows the stack's, under the same password."""
    broker = ground.stack.broker
    replica = Broker(ground.folder / "broker-replica")
    replica._password = broker._password
    replica.start()
    try:
        with ground.stack.redis(replica) as client:
            client.config_set("masterauth", broker._password)
            client.replicaof("127.0.0.1", str(broker.port))
            until(lambda: client.info("replication")["master_link_status"] == "up")
        yield replica
    finally:
        replica.kill()


def _failed_wake_ups(ground: Ground) -> float:
    """What the API's processes say of the wake-ups that they could not send."""
    with urllib.request.urlopen(f"{ground.stack.base_url}/metrics", timeout=10) as answer:  # nosec B310
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith('healthmed_wake_ups_total{outcome="failed"}'))


def _logged_out(ground: Ground) -> str:
    """A token that was good until its owner logged out."""
    token = ground.spare.pop().token
    headers = {"Authorization": f"Bearer {token}"}
    assert ask(ground.address, "/api/v1/me", headers) in (200, 401)
    ask(ground.address, "/api/v1/auth/logout", headers, "POST")
    return token
