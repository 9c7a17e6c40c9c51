"""The specialties are the council's own, and cannot be changed by mistake."""

from __future__ import annotations

import pytest

from domain.specialties import GENERAL_PRACTITIONER, SPECIALTIES, Specialty


def test_there_are_the_councils_55_and_the_general_practitioner() -> None:
    assert len([each for each in SPECIALTIES.values() if each.registered]) == 55
    assert SPECIALTIES[GENERAL_PRACTITIONER] == Specialty("clinico-geral", "Clínico geral", registered=False)
    assert len(SPECIALTIES) == 56


def test_codes_are_stable_words_that_fit_into_an_address() -> None:
    for code, specialty in SPECIALTIES.items():
        assert code == specialty.code
        assert code.isascii()
        assert code.replace("-", "").isalpha()
        assert code == code.lower()


def test_they_stand_in_the_order_in_which_portuguese_sorts_their_names() -> None:
    names = [each.name for each in SPECIALTIES.values()]
    assert names[0] == "Acupuntura"
    assert names[-1] == "Urologia"
    assert names.index("Cirurgia vascular") + 1 == names.index("Clínica médica")
    assert names.index("Clínica médica") + 1 == names.index("Clínico geral")
    assert names.index("Clínico geral") + 1 == names.index("Coloproctologia")
    assert names.index("Genética médica") + 1 == names.index("Geriatria")


def test_nobody_can_add_or_change_one() -> None:
    with pytest.raises(TypeError):
        SPECIALTIES["medicina-do-sono"] = SPECIALTIES["neurologia"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        SPECIALTIES["neurologia"].name = "Sono"  # type: ignore[misc]
