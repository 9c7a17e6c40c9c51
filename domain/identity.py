"""Who people are: registering them, what they log in with, and their own accounts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from domain import audit, consents, inbox, links, passwords, privacy
from domain.cache import Change
from domain.errors import Conflict, Invalid, NotFound, Unavailable
from domain.identifiers import Crm, Malformed, mask_cpf, name_key, normalise_email, parse_cpf
from domain.notices import Kind
from domain.projections import scopes_showing
from domain.schedule import Role
from domain.settings import Settings
from domain.specialties import SPECIALTIES

PRIVATE: Final = "people.private"  # the context under which a person's private data is sealed
REASON: Final = "doctors.verification_reason"
ADULT: Final = 18
OLDEST: Final = 130
CURRENCY: Final = "BRL"

Seal = Callable[[str, UUID], bytes]


class AlreadyRegistered(Conflict):
    """Já existe um cadastro com estes dados. / Somebody is registered with these data already."""

    code = "already_registered"


@dataclass(frozen=True, slots=True)
class Representative:
    """Who answers for a minor."""

    name: str
    cpf: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NewPatient:
    """What a patient registers with. `cpf` is 11 digits, `phone` digits and a plus."""

    name: str
    email: str
    password: str
    birth_date: date
    cpf: str | None = None
    phone: str | None = None
    language: str = "pt-BR"
    timezone: str = "America/Sao_Paulo"
    representative: Representative | None = None


@dataclass(frozen=True, slots=True)
class RegisteredSpecialty:
    """A specialty and the number of its registration with the council (RQE)."""

    code: str
    rqe: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NewDoctor:
    """What a doctor registers with. `price` is minor units."""

    name: str
    email: str
    password: str
    crm: Crm
    price: int
    specialties: Sequence[RegisteredSpecialty] = ()
    bio: str | None = None
    language: str = "pt-BR"
    timezone: str = "America/Sao_Paulo"


@dataclass(frozen=True, slots=True)
class Account:
    """What a log-in is checked against."""

    id: UUID
    role: Role
    password_hash: str | None
    password_changed_at: datetime | None


def register_patient(engine: Engine, settings: Settings, new: NewPatient, *, request_id: str | None = None) -> UUID:
    """Register a patient; returns the new id.

    Raises Invalid for a weak password or a minor without a representative, AlreadyRegistered (whose owner is told by mail)
    for an e-mail or CPF that somebody has, and Unavailable if the password can't be hashed in time.
    """
    _check_representation(new.birth_date, new.timezone, new.cpf, new.representative)
    _check_password(new.password, _personal(new.name, new.email, new.cpf, new.birth_date, new.phone))
    hashed = passwords.hash_password(new.password)
    try:
        with engine.begin() as connection:
            patient_id = insert_patient(connection, settings, new, hashed)
            if settings.limits.confirm_email:
                links.send(connection, settings, patient_id, Kind.CONFIRM_EMAIL, email=new.email, request_id=request_id)
            return patient_id
    except IntegrityError as clash:
        hashes = {"email_hash": email_hash(settings, new.email), "cpf_hash": new.cpf and cpf_hash(settings, new.cpf)}
        raise _told(engine, clash, hashes, request_id) from None


def insert_patient(connection: Connection, settings: Settings, new: NewPatient, password_hash: str) -> UUID:
    """Store a patient whose data has been checked and whose password has been hashed. Raises IntegrityError for a known one."""
    private = {
        "name": new.name,
        "email": new.email,
        "cpf": new.cpf,
        "phone": new.phone,
        "birth_date": new.birth_date.isoformat(),
        "representative": new.representative and asdict(new.representative),
    }
    patient_id = _insert_person(connection, settings, Role.PATIENT, private, password_hash, new.language, new.timezone)
    consents.give(connection, patient_id, consents.TERMS)
    return patient_id


def register_doctor(engine: Engine, settings: Settings, new: NewDoctor, *, request_id: str | None = None) -> UUID:
    """Register a doctor, who nobody sees until staff has verified them; returns the new id. Raises as `register_patient`."""
    _check_specialties(new.specialties)
    _check_password(new.password, (*_personal(new.name, new.email), str(new.crm), new.crm.number))
    hashed = passwords.hash_password(new.password)
    try:
        with engine.begin() as connection:
            return insert_doctor(connection, settings, new, hashed)
    except IntegrityError as clash:
        wanted = {"email_hash": email_hash(settings, new.email), "number": new.crm.number, "state": new.crm.state}
        raise _told(engine, clash, wanted, request_id) from None


def insert_doctor(connection: Connection, settings: Settings, new: NewDoctor, password_hash: str) -> UUID:
    """Store a doctor whose data has been checked and whose password has been hashed. Raises IntegrityError for a known one."""
    private = {"name": new.name, "email": new.email}
    doctor_id = _insert_person(connection, settings, Role.DOCTOR, private, password_hash, new.language, new.timezone)
    connection.execute(
        text(
            """
            insert into doctors (id, lane, name, search_name, crm_number, crm_suffix, crm_state, bio, price, currency, timezone)
            values (:id, :lane, :name, :search_name, :number, :suffix, :state, :bio, :price, :currency, :timezone)
            """
        ),
        {
            "id": doctor_id,
            "lane": inbox.lane_of(doctor_id, settings.lanes),
            "name": new.name,
            "search_name": name_key(new.name),
            "number": new.crm.number,
            "suffix": new.crm.suffix,
            "state": new.crm.state,
            "bio": new.bio,
            "price": new.price,
            "currency": CURRENCY,
            "timezone": new.timezone,
        },
    )
    write_specialties(connection, doctor_id, new.specialties)
    return doctor_id


def create_staff(engine: Engine, settings: Settings, *, name: str, login: str, password: str, language: str = "pt-BR") -> UUID:
    """Make a staff account, whose log-in is an e-mail address. Raises Invalid, Malformed or AlreadyRegistered."""
    _check_password(password, _personal(name, login))
    hashed = passwords.hash_password(password)
    try:
        with engine.begin() as connection:
            private = {"name": name, "email": login}
            return _insert_person(connection, settings, Role.STAFF, private, hashed, language, "America/Sao_Paulo")
    except IntegrityError:
        raise AlreadyRegistered from None


def account_of_doctor(connection: Connection, crm: Crm) -> Account | None:
    """The account that a CRM logs in to: of those who were not rejected, or else the newest."""
    return _account(
        connection,
        """
        join doctors using (id) where crm_number = :number and crm_state = :state
        order by doctors.status = 'rejected', id desc limit 1
        """,
        number=crm.number,
        state=crm.state,
    )


def account_of(connection: Connection, settings: Settings, role: Role, login: str) -> Account | None:
    """The account that an e-mail address, or a patient's CPF, logs in to; None for any other text, too."""
    found = _login_hash(settings, role, login)
    condition = "where people.role = :role and people.status = 'active' and"
    return found and _account(connection, f"{condition} {found[0]} = :hash", role=role, hash=found[1])


