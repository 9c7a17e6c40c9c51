"""Mails: what they say and never say, and that none is lost, doubled or overtaken whatever the mail server does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from html.parser import HTMLParser
from pathlib import Path
from socket import socket
from uuid import UUID

import pytest
from icalendar import Calendar
from sqlalchemy import text
from uuid_utils.compat import uuid7

from domain import notices, privacy
from domain.commands import Accept, Cancel, Refuse, Reschedule
from domain.notices import Failure, Kind, Letter
from domain.schedule import Role
from domain.settings import Settings
from local.process import Process
from local.servers import free_port
from tests import rows
from tests.workers.conftest import LANE, Booking, MailServer, until
from tests.workers.letters import DOCTOR, PATIENT, VISIT, a_letter, all_letters, main, sample
from workers import mail
from workers.app import BOOKING, NOTIFICATIONS, Sender
from workers.mail import Courier, compose, send_due

SAMPLES = Path(__file__).parents[2] / "docs" / "mails"
LETTERS = dict(all_letters())
MAIL = (EmailMessage(), "a@example.com", "b@example.com")


def part(message: EmailMessage, kind: str) -> EmailMessage | None:
    return next((each for each in message.walk() if each.get_content_type() == kind), None)  # type: ignore[return-value]


def content(message: EmailMessage, kind: str) -> str:
    found = part(message, kind)
    assert found is not None
    text = found.get_content()
    assert isinstance(text, str)
    return text


def entry(message: EmailMessage) -> Calendar | None:
    return Calendar.from_ical(content(message, "text/calendar")) if part(message, "text/calendar") else None


def over_the_wire(letter: Letter, settings: Settings) -> EmailMessage:
    """The mail as its reader gets it."""
    message = message_from_bytes(compose(letter, settings).as_bytes(), policy=default)
    assert isinstance(message, EmailMessage)
    return message


def test_every_mail_is_kept_as_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["letters", str(tmp_path)])
    main()
    drawn = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert drawn == {file.name: file.read_text() for file in SAMPLES.glob("*.txt")}


@pytest.mark.parametrize("name", LETTERS)
def test_a_mail_has_a_text_and_an_accessible_html_part_that_say_the_same(name: str, settings: Settings) -> None:
    message = over_the_wire(LETTERS[name], settings)
    read = _Read()
    read.feed(content(message, "text/html"))
    assert read.language == message["Content-Language"] == LETTERS[name].recipient.language
    assert read.headings == 1
    assert read.title == message["Subject"]
    missing = set(_words_of(content(message, "text/plain"))) - set(_words_of(read.text))
    assert missing <= {"--", f"{settings.public_url}/"}


@pytest.mark.parametrize("name", LETTERS)
def test_a_mail_can_be_recognised_and_answers_no_machine(name: str, settings: Settings) -> None:
    letter = LETTERS[name]
    first, again = over_the_wire(letter, settings), over_the_wire(letter, settings)
    assert first["Message-ID"] == again["Message-ID"] == f"<{letter.notice.id}@healthmed.example>"
    assert first["Auto-Submitted"] == "auto-generated"


@pytest.mark.parametrize("name", [name for name in LETTERS if name.startswith(("requested", "rescheduled"))])
def test_what_still_waits_is_never_called_confirmed(name: str, settings: Settings) -> None:
    said = sample(LETTERS[name], settings).lower()
    assert "confirm" not in said
    assert "25 de novembro" in said or "25 november" in said


@pytest.mark.parametrize(
    ("kind", "method", "status"),
    [
        (Kind.ACCEPTED, "REQUEST", "CONFIRMED"),
        (Kind.RESCHEDULED, "REQUEST", "TENTATIVE"),
        (Kind.CANCELLED, "CANCEL", "CANCELLED"),
    ],
)
def test_a_change_puts_moves_or_removes_the_entry(kind: Kind, method: str, status: str, settings: Settings) -> None:
    message = over_the_wire(a_letter(kind, sequence=3), settings)
    calendar, found = entry(message), part(message, "text/calendar")
    assert calendar is not None and found is not None
    assert found["Content-Type"].params == {"charset": "utf-8", "method": method}
    assert calendar["METHOD"] == method
    assert [(each["STATUS"], each["SEQUENCE"], each["UID"]) for each in calendar.events] == [
        (status, 3, f"{VISIT.appointment_id}@healthmed")
    ]


@pytest.mark.parametrize("kind", [Kind.REFUSED, Kind.EXPIRED])
def test_the_end_of_a_moved_request_removes_the_entry_that_an_earlier_acceptance_made(kind: Kind, settings: Settings) -> None:
    visit = replace(VISIT, by=Role.DOCTOR)
    assert entry(over_the_wire(a_letter(kind, PATIENT, visit), settings)) is None
    calendar = entry(over_the_wire(a_letter(kind, PATIENT, replace(visit, rescheduled=True)), settings))
    assert calendar is not None and calendar["METHOD"] == "CANCEL"


@pytest.mark.parametrize("kind", [Kind.REQUESTED, Kind.REMINDER, Kind.ALREADY_REGISTERED])
def test_what_changes_no_calendar_carries_no_entry(kind: Kind, settings: Settings) -> None:
    assert entry(over_the_wire(a_letter(kind, DOCTOR if kind == Kind.REQUESTED else PATIENT), settings)) is None


def test_each_reader_sees_their_own_time(settings: Settings) -> None:
    to_patient, to_doctor = (over_the_wire(a_letter(Kind.ACCEPTED, who), settings) for who in (PATIENT, DOCTOR))
    assert "das 08:00 às 08:30 (America/Manaus, UTC-04:00)" in content(to_patient, "text/plain")
    assert "das 09:00 às 09:30 (America/Sao_Paulo, UTC-03:00)" in content(to_doctor, "text/plain")


def test_what_people_write_stays_text(settings: Settings) -> None:
    visit = replace(a_letter(Kind.CANCELLED).visit or VISIT, reason="<script>alert(1)</script> {0.__class__} & tchau")
    html = content(over_the_wire(a_letter(Kind.CANCELLED, PATIENT, visit), settings), "text/html")
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {0.__class__} &amp; tchau" in html


@pytest.mark.parametrize(
    "name", ["Eve\r\nBcc: all@example.com", "Eve\nSubject: x", 'Eve" <x@example.com>, "', "Zoë, ; <>", "é" * 200]
)
def test_a_name_adds_no_header_and_no_recipient(name: str, settings: Settings) -> None:
    message = over_the_wire(a_letter(Kind.ACCEPTED, replace(PATIENT, name=name)), settings)
    assert message["Bcc"] is None and message.get_all("Subject") == [message["Subject"]]
    assert [address.addr_spec for address in message["To"].addresses] == ["ana@example.com"]
    assert max(map(len, compose(a_letter(Kind.ACCEPTED, replace(PATIENT, name=name)), settings).as_bytes().splitlines())) < 998


@pytest.mark.parametrize("address", ["a@b.c\r\nRCPT TO:<x@y.z>", "a@b.c, d@e.f", "not an address"])
def test_an_address_that_is_none_makes_no_mail(address: str, settings: Settings) -> None:
    with pytest.raises(Exception, match=r".+"):
        compose(a_letter(Kind.ACCEPTED, replace(PATIENT, email=address)), settings).as_bytes()


def taken(mail_server: MailServer) -> list[tuple[str, str]]:
    """To whom, and about what: the first words of each subject."""
    return [(message["To"].addresses[0].display_name, message["Subject"]) for message in mail_server.taken]


def fates(booking: Booking) -> list[tuple[str, bool, str | None]]:
    with booking.engine.connect() as connection:
        found = connection.execute(text("select kind, sent_at is not null, drop_reason from notices order by due_at, id"))
        return [(row[0], row[1], row[2]) for row in found]


def test_the_doctor_is_told_of_a_request_and_sees_the_rest_of_the_day(booking: Booking, mail_server: MailServer) -> None:
    with booking.engine.begin() as connection:
        other = rows.add_person(connection, booking.settings, name="Carla Dias")
        slot_id = rows.add_slot(connection, booking.doctor_id, rows.tomorrow(2))
        connection.execute(
            text(
                "insert into appointments (id, slot_id, doctor_id, patient_id, during, active, status, price, currency,"
                " requested_at, expires_at, history_length, history_hash) select :id, id, doctor_id, :patient, during, true,"
                " 'accepted', 1, 'BRL', now(), now(), 0, '' from slots where id = :slot"
            ),
            {"id": uuid7(), "patient": other, "slot": slot_id},
        )
    booking.request()
    send_due(booking.engine, booking.settings)
    ((name, subject),) = taken(mail_server)
    assert name == "Bruno Lima" and "Novo pedido" in subject
    said = content(mail_server.taken[0], "text/plain")
    assert "Ana Souza" in said and "- 11:00–11:30: aceito" in said
    assert "Carla" not in said and "peito" not in said


def test_an_appointments_life_reaches_both_calendars(booking: Booking, mail_server: MailServer) -> None:
    with booking.engine.begin() as connection:
        later = rows.add_slot(connection, booking.doctor_id, rows.tomorrow(5))
    appointment_id = booking.accept()
    send_due(booking.engine, booking.settings)
    booking.decide(Reschedule(appointment_id, later, "Viagem"))
    send_due(booking.engine, booking.settings)
    booking.decide(Accept(appointment_id, "https://meet.example/sala"), by_doctor=True)
    booking.decide(Cancel(appointment_id, "Imprevisto na clínica."), by_doctor=True)
    send_due(booking.engine, booking.settings)

    for name, first in (("Ana Souza", 0), ("Bruno Lima", 1)):  # the doctor's first mail, the request, carries no entry
        mails = [message for message in mail_server.taken if message["To"].addresses[0].display_name == name]
        entries = [calendar for message in mails if (calendar := entry(message)) is not None]
        assert len(entries) == len(mails) - first == 4
        read = [(each["METHOD"], each.events[0]["STATUS"], each.events[0]["SEQUENCE"]) for each in entries]
        assert read == [
            ("REQUEST", "CONFIRMED", 0),
            ("REQUEST", "TENTATIVE", 1),
            ("REQUEST", "CONFIRMED", 1),
            ("CANCEL", "CANCELLED", 2),
        ]
        assert {each.events[0]["UID"] for each in entries} == {f"{appointment_id}@healthmed"}
        assert entries[0].events[0].start == rows.tomorrow()
        assert entries[1].events[0].start == rows.tomorrow(5)


def test_a_late_mail_tells_what_was_true_when_it_was_due(booking: Booking, mail_server: MailServer) -> None:
    with booking.engine.begin() as connection:
        later = rows.add_slot(connection, booking.doctor_id, rows.tomorrow(5))
    appointment_id = booking.accept()
    booking.decide(Reschedule(appointment_id, later))
    send_due(booking.engine, booking.settings)
    starts = [calendar.events[0].start for message in mail_server.taken if (calendar := entry(message)) is not None]
    assert sorted(starts) == [rows.tomorrow()] * 2 + [rows.tomorrow(5)] * 2


def test_a_refusal_tells_the_patient_why(booking: Booking, mail_server: MailServer) -> None:
    appointment_id = booking.request()
    booking.decide(Refuse(appointment_id, "Prefiro examinar pessoalmente.", "in_person_needed"), by_doctor=True)
    send_due(booking.engine, booking.settings)
    assert [name for name, _ in taken(mail_server)] == ["Bruno Lima", "Ana Souza"]
    said = content(mail_server.taken[1], "text/plain")
    assert "Motivo: É preciso atendimento presencial: Prefiro examinar pessoalmente." in said


def test_a_patients_own_words_go_into_no_mail(booking: Booking, mail_server: MailServer) -> None:
    appointment_id = booking.accept()
    booking.decide(Cancel(appointment_id, "Internado com dor no peito"))
    send_due(booking.engine, booking.settings)
    assert len(mail_server.taken) == 5
    for message in mail_server.taken:
        assert "peito" not in "".join(content(message, each) for each in ("text/plain", "text/html"))
        assert "Internado" not in content(message, "text/calendar") if entry(message) else True


def test_notices_of_one_visit_arrive_in_order_though_the_first_was_delayed(booking: Booking, mail_server: MailServer) -> None:
    appointment_id = booking.request()
    mail_server.answer = lambda _: "451 greylisted, come back"
    send_due(booking.engine, booking.settings)
    mail_server.answer = lambda _: None
    booking.decide(Cancel(appointment_id, "Não posso mais"))
    send_due(booking.engine, booking.settings)
    assert [name for name, _ in taken(mail_server)] == ["Ana Souza"]
    _hurry(booking)
    send_due(booking.engine, booking.settings)
    assert ["Novo pedido" in subject for name, subject in taken(mail_server) if name == "Bruno Lima"] == [True, False]


def test_a_mail_server_that_is_down_loses_nothing(booking: Booking, mail_server: MailServer) -> None:
    mail_server.stop()
    booking.accept()
    for _ in range(3):
        send_due(booking.engine, booking.settings)
        _hurry(booking)
    mail_server.start()
    send_due(booking.engine, booking.settings)
    assert len(taken(mail_server)) == 3
    assert [sent for kind, sent, _ in fates(booking) if kind != "reminder"] == [True] * 3


def test_an_attempt_that_reaches_nobody_ends_the_turn(booking: Booking, mail_server: MailServer) -> None:
    mail_server.stop()
    booking.accept()
    send_due(booking.engine, booking.settings)
    with booking.engine.connect() as connection:
        attempts = connection.execute(text("select attempts from notices order by attempts")).scalars().all()
    assert sum(attempts) == 1


def test_a_bad_address_is_given_up_after_a_day_and_stops_nobody_elses_mail(booking: Booking, mail_server: MailServer) -> None:
    _change_email(booking, booking.doctor_id, "gone@example.com")
    mail_server.answer = lambda address: "550 no such person" if address.startswith("gone") else None
    booking.accept()
    send_due(booking.engine, booking.settings)
    assert [name for name, _ in taken(mail_server)] == ["Ana Souza"]
    assert fates(booking)[0] == ("requested", False, None)
    with booking.engine.begin() as connection:
        connection.execute(
            text(
                "update notices set due_at = due_at - interval '1 day', created_at = created_at - interval '1 day'"
                " where due_at <= now()"
            )
        )
    _hurry(booking)
    send_due(booking.engine, booking.settings)
    given_up = [(kind, reason) for kind, sent, reason in fates(booking) if not sent and kind != "reminder"]
    assert given_up == [("requested", "address_refused"), ("accepted", "address_refused")]


def test_a_row_that_nobody_can_read_stops_no_other(booking: Booking, mail_server: MailServer) -> None:
    with booking.engine.begin() as connection:
        connection.execute(
            text(
                "insert into notices (id, person_id, kind, due_at, next_try_at)"
                " values (:id, :person, 'nonsense', now() - interval '1 hour', now() - interval '1 hour')"
            ),
            {"id": uuid7(), "person": booking.patient_id},
        )
    booking.request()
    for _ in range(notices.FAULTS):
        send_due(booking.engine, booking.settings)
        _hurry(booking)
    assert len(taken(mail_server)) == 1
    assert fates(booking)[0] == ("nonsense", False, "faulty")


def test_reminders_go_to_both_while_the_visit_stands(booking: Booking, mail_server: MailServer) -> None:
    appointment_id = booking.accept()
    with booking.engine.begin() as connection:  # as if it had been accepted two days ago
        starts_at = datetime.now(UTC) + timedelta(minutes=50)
        during = "tstzrange(:starts_at, :starts_at + interval '30 min')"
        connection.execute(text(f"update appointments set during = {during}"), {"starts_at": starts_at})
        connection.execute(text(f"update notices set during = {during}"), {"starts_at": starts_at})
        connection.execute(
            text(
                "update notices set due_at = due_at + (:starts_at - :planned), next_try_at = due_at + (:starts_at - :planned)"
                " where kind = 'reminder'"
            ),
            {"starts_at": starts_at, "planned": rows.tomorrow()},
        )
    send_due(booking.engine, booking.settings)
    reminded = [name for name, subject in taken(mail_server) if "Lembrete" in subject]
    assert sorted(reminded) == ["Ana Souza", "Bruno Lima"]
    assert "https://meet.example/sala" in content(mail_server.taken[-1], "text/plain")
    assert appointment_id


def test_a_cancelled_visit_sends_no_reminder(booking: Booking, mail_server: MailServer) -> None:
    appointment_id = booking.accept()
    booking.decide(Cancel(appointment_id, "Imprevisto"))
    with booking.engine.begin() as connection:
        connection.execute(text("update notices set next_try_at = now() where kind = 'reminder'"))
    send_due(booking.engine, booking.settings)
    assert not [subject for _, subject in taken(mail_server) if "Lembrete" in subject]
    assert {reason for kind, _, reason in fates(booking) if kind == "reminder"} == {"not_accepted"}


def test_nobody_is_told_anything_once_erased(booking: Booking, mail_server: MailServer) -> None:
    booking.request()
    with booking.engine.begin() as connection:
        connection.execute(text("delete from person_keys where person_id = :id"), {"id": booking.doctor_id})
    send_due(booking.engine, booking.settings)
    assert not mail_server.taken
    assert fates(booking) == [("requested", False, "erased")]


def test_a_second_copy_carries_the_same_message_id(booking: Booking, mail_server: MailServer) -> None:
    booking.request()
    send_due(booking.engine, booking.settings)
    with booking.engine.begin() as connection:  # a worker that died before it could note that it had sent
        connection.execute(text("update notices set sent_at = null, claimed_until = now()"))
    send_due(booking.engine, booking.settings)
    first, second = mail_server.taken
    assert first["Message-ID"] == second["Message-ID"]


def test_whoever_registered_already_is_told(booking: Booking, mail_server: MailServer) -> None:
    with booking.engine.begin() as connection:
        for person_id in (booking.patient_id, booking.doctor_id):
            connection.execute(
                text(
                    "insert into notices (id, person_id, kind, due_at, next_try_at)"
                    " values (:id, :person, 'already_registered', now(), now())"
                ),
                {"id": uuid7(), "person": person_id},
            )
    send_due(booking.engine, booking.settings)
    assert sorted(taken(mail_server)) == [(name, "Health&Med: Você já tem uma conta") for name in ("Ana Souza", "Bruno Lima")]


def test_a_mail_server_that_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "SMTP_SECONDS", 0.2)
    with socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        failure = Courier(f"smtp://127.0.0.1:{silent.getsockname()[1]}").send(*MAIL)
        assert failure is Failure.UNREACHABLE
        assert time.monotonic() - began < 2


def test_a_password_never_goes_out_in_the_clear(mail_server: MailServer) -> None:
    assert Courier(f"smtp://name:secret@127.0.0.1:{mail_server.port}").send(*MAIL) is Failure.UNREACHABLE
    assert Courier(f"smtp://127.0.0.1:{free_port()}").send(*MAIL) is Failure.UNREACHABLE


def test_bookings_are_decided_and_mails_wait_while_the_mail_server_hangs(
    booking: Booking, sender: Sender, start_worker: Callable[..., Process]
) -> None:
    with socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        start_worker(BOOKING)
        start_worker(NOTIFICATIONS, SMTP_URL=url)
        appointment_id = booking.request()
        sender.send_notices()
        until(lambda: _claimed(booking))
        command_id = booking.ask(Accept(appointment_id), by_doctor=True)
        sender.drain(LANE)
        until(lambda: booking.status_of(command_id) == "succeeded", seconds=3)


def test_a_worker_sends_what_is_due(
    booking: Booking, sender: Sender, mail_server: MailServer, start_worker: Callable[..., Process]
) -> None:
    start_worker(NOTIFICATIONS)
    booking.accept()
    sender.send_notices()
    until(lambda: len(mail_server.taken) == 3)


def _hurry(booking: Booking) -> None:
    """Let what waits for another try be due now."""
    with booking.engine.begin() as connection:
        connection.execute(text("update notices set next_try_at = clock_timestamp() where attempts > 0"))


def _claimed(booking: Booking) -> bool:
    with booking.engine.connect() as connection:
        return bool(connection.execute(text("select count(*) from notices where claimed_until is not null")).scalar_one())


def _change_email(booking: Booking, person_id: UUID, email: str) -> None:
    with booking.engine.begin() as connection:
        query = text("select wrapped from person_keys where person_id = :id")
        wrapped = connection.execute(query, {"id": person_id}).scalar_one()
        key = privacy.unwrap(booking.settings.data_keys, person_id, bytes(wrapped))
        private = json.dumps({"name": "Bruno Lima", "email": email})
        sealed = privacy.seal(key, private, context="people.private", row_id=person_id)
        connection.execute(text("update people set private = :private where id = :id"), {"private": sealed, "id": person_id})


def _words_of(said: str) -> list[str]:
    return [word.strip(".,;:()") for word in said.split() if word.strip(".,;:()-")]


class _Read(HTMLParser):
    """What somebody who has a page read to them would hear, roughly."""

    def __init__(self) -> None:
        super().__init__()
        self.language: str | None = None
        self.headings = 0
        self.title = ""
        self.text = ""
        self._tag = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.headings += tag == "h1"
        if tag == "html":
            self.language = dict(attributes)["lang"]
        self.text += f" {dict(attributes).get('href', '')} " if tag == "a" else " "

    def handle_data(self, data: str) -> None:
        if self._tag == "title":
            self.title += data.strip()
        self.text += data
