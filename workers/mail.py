"""The mail of a notice: written in its recipient's language from one set of words, and handed to the mail server."""

from __future__ import annotations

import smtplib
import ssl
import time
import tomllib
from binascii import b2a_qp
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime, parseaddr
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from sqlalchemy import Engine

from domain import metrics, notices, traces
from domain.calendars import Entry, EntryStatus, Method, Party, invitation
from domain.database import autocommit, is_the_worlds_fault
from domain.notices import Drop, Failure, Kind, Letter, Notice, Recipient, Visit
from domain.schedule import Interval, Role
from domain.settings import Settings

TURN_SECONDS: Final = 20.0  # after which the task ends; the relay starts another
CLAIMED: Final = 8  # at once, which costs little more than one
SMTP_SECONDS: Final = 10.0  # for the server to answer one step

_PAGES: Final[Mapping[str, str]] = {Kind.CONFIRM_EMAIL: "email/confirm", Kind.PASSWORD_FORGOTTEN: "password/reset"}
_TEMPLATES = Path(__file__).parent / "templates"
_BOUNDARY: Final = "=_healthmed"  # which stands in no quoted-printable text, where what follows = are digits or the line's end


class _Policy(EmailPolicy):
    """The library's for SMTP, without most of the CPU that it takes: headers are not taken apart if nothing comes of it."""

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        """What is kept of a header: of one line of plain ASCII its text, as if it had been read, since that is what is sent."""
        written = str(value)
        plain = written.isascii() and written.isprintable() and "=?" not in written and len(name) + len(written) < 76
        return (name, written) if plain else super().header_store_parse(name, value)

    def header_max_count(self, name: str) -> int:
        """How often a header may stand in a mail; the library makes a class to find out."""
        return 1

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """What a header says: the few that tell of a content are asked several times for each mail."""
        return _of_content(name, value) if name.startswith("Content-") else super().header_fetch_parse(name, value)


_of_content = lru_cache(HeaderRegistry())
_POLICY = _Policy(linesep="\r\n", cte_type="7bit")  # not every server on the way takes eight bits
_log = structlog.get_logger()


def send_due(engine: Engine, settings: Settings) -> None:
    """Send the notices that are due, one after another, until none is left, time is up, or the mail server can't be reached.

    Nothing is locked while a mail is on its way, and each statement is a transaction of its own. A worker that dies between
    sending and noting it sends the mail again, under the same Message-ID.
    """
    until = time.monotonic() + TURN_SECONDS
    apart = autocommit(engine)
    with closing(Courier(settings.smtp_url)) as courier:
        while time.monotonic() < until:
            with apart.connect() as connection:
                claimed = deque(notices.claim_some(connection, CLAIMED))
            if not claimed:
                return
            try:
                while claimed and time.monotonic() < until:
                    notice = claimed.popleft()
                    with structlog.contextvars.bound_contextvars(notice_id=str(notice.id), request_id=notice.request_id):
                        if not _deliver(apart, settings, courier, notice):
                            return
            finally:
                if claimed:
                    with apart.connect() as connection:
                        notices.release(connection, claimed)


def compose(letter: Letter, settings: Settings) -> EmailMessage:
    """The mail of one notice: text, HTML and, if an entry in a calendar comes, moves or goes, that."""
    notice, recipient = letter.notice, letter.recipient
    words = _words(recipient.language)
    said = words[notice.kind]
    said = said if "subject" in said else said[recipient.role]
    filled = _filled(letter, words, settings)
    sender_name, sender = parseaddr(settings.mail_from)
    content = {
        "language": recipient.language,
        "subject": f"Health&Med: {said['subject'].format_map(filled)}",
        "heading": said["heading"],
        "greeting": (words["greeting"] if recipient.name else words["unnamed"]).format_map(filled),
        "paragraphs": [each.format_map(filled) for each in said["text"]],
        "facts": [],
        "others": None,
        "others_heading": words["others"],
        "no_others": words["no_others"],
        "open": said.get("open", words["open"]),
        "url": _link(letter, settings),
        "footer": [each.format_map(filled) for each in words["footer"]],
    }
    if letter.visit is not None:
        if letter.visit.deadline is not None and "deadline" in said:
            content["paragraphs"].append(said["deadline"].format_map(filled))
        content["facts"] = _facts(letter.visit, recipient, notice, words, filled)
        if notice.kind == Kind.REQUESTED:
            content["others"] = _others(letter.visit, recipient, words)

    message = EmailMessage(_POLICY)
    message["From"] = Address(_line(sender_name), addr_spec=sender)
    message["To"] = Address(_line(recipient.name), addr_spec=recipient.email)
    message["Subject"] = content["subject"]
    message["Date"] = format_datetime(notice.now)
    message["Message-ID"] = f"<{notice.id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message["MIME-Version"] = "1.0"
    message["Content-Type"] = f'multipart/alternative; boundary="{_BOUNDARY}"'
    message["Content-Language"] = recipient.language
    message.attach(_part("plain", _templates().get_template("mail.txt").render(content)))
    message.attach(_part("html", _templates().get_template("mail.html").render(content)))
    if letter.visit is not None and (asked := _asked_of_calendar(notice, letter.visit)) is not None:
        method, status = asked
        entry = _entry(letter, letter.visit, status, words, content)
        organizer, attendee = Party("Health&Med", sender), Party(_line(recipient.name), recipient.email)
        calendar = invitation(method, entry, organizer, attendee)
        message.attach(_part(f"calendar; method={method}", calendar))
    return message


