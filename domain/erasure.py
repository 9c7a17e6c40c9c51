"""Erasing a patient: what must be cancelled first, what the law keeps and under which key, and the end of all the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from domain import audit, inbox, personal, privacy
from domain.booking import Rejection
from domain.cache import Change
from domain.commands import Erase
from domain.inbox import PARKED, SYSTEM, Sender, lane_of
from domain.projections import scopes_showing
from domain.retention import YEARS
from domain.schedule import Role
from domain.sessions import scope as session_scope
from domain.settings import Settings
from domain.tokens import ACCESS_LIFE

DOCUMENT: Final = "retained.document"  # the context under which a retained document is sealed
CANCELLATIONS: Final = 3  # of one appointment, all rejected, after which the erasure fails
MOST_CANCELLED: Final = 100  # appointments at once; the erasure comes back for more


class Stuck(Exception):
    """An appointment to come can't be cancelled, and its patient not be erased before it is."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far an erasure has come: its outcome (None while it waits for other lanes), and the scopes that it touched."""

    outcome: Mapping[str, Any] | None
    scopes: Sequence[str]


def erase(connection: Connection, settings: Settings, command: Row[Any]) -> Step:
    """Take an erasure as far as it goes now, in the transaction of its batch, which holds the person's row.

    First the account closes and what is to come is cancelled, one command each, in its own lane. While anything of the person's
    is still undecided the command is parked, and the relay comes back to it. Then the key is destroyed. Raises Stuck.
    """
    person_id, command_id = command.actor_id, command.id
    parameters = {"person": person_id, "command": command_id}
    if command.actor_status == "erased" or connection.execute(_ANOTHER, parameters).scalar_one():
        no = Rejection("account_closed")
        rejected = {"id": str(command_id), "status": "rejected", "error_code": no.code, "error_detail": no.detail}
        return Step(rejected, [f"command:{command_id}"])
    scopes = _close(connection, person_id, command.payload.get("session_id"))
    parameters |= {"system": SYSTEM, "request_id": command.request_id}
    if connection.execute(_STUCK, {**parameters, "attempts": CANCELLATIONS}).scalar_one():
        raise Stuck
    connection.execute(_CANCEL, {**parameters, "most": MOST_CANCELLED})
    if connection.execute(_WAITS, parameters).scalar_one():
        connection.execute(text("update commands set lane = :lane where id = :command"), {**parameters, "lane": PARKED})
        return Step(None, scopes)
    result = _end(connection, settings, command)
    # Who logged in since the account closed, by the status they read before, held the key: they are here by now.
    scopes += _end_sessions(connection, person_id, command.payload.get("session_id"))
    scopes += [f"command:{command_id}", *scopes_showing(connection, person_id)]
    return Step({"id": str(command_id), "status": "succeeded", "result": result}, scopes)


def resume(connection: Connection, settings: Settings) -> list[int]:
    """Send the erasures that need not wait any more back to their lanes; returns those, to be woken."""
    lanes = []
    for row in connection.execute(_READY, {"parked": PARKED}).all():
        lane = lane_of(row.actor_id, settings.lanes)
        connection.execute(text("update commands set lane = :lane where id = :id"), {"id": row.id, "lane": lane})
        lanes.append(lane)
    return lanes


def tombstones(connection: Connection) -> list[UUID]:
    """Everybody who was erased. Kept outside the database, the list tells after a restore whom to erase again."""
    return list(connection.execute(text("select id from people where status = 'erased' order by id")).scalars())


def bury(change: Change, settings: Settings, person_ids: Iterable[UUID]) -> list[int]:
    """After a restore, close the accounts of those who had been erased, and have them erased again; returns the lanes to wake."""
    lanes = []
    for person_id in person_ids:
        closed = change.connection.execute(_BURY, {"person": person_id}).one_or_none()
        if closed is None:  # not restored, or erased already, or about to be
            continue
        change.touch(*_end_sessions(change.connection, person_id, None))
        lanes.append(inbox.send(change.connection, settings, Sender(person_id, Role.PATIENT), Erase()).lane)
    return lanes


