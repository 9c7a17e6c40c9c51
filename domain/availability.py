"""Turns weekly rules into slots, and says what an edit of the rules, a moved horizon or a freed slot does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import combinations
from uuid import UUID
from zoneinfo import ZoneInfo

from domain.schedule import Doctor, Interval, Slot, SlotStatus

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Rule:
    """A range of one weekday that is cut into slots, in the doctor's local time.

    An `end` of 00:00 is the midnight that closes the day; no range goes past it. Dates of validity are included, and
    None is no limit. A rule that can't be raises a ValueError whose message, in Portuguese, is fit for a field's error.
    """

    weekday: int  # ISO: 1 is Monday, 7 is Sunday
    start: time
    end: time
    slot_minutes: int
    valid_from: date | None = None
    valid_until: date | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.weekday <= 7:
            raise ValueError("O dia da semana vai de 1 (segunda) a 7 (domingo).")
        if self.slot_minutes < 1:
            raise ValueError("A duração tem de ser de pelo menos um minuto.")
        if self.begins >= self.ends:
            raise ValueError("O fim tem de vir depois do início, no mesmo dia.")
        if self.valid_from and self.valid_until and self.valid_until < self.valid_from:
            raise ValueError("A validade termina antes de começar.")

    @property
    def begins(self) -> timedelta:
        """Where the range begins, counted from the midnight that opens the day."""
        return _since_midnight(self.start)

    @property
    def ends(self) -> timedelta:
        """Where the range ends, counted from the midnight that opens the day."""
        return _since_midnight(self.end) or _DAY

    def applies_on(self, day: date) -> bool:
        """Whether the rule makes slots on this local date."""
        return (
            day.isoweekday() == self.weekday
            and (self.valid_from is None or self.valid_from <= day)
            and (self.valid_until is None or day <= self.valid_until)
        )

    def collides(self, other: Rule) -> bool:
        """Whether the two share a weekday, a time of it and a date of validity."""
        return (
            self.weekday == other.weekday
            and self.begins < other.ends
            and other.begins < self.ends
            and (self.valid_from or date.min) <= (other.valid_until or date.max)
            and (other.valid_from or date.min) <= (self.valid_until or date.max)
        )


@dataclass(frozen=True, slots=True)
class Availability:
    """When a doctor works: weekly rules, none colliding with another, less the time off."""

    rules: tuple[Rule, ...] = ()
    time_off: tuple[Interval, ...] = ()


@dataclass(frozen=True, slots=True)
class Revision:
    """What becomes of a doctor's slots. Store the changed before the made, which may stand in a dropped one's place."""

    made: tuple[Slot, ...] = ()
    changed: tuple[Slot, ...] = ()
    stranded: tuple[Slot, ...] = ()  # booked slots to come that the availability does not hold, changed or not


def overlapping(rules: Sequence[Rule]) -> tuple[int, int] | None:
    """The indices of the first two rules that collide, the lower one first."""
    for (first, one), (second, other) in combinations(enumerate(rules), 2):
        if one.collides(other):
            return first, second
    return None


def intervals(availability: Availability, timezone: str, window: Interval) -> list[Interval]:
    """The slots that the rules make, less those that touch time off: in UTC, in order, each starting within the window.

    Only whole slots are made, and each lasts its minutes in real time. Where clocks change, a slot that would start at,
    or run into, local time that is skipped is not made, and of local time that comes twice the first is taken. So no
    two overlap. Raises ZoneInfoNotFoundError for an unknown time zone.
    """
    zone = ZoneInfo(timezone)
    day = window.starts_at.astimezone(zone).date()
    # A day more, since a clock put back just after midnight shows the day before once again.
    last = window.ends_at.astimezone(zone).date() + _DAY
    made: list[Interval] = []
    while day <= last:
        for rule in availability.rules:
            if rule.applies_on(day):
                made.extend(_cut(rule, day, zone))
        day += _DAY
    inside = sorted(interval for interval in made if _starts_within(window, interval))
    return list(_clear_of(availability.time_off, inside))


def revise(
    doctor: Doctor,
    slots: Sequence[Slot],
    availability: Availability,
    window: Interval,
    now: datetime,
    new_id: Callable[[], UUID],
) -> Revision:
    """Fit a doctor's slots that start within the window to the availability; doing it twice changes nothing more.

    Open slots of rules stay, with their ids, where the availability makes the same interval, and are dropped elsewhere.
    Booked ones stay booked and are held, or not. Extra slots, and all that have begun, are left alone. What is missing
    is made, but never in the place of what takes up the doctor's time, nor where the doctor withdrew the same interval.

    `slots` are all of the doctor's that touch the window, withdrawn ones too; others may be among them. An edit needs a
    window that reaches as far as slots have been made, a moved horizon only the stretch that is new.
    """
    wanted = [each for each in intervals(availability, doctor.timezone, window) if each.starts_at > now]
    held = set(wanted)
    revised: list[Slot] = []
    changed: list[Slot] = []
    stranded: list[Slot] = []
    for slot in slots:
        after = slot
        if slot.during.starts_at > now and _starts_within(window, slot.during):
            after = _fitted(slot, slot.extra or slot.during in held)
            if after.status is SlotStatus.BOOKED and not after.held:
                stranded.append(after)
        if after is not slot:
            changed.append(after)
        revised.append(after)
    return Revision(_made(doctor, wanted, revised, new_id), tuple(changed), tuple(stranded))


def free(
    doctor: Doctor,
    slot: Slot,
    slots: Sequence[Slot],
    availability: Callable[[], Availability],
    window: Interval,
    now: datetime,
    new_id: Callable[[], UUID],
) -> Revision:
    """Let go of a booked slot: open again if it is held; dropped if it has begun, or if it is not held.

    In the last case the slots that the rules make in its place are made at once. Only then is `availability` called,
    and are `slots` (all of the doctor's within a day of this one, withdrawn ones too) and `window` (the stretch for
    which slots have been made) looked at.
    """
    if slot.during.starts_at <= now:
        return Revision(changed=(replace(slot, status=SlotStatus.DROPPED, held=False),))
    if slot.held:
        return Revision(changed=(replace(slot, status=SlotStatus.OPEN),))
    # No rule makes a slot that is longer than a day.
    place = Interval(
        max(window.starts_at, slot.during.starts_at - _DAY),
        min(window.ends_at, slot.during.ends_at),
    )
    wanted = [
        each for each in intervals(availability(), doctor.timezone, place) if each.starts_at > now and each.overlaps(slot.during)
    ]
    others = [each for each in slots if each.id != slot.id]
    return Revision(_made(doctor, wanted, others, new_id), (replace(slot, status=SlotStatus.DROPPED),))


def _since_midnight(at: time) -> timedelta:
    return timedelta(hours=at.hour, minutes=at.minute, seconds=at.second)


def _starts_within(window: Interval, interval: Interval) -> bool:
    return window.starts_at <= interval.starts_at < window.ends_at


def _cut(rule: Rule, day: date, zone: ZoneInfo) -> list[Interval]:
    # Between datetimes of one zone Python adds, subtracts and compares what the clock shows, not real time.
    midnight = datetime.combine(day, time(), tzinfo=zone)
    opens, closes = midnight + rule.begins, midnight + rule.ends
    length = timedelta(minutes=rule.slot_minutes)
    count = (closes - opens) // length
    # With fold=1 a skipped or repeated time counts as after the change: equal offsets mean that no clock changes in the
    # range. Then the slots follow each other in real time too, which spares asking the zone about each one.
    if opens.utcoffset() == closes.replace(fold=1).utcoffset():
        first = opens.astimezone(UTC)
        return [Interval(first + n * length, first + (n + 1) * length) for n in range(count)]
    made = []
    for n in range(count):
        starts_at = (opens + n * length).astimezone(UTC)
        slot = Interval(starts_at, starts_at + length)
        # A clock that shows the slot's end before that comes was put forward meanwhile, or never showed its start.
        if (slot.ends_at - datetime.resolution).astimezone(zone) < opens + (n + 1) * length:
            made.append(slot)
    return made


def _clear_of(taken: Iterable[Interval], wanted: Iterable[Interval]) -> Iterator[Interval]:
    """Those of `wanted` (in order, none overlapping another) that overlap none of `taken` (as they come)."""
    waiting = iter(sorted(taken))
    following = next(waiting, None)
    taken_until = datetime.min.replace(tzinfo=UTC)
    for interval in wanted:
        while following is not None and following.starts_at < interval.ends_at:
            taken_until = max(taken_until, following.ends_at)
            following = next(waiting, None)
        if taken_until <= interval.starts_at:
            yield interval


def _fitted(slot: Slot, held: bool) -> Slot:
    if slot.status is SlotStatus.OPEN and not held:
        return replace(slot, status=SlotStatus.DROPPED, held=False)
    if slot.status is SlotStatus.BOOKED and held != slot.held:
        return replace(slot, held=held)
    return slot


def _made(doctor: Doctor, wanted: Iterable[Interval], slots: Sequence[Slot], new_id: Callable[[], UUID]) -> tuple[Slot, ...]:
    withdrawn = {slot.during for slot in slots if slot.status is SlotStatus.WITHDRAWN}
    clear = _clear_of((slot.during for slot in slots if slot.occupies), wanted)
    return tuple(
        Slot(new_id(), doctor.id, interval, SlotStatus.OPEN, held=True) for interval in clear if interval not in withdrawn
    )
