"""What operators ask: life, readiness, figures, the OpenAPI document and its page."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.api.clinic import Clinic

UP = {"broker": "up", "cache": "up"}


def test_a_process_says_that_it_lives(client: FlaskClient) -> None:
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"state": "alive"})


def test_it_is_ready_when_all_it_needs_answers(client: FlaskClient) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json) == (200, {"state": "ready", "database": "up", "redis": UP})


@pytest.mark.parametrize("lost", ["broker", "cache"])
def test_a_lost_redis_degrades_but_does_not_make_unready(client: FlaskClient, request: pytest.FixtureRequest, lost: str) -> None:
    server = request.getfixturevalue({"broker": "broker", "cache": "cache_server"}[lost])
    server.stop()
    try:
        answer = client.get("/readyz")
    finally:
        server.start()
    assert answer.status_code == 200
    assert answer.json == {"state": "degraded", "database": "up", "redis": {**UP, lost: "down"}}


@pytest.mark.parametrize("lost", ["broker", "cache"])
def test_a_frozen_redis_holds_nobody_up(client: FlaskClient, request: pytest.FixtureRequest, lost: str) -> None:
    server = request.getfixturevalue({"broker": "broker", "cache": "cache_server"}[lost])
    server.freeze()
    began = time.monotonic()
    try:
        answer = client.get("/readyz")
    finally:
        server.thaw()
    assert (answer.status_code, answer.json["redis"][lost]) == (200, "down")
    assert time.monotonic() - began < 2


def test_without_its_database_it_is_not_ready_but_alive(clinic: Clinic, postgres: Any) -> None:
    postgres.stop()
    try:
        answer, life = clinic.client.get("/readyz"), clinic.client.get("/healthz")
    finally:
        clinic.outlast(postgres)
    assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
    assert (answer.json["state"], answer.json["database"], answer.json["redis"]) == ("unready", "down", UP)
    assert answer.headers["Retry-After"]
    assert life.status_code == 200


def test_a_busy_pool_does_not_make_unready(clinic: Clinic) -> None:
    engine = clinic.services.engine
    taken = [engine.connect() for _ in range(engine.pool.size())]  # type: ignore[attr-defined]
    try:
        answer = clinic.client.get("/readyz")
    finally:
        for connection in taken:
            connection.close()
    assert (answer.status_code, answer.json["state"], answer.json["database"]) == (200, "degraded", "busy")


def figure(client: FlaskClient, name: str) -> float:
    """A figure of /metrics, 0 if it isn't there yet."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_requests_and_commands_are_counted(clinic: Clinic) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    body = {"slot_id": clinic.slot(doctor)}
    names = [
        'healthmed_requests_total{method="POST",route="/api/v1/appointments",status="202"}',
        'healthmed_request_seconds_count{method="POST",route="/api/v1/appointments"}',
        'healthmed_commands_acknowledged_total{kind="book"}',
        'healthmed_requests_total{method="GET",route="/api/v1/doctors/<uuid:doctor_id>",status="404"}',
        'healthmed_requests_total{method="GET",route="none",status="404"}',
    ]
    before = [figure(clinic.client, name) for name in names]
    clinic.request("POST", "/appointments", patient, body)
    clinic.get(f"/doctors/{patient.id}")
    clinic.get("/nothing/here")
    assert [figure(clinic.client, name) - count for name, count in zip(names, before, strict=True)] == [1] * 5


def test_the_age_of_the_oldest_due_notice_is_a_figure(clinic: Clinic) -> None:
    name = "healthmed_oldest_due_notice_seconds"
    assert "\n" + name + " 0.0\n" in clinic.client.get("/metrics").text
    clinic.book(clinic.accounts.patient(), clinic.slot(clinic.accounts.doctor()))
    clinic.change("update notices set due_at = due_at - interval '1 hour'")
    assert 3600 <= figure(clinic.client, name) < 3660
    clinic.change("update notices set sent_at = now()")
    assert figure(clinic.client, name) == 0


def test_without_the_database_the_other_figures_are_told(clinic: Clinic, postgres: Any) -> None:
    postgres.stop()
    try:
        answer = clinic.client.get("/metrics")
    finally:
        clinic.outlast(postgres)
    assert answer.status_code == 200
    assert "healthmed_requests_total" in answer.text
    assert "healthmed_oldest_due_notice_seconds" not in answer.text


