"""Log-ins that overlap a change of what they prove, and changes that overlap each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from uuid import UUID

import pyotp
import pytest
from sqlalchemy import Engine, text

from domain import credentials, identity, second_factor, sessions, tokens
from domain.cache import Cache, changing
from domain.database import connect
from domain.errors import NotAuthenticated, NotFound
from domain.identity import Account, NewPatient
from domain.links import InvalidLink
from domain.notices import Kind
from domain.settings import Settings
from tests import letterbox
from tests.factories import PASSWORD, password_hash

HOME = sessions.Origin("192.0.2.1", "a browser")


@pytest.fixture
def engine(settings: Settings, cache_server: object) -> Iterator[Engine]:
    engine = connect(settings.database_url, pool_size=8)
    yield engine
    engine.dispose()


@pytest.fixture
def cache(settings: Settings, engine: Engine) -> Cache:
    return Cache(settings, engine)


@pytest.fixture
def person_id(engine: Engine, settings: Settings) -> UUID:
    """A patient."""
    new = NewPatient(name="Ana Souza", email="ana@example.com", password=PASSWORD, birth_date=date(1990, 5, 17))
    with engine.begin() as connection:
        return identity.insert_patient(connection, settings, new, password_hash())


def account_of(engine: Engine, person_id: UUID) -> Account:
    with engine.connect() as connection:
        account = identity.account_of_person(connection, person_id)
    assert account is not None
    return account


def choose_password(engine: Engine, cache: Cache, person_id: UUID) -> None:
    with changing(engine, cache) as change:
        credentials.set_password(change, person_id, "another hash", session_id=None)


def turn_totp_on(engine: Engine, cache: Cache, settings: Settings, person_id: UUID) -> None:
    with engine.begin() as connection:
        made = credentials.enrol(connection, settings, person_id)
    with changing(engine, cache) as change:
        credentials.turn_totp_on(change, settings, person_id, pyotp.TOTP(made.secret).now(), session_id=person_id)


def open_sessions(engine: Engine, person_id: UUID) -> int:
    with engine.connect() as connection:
        count = text("select count(*) from sessions where person_id = :id and revoked_at is null")
        return int(connection.execute(count, {"id": person_id}).scalar_one())


def wait_until_one_waits(engine: Engine) -> None:
    waiting = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")
    deadline = time.monotonic() + 1.5
    while True:
        with engine.connect() as connection:
            if connection.execute(waiting).scalar_one():
                return
        assert time.monotonic() < deadline, "nothing waits"


def test_a_password_that_was_changed_since_it_was_checked_opens_nothing(
    engine: Engine, cache: Cache, settings: Settings, person_id: UUID
) -> None:
    checked = account_of(engine, person_id)
    choose_password(engine, cache, person_id)
    with pytest.raises(NotAuthenticated):
        credentials.log_in(engine, settings, checked, None, HOME)
    assert open_sessions(engine, person_id) == 0
    assert credentials.log_in(engine, settings, account_of(engine, person_id), None, HOME)


def test_a_second_factor_that_was_turned_on_since_is_asked_for(
    engine: Engine, cache: Cache, settings: Settings, person_id: UUID
) -> None:
    checked = account_of(engine, person_id)
    turn_totp_on(engine, cache, settings, person_id)
    with pytest.raises(second_factor.CodeRequired):
        credentials.log_in(engine, settings, checked, None, HOME)


@pytest.mark.parametrize("protect", ["password", "totp"])
def test_a_change_waits_for_a_log_in_under_way_and_ends_its_session(
    engine: Engine, cache: Cache, settings: Settings, person_id: UUID, protect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change: Callable[[], None] = (
        (lambda: choose_password(engine, cache, person_id))
        if protect == "password"
        else (lambda: turn_totp_on(engine, cache, settings, person_id))
    )
    checked = account_of(engine, person_id)
    open_session = sessions.open_session
    with ThreadPoolExecutor(1) as threads:
        changes = []

        def overtaken(*arguments: object) -> tokens.Pair:
            pair = open_session(*arguments)  # type: ignore[arg-type]
            changes.append(threads.submit(change))
            wait_until_one_waits(engine)
            return pair

        monkeypatch.setattr(sessions, "open_session", overtaken)
        credentials.log_in(engine, settings, checked, None, HOME)
        changes[0].result()
    assert open_sessions(engine, person_id) == 0


def test_links_of_one_person_that_are_used_at_once_hold_nobody_up(
    engine: Engine, cache: Cache, settings: Settings, person_id: UUID
) -> None:
    with engine.begin() as connection:
        for number in range(3):
            credentials.ask_for_email(connection, settings, person_id, f"novo{number}@example.com")
    for _ in range(3):
        credentials.forget_password(engine, settings, "ana@example.com")
    mailed = letterbox.mails(engine, settings)
    links = {letterbox.token(mail): mail["To"] for mail in mailed if "#token=" in mail.as_string()}
    assert len(links) == 6

    def use(token: str) -> bool:
        try:
            if links[token] == "Ana Souza <ana@example.com>":
                credentials.reset_password(engine, cache, settings, token, f"{token} senha")
            else:
                credentials.confirm_email(engine, settings, token)
        except InvalidLink:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert any(threads.map(use, links))


def test_nothing_of_an_erased_person_can_be_changed(engine: Engine, cache: Cache, settings: Settings, person_id: UUID) -> None:
    account = account_of(engine, person_id)
    with engine.begin() as connection:
        connection.execute(text("delete from person_keys where person_id = :id"), {"id": person_id})
        connection.execute(text("update people set status = 'erased', private = null where id = :id"), {"id": person_id})
    with pytest.raises(NotAuthenticated):
        credentials.log_in(engine, settings, account, None, HOME)
    with pytest.raises(NotFound):
        choose_password(engine, cache, person_id)
    with pytest.raises(NotFound), engine.begin() as connection:
        credentials.enrol(connection, settings, person_id)


def test_what_a_mail_says_is_gone_from_the_database_when_it_is_given_up(
    engine: Engine, settings: Settings, person_id: UUID
) -> None:
    credentials.forget_password(engine, settings, "ana@example.com")
    with engine.begin() as connection:
        connection.execute(text("update notices set created_at = created_at - interval '1 hour'"))
    assert letterbox.mails(engine, settings) == []
    with engine.connect() as connection:
        row = connection.execute(text("select kind, drop_reason, secret from notices")).one()
    assert tuple(row) == (Kind.PASSWORD_FORGOTTEN, "too_late", None)
