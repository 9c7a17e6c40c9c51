"""Weekly rules become the right slots in every time zone; an edit keeps what is booked and never sells a time twice."""

from __future__ import annotations

import time as stopwatch
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from random import Random
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.availability import Availability, Revision, Rule, free, intervals, overlapping, revise
from domain.schedule import Doctor, Interval, Slot, SlotStatus

THOUSANDS = settings(max_examples=400, deadline=None)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)

# Days around which clocks change (or a zone has something odd), as the zone's own data say.
CHANGES = [
    ("America/Sao_Paulo", date(2018, 11, 4)),  # midnight is skipped
    ("America/Sao_Paulo", date(2018, 2, 18)),  # the last hour of the 17th comes twice
    ("America/Sao_Paulo", date(2026, 11, 23)),
    ("America/Noronha", date(2026, 11, 23)),
    ("America/Manaus", date(2026, 11, 23)),
    ("America/Rio_Branco", date(2008, 6, 24)),
    ("America/Rio_Branco", date(2013, 11, 10)),
    ("America/New_York", date(2026, 3, 8)),
    ("America/New_York", date(2026, 11, 1)),
    ("America/St_Johns", date(2006, 4, 2)),  # changes one minute past midnight
    ("America/St_Johns", date(2006, 10, 29)),
    ("Europe/Berlin", date(2026, 3, 29)),
    ("Europe/Berlin", date(2026, 10, 25)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),  # half an hour
    ("Australia/Lord_Howe", date(2026, 10, 4)),
    ("Asia/Kathmandu", date(2026, 6, 1)),  # 5:45 ahead
    ("Pacific/Chatham", date(2026, 9, 27)),  # 12:45 ahead
    ("Pacific/Apia", date(2011, 12, 30)),  # a day that never was
    ("Africa/Casablanca", date(2026, 2, 15)),
]
ZONES = sorted({zone for zone, _ in CHANGES})

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DOCTOR = Doctor(uuid4(), verified=True, suspended=False, timezone="America/Sao_Paulo", price=25000, currency="BRL")
MORNINGS = Availability((Rule(1, time(9), time(11), 30),))  # Mondays
MONDAY = Interval(NOW, NOW + 2 * DAY)  # the 23rd of November is one


def rule(weekday: int, start: str, end: str, minutes: int = 30, **validity: date) -> Rule:
    return Rule(weekday, time.fromisoformat(start), time.fromisoformat(end), minutes, **validity)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def interval(start: str, end: str) -> Interval:
    return Interval(utc(start), utc(end))


def days_around(day: date, before: int = 1, after: int = 2) -> Interval:
    midnight = datetime.combine(day, time(), tzinfo=UTC)
    return Interval(midnight - before * DAY, midnight + after * DAY)


def clock(slots: Iterable[Interval], timezone: str) -> list[str]:
    """What the doctor's clock shows from the start to the end of each slot."""
    zone = ZoneInfo(timezone)
    return [f"{each.starts_at.astimezone(zone):%H:%M}-{each.ends_at.astimezone(zone):%H:%M}" for each in slots]


def slot_of(during: Interval, status: SlotStatus = SlotStatus.OPEN, *, held: bool = True, extra: bool = False) -> Slot:
    return Slot(uuid4(), DOCTOR.id, during, status, held=held, extra=extra)


def after(slots: Iterable[Slot], revision: Revision) -> list[Slot]:
    """The doctor's slots once a revision is stored."""
    by_id = {each.id: each for each in slots}
    assert all(each.id in by_id for each in revision.changed)
    assert not any(each.id in by_id for each in revision.made)
    return list((by_id | {each.id: each for each in (*revision.changed, *revision.made)}).values())


def edit(slots: Sequence[Slot], availability: Availability, now: datetime = NOW, window: Interval = MONDAY) -> list[Slot]:
    return after(slots, revise(DOCTOR, slots, availability, window, now, uuid4))


