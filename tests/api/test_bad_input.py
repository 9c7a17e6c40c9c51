"""Whatever is sent to any route: a problem document of 400 and more, never 500, and nothing stored."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from domain.consents import OFFERS, TERMS
from tests.api.clinic import API, REASON, Clinic
from tests.api.test_openapi import operations, who_may
from tests.factories import PASSWORD, Someone, cpf, doctor_body, patient_body

MONEY = {"amount": 25000, "currency": "BRL"}
TIMES = {"starts_at": "2027-03-01T09:00:00-03:00", "ends_at": "2027-03-01T10:00:00-03:00"}
RULE = {
    "weekday": 1,
    "start": "09:00",
    "end": "12:00",
    "slot_minutes": 30,
    "valid_from": "2026-12-01",
    "valid_until": "2027-12-01",
}
REPRESENTATIVE = {"name": "Carla Souza", "cpf": cpf()}
NOWHERE = "01a20d57-0000-7000-8000-000000000000"


@dataclass(frozen=True)
class Good:
    """A body with every field of a route, and the bad-looking values that some of its fields take."""

    body: dict[str, Any]
    takes: dict[str, list[Any]] = field(default_factory=dict)


GOOD = {
    "POST /patients": Good(patient_body(phone="+55 11 91234-5678", language="en", timezone="UTC", representative=REPRESENTATIVE)),
    "POST /doctors": Good(doctor_body(bio="Atendo.", language="en", timezone="UTC"), {"bio": [""], "specialties": [[]]}),
    "POST /auth/doctor": Good({"crm": "1/SP", "password": PASSWORD, "otp": "123456"}),
    "POST /auth/patient": Good({"login": "ana@example.com", "password": PASSWORD, "otp": "123456"}),
    "POST /auth/staff": Good({"login": "ana@example.com", "password": PASSWORD, "otp": "123456"}),
    "PATCH /patients/me": Good(
        {
            "name": "Ana Lima",
            "phone": "+55 11 91234-5678",
            "birth_date": "1990-05-17",
            "language": "en",
            "timezone": "UTC",
            "representative": REPRESENTATIVE,
            "cpf": cpf(),
        },
        {"phone": [None], "representative": [None]},
    ),
    "PATCH /doctors/me": Good(
        {
            "name": "Bruno Dias",
            "price": MONEY,
            "specialties": [{"code": "cardiologia", "rqe": "1"}],
            "bio": "Atendo.",
            "language": "en",
        },
        {"bio": [None, ""], "specialties": [[]]},
    ),
    "PUT /me/email": Good({"email": "outro@example.com", "password": PASSWORD}),
    "POST /auth/email/confirm": Good({"token": "x" * 43}),
    "POST /auth/password/forgot": Good({"login": "ana@example.com"}),
    "POST /auth/password/reset": Good({"token": "x" * 43, "password": "outra senha bem comprida"}),
    "POST /me/totp": Good({"password": PASSWORD}),
    "POST /me/totp/confirm": Good({"otp": "123456"}),
    "DELETE /me/totp": Good({"password": PASSWORD, "otp": "123456"}),
    "PUT /me/password": Good({"current": PASSWORD, "new": "outra senha bem comprida"}),
    "POST /doctors/{doctor_id}/verification": Good({"decision": "verify", "reason": "Conferido"}),
    "PUT /doctors/me/availability": Good(
        {"rules": [RULE], "exceptions": [{**TIMES, "reason": "Férias"}], "timezone": "UTC"},
        {"rules": [[]], "exceptions": [[]], "exceptions.0.reason": [""]},
    ),
    "POST /doctors/me/slots": Good({**TIMES, "price": MONEY}),
    "PATCH /doctors/me/slots/{slot_id}": Good({**TIMES, "price": MONEY}),
    "POST /appointments": Good({"slot_id": NOWHERE, "notes": "Primeira vez", "price": MONEY}, {"notes": [""]}),
    "POST /appointments/{appointment_id}/accept": Good({"join_url": "https://meet.example.com/a"}),
    "POST /appointments/{appointment_id}/refuse": Good({**REASON, "kind": "other"}),
    "POST /appointments/{appointment_id}/cancel": Good({**REASON}),
    "POST /appointments/{appointment_id}/reschedule": Good({**REASON, "slot_id": NOWHERE, "price": MONEY}),
    "POST /appointments/{appointment_id}/complete": Good({}),
    "POST /appointments/{appointment_id}/no-show": Good({}),
    "DELETE /doctors/me/slots/{slot_id}": Good({}),
    "POST /auth/refresh": Good({}),
    "POST /auth/logout": Good({}),
    "DELETE /me/sessions/{session_id}": Good({}),
    "POST /me/calendar-link": Good({}),
    "DELETE /me/calendar-link": Good({}),
    "POST /notices/{notice_id}/read": Good({}),
    "POST /me/consents": Good({"kind": TERMS, "version": OFFERS[TERMS].version}),
    "DELETE /me/consents/{kind}": Good({}),
    "POST /me/erasure": Good({"password": PASSWORD, "confirm": True}),
    "PUT /staff/patients/{patient_id}/cpf": Good({"cpf": cpf(), "reason": "Estava trocado no cadastro"}),
}

NO_TEXT = [None, 1, -1, 1.5, 2**64, -(2**64), 10**400, True, [], {}, ["a"]]
BAD_TEXT = ["", "\x00", "a\x00b", "\ud800", "a\udfffb", "x" * 20_000]
BAD_TIMES = ["2026-02-30", "2026-13-01T00:00:00Z", "2026-02-30T09:00:00-03:00", "2027-03-01T09:00:00", "24:01", "amanhã"]
NO_NUMBER = [None, "1", "", 1.5, -1, 2**63, 2**64, -(2**64), 10**400, True, [], {}]
NO_FLAG = [None, 0, 1, "true", False, [], {}]
NO_LIST = [None, 1, "a", True, {}, [None], [1], ["a"], [[]], [{}]]
NO_OBJECT = [None, 1, "a", True, [], {}, [{}]]

BROKEN = [
    b"{",
    b"}",
    b'{"a": 1,}',
    b"{'a': 1}",
    b'{"a": 1} {"b": 2}',
    b'{"a": NaN}',
    b'{"a": -Infinity}',
    b'{"a": 1, "a": 2}',
    b'{"a": "\x00"}',
    b'{"a": "\xff"}',
    b"\xff\xfe{\x00}\x00",
    b"\x00",
    b"[" * 30_000,
    b'{"a":' * 10_000,
    b'{"a": ' + b"9" * 5_000 + b"}",
]
NO_BODY = [b"null", b"1", b'"a"', b"true", b"[]", b"[{}]"]
OTHER_TYPES = ["text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "json"]
BAD_IDS = ["x", "0", "None", "null", "%00", "%ff", "..", "{}", "-1", NOWHERE + "0", NOWHERE.replace("-", ""), "9" * 4000]
BAD_QUERIES = {
    "integer": ["x", "", "-1", "1.5", "1e3", "0x1", "9" * 30, "%D9%A3", "%00", "%FF"],
    "boolean": ["x", "", "1", "True", "%00"],
    "date": ["x", "", "2026-02-30", "2026-13-01", "20261201", "%00"],
    "date-time": ["x", "", "2026-02-30T00:00:00Z", "2026-12-01", "2026-12-01T00:00:00", "%00"],
    "string": ["%00", "%01", "x" * 2000],
    "array": ["%00", "x", "x,y"],
}


def test_every_route_that_takes_a_body_is_tried(clinic: Clinic) -> None:
    described = operations(clinic.get("/openapi.json").json)
    with_body = {f"{method} {path.removeprefix(API)}" for method, path, operation in described if "requestBody" in operation}
    assert set(GOOD) == with_body


@pytest.mark.parametrize("route", GOOD)
def test_no_field_takes_what_it_is_not_for(app: Flask, clinic: Clinic, route: str) -> None:
    tried = Tried(app, clinic, route)
    for body, what in misfits(GOOD[route]):
        tried.refused(tried.send(json.dumps(body)), what, {422, 401})
    tried.nothing_is_stored()


@pytest.mark.parametrize("route", GOOD)
def test_no_field_is_left_out_and_none_is_made_up(app: Flask, clinic: Clinic, route: str) -> None:
    tried = Tried(app, clinic, route)
    document = clinic.get("/openapi.json").json
    method, path = route.split()
    schema = document["paths"][API + path][method.lower()]["requestBody"]["content"]["application/json"]["schema"]
    for body, what in incomplete(GOOD[route].body, schema, document["components"]["schemas"]):
        tried.refused(tried.send(json.dumps(body)), what, {422})
    tried.nothing_is_stored()


@pytest.mark.parametrize("route", GOOD)
def test_no_body_is_taken_that_is_not_json_or_too_large(app: Flask, clinic: Clinic, route: str) -> None:
    tried = Tried(app, clinic, route)
    good = json.dumps(GOOD[route].body).encode()
    for body in BROKEN:
        tried.refused(tried.send(body), body[:40], {400})
    for body in NO_BODY:
        tried.refused(tried.send(body), body, {422})
    for kind in OTHER_TYPES:
        tried.refused(tried.send(good, content_type=kind), kind, {415})
    tried.refused(tried.send(good, headers={"Content-Encoding": "gzip"}), "gzip", {415})
    for filling in (b" ", b"\x00"):
        tried.refused(tried.send(good + filling * (64 * 1024 + 1 - len(good))), "65537 bytes", {413})
    tried.nothing_is_stored()


def test_a_body_that_a_route_does_not_read_is_bounded_too(app: Flask, clinic: Clinic) -> None:
    for method, path, operation in operations(clinic.get("/openapi.json").json):
        if "requestBody" not in operation:
            tried = Tried(app, clinic, f"{method} {path.removeprefix(API)}")
            tried.refused(tried.send(b"x" * (64 * 1024 + 1)), path, {413})


def test_no_id_in_a_path_is_anything_but_an_id(app: Flask, clinic: Clinic) -> None:
    for method, path, _ in operations(clinic.get("/openapi.json").json):
        if "{" in path:
            tried = Tried(app, clinic, f"{method} {path.removeprefix(API)}")
            for bad in BAD_IDS:
                tried.path = re.sub(r"\{\w+\}", bad, path)
                tried.refused(tried.send(json.dumps(GOOD.get(tried.route, Good({})).body)), bad, {404, 405})
            tried.nothing_is_stored()


def test_no_parameter_of_a_query_takes_what_it_is_not_for(app: Flask, clinic: Clinic) -> None:
    for method, path, operation in operations(clinic.get("/openapi.json").json):
        for parameter in operation.get("parameters", []):
            if parameter["in"] != "query":
                continue
            tried = Tried(app, clinic, f"{method} {path.removeprefix(API)}")
            schema = parameter["schema"]
            kind = "array" if "enum" in schema else schema.get("format", schema["type"])
            for bad in BAD_QUERIES[kind]:
                tried.path = f"{tried.real_path}?{parameter['name']}={bad}"
                tried.refused(tried.send(None), tried.path, {422})


def test_no_other_method_is_answered(app: Flask, clinic: Clinic) -> None:
    for path in clinic.get("/openapi.json").json["paths"]:
        for method in ("TRACE", "CONNECT", "BREW"):
            answer = clinic.client.open(re.sub(r"\{\w+\}", NOWHERE, path), method=method)
            assert (answer.status_code, answer.content_type) == (405, "application/problem+json"), (method, path)
            assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer x", "Bearer a.b.c", "Basic YTpi", "Bearer " + "a" * 7000, "Bearer \xff\xfe", "x y z"],
)
def test_what_is_no_token_lets_nobody_in(clinic: Clinic, header: str) -> None:
    for method, path, operation in operations(clinic.get("/openapi.json").json):
        path = re.sub(r"\{\w+\}", NOWHERE, path)
        answer = clinic.client.open(path, method=method, json={}, headers={"Authorization": header})
        if operation.get("security"):
            assert (answer.status_code, answer.json["code"]) == (401, "unauthorized"), (method, path)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        else:
            assert answer.status_code != 401, (method, path)


class Tried:
    """One route under bad input: who may call it, what was stored before, and what every answer must be."""

    def __init__(self, app: Flask, clinic: Clinic, route: str) -> None:
        self.clinic = clinic
        self.route = route
        self.method, path = route.split()
        self.who = self._who(app, API + path)
        self.real_path = self.path = re.sub(r"\{\w+\}", lambda found: self._id(found[0]), API + path)
        self.before = self._rows()

    def send(self, body: str | bytes | None, *, content_type: str = "application/json", headers: Any = None) -> TestResponse:
        """The answer to a request of somebody whom the route lets in."""
        own = self.who.headers if self.who else {}
        return self.clinic.client.open(
            self.path, method=self.method, data=body, content_type=content_type, headers={**own, **(headers or {})}
        )

    def refused(self, answer: TestResponse, what: object, statuses: set[int]) -> None:
        """The answer is a problem document with one of these statuses, and gives away nothing."""
        where = (self.route, what, answer.status_code, answer.text[:500])
        assert answer.status_code in statuses, where
        assert answer.content_type == "application/problem+json", where
        assert answer.json["status"] == answer.status_code, where
        assert {"type", "title", "detail", "code"} <= set(answer.json), where
        assert re.fullmatch("[a-z_]+", answer.json["code"]), where
        assert PASSWORD not in answer.text, where
        assert not re.search(r"Traceback|psycopg|sqlalchemy|select |\.py", answer.text), where
        if answer.status_code == 422:
            assert answer.json["errors"], where
            assert all(messages and all(messages) for messages in answer.json["errors"].values()), where

    def nothing_is_stored(self) -> None:
        """No table has a row more or less than before."""
        assert self._rows() == self.before, self.route

    def _who(self, app: Flask, path: str) -> Someone | None:
        if self.route == "POST /auth/refresh":
            patient = self.clinic.accounts.patient()
            return Someone(patient.id, patient.login, patient.refresh, patient.refresh)
        return who_may(app, self.clinic, self.method, path)

    def _id(self, name: str) -> str:
        if name == "{slot_id}" and self.who:
            return self.clinic.slot(self.who)
        if name == "{doctor_id}":
            return str(self.clinic.accounts.doctor().id)
        return NOWHERE

    def _rows(self) -> dict[str, int]:
        tables = self.clinic.all("select tablename from pg_tables where schemaname = 'public'")
        return {table: self.clinic.all(f"select count(*) from {table}")[0] for table in tables}


def misfits(good: Good) -> Iterator[tuple[Any, str]]:
    """The good body with one value of it replaced by one that its field can't take, for each of both."""
    for path, value in parts(good.body, ()):
        name = ".".join(map(str, path))
        for bad in bad_values(value):
            if bad not in good.takes.get(name, []):
                yield replaced(good.body, path, bad), f"{name}: {bad!r}"[:80]


