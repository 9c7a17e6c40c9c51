"""Staff verify doctors: nobody sees a doctor, or a name or specialty that is new, before they have."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import IntegrityError

from domain import audit, inbox, privacy
from domain.answers import COUNTED
from domain.cache import Change
from domain.errors import Conflict, NotFound
from domain.identifiers import Malformed, name_key
from domain.identity import (
    REASON,
    AlreadyRegistered,
    RegisteredSpecialty,
    doctor_fields,
    lock_doctor,
    person,
    rename_doctor,
    touch_doctor,
    write_specialties,
)
from domain.schedule import Role
from domain.settings import Settings


def decide(
    change: Change, settings: Settings, staff: inbox.Sender, doctor_id: UUID, decision: str, reason: str | None
) -> int | None:
    """Let staff `verify`, `reject` or `suspend` a doctor; returns the lane to wake, if commands were sent.

    Verifying applies what was waiting for it. Rejecting a verified doctor only drops what was waiting. Suspending refuses and
    cancels what is to come, one command each. Raises NotFound, Conflict for a step that makes no sense, and AlreadyRegistered
    if somebody else holds a rejected doctor's CRM by now.
    """
    connection = change.connection
    lock_doctor(connection, doctor_id)
    row = person(connection, doctor_id)
    if row.role != Role.DOCTOR:
        raise NotFound
    status = _STEPS.get((decision, row.doctor_status))
    if status is None or (decision == "reject" and status == "verified" and not row.pending):
        raise Conflict
    pending = row.pending or {}
    if decision == "verify":
        if "name" in pending:
            rename_doctor(change, settings, row, pending["name"])
        if "specialties" in pending:
            write_specialties(connection, doctor_id, [RegisteredSpecialty(**each) for each in pending["specialties"]])
    key = privacy.unwrap(settings.data_keys, doctor_id, bytes(row.wrapped))
    try:
        connection.execute(
            text(
                """
                update doctors set status = :status, verified_by = :staff_id, verified_at = clock_timestamp(),
                                   verification_reason = :reason,
                                   pending = case when :decision = 'suspend' then pending end
                where id = :id
                """
            ),
            {
                "id": doctor_id,
                "status": status,
                "staff_id": staff.id,
                "reason": reason and privacy.seal(key, reason, context=REASON, row_id=doctor_id),
                "decision": decision,
            },
        )
    except IntegrityError:
        raise AlreadyRegistered from None
    audit.record(connection, doctor_id, staff.id, staff.role, _DONE[decision])
    touch_doctor(change, doctor_id)
    if decision != "suspend":
        return None
    return inbox.send_suspension(connection, settings, staff, doctor_id, _SUSPENDED)


def doctor_for_staff(connection: Connection, doctor_id: UUID) -> dict[str, Any]:
    """A doctor as staff sees them when verifying. Raises NotFound."""
    row = connection.execute(text(f"{_STAFF_VIEW} where doctors.id = :id"), {"id": doctor_id}).one_or_none()
    if row is None:
        raise NotFound
    return _staff_fields(row)


def doctors_for_staff(
    connection: Connection, *, status: str | None, q: str | None, page: int, page_size: int
) -> tuple[list[dict[str, Any]], int]:
    """One page of the doctors, those who wait longest first, and how many there are, as far as is counted.

    `q` is found anywhere in the name.
    """
    condition = "where (cast(:status as text) is null or doctors.status = :status) and search_name like :pattern"
    escaped = _searchable(q or "").replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    parameters = {"status": status, "pattern": f"%{escaped}%"}
    rows = connection.execute(
        text(f"{_STAFF_VIEW} {condition} order by doctors.id limit :limit offset :offset"),
        {**parameters, "limit": page_size, "offset": (page - 1) * page_size},
    ).all()
    counted = text(f"select count(*) from (select from doctors {condition} limit {COUNTED}) as counted")
    total = connection.execute(counted, parameters).scalar_one()
    return [_staff_fields(row) for row in rows], total


_SUSPENDED = "O médico deixou de atender pela Health&Med. / The doctor no longer sees patients through Health&Med."

# What each decision of staff makes of a doctor's status; what is not here makes no sense.
_STEPS: Final[Mapping[tuple[str, str], str]] = {
    ("verify", "pending_verification"): "verified",
    ("verify", "verified"): "verified",
    ("verify", "suspended"): "verified",
    ("verify", "rejected"): "verified",
    ("reject", "pending_verification"): "rejected",
    ("reject", "verified"): "verified",  # only what waits for verification is rejected
    ("reject", "suspended"): "rejected",
    ("reject", "rejected"): "rejected",
    ("suspend", "verified"): "suspended",
    ("suspend", "suspended"): "suspended",
}
_DONE: Final = {"verify": "verified", "reject": "rejected", "suspend": "suspended"}

_STAFF_VIEW = """
    select doctors.id, doctors.name as doctor_name, doctors.status as doctor_status, crm_number, crm_suffix, crm_state, bio,
           price, currency, doctors.timezone, pending, verified_at, people.created_at,
           (select json_agg(json_build_object('code', code, 'rqe', rqe) order by code)
            from doctor_specialties where doctor_id = doctors.id) as specialties
    from doctors join people using (id)
"""


def _staff_fields(row: Row[Any]) -> dict[str, Any]:
    return {"id": row.id, **doctor_fields(row), "created_at": row.created_at}


def _searchable(q: str) -> str:
    try:
        return name_key(q)
    except Malformed:
        return unicodedata.normalize("NFKD", q).casefold()
