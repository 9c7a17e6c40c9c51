"""Every setting there is: read from the environment, checked once at start-up, and listed here and nowhere else."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parseaddr
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from domain.privacy import KeyRing
from domain.schedule import Limits

SHORTEST_PASSWORD = 16
GIVEAWAYS = ("password", "changeme", "secret", "example", "default", "healthmed", "postgres", "redis")


class SettingsError(Exception):
    """The environment does not make a working configuration; the message has one line for each thing wrong."""


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The whole configuration. It holds secrets, so it has no repr."""

    local_stack: bool
    port: int
    public_url: str

    database_url: str
    database_replica_url: str | None
    database_migration_url: str
    broker_url: str
    cache_url: str
    smtp_url: str
    mail_from: str

    jwt_keys: KeyRing
    data_keys: KeyRing
    hash_key: bytes

    rate_limits: bool
    proxy_hops: int
    staff_totp: bool  # staff may do nothing but see to their own account until they have a second factor
    cors_origins: tuple[str, ...]
    public_docs: bool
    public_metrics: bool
    hot_reads: bool  # whether what is cached is answered in front of Flask
    flower: bool
    flower_login: str | None  # name:password, which Flower itself reads from the environment
    log_level: str
    heartbeat_file: Path | None  # touched by a worker or relay that lives, for a probe
    metrics_port: int | None  # where a worker or relay answers Prometheus; the API does so under /metrics
    traces_endpoint: str | None  # of an OpenTelemetry collector that takes OTLP over HTTP

    lanes: int
    lane_batch: int
    api_workers: int
    booking_workers: int
    limits: Limits

    given: Mapping[str, str]  # the variables that were set, by which another process comes to the same


def load(environ: Mapping[str, str]) -> Settings:
    """The settings that `environ` makes. Raises SettingsError that names everything wrong with it at once."""
    read = _Reader(environ)
    local = read.flag("LOCAL_STACK", False)
    port = read.number("PORT", 8000, 1, 65535)
    database_url = read.database("DATABASE_URL")
    limits = Limits(
        request_ttl=read.number("REQUEST_TTL_SECONDS", 86400, 1),
        request_lead=read.number("REQUEST_LEAD_SECONDS", 3600, 0),
        booking_notice=read.number("BOOKING_NOTICE_SECONDS", 7200, 0),
        booking_horizon_days=read.number("BOOKING_HORIZON_DAYS", 60, 1, 366),
        cancel_notice=read.number("CANCEL_NOTICE_SECONDS", 0, 0),
        max_open_requests=read.number("MAX_OPEN_REQUESTS", 10, 1),
        max_open_requests_per_doctor=read.number("MAX_OPEN_REQUESTS_PER_DOCTOR", 3, 1),
        reminders=read.numbers("REMINDER_SECONDS", (86400, 3600)),
        confirm_email=read.flag("CONFIRM_EMAIL", not local),
    )
    if limits.booking_notice <= limits.request_lead:
        read.wrong("BOOKING_NOTICE_SECONDS", "must exceed REQUEST_LEAD_SECONDS, else a request could lapse at once")
    settings = Settings(
        local_stack=local,
        port=port,
        public_url=read.address("PUBLIC_URL", f"http://127.0.0.1:{port}", "http", "https").rstrip("/"),
        database_url=database_url,
        database_replica_url=read.database("DATABASE_REPLICA_URL", "") or None,
        database_migration_url=read.database("DATABASE_MIGRATION_URL", "") or database_url,
        broker_url=read.text("BROKER_URL"),
        cache_url=read.text("CACHE_URL"),
        smtp_url=read.address("SMTP_URL", "smtp://127.0.0.1:25", "smtp", "smtps"),
        mail_from=read.mailbox("MAIL_FROM", "Health&Med <agenda@healthmed.example>"),
        jwt_keys=read.key_ring("JWT_KEYS"),
        data_keys=read.key_ring("DATA_KEYS"),
        hash_key=read.key("HASH_KEY"),
        rate_limits=read.flag("RATE_LIMITS", True),
        proxy_hops=read.number("PROXY_HOPS", 0, 0, 10),
        staff_totp=read.flag("STAFF_TOTP", not local),
        cors_origins=tuple(origin.strip() for origin in read.text("CORS_ORIGINS", "").split(",") if origin.strip()),
        public_docs=read.flag("PUBLIC_DOCS", local),
        public_metrics=read.flag("PUBLIC_METRICS", local),
        hot_reads=read.flag("HOT_READS", True),
        flower=read.flag("FLOWER", local),
        flower_login=read.text("FLOWER_BASIC_AUTH", "") or None,
        log_level=read.text("LOG_LEVEL", "INFO").upper(),
        heartbeat_file=Path(heartbeat) if (heartbeat := read.text("HEARTBEAT_FILE", "")) else None,
        metrics_port=read.number("METRICS_PORT", 0, 0, 65535) or None,
        traces_endpoint=read.optional_address("OTEL_EXPORTER_OTLP_ENDPOINT", "http", "https"),
        lanes=read.number("LANES", 64, 1, 4096),
        lane_batch=read.number("LANE_BATCH", 200, 1, 1000),
        api_workers=read.number("API_WORKERS", os.cpu_count() or 2, 1, 64),
        booking_workers=read.number("BOOKING_WORKERS", os.cpu_count() or 2, 1, 64),
        limits=limits,
        given=read.given,
    )
    if not local:
        _refuse_weak_secrets(settings, read)
    if read.problems:
        raise SettingsError("\n".join(read.problems))
    return settings


