"""The API in a test: the application on real servers, and a client for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient

from api.app import create_app
from domain.settings import Settings
from local.servers import Postgres
from tests.api.clinic import Clinic
from tests.api.ways import BothWays
from tests.conftest import start_again
from tests.factories import Accounts


@pytest.fixture(scope="session")
def app(settings: Settings, postgres: Postgres) -> Iterator[Flask]:
    """The application, on the tests' servers. What is read of it is read in both ways, and must be the same."""
    start_again(postgres)  # or the application would find no database, and remember that for a second
    app = create_app(settings)
    app.wsgi_app = BothWays(app)  # type: ignore[method-assign]
    yield app
    app.extensions["healthmed"].close()


@pytest.fixture
def client(app: Flask, postgres: object, broker: object, cache_server: object) -> FlaskClient:
    """Somebody who sends requests; the servers are clean, and the application has seen that the database is there."""
    deadline = time.monotonic() + 10
    while app.extensions["healthmed"].cache.without_database:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return app.test_client()


@pytest.fixture
def limited(settings: Settings, client: FlaskClient) -> Iterator[FlaskClient]:
    """A client of an application that counts attempts and believes one proxy."""
    app = create_app(replace(settings, rate_limits=True, proxy_hops=1))
    yield app.test_client()
    app.extensions["healthmed"].close()


@pytest.fixture
def accounts(app: Flask, client: FlaskClient) -> Accounts:
    """Makes people who are registered and logged in."""
    services = app.extensions["healthmed"]
    return Accounts(services.engine, services.settings, services.cache, services.broker)


@pytest.fixture
def clinic(app: Flask, client: FlaskClient, accounts: Accounts) -> Clinic:
    """People, slots and requests, and the engine that decides them."""
    return Clinic(client, accounts, app.extensions["healthmed"])
