"""A clinic at work: people, slots and requests of theirs, decided in the test's own process by the real engine."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from api.services import Services
from domain.lanes import Drainer
from tests import rows
from tests.factories import Accounts, Someone

API = "/api/v1"
REASON = {"reason": "Tive um imprevisto"}


@dataclass(frozen=True, slots=True)
class Clinic:
    """What a test of routes needs at hand."""

    client: FlaskClient
    accounts: Accounts
    services: Services

    def under(self, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Clinic:
        """The same clinic, where reads, calls and decisions obey other limits."""
        settings = self.services.settings
        settings = replace(settings, limits=replace(settings.limits, **limits))
        services = replace(self.services, settings=settings)
        monkeypatch.setitem(self.client.application.extensions, "healthmed", services)
        monkeypatch.setattr(services.cache, "settings", settings)
        return replace(self, services=services)

    def get(self, path: str, who: Someone | None = None, **headers: str) -> TestResponse:
        """What somebody, or anyone, reads."""
        return self.request("GET", path, who, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        who: Someone | None = None,
        body: Any = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> TestResponse:
        """The answer to a request below /api/v1, sent with or without a token, a body and an idempotency key."""
        sent = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        if who is not None:
            sent |= who.headers
        if key is not None:
            sent["Idempotency-Key"] = key
        answer = self.client.open(API + path, method=method, json=body, headers=sent)
        self._must_be_described(method, path, answer.status_code)
        return answer

    def slot(self, doctor: Someone, starts_at: datetime | None = None, minutes: int = 30) -> str:
        """The id of an open slot of the doctor's: tomorrow at noon UTC, unless told otherwise."""
        with self.services.engine.begin() as connection:
            return str(rows.add_slot(connection, doctor.id, starts_at or rows.tomorrow(), minutes))

    def decide(self) -> None:
        """Have everything decided that waits."""
        drainer = Drainer(self.services.settings, self.services.engine, self.services.cache, self.services.broker)
        for lane in self.all("select distinct lane from commands where status = 'pending' and lane >= 0"):
            assert not drainer.drain(lane)

    def outcome(self, accepted: TestResponse, who: Someone) -> dict[str, Any]:
        """How a command that was answered 202 reads to its sender once it is decided."""
        assert accepted.status_code == 202, accepted.json
        self.decide()
        answer = self.client.get(accepted.headers["Location"], headers=who.headers)
        assert answer.status_code == 200
        return dict(answer.json)

    def done(self, method: str, path: str, who: Someone, body: Any = None) -> dict[str, Any]:
        """The command that somebody sends, which must succeed."""
        command = self.outcome(self.request(method, path, who, body), who)
        assert command["status"] == "succeeded", command
        return command

    def book(self, patient: Someone, slot_id: str, **body: Any) -> str:
        """The id of the appointment that a patient gets."""
        return str(self.done("POST", "/appointments", patient, {"slot_id": slot_id, **body})["appointment_id"])

    def all(self, query: str, **values: Any) -> list[Any]:
        """The first column of what a query finds."""
        with self.services.reads.connect() as connection:
            return list(connection.execute(text(query), values).scalars())

    def change(self, statement: str, **values: Any) -> None:
        """Change a row behind the application's back."""
        with self.services.engine.begin() as connection:
            connection.execute(text(statement), values)

    def _must_be_described(self, method: str, path: str, status: int) -> None:
        """Every status that a test sees stands in the OpenAPI document."""
        app = self.client.application
        try:
            rule, _ = app.url_map.bind("").match(API + path.partition("?")[0], method, return_rule=True)
        except HTTPException:
            return
        described = self.client.get(f"{API}/openapi.json").json["paths"][re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)]
        assert str(status) in described[method.lower().replace("head", "get")]["responses"], (method, rule.rule, status)

    def outlast(self, stopped: Any) -> None:
        """Start a database again that a test has stopped, and wait until the application has noticed."""
        stopped.start()
        until = time.monotonic() + 10
        while (answer := self.get("/doctors")).status_code != 200 or "Warning" in answer.headers:
            assert time.monotonic() < until, answer.text
            time.sleep(0.1)

    def stored(self) -> int:
        """How many commands there are."""
        return int(self.all("select count(*) from commands")[0])
