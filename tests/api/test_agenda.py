"""What a patient sees of a doctor's availability: zones and their clocks, dates, horizons, and edits while somebody looks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.api.clinic import Clinic
from tests.factories import Someone
from workers.relay import Relay

DAY = timedelta(days=1)
SEVEN = ["00:30", "01:00", "01:30", "02:00", "02:30", "03:00", "03:30"]  # that the rule of the clocks' test makes on other days


@pytest.fixture
def doctor(clinic: Clinic) -> Someone:
    """A doctor of São Paulo with no availability yet."""
    return clinic.accounts.doctor()


def ranges(*spans: str, days: Any = range(1, 8), minutes: int = 30, **values: Any) -> list[dict[str, Any]]:
    """Rules of such ranges (`09:00-12:00`) on each of these weekdays."""
    return [
        {"weekday": day, "start": span[:5], "end": span[6:], "slot_minutes": minutes, **values} for day in days for span in spans
    ]


def put(
    clinic: Clinic, doctor: Someone, rules: list[dict[str, Any]], *exceptions: dict[str, str], **values: Any
) -> dict[str, Any]:
    """Put an availability; what it came to."""
    body = {"rules": rules, "exceptions": list(exceptions), **values}
    return dict(clinic.done("PUT", "/doctors/me/availability", doctor, body)["result"])


def today(doctor_zone: str = "America/Sao_Paulo") -> date:
    """The doctor's today."""
    return datetime.now(ZoneInfo(doctor_zone)).date()


def agenda(clinic: Clinic, doctor: Someone, from_: date, days: int = 1) -> dict[str, list[dict[str, Any]]]:
    """The bookable slots of some days, by date."""
    answer = clinic.get(f"/doctors/{doctor.id}/agenda?from={from_}&days={days}")
    assert answer.status_code == 200, answer.json
    return {day["date"]: day["slots"] for day in answer.json["days"]}


def clock(clinic: Clinic, doctor: Someone, day: date) -> list[str]:
    """When the slots of a day begin, as the doctor's clock shows it."""
    return [slot["starts_at"][11:16] for slot in agenda(clinic, doctor, day)[str(day)]]


def test_a_day_may_have_several_ranges(clinic: Clinic, doctor: Someone) -> None:
    put(clinic, doctor, [*ranges("09:00-10:00", "14:00-15:00"), *ranges("22:00-00:00", minutes=60)])
    assert clock(clinic, doctor, today() + 2 * DAY) == ["09:00", "09:30", "14:00", "14:30", "22:00", "23:00"]


def test_a_rule_makes_slots_within_its_dates_only(clinic: Clinic, doctor: Someone) -> None:
    first, last = today() + 5 * DAY, today() + 8 * DAY
    put(clinic, doctor, ranges("09:00-10:00", minutes=60, valid_from=str(first), valid_until=str(last)))
    shown = agenda(clinic, doctor, today(), 14)
    assert [day for day, slots in shown.items() if slots] == [str(first + n * DAY) for n in range(4)]


def test_time_off_takes_what_it_touches_and_gives_it_back(clinic: Clinic, doctor: Someone) -> None:
    day = today() + 3 * DAY
    rules = ranges("09:00-12:00")
    off = {"starts_at": f"{day}T09:45:00-03:00", "ends_at": f"{day}T10:30:00-03:00", "reason": "Congresso"}
    put(clinic, doctor, rules, off)
    assert clock(clinic, doctor, day) == ["09:00", "10:30", "11:00", "11:30"]
    assert clock(clinic, doctor, day + DAY) == ["09:00", "09:30", "10:00", "10:30", "11:00", "11:30"]
    put(clinic, doctor, rules)
    assert clock(clinic, doctor, day) == clock(clinic, doctor, day + DAY)
    assert "Congresso" not in clinic.get(f"/doctors/{doctor.id}/agenda?days=31").text