def account_of_person(connection: Connection, person_id: UUID) -> Account | None:
    """The account of somebody who is logged in already."""
    return _account(connection, "where id = :id", id=person_id)


def keep_rehashed(engine: Engine, account: Account, password: str) -> None:
    """Hash a right password anew if its hash was made with other parameters than today's, and there is a turn for it."""
    if account.password_hash is not None and passwords.needs_rehash(account.password_hash):
        try:
            hashed = passwords.hash_password(password)
        except Unavailable:  # another log-in will do it
            return
        with engine.begin() as connection:
            connection.execute(
                text("update people set password_hash = :new where id = :id and password_hash = :old"),
                {"id": account.id, "new": hashed, "old": account.password_hash},
            )


def check_new_password(connection: Connection, settings: Settings, person_id: UUID, password: str, *, field: str) -> None:
    """Raises Invalid, which names the `field`, if somebody may not choose this password."""
    row = person(connection, person_id)
    private = _opened_row(settings, row)
    born = private.get("birth_date")
    personal = _personal(
        private["name"], private["email"], private.get("cpf"), date.fromisoformat(born) if born else None, private.get("phone")
    )
    crm = (_crm(row), row.crm_number) if row.role == Role.DOCTOR else ()
    _check_password(password, (*personal, *crm), field=field)


