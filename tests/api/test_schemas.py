"""The fields that bodies and queries are made of: what each reads, and what it refuses."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError, fields

from api.schemas import (
    Agreed,
    Body,
    Choice,
    Clock,
    CpfText,
    CrmText,
    Day,
    EmailText,
    Flag,
    Id,
    Instant,
    Many,
    MoneyBody,
    Name,
    Part,
    Phone,
    Query,
    Secret,
    Text,
    Whole,
    Zone,
)
from domain.identifiers import Crm


def read(field: fields.Field[Any], value: object) -> Any:
    return Body.from_dict({"it": field})().load({"it": value})["it"]


@pytest.mark.parametrize(
    ("field", "written", "value"),
    [
        (Text(most=5), "  olá  ", "olá"),
        (Text(most=5, lines=True), "a\n\tb", "a\n\tb"),
        (Name(), " José   da  Silva ", "José da Silva"),
        (Name(), "Jose\u0301", "Jos\u00e9"),
        (Name(), "D'Ávila-Sá", "D'Ávila-Sá"),
        (Secret(), "  \x00 é  ", "  \x00 é  "),
        (Choice(["a", "b"]), "b", "b"),
        (Whole(1, 5), 5, 5),
        (Flag(), False, False),
        (Agreed(), True, True),
        (Instant(), "2026-12-01T09:00:00-03:00", datetime(2026, 12, 1, 12, tzinfo=UTC)),
        (Instant(), "2026-12-01t12:00:00.5z", datetime(2026, 12, 1, 12, 0, 0, 500_000, tzinfo=UTC)),
        (Day(), "2028-02-29", date(2028, 2, 29)),
        (Clock(), "23:59", time(23, 59)),
        (Zone(), "America/Noronha", "America/Noronha"),
        (CrmText(), "52-12345-6/rj", Crm("52123456", "", "RJ")),
        (CpfText(), "529.982.247-25", "52998224725"),
        (EmailText(), " Ana@Example.com ", "Ana@Example.com"),
        (Phone(), "+55 (11) 91234-5678", "+5511912345678"),
        (Phone(), "(11) 91234-5678", "11912345678"),
        (Part(MoneyBody), {"amount": 0, "currency": "BRL"}, 0),
        (Part(MoneyBody), {"amount": 10_000_000, "currency": "BRL"}, 10_000_000),
        (Many(Whole(1, 5), most=2), [1, 2], [1, 2]),
    ],
)
def test_a_field_reads_what_people_write(field: fields.Field[Any], written: object, value: object) -> None:
    assert read(field, written) == value


TEXTS = ["a\x00b", "a\x1bb", "\ud800", "a\ud83d", "a\u202eb", "a\u2028b", "", "   ", None, 1, True, [], {}]


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        (Text(most=3), [*TEXTS, "abcd", "a\nb", "a\tb"]),
        (Text(most=3, lines=True), [*TEXTS, "abcd"]),
        (Name(), [*TEXTS, "x", "12", "...", "a\u200bb", "x" * 201]),
        (Secret(least=2, most=3), ["a", "abcd", "a\ud800", 12, None, [], True]),
        (Choice(["a"]), ["b", "A", "", None, 1, ["a"], {}]),
        (Whole(1, 5), [0, 6, 2**63, 2**64, -(2**70), 1.0, 1.5, "1", True, None, math.inf, [], {}]),
        (Flag(), [0, 1, "true", "on", None, []]),
        (Agreed(), [False, 1, "true", None]),
        (Id(), ["", "1", 1, None, [], "{}", "x" * 36, "\ud800"]),
        (Day(), ["2026-02-29", "2026-13-01", "20261201", "2026-W01-1", "0000-01-01", "2026-1-1", "٢٠٢٦-12-01", 20261201, None]),
        (Clock(), ["24:00", "9:00", "09:60", "09:00:00", "0900", 900, None]),
        (Zone(), ["", "UTC+3", "Brasilia", "../etc", "america/sao_paulo", "localtime", 3, None]),
        (CrmText(), ["", "123456", "123456/ZZ", "0/SP", "１２３/SP", "1" * 200, 123456, None]),
        (CpfText(), ["", "191", "00000000000", "52998224724", "5299822472５", 52998224725, None]),
        (EmailText(), ["", "a", "a@b", "a b@example.com", "a@example..com", "a\n@example.com", "é" * 300 + "@x.com", 1, None]),
        (Phone(), ["", "1234567", "+" * 9, "1" * 16, "11 91234-5678 ramal 2", 11912345678, None]),
        (
            Instant(),
            [
                "2026-12-01T09:00:00",
                "2026-12-01",
                "2026-12-01 09:00:00-03:00",
                "2026-02-30T09:00:00Z",
                "2026-12-01T24:00:00Z",
                "2026-12-01T09:00:60Z",
                "2026-12-01T09:00:00+25:00",
                "0001-01-01T00:00:00+14:00",
                "9999-12-31T23:59:59-14:00",
                "20261201T090000Z",
                1_800_000_000,
                None,
            ],
        ),
        (Part(MoneyBody), [{}, {"amount": 1}, {"amount": 1, "currency": "BRL", "tax": 1}, 1, "1", [], None]),
        (Many(Whole(1, 5), least=1, most=2), [[], [1, 2, 3], [9], "1", {}, 1, None]),
    ],
)
def test_a_field_refuses_what_cannot_be_meant(field: fields.Field[Any], refused: list[object]) -> None:
    for value in refused:
        with pytest.raises(ValidationError):
            read(field, value)


@pytest.mark.parametrize(
    ("field", "written", "value"),
    [(Whole(1, 50), "07", 7), (Flag(), "true", True), (Flag(), "false", False)],
)
def test_a_query_writes_numbers_and_flags_as_texts(field: fields.Field[Any], written: str, value: object) -> None:
    query = type("AnyQuery", (Query,), {"it": field})()
    assert query.load({"it": written, "unknown": "1"}) == {"it": value}
    for wrong in ("", "x", "1.0", "-1", "+1", "1_0", "١", "TRUE", "9" * 400):
        with pytest.raises(ValidationError):
            query.load({"it": wrong})


@given(st.text(st.characters(codec=None), max_size=50))
def test_whatever_text_is_let_in_can_be_stored(text: str) -> None:
    for field in (Text(most=50, lines=True), Name(), EmailText()):
        try:
            let_in = read(field, text)
        except ValidationError:
            continue
        assert "\x00" not in let_in
        assert let_in.encode().decode() == let_in


def test_every_message_is_in_two_languages() -> None:
    for field in (
        Text(most=3),
        Name(),
        Secret(),
        Whole(1, 5),
        Flag(),
        Id(),
        Instant(),
        Day(),
        Clock(),
        Zone(),
        CrmText(),
        CpfText(),
    ):
        for value in (None, object(), [], "\ud800", 10**30):
            with pytest.raises(ValidationError) as refused:
                read(field, value)
            assert all(" / " in message for message in refused.value.messages["it"])
