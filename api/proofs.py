"""Proving who one is, by password and by code, under limits that slow down guessing and lock nobody out."""

from __future__ import annotations

from uuid import UUID

from api.attempts import CODES_OF_ACCOUNT, FAILURES_FROM_ADDRESS, FAILURES_FROM_KNOWN, FAILURES_OF_ACCOUNT
from api.auth import current
from api.services import client_address, services
from domain import identity, passwords, privacy, sessions
from domain.errors import Invalid
from domain.identity import Account

_NOBODY = UUID(int=0)  # asked after in the place of an account that isn't there, which must take as long


def check_password(account: Account | None, tried: str, password: str) -> bool:
    """Whether this is the account's password: the same work and the same answer for an account that isn't there.

    `tried` names what was tried to log in to. Raises TooMany if it was wrong too often, for the account or from this address;
    strangers' failures don't count against an address that logged in to the account before. Raises Unavailable if it takes more
    than 5 seconds to get a turn to hash.
    """
    use, origin = services(), origin_key()
    known, key = _count_of(account.id if account else _NOBODY, str(account.id) if account else tried)
    limit = FAILURES_FROM_KNOWN if known else FAILURES_OF_ACCOUNT
    use.attempts.check(FAILURES_FROM_ADDRESS, origin)
    use.attempts.check(limit, key)
    right = passwords.verify_password(account.password_hash if account else None, password)
    # Many guesses at once all pass the check above; what they found out is told only within the limit.
    if right:
        use.attempts.check(limit, key)
    else:
        use.attempts.count(limit, key)
        use.attempts.count(FAILURES_FROM_ADDRESS, origin)
    return right


def must_know_password(password: str, *, field: str = "password") -> None:
    """Ask whoever is logged in for their password again. Raises Invalid, which names the `field`, and as `check_password`."""
    with services().reads.connect() as connection:
        account = identity.account_of_person(connection, current().id)
    if not check_password(account, str(current().id), password):
        raise Invalid({field: ["Senha incorreta. / Wrong password."]}, code="wrong_password")


def count_code(person_id: UUID) -> None:
    """Count that a code is tried, before it is. Raises TooMany; an address that logged in before has a count of its own."""
    _, key = _count_of(person_id, str(person_id))
    services().attempts.count(CODES_OF_ACCOUNT, key)


def origin_key() -> str:
    """The key of what is counted by the address that a request comes from."""
    return sessions.address_hash(services().settings, client_address()).hex()


def _count_of(person_id: UUID, account: str) -> tuple[bool, str]:
    """Whether the request comes from where the person logged in before, and the key under which its tries are counted."""
    use = services()
    with use.reads.connect() as connection:
        known = sessions.known_address(connection, use.settings, person_id, client_address())
    key = privacy.look_up_hash(use.settings.hash_key, "login", account).hex()
    return known, f"{key}:{origin_key()}" if known else key
