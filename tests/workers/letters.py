"""A letter of each kind, in each language and for each reader: for the tests, and to keep a rendered sample of every mail."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from domain.notices import LINK_LIFE, Kind, Letter, Notice, Recipient, Visit
from domain.schedule import AppointmentStatus, Interval, Role
from domain.settings import Settings, load
from workers.mail import compose

NOW = datetime(2026, 11, 24, 15, tzinfo=UTC)
START = datetime(2026, 12, 1, 12, tzinfo=UTC)
HALF_HOUR = timedelta(minutes=30)
APPOINTMENT = UUID("01934f6e-0000-7000-8000-000000000001")

DOCTOR = Recipient(Role.DOCTOR, "Bruno Lima", "bruno@example.com", "pt-BR", "America/Sao_Paulo")
PATIENT = Recipient(Role.PATIENT, "Ana Souza", "ana@example.com", "pt-BR", "America/Manaus")

VISIT = Visit(
    appointment_id=APPOINTMENT,
    during=Interval(START, START + HALF_HOUR),
    status=AppointmentStatus.ACCEPTED,
    doctor="Bruno Lima",
    crm="123456/SP",
    patient="Ana Souza",
    deadline=None,
    by=None,
    reason=None,
    refusal_kind=None,
    join_url=None,
    rescheduled=False,
    others=(),
)
_REQUESTED = replace(VISIT, status=AppointmentStatus.REQUESTED, deadline=NOW + timedelta(days=1))
_VISITS = {
    Kind.REQUESTED: replace(
        _REQUESTED,
        others=(
            (Interval(START + HALF_HOUR, START + 2 * HALF_HOUR), AppointmentStatus.ACCEPTED),
            (Interval(START + 4 * HALF_HOUR, START + 5 * HALF_HOUR), AppointmentStatus.REQUESTED),
        ),
    ),
    Kind.ACCEPTED: replace(VISIT, join_url="https://meet.example/sala"),
    Kind.REFUSED: replace(
        VISIT,
        status=AppointmentStatus.REFUSED,
        by=Role.DOCTOR,
        reason="Prefiro examinar pessoalmente.",
        refusal_kind="in_person_needed",
        rescheduled=True,
    ),
    Kind.CANCELLED: replace(VISIT, status=AppointmentStatus.CANCELLED, by=Role.DOCTOR, reason="Imprevisto na clínica."),
    Kind.RESCHEDULED: replace(_REQUESTED, rescheduled=True),
    Kind.EXPIRED: replace(VISIT, status=AppointmentStatus.EXPIRED, by=Role.SYSTEM),
    Kind.REMINDER: replace(VISIT, join_url="https://meet.example/sala"),
}
TOKEN = "Jk3bW9mT0xq2Zr8vYc5nHs7dLf1gPa4uEi6oRt0wXyM"  # of every secret link
_ONLY_FOR = {
    Kind.REQUESTED: (DOCTOR,),
    Kind.ALREADY_REGISTERED: (PATIENT,),
    Kind.CONFIRM_EMAIL: (replace(PATIENT, name=""),),
    Kind.EMAIL_CHANGING: (PATIENT,),
    Kind.PASSWORD_FORGOTTEN: (PATIENT,),
    Kind.PASSWORD_CHANGED: (PATIENT,),
    Kind.TOTP_ON: (DOCTOR,),
    Kind.TOTP_OFF: (DOCTOR,),
}


def a_letter(kind: Kind | str, recipient: Recipient = PATIENT, visit: Visit | None = None, **values: object) -> Letter:
    """A letter of this kind: its visit is one that goes with it, unless another is given."""
    visit = visit or _VISITS.get(kind)  # type: ignore[call-overload]
    given = {
        "id": UUID("01934f6e-0000-7000-8000-0000000000aa"),
        "person_id": UUID("01934f6e-0000-7000-8000-0000000000bb"),
        "appointment_id": visit and visit.appointment_id,
        "kind": kind,
        "due_at": NOW,
        "created_at": NOW,
        "sequence": 0,
        "during": visit and visit.during,
        "request_id": None,
        "attempts": 1,
        "now": NOW,
    }
    token = TOKEN if kind in LINK_LIFE else None
    return Letter(Notice(**{**given, **values}), recipient, visit, token)  # type: ignore[arg-type]


def all_letters() -> Iterator[tuple[str, Letter]]:
    """Every letter that there is, by a name fit for a file."""
    for kind in Kind:
        for recipient in _ONLY_FOR.get(kind, (PATIENT, DOCTOR)):
            for language in ("pt-BR", "en"):
                letter = a_letter(kind, replace(recipient, language=language))
                yield f"{kind}.{recipient.role}.{language}", letter


def sample(letter: Letter, settings: Settings) -> str:
    """What the mail of a letter looks like, part by part, decoded."""
    message = compose(letter, settings)
    headers = "".join(f"{name}: {message[name]}\n" for name in ("From", "To", "Subject", "Message-ID", "Content-Language"))
    parts = [f"--- {part['Content-Type']}\n\n{part.get_content().strip()}\n" for part in message.iter_parts()]
    return "\n".join([headers, *parts]).replace("\r\n", "\n")


def main() -> None:
    """Write every sample anew: `python -m tests.workers.letters docs/mails`."""
    key = "A" * 43 + "="
    environ = {
        "DATABASE_URL": "postgresql://x",
        "BROKER_URL": "redis://x",
        "CACHE_URL": "redis://x",
        "JWT_KEYS": f"x={key}",
        "DATA_KEYS": f"x={key}",
        "HASH_KEY": key,
        "PUBLIC_URL": "https://healthmed.example",
        "LOCAL_STACK": "on",  # elsewhere keys must be random
    }
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, letter in all_letters():
        (folder / f"{name}.txt").write_text(sample(letter, load(environ)))


if __name__ == "__main__":
    main()
