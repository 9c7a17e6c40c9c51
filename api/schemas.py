"""Bodies in and out: the fields that routes share, each refusing what can't be stored or shown, and how a body is read."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time
from functools import cache
from typing import Any, NoReturn
from zoneinfo import available_timezones

import flask_smorest
from flask import Request
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, post_load, validate
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from domain.errors import Invalid
from domain.identifiers import Crm, Malformed, normalise_email, parse_cpf, parse_crm
from domain.second_factor import LONGEST_CODE

CURRENCY = "BRL"
MAX_PRICE = 10_000_000  # minor units
LANGUAGES = ("pt-BR", "en")
MAX_PAGE_SIZE = 100

# Controls, lone surrogates, and the marks that turn the direction of what stands around them.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069\ufffe\uffff]")
_LINE_BREAKS = re.compile(r"[\t\r\n]")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_CLOCK = re.compile(r"\d\d:\d\d", re.ASCII)
_CODE = re.compile(r"[0-9A-Za-z -]*", re.ASCII)
_PHONE = re.compile(r"\+?[0-9(][0-9 ().-]{6,30}", re.ASCII)


class _Field(fields.Field[Any]):
    """What every field of ours says when it is missing or null."""

    default_error_messages = {  # noqa: RUF012
        "required": "Obrigatório. / Required.",
        "null": "Não pode ser nulo. / May not be null.",
        "validator_failed": "Valor inválido. / Invalid value.",
        "invalid": "Valor inválido. / Invalid value.",
        "type": "Valor inválido. / Invalid value.",
        "invalid_uuid": "Identificador inválido. / Not a valid id.",
    }


def _length(least: int, most: int) -> validate.Length:
    return validate.Length(
        least, most, error=f"Deve ter de {least} a {most} caracteres. / Must have {least} to {most} characters."
    )


class Secret(_Field, fields.String):
    """A password, code or token: kept as it is, spaces and all. Only what has no UTF-8 form is refused."""

    def __init__(self, *, least: int = 1, most: int = 128, **options: Any) -> None:
        super().__init__(validate=_length(least, most), **options)

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> str:
        if not isinstance(value, str):
            raise ValidationError("Deve ser um texto. / Must be a text.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValidationError("O texto tem caracteres inválidos. / The text has invalid characters.") from None
        return value


class Code(Secret):
    """A code of an app or a recovery code, with the blanks or dashes that people write in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(least=6, most=LONGEST_CODE, **options)

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> str:
        code = super()._deserialize(value, attr, data, **options)
        if not _CODE.fullmatch(code):
            raise ValidationError("Não é um código. / Not a code.")
        return code


class Text(_Field, fields.String):
    """What a person wrote, trimmed; `lines` lets it have more than one line. Its length is counted after trimming."""

    def __init__(self, *, least: int = 1, most: int, lines: bool = False, **options: Any) -> None:
        super().__init__(validate=_length(least, most), **options)
        self._lines = lines

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> str:
        if not isinstance(value, str):
            raise ValidationError("Deve ser um texto. / Must be a text.")
        trimmed = value.strip()
        if _UNFIT.search(trimmed) or (not self._lines and _LINE_BREAKS.search(trimmed)):
            raise ValidationError("O texto tem caracteres inválidos. / The text has invalid characters.")
        return trimmed


class Name(Text):
    """A person's name: one line with a letter in it, single spaces, composed accents."""

    def __init__(self, **options: Any) -> None:
        super().__init__(least=2, most=200, **options)

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> str:
        name = unicodedata.normalize("NFC", " ".join(str(super()._deserialize(value, attr, data, **options)).split()))
        if not name.isprintable() or not any(character.isalpha() for character in name):
            raise ValidationError("O texto tem caracteres inválidos. / The text has invalid characters.")
        return name


class Choice(_Field, fields.String):
    """One of a few words."""

    def __init__(self, choices: Iterable[str], **options: Any) -> None:
        words = list(choices)
        some = ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
        super().__init__(validate=validate.OneOf(words, error=f"Deve ser um destes: {some}. / Must be one of them."), **options)

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> str:
        if not isinstance(value, str):
            raise ValidationError("Deve ser um texto. / Must be a text.")
        return value


