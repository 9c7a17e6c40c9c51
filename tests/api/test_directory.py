"""The public reads through HTTP: what they show and hide, how they are searched and paged, and their cache headers."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from flask.testing import FlaskClient
from uuid_utils.compat import uuid7

from domain.identifiers import Crm
from domain.identity import RegisteredSpecialty
from domain.specialties import SPECIALTIES
from tests import rows
from tests.api.clinic import Clinic

SAO_PAULO = ZoneInfo("America/Sao_Paulo")


def ids(page: Any) -> list[UUID]:
    """The ids of a page of doctors."""
    return [UUID(item["id"]) for item in page.json["items"]]


def instant(at: datetime) -> str:
    """An instant as it stands in a query."""
    return at.isoformat().replace("+00:00", "Z")


def test_the_specialties_are_the_councils_and_the_general_practitioner(client: FlaskClient) -> None:
    answer = client.get("/api/v1/specialties")
    items = answer.json["items"]
    assert len(items) == 56
    assert {"code": "clinico-geral", "name": "Clínico geral", "registered": False} in items
    assert sum(item["registered"] for item in items) == 55
    assert answer.headers["Cache-Control"] == "public, max-age=3600"
    assert client.get("/api/v1/specialties", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


def test_a_doctor_is_shown_to_anyone(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor(bio="Atendo adultos.", specialties=(RegisteredSpecialty("cardiologia", "12345"),))
    slot = rows.tomorrow()
    clinic.slot(doctor, slot)
    shown = clinic.get(f"/doctors/{doctor.id}")
    assert shown.json == {
        "id": str(doctor.id),
        "name": "Bruno Lima",
        "crm": doctor.login,
        "specialties": [{"code": "cardiologia", "name": "Cardiologia", "rqe": "12345"}],
        "price": {"amount": 25000, "currency": "BRL"},
        "timezone": "America/Sao_Paulo",
        "next_slot_at": shown.json["next_slot_at"],
        "bio": "Atendo adultos.",
    }
    assert datetime.fromisoformat(shown.json["next_slot_at"]) == slot


@pytest.mark.parametrize("status", ["pending_verification", "rejected", "suspended"])
def test_nobody_sees_a_doctor_who_is_not_verified(clinic: Clinic, status: str) -> None:
    doctor = clinic.accounts.doctor(status=status)
    clinic.slot(doctor)
    assert clinic.get(f"/doctors/{doctor.id}").status_code == 404
    assert clinic.get(f"/doctors/{doctor.id}/agenda").status_code == 404
    assert clinic.get("/doctors").json["items"] == []


def test_who_is_no_doctor_is_not_found(clinic: Clinic) -> None:
    for name in (uuid7(), clinic.accounts.patient().id, "none", "1", "%00"):
        assert clinic.get(f"/doctors/{name}").status_code == 404
        assert clinic.get(f"/doctors/{name}/agenda").status_code == 404


def test_an_agenda_shows_bookable_slots_by_the_doctors_days(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    late = rows.tomorrow(14)  # 02:00 UTC, and so still the evening before in São Paulo
    slot_id = clinic.slot(doctor, late)
    clinic.book(clinic.accounts.patient(), clinic.slot(doctor, rows.tomorrow()))
    agenda = clinic.get(f"/doctors/{doctor.id}/agenda").json
    assert (agenda["doctor_id"], agenda["timezone"]) == (str(doctor.id), "America/Sao_Paulo")
    assert agenda["price"] == {"amount": 25000, "currency": "BRL"}
    assert len(agenda["days"]) == 7
    (day,) = [each for each in agenda["days"] if each["slots"]]
    local = late.astimezone(SAO_PAULO)
    assert day["date"] == local.date().isoformat()
    assert day["slots"] == [
        {
            "id": slot_id,
            "starts_at": local.isoformat(),
            "ends_at": (local + timedelta(minutes=30)).isoformat(),
            "price": {"amount": 25000, "currency": "BRL"},
        }
    ]


def test_an_agenda_begins_where_it_is_asked_to(clinic: Clinic) -> None:
    doctor = clinic.accounts.doctor()
    agenda = clinic.get(f"/doctors/{doctor.id}/agenda?from=2027-02-27&days=3").json
    assert [day["date"] for day in agenda["days"]] == ["2027-02-27", "2027-02-28", "2027-03-01"]


@pytest.mark.parametrize(
    "query",
    [
        "days=0",
        "days=32",
        "days=x",
        "days=1.5",
        "days=99999999999999999999",
        "from=2026-02-30",
        "from=amanh%C3%A3",
        "from=0001-01-01",
        "from=9999-12-31",
        "from=2026-1-1",
        "from=%00",
    ],
)
def test_an_agenda_of_days_that_cannot_be_is_refused(clinic: Clinic, query: str) -> None:
    doctor = clinic.accounts.doctor()
    answer = clinic.get(f"/doctors/{doctor.id}/agenda?{query}")
    assert (answer.status_code, list(answer.json["errors"])) == (422, [query.split("=")[0]])


def test_doctors_are_found_by_specialty_name_state_and_price(clinic: Clinic) -> None:
    def doctor(name: str, code: str | None, crm: Crm, price: int) -> UUID:
        registered = (RegisteredSpecialty(code, "1"),) if code else ()
        return clinic.accounts.doctor(name=name, specialties=registered, crm=crm, price=price).id

    ana = doctor("Ana Conceição", "cardiologia", Crm("1", "", "SP"), 30000)
    beto = doctor("Beto Araújo", "dermatologia", Crm("2", "", "RJ"), 10000)
    caio = doctor("Caio Nunes", None, Crm("3", "", "SP"), 20000)

    def found(query: str) -> set[UUID]:
        return set(ids(clinic.get(f"/doctors?{query}")))

    assert found("") == {ana, beto, caio}
    assert found("specialty=cardiologia") == {ana}
    assert found("specialty=cardiologia,dermatologia") == {ana, beto}
    assert found("specialty=dermatologia&specialty=clinico-geral") == {beto, caio}
    assert found("specialty=") == {ana, beto, caio}
    assert found("q=conceicao") == {ana}
    assert found("q=ARAUJO") == {beto}
    assert found("q=un") == {caio}
    assert found("q=") == {ana, beto, caio}
    assert found("q=%25") == set()
    assert found("state=SP") == {ana, caio}
    assert found("max_price=20000") == {beto, caio}
    assert found("min_price=20000") == {ana, caio}
    assert found("min_price=10001&max_price=29999") == {caio}
    assert found("state=SP&max_price=20000&q=caio&specialty=clinico-geral") == {caio}
    assert found("nothing=here") == {ana, beto, caio}


def test_doctors_are_found_by_when_they_are_free(clinic: Clinic) -> None:
    early, late = clinic.accounts.doctor(), clinic.accounts.doctor()
    clinic.slot(early, rows.tomorrow())
    clinic.slot(late, rows.tomorrow(48))
    after, before = instant(rows.tomorrow(24)), instant(rows.tomorrow(24))
    assert ids(clinic.get(f"/doctors?available_from={after}")) == [late.id]
    assert ids(clinic.get(f"/doctors?available_until={before}")) == [early.id]


def test_doctors_stand_in_the_order_that_is_asked_for(clinic: Clinic) -> None:
    dear = clinic.accounts.doctor(name="Ana Dias", price=30000)
    cheap = clinic.accounts.doctor(name="Beto Dias", price=10000)
    clinic.slot(dear, rows.tomorrow(2))
    clinic.slot(cheap, rows.tomorrow(1))
    assert ids(clinic.get("/doctors")) == [dear.id, cheap.id]
    assert ids(clinic.get("/doctors?sort=price")) == [cheap.id, dear.id]
    assert ids(clinic.get("/doctors?sort=next_slot")) == [cheap.id, dear.id]


@pytest.mark.parametrize("sort", ["name", "price", "next_slot"])
def test_pages_and_cursors_neither_skip_nor_repeat(clinic: Clinic, sort: str) -> None:
    doctors = {clinic.accounts.doctor().id for _ in range(5)}
    by_page = [found for page in (1, 2, 3) for found in ids(clinic.get(f"/doctors?sort={sort}&page={page}&page_size=2"))]
    page = clinic.get(f"/doctors?sort={sort}&page_size=2")
    assert (page.json["page"], page.json["page_size"], page.json["total"]) == (1, 2, 5)
    by_cursor = ids(page)
    while page.json.get("next"):
        page = clinic.get(f"/doctors?cursor={page.json['next']}")
        by_cursor += ids(page)
    assert by_page == by_cursor
    assert set(by_page) == doctors
    assert len(by_page) == 5


def test_the_longest_search_has_a_next_page_too(clinic: Clinic) -> None:
    doctors = {clinic.accounts.doctor(name="漢" * 190).id for _ in range(2)}
    page = clinic.get(f"/doctors?page_size=1&specialty={','.join(SPECIALTIES)}&q={quote('漢' * 100)}")
    following = clinic.get(f"/doctors?cursor={page.json['next']}")
    assert {*ids(page), *ids(following)} == doctors


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=x",
        "page=9999999",
        "page_size=0",
        "page_size=101",
        "page_size=99999999999999999999999",
        "min_price=-1",
        "min_price=x",
        "max_price=-1",
        "max_price=1e3",
        "max_price=9223372036854775808",
        "state=XX",
        "state=São Paulo",
        "sort=rating",
        "specialty=cancerologia",
        "specialty=cardiologia,nada",
        "available_from=2026-12-01",
        "available_from=2026-12-01T09:00:00",
        "available_from=2026-02-30T09:00:00Z",
        "available_until=9999-12-31T23:59:59-01:00",
        "cursor=nada",
        "cursor=%00",
        "cursor=",
        "q=%00",
        "q=%E2%80%8B",
        "q=" + "a" * 101,
    ],
)
def test_a_search_that_makes_no_sense_is_refused(clinic: Clinic, query: str) -> None:
    answer = clinic.get(f"/doctors?{query}")
    assert answer.status_code == 422, answer.json
    assert answer.content_type == "application/problem+json"
    assert list(answer.json["errors"]) == [query.split("=")[0]]


def test_a_query_that_is_no_utf8_breaks_nothing(clinic: Clinic) -> None:
    assert clinic.get("/doctors?q=%FF%FE").status_code in (200, 422)


READS = ["/doctors", "/doctors?sort=next_slot", "/doctors/{id}", "/doctors/{id}/agenda"]


@pytest.mark.parametrize("path", READS)
def test_a_public_read_is_revalidated_each_time(clinic: Clinic, path: str) -> None:
    doctor = clinic.accounts.doctor()
    clinic.slot(doctor)
    path = path.format(id=doctor.id)
    first = clinic.get(path)
    etag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "public, no-cache"
    assert first.content_type == "application/json"
    assert etag.startswith('"')
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        seen = clinic.get(path, If_None_Match=known)
        assert (seen.status_code, seen.data, seen.headers["ETag"]) == (304, b"", etag)
        assert seen.headers["Cache-Control"] == "public, no-cache"
    for unknown in ('"other"', etag.strip('"') + "x", "W/", ""):
        assert clinic.get(path, If_None_Match=unknown).status_code == 200
    assert clinic.request("HEAD", path).status_code == 200
    clinic.book(clinic.accounts.patient(), clinic.slot(doctor, rows.tomorrow(1)))
    clinic.request("PATCH", "/doctors/me", doctor, {"price": {"amount": 1, "currency": "BRL"}})
    assert clinic.get(path, If_None_Match=etag).status_code == 200


def test_without_a_database_reads_come_from_the_cache_and_say_so(clinic: Clinic, postgres: Any) -> None:
    doctor = clinic.accounts.doctor()
    public, private = f"/doctors/{doctor.id}", "/doctors/me/availability"
    fresh = {path: clinic.get(path, doctor) for path in (public, private)}
    assert all("Warning" not in answer.headers for answer in fresh.values())
    postgres.stop()
    try:
        until = time.monotonic() + 5  # for two seconds the last word of the database is believed
        while "Warning" not in clinic.get(public).headers and time.monotonic() < until:
            time.sleep(0.1)
        for path, before in fresh.items():
            stale = clinic.get(path, doctor)
            assert (stale.status_code, stale.json) == (200, before.json)
            assert stale.headers["Warning"].startswith("110 ")
        for what in (clinic.get("/specialties"), unknown := clinic.get(f"/doctors/{uuid7()}")):
            assert what.headers["Warning"].startswith("110 ")
        assert unknown.status_code == 503
        assert unknown.headers["Retry-After"]
    finally:
        clinic.outlast(postgres)
