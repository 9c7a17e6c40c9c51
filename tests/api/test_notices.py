"""Notices, as people read them without any mail, and as staff sees what mail could not bring."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from uuid_utils.compat import uuid7

from domain.notices import Kind
from domain.schedule import Role
from domain.words import WORDS
from tests import letterbox
from tests.api.clinic import Clinic
from tests.factories import PASSWORD, Someone
from tests.rows import tomorrow


def told(clinic: Clinic, who: Someone, query: str = "") -> list[dict[str, Any]]:
    """What somebody was told, newest first."""
    answer = clinic.get(f"/notices{query}", who)
    assert answer.status_code == 200
    return list(answer.json["items"])


def kinds(clinic: Clinic, who: Someone, query: str = "") -> list[str]:
    return [each["kind"] for each in told(clinic, who, query)]


def test_each_side_is_told_what_happened_newest_first(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    assert kinds(clinic, patient) == kinds(clinic, doctor) == []
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    assert (kinds(clinic, patient), kinds(clinic, doctor)) == ([], ["requested"])
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    clinic.done("POST", f"/appointments/{appointment_id}/cancel", patient, {"reason": "Viagem"})
    assert kinds(clinic, patient) == ["cancelled", "accepted"]
    assert kinds(clinic, doctor) == ["cancelled", "accepted", "requested"]
    assert {each["appointment_id"] for each in told(clinic, patient)} == {appointment_id}


def test_a_notice_speaks_the_readers_language_by_the_readers_clock(clinic: Clinic) -> None:
    patient = clinic.accounts.patient(language="en", timezone="America/Manaus")
    doctor = clinic.accounts.doctor()
    appointment_id = clinic.book(patient, clinic.slot(doctor), notes="Dor no peito")
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    (to_patient,), (_, to_doctor) = told(clinic, patient), told(clinic, doctor)
    in_manaus, in_sao_paulo = (tomorrow().astimezone(ZoneInfo(zone)) for zone in ("America/Manaus", "America/Sao_Paulo"))
    assert to_patient["text"] == f"The request for {in_manaus:%d %b %Y, %H:%M} was accepted: the appointment is confirmed."
    assert to_doctor["text"] == f"Há um pedido novo para {in_sao_paulo:%d/%m/%Y, %H:%M}, à espera de resposta."


def test_a_notice_tells_of_the_time_that_was_meant_then(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    clinic.done("POST", f"/appointments/{appointment_id}/reschedule", patient, {"slot_id": clinic.slot(doctor, tomorrow(3))})
    (moved, first) = told(clinic, doctor)
    assert "09:00" in first["text"] and "12:00" in moved["text"]


def test_the_first_reading_counts(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    clinic.book(patient, clinic.slot(doctor))
    clinic.book(patient, clinic.slot(doctor, tomorrow(1)))
    newest, oldest = told(clinic, doctor)
    assert "read_at" not in newest
    for _ in range(2):
        assert clinic.request("POST", f"/notices/{newest['id']}/read", doctor).status_code == 204
        read_at = told(clinic, doctor)[0]["read_at"]
    assert [each.isoformat() for each in clinic.all("select read_at from notices where read_at is not null")] == [
        read_at.replace("Z", "+00:00")
    ]
    assert [each["id"] for each in told(clinic, doctor, "?unread=true")] == [oldest["id"]]
    assert [each["id"] for each in told(clinic, doctor, "?unread=false")] == [newest["id"]]
    assert clinic.get("/notices?unread=true", doctor).json["total"] == 1


def test_a_list_is_sent_again_only_when_it_has_changed(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    clinic.book(patient, clinic.slot(doctor))
    first = clinic.get("/notices", doctor)
    assert first.headers["Cache-Control"] == "private, no-cache"
    again = clinic.get("/notices", doctor, If_None_Match=first.headers["ETag"])
    assert (again.status_code, again.data) == (304, b"")
    clinic.request("POST", f"/notices/{first.json['items'][0]['id']}/read", doctor)
    assert clinic.get("/notices", doctor, If_None_Match=first.headers["ETag"]).status_code == 200


def test_a_list_comes_in_pages(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    for hours in range(3):
        clinic.book(patient, clinic.slot(doctor, tomorrow(hours)))
    pages = [clinic.get(f"/notices?page_size=2&page={page}", doctor).json for page in (1, 2, 3)]
    assert [[len(page["items"]), page["total"]] for page in pages] == [[2, 3], [1, 3], [0, 3]]
    assert len({each["id"] for page in pages for each in page["items"]}) == 3


def test_nobody_reads_or_marks_what_another_was_told(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    clinic.book(patient, clinic.slot(doctor))
    (notice,) = told(clinic, doctor)
    for stranger in (patient, clinic.accounts.doctor(), clinic.accounts.staff()):
        assert notice["id"] not in str(told(clinic, stranger))
        theirs = clinic.request("POST", f"/notices/{notice['id']}/read", stranger)
        nobodys = clinic.request("POST", f"/notices/{uuid7()}/read", stranger)
        assert theirs.status_code == 404 and theirs.json == nobodys.json
    assert clinic.all("select read_at from notices") == [None]


def test_a_reminder_is_there_once_it_is_due_and_only_for_a_visit_that_stands(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    appointment_id = clinic.book(patient, clinic.slot(doctor, tomorrow(30)))
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    (reminder_id, *_) = clinic.all("select id from notices where kind = 'reminder' and person_id = :id", id=patient.id)
    assert kinds(clinic, patient) == ["accepted"]
    assert clinic.request("POST", f"/notices/{reminder_id}/read", patient).status_code == 404
    clinic.change("update notices set due_at = now() where id = :id", id=reminder_id)
    assert kinds(clinic, patient) == ["reminder", "accepted"]
    clinic.done("POST", f"/appointments/{appointment_id}/cancel", patient, {"reason": "Viagem"})
    assert kinds(clinic, patient) == ["cancelled", "accepted"]


def test_what_concerns_the_account_is_told_too(clinic: Clinic) -> None:
    staff = clinic.accounts.staff()
    answer = clinic.request("PUT", "/me/password", staff, {"current": PASSWORD, "new": "outra senha bem comprida"})
    assert answer.status_code == 204
    (notice,) = told(clinic, staff)
    assert (notice["kind"], notice["text"]) == ("password_changed", "A senha da sua conta foi trocada.")
    assert "appointment_id" not in notice


def test_a_row_that_nobody_can_read_hides_no_other(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    clinic.book(patient, clinic.slot(doctor))
    clinic.book(patient, clinic.slot(doctor, tomorrow(1)))
    clinic.change("update notices set kind = 'gibberish' where id = (select id from notices order by id limit 1)")
    assert kinds(clinic, doctor) == ["requested"]


@pytest.mark.parametrize("language", ["pt-BR", "en"])
def test_there_are_words_for_every_kind(language: str) -> None:
    assert set(WORDS[language]["notices"]) == set(Kind)


def give_up(clinic: Clinic, reason: str = "address_refused") -> None:
    """What a day of refusals comes to, for all that is due."""
    clinic.change(
        "update notices set dropped_at = now(), drop_reason = :reason, attempts = 9 where due_at <= now()", reason=reason
    )


def test_staff_sees_whom_no_mail_reaches_and_the_person_sees_that_they_looked(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(name="Zulmira Teles"), clinic.accounts.doctor()
    staff = clinic.accounts.staff()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor)
    assert clinic.get("/staff/notices", staff).json == {"items": [], "page": 1, "page_size": 20, "total": 0}
    clinic.change("delete from notices where person_id <> :id", id=patient.id)
    give_up(clinic)
    shown = clinic.get("/staff/notices?state=undeliverable", staff).json
    (item,) = shown["items"]
    assert shown["total"] == 1
    assert item["person"] == {"id": str(patient.id), "role": "patient", "name": "Zulmira Teles", "email": patient.login}
    assert (item["kind"], item["reason"], item["attempts"]) == ("accepted", "address_refused", 9)
    assert item["appointment_id"] == appointment_id
    clinic.get("/staff/notices", staff)
    log = clinic.get("/me/access-log", patient).json["items"]
    assert [each["by"] for each in log if each["action"] == "read"] == ["staff"]
    assert kinds(clinic, patient) == ["accepted"]


@pytest.mark.parametrize(("reason", "shown"), [("undeliverable", 1), ("faulty", 1), ("too_late", 0), ("erased", 0)])
def test_only_what_should_have_arrived_is_shown(clinic: Clinic, reason: str, shown: int) -> None:
    clinic.book(clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor()))
    give_up(clinic, reason)
    assert clinic.get("/staff/notices", clinic.accounts.staff()).json["total"] == shown


def test_whoever_has_confirmed_an_address_since_is_no_longer_shown(clinic: Clinic) -> None:
    doctor, staff = clinic.accounts.doctor(), clinic.accounts.staff()
    clinic.book(clinic.accounts.patient(), clinic.slot(doctor))
    give_up(clinic)
    assert clinic.get("/staff/notices", staff).json["total"] == 1
    clinic.request("PUT", "/me/email", doctor, {"email": "certo@example.com", "password": PASSWORD})
    mails = letterbox.mails(clinic.services.engine, clinic.services.settings)
    (link,) = [mail for mail in mails if mail["To"] == "certo@example.com"]
    assert clinic.request("POST", "/auth/email/confirm", None, {"token": letterbox.token(link)}).status_code == 204
    assert clinic.get("/staff/notices", staff).json["total"] == 0


def test_staff_sees_what_is_tried_again(clinic: Clinic) -> None:
    clinic.book(clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor()))
    staff = clinic.accounts.staff()
    assert clinic.get("/staff/notices?state=delayed", staff).json["total"] == 0
    clinic.change("update notices set attempts = 2")
    (item,) = clinic.get("/staff/notices?state=delayed", staff).json["items"]
    assert (item["attempts"], "dropped_at" in item, item["person"]["role"]) == (2, False, Role.DOCTOR)
    assert clinic.get("/staff/notices?state=sent", staff).status_code == 422