def change_email(connection: Connection, settings: Settings, person_id: UUID, email: str) -> bool:
    """Let a confirmed address be somebody's; whether it was another before. Raises AlreadyRegistered."""
    _lock_person(connection, person_id)
    row = person(connection, person_id)
    private = _opened_row(settings, row)
    changed = bool(private["email"] != email)
    key = privacy.unwrap(settings.data_keys, person_id, bytes(row.wrapped))
    try:
        connection.execute(
            text(
                "update people set email_hash = :email_hash, private = :private, email_confirmed_at = clock_timestamp()"
                " where id = :id"
            ),
            {
                "id": person_id,
                "email_hash": email_hash(settings, email),
                "private": privacy.seal(key, json.dumps(private | {"email": email}), context=PRIVATE, row_id=person_id),
            },
        )
    except IntegrityError:
        raise AlreadyRegistered from None
    return changed


def own_account(connection: Connection, settings: Settings, person_id: UUID) -> dict[str, Any]:
    """Somebody's account as they see it themselves: no password, and never a CPF whole."""
    row = person(connection, person_id)
    private = _opened_row(settings, row)
    account: dict[str, Any] = {
        "id": row.id,
        "role": row.role,
        "name": private["name"],
        "email": private["email"],
        "email_confirmed": row.email_confirmed_at is not None,
        "totp": row.totp,
        "language": row.language,
        "timezone": row.timezone,
        "created_at": row.created_at,
    }
    if row.role == Role.PATIENT:
        representative = private.get("representative")
        account |= {
            "cpf_masked": private["cpf"] and mask_cpf(private["cpf"]),
            "birth_date": date.fromisoformat(private["birth_date"]),
            "phone": private.get("phone"),
            "representative": representative and {"name": representative["name"], "cpf_masked": mask_cpf(representative["cpf"])},
        }
    if row.role == Role.DOCTOR:
        account |= doctor_fields(row)
        if row.verification_reason is not None:
            key = privacy.unwrap(settings.data_keys, row.id, bytes(row.wrapped))
            reason = privacy.open_sealed(key, bytes(row.verification_reason), context=REASON, row_id=row.id)
            account["verification_reason"] = reason
    return account


def change_patient(change: Change, settings: Settings, person_id: UUID, edits: Mapping[str, Any]) -> None:
    """Change a patient's `name, phone, birth_date, language, timezone, representative`, or a `cpf` where there was none.

    Raises Invalid, and AlreadyRegistered for a CPF that somebody has.
    """
    connection = change.connection
    _lock_person(connection, person_id)
    row = person(connection, person_id)
    private = _opened_row(settings, row)
    if "cpf" in edits and private["cpf"] is not None and edits["cpf"] != private["cpf"]:
        raise Invalid({"cpf": ["Já há um CPF; só a equipe o corrige. / There is a CPF already; staff corrects it."]})
    former_name = private["name"]
    private |= {name: edits[name] for name in ("name", "phone", "cpf") if name in edits}
    if "birth_date" in edits:
        private["birth_date"] = edits["birth_date"].isoformat()
    if "representative" in edits:
        private["representative"] = edits["representative"] and asdict(edits["representative"])
    kept = private["representative"]
    timezone = edits.get("timezone", row.timezone)
    if {"birth_date", "representative", "cpf"} & edits.keys():
        _check_representation(
            date.fromisoformat(private["birth_date"]), timezone, private["cpf"], kept and Representative(**kept)
        )
    _write_person(
        connection,
        settings,
        row,
        private,
        language=edits.get("language", row.language),
        timezone=timezone,
        cpf_hash=private["cpf"] and cpf_hash(settings, private["cpf"]),
    )
    audit.record(connection, person_id, person_id, Role.PATIENT, "profile_changed")
    change.touch(f"person:{person_id}")
    if private["name"] != former_name:
        change.touch(*scopes_showing(connection, person_id))


def correct_cpf(change: Change, settings: Settings, staff: inbox.Sender, patient_id: UUID, cpf: str, reason: str) -> None:
    """Let staff put a patient's CPF right, and keep why. Raises NotFound, Invalid, and AlreadyRegistered if somebody has it."""
    connection = change.connection
    _lock_person(connection, patient_id)
    row = person(connection, patient_id)
    if row.role != Role.PATIENT:
        raise NotFound
    private = _opened_row(settings, row) | {"cpf": cpf}
    representative = private["representative"]
    if representative is not None and representative["cpf"] == cpf:
        raise Invalid({"cpf": ["É o CPF do representante. / It is the representative's CPF."]})
    hashed = cpf_hash(settings, cpf)
    _write_person(connection, settings, row, private, language=row.language, timezone=row.timezone, cpf_hash=hashed)
    correction_id, key = uuid7(), privacy.unwrap(settings.data_keys, patient_id, bytes(row.wrapped))
    sealed = privacy.seal(key, reason, context="corrections.reason", row_id=correction_id)
    connection.execute(
        text(
            "insert into corrections (id, person_id, actor_id, field, reason) values (:id, :person_id, :actor_id, 'cpf', :reason)"
        ),
        {"id": correction_id, "person_id": patient_id, "actor_id": staff.id, "reason": sealed},
    )
    audit.record(connection, patient_id, staff.id, staff.role, "cpf_corrected", correction_id)
    change.touch(f"person:{patient_id}")


