"""A person's rights over their data, through HTTP: export, consents, access log, correction, erasure."""

from __future__ import annotations

import json
from datetime import date
from typing import Any
from uuid import UUID

import pytest
import redis
from uuid_utils.compat import uuid7

from domain import erasure
from domain.cache import changing
from domain.consents import OFFERS
from domain.identity import Representative
from domain.lanes import Drainer
from domain.model import Base
from tests.api.clinic import Clinic
from tests.factories import PASSWORD, Someone, cpf, patient_body
from tests.rows import tomorrow

ERASE = {"password": PASSWORD, "confirm": True}

NAME, EMAIL, CPF, PHONE = "Zulmira Quaresma Teles", "zulmira.quaresma@example.com", cpf(731_400_219), "+5511987001122"
GUARDIAN, GUARDIAN_CPF = "Teobaldo Quaresma", cpf(644_118_902)
NOTES, WHY, ROOM = "Dor de dente desde ontem", "Prefiro outro dia mesmo", "https://sala.example/zq-4471"
EVERYTHING = (NAME, EMAIL, CPF, PHONE, GUARDIAN, GUARDIAN_CPF, NOTES, WHY, ROOM)


@pytest.fixture
def zulmira(clinic: Clinic) -> Someone:
    """A patient of whom everything that can be known is known."""
    return clinic.accounts.patient(
        name=NAME,
        email=EMAIL,
        cpf=CPF,
        phone=PHONE,
        birth_date=date(2012, 3, 4),
        representative=Representative(GUARDIAN, GUARDIAN_CPF),
    )


def accepted(clinic: Clinic, patient: Someone, doctor: Someone, hours: float = 0) -> str:
    """The id of an appointment with notes and a room, which the doctor has accepted."""
    appointment_id = clinic.book(patient, clinic.slot(doctor, tomorrow(hours)), notes=NOTES)
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor, {"join_url": ROOM})
    return appointment_id


def let_pass(clinic: Clinic, appointment_id: str) -> None:
    """Move an appointment three days back, as if it were over."""
    back = "tstzrange(lower(during) - interval '3 days', upper(during) - interval '3 days')"
    clinic.change(
        f"update slots set during = {back} where id = (select slot_id from appointments where id = :id)", id=appointment_id
    )
    clinic.change(f"update appointments set during = {back} where id = :id", id=appointment_id)


def resume(clinic: Clinic) -> None:
    """Do what the relay does each second."""
    with clinic.services.engine.begin() as connection:
        erasure.resume(connection, clinic.services.settings)


def erase(clinic: Clinic, who: Someone) -> dict[str, Any]:
    """The command by which somebody has been erased."""
    sent = clinic.request("POST", "/me/erasure", who, ERASE)
    assert sent.status_code == 202, sent.json
    for _ in range(3):
        clinic.decide()
        resume(clinic)
    clinic.decide()
    command = clinic.get(f"/commands/{sent.json['id']}", who).json
    assert command["status"] == "succeeded", command
    return dict(command)


def everything_stored(clinic: Clinic) -> str:
    """All that both Redis servers and every table hold, as text."""
    told = []
    for url in (clinic.services.settings.broker_url, clinic.services.settings.cache_url):
        with redis.Redis.from_url(url) as server:
            for key in server.scan_iter():
                told += [repr(key), repr(server.dump(key))]
                if server.type(key) == b"hash":
                    told += [field.decode("utf-8", "replace") for pair in server.hgetall(key).items() for field in pair]
    for table in Base.metadata.tables:
        told += clinic.all(f"select to_jsonb({table})::text from {table}")
    return "\n".join(told)


def test_an_export_holds_everything_that_is_known_of_a_patient(clinic: Clinic, zulmira: Someone) -> None:
    doctor, staff = clinic.accounts.doctor(), clinic.accounts.staff()
    clinic.done("POST", f"/appointments/{accepted(clinic, zulmira, doctor)}/cancel", zulmira, {"reason": WHY})
    clinic.request("PUT", f"/staff/patients/{zulmira.id}/cpf", staff, {"cpf": CPF, "reason": "Estava trocado no cadastro"})

    answer = clinic.get("/me/export", zulmira)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    for known in (*EVERYTHING, "2012-03-04", "Estava trocado no cadastro", "127.0.0.1"):
        assert known in answer.text, known
    held = answer.json
    assert held["people"][0]["private"]["phone"] == PHONE
    assert [each["status"] for each in held["history"]] == ["requested", "accepted", "cancelled"]
    assert held["history"][-1]["reason"] == WHY
    assert [each["kind"] for each in held["commands"]] == ["book", "cancel"]
    assert [each["kind"] for each in held["consents"]] == ["terms"]
    assert {each["action"] for each in held["audit"]} >= {"registered", "cpf_corrected", "exported"}
    assert "argon2" not in answer.text
    assert not {"password_hash", "email_hash", "cpf_hash"} & set(held["people"][0])