def reveal(connection: Connection, settings: Settings, appointment_id: UUID) -> dict[str, Any] | None:
    """What the law keeps of an erased patient's consultation, for whoever the law entitles to it; the reading is written down."""
    row = connection.execute(
        text("select person_id, wrapped, document from retained where appointment_id = :id"), {"id": appointment_id}
    ).one_or_none()
    if row is None:
        return None
    audit.record(connection, row.person_id, SYSTEM, Role.SYSTEM, "retained_read", appointment_id)
    key = privacy.unwrap(settings.data_keys, appointment_id, bytes(row.wrapped))
    document: dict[str, Any] = json.loads(privacy.open_sealed(key, bytes(row.document), context=DOCUMENT, row_id=appointment_id))
    return document


def _close(connection: Connection, person_id: UUID, session_id: str | None) -> list[str]:
    connection.execute(text("update people set status = 'closing' where id = :id"), {"id": person_id})
    return _end_sessions(connection, person_id, session_id)


def _end_sessions(connection: Connection, person_id: UUID, but: str | None) -> list[str]:
    """End a person's sessions at once, and the one in which the answer is read when its access token runs out."""
    rows = connection.execute(_END_SESSIONS, {"person": person_id, "but": but, "last": ACCESS_LIFE})
    return [session_scope(session_id) for session_id in rows.scalars()]


def _end(connection: Connection, settings: Settings, command: Row[Any]) -> dict[str, Any]:
    """Keep what must be kept, leave nothing of the rest, and say so: the result of the command, without a word about anybody."""
    person_id = command.actor_id
    rows = connection.execute(_APPOINTMENTS, {"person": person_id}).all()
    kept = [row for row in rows if row.took_place]
    if kept:
        _retain(connection, settings, command, kept)
    personal.empty(connection, person_id)
    connection.execute(text("update people set status = 'erased' where id = :id"), {"id": person_id})
    audit.record(connection, person_id, person_id, Role.PATIENT, "erased")
    erased: list[dict[str, Any]] = [{"what": _PROFILE}, {"what": _ACCESS}]
    if len(rows) > len(kept):
        erased.append({"what": _REQUESTS, "count": len(rows) - len(kept)})
    restricted: list[dict[str, Any]] = [{"what": _TRACES, "ground": "LGPD (Lei 13.709/2018), art. 8, § 2; art. 37"}]
    if kept:
        restricted.append(
            {
                "what": _CONSULTATIONS,
                "count": len(kept),
                "appointment_ids": [str(row.id) for row in kept],
                "until": max(row.until for row in kept).isoformat(),
                "ground": "Lei 13.787/2018, art. 6; LGPD (Lei 13.709/2018), art. 16, I",
            }
        )
    return {"erased": erased, "kept": restricted}


_PROFILE = (
    "Cadastro: nome, e-mail, CPF, telefone, nascimento, representante, senha. / "
    "Profile: name, e-mail, CPF, phone, date of birth, representative, password."
)
_ACCESS = "Sessões, com endereços e aparelhos. / Sessions, with addresses and devices."
_REQUESTS = (
    "O que foi escrito em pedidos que não viraram consulta. / What was written in requests that never became a consultation."
)
_TRACES = (
    "Datas e situações, acessos e consentimentos, sob um número que não identifica mais ninguém. / "
    "Dates and states, accesses and consents, under a number that identifies nobody any more."
)
_CONSULTATIONS = (
    "Consultas que aconteceram, com a identificação do paciente: acesso restrito. / "
    "Consultations that took place, with who the patient was: access restricted."
)