def change_doctor(change: Change, settings: Settings, doctor_id: UUID, edits: Mapping[str, Any]) -> None:
    """Change a doctor's `name, price, specialties, bio, language`.

    A new name or specialty of somebody who has been shown waits until staff has verified it; what is given up goes at once.
    Raises Invalid.
    """
    connection = change.connection
    lock_doctor(connection, doctor_id)
    row = person(connection, doctor_id)
    if "specialties" in edits:
        _check_specialties(edits["specialties"])
    pending = dict(row.pending or {})
    if row.doctor_status in ("verified", "suspended"):
        _await_verification(connection, row, edits, pending)
    else:
        if "name" in edits:
            rename_doctor(change, settings, row, edits["name"])
        if "specialties" in edits:
            write_specialties(connection, doctor_id, edits["specialties"])
    connection.execute(
        text("update doctors set price = :price, bio = :bio, pending = cast(:pending as jsonb) where id = :id"),
        {
            "id": doctor_id,
            "price": edits.get("price", row.price),
            "bio": edits.get("bio", row.bio),
            "pending": json.dumps(pending) if pending else None,
        },
    )
    if "language" in edits:
        connection.execute(
            text("update people set language = :language where id = :id"),
            {"id": doctor_id, "language": edits["language"]},
        )
    audit.record(connection, doctor_id, doctor_id, Role.DOCTOR, "profile_changed")
    touch_doctor(change, doctor_id)


def opened(settings: Settings, person_id: UUID, wrapped: bytes, private: bytes) -> dict[str, Any]:
    """What `people.private` holds: name, email, and a patient's cpf, phone, birth_date and representative."""
    key = privacy.unwrap(settings.data_keys, person_id, bytes(wrapped))
    told: dict[str, Any] = json.loads(privacy.open_sealed(key, bytes(private), context=PRIVATE, row_id=person_id))
    return told


def email_hash(settings: Settings, email: str) -> bytes:
    """The keyed hash by which an e-mail address is found. Raises Malformed."""
    return privacy.look_up_hash(settings.hash_key, "email", normalise_email(email))


def cpf_hash(settings: Settings, cpf: str) -> bytes:
    """The keyed hash by which a CPF of 11 digits is found."""
    return privacy.look_up_hash(settings.hash_key, "cpf", cpf)


_PERSON = text(
    """
    select people.id, people.role, people.language, coalesce(doctors.timezone, people.timezone) as timezone, private, wrapped,
           email_confirmed_at, people.created_at, doctors.status as doctor_status, doctors.name as doctor_name, crm_number,
           crm_suffix, crm_state, bio, price, currency, pending, verified_at, verification_reason,
           exists (select from second_factors where person_id = people.id and confirmed_at is not null) as totp,
           (select json_agg(json_build_object('code', code, 'rqe', rqe) order by code)
            from doctor_specialties where doctor_id = people.id) as specialties
    from people join person_keys on person_id = people.id left join doctors on doctors.id = people.id
    where people.id = :id
    """
)


def person(connection: Connection, person_id: UUID) -> Row[Any]:
    """Somebody's row, with their key and, of a doctor, what staff verifies. Raises NotFound."""
    row = connection.execute(_PERSON, {"id": person_id}).one_or_none()
    if row is None:
        raise NotFound
    return row


def _opened_row(settings: Settings, row: Row[Any]) -> dict[str, Any]:
    return opened(settings, row.id, row.wrapped, row.private)


def _account(connection: Connection, condition: str, **parameters: Any) -> Account | None:
    row = connection.execute(
        text(f"select people.id, people.role, password_hash, password_changed_at from people {condition}"), parameters
    ).one_or_none()
    return None if row is None else Account(row.id, Role(row.role), row.password_hash, row.password_changed_at)


