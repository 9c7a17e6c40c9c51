"""The layer of hot reads: what it answers, what it passes on, and that nobody can tell it from Flask."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from domain import audit, sessions, tokens
from domain.cache import Cache, Filled, changing
from domain.schedule import Role
from domain.tokens import Claims, Type
from local.servers import free_port
from tests.api.clinic import API, Clinic
from tests.api.ways import BothWays, answered
from tests.factories import Someone, bearer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def doctor(clinic: Clinic) -> Someone:
    return clinic.accounts.doctor()


@pytest.fixture
def patient(clinic: Clinic) -> Someone:
    return clinic.accounts.patient()


@pytest.fixture
def hot(clinic: Clinic) -> Callable[..., bool]:
    """Whether the layer answers a read, rather than passing it on."""
    ways = clinic.client.application.wsgi_app
    assert isinstance(ways, BothWays)

    def answers(path: str, who: Someone | None = None, *, method: str = "GET", **headers: str) -> bool:
        before, bytes_before = ways.hot, ways.hot_bytes
        clinic.request(method, path, who, headers=headers)
        assert ways.hot - before == ways.hot_bytes - bytes_before, "it answers in one of its ways only"
        return ways.hot > before

    return answers


@pytest.fixture
def booked(clinic: Clinic, doctor: Someone, patient: Someone) -> dict[str, Any]:
    """A patient's command that made an appointment."""
    return clinic.done("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor)})


def test_it_answers_each_hot_read(
    hot: Callable[..., bool], doctor: Someone, patient: Someone, booked: dict[str, Any], clinic: Clinic
) -> None:
    for path in ("", "/agenda", "/agenda?days=3", "/agenda?from=2030-01-01&days=31"):
        assert hot(f"/doctors/{doctor.id}{path}")
    for query in ("", "?q=bruno", "?sort=price&page=1&page_size=5", "?available_from=2030-01-01T00:00:00Z", "?unknown=1"):
        assert hot(f"/doctors{query}")
    assert hot(f"/commands/{booked['id']}", patient)
    for who in (doctor, patient):
        assert hot(f"/appointments/{booked['appointment_id']}", who)
        assert hot("/appointments", who)
        assert hot("/appointments?status=requested&page_size=3", who)


def test_a_page_by_cursor_is_hot_too(clinic: Clinic, hot: Callable[..., bool]) -> None:
    for _ in range(3):
        clinic.accounts.doctor()
    assert hot(f"/doctors?cursor={clinic.get('/doctors?page_size=2').json['next']}")


def test_who_has_the_answer_gets_304(clinic: Clinic, hot: Callable[..., bool], doctor: Someone) -> None:
    path = f"/doctors/{doctor.id}"
    tag = clinic.get(path).headers["ETag"]
    for held in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        assert hot(path, **{"If-None-Match": held})
        assert clinic.get(path, **{"If-None-Match": held}).status_code == 304
    for other in ('"other"', ""):
        assert clinic.get(path, **{"If-None-Match": other}).status_code == 200


def test_what_flask_would_refuse_or_wait_for_is_passed_on(
    clinic: Clinic, hot: Callable[..., bool], doctor: Someone, patient: Someone, booked: dict[str, Any]
) -> None:
    command, appointment = f"/commands/{booked['id']}", f"/appointments/{booked['appointment_id']}"
    stranger, staff = clinic.accounts.patient(), clinic.accounts.staff()
    assert not hot(command)
    assert not hot(command, doctor)
    assert not hot(command, stranger)
    assert not hot(appointment, stranger)
    assert not hot(appointment, staff)
    assert not hot(command, patient, Prefer="wait=1")
    assert not hot(f"/doctors/{doctor.id}", method="HEAD")
    assert not hot(f"/doctors/{uuid7()}")
    assert not hot(f"/doctors/{str(doctor.id).upper()}")
    assert not hot(f"/doctors/{doctor.id}/agenda?days=32")
    assert not hot("/doctors?page=0")
    assert not hot("/doctors?cursor=forged")
    assert not hot(f"/doctors/{doctor.id}", Origin="https://elsewhere.example")


def test_a_token_that_is_good_for_nothing_is_passed_on(
    clinic: Clinic, patient: Someone, booked: dict[str, Any], hot: Callable[..., bool]
) -> None:
    command = f"{API}/commands/{booked['id']}"
    assert hot(f"/commands/{booked['id']}", patient)
    session_id = clinic.all("select id from sessions where person_id = :id", id=patient.id)[0]
    now = datetime.now(UTC)

    def minted(**others: Any) -> str:
        claims = {
            "type": Type.ACCESS,
            "person_id": patient.id,
            "session_id": session_id,
            "role": Role.PATIENT,
            "id": uuid7(),
            "issued_at": now,
            "expires_at": now + timedelta(minutes=1),
        }
        return tokens.mint(clinic.services.settings.jwt_keys, Claims(**{**claims, **others}))

    wrong = [
        patient.refresh,
        minted(expires_at=now - timedelta(minutes=1)),
        minted(session_id=uuid7()),
        patient.access[:-4] + "AAAA",
        "",
    ]
    assert clinic.client.get(command, headers=bearer(minted())).status_code == 200
    for token in wrong:
        assert clinic.client.get(command, headers=bearer(token)).status_code == 401
    assert clinic.client.get(command, headers={"Authorization": f"Basic {patient.access}"}).status_code == 401


def test_a_session_that_ended_reads_nothing_more(
    clinic: Clinic, patient: Someone, booked: dict[str, Any], hot: Callable[..., bool]
) -> None:
    path = f"/commands/{booked['id']}"
    assert hot(path, patient)
    with changing(clinic.services.engine, clinic.services.cache) as change:
        sessions.end_all(change, patient.id)
    assert not hot(path, patient)
    assert clinic.get(path, patient).status_code == 401


def test_a_session_that_outlives_the_data_of_its_person_reads_no_appointment(
    clinic: Clinic, patient: Someone, booked: dict[str, Any], hot: Callable[..., bool]
) -> None:
    path = f"/appointments/{booked['appointment_id']}"
    assert hot(path, patient)
    (session_id,) = clinic.all("select id from sessions where person_id = :id", id=patient.id)
    with changing(clinic.services.engine, clinic.services.cache) as change:
        change.touch(sessions.scope(session_id))
    clinic.services.cache.read(*sessions.standing(session_id), lambda _: Filled(sessions.ERASED))
    assert clinic.get(path, patient).status_code == 401
    assert not hot(path, patient)


def test_while_the_cache_is_out_of_use_it_answers_nothing(
    clinic: Clinic, doctor: Someone, hot: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/doctors/{doctor.id}"
    assert hot(path)
    row = clinic.services.cache._row
    with monkeypatch.context() as out_of_use:
        out_of_use.setattr(type(row), "epoch", lambda _: None)
        assert not hot(path)
    with monkeypatch.context() as cut_off:
        stays = property(lambda _: True, lambda *_: None)  # though the row is read again each second
        cut_off.setattr(type(row), "unreachable", stays, raising=False)
        assert not hot(path)
    assert hot(path)


def test_what_time_made_wrong_is_passed_on(
    clinic: Clinic, doctor: Someone, hot: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/doctors/{doctor.id}/agenda"
    assert hot(path)
    row = clinic.services.cache._row
    latest = row.latest
    monkeypatch.setattr(type(row), "latest", lambda _: latest() + 86_400 * 2)
    assert not hot(path)


def test_what_a_doctor_reads_is_written_down_before_it_is_hot(
    clinic: Clinic, doctor: Someone, booked: dict[str, Any], hot: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/appointments/{booked['appointment_id']}"
    read = "select count(*) from audit where actor_id = :id and action = 'read'"
    assert hot(path, doctor)
    assert clinic.all(read, id=doctor.id) == [1]
    hour = clinic.services.cache.hour()
    monkeypatch.setattr(Cache, "hour", lambda _: hour + timedelta(hours=1))

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    layer = clinic.client.application.wsgi_app._layer
    head = f"GET {API}{path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {doctor.access}".encode()
    with monkeypatch.context() as unwritten:
        unwritten.setattr(audit, "ensure_read", fail)
        assert answered(layer, head) is None, "it answered in an hour for which no reading stands in the audit"
    assert answered(layer, head)


def test_bytes_fill_what_is_not_cached_for_whom_it_is_meant_and_nobody_else(
    clinic: Clinic, doctor: Someone, patient: Someone, booked: dict[str, Any], hot: Callable[..., bool]
) -> None:
    stranger, layer = clinic.accounts.patient(), clinic.client.application.wsgi_app._layer

    def answer(path: str, who: Someone) -> bytes | None:
        clinic.services.cache._insist(("FLUSHDB",))
        return answered(layer, f"GET {API}{path} HTTP/1.1\r\nAuthorization: Bearer {who.access}".encode())

    for path in (f"/commands/{booked['id']}", f"/appointments/{booked['appointment_id']}", "/appointments"):
        assert booked["appointment_id"].encode() in (answer(path, patient) or b"")
        assert booked["appointment_id"].encode() not in (answer(path, stranger) or b"")
    for path in (f"/doctors/{doctor.id}", f"/doctors/{doctor.id}/agenda", "/doctors", "/doctors?sort=next_slot"):
        assert str(doctor.id).encode() in (answer(path, stranger) or b"")
    assert answer(f"/doctors/{uuid7()}", patient) is None
    with changing(clinic.services.engine, clinic.services.cache) as change:
        sessions.end_all(change, patient.id)
        sessions.end_all(change, doctor.id)
    assert answer("/appointments", patient) is None
    assert answer("/appointments", doctor) is None
    assert clinic.all("select count(*) from audit where action = 'read'") == [0], (
        "nobody has read what a session that is over asks"
    )


def test_a_fault_of_its_own_is_logged_and_costs_nobody_the_answer(
    clinic: Clinic, doctor: Someone, hot: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Cache, "look", fail)
    assert not hot(f"/doctors/{doctor.id}")
    assert clinic.get(f"/doctors/{doctor.id}").status_code == 200
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["error"] for line in lines if line["event"] == "hot_read_failed"} == {"ZeroDivisionError"}


def test_bytes_that_could_be_read_in_two_ways_are_passed_on(clinic: Clinic, doctor: Someone) -> None:
    ways = clinic.client.application.wsgi_app
    assert isinstance(ways, BothWays)
    layer = ways._layer
    path = f"{API}/doctors/{doctor.id}"
    clinic.get(f"/doctors/{doctor.id}")
    good = f"GET {path} HTTP/1.1\r\nHost: a"
    for more in ("", "\r\nAccept: */*", "\r\nConnection: Keep-Alive", "\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.2", "\r\nCookie:"):
        assert answered(layer, (good + more).encode())
    for more in (
        "\r\nContent-Length: 1",
        "\r\nTransfer-Encoding: chunked",
        "\r\nConnection: close",
        "\r\nConnection: Upgrade, HTTP2-Settings",
        "\r\nhost: b",
        "\r\nX-Request-ID: a\r\nX-Request-ID: b",
        "\r\nX_Request_ID: a",
        "\r\nA: folded\r\n line",
        "\r\nA : spaced",
        "\r\nA: bare\nB: feed",
        "\r\nA: bare\rreturn",
        "\r\nA: nul\x00",
        "\r\nA: \xe9",
        "\r\nno colon",
        "\r\n",
        "\r\nExpect: 100-continue",
        "\r\nORIGIN: https://elsewhere.example",
        "\r\nprefer: wait=1",
        "".join(f"\r\nA{n}: b" for n in range(64)),
    ):
        assert answered(layer, (good + more).encode("latin-1")) is None, more
    for line in (
        f"GET {path}#part HTTP/1.1",
        f"GET {path} HTTP/1.0",
        f"get {path} HTTP/1.1",
        f"GET  {path} HTTP/1.1",
        f"GET http://a{path} HTTP/1.1",
        f"GET {path.replace('doctors', 'd%6Fctors')} HTTP/1.1",
        f"HEAD {path} HTTP/1.1",
    ):
        assert answered(layer, f"{line}\r\nHost: a".encode()) is None, line


def test_all_ways_write_the_same_line_and_count_alike(
    clinic: Clinic, patient: Someone, doctor: Someone, booked: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    reads = [(f"/doctors/{doctor.id}", None), (f"/commands/{booked['id']}", patient)]
    for path, who in reads:
        capfd.readouterr()
        clinic.client.get(API + path, headers={"X-Request-ID": "529.982.247-25", **(who.headers if who else {})})
        lines = (json.loads(line) for line in capfd.readouterr().err.splitlines() if '"request"' in line)
        by_flask, by_layer, to_bytes = sorted(lines, key=itemgetter("logger"))
        assert by_flask.pop("logger") == "api.app"
        assert by_layer.pop("logger") == to_bytes.pop("logger") == "api.hot"
        for line in (by_flask, by_layer, to_bytes):
            assert line.pop("milliseconds") >= 0
            assert datetime.fromisoformat(line.pop("timestamp")).tzinfo is not None
        assert by_flask == by_layer == to_bytes
        assert by_layer["request_id"] == "[cpf]"

    def counted() -> str:
        figures = clinic.client.get("/metrics").text
        name = 'healthmed_requests_total{method="GET",route="/api/v1/doctors/<uuid:doctor_id>",status="200"} '
        return figures.partition(name)[2].partition("\n")[0]

    before = float(counted())
    clinic.client.get(f"{API}/doctors/{doctor.id}")
    assert float(counted()) == before + 3


@pytest.fixture
def served(environ: dict[str, str], clinic: Clinic) -> Iterator[Callable[..., int]]:
    """Starts gunicorn with one worker; its port."""
    processes = []

    def serve(**settings: str) -> int:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.wsgi:app"],
            cwd=ROOT,
            env={**os.environ, **environ, "PORT": str(port), "API_WORKERS": "1", **settings},
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return port

    yield serve
    for process in processes:
        process.terminate()
        assert process.wait(25) == 0


def test_over_a_connection_nobody_can_tell_the_two_ways_apart(
    served: Callable[..., int], clinic: Clinic, patient: Someone, doctor: Someone, booked: dict[str, Any]
) -> None:
    paths = [f"{API}/doctors/{doctor.id}", f"{API}/doctors", f"{API}/commands/{booked['id']}"]
    sent = ({}, {}, {"Content-Length": "0"}, {"If-None-Match": "*"}, {"X-Request-ID": "mine"}, {"Connection": "close"})
    with_layer, without = served(), served(HOT_READS="off")
    for path in paths:
        told = []
        for port in (with_layer, without):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            for headers in sent:
                connection.request("GET", path, headers={**patient.headers, **headers})
                answer = connection.getresponse()
                seen = dict(answer.getheaders())
                assert seen.pop("Date").endswith(" GMT")
                if headers != {"X-Request-ID": "mine"}:
                    UUID(seen.pop("X-Request-ID"))
                told.append((port != with_layer, answer.status, answer.reason, seen, answer.read()))
            assert connection.sock is None, "it was to be closed"
        half = len(told) // 2
        assert [each[1:] for each in told[:half]] == [each[1:] for each in told[half:]]


def test_requests_that_come_together_are_answered_one_by_one(served: Callable[..., int], clinic: Clinic, doctor: Someone) -> None:
    clinic.get(f"/doctors/{doctor.id}")
    one = f"GET {API}/doctors/{doctor.id} HTTP/1.1\r\nHost: a\r\n"
    with socket.create_connection(("127.0.0.1", served()), timeout=10) as client:
        client.sendall(
            f"{one}\r\n{one}\r\nHEAD {API}/doctors/{doctor.id} HTTP/1.1\r\nHost: a\r\n\r\n{one}Connection: close\r\n\r\n".encode()
        )
        received = b""
        while part := client.recv(65536):
            received += part
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 4
    assert received.count(b'"bio"') == 3


def test_a_head_that_comes_in_pieces_is_answered_once(served: Callable[..., int], clinic: Clinic, doctor: Someone) -> None:
    clinic.get(f"/doctors/{doctor.id}")
    whole = f"GET {API}/doctors/{doctor.id} HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served()), timeout=10) as client:
        for place in (3, 60, len(whole) - 2, len(whole)):
            client.sendall(whole[:place].encode())
            time.sleep(0.05)
            client.sendall(whole[place:].encode())
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status == 200
            assert json.loads(answer.read())["id"] == str(doctor.id)