def bad_values(good: Any) -> list[Any]:
    """What a field can't take whose good value is this one."""
    if isinstance(good, bool):
        return NO_FLAG
    if isinstance(good, int):
        return NO_NUMBER
    if isinstance(good, list):
        return NO_LIST
    if isinstance(good, dict):
        return NO_OBJECT
    looks_like_a_time = re.match(r"\d{4}-\d\d-\d\d|\d\d:\d\d$", good)
    return NO_TEXT + BAD_TEXT + (BAD_TIMES if looks_like_a_time else [])


def parts(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value inside a body, and where it is."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield (*path, name), each
        yield from parts(each, (*path, name))


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a body with another value at one place."""
    return edited(body, path, lambda holder, name: holder.__setitem__(name, value))


def edited(body: Any, path: tuple[Any, ...], edit: Callable[[Any, Any], None]) -> Any:
    """A copy of a body, changed at one place."""
    made = copy.deepcopy(body)
    holder = made
    for name in path[:-1]:
        holder = holder[name]
    edit(holder, path[-1])
    return made


def incomplete(body: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """The good body without one of the fields that the document requires, or with one that it doesn't know."""
    for path, described in objects(body, schema, schemas, ()):
        for name in described.get("required", []):
            missing = (*path, name)
            yield edited(body, missing, lambda holder, key: holder.__delitem__(key)), f"without {missing}"
        for name in ("unexpected", "id", "", "__proto__", "$ref", "a.b", "\ud800"):
            yield replaced(body, (*path, name), 1), f"with {(*path, name)!r}"


def objects(
    value: Any, schema: dict[str, Any], schemas: dict[str, Any], path: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every object of a body, where it is, and how the document describes it."""
    described = resolved(schema, schemas)
    if isinstance(value, dict):
        yield path, described
        for name, each in value.items():
            yield from objects(each, described["properties"][name], schemas, (*path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from objects(each, described["items"], schemas, (*path, index))


def resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A description with its reference followed, whether or not null is allowed beside it."""
    for each in (schema, *schema.get("anyOf", ()), *schema.get("allOf", ())):
        if "$ref" in each:
            return dict(schemas[each["$ref"].rsplit("/", 1)[1]])
    return schema
