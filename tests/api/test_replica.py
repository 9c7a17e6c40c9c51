"""What is read from a replica past the projections, and what a replica that has fallen behind must not keep from anybody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import event

from api.app import create_app
from domain.settings import Settings
from local.servers import Replica
from tests.api.clinic import Clinic
from tests.factories import Accounts
from tests.replicas import catch_up, follows, until


@pytest.fixture
def clinic(settings: Settings, postgres: object, broker: object, cache_server: object, replica: Replica) -> Iterator[Clinic]:
    """A clinic whose application may read a replica."""
    app = create_app(follows(settings, replica))
    services = app.extensions["healthmed"]
    yield Clinic(app.test_client(), Accounts(services.engine, services.settings, services.cache, services.broker), services)
    services.close()


@pytest.fixture
def asked(clinic: Clinic) -> list[str]:
    """The statements that the replica gets."""
    statements: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(clinic.services.cache._replica._engine, "before_cursor_execute", note)
    return statements


@pytest.mark.parametrize(
    ("path", "statement"),
    [("/me/export", "from person_keys"), ("/me/access-log", "from audit"), ("/staff/doctors", "from doctors")],
)
def test_exports_access_logs_and_staff_lists_come_from_a_replica(
    clinic: Clinic, asked: list[str], path: str, statement: str
) -> None:
    who = clinic.accounts.staff() if path.startswith("/staff") else clinic.accounts.patient()

    def came() -> bool:
        assert clinic.get(path, who).status_code == 200
        return any(statement in each for each in asked)

    until(came)


def test_a_replica_that_has_fallen_behind_keeps_nothing_from_anybody(clinic: Clinic, replica: Replica) -> None:
    patient, doctor, staff = clinic.accounts.patient(), clinic.accounts.doctor(), clinic.accounts.staff()
    slot_id = clinic.slot(doctor)
    catch_up(clinic.services.engine, replica)
    agenda, search = f"/doctors/{doctor.id}/agenda", "/doctors?sort=next_slot"
    assert clinic.get(search).json["items"][0]["next_slot_at"]
    replica.pause()
    appointment_id = clinic.book(patient, slot_id)
    assert clinic.get(search).json["items"][0]["next_slot_at"] is None
    assert not any(day["slots"] for day in clinic.get(agenda).json["days"])
    assert [each["id"] for each in clinic.get("/appointments", doctor).json["items"]] == [appointment_id]
    assert clinic.get("/me/access-log", patient).json["items"][0]["action"] == "read"
    assert "exported" in {each["action"] for each in clinic.get("/me/export", patient).json["audit"]}
    clinic.request("POST", f"/doctors/{doctor.id}/verification", staff, {"decision": "suspend", "reason": "Registro cassado"})
    assert [each["status"] for each in clinic.get("/staff/doctors", staff).json["items"]] == ["suspended"]
    assert clinic.get(search).json["items"] == []
    replica.resume()
