import base64
import json
from itertools import count
from uuid import UUID, uuid4

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from domain.privacy import (
    KeyRing,
    Unreadable,
    look_up_hash,
    new_data_key,
    open_sealed,
    redact,
    redact_event,
    rewrap,
    seal,
    unwrap,
)

KEY = bytes(range(32))
ROW = UUID("0193f7a2-1234-7abc-9def-123456789012")
PERSON = UUID("0193f7a2-5678-7abc-9def-123456789012")


numbers = count()


def secret() -> str:
    """Another key each time, but the same ones in every process: they are parts of tests' names."""
    return base64.b64encode(next(numbers).to_bytes(32)).decode()


def ring_of(*ids: str) -> KeyRing:
    return KeyRing.parse(",".join(f"{key_id}={secret()}" for key_id in ids))


def without_first(ring: KeyRing) -> KeyRing:
    rest = {key_id: key for key_id, key in ring.keys.items() if key_id != ring.first}
    return KeyRing(next(iter(rest)), rest)


texts = st.text(st.characters(codec="utf-8"))


@given(texts)
def test_what_was_sealed_opens_again(text: str) -> None:
    sealed = seal(KEY, text, context="people.email", row_id=ROW)
    assert open_sealed(KEY, sealed, context="people.email", row_id=ROW) == text
    assert len(sealed) == len(text.encode()) + 29


@given(texts, st.data())
def test_a_sealed_value_with_any_bit_flipped_is_refused(text: str, data: st.DataObject) -> None:
    sealed = bytearray(seal(KEY, text, context="people.email", row_id=ROW))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Unreadable):
        open_sealed(KEY, bytes(sealed), context="people.email", row_id=ROW)


@given(st.binary())
def test_bytes_that_were_never_sealed_are_refused(junk: bytes) -> None:
    for stored in (junk, b"\x01" + junk, b"\x02" + junk):
        with pytest.raises(Unreadable):
            open_sealed(KEY, stored, context="people.email", row_id=ROW)
        with pytest.raises(Unreadable):
            unwrap(ring_of("a"), PERSON, stored)


@pytest.mark.parametrize(
    ("key", "context", "row"),
    [(KEY[::-1], "people.email", ROW), (KEY, "people.phone", ROW), (KEY, "people.email", PERSON)],
    ids=["key", "context", "row"],
)
def test_a_sealed_value_opens_nowhere_else(key: bytes, context: str, row: UUID) -> None:
    sealed = seal(KEY, "ana@exemplo.com", context="people.email", row_id=ROW)
    with pytest.raises(Unreadable):
        open_sealed(key, sealed, context=context, row_id=row)


def test_the_same_text_is_never_sealed_into_the_same_bytes() -> None:
    sealed = {seal(KEY, "52998224725", context="people.cpf", row_id=ROW) for _ in range(1000)}
    assert len(sealed) == 1000
    assert not any(b"52998224725" in each for each in sealed)


def test_a_data_key_comes_back_for_its_person_only() -> None:
    ring = ring_of("a")
    key, wrapped = new_data_key(ring, PERSON)
    assert len(key) == 32
    assert key not in wrapped
    assert unwrap(ring, PERSON, wrapped) == key
    with pytest.raises(Unreadable):
        unwrap(ring, uuid4(), wrapped)


def test_two_people_never_share_a_data_key() -> None:
    ring = ring_of("a")
    assert new_data_key(ring, PERSON)[0] != new_data_key(ring, PERSON)[0]


def test_a_new_first_key_takes_over_while_the_old_one_still_reads() -> None:
    old = ring_of("2025")
    key, wrapped = new_data_key(old, PERSON)
    both = KeyRing.parse(f"2026={secret()},2025={base64.b64encode(old.keys['2025']).decode()}")
    assert unwrap(both, PERSON, wrapped) == key

    moved = rewrap(both, PERSON, wrapped)
    only_new = KeyRing("2026", {"2026": both.keys["2026"]})
    assert unwrap(only_new, PERSON, moved) == key
    assert rewrap(both, PERSON, moved) == moved
    with pytest.raises(Unreadable):
        unwrap(only_new, PERSON, wrapped)