@cache
def current() -> Settings:
    """The settings of this process's environment, read once."""
    return load(os.environ)


def _refuse_weak_secrets(settings: Settings, read: _Reader) -> None:
    """Name every secret that could be guessed, or that opens more than one thing."""
    keys: dict[bytes, str] = {}
    named = [("JWT_KEYS", settings.jwt_keys.keys.values()), ("DATA_KEYS", settings.data_keys.keys.values())]
    for name, values in (*named, ("HASH_KEY", [settings.hash_key])):
        for key in filter(None, values):
            # Of 32 random bytes 30 are different on average, and half are such as no keyboard has.
            if len(set(key)) < 16 or all(byte < 128 for byte in key):
                read.wrong(name, "is no random key: make one with `openssl rand -base64 32`")
            elif keys.setdefault(key, name) != name:
                read.wrong(name, f"must not be the same secret as in {keys[key]}")
    urls = {
        "DATABASE_URL": settings.database_url,
        "DATABASE_REPLICA_URL": settings.database_replica_url,
        "DATABASE_MIGRATION_URL": settings.database_migration_url,
        "BROKER_URL": settings.broker_url,
        "CACHE_URL": settings.cache_url,
    }
    for name, url in urls.items():
        if url and "sslcert=" not in url and (url != settings.database_url or name == "DATABASE_URL"):
            login = urlsplit(url)
            read.strong(name, login.username or "", login.password or "")
    if settings.flower_login is not None:
        user, _, password = settings.flower_login.partition(":")
        read.strong("FLOWER_BASIC_AUTH", user, password)


class _Reader:
    """Reads one variable at a time and remembers what was wrong, so that all of it can be told at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.given: dict[str, str] = {}
        self.problems: list[str] = []

    def wrong(self, name: str, why: str) -> None:
        self.problems.append(f"{name}: {why}")

    def strong(self, name: str, user: str, password: str) -> None:
        """Ask for a password that nobody knows from a manual, and nobody guesses."""
        known = any(word and word in password.lower() for word in (user.lower(), *GIVEAWAYS))
        if len(password) < SHORTEST_PASSWORD or len(set(password)) < SHORTEST_PASSWORD // 2 or known:
            self.wrong(name, f"needs a password of {SHORTEST_PASSWORD} random characters or more")

    def text(self, name: str, default: str | None = None) -> str:
        value = self._environ.get(name, "").strip()
        if value:
            self.given[name] = value
            return value
        if default is None:
            self.wrong(name, "is required and not set")
            return ""
        return default

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name, "on" if default else "off").lower()
        if value not in ("on", "off"):
            self.wrong(name, f"must be 'on' or 'off', not {value!r}")
        return value == "on"

    def number(self, name: str, default: int, least: int, most: int = 2**31 - 1) -> int:
        value = self.text(name, str(default))
        if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
            self.wrong(name, f"must be a whole number from {least} to {most}, not {value!r}")
            return default
        return int(value)

    def numbers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.text(name, ",".join(map(str, default)))
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            self.wrong(name, f"must be whole numbers separated by commas, not {value!r}")
            return default
        return tuple(sorted({int(part) for part in parts}, reverse=True))

    def database(self, name: str, default: str | None = None) -> str:
        """A database's address, as SQLAlchemy wants it: 2.1 reads a bare postgresql:// as psycopg 3."""
        value = self.text(name, default)
        for prefix in ("postgresql://", "postgres://"):
            if value.startswith(prefix):
                return "postgresql+psycopg2://" + value.removeprefix(prefix)
        if value and not value.startswith("postgresql+psycopg2://"):
            self.wrong(name, "must begin with postgresql://")
        return value

    def key_ring(self, name: str) -> KeyRing:
        """Named secrets, as `id=base64,id=base64`."""
        value = self.text(name)
        try:
            return KeyRing.parse(value)
        except ValueError as error:
            if value:
                self.wrong(name, str(error))
            return KeyRing("", {})

    def address(self, name: str, default: str, *schemes: str) -> str:
        """A URL of one of these schemes that names a host, and a port or none."""
        value = self.text(name, default)
        try:
            parts = urlsplit(value)
            sound = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            self.wrong(name, f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}, and name a host")
        return value

    def optional_address(self, name: str, *schemes: str) -> str | None:
        """A URL as in `address`, or none."""
        return self.address(name, "", *schemes) if self._environ.get(name, "").strip() else None

    def mailbox(self, name: str, default: str) -> str:
        """An address with a name before it or none, as in `Health&Med <agenda@healthmed.example>`."""
        value = self.text(name, default)
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", parseaddr(value)[1]):
            self.wrong(name, "must be an e-mail address")
        return value

    def key(self, name: str) -> bytes:
        """A secret of 32 bytes, in base64."""
        try:
            value = base64.b64decode(self.text(name), validate=True)
        except ValueError:
            value = b""
        if len(value) != 32 and not any(problem.startswith(name) for problem in self.problems):
            self.wrong(name, "must be 32 bytes in base64")
        return value