class Courier:
    """One connection to the mail server of `smtp://[name:password@]host[:port]` (or `smtps://`), opened when first needed."""

    def __init__(self, smtp_url: str) -> None:
        self._url = urlsplit(smtp_url)
        self._smtp: smtplib.SMTP | None = None

    def send(self, message: EmailMessage, sender: str, recipient: str) -> Failure | None:
        """Hand one mail over; how it failed, if it did."""
        try:
            if self._smtp is None:
                self._smtp = self._connected()
        except (OSError, smtplib.SMTPException) as error:
            _log.warning("mail_server_unreachable", error=type(error).__name__)
            return Failure.UNREACHABLE
        try:
            self._smtp.send_message(message, sender, [recipient])
        except (OSError, smtplib.SMTPException) as error:
            code = _code(error)
            _log.warning("mail_not_taken", error=type(error).__name__, code=code)
            if not isinstance(error, smtplib.SMTPRecipientsRefused) or code == 421:
                self.close()
            return Failure.REFUSED if code is not None and code >= 500 else Failure.DELAYED
        return None

    def close(self) -> None:
        """Take leave of the server, if it still listens."""
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            try:
                smtp.quit()
            except (OSError, smtplib.SMTPException):
                smtp.close()

    def _connected(self) -> smtplib.SMTP:
        host, port, tls = self._url.hostname or "127.0.0.1", self._url.port or 0, ssl.create_default_context()
        smtp: smtplib.SMTP
        if self._url.scheme == "smtps":
            smtp = smtplib.SMTP_SSL(host, port, timeout=SMTP_SECONDS, context=tls)
        else:
            smtp = smtplib.SMTP(host, port, timeout=SMTP_SECONDS)
        try:
            smtp.ehlo_or_helo_if_needed()
            if self._url.scheme != "smtps" and (smtp.has_extn("starttls") or self._url.username):
                smtp.starttls(context=tls)  # a password never goes out in the clear
            if self._url.username:
                smtp.login(unquote(self._url.username), unquote(self._url.password or ""))
        except BaseException:
            smtp.close()
            raise
        return smtp


def _part(kind: str, written: str) -> EmailMessage:
    """One of the forms in which a mail says the same."""
    part = EmailMessage(_POLICY)
    part["Content-Type"] = f'text/{kind}; charset="utf-8"'
    part["Content-Transfer-Encoding"] = "quoted-printable"
    part.set_payload(b2a_qp(written.encode()).decode("ascii"))
    return part


def _deliver(engine: Engine, settings: Settings, courier: Courier, notice: Notice) -> bool:
    """Send or drop one claimed notice, and note which; whether it makes sense to go on to the next."""
    outcome: Drop | Failure | None = None
    began = time.monotonic()
    try:
        with engine.connect() as connection:
            letter = notices.letter(connection, settings.data_keys, settings.limits.reminders, notice)
        if isinstance(letter, Drop):
            outcome = letter
        else:
            message, address = compose(letter, settings), letter.recipient.email
    except Exception as error:
        if is_the_worlds_fault(error) or isinstance(error, SoftTimeLimitExceeded):
            raise
        _log.error("notice_faulty", kind=notice.kind, attempts=notice.attempts, error=type(error).__name__)
        outcome = Failure.FAULTY
    if outcome is None:
        outcome = courier.send(message, parseaddr(settings.mail_from)[1], address)
    with engine.connect() as connection:
        if outcome is None:
            notices.mark_sent(connection, notice)
        elif isinstance(outcome, Drop):
            notices.drop(connection, notice, outcome)
        else:
            notices.mark_failed(connection, notice, outcome)
    status = str(outcome or "sent")
    metrics.MAILS.labels(notice.kind, status).inc()
    traces.mailed(notice.request_id, str(notice.id), notice.kind, status, time.monotonic() - began)
    _log.info("notice", kind=notice.kind, status=status, attempts=notice.attempts)
    return outcome is not Failure.UNREACHABLE


def _link(letter: Letter, settings: Settings) -> str:
    """Where a mail leads. A token stands in the fragment, which no browser sends and no server logs: the page there posts it."""
    page = _PAGES.get(letter.notice.kind)
    return f"{settings.public_url}/{page}#token={letter.token}" if page else f"{settings.public_url}/"