def test_extra_slots_stand_beside_the_rules_and_outlive_them(clinic: Clinic, doctor: Someone) -> None:
    day = today() + 3 * DAY
    put(clinic, doctor, ranges("09:00-10:00"))
    extra = {"starts_at": f"{day}T18:00:00-03:00", "ends_at": f"{day}T18:45:00-03:00"}
    slot_id = clinic.done("POST", "/doctors/me/slots", doctor, extra)["result"]["slot_id"]
    assert clock(clinic, doctor, day) == ["09:00", "09:30", "18:00"]
    put(clinic, doctor, ranges("17:30-19:30"))  # neither in its place nor across it
    assert clock(clinic, doctor, day) == ["17:30", "18:00", "19:00"]
    put(clinic, doctor, [])
    (slot,) = agenda(clinic, doctor, day)[str(day)]
    assert slot["id"] == slot_id


def test_a_withdrawn_slot_is_not_made_again(clinic: Clinic, doctor: Someone) -> None:
    day = today() + 3 * DAY
    put(clinic, doctor, ranges("09:00-10:00"))
    clinic.done("DELETE", f"/doctors/me/slots/{agenda(clinic, doctor, day)[str(day)][0]['id']}", doctor)
    put(clinic, doctor, ranges("09:00-11:00"))
    assert clock(clinic, doctor, day) == ["09:30", "10:00", "10:30"]


def test_a_doctor_who_moves_to_another_zone_works_at_the_same_hours_there(clinic: Clinic, doctor: Someone) -> None:
    day = today() + 3 * DAY
    rules = ranges("09:00-10:00")
    put(clinic, doctor, rules)
    booked, other = agenda(clinic, doctor, day)[str(day)]
    appointment_id = clinic.book(clinic.accounts.patient(), booked["id"])
    result = put(clinic, doctor, rules, timezone="Asia/Tokyo")
    assert result["appointments_outside"] == [appointment_id]
    shown = agenda(clinic, doctor, day)[str(day)]
    assert [slot["starts_at"][11:] for slot in shown] == ["09:00:00+09:00", "09:30:00+09:00"]
    assert other["id"] not in {slot["id"] for slot in shown}
    card = clinic.get(f"/doctors/{doctor.id}").json
    assert card["timezone"] == clinic.get("/doctors").json["items"][0]["timezone"] == "Asia/Tokyo"
    stays = clinic.get(f"/appointments/{appointment_id}", doctor).json
    assert datetime.fromisoformat(stays["starts_at"]) == datetime.fromisoformat(booked["starts_at"])


@pytest.mark.parametrize(
    ("zone", "forward"),
    [
        ("America/New_York", ["00:30", "01:00", "01:30", "03:00", "03:30"]),
        ("Europe/Lisbon", ["00:30", "02:00", "02:30", "03:00", "03:30"]),
    ],
)
def test_where_clocks_change_no_slot_is_lost_made_twice_or_shown_at_a_time_that_never_is(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, zone: str, forward: list[str]
) -> None:
    clinic = clinic.under(monkeypatch, booking_horizon_days=366)
    doctor = clinic.accounts.doctor()
    put(clinic, doctor, ranges("00:30-04:00"), timezone=zone)
    for day, shift in changes(zone):
        shown = agenda(clinic, doctor, day)[str(day)]
        assert [slot["starts_at"][11:16] for slot in shown] == (forward if shift > timedelta() else SEVEN)
        times = [(datetime.fromisoformat(slot["starts_at"]), datetime.fromisoformat(slot["ends_at"])) for slot in shown]
        assert all(ends - starts == timedelta(minutes=30) for starts, ends in times)
        assert all(one[1] <= other[0] for one, other in pairwise(times))
        zones = {slot["starts_at"][19:] for slot in shown}
        assert zones == {at.astimezone(ZoneInfo(zone)).isoformat()[19:] for at, _ in times}


def changes(zone: str) -> Iterator[tuple[date, timedelta]]:
    """The dates of the coming 360 days on which a zone's clocks change, and by how much."""
    here = ZoneInfo(zone)
    for n in range(2, 360):
        day = today(zone) + n * DAY
        opens, closes = (datetime(each.year, each.month, each.day, tzinfo=here).utcoffset() for each in (day, day + DAY))
        assert opens is not None
        assert closes is not None
        if opens != closes:
            yield day, closes - opens


