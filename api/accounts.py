"""Accounts: registering patients and doctors, one's own account, and the verification of doctors by staff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from marshmallow import fields, post_load

from api.attempts import CLASHES, REGISTRATIONS
from api.auth import Anyone, AnyToken, Doctor, Patient, Staff, current, policy, sender
from api.proofs import origin_key
from api.schemas import (
    LANGUAGES,
    Agreed,
    Answer,
    Blueprint,
    Body,
    Choice,
    CpfText,
    CrmText,
    Day,
    EmailText,
    Many,
    Money,
    MoneyBody,
    Name,
    PageQuery,
    Part,
    Phone,
    Secret,
    Specialty,
    Text,
    UtcInstant,
    Zone,
)
from api.services import request_id, services
from domain import identity, passwords, verification
from domain.cache import changing
from domain.errors import Conflict
from domain.identity import AlreadyRegistered, NewDoctor, NewPatient, RegisteredSpecialty, Representative
from domain.specialties import SPECIALTIES
from workers.app import wake

MOST_SPECIALTIES = 10
STATUSES = ("pending_verification", "verified", "rejected", "suspended")

blp = Blueprint("accounts", __name__, description="Cadastro e conta / Registration and account")


class RepresentativeBody(Body):
    """Who answers for a minor."""

    name = Name(required=True)
    cpf = CpfText(required=True)

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> Representative:
        return Representative(**data)


class SpecialtyBody(Body):
    """A specialty registered with the council, and the number of that registration."""

    code = Choice([code for code, known in SPECIALTIES.items() if known.registered], required=True)
    rqe = Text(most=20, required=True)

    @post_load
    def _made(self, data: dict[str, Any], **_: Any) -> RegisteredSpecialty:
        return RegisteredSpecialty(**data)


class PatientBody(Body):
    """What a patient registers with. Under 18 a representative is required."""

    name = Name(required=True)
    email = EmailText(required=True)
    cpf = CpfText()
    password = Secret(least=passwords.MIN_LENGTH, most=passwords.MAX_LENGTH, required=True)
    birth_date = Day(required=True)
    phone = Phone()
    language = Choice(LANGUAGES)
    timezone = Zone()
    representative = Part(RepresentativeBody)
    accepts_terms = Agreed()


class DoctorBody(Body):
    """What a doctor registers with. Without specialties: a general practitioner."""

    name = Name(required=True)
    email = EmailText(required=True)
    crm = CrmText(required=True)
    password = Secret(least=passwords.MIN_LENGTH, most=passwords.MAX_LENGTH, required=True)
    specialties = Many(Part(SpecialtyBody), most=MOST_SPECIALTIES, required=True)
    price = Part(MoneyBody, required=True)
    timezone = Zone()
    bio = Text(least=0, most=2000, lines=True)
    language = Choice(LANGUAGES)


class PatientEdits(Body):
    """What a patient may change. A CPF can be added where there was none; null takes a phone or representative away."""

    name = Name()
    phone = Phone(allow_none=True)
    birth_date = Day()
    language = Choice(LANGUAGES)
    timezone = Zone()
    representative = Part(RepresentativeBody, allow_none=True)
    cpf = CpfText()


class DoctorEdits(Body):
    """What a doctor may change. A new name or specialty is shown when staff has verified it."""

    name = Name()
    price = Part(MoneyBody)
    specialties = Many(Part(SpecialtyBody), most=MOST_SPECIALTIES)
    bio = Text(least=0, most=2000, lines=True, allow_none=True)
    language = Choice(LANGUAGES)


class VerificationBody(Body):
    """What staff decides about a doctor."""

    decision = Choice(["verify", "reject", "suspend"], required=True)
    reason = Text(most=500, lines=True)


class StaffQuery(PageQuery):
    """Which doctors staff wants to see."""

    status = Choice(STATUSES)
    q = Text(least=0, most=100)


class ShownRepresentative(Answer):
    """Who answers for a minor, as answered."""

    name = fields.String(required=True)
    cpf_masked = fields.String(required=True)


class Pending(Answer):
    """What waits to be verified by staff."""

    name = fields.String()
    specialties = Many(Part(Specialty), most=MOST_SPECIALTIES)


class _Person(Answer):
    id = fields.UUID(required=True)
    role = fields.String(required=True)
    name = fields.String(required=True)
    email = fields.String(required=True)
    email_confirmed = fields.Boolean(required=True)
    totp = fields.Boolean(required=True)
    language = fields.String(required=True)
    timezone = fields.String(required=True)
    created_at = UtcInstant(required=True)


class PatientAccount(_Person):
    """A patient's own account."""

    cpf_masked = fields.String(allow_none=True)
    birth_date = fields.Date()
    phone = fields.String(allow_none=True)
    representative = Part(ShownRepresentative, allow_none=True)


class _DoctorFields(Answer):
    status = fields.String()
    crm = fields.String()
    specialties = Many(Part(Specialty), most=MOST_SPECIALTIES)
    price = Part(Money)
    bio = fields.String(allow_none=True)
    pending = Part(Pending)
    verified_at = UtcInstant(allow_none=True)