def _retain(connection: Connection, settings: Settings, command: Row[Any], kept: Sequence[Row[Any]]) -> None:
    """Seal anew what must stay readable, each consultation under a key of its own, which ends with its row."""
    person_id = command.actor_id
    key = privacy.unwrap(settings.data_keys, person_id, bytes(command.wrapped))

    def opened(sealed: bytes | None, context: str, row_id: UUID) -> str | None:
        return None if sealed is None else privacy.open_sealed(key, bytes(sealed), context=context, row_id=row_id)

    private = json.loads(opened(kept[0].private, "people.private", person_id) or "{}")
    patient = {name: private.get(name) for name in ("name", "cpf", "birth_date", "representative")}
    for row in kept:
        document = {
            "patient": patient,
            **{name: opened(getattr(row, name), f"appointments.{name}", row.id) for name in ("notes", "reason", "join_url")},
            "history": [
                {**entry, "reason": opened(_bytes(entry["reason"]), f"history.reason.{entry['position']}", row.id)}
                for entry in row.history or ()
            ],
        }
        own_key, wrapped = privacy.new_data_key(settings.data_keys, row.id)
        sealed = privacy.seal(own_key, json.dumps(document), context=DOCUMENT, row_id=row.id)
        connection.execute(_RETAIN, {"appointment": row.id, "person": person_id, "wrapped": wrapped, "document": sealed})


def _bytes(encoded: str | None) -> bytes | None:
    return None if encoded is None else bytes.fromhex(encoded)


# The first erasure that waits goes on; a person needs no second one.
_ANOTHER = text(
    """
    select exists (select from commands earlier join commands this on this.id = :command
        where earlier.actor_id = :person and earlier.kind = 'erase' and earlier.status = 'pending' and earlier.seq < this.seq)
    """
)
_END_SESSIONS = text(
    """
    update sessions set
        revoked_at = case when id is distinct from cast(:but as uuid) then clock_timestamp() end,
        expires_at = least(expires_at, clock_timestamp() + cast(:last as interval))
    where person_id = :person and revoked_at is null returning id
    """
)
_TO_CANCEL = """
    patient_id = :person and active and starts_at > clock_timestamp()
        and (appointments.status = 'accepted' or appointments.status = 'requested' and expires_at > clock_timestamp())
"""
# Those sent since the erasure, whose id is older than theirs.
_STUCK = text(
    f"""
    select exists (
        select from commands join appointments on appointments.id = commands.appointment_id
        where commands.actor_id = :system and commands.id > :command and kind = 'cancel' and commands.status = 'rejected'
            and {_TO_CANCEL}
        group by appointments.id having count(*) >= :attempts)
    """
)
_CANCEL = text(
    f"""
    insert into commands (id, lane, kind, actor_id, actor_role, doctor_id, appointment_id, payload, request_id)
    select uuidv7(), doctors.lane, 'cancel', :system, 'system', doctors.id, appointments.id, '{{}}', :request_id
    from appointments join doctors on doctors.id = appointments.doctor_id
    where {_TO_CANCEL}
        and not exists (select from commands where commands.appointment_id = appointments.id
            and kind = 'cancel' and actor_id = :system and commands.status = 'pending')
    order by starts_at limit :most
    """
)
_UNDECIDED = """
    select from commands other where other.status = 'pending' and other.id <> {command} and (
        other.actor_id = {person} or other.appointment_id in (select id from appointments where patient_id = {person}))
"""
_WAITS = text(f"select exists ({_UNDECIDED.format(command=':command', person=':person')})")
_READY = text(
    f"""
    select id, actor_id from commands where lane = :parked and status = 'pending'
        and not exists ({_UNDECIDED.format(command="commands.id", person="commands.actor_id")})
    order by seq for no key update skip locked
    """
)
_APPOINTMENTS = text(
    f"""
    select appointments.id, notes, appointments.reason, join_url, private,
        appointments.status in ('accepted', 'completed', 'no_show') as took_place,
        cast(greatest(ends_at, last.at) + interval '{YEARS} years' as date) as until,
        (select jsonb_agg(jsonb_build_object('position', position, 'status', status, 'at', at, 'by', by,
            'reason', encode(reason, 'hex')) order by position) from history where appointment_id = appointments.id) as history
    from appointments join people on people.id = patient_id
        join history last on last.appointment_id = appointments.id and last.position = history_length
    where patient_id = :person order by starts_at
    """
)
_RETAIN = text(
    "insert into retained (appointment_id, person_id, wrapped, document) values (:appointment, :person, :wrapped, :document)"
)
_BURY = text(
    """
    update people set status = 'closing' where id = :person and role = 'patient' and status <> 'erased'
        and not exists (select from commands where actor_id = :person and kind = 'erase' and status = 'pending')
    returning id
    """
)
