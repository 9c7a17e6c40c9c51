"""Entries in calendars, as a calendar reads them back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from icalendar import Calendar, Event

from domain.calendars import Entry, EntryStatus, Method, Party, feed, invitation
from domain.schedule import Interval

US, ANA = Party("Health&Med", "agenda@healthmed.example"), Party("Ana Souza", "ana@example.com")
ENTRY = Entry(
    appointment_id=UUID("01934f6e-0000-7000-8000-000000000001"),
    during=Interval(datetime(2026, 12, 1, 12, tzinfo=UTC), datetime(2026, 12, 1, 12, 30, tzinfo=UTC)),
    status=EntryStatus.CONFIRMED,
    sequence=0,
    changed_at=datetime(2026, 11, 24, 15, tzinfo=UTC),
    timezone="America/Sao_Paulo",
    title="Atendimento Health&Med",
    description="Médico(a): João; sala, 2\nOnde: https://meet.example/x",
    join_url="https://meet.example/x",
)


def read_back(entry: Entry = ENTRY, method: Method = Method.REQUEST, attendee: Party = ANA) -> tuple[Calendar, Event]:
    calendar = Calendar.from_ical(invitation(method, entry, US, attendee))
    (event,) = calendar.events
    return calendar, event


def test_an_invitation_says_who_when_and_where() -> None:
    calendar, event = read_back()
    assert (calendar["METHOD"], calendar["VERSION"], event["STATUS"]) == ("REQUEST", "2.0", "CONFIRMED")
    assert event["ORGANIZER"] == "mailto:agenda@healthmed.example"
    assert event["ATTENDEE"] == "mailto:ana@example.com"
    assert event.start == datetime(2026, 12, 1, 9, tzinfo=ZoneInfo("America/Sao_Paulo"))
    assert event.end == ENTRY.during.ends_at
    assert event["DESCRIPTION"] == ENTRY.description
    assert event["URL"] == ENTRY.join_url
    assert not calendar.errors and not event.errors


def test_one_appointment_is_one_entry_for_life() -> None:
    _, first = read_back()
    moved = replace(ENTRY, during=Interval(ENTRY.during.ends_at, ENTRY.during.ends_at.replace(hour=14)), sequence=1)
    _, second = read_back(moved)
    _, third = read_back(replace(moved, status=EntryStatus.CANCELLED, sequence=2), Method.CANCEL)
    assert first["UID"] == second["UID"] == third["UID"]
    assert [first["SEQUENCE"], second["SEQUENCE"], third["SEQUENCE"]] == [0, 1, 2]


def test_a_cancellation_names_what_a_calendar_needs_to_take_it_out() -> None:
    calendar, event = read_back(replace(ENTRY, status=EntryStatus.CANCELLED), Method.CANCEL)
    assert (calendar["METHOD"], event["STATUS"]) == ("CANCEL", "CANCELLED")
    assert {"UID", "SEQUENCE", "DTSTAMP", "DTSTART", "ORGANIZER", "ATTENDEE"} <= set(event)


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "America/New_York", "America/Rio_Branco", "Pacific/Auckland", "UTC"])
@pytest.mark.parametrize("month", [1, 7])
def test_the_zone_that_an_entry_names_is_defined_beside_it(zone: str, month: int) -> None:
    starts_at, ends_at = datetime(2027, month, 5, 12, tzinfo=UTC), datetime(2027, month, 5, 13, tzinfo=UTC)
    text = invitation(Method.REQUEST, replace(ENTRY, timezone=zone, during=Interval(starts_at, ends_at)), US, ANA)
    local = starts_at.astimezone(ZoneInfo(zone))
    if zone == "UTC":
        assert f"DTSTART:{local:%Y%m%dT%H%M%S}Z" in text
        return
    assert f"DTSTART;TZID={zone}:{local:%Y%m%dT%H%M%S}\r\n" in text
    (defined,) = Calendar.from_ical(text).walk("VTIMEZONE")
    assert defined["TZID"] == zone
    assert defined.to_tz(lookup_tzid=False).utcoffset(local.replace(tzinfo=None)) == local.utcoffset()


def test_what_people_write_adds_no_line() -> None:
    evil = 'Eve"\r\nX-EVIL:1\r\nEND:VEVENT'
    text = invitation(Method.REQUEST, replace(ENTRY, description=evil, title=evil), US, Party(evil, "e@example.com"))
    unfolded = text.replace("\r\n ", "")
    assert "X-EVIL:1" not in unfolded.split("\r\n")
    assert unfolded.count("\r\nEND:VEVENT\r\n") == 1
    with pytest.raises(ValueError, match="CR or LF"):
        invitation(Method.REQUEST, replace(ENTRY, join_url=f"https://x/{evil}"), US, ANA)


def test_lines_end_and_fold_as_the_standard_says() -> None:
    text = invitation(Method.REQUEST, replace(ENTRY, description="ç" * 200), US, ANA)
    assert text.endswith("END:VCALENDAR\r\n") and "\n" not in text.replace("\r\n", "")
    assert max(len(line.encode()) for line in text.split("\r\n")) <= 75


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "America/New_York", "Pacific/Auckland", "UTC"])
def test_a_calendar_without_entries_still_has_a_component(zone: str) -> None:
    calendar = Calendar.from_ical(feed([], zone, 2026))
    assert [each["TZID"] for each in calendar.walk("VTIMEZONE")] == [zone]
    assert not calendar.errors and "METHOD" not in calendar


def test_a_feed_defines_its_zone_for_each_of_its_entries() -> None:
    zone = "America/New_York"
    starts = [datetime(year, month, 5, 12, tzinfo=UTC) for year in (2026, 2027) for month in (1, 7)]
    moved = [replace(ENTRY, timezone=zone, during=Interval(at, at.replace(hour=13))) for at in starts]
    calendar = Calendar.from_ical(feed(moved, zone, 2026))
    (defined,) = calendar.walk("VTIMEZONE")
    own = defined.to_tz(lookup_tzid=False)
    assert [event.start for event in calendar.events] == starts
    for at in starts:
        local = at.astimezone(ZoneInfo(zone))
        assert own.utcoffset(local.replace(tzinfo=None)) == local.utcoffset()
