"""Times that tell nothing: known and unknown people, interleaved, so that a busy machine is as busy for both."""

from __future__ import annotations

import random
import time
from statistics import quantiles
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.factories import Accounts

WRONG = {"password": "wrong password"}
TRIES = 3  # what tells people apart does so each time, and a busy machine does not


def apart(client: FlaskClient, path: str, known: dict[str, Any], unknown: dict[str, Any], times: int, status: int) -> float:
    """By how much of the longer one the times of two answers differ: of 500 in the median, of fewer in the lower quartile.

    They are asked for in pairs whose order is drawn.
    """
    order = random.Random(7)
    seconds: tuple[list[float], list[float]] = ([], [])
    for n in range(times + 1):
        for which in order.sample((0, 1), 2):
            began = time.perf_counter()
            answer = client.post(path, json=(known, unknown)[which])
            if n > 0:  # the first ones warm everything up
                seconds[which].append(time.perf_counter() - began)
            assert answer.status_code == status
    first, second = (quantiles(each, n=4)[1 if times >= 500 else 0] for each in seconds)
    return abs(first - second) / max(first, second)


@pytest.mark.parametrize("door", ["patient by e-mail", "patient by CPF", "doctor", "staff"])
def test_a_wrong_password_takes_the_same_time_for_known_and_unknown_people(
    client: FlaskClient, accounts: Accounts, long: bool, door: str
) -> None:
    accounts.patient(email="ana@example.com", cpf="52998224725")
    known, unknown = {
        "patient by e-mail": ({"login": "ana@example.com"}, {"login": "ninguem@example.com"}),
        "patient by CPF": ({"login": "52998224725"}, {"login": "11144477735"}),
        "doctor": ({"crm": accounts.doctor().login}, {"crm": "1/AC"}),
        "staff": ({"login": accounts.staff().login}, {"login": "ninguem@healthmed.example"}),
    }[door]
    path = f"/api/v1/auth/{door.split()[0]}"
    times, tolerance = (500, 0.05) if long else (20, 0.25)
    assert any(apart(client, path, {**known, **WRONG}, {**unknown, **WRONG}, times, 401) < tolerance for _ in range(TRIES))


def test_a_forgotten_password_takes_the_same_time_for_known_and_unknown_people(
    client: FlaskClient, accounts: Accounts, long: bool
) -> None:
    known, unknown = {"login": accounts.patient().login}, {"login": "ninguem@example.com"}
    times, tolerance = (500, 0.05) if long else (60, 0.25)
    assert any(apart(client, "/api/v1/auth/password/forgot", known, unknown, times, 202) < tolerance for _ in range(TRIES))
