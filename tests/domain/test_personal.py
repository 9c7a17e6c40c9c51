"""What is held about people: every column is classified, and what the classification says is what the database does."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import LargeBinary

from domain.migrations import APPEND_ONLY
from domain.model import Base
from domain.personal import HOLDINGS

TABLES = sorted(Base.metadata.tables)


@pytest.mark.parametrize("table", TABLES)
def test_every_column_says_what_it_holds_about_people(table: str) -> None:
    """Whoever adds a column says in `domain.personal` whether an export tells it, and whether an erasure empties it."""
    columns = sorted(column.name for column in Base.metadata.tables[table].columns)
    assert sorted(HOLDINGS[table].columns) == columns


def test_nothing_is_said_of_tables_that_are_not_there() -> None:
    assert set(HOLDINGS) == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_whatever_an_erasure_empties_can_be_empty(table: str) -> None:
    holding, columns = HOLDINGS[table], Base.metadata.tables[table].columns
    assert holding.append_only == (table in APPEND_ONLY and holding.whose is not None)
    if not holding.goes and not holding.append_only:
        assert all(columns[name].nullable for name in holding.emptied)


@pytest.mark.parametrize("table", TABLES)
def test_rows_about_somebody_are_found_by_who_it_is(table: str) -> None:
    holding, columns = HOLDINGS[table], Base.metadata.tables[table].columns
    people = {
        column.name for column in columns if any(key.column.table.name in ("people", "doctors") for key in column.foreign_keys)
    }
    if holding.whose is None:
        assert people <= {"doctor_id"}, "only slots belong to a doctor without telling anything of them"
    else:
        assert ":person" in holding.whose
    if holding.emptied or holding.told:
        assert holding.whose is not None


@pytest.mark.parametrize("table", TABLES)
def test_bytes_are_told_only_where_they_say_something(table: str) -> None:
    """What is sealed or hashed says nothing to anybody as it stands, so it can't be told as it stands."""
    holding = HOLDINGS[table]
    told = {
        column.name
        for column in Base.metadata.tables[table].columns
        if isinstance(column.type, LargeBinary) and column.name in f"{holding.ids} {holding.told}".split()
    }
    assert told <= {"text_hash"}, "a consent's text is named by its hash"


@pytest.mark.parametrize("table", TABLES)
def test_what_sounds_personal_is_not_about_nobody(table: str) -> None:
    sounds = re.compile(r"cpf|email|phone|address|birth|password|secret|private|notes|reason|token|origin")
    harmless = {"drop_reason"}
    assert not {name for name in HOLDINGS[table].plain.split() if sounds.search(name)} - harmless
