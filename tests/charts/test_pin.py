"""Pinning: what each tag stands for is asked of its keeper, and written only if all of them answered."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "ab" * 32
WORKFLOW = "      - uses: actions/checkout@v5\n      - uses: github/codeql-action/init@v3 # as it was\n"
DOCKERFILE = "FROM docker.io/library/python:3.11-slim-bookworm AS base\nFROM base AS packages\n"


def load_pin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pin", ".ci/pin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pin = load_pin()


class Keeper(BaseHTTPRequestHandler):
    """GitHub and a registry that asks for a token, as far as pinning needs them."""

    def do_GET(self) -> None:
        if self.path == "/repos/actions/checkout/commits/v5":
            self._answer(200, COMMIT.encode())
        elif self.path.startswith("/token?service=registry&scope=repository"):
            self._answer(200, b'{"token": "given"}')
        else:
            self._answer(404)

    def do_HEAD(self) -> None:
        if self.headers.get("Authorization") != "Bearer given":
            realm = (
                f'Bearer realm="http://{self.headers["Host"]}/token",service="registry",scope="repository:library/python:pull"'
            )
            self._answer(401, **{"WWW-Authenticate": realm})
        elif self.path == "/v2/library/python/manifests/3.11":
            self._answer(200, **{"Docker-Content-Digest": DIGEST})
        else:
            self._answer(404)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def keeper() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Keeper)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_tag_becomes_the_commit_that_it_stands_for(keeper: str) -> None:
    assert pin.commit_of("actions/checkout", "v5", f"http://{keeper}") == COMMIT


def test_an_images_tag_becomes_the_digest_that_its_registry_tells(keeper: str) -> None:
    assert pin.digest_of(f"{keeper}/library/python", "3.11", "http") == DIGEST


@pytest.mark.parametrize("tag", ["v0", "main"])
def test_a_tag_that_nobody_knows_is_not_resolved(keeper: str, tag: str) -> None:
    with pytest.raises(pin.Unresolved, match=tag):
        pin.commit_of("actions/checkout", tag, f"http://{keeper}")
    with pytest.raises(pin.Unresolved, match=tag):
        pin.digest_of(f"{keeper}/library/python", tag, "http")


def test_digests_are_written_beside_tags_and_renewed_from_them() -> None:
    asked = []

    def commit_of(name: str, tag: str) -> str:
        asked.append((name, tag))
        return COMMIT

    once = pin.pinned(WORKFLOW + DOCKERFILE, commit_of, lambda *_: DIGEST)
    assert f"uses: actions/checkout@{COMMIT} # v5\n" in once
    assert f"uses: github/codeql-action/init@{COMMIT} # v3" in pin.pinned(WORKFLOW.replace(" # as it was", ""), commit_of)
    assert f"FROM docker.io/library/python:3.11-slim-bookworm@{DIGEST} AS base\n" in once
    assert "FROM base AS packages" in once
    assert list(pin.unpinned(once)) == []
    assert pin.pinned(once, commit_of, lambda *_: DIGEST) == once
    assert set(asked) >= {("actions/checkout", "v5"), ("github/codeql-action", "v3")}


def test_nothing_is_written_if_one_tag_is_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Dockerfile").write_text(DOCKERFILE)
    Path("docker-compose.yml").write_text("image: nowhere.invalid/thing:1\n")
    monkeypatch.setattr(pin, "_ask", lambda *_: (_ for _ in ()).throw(pin.Unresolved("no such host")))
    assert pin.main([]) == 1
    assert Path("Dockerfile").read_text() == DOCKERFILE


def test_every_action_and_image_of_ours_is_found() -> None:
    """So that none is left to change under its name because it was written in another way."""
    for pattern in pin.FILES:
        for file in Path().glob(pattern):
            text = file.read_text()
            named = len(re.findall(r"^\s*(?:- )?uses: (?!\./)", text, re.MULTILINE))
            named += len(re.findall(r"(?:FROM|[Ii]mage:) +\"?(?:docker\.io|ghcr\.io|quay\.io)/", text))
            assert len(list(pin.ACTION.finditer(text))) + len(list(pin.IMAGE.finditer(text))) >= named, file
