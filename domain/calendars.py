"""An appointment as an entry in somebody's own calendar (RFC 5545): mailed one by one (RFC 5546), or all of them as a feed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from uuid import UUID
from zoneinfo import ZoneInfo

from icalendar import Calendar, Event, Timezone, vCalAddress

from domain.schedule import Interval

PRODID = "-//Health&Med//Agenda//PT"


class Method(StrEnum):
    """What a calendar is to do with an entry that arrives by mail."""

    REQUEST = "REQUEST"  # put it in, or move what is there under the same UID
    CANCEL = "CANCEL"  # take it out


class EntryStatus(StrEnum):
    """How sure an entry is."""

    TENTATIVE = "TENTATIVE"
    CONFIRMED = "CONFIRMED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a calendar shows. The title tells nothing of anybody's health: it is seen on lock screens and in shared calendars."""

    appointment_id: UUID
    during: Interval
    status: EntryStatus
    sequence: int
    changed_at: datetime
    timezone: str  # of whoever's calendar it is
    title: str
    description: str
    join_url: str | None = None


@dataclass(frozen=True, slots=True)
class Party:
    """Somebody's name and address, as an invitation names them."""

    name: str
    email: str


def invitation(method: Method, entry: Entry, organizer: Party, attendee: Party) -> str:
    """The iCalendar text that asks one calendar to take in, move or take out an entry; its lines end in CRLF.

    The attendee is the only one named: nobody learns the other's address.
    """
    event = _event(entry)
    event.add("organizer", _address(organizer))
    event.add("attendee", _address(attendee, ROLE="REQ-PARTICIPANT", PARTSTAT=_PARTICIPATION[entry.status], RSVP="FALSE"))
    calendar = _calendar()
    calendar.add("method", method)
    calendar.add_component(_timezone(entry.timezone, entry.during.starts_at.year, entry.during.ends_at.year))
    calendar.add_component(event)
    written: bytes = calendar.to_ical()
    return written.decode()


def feed(entries: Sequence[Entry], timezone: str, year: int) -> bytes:
    """The entries of one person as a calendar to subscribe to, read again each hour; `year` is the present one, in their zone.

    Their zone is defined even where nothing else is in it, since a calendar without any component is none.
    """
    calendar = _calendar()
    for name in ("name", "x-wr-calname"):  # the second for whoever does not know RFC 7986 yet
        calendar.add(name, "Health&Med")
    calendar.add("refresh-interval", timedelta(hours=1), parameters={"VALUE": "DURATION"})
    for entry in entries:
        calendar.add_component(_event(entry))
    years = [year, *(entry.during.starts_at.year for entry in entries)]
    calendar.add_component(_timezone(timezone, min(years), max(years)))
    written: bytes = calendar.to_ical()
    return written


def _calendar() -> Calendar:
    calendar = Calendar()
    calendar.add("prodid", PRODID)
    calendar.add("version", "2.0")
    calendar.add("calscale", "GREGORIAN")
    return calendar


@lru_cache
def _timezone(name: str, first: int, last: int) -> Timezone:
    """What a zone is from the year before to the year after: its whole past would be most of a mail. It takes 10 ms."""
    return Timezone.from_tzid(name, first_date=date(first - 1, 1, 1), last_date=date(last + 2, 1, 1))


def _event(entry: Entry) -> Event:
    zone = ZoneInfo(entry.timezone)
    event = Event()
    event.add("uid", f"{entry.appointment_id}@healthmed")  # one for life, whatever address we are reached at
    event.add("sequence", entry.sequence)
    event.add("dtstamp", entry.changed_at.astimezone(UTC))
    event.add("dtstart", entry.during.starts_at.astimezone(zone))
    event.add("dtend", entry.during.ends_at.astimezone(zone))
    event.add("status", entry.status)
    event.add("summary", entry.title)
    event.add("description", entry.description)
    event.add("class", "PRIVATE")
    if entry.join_url is not None:
        event.add("location", entry.join_url)
        event.add("url", entry.join_url)
    return event


def _address(party: Party, **parameters: str) -> vCalAddress:
    address = vCalAddress(f"mailto:{party.email}")
    address.params["CN"] = party.name
    address.params.update(parameters)
    return address


_PARTICIPATION = {
    EntryStatus.TENTATIVE: "NEEDS-ACTION",
    EntryStatus.CONFIRMED: "ACCEPTED",
    EntryStatus.CANCELLED: "ACCEPTED",
}
