"""Requests that lapse: by a command like any other, in order, once, however many relays run and however long none did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from domain.commands import Accept, Book, Cancel
from domain.settings import Settings
from tests import rows
from tests.workers.conftest import LANE, Booking, MailServer, until
from workers.mail import send_due
from workers.relay import Relay

HOUR = timedelta(hours=1)


@contextmanager
def relay(settings: Settings) -> Iterator[Relay]:
    """A relay that takes its turns when it is told to."""
    relay = Relay(settings)
    yield relay
    relay._cache.stop()
    relay._engine.dispose()


def all_of(booking: Booking, query: str) -> list[Any]:
    with booking.engine.connect() as connection:
        return list(connection.execute(text(query)).scalars())


def pass_by(booking: Booking, time: timedelta) -> None:
    """Let so much time have passed in which nothing ran: everything that has been stored is so much older."""
    with booking.engine.begin() as connection:
        for statement in (
            "update appointments set during = tstzrange(lower(during) - :time, upper(during) - :time),"
            " requested_at = requested_at - :time, expires_at = expires_at - :time",
            "update slots set during = tstzrange(lower(during) - :time, upper(during) - :time)",
            "update commands set received_at = received_at - :time",
            "update notices set due_at = due_at - :time, created_at = created_at - :time, next_try_at = next_try_at - :time,"
            " during = tstzrange(lower(during) - :time, upper(during) - :time)",
        ):
            connection.execute(text(statement), {"time": time})


def subjects(mail_server: MailServer) -> list[tuple[str, str]]:
    return [(message["To"].addresses[0].display_name, str(message["Subject"])) for message in mail_server.taken]


def test_a_request_lapses_by_the_settings_within_ten_seconds_of_its_moment(booking: Booking, settings: Settings) -> None:
    hasty = replace(settings, limits=replace(settings.limits, request_ttl=1))
    booking.drainer.settings = hasty
    booking.request()
    with relay(hasty) as first, relay(hasty) as second:

        def lapsed() -> bool:
            first.turn()
            second.turn()
            booking.drainer.drain(LANE)
            return all_of(booking, "select status from appointments") == ["expired"]

        until(lapsed, seconds=11)
    assert all_of(booking, "select status || ' ' || by from history order by position") == [
        "requested patient",
        "expired system",
    ]
    (late,) = all_of(booking, "select decided_at - expires_at from appointments")
    assert timedelta() <= late < timedelta(seconds=10)
    assert all_of(booking, "select status from slots") == ["open"]
    assert all_of(booking, "select count(*) from commands where kind = 'expire'") == [1]


def test_a_request_lapses_so_long_before_the_start_if_that_comes_first(booking: Booking, settings: Settings) -> None:
    with booking.engine.begin() as connection:
        soon = rows.add_slot(connection, booking.doctor_id, datetime.now(UTC) + 3 * HOUR)
    booking.decide(Book(soon))
    (expires_at,) = all_of(booking, "select starts_at - expires_at from appointments")
    assert expires_at == HOUR


@pytest.mark.parametrize("late", [False, True])
def test_a_doctor_who_was_in_time_is_in_time_however_late_it_is_decided(booking: Booking, settings: Settings, late: bool) -> None:
    appointment_id = booking.request()
    if not late:
        accept = booking.ask(Accept(appointment_id), by_doctor=True)
    pass_by(booking, 25 * HOUR)
    if late:
        with booking.engine.begin() as connection:  # the visit itself is still to come
            connection.execute(text("update appointments set during = tstzrange(now() + interval '2 h', now() + interval '3 h')"))
        accept = booking.ask(Accept(appointment_id), by_doctor=True)
    with relay(settings) as only:
        only.turn()
    booking.drainer.drain(LANE)
    assert booking.status_of(accept) == ("rejected" if late else "succeeded")
    assert all_of(booking, "select status from appointments") == ["expired" if late else "accepted"]
    assert all_of(booking, "select coalesce(error_code, status) from commands where kind = 'expire'") == [
        "succeeded" if late else "invalid_transition"
    ]


def test_a_request_that_has_lapsed_is_nobodys_to_cancel_though_nobody_has_said_so_yet(booking: Booking) -> None:
    appointment_id = booking.request()
    pass_by(booking, 25 * HOUR)
    for by_doctor in (False, True):
        booking.ask(Cancel(appointment_id, "Imprevisto"), by_doctor=by_doctor)
    booking.drainer.drain(LANE)
    assert all_of(booking, "select error_code from commands where kind = 'cancel'") == ["invalid_transition"] * 2


def test_after_hours_without_a_relay_the_lapse_is_told_and_the_request_no_more(
    booking: Booking, settings: Settings, mail_server: MailServer
) -> None:
    booking.request()
    pass_by(booking, 25 * HOUR)
    with relay(settings) as only:
        only.turn()
        booking.drainer.drain(LANE)
        only.turn()
    send_due(booking.engine, settings)
    told = subjects(mail_server)
    assert sorted(name for name, _ in told) == ["Ana Souza", "Bruno Lima"]
    assert not [subject for _, subject in told if "Novo pedido" in subject]
    assert all_of(booking, "select drop_reason from notices where kind = 'requested'") == ["too_late"]
    assert all_of(booking, "select count(*) from commands where kind = 'expire'") == [1]
    # What has begun meanwhile is not offered again.
    assert all_of(booking, "select status from slots") == [
        "open" if each > datetime.now(UTC) else "dropped" for each in all_of(booking, "select starts_at from slots")
    ]


@pytest.mark.parametrize(("left", "reminded"), [(25 * HOUR, 0), (30 * HOUR, 0), (HOUR / 2, 2), (-HOUR / 4, 0)])
def test_after_hours_without_a_worker_only_the_reminder_that_still_helps_goes_out(
    booking: Booking, settings: Settings, mail_server: MailServer, left: timedelta, reminded: int
) -> None:
    """`left` is how long before the start the first worker runs again; both reminders are due by a half hour before."""
    with booking.engine.begin() as connection:
        far = rows.add_slot(connection, booking.doctor_id, rows.tomorrow(24))
    booking.decide(Book(far))
    booking.decide(Accept(all_of(booking, "select id from appointments")[0]), by_doctor=True)
    pass_by(booking, rows.tomorrow(24) - datetime.now(UTC) - left)
    send_due(booking.engine, settings)
    assert len([name for name, subject in subjects(mail_server) if "Lembrete" in subject]) == reminded