def test_the_horizon_moves_by_itself_each_day(clinic: Clinic, doctor: Someone) -> None:
    put(clinic, doctor, ranges("00:00-00:00", minutes=240))
    far = today() + 59 * DAY
    clinic.change("delete from slots where starts_at >= :from", **{"from": datetime(far.year, far.month, far.day, 3, tzinfo=UTC)})
    clinic.change("update availabilities set extended_on = current_date - 1")
    assert agenda(clinic, doctor, today(), 1)  # and cached
    kept = clinic.all("select id from slots order by id")
    assert clock(clinic, doctor, far) == []
    relay = Relay(clinic.services.settings)
    relay.turn()
    clinic.decide()
    assert clock(clinic, doctor, far) == ["00:00", "04:00", "08:00", "12:00", "16:00", "20:00"]
    reaches = clinic.all("select max(starts_at) - clock_timestamp() from slots")[0]
    assert timedelta(days=60, hours=20) < reaches <= timedelta(days=61)
    assert set(kept) <= set(clinic.all("select id from slots where status = 'open'"))
    relay.turn()
    assert clinic.all("select count(*) from commands where kind = 'extend_horizon'") == [1]
    relay._cache.stop()
    relay._engine.dispose()


def test_an_edit_keeps_what_is_booked_and_names_what_it_strands(clinic: Clinic, doctor: Someone) -> None:
    day = today() + 3 * DAY
    put(clinic, doctor, ranges("09:00-12:00"))
    slots = agenda(clinic, doctor, day)[str(day)]
    patients = [clinic.accounts.patient() for _ in range(3)]
    early, late, gone = (clinic.book(each, slots[n]["id"]) for each, n in zip(patients, (0, 5, 1), strict=True))
    clinic.done("POST", f"/appointments/{gone}/cancel", patients[2], {"reason": "Viagem"})
    assert put(clinic, doctor, ranges("09:00-11:00"))["appointments_outside"] == [late]
    assert put(clinic, doctor, ranges("10:00-11:00"))["appointments_outside"] == [early, late]
    for each, patient in ((early, patients[0]), (late, patients[1])):
        assert clinic.get(f"/appointments/{each}", patient).json["status"] == "requested"
    assert clock(clinic, doctor, day) == ["10:00", "10:30"]
    assert put(clinic, doctor, ranges("09:00-12:00"))["appointments_outside"] == []
    assert clock(clinic, doctor, day) == ["09:30", "10:00", "10:30", "11:00"]


def test_who_looks_while_edits_are_decided_sees_no_slot_twice_and_no_gap(clinic: Clinic, doctor: Someone) -> None:
    day = today() + 3 * DAY
    always = ranges("10:00-12:00")  # what both availabilities hold
    put(clinic, doctor, always)
    stays = {slot["id"] for slot in agenda(clinic, doctor, day)[str(day)]}
    with looking(clinic, doctor, day) as seen:
        for turn in range(12):
            more = ranges("08:00-10:00", "12:00-13:00") if turn % 2 else ranges("09:20-10:00", "12:00-14:00", minutes=20)
            put(clinic, doctor, [*always, *more])
    assert len(seen) > 24
    assert len({len(slots) for slots in seen}) > 1  # they did look while it changed
    for slots in seen:
        times = [(slot["starts_at"], slot["ends_at"]) for slot in slots]
        assert times == sorted(set(times))
        assert all(one[1] <= other[0] for one, other in pairwise(times))
        assert stays <= {slot["id"] for slot in slots}
        # Of one edit or of the other, and never a part of each:
        begins = {starts[11:16] for starts, _ in times if not "10:00" <= starts[11:16] < "12:00"}
        assert begins in (
            set(),
            {"08:00", "08:30", "09:00", "09:30", "12:00", "12:30"},
            {"09:20", "09:40", "12:00", "12:20", "12:40", "13:00", "13:20", "13:40"},
        )


@contextmanager
def looking(clinic: Clinic, doctor: Someone, day: date) -> Iterator[list[list[dict[str, Any]]]]:
    """Have two patients look at a day of an agenda again and again; all that they have seen."""
    seen: list[list[dict[str, Any]]] = []
    over = threading.Event()

    def look() -> None:
        client = clinic.client.application.test_client()
        while not over.is_set():
            (shown,) = client.get(f"/api/v1/doctors/{doctor.id}/agenda?from={day}&days=1").json["days"]
            seen.append(shown["slots"])

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()