class DoctorAccount(_Person, _DoctorFields):
    """A doctor's own account."""

    verification_reason = fields.String()


class Account(DoctorAccount, PatientAccount):
    """One's own account; which fields it has depends on `role`."""


class DoctorForStaff(_DoctorFields):
    """A doctor as staff sees them when verifying."""

    id = fields.UUID(required=True)
    name = fields.String(required=True)
    timezone = fields.String(required=True)
    created_at = UtcInstant(required=True)


class DoctorsForStaff(Answer):
    """One page of the doctors, those who registered first before the others."""

    items = Many(Part(DoctorForStaff), most=100, required=True)
    page = fields.Integer(required=True)
    page_size = fields.Integer(required=True)
    total = fields.Integer(required=True)


@blp.post("/patients")
@policy(Anyone)
@blp.arguments(PatientBody)
@blp.response(201, PatientAccount)
@blp.alt_response(409)
@blp.alt_response(429)
def register_patient(body: dict[str, Any]) -> dict[str, Any]:
    """Cadastrar-se como paciente. / Register as a patient."""
    del body["accepts_terms"]
    return _registered(identity.register_patient, NewPatient(**body))


@blp.post("/doctors")
@policy(Anyone)
@blp.arguments(DoctorBody)
@blp.response(201, DoctorAccount)
@blp.alt_response(409)
@blp.alt_response(429)
def register_doctor(body: dict[str, Any]) -> dict[str, Any]:
    """Cadastrar-se como médico. / Register as a doctor, whom nobody sees or books until staff has verified them."""
    return _registered(identity.register_doctor, NewDoctor(**body))


@blp.get("/me")
@policy(AnyToken)
@blp.response(200, Account)
def own_account() -> dict[str, Any]:
    """Ver a própria conta. / One's own account."""
    return _account(current().id)


@blp.patch("/patients/me")
@policy(Patient)
@blp.arguments(PatientEdits)
@blp.response(200, PatientAccount)
@blp.alt_response(409)
def change_patient(edits: dict[str, Any]) -> dict[str, Any]:
    """Mudar a própria conta de paciente. / Change one's own account as a patient."""
    with changing(services().engine, services().cache) as change:
        identity.change_patient(change, services().settings, current().id, edits)
    return _account(current().id)


@blp.patch("/doctors/me")
@policy(Doctor)
@blp.arguments(DoctorEdits)
@blp.response(200, DoctorAccount)
def change_doctor(edits: dict[str, Any]) -> dict[str, Any]:
    """Mudar a própria conta de médico. / Change one's own account as a doctor."""
    with changing(services().engine, services().cache) as change:
        identity.change_doctor(change, services().settings, current().id, edits)
    return _account(current().id)


@blp.post("/doctors/<uuid:doctor_id>/verification")
@policy(Staff)
@blp.arguments(VerificationBody)
@blp.response(200, DoctorForStaff)
@blp.alt_response(409)
def decide_verification(body: dict[str, Any], doctor_id: UUID) -> dict[str, Any]:
    """Verificar, rejeitar ou suspender um médico. / Verify, reject or suspend a doctor."""
    use = services()
    try:
        with changing(use.engine, use.cache) as change:
            lane = verification.decide(change, use.settings, sender(), doctor_id, body["decision"], body.get("reason"))
    except Conflict:  # it tells of a decision that was made before
        use.cache.finish_touching(f"doctor:{doctor_id}")
        raise
    if lane is not None:
        wake(lane)
    with use.reads.connect() as connection:
        shown = verification.doctor_for_staff(connection, doctor_id)
    use.cache.finish_touching(f"doctor:{doctor_id}")
    return shown


@blp.get("/staff/doctors")
@policy(Staff)
@blp.arguments(StaffQuery, location="query")
@blp.response(200, DoctorsForStaff)
def list_doctors(query: dict[str, Any]) -> dict[str, Any]:
    """Ver os médicos e sua situação. / The doctors with their status, for verification."""
    page, page_size = query["page"], query["page_size"]
    items, total = services().cache.look_up(
        lambda connection: verification.doctors_for_staff(
            connection, status=query.get("status"), q=query.get("q"), page=page, page_size=page_size
        )
    )
    services().cache.finish_touching(*(f"doctor:{each['id']}" for each in items))
    return {"items": items, "page": page, "page_size": page_size, "total": total}


def _registered(register: Callable[..., UUID], new: NewPatient | NewDoctor) -> dict[str, Any]:
    use, origin = services(), origin_key()
    use.attempts.check(CLASHES, origin)
    use.attempts.count(REGISTRATIONS, origin)
    try:
        return _account(register(use.engine, use.settings, new, request_id=request_id()))
    except AlreadyRegistered:
        use.attempts.count(CLASHES, origin)
        raise


def _account(person_id: UUID) -> dict[str, Any]:
    with services().reads.connect() as connection:
        account = identity.own_account(connection, services().settings, person_id)
    services().cache.finish_touching(f"person:{person_id}", f"doctor:{person_id}")
    return account
