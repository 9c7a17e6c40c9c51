"""The calendar feed: what two independent parsers read in it, for as long as its secret address is good."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import icalendar
import pytest
import vobject
from werkzeug.test import TestResponse

from tests import letterbox
from tests.api.clinic import Clinic
from tests.api.test_rights import erase, everything_stored
from tests.factories import Someone
from tests.rows import tomorrow

NOTES, ROOM = "Dor no peito desde ontem", "https://sala.example/zq-4471"


@dataclass(frozen=True)
class Seen:
    """One entry, as a calendar program understands it."""

    uid: str
    starts_at: datetime
    ends_at: datetime
    zone: str
    status: str
    sequence: int
    title: str
    description: str
    place: str | None


def by_icalendar(body: bytes) -> list[Seen]:
    """What icalendar reads."""
    calendar = icalendar.Calendar.from_ical(body)
    assert not calendar.errors
    return [
        Seen(
            str(event["UID"]),
            event.start,
            event.end,
            event["DTSTART"].params["TZID"],
            str(event["STATUS"]),
            int(event["SEQUENCE"]),
            str(event["SUMMARY"]),
            str(event["DESCRIPTION"]),
            str(event["URL"]) if "URL" in event else None,
        )
        for event in calendar.events
    ]


def by_vobject(body: bytes) -> list[Seen]:
    """What vobject reads, by the rules of the zone that the calendar itself defines."""
    calendar = vobject.readOne(body.decode(), validate=True)
    return [
        Seen(
            event.uid.value,
            event.dtstart.value,
            event.dtend.value,
            event.dtstart.params["X-VOBJ-ORIGINAL-TZID"][0],
            event.status.value,
            int(event.sequence.value),
            event.summary.value,
            event.description.value,
            event.url.value if hasattr(event, "url") else None,
        )
        for event in calendar.contents.get("vevent", [])
    ]


def link(clinic: Clinic, who: Someone) -> str:
    """The path, below /api/v1, of a new link of somebody's."""
    answer = clinic.request("POST", "/me/calendar-link", who)
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    before, found, path = answer.json["url"].partition("/api/v1")
    assert (before, found) == (clinic.services.settings.public_url, "/api/v1")
    return str(path)


def entries(clinic: Clinic, path: str) -> list[Seen]:
    """What stands in a calendar, by the time at which it begins: both parsers must see the same."""
    answer = clinic.get(path)
    assert answer.status_code == 200
    seen = by_icalendar(answer.data)
    assert by_vobject(answer.data) == seen
    return seen


def accepted(clinic: Clinic, patient: Someone, doctor: Someone, hours: float = 0) -> str:
    appointment_id = clinic.book(patient, clinic.slot(doctor, tomorrow(hours)), notes=NOTES)
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor, {"join_url": ROOM})
    return appointment_id