def let_go(slot: Slot, slots: Sequence[Slot], availability: Availability, now: datetime = NOW) -> Revision:
    return free(DOCTOR, slot, slots, lambda: availability, MONDAY, now, uuid4)


def starts(slots: Iterable[Slot], status: SlotStatus = SlotStatus.OPEN) -> list[str]:
    return sorted(f"{each.during.starts_at:%H:%M}" for each in slots if each.status is status)


MINUTES = st.integers(0, 96).map(lambda quarter: quarter * 15) | st.integers(0, 1440)
RANGES = st.tuples(MINUTES, MINUTES).map(sorted).filter(lambda both: both[0] < both[1])
LENGTHS = st.sampled_from([15, 20, 30, 45, 60]) | st.integers(5, 240)
RULES = st.builds(
    lambda weekday, begins_ends, minutes: Rule(weekday, *(time(n // 60 % 24, n % 60) for n in begins_ends), minutes),
    st.integers(1, 7),
    RANGES,
    LENGTHS,
)
# What is drawn is counted from a day that is drawn with it: a rule with days from it to its weekday and validity, a stretch
# by minutes from its midnight. Hypothesis is several times faster with strategies that are made once.
VALIDITIES = st.none() | st.tuples(st.integers(-3, 3), st.integers(-3, 3)).map(sorted)
STRETCHES = st.tuples(st.integers(-2 * 1440, 2 * 1440), st.integers(1, 300))
WINDOWS = st.tuples(st.integers(-2 * 1440, 1440), st.integers(1, 5 * 1440))
AVAILABILITIES = st.tuples(
    st.lists(st.tuples(RULES, st.integers(-1, 1), VALIDITIES), max_size=6), st.lists(STRETCHES, max_size=3)
)
ZONES_AND_DAYS = st.sampled_from(CHANGES) | st.tuples(st.sampled_from(ZONES), st.dates(date(2005, 1, 1), date(2036, 1, 1)))
FATES = (
    {"status": SlotStatus.BOOKED},
    {"status": SlotStatus.BOOKED, "price": 30000},
    {"status": SlotStatus.WITHDRAWN, "held": False},
    {"extra": True},
)
LIVES = st.lists(
    st.tuples(
        AVAILABILITIES,
        st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(FATES)), max_size=8),
        st.lists(st.tuples(STRETCHES, st.sampled_from([SlotStatus.OPEN, SlotStatus.BOOKED])), max_size=2),
    ),
    min_size=1,
    max_size=2,
)


def stretch_near(day: date, drawn: tuple[int, int]) -> Interval:
    starts_at = datetime.combine(day, time(), tzinfo=UTC) + drawn[0] * MINUTE
    return Interval(starts_at, starts_at + drawn[1] * MINUTE)


def availability_near(day: date, drawn) -> Availability:
    kept: list[Rule] = []
    for one, shift, validity in drawn[0]:
        valid_from, valid_until = (day + n * DAY for n in validity) if validity else (None, None)
        weekday = (day + shift * DAY).isoweekday()
        near = replace(one, weekday=weekday, valid_from=valid_from, valid_until=valid_until)
        if not any(near.collides(other) for other in kept):
            kept.append(near)
    return Availability(tuple(kept), tuple(stretch_near(day, each) for each in drawn[1]))


def slots_after(lives, doctor: Doctor, day: date) -> list[Slot]:
    """A doctor's slots as edits, bookings, withdrawals and extra slots may have left them."""
    slots: list[Slot] = []
    window = days_around(day, 2, 3)
    for drawn, fates, extras in lives:
        availability = availability_near(day, drawn)
        slots = after(slots, revise(doctor, slots, availability, window, window.starts_at - DAY, uuid4))
        for place, fate in fates:
            if slots and (slot := slots[place % len(slots)]).status is SlotStatus.OPEN:
                slots[place % len(slots)] = replace(slot, **fate)
        for stretch, status in extras:
            during = stretch_near(day, stretch)
            if not any(each.occupies and each.during.overlaps(during) for each in slots):
                slots.append(slot_of(during, status, extra=True))
    return slots


@lru_cache(maxsize=64)
def first_shown(timezone: str, day: date) -> dict[datetime, datetime]:
    """The first instant at which the clock shows each minute of six days."""
    zone, shown = ZoneInfo(timezone), {}
    instant = datetime.combine(day, time(), tzinfo=UTC) - 3 * DAY
    for _ in range(6 * 1440):
        shown.setdefault(instant.astimezone(zone).replace(tzinfo=None), instant)
        instant += MINUTE
    return shown


def slots_by_walking(availability: Availability, timezone: str, day: date) -> list[Interval]:
    """What the rules make in three days by looking at the clock at each minute, knowing nothing of folds and offsets."""
    shown = first_shown(timezone, day)
    made = []
    for each in (day - DAY, day, day + DAY):
        for one in availability.rules:
            begins = one.start.hour * 60 + one.start.minute
            ends = one.end.hour * 60 + one.end.minute or 1440
            while one.applies_on(each) and begins + one.slot_minutes <= ends:
                minutes = [datetime.combine(each, time()) + (begins + n) * MINUTE for n in range(one.slot_minutes)]
                if all(minute in shown for minute in minutes):
                    starts_at = shown[minutes[0]]
                    made.append(Interval(starts_at, starts_at + one.slot_minutes * MINUTE))
                begins += one.slot_minutes
    return sorted(each for each in made if not any(each.overlaps(off) for off in availability.time_off))


@THOUSANDS
@given(st.sampled_from(CHANGES), AVAILABILITIES)
def test_the_rules_make_what_a_doctor_would_read_off_the_clock(zone_and_day, drawn) -> None:
    timezone, day = zone_and_day
    availability = availability_near(day, drawn)
    made = [
        each
        for each in intervals(availability, timezone, days_around(day, 3, 3))
        if abs(each.starts_at.astimezone(ZoneInfo(timezone)).date() - day) <= DAY
    ]
    assert made == slots_by_walking(availability, timezone, day)


@THOUSANDS
@given(ZONES_AND_DAYS, AVAILABILITIES, WINDOWS)
def test_slots_never_overlap_nor_touch_time_off_and_start_within_the_window(zone_and_day, drawn, reach) -> None:
    timezone, day = zone_and_day
    availability, window = availability_near(day, drawn), stretch_near(day, reach)
    made = intervals(availability, timezone, window)
    assert all(one.ends_at <= other.starts_at for one, other in pairwise(made))
    assert not any(each.overlaps(off) for each in made for off in availability.time_off)
    assert all(window.starts_at <= each.starts_at < window.ends_at for each in made)
    assert {each.ends_at - each.starts_at for each in made} <= {one.slot_minutes * MINUTE for one in availability.rules}
    assert all(each.starts_at.tzinfo is UTC for each in made)


@THOUSANDS
@given(ZONES_AND_DAYS, AVAILABILITIES, st.integers(0, 3 * 1440))
def test_a_horizon_that_moves_makes_what_a_longer_one_makes_at_once(zone_and_day, drawn, minutes) -> None:
    timezone, day = zone_and_day
    availability, window = availability_near(day, drawn), days_around(day)
    cut = window.starts_at + minutes * MINUTE
    first, second = Interval(window.starts_at, cut), Interval(cut, window.ends_at)
    parts = intervals(availability, timezone, first) + intervals(availability, timezone, second)
    assert parts == intervals(availability, timezone, window)


def test_a_range_is_cut_into_whole_slots_in_the_doctors_time() -> None:
    made = intervals(Availability((rule(1, "09:00", "10:20"),)), "America/Sao_Paulo", MONDAY)
    assert made == [
        interval("2026-11-23T12:00", "2026-11-23T12:30"),
        interval("2026-11-23T12:30", "2026-11-23T13:00"),
    ]


def test_a_range_may_end_at_midnight_and_a_whole_day_may_be_one() -> None:
    evening = Availability((rule(1, "23:00", "00:00"),))
    assert clock(intervals(evening, "America/Noronha", MONDAY), "America/Noronha") == ["23:00-23:30", "23:30-00:00"]
    whole = Availability((rule(1, "00:00", "00:00", 60),))
    assert len(intervals(whole, "Asia/Kathmandu", days_around(date(2026, 11, 23)))) == 24


def test_a_rule_makes_slots_on_its_first_and_last_date_and_on_none_outside() -> None:
    dates = {"valid_from": date(2026, 11, 23), "valid_until": date(2026, 11, 30)}
    bounded = Availability((rule(1, "09:00", "09:30", **dates),))
    made = intervals(bounded, "America/Sao_Paulo", Interval(NOW - 30 * DAY, NOW + 30 * DAY))
    assert [each.starts_at.date() for each in made] == [date(2026, 11, 23), date(2026, 11, 30)]


def test_time_off_takes_every_slot_it_touches_and_no_other() -> None:
    off = interval("2026-11-23T12:30", "2026-11-23T12:31"), interval("2026-11-23T13:00", "2026-11-23T13:30")
    made = intervals(Availability(MORNINGS.rules, off), "America/Sao_Paulo", MONDAY)
    assert clock(made, "America/Sao_Paulo") == ["09:00-09:30", "10:30-11:00"]


@pytest.mark.parametrize(
    ("timezone", "day", "one", "shown"),
    [
        (
            "Europe/Berlin",
            date(2026, 3, 29),
            rule(7, "01:00", "04:00"),
            ["01:00-01:30", "01:30-03:00", "03:00-03:30", "03:30-04:00"],
        ),
        ("Europe/Berlin", date(2026, 3, 29), rule(7, "01:15", "04:00", 60), []),
        ("Europe/Berlin", date(2026, 3, 29), rule(7, "02:00", "03:00"), []),
        (
            "Europe/Berlin",
            date(2026, 10, 25),
            rule(7, "01:30", "03:30"),
            ["01:30-02:00", "02:00-02:30", "02:30-02:00", "03:00-03:30"],
        ),
        ("America/New_York", date(2026, 11, 1), rule(7, "00:30", "02:30", 60), ["00:30-01:30", "01:30-01:30"]),
        ("America/Sao_Paulo", date(2018, 11, 4), rule(7, "00:00", "02:00"), ["01:00-01:30", "01:30-02:00"]),
        ("America/Sao_Paulo", date(2018, 11, 4), rule(6, "23:00", "00:00"), ["23:00-23:30", "23:30-01:00"]),
        (
            "America/Sao_Paulo",
            date(2018, 2, 18),
            rule(6, "22:30", "00:00"),
            ["22:30-23:00", "23:00-23:30", "23:30-23:00"],
        ),
        ("Australia/Lord_Howe", date(2026, 10, 4), rule(7, "01:00", "03:30", 60), ["01:00-02:30"]),
        ("Pacific/Apia", date(2011, 12, 30), rule(5, "09:00", "10:00"), []),
    ],
)
def test_skipped_time_makes_no_slot_and_repeated_time_makes_one(timezone, day, one, shown) -> None:
    made = intervals(Availability((one,)), timezone, days_around(day))
    assert clock(made, timezone) == shown
    assert all(each.ends_at - each.starts_at == one.slot_minutes * MINUTE for each in made)


def test_a_slot_is_found_though_the_clock_then_shows_the_day_before_again() -> None:
    midnight = Availability((rule(7, "00:00", "01:00", 60),))
    window = interval("2006-10-29T02:00", "2006-10-29T02:45")  # ends at 23:15 on the 28th, an hour after the 29th began
    assert intervals(midnight, "America/St_Johns", window) == [interval("2006-10-29T02:30", "2006-10-29T03:30")]


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(ZoneInfoNotFoundError):
        intervals(MORNINGS, "America/Sao_Paulo_", MONDAY)


@pytest.mark.parametrize(
    ("impossible", "message"),
    [
        ({"weekday": 0}, "dia da semana"),
        ({"weekday": 8}, "dia da semana"),
        ({"slot_minutes": 0}, "duração"),
        ({"end": time(9)}, "fim"),
        ({"end": time(8)}, "fim"),
        ({"valid_from": date(2026, 11, 24), "valid_until": date(2026, 11, 23)}, "validade"),
    ],
)
def test_a_rule_that_can_not_be_is_refused(impossible, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(rule(1, "09:00", "12:00"), **impossible)


def test_rules_overlap_only_on_the_same_weekday_time_and_dates() -> None:
    base = rule(1, "09:00", "12:00", valid_until=date(2026, 11, 30))
    apart = (
        rule(2, "09:00", "12:00"),
        rule(1, "12:00", "13:00"),
        rule(1, "08:00", "09:00"),
        rule(1, "09:00", "12:00", valid_from=date(2026, 12, 1)),
    )
    assert overlapping((base, *apart)) is None
    for touching in (
        rule(1, "11:59", "13:00"),
        rule(1, "00:00", "00:00"),
        rule(1, "10:00", "10:30", 20),
        rule(1, "09:00", "12:00", valid_from=date(2026, 11, 30)),
    ):
        assert base.collides(touching)
        assert touching.collides(base)
        assert overlapping((rule(3, "09:00", "12:00"), base, touching)) == (1, 2)


@THOUSANDS
@given(RULES, RULES)
def test_two_rules_collide_if_and_only_if_they_share_a_minute_of_a_week(one: Rule, other: Rule) -> None:
    def minutes(each: Rule) -> set[tuple[int, int]]:
        return {(each.weekday, n) for n in range(each.begins // MINUTE, each.ends // MINUTE)}

    assert one.collides(other) == bool(minutes(one) & minutes(other))


def assert_never_in_two_places(slots: Iterable[Slot]) -> None:
    occupied = sorted(each.during for each in slots if each.occupies)
    assert all(one.ends_at <= other.starts_at for one, other in pairwise(occupied))


@THOUSANDS
@given(ZONES_AND_DAYS, LIVES, AVAILABILITIES, WINDOWS, WINDOWS, st.none() | st.sampled_from(ZONES))
def test_an_edit_keeps_what_is_booked_and_makes_what_is_wanted_and_nothing_twice(
    zone_and_day, lives, drawn, reach, moment, moved_to
) -> None:
    timezone, day = zone_and_day
    doctor = replace(DOCTOR, timezone=timezone)
    slots, now = slots_after(lives, doctor, day), stretch_near(day, moment).starts_at
    doctor = replace(doctor, timezone=moved_to or timezone)
    availability, window = availability_near(day, drawn), stretch_near(day, reach)
    revision = revise(doctor, slots, availability, window, now, uuid4)
    edited = after(slots, revision)
    wanted = {each for each in intervals(availability, doctor.timezone, window) if each.starts_at > now}
    judged = {each.id for each in slots if window.starts_at <= each.during.starts_at < window.ends_at}
    judged -= {each.id for each in slots if each.during.starts_at <= now}

    assert_never_in_two_places(edited)
    for before, later in zip(slots, edited, strict=False):
        assert later == replace(before, status=later.status, held=later.held)
        if before.id not in judged or before.status in (SlotStatus.WITHDRAWN, SlotStatus.DROPPED):
            assert later == before
        elif before.extra:
            assert later == replace(before, held=True)
        elif before.status is SlotStatus.BOOKED:
            assert later == replace(before, held=before.during in wanted)
        else:
            assert later.status is (SlotStatus.OPEN if before.during in wanted else SlotStatus.DROPPED)
    gone = {each.during for each in slots if each.status is SlotStatus.WITHDRAWN}
    for each in wanted:
        assert each in gone or any(slot.occupies and slot.during.overlaps(each) for slot in edited)
    for made in revision.made:
        assert made.during in wanted - gone
        assert (made.doctor_id, made.status, made.held, made.extra) == (doctor.id, SlotStatus.OPEN, True, False)
    stranded = {each.id for each in edited if each.id in judged and each.status is SlotStatus.BOOKED and not each.held}
    assert {each.id for each in revision.stranded} == stranded

    again = revise(doctor, edited, availability, window, now, uuid4)
    assert (again.made, again.changed, again.stranded) == ((), (), revision.stranded)


@THOUSANDS
@given(ZONES_AND_DAYS, LIVES, AVAILABILITIES, WINDOWS, st.integers(0, 1000))
def test_slots_let_go_one_after_another_leave_nothing_for_an_edit_to_mend(zone_and_day, lives, drawn, moment, seed) -> None:
    timezone, day = zone_and_day
    doctor = replace(DOCTOR, timezone=timezone)
    availability, window = availability_near(day, drawn), days_around(day, 3, 4)
    slots, now = slots_after(lives, doctor, day), stretch_near(day, moment).starts_at
    slots = after(slots, revise(doctor, slots, availability, window, now, uuid4))
    booked = [each for each in slots if each.status is SlotStatus.BOOKED and each.during.starts_at > now]
    Random(seed).shuffle(booked)
    for slot in booked:
        revision = free(doctor, slot, slots, lambda: availability, window, now, uuid4)
        slots = after(slots, revision)
        assert_never_in_two_places(slots)
        status = SlotStatus.OPEN if slot.held else SlotStatus.DROPPED
        assert revision.changed == (replace(slot, status=status),)
    assert revise(doctor, slots, availability, window, now, uuid4) == Revision()


def test_an_edit_keeps_the_ids_of_slots_whose_times_stay() -> None:
    slots = edit([], MORNINGS)
    assert starts(slots) == ["12:00", "12:30", "13:00", "13:30"]
    longer = edit(slots, Availability((rule(1, "10:00", "12:00"),)))
    kept = {each.id for each in slots if starts([each]) in (["13:00"], ["13:30"])}
    assert kept <= {each.id for each in longer if each.status is SlotStatus.OPEN}
    assert starts(longer) == ["13:00", "13:30", "14:00", "14:30"]
    assert starts(longer, SlotStatus.DROPPED) == ["12:00", "12:30"]


def test_a_dropped_slot_is_made_again_when_the_availability_wants_it_again() -> None:
    slots = edit(edit(edit([], MORNINGS), Availability()), MORNINGS)
    assert starts(slots) == starts(slots, SlotStatus.DROPPED) == ["12:00", "12:30", "13:00", "13:30"]


def test_a_withdrawn_slot_is_not_made_again() -> None:
    first, *others = edit([], MORNINGS)
    slots = [replace(first, status=SlotStatus.WITHDRAWN, held=False), *others]
    assert starts(edit(edit(slots, Availability()), MORNINGS)) == ["12:30", "13:00", "13:30"]


def test_an_edit_that_strands_a_booked_slot_keeps_it_and_says_so() -> None:
    first, *others = edit([], MORNINGS)
    booked = replace(first, status=SlotStatus.BOOKED)
    revision = revise(DOCTOR, [booked, *others], Availability(), MONDAY, NOW, uuid4)
    assert revision.stranded == (replace(booked, held=False),)
    slots = after([booked, *others], revision)
    assert starts(slots, SlotStatus.BOOKED) == ["12:00"]
    assert starts(slots) == []
    assert revise(DOCTOR, slots, Availability(), MONDAY, NOW, uuid4) == Revision(stranded=revision.stranded)
    assert revise(DOCTOR, slots, MORNINGS, MONDAY, NOW, uuid4).changed == (booked,)


def test_nothing_is_made_in_the_place_of_a_booked_slot_until_it_is_let_go() -> None:
    first, *others = edit([], MORNINGS)
    booked = replace(first, status=SlotStatus.BOOKED)
    shorter = Availability((rule(1, "09:00", "10:00", 20),))
    slots = edit([booked, *others], shorter)
    assert starts(slots) == ["12:40"]
    stranded = next(each for each in slots if each.status is SlotStatus.BOOKED)
    revision = let_go(stranded, slots, shorter)
    assert revision.changed == (replace(stranded, status=SlotStatus.DROPPED),)
    assert starts(revision.made) == ["12:00", "12:20"]


def test_extra_slots_outlive_every_edit_until_they_are_withdrawn() -> None:
    extra = slot_of(interval("2026-11-23T12:10", "2026-11-23T12:40"), extra=True)
    slots = edit([extra], MORNINGS)
    assert starts(slots) == ["12:10", "13:00", "13:30"]
    assert starts(edit(slots, Availability())) == ["12:10"]
    booked = replace(extra, status=SlotStatus.BOOKED)
    assert revise(DOCTOR, [booked], Availability(), MONDAY, NOW, uuid4) == Revision()


def test_what_has_begun_is_left_alone() -> None:
    slots = edit([], MORNINGS)
    at_half_past = utc("2026-11-23T12:30")
    assert starts(edit(slots, Availability(), at_half_past)) == ["12:00", "12:30"]
    assert starts(edit([], MORNINGS, at_half_past)) == ["13:00", "13:30"]


def test_what_starts_outside_the_window_is_left_alone_but_keeps_its_place() -> None:
    slots = edit([], MORNINGS)
    tail = interval("2026-11-23T12:20", "2026-11-23T14:00")
    shifted = Availability((rule(1, "09:20", "11:00", 20),))
    assert starts(edit(slots, shifted, window=tail)) == ["12:00", "12:40", "13:00", "13:20", "13:40"]


def test_a_held_slot_that_is_let_go_is_open_again_without_asking_for_the_availability() -> None:
    booked = slot_of(interval("2026-11-23T12:00", "2026-11-23T12:30"), SlotStatus.BOOKED)

    def unasked() -> Availability:
        raise AssertionError

    revision = free(DOCTOR, booked, (), unasked, MONDAY, NOW, uuid4)
    assert revision == Revision(changed=(replace(booked, status=SlotStatus.OPEN),))


@pytest.mark.parametrize("held", [True, False])
def test_a_slot_that_is_let_go_after_its_start_stays_out(held: bool) -> None:
    booked = slot_of(interval("2026-11-23T12:00", "2026-11-23T12:30"), SlotStatus.BOOKED, held=held)
    revision = let_go(booked, [booked], MORNINGS, booked.during.starts_at)
    assert revision == Revision(changed=(replace(booked, status=SlotStatus.DROPPED, held=False),))


def test_a_slot_let_go_is_replaced_only_in_its_place_and_only_within_the_window() -> None:
    booked = slot_of(interval("2026-11-23T12:40", "2026-11-23T13:10"), SlotStatus.BOOKED, held=False)
    assert starts(let_go(booked, [booked], MORNINGS).made) == ["12:30", "13:00"]
    short = Interval(NOW, utc("2026-11-23T13:00"))
    assert starts(free(DOCTOR, booked, [booked], lambda: MORNINGS, short, NOW, uuid4).made) == ["12:30"]


def test_new_slots_get_the_ids_they_are_given() -> None:
    ids = [UUID(int=n) for n in range(4)]
    revision = revise(DOCTOR, (), MORNINGS, MONDAY, NOW, iter(ids).__next__)
    assert [each.id for each in revision.made] == ids


def test_a_hundred_rules_over_sixty_days_take_well_below_fifty_milliseconds() -> None:
    full = tuple(
        Rule(weekday, time(n // 2, n % 2 * 30), time((n + 1) // 2, (n + 1) % 2 * 30), 15)
        for weekday in range(1, 8)
        for n in range(14, 28)
    )
    window = Interval(NOW, NOW + 60 * DAY)

    def took() -> float:
        began = stopwatch.process_time()
        assert len(revise(DOCTOR, (), Availability(full), window, NOW, uuid4).made) > 1600
        return stopwatch.process_time() - began

    assert len(full) == 98
    assert min(took() for _ in range(5)) < 0.05