def _login_hash(settings: Settings, role: Role, login: str) -> tuple[str, bytes] | None:
    try:
        if "@" in login:
            return "email_hash", email_hash(settings, login)
        if role is Role.PATIENT:
            return "cpf_hash", cpf_hash(settings, parse_cpf(login))
    except Malformed:
        pass
    return None


def _insert_person(
    connection: Connection,
    settings: Settings,
    role: Role,
    private: Mapping[str, Any],
    password_hash: str,
    language: str,
    timezone: str,
) -> UUID:
    person_id = uuid7()
    key, wrapped = privacy.new_data_key(settings.data_keys, person_id)
    cpf = private.get("cpf")
    connection.execute(
        text(
            """
            insert into people (id, role, language, timezone, email_hash, cpf_hash, private, password_hash)
            values (:id, :role, :language, :timezone, :email_hash, :cpf_hash, :private, :password_hash)
            """
        ),
        {
            "id": person_id,
            "role": role,
            "language": language,
            "timezone": timezone,
            "email_hash": email_hash(settings, private["email"]),
            "cpf_hash": cpf and cpf_hash(settings, cpf),
            "private": privacy.seal(key, json.dumps(private), context=PRIVATE, row_id=person_id),
            "password_hash": password_hash,
        },
    )
    connection.execute(
        text("insert into person_keys (person_id, wrapped) values (:id, :wrapped)"), {"id": person_id, "wrapped": wrapped}
    )
    audit.record(connection, person_id, person_id, role, "registered")
    return person_id


def _write_person(
    connection: Connection,
    settings: Settings,
    row: Row[Any],
    private: Mapping[str, Any],
    *,
    language: str,
    timezone: str,
    cpf_hash: bytes | None,
) -> None:
    key = privacy.unwrap(settings.data_keys, row.id, bytes(row.wrapped))
    try:
        connection.execute(
            text(
                "update people set private = :private, language = :language, timezone = :timezone, cpf_hash = :cpf_hash"
                " where id = :id"
            ),
            {
                "id": row.id,
                "private": privacy.seal(key, json.dumps(private), context=PRIVATE, row_id=row.id),
                "language": language,
                "timezone": timezone,
                "cpf_hash": cpf_hash,
            },
        )
    except IntegrityError:
        raise AlreadyRegistered from None


def _told(engine: Engine, clash: IntegrityError, wanted: Mapping[str, Any], request_id: str | None) -> Exception:
    """What a registration that clashed raises, once whoever is registered has been told of it: at most once a day each."""
    if getattr(clash.orig, "pgcode", None) != "23505":
        return clash
    with engine.begin() as connection:
        connection.execute(
            text(
                """
                insert into notices (id, person_id, kind, due_at, next_try_at, request_id)
                select uuidv7(), people.id, 'already_registered', now(), now(), :request_id
                from people left join doctors using (id)
                where (email_hash = :email_hash or cpf_hash = :cpf_hash
                       or (crm_number = :number and crm_state = :state and doctors.status <> 'rejected'))
                      and not exists (select from notices told where told.person_id = people.id
                                      and told.kind = 'already_registered' and told.created_at > now() - interval '1 day')
                """
            ),
            {"cpf_hash": None, "number": None, "state": None, **wanted, "request_id": request_id},
        )
    return AlreadyRegistered()


def _lock_person(connection: Connection, person_id: UUID) -> None:
    connection.execute(text("select from people where id = :id for no key update"), {"id": person_id})


def lock_doctor(connection: Connection, doctor_id: UUID) -> None:
    """The locks of a change to a doctor, in the order that everybody keeps: the doctor, then the person."""
    connection.execute(text("select from doctors where id = :id for no key update"), {"id": doctor_id})
    _lock_person(connection, doctor_id)


def rename_doctor(change: Change, settings: Settings, row: Row[Any], name: str) -> None:
    """Let a doctor, whose row is locked, have another name from now on."""
    if name == row.doctor_name:
        return
    change.connection.execute(
        text("update doctors set name = :name, search_name = :search_name where id = :id"),
        {"id": row.id, "name": name, "search_name": name_key(name)},
    )
    private = _opened_row(settings, row) | {"name": name}
    key = privacy.unwrap(settings.data_keys, row.id, bytes(row.wrapped))
    change.connection.execute(
        text("update people set private = :private where id = :id"),
        {"id": row.id, "private": privacy.seal(key, json.dumps(private), context=PRIVATE, row_id=row.id)},
    )
    change.touch(*scopes_showing(change.connection, row.id))