def test_two_parsers_read_both_sides_appointments_by_each_ones_clock(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(timezone="America/New_York"), clinic.accounts.doctor()
    appointment_id = accepted(clinic, patient, doctor)
    (of_patient,), (of_doctor,) = entries(clinic, link(clinic, patient)), entries(clinic, link(clinic, doctor))
    for seen, zone in ((of_patient, "America/New_York"), (of_doctor, "America/Sao_Paulo")):
        assert (seen.uid, seen.sequence, seen.status) == (f"{appointment_id}@healthmed", 0, "CONFIRMED")
        assert (seen.starts_at, seen.ends_at) == (tomorrow(), tomorrow(0.5))
        assert seen.starts_at.utcoffset() == tomorrow().astimezone(ZoneInfo(zone)).utcoffset()
        assert (seen.zone, seen.place) == (zone, ROOM)


def test_an_entry_follows_its_appointment_through_its_life(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    paths = link(clinic, patient), link(clinic, doctor)
    assert [entries(clinic, path) for path in paths] == [[], []]

    def seen() -> list[tuple[str, int, datetime]]:
        one, other = ([(each.status, each.sequence, each.starts_at) for each in entries(clinic, path)] for path in paths)
        assert one == other
        return one

    appointment_id = clinic.book(patient, clinic.slot(doctor))
    assert seen() == [("TENTATIVE", 0, tomorrow())]
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    assert seen() == [("CONFIRMED", 0, tomorrow())]
    clinic.done("POST", f"/appointments/{appointment_id}/reschedule", patient, {"slot_id": clinic.slot(doctor, tomorrow(3))})
    assert seen() == [("TENTATIVE", 1, tomorrow(3))]
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    assert seen() == [("CONFIRMED", 1, tomorrow(3))]
    clinic.done("POST", f"/appointments/{appointment_id}/cancel", patient, {"reason": "Viagem"})
    assert seen() == []


def test_an_entry_has_the_uid_and_the_sequence_of_the_one_that_was_mailed(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    appointment_id = accepted(clinic, patient, doctor)
    clinic.done("POST", f"/appointments/{appointment_id}/reschedule", patient, {"slot_id": clinic.slot(doctor, tomorrow(3))})
    mails = letterbox.mails(clinic.services.engine, clinic.services.settings)
    parts = [part for mail in mails for part in mail.walk() if part.get_content_type() == "text/calendar"]
    mailed = [(each.uid, each.sequence) for part in parts for each in by_icalendar(part.get_content().encode())]
    (seen,) = entries(clinic, link(clinic, patient))
    assert len(mailed) == 4 and (seen.uid, seen.sequence) == mailed[-1]


def test_a_request_says_who_must_act_and_until_when(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(language="en"), clinic.accounts.doctor()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    (expires_at,) = clinic.all("select expires_at from appointments where id = :id", id=appointment_id)
    until = expires_at.astimezone(ZoneInfo("America/Sao_Paulo"))
    (of_patient,), (of_doctor,) = entries(clinic, link(clinic, patient)), entries(clinic, link(clinic, doctor))
    assert of_patient.title == "Health&Med appointment (requested)"
    assert f"Bruno Lima is to answer by {until:%d %b %Y, %H:%M}; until then the time is held" in of_patient.description
    assert of_doctor.title == "Pedido de atendimento Health&Med"
    assert f"Aceite ou recuse até {until:%d/%m/%Y, %H:%M}" in of_doctor.description
    for seen in (of_patient, of_doctor):
        assert "confirm" not in f"{seen.title} {seen.description}".lower()


def test_whoever_learns_the_address_learns_nothing_of_anybodys_health_and_no_patients_name(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(name="Zulmira Quaresma"), clinic.accounts.doctor()
    accepted(clinic, patient, doctor)
    clinic.book(patient, clinic.slot(doctor, tomorrow(2)), notes=NOTES)
    for who in (patient, doctor):
        shown = clinic.get(link(clinic, who)).text.replace("\r\n ", "")
        assert "Zulmira" not in shown and NOTES not in shown and "example.com" not in shown
        assert {each.title for each in by_icalendar(shown.encode())} == {
            "Atendimento Health&Med",
            "Pedido de atendimento Health&Med",
        }


def test_nobody_elses_appointments_are_there(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    accepted(clinic, clinic.accounts.patient(), doctor)
    assert entries(clinic, link(clinic, clinic.accounts.patient())) == []
    assert entries(clinic, link(clinic, clinic.accounts.doctor())) == []


def test_what_is_over_stays_for_a_month(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    for days in (31, 29):
        appointment_id = accepted(clinic, patient, doctor)
        back = f"tstzrange(lower(during) - interval '{days} days', upper(during) - interval '{days} days')"
        clinic.change(f"update slots set during = {back} where status = 'booked' and starts_at > now()")
        clinic.change(f"update appointments set during = {back} where id = :id", id=appointment_id)
    (seen,) = entries(clinic, link(clinic, patient))
    assert datetime.now(UTC) - seen.ends_at < timedelta(days=30)


def test_a_calendar_is_sent_again_only_when_it_has_changed(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    appointment_id, path = clinic.book(patient, clinic.slot(doctor)), link(clinic, patient)
    first = clinic.get(path)
    assert first.content_type == "text/calendar; charset=utf-8"
    assert first.headers["Cache-Control"] == "private, no-cache"
    assert first.headers["Referrer-Policy"] == "no-referrer"
    again = clinic.get(path, If_None_Match=first.headers["ETag"])
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    assert clinic.get(path, If_None_Match=first.headers["ETag"]).status_code == 200


def test_a_change_of_language_or_zone_shows_at_once(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    clinic.book(patient, clinic.slot(doctor))
    path = link(clinic, patient)
    assert [each.zone for each in entries(clinic, path)] == ["America/Sao_Paulo"]
    clinic.request("PATCH", "/patients/me", patient, {"language": "en", "timezone": "America/Manaus"})
    assert [(each.zone, each.title) for each in entries(clinic, path)] == [
        ("America/Manaus", "Health&Med appointment (requested)")
    ]


@pytest.mark.parametrize("end", ["POST", "DELETE"])
def test_a_link_dies_when_it_is_replaced_or_revoked(clinic: Clinic, end: str) -> None:
    patient = clinic.accounts.patient()
    path = link(clinic, patient)
    assert clinic.get(path).status_code == 200
    assert clinic.request(end, "/me/calendar-link", patient).status_code == {"POST": 201, "DELETE": 204}[end]
    dead = clinic.get(path)
    assert (dead.status_code, dead.json["code"]) == (404, "not_found")
    assert dead.json == clinic.get("/calendar/nunca-existiu.ics").json


def test_to_revoke_what_is_not_there_changes_nothing(clinic: Clinic) -> None:
    assert clinic.request("DELETE", "/me/calendar-link", clinic.accounts.patient()).status_code == 204
    assert "calendar_link_ended" not in clinic.all("select action from audit")


def test_of_many_links_made_at_once_one_is_good(clinic: Clinic) -> None:
    patient, app = clinic.accounts.patient(), clinic.client.application

    def make(_: int) -> TestResponse:
        return app.test_client().post("/api/v1/me/calendar-link", headers=patient.headers)

    with ThreadPoolExecutor(8) as many:
        made = list(many.map(make, range(8)))
    assert {answer.status_code for answer in made} == {201}
    read = [clinic.client.get(answer.json["url"].removeprefix(clinic.services.settings.public_url)) for answer in made]
    assert sorted(answer.status_code for answer in read) == [200] + [404] * 7


def test_a_link_stands_nowhere_but_in_its_answer(clinic: Clinic, capfd: pytest.CaptureFixture[str]) -> None:
    path = link(clinic, clinic.accounts.patient())
    assert clinic.get(path).status_code == 200
    token = path.removeprefix("/calendar/").removesuffix(".ics")
    assert token not in everything_stored(clinic)
    assert token not in "".join(capfd.readouterr())


def test_making_and_ending_a_link_is_written_down(clinic: Clinic) -> None:
    patient = clinic.accounts.patient()
    link(clinic, patient)
    clinic.request("DELETE", "/me/calendar-link", patient)
    log = clinic.get("/me/access-log", patient).json["items"]
    assert [each["action"] for each in log[:2]] == ["calendar_link_ended", "calendar_link_made"]


def test_an_erased_patient_has_no_calendar(clinic: Clinic) -> None:
    patient = clinic.accounts.patient()
    accepted(clinic, patient, clinic.accounts.doctor())
    path = link(clinic, patient)
    assert len(entries(clinic, path)) == 1
    erase(clinic, patient)
    assert clinic.get(path).status_code == 404
    assert clinic.all("select count(*) from calendar_links") == [0]


def test_a_calendar_that_was_read_is_read_without_the_database_too(clinic: Clinic, postgres: Any) -> None:
    path = link(clinic, clinic.accounts.patient())
    first, until = clinic.get(path), time.monotonic() + 10
    postgres.stop()
    try:
        while "Warning" not in (answer := clinic.get(path)).headers:  # it takes two seconds to notice
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        clinic.outlast(postgres)
    assert (answer.status_code, answer.data) == (200, first.data)
