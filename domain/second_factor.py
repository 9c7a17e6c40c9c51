"""The second factor: codes of an app (TOTP, RFC 6238), each good once, and ten codes for the day on which the app is lost."""

from __future__ import annotations

import base64
import hmac
import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import pyotp
from sqlalchemy import Connection, Row, text

from domain import personal, privacy
from domain.errors import Conflict, NotAuthenticated, NotFound
from domain.settings import Settings

ISSUER: Final = "Health&Med"
SECRET: Final = "second_factors.secret"  # the context under which the secret of somebody's codes is sealed
STEP_SECONDS: Final = 30
RECOVERY_CODES: Final = 10
LONGEST_CODE: Final = 19  # a recovery code with its three dashes

_RECOVERY_BYTES = 10  # ASVS 5.0, 6.5.2 and 6.5.4: so random a code needs no slow hash


class CodeRequired(NotAuthenticated):
    """Informe o código do seu aplicativo. / Give the code from your app."""

    code = "otp_required"


class WrongCode(NotAuthenticated):
    """Código incorreto ou já usado. / Wrong code, or one that was used already."""

    code = "invalid_otp"


class AlreadyOn(Conflict):
    """A verificação em duas etapas já está ativa. / Two-step verification is on already."""

    code = "totp_on"


class NotOn(Conflict):
    """A verificação em duas etapas não foi ativada. / Two-step verification has not been turned on."""

    code = "totp_off"


@dataclass(frozen=True, slots=True, repr=False)
class Enrolment:
    """What somebody's app is to be told, by hand or as a picture of the URL."""

    secret: str
    url: str


def enrol(connection: Connection, settings: Settings, person_id: UUID, name: str) -> Enrolment:
    """Make a secret for somebody's app, where they go by `name`; one that was never confirmed is replaced.

    Raises AlreadyOn, and NotFound for somebody who was erased.
    """
    secret = pyotp.random_base32()
    key = personal.key_of(connection, settings, person_id)
    if key is None:
        raise NotFound
    stored = connection.execute(
        text(
            """
            insert into second_factors (person_id, secret) values (:id, :secret)
            on conflict (person_id) do update set secret = excluded.secret where second_factors.confirmed_at is null
            """
        ),
        {"id": person_id, "secret": privacy.seal(key, secret, context=SECRET, row_id=person_id)},
    )
    if not stored.rowcount:
        raise AlreadyOn
    return Enrolment(secret, pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=ISSUER))


def confirm(connection: Connection, settings: Settings, person_id: UUID, code: str) -> list[str]:
    """Ask for codes from now on, since the app makes right ones; returns the recovery codes, which are told this once.

    Raises AlreadyOn, NotOn if nothing waits to be confirmed, and WrongCode.
    """
    row = _factor(connection, person_id)
    if row is None:
        raise NotOn
    if row.confirmed_at is not None:
        raise AlreadyOn
    if not _use(connection, settings, row, code):
        raise WrongCode
    connection.execute(
        text("update second_factors set confirmed_at = clock_timestamp() where person_id = :id"), {"id": person_id}
    )
    codes = [base64.b32encode(os.urandom(_RECOVERY_BYTES)).decode() for _ in range(RECOVERY_CODES)]
    connection.execute(
        text("insert into recovery_codes (person_id, hash) values (:id, :hash)"),
        [{"id": person_id, "hash": _recovery_hash(settings, person_id, each)} for each in codes],
    )
    return ["-".join(each[place : place + 4] for place in range(0, len(each), 4)) for each in codes]


def check(connection: Connection, settings: Settings, person_id: UUID, code: str | None) -> None:
    """Use up the code of somebody who has a second factor. Raises CodeRequired without one, and WrongCode."""
    row = _factor(connection, person_id)
    if row is None or row.confirmed_at is None:
        return
    if code is None:
        raise CodeRequired
    if not _use(connection, settings, row, code) and not _recover(connection, settings, person_id, code):
        raise WrongCode


def remove(connection: Connection, person_id: UUID) -> None:
    """Ask for codes no more. Raises NotOn."""
    connection.execute(text("delete from recovery_codes where person_id = :id"), {"id": person_id})
    removed = connection.execute(
        text("delete from second_factors where person_id = :id and confirmed_at is not null"), {"id": person_id}
    )
    if not removed.rowcount:
        raise NotOn


def _factor(connection: Connection, person_id: UUID) -> Row[Any] | None:
    return connection.execute(
        text(
            """
            select person_id, secret, last_step, confirmed_at, wrapped, clock_timestamp() as now
            from second_factors join person_keys using (person_id) where person_id = :id
            """
        ),
        {"id": person_id},
    ).one_or_none()


def _use(connection: Connection, settings: Settings, row: Row[Any], code: str) -> bool:
    """Use up a code of the app. Of two who bring the same one at once, the second finds it used."""
    key = privacy.unwrap(settings.data_keys, row.person_id, bytes(row.wrapped))
    secret = privacy.open_sealed(key, bytes(row.secret), context=SECRET, row_id=row.person_id)
    step = _step(secret, _plain(code), row.now)
    if step is None:
        return False
    used = connection.execute(
        text("update second_factors set last_step = :step where person_id = :id and last_step < :step"),
        {"id": row.person_id, "step": step},
    )
    return bool(used.rowcount)


def _step(secret: str, code: str, now: datetime) -> int | None:
    """The step whose code this is: the present one, or one beside it, since clocks are never quite right (RFC 6238, 5.2)."""
    totp, present = pyotp.TOTP(secret), int(now.timestamp()) // STEP_SECONDS
    steps = (present, present - 1, present + 1)
    return next((step for step in steps if hmac.compare_digest(totp.generate_otp(step).encode(), code.encode())), None)


def _recover(connection: Connection, settings: Settings, person_id: UUID, code: str) -> bool:
    used = connection.execute(
        text("delete from recovery_codes where person_id = :id and hash = :hash"),
        {"id": person_id, "hash": _recovery_hash(settings, person_id, _plain(code))},
    )
    return bool(used.rowcount)


def _recovery_hash(settings: Settings, person_id: UUID, code: str) -> bytes:
    return privacy.look_up_hash(settings.hash_key, "recovery_code", f"{person_id}\0{code}")


def _plain(code: str) -> str:
    """A code without what people write it with."""
    return code.replace("-", "").replace(" ", "").upper()
