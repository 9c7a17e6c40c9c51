"""Commands through HTTP: the idempotency key, who may read one, and waiting for its decision."""

from __future__ import annotations

import threading
import time

import pytest
from uuid_utils.compat import uuid7

from tests import rows
from tests.api.clinic import REASON, Clinic
from tests.factories import Someone


@pytest.fixture
def doctor(clinic: Clinic) -> Someone:
    """A doctor with slots to be made."""
    return clinic.accounts.doctor()


@pytest.fixture
def patient(clinic: Clinic) -> Someone:
    """Somebody who books."""
    return clinic.accounts.patient()


def test_the_same_key_and_request_answer_the_same_command_as_it_then_stands(
    clinic: Clinic, doctor: Someone, patient: Someone
) -> None:
    body = {"slot_id": clinic.slot(doctor)}
    first = clinic.request("POST", "/appointments", patient, body, key="k")
    again = clinic.request("POST", "/appointments", patient, body, key="k")
    assert (again.status_code, again.json) == (202, first.json)
    decided = clinic.outcome(first, patient)
    late = clinic.request("POST", "/appointments", patient, body, key="k")
    assert (late.status_code, late.json) == (202, decided)
    assert late.headers["Location"] == first.headers["Location"]
    assert clinic.stored() == 1


def test_the_key_is_looked_at_before_the_slot(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    slot_id = clinic.slot(doctor)
    accepted = clinic.request("DELETE", f"/doctors/me/slots/{slot_id}", doctor, key="k")
    clinic.outcome(accepted, doctor)
    clinic.change("delete from slots where id = :id", id=slot_id)
    assert clinic.request("DELETE", f"/doctors/me/slots/{slot_id}", doctor, key="k").json["id"] == accepted.json["id"]
    assert clinic.request("DELETE", f"/doctors/me/slots/{slot_id}", doctor, key="l").status_code == 404


def test_a_replay_is_reported_only_when_every_read_shows_it(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    body = {"slot_id": clinic.slot(doctor)}
    clinic.outcome(clinic.request("POST", "/appointments", patient, body, key="k"), patient)
    path = f"/doctors/{doctor.id}/agenda"
    before = clinic.get(path).json
    # As if the worker had died between its commit and its word to the cache, with the agenda of before still cached:
    clinic.change("update batches set finished_at = null")
    clinic.change("update slots set status = 'open'")
    clinic.change("update doctors set price = 1")
    assert clinic.get(path).json == before
    assert clinic.request("POST", "/appointments", patient, body, key="k").json["status"] == "succeeded"
    assert clinic.get(path).json != before
    assert clinic.all("select count(*) from batches where finished_at is null") == [0]


@pytest.mark.parametrize("other", ["body", "path", "method"])
def test_a_key_serves_one_request_only(clinic: Clinic, doctor: Someone, patient: Someone, other: str) -> None:
    first, second = clinic.slot(doctor), clinic.slot(doctor, rows.tomorrow(1))
    if other == "body":
        clinic.request("POST", "/appointments", patient, {"slot_id": first}, key="k")
        answer = clinic.request("POST", "/appointments", patient, {"slot_id": second}, key="k")
    elif other == "path":
        clinic.request("DELETE", f"/doctors/me/slots/{first}", doctor, key="k")
        answer = clinic.request("DELETE", f"/doctors/me/slots/{second}", doctor, key="k")
    else:
        price = {"price": {"amount": 1, "currency": "BRL"}}
        clinic.request("PATCH", f"/doctors/me/slots/{first}", doctor, price, key="k")
        answer = clinic.request("DELETE", f"/doctors/me/slots/{first}", doctor, key="k")
    assert (answer.status_code, answer.json["code"]) == (422, "idempotency_key_reused")
    assert clinic.stored() == 1


def test_order_and_white_space_make_no_other_request(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    slot_id = clinic.slot(doctor)
    headers = {**patient.headers, "Idempotency-Key": "k", "Content-Type": "application/json"}
    bodies = [f'{{"slot_id": "{slot_id}", "notes": "é"}}', f'{{ "notes":"\\u00e9",\n"slot_id":"{slot_id}" }}']
    ids = {clinic.client.post("/api/v1/appointments", data=body, headers=headers).json["id"] for body in bodies}
    assert len(ids) == 1


def test_an_empty_body_is_the_same_request_as_an_empty_object(clinic: Clinic, doctor: Someone) -> None:
    path = f"/api/v1/doctors/me/slots/{clinic.slot(doctor)}"
    headers = {**doctor.headers, "Idempotency-Key": "k"}
    first, second = clinic.client.delete(path, headers=headers), clinic.client.delete(path, headers=headers, json={})
    assert first.json["id"] == second.json["id"]


def test_a_key_belongs_to_one_person(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    body = {"slot_id": clinic.slot(doctor)}
    ids = {clinic.request("POST", "/appointments", who, body, key="k").json["id"] for who in (patient, clinic.accounts.patient())}
    assert len(ids) == 2


def test_without_a_key_each_request_is_a_new_command(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    body = {"slot_id": clinic.slot(doctor)}
    ids = {clinic.request("POST", "/appointments", patient, body).json["id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("key", ["k", "k" * 255, "é" * 255, "\xff", "a, b", '"quoted"', "chave com espaços"])
def test_a_key_is_any_text_of_1_to_255_characters(clinic: Clinic, doctor: Someone, key: str) -> None:
    path = f"/doctors/me/slots/{clinic.slot(doctor)}"
    sent = key if key == "\xff" else key.encode().decode("latin-1")
    ids = {clinic.request("DELETE", path, doctor, key=sent).json["id"] for _ in range(2)}
    assert len(ids) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "é" * 256])
def test_no_other_key_is_taken(clinic: Clinic, doctor: Someone, key: str) -> None:
    path = f"/doctors/me/slots/{clinic.slot(doctor)}"
    answer = clinic.request("DELETE", path, doctor, key=key.encode().decode("latin-1"))
    assert (answer.status_code, list(answer.json["errors"])) == (422, ["Idempotency-Key"])
    assert clinic.stored() == 0


def test_many_who_send_one_request_at_once_make_one_command(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    body, answers = {"slot_id": clinic.slot(doctor)}, []

    def send() -> None:
        client = clinic.client.application.test_client()
        headers = {**patient.headers, "Idempotency-Key": "k"}
        answers.append(client.post("/api/v1/appointments", json=body, headers=headers))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert clinic.stored() == 1


def test_only_its_sender_reads_a_command(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    command = clinic.done("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})
    assert clinic.get(f"/commands/{command['id']}", patient).json == command  # and cached
    for stranger in (doctor, clinic.accounts.patient(), clinic.accounts.staff()):
        assert clinic.get(f"/commands/{command['id']}", stranger).status_code == 404
    assert clinic.get(f"/commands/{command['id']}").status_code == 401


def test_a_command_that_never_was_is_not_found(clinic: Clinic, patient: Someone) -> None:
    for name in (str(uuid7()), "none", "0"):
        assert clinic.get(f"/commands/{name}", patient).status_code == 404


def test_a_poll_that_has_seen_it_gets_304(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    accepted = clinic.request("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})
    path = f"/commands/{accepted.json['id']}"
    pending = clinic.get(path, patient)
    assert pending.headers["Cache-Control"] == "private, no-cache"
    assert clinic.get(path, patient, If_None_Match=pending.headers["ETag"]).status_code == 304
    clinic.decide()
    decided = clinic.get(path, patient, If_None_Match=pending.headers["ETag"])
    assert (decided.status_code, decided.json["status"]) == (200, "succeeded")


def test_who_waits_is_answered_as_soon_as_it_is_decided(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    accepted = clinic.request("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})
    later = threading.Timer(0.3, clinic.decide)
    began = time.monotonic()
    later.start()
    answer = clinic.get(f"/commands/{accepted.json['id']}", patient, Prefer="wait=15")
    took = time.monotonic() - began
    later.join()
    assert answer.json["status"] == "succeeded"
    assert answer.headers["Preference-Applied"] == "wait=15"
    assert 0.3 <= took < 5


def test_who_waits_long_enough_is_told_how_it_stands(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    accepted = clinic.request("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})
    began = time.monotonic()
    answer = clinic.get(f"/commands/{accepted.json['id']}", patient, Prefer="respond-async, wait=1")
    assert answer.json["status"] == "pending"
    assert 1 <= time.monotonic() - began < 3


def test_nobody_waits_for_what_is_decided(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    command = clinic.done("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})
    began = time.monotonic()
    answer = clinic.get(f"/commands/{command['id']}", patient, Prefer='WAIT = "600"; now')
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("preference", ["wait=-1", "wait=soon", "wait", "wait=1.5", "awaiting=20", "", ",,;=", 'wait="1'])
def test_a_preference_that_means_nothing_is_ignored(clinic: Clinic, doctor: Someone, patient: Someone, preference: str) -> None:
    accepted = clinic.request("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})
    began = time.monotonic()
    answer = clinic.get(f"/commands/{accepted.json['id']}", patient, Prefer=preference)
    assert answer.status_code == 200
    assert "Preference-Applied" not in answer.headers
    assert time.monotonic() - began < 1


def test_after_succeeded_every_read_shows_it(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    slot_id = clinic.slot(doctor)
    reads = [
        (f"/doctors/{doctor.id}/agenda", None),
        ("/doctors?sort=next_slot", None),
        ("/appointments", patient),
        ("/appointments", doctor),
    ]

    def shown() -> list[object]:
        return [clinic.get(path, who).json for path, who in reads]

    free = shown()
    appointment_id = clinic.book(patient, slot_id)
    booked = shown()
    assert all(before != after for before, after in zip(free, booked, strict=True))
    clinic.done("POST", f"/appointments/{appointment_id}/cancel", patient, REASON)
    cancelled = shown()
    assert cancelled[:2] == free[:2]
    assert all(before != after for before, after in zip(booked, cancelled, strict=True))
