"""Settings: what makes no sense is told before anything starts."""

from __future__ import annotations

import pytest

from domain.settings import SettingsError, load

KEY = "A" * 43 + "="
ENOUGH = {
    "DATABASE_URL": "postgresql://database",
    "BROKER_URL": "redis://broker",
    "CACHE_URL": "redis://cache",
    "JWT_KEYS": f"a={KEY}",
    "DATA_KEYS": f"a={KEY}",
    "HASH_KEY": KEY,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMTP_URL", "127.0.0.1:25"),
        ("SMTP_URL", "http://127.0.0.1"),
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


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as told:
        load({})
    assert {line.split(":")[0] for line in str(told.value).splitlines()} >= set(ENOUGH)


@pytest.mark.parametrize("value", ["agenda@healthmed.example", "Health&Med <agenda@healthmed.example>"])
def test_mail_may_come_from_an_address_with_or_without_a_name(value: str) -> None:
    assert load({**ENOUGH, "MAIL_FROM": value}).mail_from == value