def _await_verification(connection: Connection, row: Row[Any], edits: Mapping[str, Any], pending: dict[str, Any]) -> None:
    if "name" in edits:
        pending.pop("name", None)
        if edits["name"] != row.doctor_name:
            pending["name"] = edits["name"]
    if "specialties" in edits:
        pending.pop("specialties", None)
        verified = {RegisteredSpecialty(**each) for each in row.specialties or ()}
        write_specialties(connection, row.id, [each for each in edits["specialties"] if each in verified])
        if not verified.issuperset(edits["specialties"]):
            pending["specialties"] = [asdict(each) for each in edits["specialties"]]


def write_specialties(connection: Connection, doctor_id: UUID, specialties: Iterable[RegisteredSpecialty]) -> None:
    """Let these be the specialties that a doctor is shown with."""
    connection.execute(text("delete from doctor_specialties where doctor_id = :id"), {"id": doctor_id})
    rows = [{"id": doctor_id, "code": each.code, "rqe": each.rqe} for each in specialties]
    if rows:
        connection.execute(text("insert into doctor_specialties (doctor_id, code, rqe) values (:id, :code, :rqe)"), rows)


def touch_doctor(change: Change, doctor_id: UUID) -> None:
    """Invalidate everything that shows a doctor but appointments."""
    own = (f"{scope}:{doctor_id}" for scope in ("doctor", "agenda", "person"))
    change.touch(*own, "directory", "directory-free", "directory-dates")


def doctor_fields(row: Row[Any]) -> dict[str, Any]:
    """What a doctor and staff see of their profile, by their row."""
    pending = dict(row.pending or {})
    if "specialties" in pending:
        pending["specialties"] = _named(pending["specialties"])
    return {
        "status": row.doctor_status,
        "name": row.doctor_name,
        "crm": _crm(row),
        "specialties": _named(row.specialties or ()),
        "price": {"amount": row.price, "currency": row.currency},
        "timezone": row.timezone,
        "bio": row.bio,
        "pending": pending,
        "verified_at": row.verified_at,
    }


def _crm(row: Row[Any]) -> str:
    return str(Crm(row.crm_number, row.crm_suffix, row.crm_state))


def _named(specialties: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{"code": each["code"], "name": SPECIALTIES[each["code"]].name, "rqe": each["rqe"]} for each in specialties]


def _personal(
    name: str, email: str, cpf: str | None = None, birth_date: date | None = None, phone: str | None = None
) -> list[str | date]:
    return [each for each in (name, email, cpf, birth_date, phone) if each is not None]


def _check_password(password: str, personal: Iterable[str | date], *, field: str = "password") -> None:
    problems = passwords.check_new_password(password, personal)
    if problems:
        raise Invalid({field: [f"{problem} / {_PASSWORD_IN_ENGLISH}" for problem in problems]})


_PASSWORD_IN_ENGLISH = "Choose 10 to 128 characters, not a commonly used password, and none of your own data."


def _check_specialties(specialties: Sequence[RegisteredSpecialty]) -> None:
    if len({each.code for each in specialties}) != len(specialties):
        raise Invalid({"specialties": ["Há uma especialidade repetida. / A specialty stands there twice."]})


def _check_representation(birth_date: date, timezone: str, cpf: str | None, representative: Representative | None) -> None:
    today = datetime.now(UTC).astimezone(ZoneInfo(timezone)).date()
    age = today.year - birth_date.year - ((today.month, today.day) < (birth_date.month, birth_date.day))
    if birth_date > today or age > OLDEST:
        raise Invalid({"birth_date": ["Não pode ser esta data de nascimento. / Can't be this date of birth."]})
    if age < ADULT and representative is None:
        raise Invalid(
            {"representative": ["Menores de 18 anos precisam de um representante. / Under 18 a representative is required."]}
        )
    if representative is not None and representative.cpf == cpf:
        raise Invalid({"representative.cpf": ["Deve ser o CPF do representante. / Must be the representative's CPF."]})
