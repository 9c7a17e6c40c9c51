"""The layer of plain bookings: what it stores and answers as Flask would, and what it passes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from io import BytesIO
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
from tests.api.ways import head, parted
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
        for way in (app.wsgi_app, HotCommands(app, refuse), in_bytes(HotCommands(app, refuse), refuse)):
            answer = booking(clinic, patient, slot_id, way, **key)
            seen = dict(answer.headers)
            UUID(seen.pop("X-Request-ID"))
            identity = answer.json["id"]
            assert seen.pop("Location") == f"{API}/commands/{identity}"
            told.append((answer.status, seen, sorted(answer.json), identity))
        assert told[0][:3] == told[1][:3] == told[2][:3]
        assert len({each[3] for each in told}) == (1 if key else 3), "the same key is the same command, either way"
    assert clinic.outcome(answer, patient)["error"]["code"] == "slot_taken"
    assert clinic.all("select count(*) from commands where kind = 'book'") == [4]


@pytest.fixture(params=["parsed", "bytes"])
def layer(request: pytest.FixtureRequest, clinic: Clinic) -> Callable[..., Any]:
    """The layer before Flask, asked in one of its two ways."""
    app = clinic.client.application
    layer = HotCommands(app, app.wsgi_app)
    return layer if request.param == "parsed" else in_bytes(layer, app.wsgi_app)


def test_whatever_is_no_plain_booking_is_passed_on_as_it_came(
    clinic: Clinic, doctor: Someone, patient: Someone, layer: Callable[..., Any]
) -> None:
    slot_id = clinic.slot(doctor)
    client = Client(layer)
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
    clinic: Clinic, doctor: Someone, patient: Someone, layer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slot_id = clinic.slot(doctor)
    clinic.get("/notices", patient)
    stored = inbox.send

    def lost(*sent: Any, **how: Any) -> None:
        stored(*sent, **how)
        raise OperationalError("insert", {}, psycopg2.OperationalError("the database did not answer in time"))

    monkeypatch.setattr(inbox, "send", lost)
    answer = booking(clinic, patient, slot_id, layer)
    assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
    assert clinic.all("select count(*) from commands where kind = 'book'") == [1]


@pytest.mark.parametrize("way", ["parsed", "bytes"])
def test_who_waits_is_answered_by_the_layer_once_it_is_decided(
    clinic: Clinic, doctor: Someone, patient: Someone, way: str
) -> None:
    app = clinic.client.application
    layer = HotCommands(app, refuse)
    clinic.get("/notices", patient)
    accepted = booking(clinic, patient, clinic.slot(doctor), layer)
    deciding = threading.Timer(0.05, clinic.decide)
    deciding.start()
    client = Client(layer if way == "parsed" else in_bytes(layer, refuse))
    answer = client.get(accepted.headers["Location"], headers={**patient.headers, "Prefer": "wait=5"})
    deciding.join()
    assert (answer.status_code, answer.json["status"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=5"


def test_who_has_waited_as_bytes_is_answered_by_flask_in_time(clinic: Clinic, doctor: Someone, patient: Someone) -> None:
    app = clinic.client.application
    clinic.get("/notices", patient)
    layer = HotCommands(app, app.wsgi_app)
    accepted = booking(clinic, patient, clinic.slot(doctor), layer)
    began = time.monotonic()
    answer = Client(in_bytes(layer, refuse)).get(accepted.headers["Location"], headers={**patient.headers, "Prefer": "wait=1"})
    assert (answer.status_code, answer.json["status"]) == (200, "pending")
    assert 0.9 < time.monotonic() - began < 1.9, "it waited neither twice nor not at all"


def in_bytes(layer: HotCommands, onward: Callable[..., Any]) -> Callable[..., Any]:
    """The layer as the worker asks it: with bytes first, and what it has no answer to goes on as it came."""

    def way(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        raw = layer.answer(head(environ), body, "127.0.0.1")
        if raw is None:
            return onward({**environ, "wsgi.input": BytesIO(body)}, start_response)
        answer, status, headers = parted(raw)
        start_response(status, headers)
        return answer

    return way


def refuse(*_: object) -> Any:
    raise AssertionError("this was to be answered by the layer")
