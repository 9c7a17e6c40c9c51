"""A person's rights over their data: taking it along, agreeing and no longer agreeing, seeing who saw it, correction, erasure."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from flask import Response
from marshmallow import fields

from api.auth import Doctor, Patient, Staff, current, policy, sender
from api.commands import sent_before, stores
from api.proofs import must_know_password
from api.schemas import Agreed, Answer, Blueprint, Body, Choice, CpfText, Many, Nothing, PageQuery, Part, Secret, Text, UtcInstant
from api.services import services
from domain import audit, consents, identity, personal
from domain.cache import changing
from domain.commands import Erase
from domain.errors import Invalid

MOST_CONSENTS = 1000

blp = Blueprint("rights", __name__, description="Direitos do titular / Rights over one's data")


class Doc(Answer):
    """A text that can be agreed to, in the reader's language."""

    kind = fields.String(required=True)
    version = fields.String(required=True)
    title = fields.String(required=True)
    text = fields.String(required=True)


class Consent(Answer):
    """What was agreed to: the text by its version and SHA-256, and when."""

    kind = fields.String(required=True)
    version = fields.String(required=True)
    text_hash = fields.Function(lambda consent: consent.text_hash.hex(), required=True, metadata={"type": "string"})
    given_at = UtcInstant(required=True)
    withdrawn_at = UtcInstant(allow_none=True, required=True)


class Consents(Answer):
    """What was agreed to, newest first, and what can be agreed to today."""

    items = Many(Part(Consent), most=MOST_CONSENTS, required=True)
    offered = Many(Part(Doc), most=10, required=True)


class ConsentBody(Body):
    """The text that is agreed to, in the version that was read."""

    kind = Choice(list(consents.OFFERS), required=True)
    version = Text(most=20, required=True)


class ErasureBody(Body):
    """That it is the person who asks, and means it."""

    password = Secret(required=True)
    confirm = Agreed()


class CpfBody(Body):
    """The right CPF, and why the other one was wrong."""

    cpf = CpfText(required=True)
    reason = Text(least=3, most=500, lines=True, required=True)


class CorrectedPatient(Answer):
    """A patient as staff sees them after a correction."""

    id = fields.UUID(required=True)
    cpf_masked = fields.String(required=True)


class Reader(Answer):
    """The doctor who did it."""

    id = fields.UUID(required=True)
    name = fields.String(required=True)
    crm = fields.String(required=True)


class Access(Answer):
    """That somebody read or changed the person's data. `by` is a role; a doctor is named."""

    at = UtcInstant(required=True)
    action = fields.String(required=True)
    by = fields.String(required=True)
    doctor = Part(Reader)


class AccessLog(Answer):
    """One page of who read or changed the person's data, newest first."""

    items = Many(Part(Access), most=100, required=True)
    page = fields.Integer(required=True)
    page_size = fields.Integer(required=True)
    total = fields.Integer(required=True)


@blp.get("/me/export")
@policy(Patient | Doctor)
@blp.response(200, {"type": "object"})
def export() -> Response:
    """Levar os próprios dados. / Everything held about the person, by table (LGPD, art. 18)."""
    use, caller = services(), current()
    with use.engine.begin() as connection:
        audit.record(connection, caller.id, caller.id, caller.role, "exported")
    held = use.cache.look_up(lambda connection: personal.export(connection, use.settings, caller.id))
    answer = Response(json.dumps(held, ensure_ascii=False), content_type="application/json")
    answer.headers["Content-Disposition"] = 'attachment; filename="healthmed.json"'
    return answer


@blp.get("/me/consents")
@policy(Patient)
@blp.response(200, Consents)
def list_consents() -> dict[str, Any]:
    """Ver o que foi consentido. / What was agreed to, and what can be."""
    with services().reads.connect() as connection:
        given = consents.consents(connection, current().id)
        language = identity.own_account(connection, services().settings, current().id)["language"]
    offered = [
        {"kind": each.kind, "version": each.version, "title": each.title[language], "text": each.text[language]}
        for each in consents.OFFERS.values()
    ]
    return {"items": given, "offered": offered}


@blp.post("/me/consents")
@policy(Patient)
@blp.arguments(ConsentBody)
@blp.response(201, Consent)
def give_consent(body: dict[str, Any]) -> consents.Consent:
    """Consentir. / Agree to a text as it stands today."""
    if body["version"] != consents.OFFERS[body["kind"]].version:
        raise Invalid({"version": ["O texto mudou; leia a versão atual. / The text has changed; read the present version."]})
    with services().engine.begin() as connection:
        return consents.give(connection, current().id, body["kind"])


@blp.delete("/me/consents/<string:kind>")
@policy(Patient)
@blp.arguments(Nothing, required=False)
@blp.response(204)
def withdraw_consent(_: dict[str, Any], kind: str) -> Response:
    """Retirar um consentimento. / No longer agree, from now on."""
    with services().engine.begin() as connection:
        consents.withdraw(connection, current().id, kind)
    return Response(status=204)


@blp.post("/me/erasure")
@policy(Patient, erased=True)
@blp.arguments(ErasureBody)
@blp.alt_response(429)
@stores
def erase(body: dict[str, Any]) -> Erase:
    """Apagar a conta. / Erase what the law lets go, restrict what it makes us keep, and say which and why."""
    if not sent_before():  # an erased person has no password any more, and may still ask again what became of it
        must_know_password(body["password"])
    return Erase(current().session_id)


@blp.get("/me/access-log")
@policy(Patient)
@blp.arguments(PageQuery, location="query")
@blp.response(200, AccessLog)
def list_accesses(query: dict[str, Any]) -> dict[str, Any]:
    """Ver quem viu ou mudou os próprios dados. / Who read or changed one's data, and when."""
    page, page_size, person_id = query["page"], query["page_size"], current().id
    items, total = services().cache.look_up(
        lambda connection: personal.accesses(connection, person_id, limit=page_size, offset=(page - 1) * page_size)
    )
    return {"items": items, "page": page, "page_size": page_size, "total": total}


@blp.put("/staff/patients/<uuid:patient_id>/cpf")
@policy(Staff)
@blp.arguments(CpfBody)
@blp.response(200, CorrectedPatient)
@blp.alt_response(409)
def correct_cpf(body: dict[str, Any], patient_id: UUID) -> dict[str, Any]:
    """Corrigir o CPF de um paciente. / Put a patient's CPF right."""
    use = services()
    with changing(use.engine, use.cache) as change:
        identity.correct_cpf(change, use.settings, sender(), patient_id, body["cpf"], body["reason"])
    with use.reads.connect() as connection:
        account = identity.own_account(connection, use.settings, patient_id)
    return {"id": patient_id, "cpf_masked": account["cpf_masked"]}