def test_an_export_tells_nothing_of_anybody_else(clinic: Clinic, zulmira: Someone) -> None:
    doctor, other = clinic.accounts.doctor(), clinic.accounts.patient(name="Outra Pessoa")
    appointment_id = accepted(clinic, zulmira, doctor)
    clinic.get(f"/appointments/{appointment_id}", doctor)

    for stranger in (other, doctor):
        exported = clinic.get("/me/export", stranger).text
        for known in EVERYTHING:
            assert known not in exported, known
    assert appointment_id not in clinic.get("/me/export", other).text
    assert [each["id"] for each in clinic.get("/me/export", doctor).json["appointments"]] == [appointment_id]
    assert clinic.get("/me/export", clinic.accounts.staff()).status_code == 403
    assert clinic.get("/me/export").status_code == 401


def test_registering_is_agreeing_to_the_terms(clinic: Clinic) -> None:
    body = patient_body(language="en")
    clinic.request("POST", "/patients", None, body)
    log_in = {"login": body["email"], "password": PASSWORD}
    token = clinic.request("POST", "/auth/patient", None, log_in).json["access_token"]
    answer = clinic.client.get("/api/v1/me/consents", headers={"Authorization": f"Bearer {token}"}).json
    (terms,) = answer["items"]
    assert (terms["kind"], terms["version"], terms["withdrawn_at"]) == ("terms", OFFERS["terms"].version, None)
    offered = {each["kind"]: each for each in answer["offered"]}
    assert offered.keys() == {"terms", "teleconsultation"}
    assert offered["terms"]["title"] == "Terms of use and privacy notice"


def test_a_consent_is_given_once_and_can_be_withdrawn_and_given_again(clinic: Clinic) -> None:
    patient, agreed = clinic.accounts.patient(), {"kind": "teleconsultation", "version": OFFERS["teleconsultation"].version}
    given = clinic.request("POST", "/me/consents", patient, agreed)
    assert given.status_code == 201
    assert clinic.request("POST", "/me/consents", patient, agreed).json == given.json
    assert clinic.request("DELETE", "/me/consents/teleconsultation", patient).status_code == 204
    assert clinic.request("DELETE", "/me/consents/teleconsultation", patient).status_code == 404
    assert clinic.request("POST", "/me/consents", patient, agreed).status_code == 201
    items = clinic.get("/me/consents", patient).json["items"]
    assert [(each["kind"], each["withdrawn_at"] is None) for each in items] == [
        ("teleconsultation", True),
        ("teleconsultation", False),
        ("terms", True),
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "teleconsultation", "version": "0"}, "version"),
        ({"kind": "anything", "version": "1"}, "kind"),
        ({"kind": "terms"}, "version"),
    ],
)
def test_only_a_text_as_it_stands_can_be_agreed_to(clinic: Clinic, body: dict[str, str], field: str) -> None:
    answer = clinic.request("POST", "/me/consents", clinic.accounts.patient(), body)
    assert answer.status_code == 422
    assert list(answer.json["errors"]) == [field]


def test_the_access_log_says_who_read_and_changed_what_is_a_patients(clinic: Clinic) -> None:
    patient, doctor, staff = clinic.accounts.patient(), clinic.accounts.doctor(name="Rui Prado"), clinic.accounts.staff()
    appointment_id = clinic.book(patient, clinic.slot(doctor))
    clinic.get(f"/appointments/{appointment_id}", doctor)
    clinic.request("PUT", f"/staff/patients/{patient.id}/cpf", staff, {"cpf": cpf(), "reason": "Erro de digitação"})

    log = clinic.get("/me/access-log", patient).json
    told = [(each["action"], each["by"]) for each in log["items"]]
    assert told[:2] == [("cpf_corrected", "staff"), ("read", "doctor")]
    assert ("registered", "patient") in told
    assert log["items"][1]["doctor"] == {"id": str(doctor.id), "name": "Rui Prado", "crm": doctor.login}
    assert log["total"] == len(log["items"])
    second = clinic.get("/me/access-log?page=2&page_size=1", patient).json
    assert second["items"] == log["items"][1:2]
    assert clinic.get("/me/access-log", doctor).status_code == 403
    assert clinic.get("/me/access-log?page_size=101", patient).status_code == 422


