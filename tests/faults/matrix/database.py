"""P1 to P7: PostgreSQL killed, hung, slow, failed over, out of connections, behind on its replica, deadlocked, out of disk."""

from __future__ import annotations

import time

from tests.faults.ground import Ground, Probe, until
from tests.faults.matrix.rows import row
from tests.faults.matrix.workers import duplicated

RETURNED = 5.0  # seconds after the database's return until the first 202


@row("P1", "PostgreSQL killed", "503 with Retry-After, no false 202; what nobody can know is settled by the same key again")
def killed(ground: Ground) -> None:
    postgres = ground.stack.postgres
    returns = []
    with ground.load() as run:
        time.sleep(2)
        for _ in range(ground.many(10)):
            postgres.kill()
            time.sleep(ground.chance.uniform(0.5, 2))
            postgres.start()
            returns.append(time.monotonic())
            time.sleep(6)
    ground.note("kills", len(returns))
    ground.note("first 202 after its return, at worst", max(map(run.acknowledged_after, returns)), "s", most=RETURNED)
    ground.note("given up by a client that tried again", run.load.shared.gave_up, most=0)
    ground.note("503 or no answer", run.unanswered())
    ground.note_decisions(run, p99=None)


@row("P2", "PostgreSQL hung for 15 s, then 300 ms slower", "every wait is bounded, the API stays alive", stack="proxied")
def hung(ground: Ground) -> None:
    stack = ground.stack
    with ground.load(rate=40) as run:
        time.sleep(2)
        with Probe(stack.base_url, "/healthz") as probe:
            for end in ("api", "others"):
                stack.proxies[end, "database"].swallow()
            time.sleep(ground.long(15, least=8))
            for end in ("api", "others"):
                stack.proxies[end, "database"].heal()
            healed = time.monotonic()
            time.sleep(6)
            for end in ("api", "others"):
                stack.proxies[end, "database"].delay(0.15)  # each way
            time.sleep(ground.long(15, least=6))
            for end in ("api", "others"):
                stack.proxies[end, "database"].heal()
        ground.note("decided again after", until(lambda: not ground.overdue(), 60), "s", most=30)
    ground.note("p99 of /healthz", probe.p99, "s", most=0.2)
    ground.note("/healthz not 200", sum(status != 200 for status in probe.statuses), most=0)
    ground.note("first 202 after the hang", run.acknowledged_after(healed), "s", most=RETURNED)
    ground.note("503 or no answer", run.unanswered())


@row("P3", "PostgreSQL lost for good, its synchronous standby promoted", "nothing that was acknowledged is lost", stack="proxied")
def failed_over(ground: Ground) -> None:
    stack = ground.stack
    stack.superuser("alter system set synchronous_standby_names = '*'")
    stack.superuser("select pg_reload_conf()")
    until(lambda: stack.superuser("select true from pg_stat_replication where sync_state = 'sync'"))
    with ground.load() as run:
        run.await_bookings(ground.many(1_000, least=100))
        lost = time.monotonic()
        stack.postgres.kill()
        stack.promote()
        promoted = time.monotonic()
        run.await_bookings(ground.many(2_000, least=200))
    ground.note("promoted within", promoted - lost, "s")
    ground.note("first 202 after that", run.acknowledged_after(promoted), "s", most=RETURNED)
    ground.note("given up by a client that tried again", run.load.shared.gave_up, most=0)
    ground.note_decisions(run, p99=None)


@row("P4", "no connection to PostgreSQL to be had", "a quick 503, and all is well again soon")
def exhausted(ground: Ground) -> None:
    stack = ground.stack
    with ground.load() as run:
        time.sleep(2)
        stack.superuser("alter role healthmed_app connection limit 5")
        stack.superuser("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'healthmed_app'")
        begun = time.monotonic()
        time.sleep(ground.long(15, least=6))
        stack.superuser("alter role healthmed_app connection limit -1")
        ended = time.monotonic()
        time.sleep(6)
    late = [call.begin.t - ended for call in run.calls(ended) if call.end and (call.end.status or 0) >= 500]
    ground.note("503 or no answer", run.unanswered(), least=1)
    ground.note("p99 of the API meanwhile", run.answer_p99(begun, ended), "s", most=2.5)
    ground.note("the last 5xx after its end", max(late, default=0), "s", most=5)


@row("P5", "replica 30 s behind", "nobody sees less than they were told: the primary is read instead", stack="proxied")
def behind(ground: Ground) -> None:
    assert ground.stack.replica is not None
    with ground.load(rate=60) as run:
        time.sleep(1)
        ground.stack.replica.pause()
        time.sleep(ground.long(30, least=5))
        ground.stack.replica.resume()
        time.sleep(2)
    ground.note_decisions(run, p99=8)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("P6", "four workers on one lane at a time, without the lock of Redis", "row locks in one order: no deadlock")
def contended(ground: Ground) -> None:
    stack = ground.stack
    before = _conflicts(ground)
    stack.restart("booking", NO_LANE_LOCKS="on")
    other = stack.second("booking")
    stack.wait_until_ready()
    with ground.load() as run, duplicated(ground):
        run.await_bookings(ground.many(2_000))
    stack.end(other)
    stack.restart("booking")
    ground.note_decisions(run, p99=8)
    ground.note("deadlocks and failed serializations", _conflicts(ground) - before, most=0)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("P7", "PostgreSQL's disk full", "no 202 that is not stored; it goes on when there is room", stack="small disk")
def disk_full(ground: Ground) -> None:
    stack = ground.stack
    filler = stack.postgres.directory / "filler"
    with ground.load(rate=60) as run:
        time.sleep(2)
        begun = time.monotonic()
        with filler.open("wb", buffering=0) as output:
            try:
                while time.monotonic() - begun < ground.long(20, least=8):
                    try:
                        output.write(b"\0" * 65536)
                    except OSError:
                        time.sleep(0.1)
            finally:
                filler.unlink()
        if not stack.postgres.running or not stack.postgres.answers():
            stack.postgres.start()
        ended = time.monotonic()
        ground.note("decided again after", until(lambda: not ground.overdue(), 60), "s", most=30)
    ground.note("503 or no answer", run.unanswered(), least=1)
    ground.note("first 202 when there was room again", run.acknowledged_after(ended), "s", most=RETURNED)
    ground.note("given up by a client that tried again", run.load.shared.gave_up, most=0)


def _conflicts(ground: Ground) -> int:
    """How often PostgreSQL broke off a transaction for another one's sake."""
    return ground.stack.logged("deadlock detected") + ground.stack.logged("could not serialize")