def test_a_wrapped_key_that_names_another_key_is_refused() -> None:
    ring = ring_of("a", "b")
    _, wrapped = new_data_key(ring, PERSON)
    with pytest.raises(Unreadable):
        unwrap(ring, PERSON, wrapped.replace(b"a", b"b", 1))
    with pytest.raises(Unreadable):
        unwrap(without_first(ring), PERSON, wrapped)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "key 1 must read id=base64"),
        (f"a={secret()},", "key 2 must read id=base64"),
        (secret(), "key 1 must read id=base64"),
        (f"chave é={secret()}", "key 1 must read id=base64"),
        (f"{'a' * 33}={secret()}", "key 1 must read id=base64"),
        ("a=***", "key 'a' is not base64"),
        ("a=" + base64.b64encode(b"k" * 31).decode(), "key 'a' must be 32 bytes, not 31"),
        (f"a={secret()},a={secret()}", "key id 'a' stands there twice"),
        (f"a={'A' * 43}=,b={'A' * 43}=", "key 'b' is the same secret as another one"),
    ],
)
def test_a_key_ring_that_makes_no_sense_is_refused_in_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeyRing.parse(text)


def test_a_key_ring_shows_its_secrets_neither_in_errors_nor_in_its_repr() -> None:
    ring = ring_of("a", "b")
    for key in ring.keys.values():
        assert base64.b64encode(key).decode() not in repr(ring)
        assert repr(key) not in repr(ring)
    short = base64.b64encode(b"not long enough").decode()
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - what is tested is what the message leaves out
        KeyRing.parse(f"a={short}")
    assert short not in str(refused.value)


def test_the_first_key_of_a_ring_is_the_one_written_first() -> None:
    ring = KeyRing.parse(f" new={secret()} , old={secret()}")
    assert ring.first == "new"
    assert list(ring.keys) == ["new", "old"]


def test_look_up_hashes_tell_kinds_values_and_keys_apart() -> None:
    known = look_up_hash(KEY, "cpf", "52998224725")
    assert known == look_up_hash(KEY, "cpf", "52998224725")
    others = {
        look_up_hash(KEY, "cpf", "52998224724"),
        look_up_hash(KEY, "login", "52998224725"),
        look_up_hash(KEY[::-1], "cpf", "52998224725"),
        look_up_hash(KEY, "cpf5", "2998224725"),
    }
    assert len(others | {known}) == 5
    assert len(known) == 32


def test_a_look_up_hash_takes_any_text() -> None:
    assert look_up_hash(KEY, "idempotency_key", "\ud800\0ç") != look_up_hash(KEY, "idempotency_key", "\ud801\0ç")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cpf 529.982.247-25 não existe", "cpf [cpf] não existe"),
        ("DETAIL: Key (cpf)=(52998224725) exists.", "DETAIL: Key (cpf)=([cpf]) exists."),
        ("529 982 247 25, 529.982.247/25", "[cpf], [cpf]"),
        ("para joão.silva+x@correio.exemplo.com.br!", "para [email]!"),
        ("/auth?login=ana%40exemplo.com", "/auth?login=[email]"),
        ("+5511912345678; (11) 91234-5678; 11 1234-5678", "[phone]; [phone]; [phone]"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln-_x", "Bearer [token]"),
        ("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", "[password]"),
        ("redis://default:s3cr3t@cache:6379/0", "redis://[password]@cache:6379/0"),
        ("postgresql://app:s3:cr3t@db/healthmed", "postgresql://[password]@db/healthmed"),
        ("GET /calendar/aZ09_-aZ09_-aZ09_-aZ09.ics", "GET /calendar/[link].ics"),
    ],
)
def test_a_log_line_loses_what_tells_about_a_person(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "0193f7a2-1234-7abc-9def-123456789012",
        "request a12345678901 took 0.12345678901 s",
        "2026-12-01T09:00:00.123456-03:00",
        "123456/SP",
        "http://127.0.0.1:8000/api/v1/doctors?page=2",
        "25000 BRL, 1795518952 s, 1795518952123 ms",
    ],
)
def test_ids_times_and_figures_stay_in_a_log_line(text: str) -> None:
    assert redact(text) == text


@given(st.uuids())
def test_no_id_is_ever_taken_for_something_personal(some_id: UUID) -> None:
    assert redact(f"command {some_id} decided") == f"command {some_id} decided"


def test_the_log_processor_cleans_an_event_however_deep() -> None:
    render = structlog.processors.JSONRenderer()
    event = {"event": "ana@exemplo.com", "lane": 7, "errors": [{"detail": ("529.982.247-25", None)}]}
    line = render(None, "info", redact_event(None, "info", event))
    assert json.loads(line) == {"event": "[email]", "lane": 7, "errors": [{"detail": ["[cpf]", None]}]}