def test_staff_puts_a_cpf_right_and_says_why(clinic: Clinic) -> None:
    patient, staff, right = clinic.accounts.patient(), clinic.accounts.staff(), cpf()
    answer = clinic.request("PUT", f"/staff/patients/{patient.id}/cpf", staff, {"cpf": right, "reason": "Erro de digitação"})
    assert answer.status_code == 200
    assert answer.json == {"id": str(patient.id), "cpf_masked": f"***.{right[3:6]}.{right[6:9]}-**"}
    logged_in = clinic.request("POST", "/auth/patient", None, {"login": right, "password": PASSWORD})
    assert logged_in.status_code == 200
    assert clinic.all("select field from corrections") == ["cpf"]
    assert "digita" not in "".join(clinic.all("select to_jsonb(corrections)::text from corrections"))


def test_staff_cannot_give_a_patient_a_cpf_that_cannot_be_theirs(clinic: Clinic, zulmira: Someone) -> None:
    staff, taken = clinic.accounts.staff(), cpf()
    clinic.accounts.patient(cpf=taken)
    path = f"/staff/patients/{zulmira.id}/cpf"
    for body, status in [
        ({"cpf": taken, "reason": "Erro de digitação"}, 409),
        ({"cpf": GUARDIAN_CPF, "reason": "Erro de digitação"}, 422),
        ({"cpf": "11111111111", "reason": "Erro de digitação"}, 422),
        ({"cpf": cpf()}, 422),
        ({"cpf": cpf(), "reason": "x"}, 422),
    ]:
        assert clinic.request("PUT", path, staff, body).status_code == status, body
    good = {"cpf": cpf(), "reason": "Erro de digitação"}
    for nobody in (uuid7(), clinic.accounts.doctor().id):
        assert clinic.request("PUT", f"/staff/patients/{nobody}/cpf", staff, good).status_code == 404
    assert clinic.request("PUT", path, zulmira, good).status_code == 403
    assert clinic.all("select count(*) from corrections") == [0]


def test_erasing_needs_the_password_and_a_yes(clinic: Clinic) -> None:
    patient = clinic.accounts.patient()
    wrong = clinic.request("POST", "/me/erasure", patient, {**ERASE, "password": "outra senha bem comprida"})
    assert (wrong.status_code, wrong.json["code"]) == (422, "wrong_password")
    for body in ({"password": PASSWORD}, {**ERASE, "confirm": False}, {"confirm": True}):
        assert clinic.request("POST", "/me/erasure", patient, body).status_code == 422
    assert clinic.request("POST", "/me/erasure", clinic.accounts.doctor(), ERASE).status_code == 403
    assert clinic.request("POST", "/me/erasure", None, ERASE).status_code == 401
    assert clinic.stored() == 0


def test_an_erased_patient_is_gone_and_may_register_again(clinic: Clinic, zulmira: Someone) -> None:
    elsewhere = clinic.accounts.logged_in(zulmira.id, "patient", zulmira.login)  # type: ignore[arg-type]
    command = erase(clinic, zulmira)

    assert command["kind"] == "erase"
    assert [each["ground"][:4] for each in command["result"]["kept"]] == ["LGPD"]
    assert clinic.get("/me", elsewhere).status_code == 401
    assert clinic.request("POST", "/auth/patient", None, {"login": EMAIL, "password": PASSWORD}).status_code == 401
    assert clinic.client.post("/api/v1/auth/refresh", headers={"Authorization": f"Bearer {zulmira.refresh}"}).status_code == 401
    again = patient_body(name=NAME, email=EMAIL, cpf=CPF)
    assert clinic.request("POST", "/patients", None, again).status_code == 201


def test_the_token_of_an_erased_patient_reads_the_answer_and_nothing_else(clinic: Clinic, zulmira: Someone) -> None:
    command = erase(clinic, zulmira)
    assert clinic.get(f"/commands/{command['id']}", zulmira).json == command
    for path in ("/me", "/me/export", "/me/access-log", "/me/consents", "/appointments", "/me/sessions"):
        assert clinic.get(path, zulmira).status_code == 401, path
    slot_id = clinic.slot(clinic.accounts.doctor())
    assert clinic.request("POST", "/appointments", zulmira, {"slot_id": slot_id}).status_code == 401
    ends = "select expires_at <= clock_timestamp() + interval '15 minutes' from sessions where person_id = :id"
    assert clinic.all(ends, id=zulmira.id) == [True]


