"""What each table holds about people, column by column: what an export tells, and what an erasure leaves nothing of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from domain import privacy
from domain.errors import NotFound
from domain.identifiers import Crm
from domain.model import Base
from domain.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One table. Each of its columns stands in exactly one of the lists, names separated by blanks.

    `whose` finds the rows about `:person`; `own` tells which of them are sealed under that person's key, each value bound to
    `context` and to the id in the column `row`.
    """

    whose: str | None = None
    own: str = "true"
    ids: str = ""  # of people and things: told, and kept when the person is erased, since they name nobody any more
    told: str = ""  # about the person, in the clear: told, and kept as the ids are
    texts: str = ""  # sealed texts: told opened, emptied when the person is erased
    documents: str = ""  # sealed JSON: likewise
    hidden: str = ""  # hashes and secrets: never told, emptied when the person is erased
    kept: str = ""  # kept by law and restricted: neither told nor emptied
    plain: str = ""  # about nobody
    row: str = "id"
    context: str = "{table}.{column}"
    goes: bool = False  # an erasure deletes the rows
    append_only: bool = False  # nothing can be emptied: what is sealed there is lost with its key

    @property
    def exported(self) -> list[str]:
        """The columns that the person is told."""
        return f"{self.ids} {self.told} {self.texts} {self.documents}".split()

    @property
    def emptied(self) -> list[str]:
        """The columns in which an erasure leaves nothing."""
        return f"{self.texts} {self.documents} {self.hidden}".split()

    @property
    def columns(self) -> list[str]:
        """Every column, as often as it is named."""
        return [*self.exported, *f"{self.hidden} {self.kept} {self.plain}".split()]


_OF_APPOINTMENT = "(patient_id = :person or doctor_id = :person)"

# What is archived stands behind what it was: an erasure that waited for the relay finds it there.
HOLDINGS: Final[Mapping[str, Holding]] = MappingProxyType(
    {
        "people": Holding(
            whose="id = :person",
            ids="id",
            told="role status language timezone created_at email_confirmed_at password_changed_at",
            documents="private",
            hidden="email_hash cpf_hash password_hash",
        ),
        "person_keys": Holding(whose="person_id = :person", ids="person_id", hidden="wrapped", goes=True),
        "doctors": Holding(
            whose="id = :person",
            ids="id",
            told="status name crm_number crm_suffix crm_state bio price currency timezone pending verified_at",
            texts="verification_reason",
            plain="lane search_name verified_by",
        ),
        "doctor_specialties": Holding(whose="doctor_id = :person", ids="doctor_id", told="code rqe"),
        "availabilities": Holding(
            whose="doctor_id = :person",
            ids="doctor_id",
            told="rules exceptions",
            documents="reasons",
            plain="extended_on",
            row="doctor_id",
        ),
        "slots": Holding(plain="id doctor_id during starts_at ends_at status held extra price"),  # made of the availability
        "appointments": Holding(
            whose=_OF_APPOINTMENT,
            own="patient_id = :person",
            ids="id slot_id doctor_id patient_id",
            told="starts_at ends_at status price currency requested_at expires_at decided_at reschedules refusal_kind",
            texts="notes reason join_url",
            plain="during active sequence history_length history_hash",
        ),
        "history": Holding(
            whose=f"appointment_id in (select id from appointments where {_OF_APPOINTMENT})",
            own="appointment_id in (select id from appointments where patient_id = :person)",
            ids="appointment_id actor_id command_id",
            told="position status at by",
            texts="reason",
            plain="hash",
            row="appointment_id",
            context="history.reason.{position}",
            append_only=True,
        ),
        "commands": Holding(
            whose="actor_id = :person",
            ids="id doctor_id slot_id appointment_id actor_id",
            told="kind actor_role payload deadline day status received_at decided_at result error_code error_detail",
            documents="secret",
            hidden="request_hash",
            plain="seq lane key_hash request_id attempts batch_id",
        ),
        "archived_commands": Holding(
            whose="actor_id = :person",
            ids="id doctor_id slot_id appointment_id actor_id",
            told="kind actor_role status received_at decided_at result error_code error_detail",
            hidden="request_hash",
            plain="seq key_hash request_id",
        ),
        "notices": Holding(
            whose="person_id = :person",
            ids="id person_id appointment_id command_id",
            told="kind due_at during created_at sent_at dropped_at drop_reason read_at",
            hidden="secret",
            plain="sequence request_id next_try_at claimed_until attempts",
        ),
        "archived_notices": Holding(
            whose="person_id = :person",
            ids="id person_id appointment_id command_id",
            told="kind due_at during created_at sent_at dropped_at drop_reason read_at",
            plain="attempts",
        ),
        "sessions": Holding(
            whose="person_id = :person",
            ids="id person_id",
            told="created_at refreshed_at expires_at revoked_at",
            documents="origin",
            hidden="address_hash",
            plain="refresh_id previous_refresh_id",
        ),
        "links": Holding(
            whose="person_id = :person",
            ids="id person_id",
            told="kind expires_at",
            texts="email",
            hidden="token_hash",
            goes=True,
        ),
        "calendar_links": Holding(
            whose="person_id = :person", ids="person_id", told="created_at", hidden="token_hash", goes=True
        ),
        "second_factors": Holding(
            whose="person_id = :person", ids="person_id", told="confirmed_at", hidden="secret", plain="last_step", goes=True
        ),
        "recovery_codes": Holding(whose="person_id = :person", ids="person_id", hidden="hash", goes=True),
        "consents": Holding(whose="person_id = :person", ids="id person_id", told="kind version text_hash given_at withdrawn_at"),
        "corrections": Holding(whose="person_id = :person", ids="id person_id actor_id", told="field at", texts="reason"),
        "audit": Holding(
            whose="subject_id = :person",
            ids="subject_id actor_id about",
            told="actor_role action at",
            plain="id position hour hash",
            append_only=True,
        ),
        "retained": Holding(
            whose="person_id = :person", ids="appointment_id person_id", told="retained_at", kept="wrapped document"
        ),
        "batches": Holding(plain="id scopes created_at finished_at"),
        "cache": Holding(plain="id epoch in_use changed_at"),
        "roots": Holding(plain="position until entries root"),
    }
)


