"""Which notices still have a point, in which order they are claimed, and when one is given up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text
from uuid_utils.compat import uuid7

from domain import notices
from domain.database import connect
from domain.notices import Drop, Failure, Kind, Notice
from domain.schedule import AppointmentStatus, Interval
from domain.settings import Settings
from tests import rows

START = datetime(2026, 12, 1, 12, tzinfo=UTC)
HOUR, DAY, MINUTE = timedelta(hours=1), timedelta(days=1), timedelta(minutes=1)
DURING = Interval(START, START + 30 * MINUTE)
STANDING = notices._Standing(AppointmentStatus.ACCEPTED, 0, DURING, START - HOUR)


def a_notice(kind: Kind = Kind.REMINDER, *, due_at: datetime, now: datetime, **values: object) -> Notice:
    given = {
        "id": uuid7(),
        "person_id": uuid7(),
        "appointment_id": uuid7(),
        "kind": kind,
        "due_at": due_at,
        "created_at": due_at,
        "sequence": 0,
        "during": DURING,
        "request_id": None,
        "attempts": 1,
        "now": now,
    }
    return Notice(**{**given, **values})  # type: ignore[arg-type]


def fate(notice: Notice, standing: notices._Standing = STANDING) -> Drop | None:
    return notices.pointless(notice, standing, (86400, 3600))


@pytest.mark.parametrize(
    ("late", "dropped"),
    [(timedelta(0), None), (20 * HOUR, None), (23 * HOUR, Drop.TOO_LATE), (25 * HOUR, Drop.TOO_LATE)],
)
def test_a_reminder_is_too_late_once_the_next_one_is_due(late: timedelta, dropped: Drop | None) -> None:
    assert fate(a_notice(due_at=START - DAY, now=START - DAY + late)) is dropped


@pytest.mark.parametrize(("now", "dropped"), [(START - MINUTE, None), (START, Drop.TOO_LATE)])
def test_the_last_reminder_is_too_late_once_the_visit_begins(now: datetime, dropped: Drop | None) -> None:
    assert fate(a_notice(due_at=START - HOUR, now=now)) is dropped


@pytest.mark.parametrize("status", [each for each in AppointmentStatus if each is not AppointmentStatus.ACCEPTED])
def test_nobody_is_reminded_of_a_visit_that_is_off(status: AppointmentStatus) -> None:
    notice = a_notice(due_at=START - HOUR, now=START - HOUR)
    assert fate(notice, replace(STANDING, status=status)) is Drop.NOT_ACCEPTED


def test_nobody_is_reminded_of_a_time_that_no_longer_holds() -> None:
    assert fate(a_notice(due_at=START - HOUR, now=START - HOUR), replace(STANDING, sequence=1)) is Drop.MOVED


def test_a_doctor_is_asked_only_while_there_is_time_to_decide() -> None:
    notice = a_notice(Kind.REQUESTED, due_at=START - DAY, now=START - HOUR - MINUTE)
    asked = replace(STANDING, status=AppointmentStatus.REQUESTED)
    assert fate(notice, asked) is None
    assert fate(replace(notice, now=START - HOUR), asked) is Drop.TOO_LATE


def test_a_request_that_moved_is_told_of_while_its_first_time_is_to_come() -> None:
    notice = a_notice(Kind.REQUESTED, due_at=START - DAY, now=START - MINUTE)
    assert fate(notice, replace(STANDING, sequence=1)) is None
    assert fate(replace(notice, now=START), replace(STANDING, sequence=1)) is Drop.TOO_LATE


@pytest.mark.parametrize("kind", [Kind.CANCELLED, Kind.REFUSED, Kind.EXPIRED, Kind.RESCHEDULED])
def test_what_happened_is_told_however_late(kind: Kind) -> None:
    assert fate(a_notice(kind, due_at=START - DAY, now=START + DAY)) is None


def test_an_acceptance_is_told_until_the_visit_is_over() -> None:
    notice = a_notice(Kind.ACCEPTED, due_at=START - DAY, now=START + 29 * MINUTE)
    assert fate(notice) is None
    assert fate(replace(notice, now=START + 30 * MINUTE)) is Drop.TOO_LATE


def pause(attempts: int, failure: Failure, age: timedelta = HOUR) -> timedelta | Drop:
    return notices.after(a_notice(due_at=START, now=START + age, attempts=attempts), failure)


def test_each_failure_waits_twice_as_long_up_to_four_minutes() -> None:
    waits = [pause(attempts, Failure.DELAYED) for attempts in (1, 2, 3, 4, 5, 6, 400)]
    assert waits == [timedelta(seconds=seconds) for seconds in (10, 20, 40, 80, 160, 240, 240)]


def test_an_address_that_is_refused_is_not_pestered() -> None:
    assert pause(1, Failure.REFUSED) == timedelta(seconds=10)
    assert pause(400, Failure.REFUSED) == HOUR


@given(st.integers(1, 10_000), st.sampled_from([Failure.DELAYED, Failure.UNREACHABLE, Failure.REFUSED]))
def test_the_worlds_trouble_is_given_up_after_a_day_and_not_before(attempts: int, failure: Failure) -> None:
    assert isinstance(pause(attempts, failure, DAY - MINUTE), timedelta)
    assert pause(attempts, failure, DAY) is (Drop.REFUSED if failure is Failure.REFUSED else Drop.UNDELIVERABLE)


def test_the_day_counts_from_when_a_notice_was_due() -> None:
    reminder = a_notice(due_at=START, created_at=START - 30 * DAY, now=START + HOUR)
    assert isinstance(notices.after(reminder, Failure.DELAYED), timedelta)


def test_a_mail_that_we_cannot_write_is_given_up_after_a_few_attempts() -> None:
    assert isinstance(pause(4, Failure.FAULTY), timedelta)
    assert pause(5, Failure.FAULTY) is Drop.FAULTY


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database_url, pool_size=3)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@pytest.fixture
def appointment_ids(connection: Connection, settings: Settings) -> list[UUID]:
    """Two appointments of one patient."""
    doctor_id = rows.add_doctor(connection, settings)
    patient_id = rows.add_person(connection, settings)
    made = []
    for hours in (0, 1):
        slot_id = rows.add_slot(connection, doctor_id, rows.tomorrow(hours))
        made.append(uuid7())
        connection.execute(
            text(
                "insert into appointments (id, slot_id, doctor_id, patient_id, during, active, status, price, currency,"
                " requested_at, expires_at, history_length, history_hash)"
                " select :id, id, doctor_id, :patient_id, during, true, 'accepted', 25000, 'BRL',"
                " now(), now() + interval '1 day', 1, '' from slots where id = :slot_id"
            ),
            {"id": made[-1], "slot_id": slot_id, "patient_id": patient_id},
        )
    connection.commit()
    return made


def tell(connection: Connection, appointment_id: UUID, kind: str, *, due: float = 0, next_try: float | None = None) -> UUID:
    """Note something for the patient, due so many seconds from now."""
    notice_id = uuid7()
    connection.execute(
        text(
            "insert into notices (id, person_id, appointment_id, kind, due_at, next_try_at)"
            " select :id, patient_id, id, :kind, now() + make_interval(secs => :due), now() + make_interval(secs => :next_try)"
            " from appointments where id = :appointment_id"
        ),
        {
            "id": notice_id,
            "appointment_id": appointment_id,
            "kind": kind,
            "due": due,
            "next_try": due if next_try is None else next_try,
        },
    )
    connection.commit()
    return notice_id


def claimed(connection: Connection) -> UUID | None:
    notice = notices.claim(connection)
    connection.commit()
    return notice and notice.id


def test_nothing_is_claimed_before_it_is_due(connection: Connection, appointment_ids: list[UUID]) -> None:
    tell(connection, appointment_ids[0], "reminder", due=60)
    assert claimed(connection) is None
    assert not notices.are_due(connection)


def test_what_has_been_due_longest_comes_first(connection: Connection, appointment_ids: list[UUID]) -> None:
    second = tell(connection, appointment_ids[0], "accepted", due=-10)
    first = tell(connection, appointment_ids[1], "accepted", due=-20)
    assert [claimed(connection), claimed(connection), claimed(connection)] == [first, second, None]


def test_of_one_appointment_nothing_overtakes_what_waits_for_another_try(
    connection: Connection, appointment_ids: list[UUID]
) -> None:
    older = tell(connection, appointment_ids[0], "accepted", due=-60, next_try=60)
    newer = tell(connection, appointment_ids[0], "cancelled", due=-30)
    other = tell(connection, appointment_ids[1], "accepted", due=-10)
    assert [claimed(connection), claimed(connection)] == [other, None]
    connection.execute(text("update notices set sent_at = now() where id = :id"), {"id": older})
    assert claimed(connection) == newer


def test_a_reminder_to_come_holds_nothing_up(connection: Connection, appointment_ids: list[UUID]) -> None:
    tell(connection, appointment_ids[0], "reminder", due=3600)
    cancelled = tell(connection, appointment_ids[0], "cancelled")
    assert claimed(connection) == cancelled


def test_a_claim_that_nobody_made_good_runs_out(connection: Connection, appointment_ids: list[UUID]) -> None:
    notice_id = tell(connection, appointment_ids[0], "accepted")
    assert [claimed(connection), claimed(connection)] == [notice_id, None]
    connection.execute(text("update notices set claimed_until = clock_timestamp() - interval '1 ms'"))
    connection.commit()
    assert notices.are_due(connection)
    assert claimed(connection) == notice_id


def test_two_workers_never_claim_the_same_notice(engine: Engine, connection: Connection, appointment_ids: list[UUID]) -> None:
    tell(connection, appointment_ids[0], "accepted")
    with engine.connect() as first, engine.connect() as second:
        assert notices.claim(first) is not None
        assert notices.claim(second) is None
        first.commit()
        assert notices.claim(second) is None


def test_several_are_claimed_at_once_one_of_each_appointment(connection: Connection, appointment_ids: list[UUID]) -> None:
    second = tell(connection, appointment_ids[0], "accepted", due=-10)
    tell(connection, appointment_ids[0], "cancelled", due=-5)
    first = tell(connection, appointment_ids[1], "accepted", due=-20)
    assert [each.id for each in notices.claim_some(connection, 8)] == [first, second]


def test_what_was_claimed_and_not_tried_is_as_before(connection: Connection, appointment_ids: list[UUID]) -> None:
    for appointment_id in appointment_ids[:2]:
        tell(connection, appointment_id, "accepted")
    sent, untried = notices.claim_some(connection, 8)
    notices.mark_sent(connection, sent)
    notices.release(connection, [sent, untried])
    connection.commit()
    again = notices.claim(connection)
    assert again is not None
    assert (again.id, again.attempts) == (untried.id, 1)
    assert claimed(connection) is None


def test_the_age_of_the_oldest_due_notice_is_known(connection: Connection, appointment_ids: list[UUID]) -> None:
    assert notices.oldest_due(connection) is None
    tell(connection, appointment_ids[0], "accepted", due=-90)
    tell(connection, appointment_ids[1], "reminder", due=90)
    age = notices.oldest_due(connection)
    assert age is not None and timedelta(seconds=90) <= age < timedelta(seconds=100)


def test_a_notice_that_waits_for_another_try_is_as_old_as_it_is(connection: Connection, appointment_ids: list[UUID]) -> None:
    tell(connection, appointment_ids[0], "accepted", due=-7200, next_try=3599)
    age = notices.oldest_due(connection)
    assert age is not None and age >= timedelta(hours=2)
    connection.execute(text("update notices set dropped_at = now()"))
    assert notices.oldest_due(connection) is None
