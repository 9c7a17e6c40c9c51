"""The specialties of Brazil's medical council (CFM 2.380/2024), and the general practitioner, who has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

from domain.identifiers import name_key

GENERAL_PRACTITIONER = "clinico-geral"


@dataclass(frozen=True, slots=True)
class Specialty:
    """What a patient may look for. Only a registered one can be a doctor's, with its RQE number."""

    code: str
    name: str
    registered: bool


def _read() -> Mapping[str, Specialty]:
    published = json.loads(files("domain").joinpath("specialties.json").read_text(encoding="utf-8"))["items"]
    known = [Specialty(item["code"], item["name"], registered=True) for item in published]
    known.append(Specialty(GENERAL_PRACTITIONER, "Clínico geral", registered=False))
    # Portuguese collates letters before accents, so that the names without them put all of ours in order.
    return MappingProxyType({each.code: each for each in sorted(known, key=lambda each: name_key(each.name))})


SPECIALTIES: Mapping[str, Specialty] = _read()  # by code, in the order of their names
