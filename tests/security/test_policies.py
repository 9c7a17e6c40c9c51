"""Every route answers every kind of caller as its row of the table says, through HTTP."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from uuid_utils.compat import uuid7
from werkzeug.test import TestResponse

from domain import sessions, tokens
from domain.cache import changing
from domain.schedule import Role
from tests.api.clinic import Clinic
from tests.factories import Someone, bearer
from tests.security.policies import CALLERS, DOCUMENT, ROUTES, Route, World, document

PARTS = re.compile(r"\{(\w+)\}")


@pytest.fixture
def world(clinic: Clinic) -> World:
    """Two who have an appointment, and others who have nothing to do with it."""
    accounts = clinic.accounts
    patient, doctor = accounts.patient(name="Ana Quitéria"), accounts.doctor()
    sent = clinic.request("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor), "notes": "Dor no peito"})
    clinic.decide()
    (appointment_id,) = clinic.all("select id from appointments")
    (notice_id,) = clinic.all("select id from notices")
    calendar = clinic.request("POST", "/me/calendar-link", patient).json["url"]
    other_session = accounts.logged_in(patient.id, Role.PATIENT, patient.login)
    return World(
        clinic=clinic,
        patient=patient,
        doctor=doctor,
        other_patient=accounts.patient(),
        other_doctor=accounts.doctor(),
        staff=accounts.staff(),
        appointment_id=str(appointment_id),
        command_id=sent.json["id"],
        slot_id=clinic.slot(doctor, datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)),
        session_id=session_id(clinic, other_session),
        doctor_id=str(doctor.id),
        notice_id=str(notice_id),
        token=calendar.rpartition("/")[2].removesuffix(".ics"),
    )


def test_every_route_has_a_row_and_every_row_a_route(app: Flask) -> None:
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    rows = [(route.method, route.path) for route in ROUTES]
    assert served - set(rows) == set(), "add a row for each of these to tests/security/policies.py"
    assert set(rows) - served == set()
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_caller_is_answered_as_the_table_says(world: World, route: Route) -> None:
    expected = route.expected
    allowed = [caller for caller in CALLERS if expected[caller] < 400]
    # Those who are refused first: whoever is let in may change what they would have been refused.
    for caller in sorted(CALLERS, key=lambda caller: expected[caller] < 400):
        stored = world.clinic.stored()
        answer = ask(world, route, caller, allowed)
        assert answer.status_code == expected[caller], (caller, answer.text)
        if answer.status_code >= 400:
            assert answer.content_type == "application/problem+json"
            assert "Quitéria" not in answer.text
            assert world.clinic.stored() == stored
        assert (answer.status_code == 401) == ("WWW-Authenticate" in answer.headers)


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if PARTS.search(route.path) and " 404" in route.statuses],
    ids=lambda route: f"{route.method} {route.path}",
)
def test_what_is_somebody_elses_is_answered_like_what_never_was(world: World, route: Route) -> None:
    for caller, status in route.expected.items():
        if status == 404:
            theirs = ask(world, route, caller, [])
            nobodys = ask(world, route, caller, [], named=str(uuid7()))
            assert (theirs.status_code, theirs.json) == (nobodys.status_code, nobodys.json)


def test_the_document_holds_the_table_of_now() -> None:
    text = DOCUMENT.read_text()
    assert text == document(text), "run `python -m tests.security.policies`"


def ask(world: World, route: Route, caller: str, allowed: list[str], named: str | None = None) -> TestResponse:
    """The answer to a good request of this caller: each has a session of its own, so that none ends another's."""
    path = PARTS.sub(lambda part: named or getattr(world, part[1]), route.path)
    who = world.person(caller)
    headers: dict[str, str] = {}
    if who is not None:
        who = logged_in_again(world, who)
        headers = who.headers
    elif caller != "no token":
        # Somebody who would be let in, were the token a good one.
        owner = next(filter(None, map(world.person, allowed)), world.patient)
        headers = bearer(spoilt_token(world, logged_in_again(world, owner), caller))
    body: Any = route.json(world, who)
    return world.clinic.client.open(path, method=route.method, json=body, headers=headers)


def logged_in_again(world: World, who: Someone) -> Someone:
    accounts = world.clinic.accounts
    role = tokens.read(accounts.settings.jwt_keys, who.access, tokens.Type.ACCESS).role
    return accounts.logged_in(who.id, role, who.login)


def spoilt_token(world: World, who: Someone, how: str) -> str:
    """A token that was good once, or is good for something else."""
    if how == "refresh token":
        return who.refresh
    services = world.clinic.services
    if how == "revoked token":
        with changing(services.engine, services.cache) as change:
            sessions.end(change, tokens.read(services.settings.jwt_keys, who.access, tokens.Type.ACCESS).session_id)
        return who.access
    claims = tokens.read(services.settings.jwt_keys, who.access, tokens.Type.ACCESS)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    return tokens.mint_pair(
        services.settings.jwt_keys,
        person_id=claims.person_id,
        session_id=claims.session_id,
        role=claims.role,
        refresh_id=uuid7(),
        issued_at=an_hour_ago,
        refresh_until=an_hour_ago + timedelta(days=7),
    ).access


def session_id(clinic: Clinic, who: Someone) -> str:
    return str(tokens.read(clinic.services.settings.jwt_keys, who.access, tokens.Type.ACCESS).session_id)
