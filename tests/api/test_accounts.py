"""Registering, one's own account, and the verification of doctors."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from uuid_utils.compat import uuid7

from api.attempts import Limit
from domain import identity
from domain.schedule import Role
from tests.factories import PASSWORD, Accounts, cpf, doctor_body, patient_body


def test_a_patient_registers_and_never_sees_a_cpf_whole(client: FlaskClient) -> None:
    answer = client.post("/api/v1/patients", json=patient_body(cpf="529.982.247-25", phone="+55 (11) 91234-5678"))
    assert answer.status_code == 201
    assert answer.json["cpf_masked"] == "***.982.247-**"
    assert answer.json["phone"] == "+5511912345678"
    assert answer.json["role"] == "patient"
    assert UUID(answer.json["id"]).version == 7
    assert "52998224725" not in answer.text
    assert PASSWORD not in answer.text
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_patient_without_a_cpf_leaves_it_out(client: FlaskClient) -> None:
    answer = client.post("/api/v1/patients", json=patient_body(cpf=None))
    assert answer.status_code == 201
    assert answer.json["cpf_masked"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "X"),
        ("name", "x" * 201),
        ("name", "  \u200b  "),
        ("name", "Ana\x00"),
        ("name", "Ana\ud800"),
        ("name", 7),
        ("email", "not an address"),
        ("cpf", "111.111.111-11"),
        ("cpf", "52998224724"),
        ("cpf", 52998224725),
        ("password", "short"),
        ("password", "x" * 129),
        ("password", "1234567890"),
        ("password", "ana souza ana souza"),
        ("birth_date", "2026-02-30"),
        ("birth_date", "2099-01-01"),
        ("birth_date", "1850-01-01"),
        ("birth_date", "0000-00-00"),
        ("phone", "12"),
        ("language", "fr"),
        ("timezone", "America/Nowhere"),
        ("timezone", "../../etc/passwd"),
        ("accepts_terms", False),
        ("accepts_terms", "true"),
        ("accepts_terms", 1),
        ("representative", {"name": "Rui"}),
        ("representative", []),
        ("admin", True),
    ],
)
def test_a_patients_bad_field_is_named_and_nothing_is_stored(
    client: FlaskClient, accounts: Accounts, field: str, value: Any
) -> None:
    answer = client.post("/api/v1/patients", json={**patient_body(), field: value})
    assert answer.status_code == 422
    assert answer.content_type == "application/problem+json"
    assert any(path == field or path.startswith(f"{field}.") for path in answer.json["errors"])
    with accounts.engine.connect() as connection:
        assert connection.execute(text("select count(*) from people where role = 'patient'")).scalar_one() == 0


@pytest.mark.parametrize("field", ["name", "email", "password", "birth_date", "accepts_terms"])
def test_a_patients_missing_field_is_named(client: FlaskClient, field: str) -> None:
    answer = client.post("/api/v1/patients", json=patient_body(**{field: None}))
    assert answer.status_code == 422
    assert list(answer.json["errors"]) == [field]


def test_a_minor_needs_a_representative(client: FlaskClient) -> None:
    young = patient_body(birth_date="2015-03-01")
    refused = client.post("/api/v1/patients", json=young)
    assert refused.status_code == 422
    assert "representative" in refused.json["errors"]
    answer = client.post("/api/v1/patients", json={**young, "representative": {"name": "Rita Souza", "cpf": "529.982.247-25"}})
    assert answer.status_code == 201
    assert answer.json["representative"] == {"name": "Rita Souza", "cpf_masked": "***.982.247-**"}


def test_a_doctor_registers_and_waits_to_be_verified(client: FlaskClient) -> None:
    answer = client.post("/api/v1/doctors", json=doctor_body(crm="crm/sp 52.345", bio="Atendo\nadultos."))
    assert answer.status_code == 201
    assert answer.json["status"] == "pending_verification"
    assert answer.json["crm"] == "52345/SP"
    assert answer.json["price"] == {"amount": 25000, "currency": "BRL"}
    assert answer.json["specialties"] == [{"code": "cardiologia", "name": "Cardiologia", "rqe": "12345"}]
    assert answer.json["bio"] == "Atendo\nadultos."
    assert client.get(f"/api/v1/doctors/{answer.json['id']}").status_code == 404


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("crm", "123456/XX", "crm"),
        ("crm", "", "crm"),
        ("price", {"amount": -1, "currency": "BRL"}, "price.amount"),
        ("price", {"amount": 10_000_001, "currency": "BRL"}, "price.amount"),
        ("price", {"amount": 2**70, "currency": "BRL"}, "price.amount"),
        ("price", {"amount": True, "currency": "BRL"}, "price.amount"),
        ("price", {"amount": 1.5, "currency": "BRL"}, "price.amount"),
        ("price", {"amount": "25000", "currency": "BRL"}, "price.amount"),
        ("price", {"amount": 25000, "currency": "USD"}, "price.currency"),
        ("price", {"amount": 25000}, "price.currency"),
        ("price", 25000, "price"),
        ("specialties", [{"code": "clinico-geral", "rqe": "1"}], "specialties.0.code"),
        ("specialties", [{"code": "cardiologia"}], "specialties.0.rqe"),
        ("specialties", [{"code": "cardiologia", "rqe": "1"}, {"code": "cardiologia", "rqe": "2"}], "specialties"),
        ("specialties", "cardiologia", "specialties"),
        ("bio", "x" * 2001, "bio"),
        ("bio", "\u202eoloc", "bio"),
        ("status", "verified", "status"),
    ],
)
def test_a_doctors_bad_field_is_named(client: FlaskClient, field: str, value: Any, path: str) -> None:
    answer = client.post("/api/v1/doctors", json={**doctor_body(), field: value})
    assert answer.status_code == 422
    assert list(answer.json["errors"]) == [path]


@pytest.mark.parametrize("field", ["email", "cpf"])
def test_a_known_email_or_cpf_answers_the_same_and_its_owner_is_told_once(
    client: FlaskClient, accounts: Accounts, field: str
) -> None:
    first = patient_body(email="Ana.Lima@example.com", cpf="529.982.247-25")
    owner = client.post("/api/v1/patients", json=first).json["id"]
    same = {"email": "ANA.LIMA@example.com", "cpf": "52998224725"}[field]
    for _ in range(2):
        answer = client.post("/api/v1/patients", json=patient_body(**{field: same}), headers={"X-Request-ID": "twice"})
        assert answer.status_code == 409
        assert answer.json["code"] == "already_registered"
        assert field not in answer.text
        assert "errors" not in answer.json
    with accounts.engine.connect() as connection:
        told = connection.execute(text("select person_id, kind, request_id, sent_at from notices")).all()
    assert [(str(row.person_id), row.kind, row.request_id, row.sent_at) for row in told] == [
        (owner, "already_registered", "twice", None)
    ]


def test_asking_who_is_registered_is_limited_per_address(
    limited: FlaskClient, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.accounts.CLASHES", Limit.of("clashes", "2 per hour"))
    known = patient_body()
    assert limited.post("/api/v1/patients", json=known).status_code == 201
    answers = [limited.post("/api/v1/patients", json=known) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [409, 409, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 3600
    elsewhere = limited.post("/api/v1/patients", json=known, headers={"X-Forwarded-For": "203.0.113.1"})
    assert elsewhere.status_code == 409


def test_a_crm_is_unique_by_number_and_state_among_those_not_rejected(client: FlaskClient, accounts: Accounts) -> None:
    first = client.post("/api/v1/doctors", json=doctor_body(crm="777/SP")).json
    assert client.post("/api/v1/doctors", json=doctor_body(crm="777P/SP")).status_code == 409
    assert client.post("/api/v1/doctors", json=doctor_body(crm="777/RJ")).status_code == 201
    staff = accounts.staff()
    _decide(client, staff, first["id"], "reject")
    second = client.post("/api/v1/doctors", json=doctor_body(crm="777/SP"))
    assert second.status_code == 201
    answer = _decide(client, staff, first["id"], "verify")
    assert (answer.status_code, answer.json["code"]) == (409, "already_registered")
    logged_in = client.post("/api/v1/auth/doctor", json={"crm": "777/SP", "password": PASSWORD}).json
    own = client.get("/api/v1/me", headers={"Authorization": f"Bearer {logged_in['access_token']}"}).json
    assert own["id"] == second.json["id"]


def test_everybody_sees_their_own_account(client: FlaskClient, accounts: Accounts) -> None:
    for person, role in [(accounts.patient(), "patient"), (accounts.doctor(), "doctor"), (accounts.staff(), "staff")]:
        own = client.get("/api/v1/me", headers=person.headers)
        assert own.status_code == 200
        assert (own.json["id"], own.json["role"]) == (str(person.id), role)
        assert not {"password", "password_hash", "cpf", "lane"} & own.json.keys()
        assert own.headers["Cache-Control"] == "no-store"


def test_a_patient_changes_their_own_account(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient(cpf=None, phone="+5511912345678")
    edits = {"name": "Ana  Lima", "language": "en", "timezone": "America/Manaus", "phone": None, "cpf": cpf(529982247)}
    answer = client.patch("/api/v1/patients/me", json=edits, headers=patient.headers)
    assert answer.status_code == 200
    assert answer.json["name"] == "Ana Lima"
    assert answer.json["phone"] is None
    assert answer.json["cpf_masked"] == "***.982.247-**"
    assert client.get("/api/v1/me", headers=patient.headers).json == answer.json
    by_cpf = client.post("/api/v1/auth/patient", json={"login": "529.982.247-25", "password": PASSWORD})
    assert by_cpf.status_code == 200


def test_a_cpf_is_added_once_and_not_changed(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient(cpf=cpf(529982247))
    same = client.patch("/api/v1/patients/me", json={"cpf": "529.982.247-25"}, headers=patient.headers)
    other = client.patch("/api/v1/patients/me", json={"cpf": cpf()}, headers=patient.headers)
    assert (same.status_code, other.status_code) == (200, 422)
    known = client.patch("/api/v1/patients/me", json={"cpf": "52998224725"}, headers=accounts.patient(cpf=None).headers)
    assert (known.status_code, known.json["code"]) == (409, "already_registered")


def test_who_turns_out_to_be_a_minor_needs_a_representative(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    answer = client.patch("/api/v1/patients/me", json={"birth_date": "2015-03-01"}, headers=patient.headers)
    assert answer.status_code == 422
    assert list(answer.json["errors"]) == ["representative"]


def test_a_name_is_shown_changed_where_it_was_read_before(client: FlaskClient, accounts: Accounts) -> None:
    doctor, patient = accounts.doctor(), accounts.patient()
    accounts.appointment(doctor, patient)

    def names() -> set[str]:
        found = client.get("/api/v1/appointments", headers=doctor.headers).json["items"]
        one = client.get(f"/api/v1/appointments/{found[0]['id']}", headers=doctor.headers).json
        return {found[0]["patient"]["name"], one["patient"]["name"]}

    assert names() == {"Ana Souza"}
    client.patch("/api/v1/patients/me", json={"name": "Ana Prado"}, headers=patient.headers)
    assert names() == {"Ana Prado"}


def test_a_price_is_shown_changed_at_once(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor()
    assert client.get(f"/api/v1/doctors/{doctor.id}").json["price"]["amount"] == 25000
    answer = client.patch("/api/v1/doctors/me", json={"price": {"amount": 31000, "currency": "BRL"}}, headers=doctor.headers)
    assert answer.json["price"]["amount"] == 31000
    assert client.get(f"/api/v1/doctors/{doctor.id}").json["price"]["amount"] == 31000


def test_a_new_name_or_specialty_is_shown_only_when_verified(client: FlaskClient, accounts: Accounts) -> None:
    cardiology = {"code": "cardiologia", "rqe": "12345"}
    doctor = accounts.doctor(specialties=[identity.RegisteredSpecialty(**cardiology)])
    staff = accounts.staff()
    edits = {"name": "Bruno Prado", "specialties": [cardiology, {"code": "pediatria", "rqe": "9"}], "bio": "Novo."}
    own = client.patch("/api/v1/doctors/me", json=edits, headers=doctor.headers).json
    assert own["name"] == "Bruno Lima"
    assert own["pending"]["name"] == "Bruno Prado"
    assert [each["code"] for each in own["pending"]["specialties"]] == ["cardiologia", "pediatria"]
    shown = client.get(f"/api/v1/doctors/{doctor.id}").json
    assert (shown["name"], shown["bio"], len(shown["specialties"])) == ("Bruno Lima", "Novo.", 1)

    verified = _decide(client, staff, doctor.id, "verify")
    assert verified.json["pending"] == {}
    shown = client.get(f"/api/v1/doctors/{doctor.id}").json
    assert (shown["name"], len(shown["specialties"])) == ("Bruno Prado", 2)
    assert client.get("/api/v1/me", headers=doctor.headers).json["name"] == "Bruno Prado"


def test_what_waits_for_verification_may_be_rejected_alone(client: FlaskClient, accounts: Accounts) -> None:
    doctor, staff = accounts.doctor(), accounts.staff()
    client.patch("/api/v1/doctors/me", json={"name": "Doutor House"}, headers=doctor.headers)
    answer = _decide(client, staff, doctor.id, "reject", reason="Nome inventado")
    assert (answer.json["status"], answer.json["pending"]) == ("verified", {})
    own = client.get("/api/v1/me", headers=doctor.headers).json
    assert (own["name"], own["verification_reason"]) == ("Bruno Lima", "Nome inventado")


def test_a_specialty_that_is_given_up_goes_at_once(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor(specialties=[identity.RegisteredSpecialty("cardiologia", "12345")])
    assert client.get(f"/api/v1/doctors/{doctor.id}").json["specialties"] != []
    client.patch("/api/v1/doctors/me", json={"specialties": []}, headers=doctor.headers)
    assert client.get(f"/api/v1/doctors/{doctor.id}").json["specialties"] == []


def test_an_unverified_doctors_name_changes_at_once(client: FlaskClient, accounts: Accounts) -> None:
    doctor = accounts.doctor(status="pending_verification")
    own = client.patch("/api/v1/doctors/me", json={"name": "Bruno Prado"}, headers=doctor.headers).json
    assert (own["name"], own["pending"]) == ("Bruno Prado", {})


def test_a_doctor_is_shown_once_verified_and_hidden_once_suspended(client: FlaskClient, accounts: Accounts) -> None:
    doctor, staff = accounts.doctor(status="pending_verification"), accounts.staff()
    found: list[tuple[int, int]] = []
    for decision in ("verify", "suspend", "verify"):
        assert _decide(client, staff, doctor.id, decision).status_code == 200
        found.append((client.get(f"/api/v1/doctors/{doctor.id}").status_code, client.get("/api/v1/doctors").json["total"]))
    assert found == [(200, 1), (404, 0), (200, 1)]


def test_suspending_sends_one_command_for_each_appointment_to_come(client: FlaskClient, accounts: Accounts) -> None:
    doctor, staff = accounts.doctor(), accounts.staff()
    patients = [accounts.patient(), accounts.patient()]
    accounts.appointment(doctor, patients[0])
    accounts.appointment(doctor, patients[1], hours=1, accepted=True)
    assert _decide(client, staff, doctor.id, "suspend", reason="Denúncia").status_code == 200
    accounts.decide()
    for patient, status in zip(patients, ("refused", "cancelled"), strict=True):
        (listed,) = client.get("/api/v1/appointments", headers=patient.headers).json["items"]
        shown = client.get(f"/api/v1/appointments/{listed['id']}", headers=patient.headers)
        assert (shown.json["status"], shown.json["history"][-1]["by"]) == (status, "staff")
        assert "Denúncia" not in shown.text


@pytest.mark.parametrize(
    ("status", "decision"),
    [("pending_verification", "suspend"), ("rejected", "suspend"), ("verified", "reject")],
)
def test_a_decision_that_makes_no_sense_is_a_conflict(
    client: FlaskClient, accounts: Accounts, status: str, decision: str
) -> None:
    assert _decide(client, accounts.staff(), accounts.doctor(status=status).id, decision).status_code == 409


def test_only_staff_verifies_and_only_whom_there_is(client: FlaskClient, accounts: Accounts) -> None:
    doctor, staff = accounts.doctor(status="pending_verification"), accounts.staff()
    path = f"/api/v1/doctors/{doctor.id}/verification"
    assert client.post(path, json={"decision": "verify"}).status_code == 401
    assert client.post(path, json={"decision": "verify"}, headers=doctor.headers).status_code == 403
    assert client.post(path, json={"decision": "verify"}, headers=accounts.patient().headers).status_code == 403
    assert client.post(path, json={"decision": "bless"}, headers=staff.headers).status_code == 422
    assert _decide(client, staff, uuid7(), "verify").status_code == 404
    assert _decide(client, staff, accounts.patient().id, "verify").status_code == 404
    assert _decide(client, staff, "not-an-id", "verify").status_code == 404


def test_staff_lists_doctors_by_status_and_name(client: FlaskClient, accounts: Accounts) -> None:
    accounts.doctor(name="José Antônio", status="pending_verification")
    accounts.doctor(name="Joana % Prado")
    staff = accounts.staff()

    def names(query: str) -> list[str]:
        answer = client.get(f"/api/v1/staff/doctors{query}", headers=staff.headers)
        assert answer.status_code == 200
        return [item["name"] for item in answer.json["items"]]

    assert names("") == ["José Antônio", "Joana % Prado"]
    assert names("?status=pending_verification") == ["José Antônio"]
    assert names("?q=ANTONIO") == ["José Antônio"]
    assert names("?q=%25") == ["Joana % Prado"]
    assert names("?page=2&page_size=1&unknown=1") == ["Joana % Prado"]
    assert names("?page=1000000") == []
    for bad in ("?page=0", "?page_size=101", "?status=good", "?page=x", "?page=99999999999999999999", "?q=%00"):
        assert client.get(f"/api/v1/staff/doctors{bad}", headers=staff.headers).status_code == 422
    assert client.get("/api/v1/staff/doctors", headers=accounts.doctor().headers).status_code == 403


def test_another_password_ends_the_other_sessions(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    other = accounts.logged_in(patient.id, Role.PATIENT, patient.login)
    assert client.get("/api/v1/me", headers=other.headers).status_code == 200
    new = "outra senha bem comprida"
    answer = client.put("/api/v1/me/password", json={"current": PASSWORD, "new": new}, headers=patient.headers)
    assert (answer.status_code, answer.data) == (204, b"")
    assert client.get("/api/v1/me", headers=patient.headers).status_code == 200
    assert client.get("/api/v1/me", headers=other.headers).status_code == 401
    for password, status in [(PASSWORD, 401), (new, 200)]:
        answer = client.post("/api/v1/auth/patient", json={"login": patient.login, "password": password})
        assert answer.status_code == status


def test_another_password_needs_the_present_one_and_must_be_good(client: FlaskClient, accounts: Accounts) -> None:
    patient = accounts.patient()
    wrong = client.put(
        "/api/v1/me/password", json={"current": "not the one", "new": "outra senha bem comprida"}, headers=patient.headers
    )
    assert (wrong.status_code, wrong.json["code"]) == (422, "wrong_password")
    weak = client.put("/api/v1/me/password", json={"current": PASSWORD, "new": "1234567890"}, headers=patient.headers)
    assert (weak.status_code, list(weak.json["errors"])) == (422, ["new"])


def _decide(client: FlaskClient, staff: Any, doctor_id: object, decision: str, **more: str) -> Any:
    return client.post(f"/api/v1/doctors/{doctor_id}/verification", json={"decision": decision, **more}, headers=staff.headers)
