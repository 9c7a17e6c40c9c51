"""The crowd of a load test: people like all others, save that nobody knows a password of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, text

from domain import identity, tokens
from domain.cache import Cache
from domain.settings import Settings
from local import crowd
from local.servers import Broker
from local.servers import Cache as CacheServer
from tests.checks import violations


@pytest.fixture
def engine(settings: Settings, cache_server: CacheServer, broker: Broker) -> Iterator[Engine]:
    engine = create_engine(settings.database_url)
    yield engine
    engine.dispose()


def test_everybody_is_registered_logged_in_and_bookable(engine: Engine, settings: Settings) -> None:
    made = crowd.gather(engine, settings, doctors=3, patients=5, slots_a_day=3)
    assert [len(made.doctors), len(made.patients)] == [3, 5]
    cache = Cache(settings, engine)
    with engine.connect() as connection:
        for member in (*made.doctors, *made.patients):
            claims = tokens.read(settings.jwt_keys, member.token, tokens.Type.ACCESS)
            assert str(claims.person_id) == member.id
            session = text("select person_id from sessions where id = :id and revoked_at is null and expires_at > now()")
            assert connection.execute(session, {"id": claims.session_id}).scalar_one() == claims.person_id
            account = identity.account_of_person(connection, UUID(member.id))
            assert account is not None
            assert account.password_hash is None
        open_slots = text("select count(*) from slots where doctor_id = :id and status = 'open' and starts_at < now() + :week")
        for member in made.doctors:
            within = {"id": member.id, "week": "8 days"}
            assert 12 <= connection.execute(open_slots, within).scalar_one() <= 18
    cache.stop()
    assert violations(engine, settings) == []


def test_their_names_are_sealed(engine: Engine, settings: Settings) -> None:
    crowd.gather(engine, settings, doctors=0, patients=1)
    with engine.connect() as connection:
        private, wrapped, person_id = connection.execute(
            text("select private, wrapped, people.id from people join person_keys on person_id = people.id")
        ).one()
    assert b"Almeida" not in bytes(private)
    assert identity.opened(settings, person_id, bytes(wrapped), bytes(private))["name"] == "Ana Ramos Almeida"


def test_two_crowds_live_side_by_side(engine: Engine, settings: Settings) -> None:
    first, second = (crowd.gather(engine, settings, doctors=2, patients=2, slots_a_day=1) for _ in range(2))
    assert not {each.id for each in (*first.doctors, *first.patients)} & {each.id for each in (*second.doctors, *second.patients)}


def test_only_its_owner_reads_the_file(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    made = crowd.gather(engine, settings, doctors=1, patients=1, slots_a_day=1)
    file = tmp_path / "crowd.json"
    made.write(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert crowd.Crowd.read(file) == made


def test_there_is_no_crowd_where_people_are_real(engine: Engine, settings: Settings) -> None:
    with pytest.raises(RuntimeError, match="local stack only"):
        crowd.gather(engine, replace(settings, local_stack=False), doctors=1, patients=1)
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from people where role <> 'system'")).scalar_one() == 0
