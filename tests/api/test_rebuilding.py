"""Rebuilding the projections: whatever is cached is filled again, and what was not as it should be is told and thrown away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from api import cli
from local.servers import Cache as CacheServer
from tests import rows
from tests.api.clinic import Clinic
from tests.factories import Someone

# The reads of each route that answers from the cache, each sent as written by whom it is for.
READS = {
    "/doctors": [
        "",
        "?sort=price&page_size=1",
        "?q=lima&specialty=cardiologia&specialty=clinico-geral&state=SP&max_price=99999",
        "?sort=next_slot&available_from=2026-01-01T00:00:00Z&available_until=2999-01-01T00:00:00Z",
    ],
    "/doctors/{doctor_id}": [""],
    "/doctors/{doctor_id}/agenda": ["", "?days=31", "?from=2026-12-01&days=3"],
    "/doctors/me/availability": [""],
    "/appointments": ["", "?status=requested&status=accepted&page_size=1", "?overdue=true", "?from=2026-01-01T00:00:00Z"],
    "/appointments/{appointment_id}": [""],
    "/commands/{command_id}": [""],
    "/calendar/{token}.ics": [""],
}
NOT_CACHED = {
    "/specialties", "/me", "/me/sessions", "/me/export", "/me/consents", "/me/access-log", "/notices", "/staff/doctors",
    "/staff/notices", "/openapi.json",
}  # fmt: skip

Rebuild = Callable[[], tuple[int, str]]


@pytest.fixture
def rebuild(clinic: Clinic, capfd: pytest.CaptureFixture[str]) -> Rebuild:
    """Calls the command; gives its exit code, and what it said."""

    def rebuild() -> tuple[int, str]:
        capfd.readouterr()
        code = cli.run(["rebuild"], clinic.services.settings)
        return code, capfd.readouterr().out

    return rebuild


@pytest.fixture
def doctor(clinic: Clinic) -> Someone:
    """A doctor with an open slot."""
    doctor = clinic.accounts.doctor()
    clinic.slot(doctor, rows.tomorrow(72))
    return doctor


def read_everything(clinic: Clinic, doctor: Someone) -> int:
    """Have two of each kind of projection cached, and more; how many bodies were read."""
    patient, other = clinic.accounts.patient(), clinic.accounts.doctor()
    sent = clinic.request("POST", "/appointments", patient, {"slot_id": clinic.slot(doctor), "notes": "Primeira vez"})
    clinic.book(patient, clinic.slot(other, rows.tomorrow(3)))
    appointment_id = clinic.outcome(sent, patient)["appointment_id"]
    clinic.done("POST", f"/appointments/{appointment_id}/accept", doctor, {"join_url": "https://meet.example/sala"})
    read = 0
    for route, queries in READS.items():
        for who in (patient, doctor):
            token = ""
            if "{token}" in route:
                token = clinic.request("POST", "/me/calendar-link", who).json["url"].rpartition("/")[2].removesuffix(".ics")
            path = route.format(doctor_id=doctor.id, appointment_id=appointment_id, command_id=sent.json["id"], token=token)
            for query in queries:
                answer = clinic.get(path + query, who)
                while answer.status_code == 200 and answer.is_json and "next" in answer.json:
                    answer = clinic.get(f"{path}?cursor={answer.json['next']}", who)
                assert answer.status_code in (200, 403, 404), answer.text
                read += answer.status_code == 200
    return read


def test_every_read_is_known_to_this_test(clinic: Clinic) -> None:
    paths = clinic.get("/openapi.json").json["paths"]
    routes = {path.removeprefix("/api/v1") for path, methods in paths.items() if "get" in methods and path.startswith("/api/v1")}
    assert routes == READS.keys() | NOT_CACHED


def test_what_is_as_it_should_be_is_told_so(clinic: Clinic, doctor: Someone, rebuild: Rebuild) -> None:
    read = read_everything(clinic, doctor)
    code, said = rebuild()
    assert (code, said.count("\n")) == (0, 1), said
    assert said.endswith(" projections rebuilt, 0 of them differed\n")
    assert int(said.split()[0]) > read - len(READS["/doctors"])  # which anyone reads alike


def test_what_differs_is_named_thrown_away_and_filled_anew(clinic: Clinic, doctor: Someone, rebuild: Rebuild) -> None:
    read_everything(clinic, doctor)
    stale = clinic.get(f"/doctors/{doctor.id}").json
    clinic.change("update doctors set price = 31000 where id = :id", id=doctor.id)
    assert clinic.get(f"/doctors/{doctor.id}").json == stale
    code, said = rebuild()
    assert code == 1
    differed = {line.split(" was not")[0] for line in said.splitlines()[:-1]}
    assert {f"doctor:{doctor.id} doctor", f"doctor:{doctor.id} card", f"agenda:{doctor.id} agenda::7"} <= differed
    assert {each.partition(":")[0] for each in differed} == {
        "doctor",
        "agenda",
        "directory search",
    }  # one of these is in order of price
    assert said.endswith(f" {len(differed)} of them differed\n")
    assert clinic.get(f"/doctors/{doctor.id}").json["price"]["amount"] == 31000
    assert rebuild()[0] == 0


def test_what_is_cached_of_nothing_differs(clinic: Clinic, doctor: Someone, rebuild: Rebuild) -> None:
    clinic.get("/doctors", doctor)
    clinic.change("update doctors set status = 'suspended'")
    code, said = rebuild()
    assert (code, f"doctor:{doctor.id} card" in said, "directory search:" in said) == (1, True, True)


def test_what_a_batch_is_about_to_make_known_is_no_difference(clinic: Clinic, doctor: Someone, rebuild: Rebuild) -> None:
    clinic.get(f"/doctors/{doctor.id}")
    with clinic.services.engine.begin() as connection:  # committed, and not yet made known
        connection.exec_driver_sql("update doctors set price = 31000")
        connection.exec_driver_sql(f"insert into batches (id, scopes) values (uuidv7(), array['doctor:{doctor.id}'])")
    (batch_id,) = clinic.all("select id from batches where finished_at is null")
    later = threading.Timer(0.5, clinic.services.cache.finish, (batch_id, [f"doctor:{doctor.id}"]))
    began = time.monotonic()
    later.start()
    code, said = rebuild()
    assert (code, time.monotonic() - began > 0.5) == (0, True), said
    later.join()


def test_what_time_has_made_wrong_is_no_difference(clinic: Clinic, doctor: Someone, rebuild: Rebuild) -> None:
    clinic.slot(doctor, rows.tomorrow(24))
    clinic.get("/appointments?overdue=true", doctor)
    pending = clinic.request("PUT", "/doctors/me/availability", doctor, {"rules": [], "exceptions": []})
    clinic.get(f"/commands/{pending.json['id']}", doctor)
    assert rebuild()[0] == 0


@pytest.mark.parametrize("trouble", ["gone", "out of use"])
def test_without_a_cache_nothing_is_rebuilt(
    clinic: Clinic, doctor: Someone, cache_server: CacheServer, rebuild: Rebuild, trouble: str
) -> None:
    if trouble == "gone":
        cache_server.kill()
    else:
        clinic.change("update cache set in_use = false, changed_at = now()")
    assert rebuild() == (1, "")
