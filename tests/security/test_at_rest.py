"""What a stack keeps of the people who used it can't be read: not on disk, in a log, a queue, a page of Flower or an error."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest
import redis

from local.servers import DATABASE, SUPERUSER, free_port
from tests.factories import cpf
from tests.security.search import Search, dotted, forms

ROOT = Path(__file__).resolve().parents[2]
MARK = "zqxjkvwy"  # stands in everything that people write here, and nowhere else
PHONE, BIRTH = "41987650", "1913-07-19"
SHOWN = ("mail", "demo.json")  # the local mail catcher, and the demonstration's own list of log-ins
pytestmark = pytest.mark.timeout(1500)

Json = dict[str, Any]


@dataclass
class Person:
    """Somebody whose every word is known."""

    number: int
    cpf: str
    token: str = ""

    @property
    def email(self) -> str:
        return f"{MARK}.Ana{self.number}@example.com"

    @property
    def password(self) -> str:
        return f"senha {MARK} {self.number} çãé"

    def body(self) -> Json:
        """What they register with; one in ten is a child, with a representative."""
        minor = self.number % 10 == 0
        body = {
            "name": f"Zenóbia {MARK.title()} {self.number}",
            "email": self.email,
            "cpf": dotted(self.cpf) if self.number % 2 else self.cpf,
            "password": self.password,
            "birth_date": "2015-07-19" if minor else BIRTH,
            "phone": f"+55 {PHONE[:2]} {PHONE[2:7]}-{PHONE[7:]}{self.number:03}",
            "accepts_terms": True,
        }
        return {**body, "representative": {"name": f"Rui {MARK}", "cpf": cpf(404_040_999)}} if minor else body


@dataclass
class Client:
    """A client of a running stack, which keeps every answer that is an error."""

    port: int
    errors: list[bytes] = field(default_factory=list)

    def __call__(self, method: str, path: str, token: str = "", body: Any = None, wait: int = 0) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"User-Agent": f"{MARK}/1.0", "Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if wait:
            headers["Prefer"] = f"wait={wait}"
        connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        told = answer.read()
        connection.close()
        if answer.status >= 400:
            self.errors.append(str(answer.headers).encode() + told)
            return answer.status
        return json.loads(told) if told else None

    def decided(self, command: Json, token: str) -> Json:
        """A command as it reads once it is decided."""
        while (read := self("GET", f"/commands/{command['id']}", token, wait=10))["status"] == "pending":
            pass
        return dict(read)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, long: bool) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """A running stack with its demonstration, its folder and its port."""
    state, port = tmp_path_factory.mktemp("at_rest") / "state", free_port()
    environ = {
        **os.environ,
        "STATE_DIR": str(state),
        "PORT": str(port),
        "RATE_LIMITS": "off" if long else "on",
        "API_WORKERS": "1",
        "BOOKING_WORKERS": "1",
    }
    up = subprocess.Popen([sys.executable, "-m", "local.up"], cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (state / "demo.json").exists():
            assert up.poll() is None, "the stack ended"
            assert time.monotonic() < deadline, "the stack did not come up"
            time.sleep(0.1)
        yield up, state, port
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGTERM)
            up.wait(40)


def test_nothing_of_anybody_can_be_read_in_what_a_stack_leaves_behind(
    stack: tuple[subprocess.Popen[bytes], Path, int], long: bool
) -> None:
    up, state, port = stack
    demo = json.loads((state / "demo.json").read_text())
    client = Client(port)
    people = [Person(n, cpf(404_040_000 + n)) for n in range(1000 if long else 24)]
    guessable = [each.email.lower() for each in people] + [f"+55{PHONE}{n:03}" for n in range(1000)]
    search = Search([MARK, PHONE, f"{PHONE[:2]} {PHONE[2:7]}-", BIRTH, "404.040."], [each.cpf for each in people], guessable)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda person: register(client, person), people))
    doctor, slots = a_doctor_with_slots(client, demo, len(people))
    with frozen(up, "booking@"):
        with ThreadPoolExecutor(4) as threads:
            sent = list(threads.map(lambda each: book(client, *each), zip(people, slots, strict=False)))
        # What waits: sealed in the inbox, and only named in the queue.
        assert in_broker(search, demo) == set()
        assert in_tables(search, state) == {}
    go_on(client, people, sent, doctor)
    assert len(client.errors) >= 4 * len(people)
    assert set().union(*map(search.find, client.errors)) == set()
    assert in_flower(search, demo) == set()
    assert in_broker(search, demo) == set()
    assert in_tables(search, state) == {}
    wait_for_mails(state, len(people))
    up.send_signal(signal.SIGTERM)
    up.wait(40)
    found = search.find_in_files(state)
    assert {name for name in found if not name.startswith(SHOWN)} == set(), found
    # The search finds what is there: in the mails, names and addresses have to stand.
    assert any(name.startswith("mail") for name in found)


def register(client: Client, person: Person) -> None:
    """Register, with all that can go wrong, and log in."""
    assert (
        client("POST", "/patients", body={**person.body(), "cpf": person.cpf[:-1] + str((int(person.cpf[-1]) + 1) % 10)}) == 422
    )
    assert client("POST", "/patients", body={**person.body(), "password": "curta"}) == 422
    client("POST", "/patients", body=person.body())
    assert client("POST", "/patients", body=person.body()) == 409
    assert client("POST", "/auth/patient", body={"login": person.email, "password": person.password + "x"}) == 401
    log_in = {"login": person.cpf if person.number % 2 else person.email, "password": person.password}
    person.token = client("POST", "/auth/patient", body=log_in)["access_token"]


def a_doctor_with_slots(client: Client, demo: Json, least: int) -> tuple[str, list[str]]:
    """The token of a doctor who works from early to late, and the slots that came of it."""
    known = demo["doctors"][0]
    token = client("POST", "/auth/doctor", body={"crm": known["crm"], "password": known["password"]})["access_token"]
    rules = [{"weekday": day, "start": "06:00", "end": "22:00", "slot_minutes": 20} for day in range(1, 8)]
    away = {"starts_at": "2027-12-01T09:00:00-03:00", "ends_at": "2027-12-01T10:00:00-03:00", "reason": f"Motivo {MARK} ção"}
    body = {"rules": rules, "exceptions": [away]}
    command = client("PUT", "/doctors/me/availability", token, body)
    assert client.decided(command, token)["status"] == "succeeded"
    agenda = client("GET", f"/doctors/{known['id']}/agenda?days=31")
    slots = [slot["id"] for day in agenda["days"] for slot in day["slots"]]
    assert len(slots) >= least
    return token, slots


def book(client: Client, person: Person, slot_id: str) -> Json:
    """Request a slot, with a note, and change one's telephone number."""
    body = {"slot_id": slot_id, "notes": f"Dor {MARK.upper()} desde ontem: ação, coração\n{person.email} {dotted(person.cpf)}"}
    assert client("POST", "/appointments", person.token, {**body, "notes": body["notes"] * 20}) == 422
    client("PATCH", "/patients/me", person.token, {"phone": f"+55{PHONE}{(person.number + 1) % 1000:03}"})
    return dict(client("POST", "/appointments", person.token, body))