class Whole(_Field, fields.Integer):
    """A whole number within bounds: neither a fraction nor a boolean; its digits as a text only in a query."""

    def __init__(self, least: int, most: int, **options: Any) -> None:
        error = f"Deve ser um inteiro de {least} a {most}. / Must be a whole number from {least} to {most}."
        super().__init__(validate=validate.Range(least, most, error=error), **options)
        self._error = error

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> int:
        in_query = isinstance(self.parent, Query)
        if in_query and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValidationError(self._error)
        return value


class Flag(_Field, fields.Boolean):
    """True or false: as such in a body, as the words in a query."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> bool:
        words = {"true": True, "false": False} if isinstance(self.parent, Query) else {}
        if isinstance(value, str) and value in words:
            return words[value]
        if not isinstance(value, bool):
            raise ValidationError("Deve ser true ou false. / Must be true or false.")
        return value


class Agreed(Flag):
    """What must be agreed to: true, and nothing else."""

    def __init__(self, **options: Any) -> None:
        error = "É preciso aceitar. / Must be agreed to."
        super().__init__(required=True, validate=validate.Equal(True, error=error), metadata={"enum": [True]}, **options)


class Id(_Field, fields.UUID):
    """The id of something."""


class Part(_Field, fields.Nested):
    """An object inside a body."""


class Many(_Field, fields.List):
    """A list of at most `most`."""

    def __init__(self, inner: Any, *, least: int = 0, most: int, **options: Any) -> None:
        error = f"Deve ter de {least} a {most} itens. / Must have {least} to {most} items."
        super().__init__(inner, validate=validate.Length(least, most, error=error), **options)


class Several(_Field, fields.List):
    """Some of a few words, in a query: the name repeated, the words separated by commas, or both; read into a tuple."""

    def __init__(self, choices: Iterable[str], **options: Any) -> None:
        super().__init__(Text(least=0, most=2000), **options)  # all specialties at once are some 1,200 characters
        self._word = Choice(choices)

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> tuple[str, ...]:  # type: ignore[override]
        texts = super()._deserialize(value, attr, data, **options)
        words = (word.strip() for text in texts for word in str(text).split(","))
        return tuple(dict.fromkeys(self._word.deserialize(word) for word in words if word))


class Instant(_Field, fields.AwareDateTime):
    """An RFC 3339 time with its offset, read into UTC."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> datetime:
        if isinstance(value, str) and _INSTANT.fullmatch(value):
            try:
                return datetime.fromisoformat(value.upper()).astimezone(UTC)
            except (ValueError, OverflowError):
                pass
        raise ValidationError("Deve ser um instante com fuso, como 2026-12-01T09:00:00-03:00. / Must be a time with its offset.")


class Day(_Field, fields.Date):
    """A date, YYYY-MM-DD."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> date:
        if isinstance(value, str) and _DAY.fullmatch(value):
            try:
                return date.fromisoformat(value)
            except ValueError:
                pass
        raise ValidationError("Deve ser uma data AAAA-MM-DD que existe. / Must be an existing date, YYYY-MM-DD.")


class Clock(_Field, fields.Time):
    """A time of day, HH:MM."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> time:
        if isinstance(value, str) and _CLOCK.fullmatch(value):
            try:
                return time.fromisoformat(value)
            except ValueError:
                pass
        raise ValidationError("Deve ser uma hora HH:MM. / Must be a time of day, HH:MM.")


class _Read(_Field, fields.String):
    """A text that something in the domain can read, or not."""

    read: Callable[[str], Any]
    english: str

    def _deserialize(self, value: Any, attr: Any, data: Any, **options: Any) -> Any:
        if not isinstance(value, str):
            raise ValidationError("Deve ser um texto. / Must be a text.")
        try:
            return type(self).read(value)
        except Malformed as malformed:
            raise ValidationError(f"{malformed} / {self.english}") from None


def _crm(text: str) -> Crm:
    return parse_crm(text)


def _email(text: str) -> str:
    normalise_email(text)
    return text.strip(" ")


def _zone(text: str) -> str:
    if text not in _zones():
        raise Malformed("Fuso horário desconhecido: use um nome como America/Sao_Paulo.")
    return text


def _phone(text: str) -> str:
    digits = re.sub(r"[^0-9+]", "", text)
    if not _PHONE.fullmatch(text.strip(" ")) or not 8 <= len(digits.lstrip("+")) <= 15:
        raise Malformed("Telefone inválido: escreva com DDD, de 8 a 15 dígitos.")
    return digits


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() - {"localtime", "Factory"})


