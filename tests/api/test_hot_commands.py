"""The layer of plain bookings: what it stores and answers as Flask would, and what it passes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from sqlalchemy.exc import OperationalError
from uuid_utils.compat import uuid7
from werkzeug.test import Client, TestResponse

from api.hot_commands import HotCommands
from domain import inbox
from tests.api.clinic import API, Clinic
from tests.factories import Someone


@pytest.fixture
def doctor(clinic: Clinic) -> Someone:
    return clinic.accounts.doctor()


@pytest.fixture
def patient(clinic: Clinic) -> Someone:
    return clinic.accounts.patient()


def booking(clinic: Clinic, who: Someone, slot_id: str, way: Callable[..., Any], **headers: str) -> TestResponse:
    """The answer to a booking that is sent one way."""
    client = Client(way)
    return client.post(f"{API}/appointments", json={"slot_id": slot_id}, headers={**who.headers, **headers})


def test_a_plain_booking_is_stored_as_flask_would(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    app = clinic.client.application
    slot_id = clinic.slot(doctor)
    clinic.get("/notices", patient)  # now the session is cached
    for key in ({}, {"Idempotency-Key": "a-1"}):
        told = []
        for way in (app.wsgi_app, HotCommands(app, refuse)):
            answer = booking(clinic, patient, slot_id, way, **key)
            seen = dict(answer.headers)
            UUID(seen.pop("X-Request-ID"))
            identity = answer.json["id"]
            assert seen.pop("Location") == f"{API}/commands/{identity}"
            told.append((answer.status, seen, sorted(answer.json), identity))
        assert told[0][:3] == told[1][:3]
        assert (told[0][3] == told[1][3]) == bool(key), "the same key is the same command, either way"
    assert clinic.outcome(answer, patient)["error"]["code"] == "slot_taken"
    assert clinic.all("select count(*) from commands where kind = 'book'") == [3]


def test_whatever_is_no_plain_booking_is_passed_on_as_it_came(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    app = clinic.client.application
    slot_id = clinic.slot(doctor)
    client = Client(HotCommands(app, app.wsgi_app))
    path = f"{API}/appointments"

    def sent(who: Someone | None = patient, **options: Any) -> tuple[int, str | None]:
        headers = {**(who.headers if who else {}), **options.pop("headers", {})}
        answer = client.post(path, headers=headers, **{"json": {"slot_id": slot_id}, **options})
        return answer.status_code, answer.json.get("code")

    assert sent(None) == (401, "unauthorized")
    assert sent(doctor)[0] == 403
    assert sent(json={"slot_id": str(uuid7())})[0] == 404
    assert sent(json={"slot_id": slot_id, "more": 1})[0] == 422
    assert sent(json=None, data=b'{"slot_id": "%s"' % slot_id.encode(), content_type="application/json")[0] == 400
    assert sent(json=None, data=b'{"slot_id": "%s"}' % slot_id.encode(), content_type="text/plain")[0] == 415
    assert sent(headers={"Idempotency-Key": "x" * 256})[0] == 422
    assert sent(json={"slot_id": slot_id, "notes": "Dor de cabeça"})[0] == 202
    assert sent(headers={"Idempotency-Key": "b-1"})[0] == 202
    assert sent(json={"slot_id": str(uuid7())}, headers={"Idempotency-Key": "b-1"}) == (422, "idempotency_key_reused")


def test_a_booking_that_may_have_been_stored_is_not_stored_again(
    clinic: Clinic, doctor: Someone, patient: Someone, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = clinic.client.application
    slot_id = clinic.slot(doctor)
    clinic.get("/notices", patient)
    stored = inbox.send

    def lost(*sent: Any, **how: Any) -> None:
        stored(*sent, **how)
        raise OperationalError("insert", {}, psycopg2.OperationalError("the database did not answer in time"))

    monkeypatch.setattr(inbox, "send", lost)
    answer = booking(clinic, patient, slot_id, HotCommands(app, app.wsgi_app))
    assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
    assert clinic.all("select count(*) from commands where kind = 'book'") == [1]


def test_who_waits_is_answered_by_the_layer_once_it_is_decided(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    app = clinic.client.application
    clinic.get("/notices", patient)
    accepted = booking(clinic, patient, clinic.slot(doctor), HotCommands(app, refuse))
    deciding = threading.Timer(0.05, clinic.decide)
    deciding.start()
    answer = Client(HotCommands(app, refuse)).get(accepted.headers["Location"], headers={**patient.headers, "Prefer": "wait=5"})
    deciding.join()
    assert (answer.status_code, answer.json["status"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=5"


def refuse(*_: object) -> Any:
    raise AssertionError("this was to be answered by the layer")