def test_an_erasure_sent_again_under_its_key_answers_the_same_command(clinic: Clinic) -> None:
    patient, key = clinic.accounts.patient(), "apagar-1"
    first = clinic.request("POST", "/me/erasure", patient, ERASE, key=key)
    clinic.decide()
    again = clinic.request("POST", "/me/erasure", patient, ERASE, key=key)
    assert (again.status_code, again.json["id"]) == (202, first.json["id"])
    assert again.json["status"] == "succeeded"
    other = clinic.request("POST", "/me/erasure", patient, ERASE, key="apagar-2")
    assert (other.status_code, other.json["code"]) == (422, "wrong_password")


def test_an_erasure_that_waits_for_other_lanes_wakes_none_when_it_is_sent_again(
    clinic: Clinic, zulmira: Someone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.book(zulmira, clinic.slot(clinic.accounts.doctor()))
    first = clinic.request("POST", "/me/erasure", zulmira, ERASE, key="apagar-1")
    drain(clinic, lane_of_patient(clinic, zulmira))
    woken: list[int] = []
    monkeypatch.setattr("api.commands.wake", woken.append)
    again = clinic.request("POST", "/me/erasure", zulmira, ERASE, key="apagar-1")
    assert (again.status_code, again.json) == (202, first.json)
    assert woken == []


def test_what_is_to_come_is_cancelled_before_anybody_is_erased(clinic: Clinic, zulmira: Someone) -> None:
    doctor, other = clinic.accounts.doctor(), clinic.accounts.doctor()
    first = accepted(clinic, zulmira, doctor)
    second = clinic.book(zulmira, clinic.slot(other, tomorrow(2)))
    third = clinic.slot(doctor, tomorrow(4))
    sent = clinic.request("POST", "/me/erasure", zulmira, ERASE)
    drain(clinic, lane_of_patient(clinic, zulmira))

    assert clinic.get(f"/commands/{sent.json['id']}", zulmira).json["status"] == "pending"
    assert clinic.all("select status from people where id = :id", id=zulmira.id) == ["closing"]
    late = clinic.request("POST", "/appointments", zulmira, {"slot_id": third, "notes": NOTES})
    assert late.status_code == 202
    resume(clinic)
    assert clinic.all("select lane from commands where kind = 'erase'") == [-1], "it must wait for the other lanes"

    clinic.decide()
    assert clinic.get(f"/commands/{late.json['id']}", zulmira).json["error"]["code"] == "account_closed"
    resume(clinic)
    clinic.decide()
    command = clinic.get(f"/commands/{sent.json['id']}", zulmira).json
    assert command["status"] == "succeeded"
    for appointment_id, who in ((first, doctor), (second, other)):
        seen = clinic.get(f"/appointments/{appointment_id}", who).json
        assert (seen["status"], seen["history"][-1]["by"]) == ("cancelled", "system")
        assert seen["patient"] == {"id": str(zulmira.id), "name": None}
        assert seen["notes"] is None
    assert command["result"]["erased"][-1]["count"] == 2


def test_nothing_of_an_erased_patient_can_be_found_or_opened(clinic: Clinic, zulmira: Someone) -> None:
    doctor = clinic.accounts.doctor()
    appointment_id = accepted(clinic, zulmira, doctor)
    for path in (f"/appointments/{appointment_id}", "/appointments"):
        clinic.get(path, zulmira)
        clinic.get(path, doctor)
    clinic.done("POST", f"/appointments/{appointment_id}/cancel", zulmira, {"reason": WHY})
    clinic.get("/appointments", doctor)
    assert NAME in everything_stored(clinic), "the cache holds what was read"
    erase(clinic, zulmira)

    stored = everything_stored(clinic)
    for known in EVERYTHING:
        assert known not in stored, known
        assert json.dumps(known).strip('"') not in stored, known
    assert clinic.all("select count(*) from person_keys where person_id = :id", id=zulmira.id) == [0]
    assert clinic.all(
        "select num_nonnulls(private, email_hash, cpf_hash, password_hash) from people where id = :id", id=zulmira.id
    ) == [0]
    assert clinic.all("select num_nonnulls(notes, reason, join_url) from appointments") == [0]


def test_what_took_place_is_kept_under_its_own_key_and_shown_to_nobody(clinic: Clinic, zulmira: Someone) -> None:
    doctor = clinic.accounts.doctor()
    held, missed, cancelled = (accepted(clinic, zulmira, doctor, hours) for hours in (0, 1, 2))
    clinic.done("POST", f"/appointments/{cancelled}/cancel", zulmira, {"reason": WHY})
    for appointment_id, step in ((held, "complete"), (missed, "no-show")):
        let_pass(clinic, appointment_id)
        clinic.done("POST", f"/appointments/{appointment_id}/{step}", doctor)
    over = accepted(clinic, zulmira, doctor, 3)
    let_pass(clinic, over)

    result = erase(clinic, zulmira)["result"]
    kept = result["kept"][-1]
    assert kept["count"] == 3
    assert set(kept["appointment_ids"]) == {held, missed, over}
    assert "13.787/2018" in kept["ground"]
    assert date.fromisoformat(kept["until"]).year >= tomorrow().year + 19
    seen = clinic.get(f"/appointments/{held}", doctor).json
    assert (seen["status"], seen["patient"]["name"], seen["notes"]) == ("completed", None, None)

    with clinic.services.engine.begin() as connection:
        document = erasure.reveal(connection, clinic.services.settings, UUID(held))
        assert erasure.reveal(connection, clinic.services.settings, UUID(cancelled)) is None
    assert document is not None
    assert document["patient"] == {
        "name": NAME,
        "cpf": CPF,
        "birth_date": "2012-03-04",
        "representative": {"name": GUARDIAN, "cpf": GUARDIAN_CPF},
    }
    assert (document["notes"], document["join_url"]) == (NOTES, ROOM)
    assert [each["status"] for each in document["history"]] == ["requested", "accepted", "completed"]
    assert "retained_read" in clinic.all("select action from audit where subject_id = :id", id=zulmira.id)


def test_whoever_asks_twice_is_erased_once(clinic: Clinic) -> None:
    patient, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    accepted(clinic, patient, doctor)
    first = clinic.request("POST", "/me/erasure", patient, ERASE)
    second = clinic.request("POST", "/me/erasure", patient, ERASE)
    for _ in range(2):
        clinic.decide()
        resume(clinic)
    clinic.decide()
    assert clinic.get(f"/commands/{first.json['id']}", patient).json["status"] == "succeeded"
    assert clinic.get(f"/commands/{second.json['id']}", patient).json["error"]["code"] == "account_closed"


def test_after_a_restore_the_erased_are_erased_again(clinic: Clinic, zulmira: Someone) -> None:
    bystander, doctor = clinic.accounts.patient(), clinic.accounts.doctor()
    accepted(clinic, zulmira, doctor)
    (key,) = clinic.all("select encode(wrapped, 'hex') from person_keys where person_id = :id", id=zulmira.id)
    (person,) = clinic.all("select to_jsonb(people)::text from people where id = :id", id=zulmira.id)
    erase(clinic, zulmira)
    with clinic.services.reads.connect() as connection:
        named = erasure.tombstones(connection)
    assert named == [zulmira.id]
    clinic.change("insert into person_keys values (:id, decode(:key, 'hex'))", id=zulmira.id, key=key)
    columns = "status, private, email_hash, cpf_hash, password_hash"
    restored = f"select {columns} from jsonb_populate_record(null::people, cast(:row as jsonb))"
    clinic.change(f"update people set ({columns}) = ({restored}) where id = :id", row=person, id=zulmira.id)
    assert clinic.request("POST", "/auth/patient", None, {"login": EMAIL, "password": PASSWORD}).status_code == 200

    use = clinic.services
    with changing(use.engine, use.cache) as change:
        assert len(erasure.bury(change, use.settings, [*named, uuid7()])) == 1
    assert clinic.request("POST", "/auth/patient", None, {"login": EMAIL, "password": PASSWORD}).status_code == 401
    clinic.decide()
    assert clinic.all("select status from people where id = :id", id=zulmira.id) == ["erased"]
    assert clinic.all("select count(*) from person_keys where person_id = :id", id=zulmira.id) == [0]
    assert clinic.get("/me", bystander).status_code == 200
    with changing(use.engine, use.cache) as change:
        assert erasure.bury(change, use.settings, named) == []


def lane_of_patient(clinic: Clinic, patient: Someone) -> int:
    """The lane in which an erasure of this patient waits."""
    return int(clinic.all("select lane from commands where actor_id = :id and kind = 'erase'", id=patient.id)[0])


def drain(clinic: Clinic, lane: int) -> None:
    """Decide what waits in one lane only."""
    use = clinic.services
    Drainer(use.settings, use.engine, use.cache, use.broker).drain(lane)
