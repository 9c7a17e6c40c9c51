"""A change that was committed, and whose answer was lost before it was made known: whoever tells of it makes it known first."""

from __future__ import annotations

import pytest

from domain.errors import Unavailable
from domain.schedule import Role
from tests.api.clinic import Clinic
from tests.factories import Someone


def lost(clinic: Clinic, monkeypatch: pytest.MonkeyPatch, method: str, path: str, who: Someone, body: object = None) -> None:
    """Send a request that commits, and gets no further."""

    def fail(*_: object) -> None:
        raise Unavailable(retry_after=1)

    with monkeypatch.context() as broken:
        broken.setattr(clinic.services.cache, "finish", fail)
        assert clinic.request(method, path, who, body).status_code == 503
    assert unfinished(clinic) == 1


def unfinished(clinic: Clinic) -> int:
    """How many batches are not made known yet."""
    return len(clinic.all("select id from batches where finished_at is null"))


def test_a_session_is_over_for_everybody_once_its_end_is_refused_as_done(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = clinic.accounts.patient()
    other = clinic.accounts.logged_in(patient.id, Role.PATIENT, patient.login)
    assert clinic.get("/me/sessions", other).status_code == 200
    (path,) = [f"/me/sessions/{each['id']}" for each in clinic.get("/me/sessions", other).json["items"] if each["current"]]
    lost(clinic, monkeypatch, "DELETE", path, patient)
    assert clinic.request("DELETE", path, patient).status_code == 404
    assert clinic.get("/me/sessions", other).status_code == 401
    assert unfinished(clinic) == 0


def test_an_account_is_shown_changed_only_where_everybody_sees_it(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor, price = clinic.accounts.doctor(), {"amount": 31000, "currency": "BRL"}
    assert clinic.get(f"/doctors/{doctor.id}").json["price"] != price
    lost(clinic, monkeypatch, "PATCH", "/doctors/me", doctor, {"price": price})
    assert clinic.get("/me", doctor).json["price"] == price
    assert clinic.get(f"/doctors/{doctor.id}").json["price"] == price
    assert unfinished(clinic) == 0


def test_a_doctor_is_listed_as_suspended_only_where_nobody_is_shown_them(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor, staff = clinic.accounts.doctor(), clinic.accounts.staff()
    assert clinic.get(f"/doctors/{doctor.id}").status_code == 200
    lost(clinic, monkeypatch, "POST", f"/doctors/{doctor.id}/verification", staff, {"decision": "suspend"})
    assert [each["status"] for each in clinic.get("/staff/doctors", staff).json["items"]] == ["suspended"]
    assert clinic.get(f"/doctors/{doctor.id}").status_code == 404


def test_a_decision_is_refused_as_made_only_when_it_is_known(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor, staff = clinic.accounts.doctor(), clinic.accounts.staff()
    assert clinic.request("PATCH", "/doctors/me", doctor, {"name": "Bruna Lima"}).status_code == 200
    path, body = f"/doctors/{doctor.id}/verification", {"decision": "reject"}
    lost(clinic, monkeypatch, "POST", path, staff, body)
    assert clinic.request("POST", path, staff, body).status_code == 409
    assert unfinished(clinic) == 0
