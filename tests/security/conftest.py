"""The API in a test, as the tests of its routes have it."""

from tests.api.conftest import accounts, app, client, clinic, limited

__all__ = ["accounts", "app", "client", "clinic", "limited"]
