"""The OpenAPI document agrees with the routes, and the routes with the document: in words, and under Schemathesis."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from domain.schedule import Role
from tests.api.clinic import Clinic
from tests.factories import Someone

EXAMPLES = 20  # for each operation
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
TAGS = ["sessions", "credentials", "accounts", "rights", "directory", "availability", "appointments", "commands"]
TAGS += ["calendars", "notices", "operations"]


@pytest.fixture
def document(clinic: Clinic) -> dict[str, Any]:
    """The document as it is served."""
    return dict(clinic.get("/openapi.json").json)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each operation of the document."""
    for path, described in document["paths"].items():
        for method, operation in described.items():
            if method != "parameters":
                yield method.upper(), path, operation


def routes(app: Flask) -> Iterator[tuple[str, str, Any]]:
    """Method, path (as the document writes it) and view of each route below /api/v1."""
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/v1"):
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                yield method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), app.view_functions[rule.endpoint]


def test_the_document_names_exactly_the_routes(app: Flask, document: dict[str, Any]) -> None:
    described = {(method, path) for method, path, _ in operations(document)}
    assert described == {(method, path) for method, path, _ in routes(app)}


def test_what_is_outside_the_document_is_for_operators(app: Flask) -> None:
    outside = {rule.rule for rule in app.url_map.iter_rules() if not rule.rule.startswith("/api/v1")}
    assert outside == {"/healthz", "/readyz", "/metrics", "/api/docs", "/api/docs/page.css"}


def test_the_document_asks_for_a_token_where_the_route_does(app: Flask, document: dict[str, Any]) -> None:
    asked = {(method, path): bool(operation.get("security")) for method, path, operation in operations(document)}
    assert asked == {(method, path): bool(view.healthmed_policy.roles) for method, path, view in routes(app)}


def test_every_operation_says_what_it_does_and_how_it_refuses(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        answers = set(operation["responses"])
        assert any(status.startswith("2") for status in answers), (method, path)
        assert {"500", "503"} <= answers, (method, path)
        assert ("{" in path) <= ("404" in answers), (method, path)
        assert bool(operation.get("security")) <= ({"401", "403"} <= answers), (method, path)
        assert ("requestBody" in operation) <= ({"400", "413", "415", "422"} <= answers), (method, path)
        for parameter in operation.get("parameters", []):
            assert parameter["schema"], (method, path)


def test_every_error_is_described_as_a_problem_document(document: dict[str, Any]) -> None:
    for name, answer in document["components"]["responses"].items():
        assert list(answer["content"]) == ["application/problem+json"], name
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            assert ("$ref" in answer) == (status >= "400"), (method, path, status)


def who_may(app: Flask, clinic: Clinic, method: str, path: str) -> Someone | None:
    """Somebody new whom a route lets in."""
    (policy,) = [view.healthmed_policy for *route, view in routes(app) if route == [method, path]]
    if not policy.roles:
        return None
    made = {Role.PATIENT: clinic.accounts.patient, Role.DOCTOR: clinic.accounts.doctor, Role.STAFF: clinic.accounts.staff}
    return made[sorted(policy.roles)[0]]()


@pytest.mark.parametrize("tag", TAGS)
def test_whatever_is_sent_the_answer_is_as_the_document_says(app: Flask, clinic: Clinic, tag: str) -> None:
    doctor, patient = clinic.accounts.doctor(), clinic.accounts.patient()
    slot_id = clinic.slot(doctor)
    appointment_id = clinic.book(patient, slot_id)
    real = {"doctor_id": str(doctor.id), "slot_id": slot_id, "appointment_id": appointment_id}
    described = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app).include(tag=tag)
    operations = [result.ok() for result in described.get_all_operations()]
    assert operations
    for operation in operations:
        who = who_may(app, clinic, operation.method.upper(), operation.path)
        send_all_sorts(operation, {} if who is None else who.headers, real)


def send_all_sorts(operation: Any, headers: dict[str, str], real: dict[str, str]) -> None:
    """Send requests that fit the document and requests that don't, half of them with ids of what is there."""
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    missing = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=fitting | missing, found=st.booleans())
    def send(case: schemathesis.Case, found: bool) -> None:
        if found and case.path_parameters:
            case.path_parameters = {name: real.get(name, value) for name, value in case.path_parameters.items()}
        case.call_and_validate(headers=headers, checks=CHECKS)

    send()
