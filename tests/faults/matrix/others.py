"""B1, B2, M1 and D1: two relays and none, a mail server that is gone, and a new version beside the old one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from email import message_from_bytes
from pathlib import Path
from uuid import UUID

from sqlalchemy import text
from uuid_utils.compat import uuid7

from domain import personal, privacy
from domain.database import connect
from domain.inbox import SECRET
from tests.faults.ground import Ground, until
from tests.faults.matrix.rows import row

STORED = Path(__file__).parents[1] / "stored.json"  # commands as released versions stored them
TICK = 0.05
MAILS_WITHIN = 300.0


@row("B1", "two relays, twenty turns a second each", "they do no more than one")
def two_relays(ground: Ground) -> None:
    stack = ground.stack
    stack.restart("relay", TURN_SECONDS=str(TICK))
    other = stack.second("relay")
    ticks, sent = ground.many(1_000), _copies(ground)
    with ground.load(rate=40) as run:
        begun = time.monotonic()
        while time.monotonic() - begun < ticks * TICK:
            time.sleep(1)
            _let_requests_lapse(ground, 5)
    stack.end(other)
    stack.restart("relay")
    ground.note("turns of each", ticks)
    twice = "select 1 from commands where kind = 'expire' group by appointment_id, deadline having count(*) > 1"
    ground.note("requests that lapsed", _count(ground, "select count(*) from commands where kind = 'expire'"), least=1)
    ground.note("lapsed twice", _count(ground, f"select count(*) from ({twice}) as twice"), most=0)
    ground.note("mails sent twice", sum(number > 1 and mail not in sent for mail, number in _copies(ground).items()), most=0)
    ground.note_decisions(run, p99=8)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row(
    "B2", "no relay for an hour (what waited is made an hour older)", "it catches up without a storm, and sends nothing pointless"
)
def no_relay(ground: Ground) -> None:
    stack = ground.stack
    stack.service("relay").kill()
    with ground.load(rate=40) as without:
        time.sleep(ground.long(20, least=5))
    assert without.figures is not None
    ground.note("p99 to decision without a relay", without.figures.to_decision[1], "s", most=8)
    with ground.load(rate=20) as run:
        time.sleep(1)
        stack.superuser("update notices set next_try_at = next_try_at - interval '1 hour' where sent_at is null")
        lapsed = _let_requests_lapse(ground, 300)
        stack.superuser("update availabilities set extended_on = extended_on - 1")
        stack.superuser(
            "update notices set due_at = now() - (1 + random()) * interval '1 hour', next_try_at = now() - interval '1 hour',"
            " during = tstzrange(now() - interval '30 minutes', now()) where kind = 'reminder' and sent_at is null"
            " and id in (select id from notices where kind = 'reminder' and sent_at is null limit 50)"
        )
        back = str(stack.superuser("select clock_timestamp()::text")[0][0])
        stack.service("relay").launch()
        longest, begun = 0, time.monotonic()
        while _behind(ground) and time.monotonic() - begun < 120:
            with stack.redis(stack.broker) as client:
                longest = max(longest, client.llen("booking"))
            time.sleep(0.05)
        caught_up = time.monotonic() - begun
    ground.note("requests that had lapsed", lapsed, least=1)
    ground.note("caught up after", caught_up, "s", most=60)
    ground.note("tasks that waited at once", longest, most=2 * stack.settings.lanes)
    late = (
        f"select count(*) from notices join appointments on appointments.id = appointment_id where sent_at >= '{back}' and ("
        "kind = 'reminder' and sent_at >= lower(notices.during)"
        " or kind = 'requested' and status = 'expired' and notices.sequence = appointments.sequence and sent_at >= expires_at)"
    )
    ground.note("pointless mails", _count(ground, late), most=0)
    ground.note("5xx or no answer", run.unanswered(), most=0)


@row("M1", "the mail server gone, then hung, then saying 451, ten minutes in all", "mails wait, bookings don't", stack="light")
def no_mail(ground: Ground) -> None:
    stack, proxy = ground.stack, ground.stack.proxies["mail"]
    window, whole = ground.long(25, least=6), ground.long(600, least=45)
    p99s: dict[str, list[float]] = {"up": [], "down": []}
    down = 0.0
    for _ in range(2):
        for state in ("up", "down"):
            (proxy.heal if state == "up" else proxy.refuse)()
            with ground.load(rate=20) as run:
                time.sleep(window)
            assert run.figures is not None
            p99s[state].append(run.figures.to_decision[1])
            down += window if state == "down" else 0
    rest = max(0.0, whole - down) / 3
    for harm in ("gone", "says 451", "hung"):
        stack.mailbox.answer = "451 come back later" if harm == "says 451" else None
        {"gone": proxy.refuse, "says 451": proxy.heal, "hung": proxy.swallow}[harm]()
        with ground.load(rate=3) as run:
            time.sleep(rest)
    stack.mailbox.answer = None
    proxy.heal()
    waiting = _count(ground, _UNSENT)
    ground.note("without mail", down + 3 * rest, "s")
    ground.note("mails that waited", waiting, least=1)
    ground.note("all sent after", until(lambda: _count(ground, _UNSENT) == 0, MAILS_WITHIN + 60, 0.5), "s", most=MAILS_WITHIN)
    ground.note("mails sent more than twice", sum(number > 2 for number in _copies(ground).values()), most=0)
    up, lost = (sorted(p99s[state])[0] for state in ("up", "down"))
    ground.note("bookings' p99 with mail", up, "s")
    ground.note("without", lost, "s", most=max(up * 1.05, up + 0.25))


@row("D1", "commands as released versions stored them, the schema step, every process replaced under load", "nobody notices")
def deployed(ground: Ground) -> None:
    stack = ground.stack
    with ground.load(rate=40) as run:
        time.sleep(1)
        schema = subprocess.run([sys.executable, "-m", "domain.migrations"], env=dict(stack.environ("schema")), timeout=60)
        stored = _store_old_commands(ground)
        for name in ("booking", "notifications", "relay"):
            new = stack.second(name)
            stack.wait_until_ready()
            stack.replace(name, new)
        query = "select count(*) from commands where id = any(%s::uuid[]) and status <> 'pending'"
        until(lambda: stack.superuser(query, (stored,))[0][0] == len(stored), 60)
    faulty = "select count(*) from commands where id = any(%s::uuid[]) and error_code = 'internal_error'"
    ground.note("schema step failed", schema.returncode, most=0)
    ground.note("old commands decided", len(stored), least=1)
    ground.note("old commands that could not be read", stack.superuser(faulty, (stored,))[0][0], most=0)
    ground.note("5xx or no answer", run.unanswered(), most=0)


_UNSENT = "select count(*) from notices where sent_at is null and dropped_at is null and due_at <= now()"


def _let_requests_lapse(ground: Ground, number: int) -> int:
    """Have the deadline of some open requests be an hour ago; how many there were."""
    return len(
        ground.stack.superuser(
            "with locked as materialized (select id from doctors order by id for no key update)"
            " update appointments set expires_at = greatest(requested_at, now() - interval '1 hour') where id in ("
            " select id from appointments where status = 'requested' and expires_at > now()"
            f" and (select count(*) from locked) > 0 order by id limit {number}) and status = 'requested' returning id"
        )
    )


def _behind(ground: Ground) -> bool:
    """Whether anything is left of what the relay should have done meanwhile."""
    return any(
        _count(ground, query)
        for query in (
            "select count(*) from appointments where status = 'requested' and expires_at <= now()",
            "select count(*) from availabilities where extended_on < current_date",
            _UNSENT + " and next_try_at < now() - interval '10 minutes'",
        )
    )


def _count(ground: Ground, query: str) -> int:
    return int(ground.stack.superuser(query)[0][0])


def _copies(ground: Ground) -> Counter[str]:
    """How often each mail came, by its Message-ID."""
    files = ground.stack.mailbox.folder.glob("*.eml")
    return Counter(str(message_from_bytes(file.read_bytes())["Message-ID"]) for file in files)


def _store_old_commands(ground: Ground) -> list[str]:
    """Put the commands of `stored.json` into the inbox of a doctor and a patient; their ids."""
    stack, patient = ground.stack, UUID(ground.spare.pop().id)
    doctor = UUID(ground.crowd.doctors[0].id)
    slots = [
        UUID(str(slot))
        for (slot,) in stack.superuser(
            "select id from slots where doctor_id = %s and status = 'open'"
            " and lower(during) > now() + interval '9 days' limit 20",
            (str(doctor),),
        )
    ]
    ids = []
    engine = connect(stack.settings.database_url, pool_size=1)
    with engine.begin() as connection:
        for each, slot in zip(json.loads(STORED.read_text("utf-8")), slots, strict=False):
            command_id, actor = uuid7(), patient if each["actor_role"] == "patient" else doctor
            key = personal.key_of(connection, stack.settings, actor)
            assert key is not None
            secret = privacy.seal(key, json.dumps(each["secret"]), context=SECRET, row_id=command_id) if each["secret"] else None
            connection.execute(
                text(
                    "insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, slot_id, payload, secret)"
                    " select :id, lane, :kind, :actor, :role, id, :slot, cast(:payload as jsonb), :secret"
                    " from doctors where id = :doctor"
                ),
                {
                    "id": command_id,
                    "kind": each["kind"],
                    "actor": actor,
                    "role": each["actor_role"],
                    "slot": slot if each["on_slot"] else None,
                    "payload": json.dumps(each["payload"]),
                    "secret": secret,
                    "doctor": doctor,
                },
            )
            ids.append(str(command_id))
    engine.dispose()
    return ids
