"""T1 and T2: clocks that are ten minutes off, and time zones."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

from domain.database import connect
from local.crowd import Member
from tests import rows
from tests.faults.ground import Ground, until
from tests.faults.matrix.rows import row

SKEW = 600


@row("T1", "the clocks of API and workers ten minutes off", "limits in time are judged by the database's clock")
def skewed(ground: Ground) -> None:
    stack = ground.stack
    for ahead in (True, False):
        others = -SKEW if ahead else SKEW
        for name in ("booking", "notifications", "relay"):
            stack.restart(name, SKEW_SECONDS=str(others))
        if ahead:  # one that is behind believes no token of the load's: it takes them for not yet issued
            stack.restart("api", SKEW_SECONDS=str(SKEW))
        with ground.load(rate=40) as run:
            _book_at_the_limits(ground)
            time.sleep(ground.long(15, least=5))
        side = f"API {'ahead' if ahead else 'right'}, workers {'behind' if ahead else 'ahead'}"
        ground.note(f"{side}: bookings", run.booked, least=1)
        ground.note(f"{side}: 5xx or no answer", run.unanswered(), most=0)
        stack.restart("api")
    for name in ("booking", "notifications", "relay"):
        stack.restart(name)
    notice = stack.settings.limits.booking_notice
    late = (
        "select count(*) from history join appointments on appointments.id = history.appointment_id"
        " join commands on commands.id = command_id"
        f" where commands.kind = 'book' and lower(during) < received_at + interval '{notice} s'"
    )
    ground.note("slots booked too late", stack.superuser(late)[0][0], most=0)


@row("T2", "time zones, daylight saving and their changes", "instants in UTC, shown with their offset", stack="none")
def time_zones(ground: Ground) -> None:
    tests = ["tests/domain/test_availability.py", "tests/api/test_agenda.py"]
    ran = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], capture_output=True, text=True, timeout=300)
    words = ran.stdout.split()
    ground.note("property and agenda tests passed", int(words[words.index("passed") - 1]) if "passed" in words else 0, least=1)
    ground.note("failed", ran.returncode, most=0)


def _book_at_the_limits(ground: Ground) -> None:
    """Slots that clocks which are off would let pass, or refuse: each a few minutes to either side of the limit."""
    stack = ground.stack
    notice = timedelta(seconds=stack.settings.limits.booking_notice)
    engine = connect(stack.settings.database_url, pool_size=1)
    for shift, wanted in ((timedelta(minutes=5), "succeeded"), (timedelta(minutes=-5), "rejected")):
        with engine.begin() as connection:
            doctor = rows.add_doctor(connection, stack.settings)
            slot = rows.add_slot(connection, doctor, datetime.now(UTC) + notice + shift)
        found = _booked(ground, ground.spare.pop(), slot)
        ground.note(f"slot {'before' if wanted == 'rejected' else 'after'} the limit is {wanted}", int(found == wanted), least=1)
    engine.dispose()


def _booked(ground: Ground, patient: Member, slot: UUID) -> str:
    """What becomes of a booking."""
    connection = http.client.HTTPConnection(ground.address, timeout=15)
    headers = {"Authorization": f"Bearer {patient.token}", "Content-Type": "application/json"}
    connection.request("POST", "/api/v1/appointments", json.dumps({"slot_id": str(slot)}), headers)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    assert answer.status == 202, body
    status = "select status from commands where id = %s"
    until(lambda: ground.stack.superuser(status, (body["id"],))[0][0] != "pending")
    return str(ground.stack.superuser(status, (body["id"],))[0][0])