def _code(error: Exception) -> int | None:
    """The mail server's answer, if it gave one."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return max(code for code, _ in error.recipients.values())
    if isinstance(error, smtplib.SMTPNotSupportedError):  # an address that this server can't even be told
        return 553
    return error.smtp_code if isinstance(error, smtplib.SMTPResponseException) else None


def _filled(letter: Letter, words: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The values for the braces of the words."""
    recipient, visit = letter.recipient, letter.visit
    filled = {"name": _line(recipient.name), "site": settings.public_url}
    if visit is None:
        return filled
    zone = ZoneInfo(recipient.timezone)
    filled |= {"doctor": _line(visit.doctor), "patient": _line(visit.patient or words["labels"]["patient"])}
    filled |= {"short": words["short"].format_map(_moment(visit.during, zone, words))}
    if visit.deadline is not None:
        deadline = Interval(visit.deadline, visit.deadline)
        filled["deadline"] = words["moment"].format_map(_moment(deadline, zone, words))
    if visit.by is not None:
        filled["by"] = words["by"][recipient.role][visit.by].format_map(filled)
    return filled


def _facts(
    visit: Visit, recipient: Recipient, notice: Notice, words: Mapping[str, Any], filled: Mapping[str, Any]
) -> list[tuple[str, str]]:
    labels = words["labels"]
    if recipient.role is Role.PATIENT:
        facts = [(labels["doctor"], f"{filled['doctor']}, CRM {visit.crm}")]
    else:
        facts = [(labels["patient"], filled["patient"])]
    span = words["span"].format_map(_moment(visit.during, ZoneInfo(recipient.timezone), words))
    facts.append((labels["when"], span))
    if visit.join_url is not None and notice.kind in (Kind.ACCEPTED, Kind.REMINDER):
        facts.append((labels["join_url"], visit.join_url))
    if notice.kind in (Kind.REFUSED, Kind.CANCELLED):
        kind = visit.refusal_kind and words["refusal"][visit.refusal_kind]
        if reasons := [each for each in (kind, visit.reason and _line(visit.reason)) if each]:
            facts.append((labels["reason"], ": ".join(reasons)))
    return facts


def _others(visit: Visit, recipient: Recipient, words: Mapping[str, Any]) -> list[str]:
    """The rest of the doctor's day: times and how they stand, and nobody's name."""
    zone = ZoneInfo(recipient.timezone)
    moments = [(_moment(during, zone, words), status) for during, status in visit.others]
    return [f"{moment['time']}–{moment['end']}: {words['status'][status]}" for moment, status in moments]


def _moment(during: Interval, zone: ZoneInfo, words: Mapping[str, Any]) -> dict[str, Any]:
    start, end = during.starts_at.astimezone(zone), during.ends_at.astimezone(zone)
    return {
        "weekday": words["weekdays"][start.weekday()],
        "day": start.day,
        "month": words["months"][start.month - 1],
        "month_number": start.month,
        "year": start.year,
        "time": f"{start:%H:%M}",
        "end": f"{end:%H:%M}",
        "zone": f"{zone.key}, UTC{start.isoformat()[-6:]}",
    }


def _asked_of_calendar(notice: Notice, visit: Visit) -> tuple[Method, EntryStatus] | None:
    """What the reader's calendar is to do. A first request is in no calendar yet, and so is what ends one."""
    match notice.kind:
        case Kind.ACCEPTED:
            return Method.REQUEST, EntryStatus.CONFIRMED
        case Kind.RESCHEDULED:
            return Method.REQUEST, EntryStatus.TENTATIVE
        case Kind.CANCELLED:
            return Method.CANCEL, EntryStatus.CANCELLED
        case Kind.REFUSED | Kind.EXPIRED if visit.rescheduled:
            return Method.CANCEL, EntryStatus.CANCELLED
    return None


def _entry(letter: Letter, visit: Visit, status: EntryStatus, words: Mapping[str, Any], content: Mapping[str, Any]) -> Entry:
    return Entry(
        appointment_id=visit.appointment_id,
        during=visit.during,
        status=status,
        sequence=letter.notice.sequence,
        changed_at=letter.notice.due_at,
        timezone=letter.recipient.timezone,
        title=words["title"],
        description="\n".join(f"{label}: {value}" for label, value in content["facts"]),
        join_url=visit.join_url if status is EntryStatus.CONFIRMED else None,
    )


def _line(text: str) -> str:
    """One line of what somebody wrote: a line break must never begin a new header."""
    return " ".join(text.split())


@cache
def _words(language: str) -> Mapping[str, Any]:
    return tomllib.loads((_TEMPLATES / f"{language}.toml").read_text("utf-8"))


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
