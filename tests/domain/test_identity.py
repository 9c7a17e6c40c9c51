"""People as Postgres holds them: sealed, unique, and with everything about them written down."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from threading import Barrier
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, text
from uuid_utils.compat import uuid7

from domain import audit, identity, passwords, privacy, verification
from domain.cache import Cache, changing
from domain.chains import verify
from domain.errors import Invalid
from domain.identifiers import Crm
from domain.identity import AlreadyRegistered, NewDoctor, NewPatient, Representative
from domain.inbox import lane_of
from domain.schedule import Role
from domain.settings import Settings
from local.servers import Cache as CacheServer
from tests.factories import PASSWORD, cpf
from tests.rows import add_person


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = create_engine(settings.database_url, pool_size=10)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(settings: Settings, engine: Engine, cache_server: CacheServer) -> Iterator[Cache]:
    cache = Cache(settings, engine)
    cache.start()
    yield cache
    cache.stop()


def a_patient(**values: object) -> NewPatient:
    given = {
        "name": "Ana Souza",
        "email": "ana@example.com",
        "cpf": cpf(529982247),
        "phone": "+5511912345678",
        "password": PASSWORD,
        "birth_date": date(1990, 5, 17),
    }
    return NewPatient(**{**given, **values})  # type: ignore[arg-type]


def a_doctor(**values: object) -> NewDoctor:
    given = {
        "name": "Bruno Lima",
        "email": "bruno@example.com",
        "crm": Crm("123456", "", "SP"),
        "password": PASSWORD,
        "price": 25000,
    }
    return NewDoctor(**{**given, **values})  # type: ignore[arg-type]


def test_nothing_of_a_patient_stands_in_the_open(engine: Engine, settings: Settings) -> None:
    new = a_patient(representative=Representative("Rita Prado", cpf(111222333)))
    person_id = identity.register_patient(engine, settings, new)
    with engine.connect() as connection:
        stored = connection.execute(
            text("select * from people join person_keys on person_id = id where id = :id"), {"id": person_id}
        ).one()
        audited = connection.execute(text("select * from audit")).all()
    everything = repr([bytes(value) if isinstance(value, memoryview) else value for value in (*stored, *audited)])
    for secret in ("Ana", "Rita", "ana@", "529982247", "111222333", "91234", "1990", PASSWORD):
        assert secret not in everything
    opened = identity.opened(settings, person_id, stored.wrapped, stored.private)
    assert opened["name"] == "Ana Souza"
    assert opened["representative"]["cpf"] == cpf(111222333)


@pytest.mark.parametrize("field", ["email", "cpf"])
def test_of_many_who_register_the_same_at_once_one_is_registered(engine: Engine, settings: Settings, field: str) -> None:
    barrier = Barrier(6)
    same = {"email": "ana@example.com", "cpf": cpf(529982247)}[field]

    def register(number: int) -> bool:
        other = {"email": f"ana{number}@example.com", "cpf": cpf()} | {field: same}
        with engine.begin() as connection:
            barrier.wait()
            try:
                identity.insert_patient(connection, settings, a_patient(**other), "hash")
            except Exception:
                connection.rollback()
                return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(register, range(6))) == 1


def test_a_crm_that_is_taken_is_not_told_from_an_email_that_is(engine: Engine, settings: Settings) -> None:
    doctor_id = identity.register_doctor(engine, settings, a_doctor())
    refusals = []
    for known in (a_doctor(email="other@example.com"), a_doctor(crm=Crm("7", "", "SP"))):
        with pytest.raises(AlreadyRegistered) as refused:
            identity.register_doctor(engine, settings, known)
        refusals.append(refused.value.detail)
    assert len(set(refusals)) == 1
    with engine.connect() as connection:
        assert connection.execute(text("select person_id from notices")).scalars().all() == [doctor_id]


def test_a_doctor_gets_a_lane_for_life(engine: Engine, settings: Settings) -> None:
    doctor_id = identity.register_doctor(engine, replace(settings, lanes=7), a_doctor())
    with engine.connect() as connection:
        assert connection.execute(text("select lane from doctors")).scalar_one() == lane_of(doctor_id, 7)


def test_who_turns_18_today_needs_no_representative(engine: Engine, settings: Settings) -> None:
    today = date.today()  # noqa: DTZ011
    eighteen = today.replace(year=today.year - 18) - timedelta(days=1)
    identity.register_patient(engine, settings, a_patient(birth_date=eighteen))
    with pytest.raises(Invalid) as refused:
        identity.register_patient(engine, settings, a_patient(birth_date=eighteen + timedelta(days=3)))
    assert list(refused.value.errors) == ["representative"]


def test_nobody_represents_themselves(engine: Engine, settings: Settings) -> None:
    with pytest.raises(Invalid) as refused:
        identity.register_patient(engine, settings, a_patient(representative=Representative("Ana", cpf(529982247))))
    assert list(refused.value.errors) == ["representative.cpf"]


def test_a_right_password_is_hashed_anew_when_the_parameters_have_changed(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity.register_patient(engine, settings, a_patient())

    def account() -> identity.Account:
        with engine.connect() as connection:
            found = identity.account_of(connection, settings, Role.PATIENT, "ana@example.com")
        assert found is not None
        return found

    before = account()
    identity.keep_rehashed(engine, before, PASSWORD)
    assert account() == before
    monkeypatch.setattr(passwords, "needs_rehash", lambda _: True)
    identity.keep_rehashed(engine, before, PASSWORD)
    assert account().password_hash != before.password_hash
    assert passwords.verify_password(account().password_hash, PASSWORD)


def test_a_cpf_or_an_email_finds_its_account_and_nothing_else_does(engine: Engine, settings: Settings) -> None:
    patient_id = identity.register_patient(engine, settings, a_patient())
    staff_id = identity.create_staff(engine, settings, name="Célia", login="equipe@example.com", password=PASSWORD)

    def found(role: Role, login: str) -> UUID | None:
        with engine.connect() as connection:
            account = identity.account_of(connection, settings, role, login)
        return account and account.id

    assert found(Role.PATIENT, "529.982.247-25") == found(Role.PATIENT, "ANA@example.com") == patient_id
    assert found(Role.STAFF, "equipe@example.com") == staff_id
    for role, login in [
        (Role.STAFF, "529.982.247-25"),
        (Role.STAFF, "ana@example.com"),
        (Role.PATIENT, "equipe@example.com"),
        (Role.PATIENT, "ana"),
        (Role.PATIENT, "@"),
        (Role.PATIENT, "529982247250"),
    ]:
        assert found(role, login) is None


def test_a_change_that_is_refused_changes_nothing(engine: Engine, cache: Cache, settings: Settings) -> None:
    identity.register_patient(engine, settings, a_patient())
    other = identity.register_patient(engine, settings, a_patient(email="other@example.com", cpf=None))
    with pytest.raises(AlreadyRegistered), changing(engine, cache) as change:
        identity.change_patient(change, settings, other, {"name": "Outra", "cpf": cpf(529982247)})
    with engine.connect() as connection:
        account = identity.own_account(connection, settings, other)
    assert (account["name"], account["cpf_masked"]) == ("Ana Souza", None)


def test_a_sealed_account_cannot_be_moved_to_somebody_else(engine: Engine, settings: Settings) -> None:
    mine = identity.register_patient(engine, settings, a_patient())
    yours = identity.register_patient(engine, settings, a_patient(email="other@example.com", cpf=None))
    with engine.begin() as connection:
        connection.execute(
            text("update people set private = (select private from people where id = :mine) where id = :yours"),
            {"mine": mine, "yours": yours},
        )
    with engine.connect() as connection, pytest.raises(privacy.Unreadable):
        identity.own_account(connection, settings, yours)


def test_changes_of_an_account_are_written_down(engine: Engine, cache: Cache, settings: Settings) -> None:
    doctor_id = identity.register_doctor(engine, settings, a_doctor())
    with engine.begin() as connection:
        staff_id = add_person(connection, settings, Role.STAFF)
    from domain.inbox import Sender

    with changing(engine, cache) as change:
        identity.change_doctor(change, settings, doctor_id, {"price": 1})
        verification.decide(change, settings, Sender(staff_id, Role.STAFF), doctor_id, "verify", None)
    with engine.connect() as connection:
        rows = connection.execute(text("select actor_id, actor_role, action from audit order by position")).all()
    assert [tuple(row) for row in rows] == [
        (doctor_id, "doctor", "registered"),
        (doctor_id, "doctor", "profile_changed"),
        (staff_id, "staff", "verified"),
    ]


def test_audit_is_one_unbroken_chain_per_person_however_many_write_at_once(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        subjects = [add_person(connection, settings) for _ in range(3)]
        readers = [add_person(connection, settings, Role.DOCTOR) for _ in range(4)]

    def read_everybody(reader: UUID) -> None:
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            for _ in range(3):
                audit.ensure_read(connection, reader, Role.DOCTOR, reversed(subjects))
            audit.record(connection, subjects[0], reader, Role.DOCTOR, "touched", uuid7())

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read_everybody, readers))
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from audit")).scalar_one() == 3 * 4 + 4
        assert list(verify(connection, {})) == []


def test_reading_oneself_is_not_written_down(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        person_id = add_person(connection, settings)
        audit.ensure_read(connection, person_id, Role.PATIENT, [person_id])
        assert connection.execute(text("select count(*) from audit")).scalar_one() == 0