class CrmText(_Read):
    """A CRM in any form that people write; read into a `Crm`."""

    read = staticmethod(_crm)
    english = "Not a CRM: write the number and the state, like 123456/SP."


class CpfText(_Read):
    """A CPF, with or without punctuation; read into its 11 digits."""

    read = staticmethod(parse_cpf)
    english = "Not a valid CPF."


class EmailText(_Read):
    """An e-mail address, kept as it was written."""

    read = staticmethod(_email)
    english = "Not an e-mail address."


class Zone(_Read):
    """The IANA name of a time zone."""

    read = staticmethod(_zone)
    english = "Unknown time zone: use a name like America/Sao_Paulo."


class Phone(_Read):
    """A telephone number, read into its digits and a leading plus."""

    read = staticmethod(_phone)
    english = "Not a telephone number of 8 to 15 digits."


class Body(Schema):
    """A request's body, or an object in it: what it doesn't know, it refuses."""

    error_messages = {  # noqa: RUF012
        "type": "Deve ser um objeto. / Must be an object.",
        "unknown": "Campo desconhecido. / Unknown field.",
    }

    class Meta:
        unknown = RAISE


class Nothing(Body):
    """The body of a call without fields: empty, or `{}`."""


class Query(Schema):
    """What stands after the question mark; unknown names there are ignored, and the first of a repeated one counts."""

    error_messages = Body.error_messages

    class Meta:
        unknown = EXCLUDE


class PageQuery(Query):
    """Which page of a list."""

    page = Whole(1, 1_000_000, load_default=1)
    page_size = Whole(1, MAX_PAGE_SIZE, load_default=20)


class MoneyBody(Body):
    """An amount in minor units and its currency; read into the amount, since there is one currency."""

    amount = Whole(0, MAX_PRICE, required=True)
    currency = Choice([CURRENCY], required=True)

    @post_load
    def _amount(self, data: dict[str, Any], **_: Any) -> int:
        return int(data["amount"])


class Answer(Schema):
    """What is answered. Its fields are described for the OpenAPI document; what isn't there is left out."""


class UtcInstant(fields.AwareDateTime):
    """An RFC 3339 time, answered in UTC."""

    def _serialize(self, value: Any, attr: Any, obj: Any, **options: Any) -> str | None:
        return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


class Money(Answer):
    """An amount in minor units and its currency, as answered."""

    amount = fields.Integer(required=True)
    currency = fields.String(required=True, validate=validate.OneOf([CURRENCY]))


class Specialty(Answer):
    """A doctor's specialty, as answered."""

    code = fields.String(required=True)
    name = fields.String(required=True)
    rqe = fields.String(required=True)


class Problem(Answer):
    """What went wrong (RFC 9457). Answered as `application/problem+json`; this class only describes it."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    code = fields.String(required=True)
    errors = fields.Dict(keys=fields.String(), values=fields.List(fields.String()))


class _Reader(FlaskParser):
    """Reads bodies strictly, and says what is wrong with them by the path of the field."""

    def load_json(self, req: Request, schema: Schema) -> Any:
        return read_body(req)

    def handle_error(self, error: ValidationError, *_: Any, **__: Any) -> NoReturn:
        (messages,) = error.messages_dict.values()  # one location at a time
        raise Invalid(dict(_by_path(messages, ())))


class Blueprint(flask_smorest.Blueprint):
    """A set of routes. Below each route stands its `@policy`; bodies are read as this module says."""

    ARGUMENTS_PARSER = _Reader()


def read_body(request: Request) -> Any:
    """The JSON of a request; an empty body is an empty object.

    Raises UnsupportedMediaType for a body that isn't said to be JSON, and BadRequest for JSON that is malformed: that isn't
    UTF-8, names a field twice, holds NaN or an infinity, or is nested too deeply to be meant.
    """
    body = request.get_data(cache=True)
    if not body.strip():
        return {}
    if not request.is_json or request.content_encoding:
        raise UnsupportedMediaType("O corpo deve ser application/json. / The body must be application/json.")
    try:
        return json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise BadRequest("JSON malformado. / Malformed JSON.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _by_path(messages: Any, path: tuple[str, ...]) -> Iterable[tuple[str, list[str]]]:
    if isinstance(messages, Mapping):
        for name, inner in messages.items():
            yield from _by_path(inner, path if name == "_schema" else (*path, str(name)))
    else:
        yield ".".join(path) or "body", [str(message) for message in messages]