def test_no_figure_names_a_person_or_an_invented_method(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    clinic.get(f"/doctors/{doctor.id}")
    clinic.client.open("/healthz", method="BREW")
    clinic.client.open("/nothing", method="BREW")
    text = clinic.client.get("/metrics").text
    assert str(doctor.id) not in text
    assert "BREW" not in text


@pytest.mark.parametrize(
    ("setting", "paths"),
    [("public_metrics", ["/metrics"]), ("public_docs", ["/api/v1/openapi.json", "/api/docs", "/api/docs/page.css"])],
)
def test_what_is_not_public_is_not_there(clinic: Clinic, monkeypatch: pytest.MonkeyPatch, setting: str, paths: list[str]) -> None:
    for path in paths:
        assert clinic.client.get(path).status_code == 200
    closed = replace(clinic.services, settings=replace(clinic.services.settings, **{setting: False}))
    monkeypatch.setitem(clinic.client.application.extensions, "healthmed", closed)
    for path in paths:
        answer = clinic.client.get(path)
        assert (answer.status_code, answer.json["code"]) == (404, "not_found")


class Page(HTMLParser):
    """What a test needs to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.language: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's name and what it says."""
        given = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(given)
        if "id" in given:
            self.ids.append(str(given["id"]))
        for name in ("href", "src"):
            if name in given:
                self.links.append(str(given[name]))
        if tag == "html":
            self.language = given.get("lang")


def test_the_page_needs_no_script_and_nothing_from_elsewhere(client: FlaskClient) -> None:
    answer = client.get("/api/docs")
    page = Page(answer.text)
    assert answer.content_type == "text/html; charset=utf-8"
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert not {"script", "style", "iframe", "img", "object"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on") or name == "style"}
    assert all(link.startswith(("/api/", "#")) for link in page.links)
    for link in page.links:
        if link.startswith("/"):
            assert client.get(link).status_code == 200


def test_the_page_can_be_found_ones_way_in(client: FlaskClient) -> None:
    page = Page(client.get("/api/docs").text)
    assert page.language == "pt-BR"
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {"nav", "main", "h1", "h2", "h3", "title"} <= set(page.tags)
    assert page.tags.count("h1") == page.tags.count("main") == 1


def test_the_page_shows_every_operation_and_every_format(client: FlaskClient) -> None:
    document, text = client.get("/api/v1/openapi.json").json, client.get("/api/docs").text
    for path, operations in document["paths"].items():
        assert f"<code>{path}</code>" in text
        for operation in operations.values():
            if isinstance(operation, dict):
                assert operation["summary"].split(" / ")[0].split("'")[0] in text
    for name in document["components"]["schemas"]:
        assert f'<h3 id="{name}">' in text


@pytest.fixture
def served(environ: dict[str, str], tmp_path: Path, client: FlaskClient) -> Iterator[str]:
    """The address of a real gunicorn with two workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py", "api.wsgi:app"],
        env={**os.environ, **environ, "PORT": str(port), "API_WORKERS": "2", "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def read(address: str) -> str:
    """What stands at an address, over a connection of its own."""
    with urllib.request.urlopen(address, timeout=5) as answer:
        return str(answer.read().decode())


def test_any_worker_of_a_server_gives_the_figures_of_all(served: str, tmp_path: Path) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            read(f"{served}/healthz")
            break
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.1)
    sent, folder = 0, next(tmp_path.glob("healthmed-metrics-*"))
    with ThreadPoolExecutor(16) as senders:
        while sum(b"/specialties" in file.read_bytes() for file in folder.glob("counter_*.db")) < 2:
            assert time.monotonic() < until + 20, "one worker has answered everything"
            list(senders.map(read, [f"{served}/api/v1/specialties"] * 48))
            sent += 48
    counted = re.compile(r'healthmed_requests_total\{method="GET",route="/api/v1/specialties",status="200"\} (\S+)')
    assert {counted.findall(read(f"{served}/metrics"))[0] for _ in range(10)} == {f"{sent}.0"}