def key_of(connection: Connection, settings: Settings, person_id: UUID, *, held: bool = False) -> bytes | None:
    """A person's data key; None of one who was erased. While the transaction lasts a `held` one can't be destroyed."""
    lock = "for key share" if held else ""
    wrapped = connection.execute(
        text(f"select wrapped from person_keys where person_id = :person {lock}"), {"person": person_id}
    ).scalar_one_or_none()
    return None if wrapped is None else privacy.unwrap(settings.data_keys, person_id, bytes(wrapped))


def export(connection: Connection, settings: Settings, person_id: UUID) -> dict[str, list[dict[str, Any]]]:
    """Everything held about a person, by table, with what is sealed under their key opened. Raises NotFound.

    What a doctor wrote about patients stands in the patients' records, and is told to those.
    """
    key = key_of(connection, settings, person_id)
    if key is None:
        raise NotFound
    return {
        table: list(_told(connection, table, holding, person_id, key))
        for table, holding in HOLDINGS.items()
        if holding.whose is not None and (holding.told or holding.texts or holding.documents)
    }


def empty(connection: Connection, person_id: UUID) -> None:
    """Leave nothing in the database that could still be opened, looked up or used, the key least of all."""
    for table, holding in HOLDINGS.items():
        if holding.whose is None or holding.append_only:
            continue
        where = f"where {holding.whose} and {holding.own}"
        if holding.goes:
            connection.execute(text(f"delete from {table} {where}"), {"person": person_id})
        elif holding.emptied:
            nothing = ", ".join(f"{column} = null" for column in holding.emptied)
            connection.execute(text(f"update {table} set {nothing} {where}"), {"person": person_id})


def accesses(connection: Connection, person_id: UUID, *, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
    """One page of who read or changed a person's data, newest first, and how many entries there are. Only doctors are named."""
    rows = connection.execute(_ACCESSES, {"person": person_id, "limit": limit, "offset": offset}).all()
    total: int = connection.execute(_ENTRIES, {"person": person_id}).scalar_one()
    return [
        {
            "at": row.at,
            "action": row.action,
            "by": row.actor_role,
            **(
                {"doctor": {"id": row.actor_id, "name": row.name, "crm": str(Crm(row.crm_number, row.crm_suffix, row.crm_state))}}
                if row.name is not None
                else {}
            ),
        }
        for row in rows
    ], total


# A person's entries are numbered without a gap, so that nobody needs to count them.
_ENTRIES = text("select coalesce(max(position), 0) from audit where subject_id = :person")
_ACCESSES = text(
    """
    select at, action, actor_role, actor_id, name, crm_number, crm_suffix, crm_state
    from audit left join doctors on doctors.id = actor_id
    where subject_id = :person order by position desc limit :limit offset :offset
    """
)


def _told(connection: Connection, table: str, holding: Holding, person_id: UUID, key: bytes) -> Iterator[dict[str, Any]]:
    in_order = ", ".join(column.name for column in Base.metadata.tables[table].primary_key)
    rows = connection.execute(
        text(
            f"select {', '.join(holding.exported)}, {holding.own} as own from {table} where {holding.whose} order by {in_order}"
        ),
        {"person": person_id},
    ).mappings()
    for row in rows:
        told = {column: _plain(row[column]) for column in f"{holding.ids} {holding.told}".split()}
        for column in f"{holding.texts} {holding.documents}".split() if row["own"] else ():
            told[column] = None
            if row[column] is not None:
                context = holding.context.format(table=table, column=column, **row)
                opened = privacy.open_sealed(key, bytes(row[column]), context=context, row_id=row[holding.row])
                told[column] = json.loads(opened) if column in holding.documents.split() else opened
        yield told


def _plain(value: Any) -> Any:
    match value:
        case datetime() | date():
            return value.isoformat()
        case UUID():
            return str(value)
        case bytes() | memoryview():
            return bytes(value).hex()
        case _ if hasattr(value, "upper_inc"):
            return {"starts_at": _plain(value.lower), "ends_at": _plain(value.upper)}
    return value