def go_on(client: Client, people: list[Person], sent: list[Json], doctor: str) -> None:
    """Have every request accepted, refused or cancelled in many words, and read."""
    for person, command in zip(people, sent, strict=True):
        decided = client.decided(command, person.token)
        assert decided["status"] == "succeeded", decided
        path, reason = f"/appointments/{decided['appointment_id']}", {"reason": f"Motivo {MARK} {person.cpf} é este"}
        assert client("GET", path, person.token)["notes"].startswith(f"Dor {MARK.upper()}")
        if person.number % 3 == 0:
            command, token = client("POST", f"{path}/cancel", person.token, reason), person.token
        elif person.number % 3 == 1:
            command, token = client("POST", f"{path}/refuse", doctor, reason), doctor
        else:
            url = {"join_url": f"https://sala.example/{MARK}/{person.number}"}
            command, token = client("POST", f"{path}/accept", doctor, url), doctor
        assert client.decided(command, token)["status"] == "succeeded"
    assert client("GET", "/appointments?page_size=100", doctor)["items"]


@contextmanager
def frozen(up: subprocess.Popen[bytes], word: str) -> Iterator[None]:
    """While inside, the processes of a stack with this word in their command lines stand still."""
    processes = [each for each in psutil.Process(up.pid).children(recursive=True) if word in " ".join(each.cmdline())]
    assert processes
    try:
        for process in processes:
            process.suspend()
        yield
    finally:
        for process in processes:
            process.resume()


def in_broker(search: Search, demo: Json) -> set[str]:
    """What stands in the broker's memory, the bodies of waiting tasks included, these also as the worker reads them."""
    found: set[str] = set()
    with redis.Redis.from_url(demo["services"]["broker_url"]) as broker:
        for key in broker.scan_iter(count=1000):
            kind = broker.type(key).decode()
            read = {
                "string": lambda key: [broker.get(key)],
                "list": lambda key: broker.lrange(key, 0, -1),
                "set": broker.smembers,
                "zset": lambda key: broker.zrange(key, 0, -1),
                "hash": lambda key: [part for pair in broker.hgetall(key).items() for part in pair],
            }[kind]
            values = [value for value in read(key) if value is not None]
            found |= search.find(b"\n".join([key, *values, *map(task_body, values)]))
    return found


