"""Settings: what makes no sense is told before anything starts."""

from __future__ import annotations

import base64
import secrets

import pytest

from domain.settings import SettingsError, load


def random_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def random_password() -> str:
    return secrets.token_urlsafe(18)


ENOUGH = {
    "DATABASE_URL": f"postgresql://app:{random_password()}@database",
    "BROKER_URL": f"redis://:{random_password()}@broker",
    "CACHE_URL": f"redis://:{random_password()}@cache",
    "JWT_KEYS": f"a={random_key()}",
    "DATA_KEYS": f"a={random_key()},b={random_key()}",
    "HASH_KEY": random_key(),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMTP_URL", "127.0.0.1:25"),
        ("SMTP_URL", "http://127.0.0.1"),
        ("SMTP_URL", "smtp://"),
        ("SMTP_URL", "smtp://127.0.0.1:mail"),
        ("PUBLIC_URL", "healthmed.example"),
        ("PUBLIC_URL", "https:///path"),
        ("MAIL_FROM", "Health&Med"),
        ("MAIL_FROM", "Health&Med <agenda>"),
        ("HASH_KEY", "short"),
        ("PORT", "99999"),
        ("RATE_LIMITS", "maybe"),
        ("BOOKING_NOTICE_SECONDS", "3600"),
        ("DATABASE_URL", "mysql://database"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        load({**ENOUGH, name: value})


def test_one_wrong_setting_is_one_line() -> None:
    with pytest.raises(SettingsError) as told:
        load({**ENOUGH, "LOCAL_STACK": "on", "DATABASE_URL": "mysql://database"})
    assert str(told.value) == "DATABASE_URL: must begin with postgresql://"


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as told:
        load({})
    assert {line.split(":")[0] for line in str(told.value).splitlines()} >= set(ENOUGH)


@pytest.mark.parametrize("value", ["agenda@healthmed.example", "Health&Med <agenda@healthmed.example>"])
def test_mail_may_come_from_an_address_with_or_without_a_name(value: str) -> None:
    assert load({**ENOUGH, "MAIL_FROM": value}).mail_from == value


def test_outside_the_local_stack_what_operators_see_is_closed_unless_it_is_opened() -> None:
    settings = load(ENOUGH)
    assert (settings.public_docs, settings.public_metrics, settings.flower) == (False, False, False)
    local = load({**ENOUGH, "LOCAL_STACK": "on"})
    assert (local.public_docs, local.public_metrics, local.flower) == (True, True, True)
    assert load({**ENOUGH, "PUBLIC_METRICS": "on"}).public_metrics


WEAK = [
    ("JWT_KEYS", "a=" + base64.b64encode(bytes(32)).decode()),
    ("JWT_KEYS", "a=" + base64.b64encode(bytes(range(32))).decode()),
    ("DATA_KEYS", "a=" + base64.b64encode(b"j" * 32).decode()),
    ("HASH_KEY", base64.b64encode(b"correct horse battery staple 123").decode()),
    ("DATABASE_URL", "postgresql://app@database"),
    ("DATABASE_URL", "postgresql://app:postgres@database"),
    ("DATABASE_URL", "postgresql://healthmed_app:healthmed_app_123@database"),
    ("DATABASE_MIGRATION_URL", "postgresql://owner:owner@database"),
    ("DATABASE_REPLICA_URL", "postgresql://app:short@replica"),
    ("BROKER_URL", "redis://broker"),
    ("BROKER_URL", "redis://:aaaaaaaaaaaaaaaaaaaaaaaa@broker"),
    ("CACHE_URL", "redis://:changeme-changeme@cache"),
    ("FLOWER_BASIC_AUTH", "flower:flower"),
    ("FLOWER_BASIC_AUTH", "flower"),
]


@pytest.mark.parametrize(("name", "value"), WEAK)
def test_a_weak_secret_starts_nothing_but_a_local_stack(name: str, value: str) -> None:
    load({**ENOUGH, "LOCAL_STACK": "on", name: value})
    with pytest.raises(SettingsError, match=f"^{name}: ") as told:
        load({**ENOUGH, name: value})
    assert value not in str(told.value)
    assert value.rpartition(":")[2].partition("@")[0] not in str(told.value)


def test_one_secret_opens_one_thing() -> None:
    with pytest.raises(SettingsError, match=r"^HASH_KEY: must not be the same secret as in DATA_KEYS$"):
        load({**ENOUGH, "HASH_KEY": ENOUGH["DATA_KEYS"].split("b=")[1]})


def test_a_certificate_may_stand_for_a_password() -> None:
    load({**ENOUGH, "DATABASE_URL": "postgresql://app@database/healthmed?sslmode=verify-full&sslcert=/run/app.crt"})


def test_settings_show_no_secret_when_printed() -> None:
    shown = repr(load(ENOUGH))
    assert not any(value in shown for value in ENOUGH.values())


def test_what_was_given_makes_the_same_settings_elsewhere() -> None:
    loaded = load({**ENOUGH, "BOOKING_HORIZON_DAYS": " 30 ", "HOME": "/root", "LOG_LEVEL": ""})
    assert loaded.given.keys() == {*ENOUGH, "BOOKING_HORIZON_DAYS"}
    again = load(loaded.given)
    assert again.data_keys.keys == loaded.data_keys.keys
    assert (again.limits, again.given) == (loaded.limits, loaded.given)