def task_body(value: bytes) -> bytes:
    try:
        return base64.b64decode(json.loads(value)["body"])
    except (ValueError, KeyError, TypeError):
        return b""


def in_tables(search: Search, state: Path) -> dict[str, set[str]]:
    """What stands in the tables, as their superuser reads them: what is compressed in the files is not, here."""
    passwords = json.loads((state / "postgres" / "passwords.json").read_text())
    port = urlsplit(json.loads((state / "demo.json").read_text())["services"]["database_url"]).port
    url = f"postgresql://{SUPERUSER}:{passwords[SUPERUSER]}@127.0.0.1:{port}/{DATABASE}"
    found = {}
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("select tablename from pg_tables where schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'select t::text from "{table}" as t')
            if here := search.find("\n".join(row for (row,) in cursor).encode()):
                found[table] = here
        cursor.execute("select coalesce(string_agg(query, ' '), '') from pg_stat_activity where pid <> pg_backend_pid()")
        if here := search.find(cursor.fetchall()[0][0].encode()):
            found["pg_stat_activity"] = here
    connection.close()
    return found


def in_flower(search: Search, demo: Json) -> set[str]:
    """What Flower shows to whoever knows its password; to others it shows nothing at all."""
    place = urlsplit(demo["services"]["flower_url"])
    login = base64.b64encode(f"{place.username}:{place.password}".encode()).decode()
    found: set[str] = set()
    for page in ("/", "/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/api/tasks?limit=10000", "/api/queues/length"):
        for headers in ({}, {"Authorization": f"Basic {login}"}):
            connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=60)
            connection.request("GET", page, headers=headers)
            answer = connection.getresponse()
            told = answer.read()
            connection.close()
            assert answer.status == (200 if headers else 401), page
            found |= search.find(told)
            if page.startswith("/api/tasks") and headers:
                assert b'"drain"' in told
    return found


def wait_for_mails(state: Path, least: int) -> None:
    """Wait until the notices of what happened have been sent: sending, too, leaves traces."""
    deadline = time.monotonic() + 120
    while len(list((state / "mail").glob("*.eml"))) < least:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("form", sorted({name for name, _ in forms(f"{MARK}ção")}))
def test_the_search_finds_a_word_in_this_form(form: str, tmp_path: Path) -> None:
    written = {
        "utf-8": f"x{MARK}y".encode(),
        "utf-8, upper case": f"x{MARK.upper()}y".encode(),
        "latin-1": f"é{MARK}".encode("latin-1"),
        "latin-1, upper case": f"é{MARK.upper()}".encode("latin-1"),
        "utf-16-le": f"x{MARK}y".encode("utf-16-le"),
        "utf-16-le, upper case": f"x{MARK.upper()}y".encode("utf-16-le"),
        "utf-16-be": f"x{MARK}y".encode("utf-16-be"),
        "utf-16-be, upper case": f"x{MARK.upper()}y".encode("utf-16-be"),
        "hexadecimal": f"x{MARK}y".encode().hex().upper().encode(),
        "JSON": json.dumps({"note": f"ção {MARK}"}).encode(),
        "in a URL": f"?q={MARK}%20".encode(),
        "base64": base64.b64encode(f"Dor {MARK} desde ontem".encode()),
        "backwards": MARK[::-1].encode(),
    }[form]
    (tmp_path / "file").write_bytes(os.urandom(100_000) + written + os.urandom(100_000))
    assert list(Search([MARK], [], []).find_in_files(tmp_path)) == ["file"]


def test_the_search_finds_cpfs_guessable_hashes_and_tokens(tmp_path: Path) -> None:
    number = cpf(404_040_123)
    search = Search([], [number], ["ana@example.com"])
    for written in (number, dotted(number), f"cpf {number[:9]}-{number[9:]}."):
        assert search.find(written.encode()) == {"a CPF"}
    assert search.find(cpf(404_040_124).encode()) == set()
    assert search.find(b"x" + hashlib.sha256(number.encode()).hexdigest().upper().encode()) == {"a hash"}
    assert search.find(hashlib.md5(b"ana@example.com").hexdigest().encode()) == {"a hash"}
    assert search.find(b"Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc") == {"a token"}
    for shift in range(3):
        assert Search([MARK], [], []).find(base64.b64encode(b"_" * shift + MARK.encode())) != set()
