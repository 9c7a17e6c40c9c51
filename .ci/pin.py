"""`make pin`: write the digest behind each tag of an action or a base image beside it, so that nobody can change what it means.

It asks GitHub and the images' registries, so it is run where the internet is. A digest that was not resolved is never written:
then nothing is. `make pin CHECK=1` asks nobody, and ends with 1 if something is not pinned.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlencode

FILES = (".github/workflows/*.yml", "Dockerfile", "docker-compose.yml", "charts/healthmed/values*.yaml")
GITHUB = "https://api.github.com"
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json,"
    " application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
SECONDS = 20

# `uses: owner/repository/path@tag`, pinned as `@commit # tag`.
ACTION = re.compile(r"(?P<before>uses:\s*)(?P<name>[\w.-]+/[\w.-]+)(?P<path>/[\w./-]+)?@(?P<now>[\w.-]+)(?:\s+# (?P<tag>\S+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# `docker.io/name:tag`, pinned as `docker.io/name:tag@sha256:…`; what has no registry before it is built here.
IMAGE = re.compile(
    r"(?P<before>(?:FROM|[Ii]mage:)\s+\"?)(?P<name>(?:[\w-]+\.)+[\w-]+/[\w./-]+):(?P<tag>[\w.-]+)(?:@(?P<now>sha256:[0-9a-f]{64}))?"
)


class Unresolved(Exception):
    """Nobody could say what a tag stands for; the message says which, and why."""


def commit_of(name: str, tag: str, github: str = GITHUB) -> str:
    """The commit that a tag of a repository on GitHub stands for. Raises Unresolved."""
    request = urllib.request.Request(
        f"{github}/repos/{name}/commits/{tag}", headers={"Accept": "application/vnd.github.sha", "User-Agent": "pin"}
    )
    found = _ask(request, f"{name}@{tag}")[1].decode().strip()
    if not COMMIT.fullmatch(found):
        raise Unresolved(f"{name}@{tag}: GitHub did not answer with a commit")
    return found


def digest_of(name: str, tag: str, scheme: str = "https") -> str:
    """The digest that a tag of an image stands for, on all platforms. Raises Unresolved."""
    registry, _, repository = name.partition("/")
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    address = f"{scheme}://{host}/v2/{repository}/manifests/{tag}"
    headers = {"Accept": MANIFESTS, "User-Agent": "pin"}
    try:
        answered, _ = _ask(urllib.request.Request(address, headers=headers, method="HEAD"), f"{name}:{tag}")
    except _Unauthorized as refused:  # as registries do to anyone, to say where anyone gets a token
        asked = dict(re.findall(r'(\w+)="([^"]*)"', refused.challenge))
        query = urlencode({key: asked[key] for key in ("service", "scope") if key in asked})
        _, body = _ask(
            urllib.request.Request(f"{asked.get('realm', '')}?{query}", headers={"User-Agent": "pin"}), f"{name}:{tag}"
        )
        told = json.loads(body)
        headers["Authorization"] = f"Bearer {told.get('token') or told.get('access_token')}"
        answered, _ = _ask(urllib.request.Request(address, headers=headers, method="HEAD"), f"{name}:{tag}")
    found = answered.get("Docker-Content-Digest", "")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        raise Unresolved(f"{name}:{tag}: its registry did not tell a digest")
    return found


def pinned(text: str, commit_of: Callable[[str, str], str] = commit_of, digest_of: Callable[[str, str], str] = digest_of) -> str:
    """The text, with what each tag stands for now beside it. Raises Unresolved."""

    def action(found: re.Match[str]) -> str:
        tag = found["tag"] or found["now"]
        return f"{found['before']}{found['name']}{found['path'] or ''}@{commit_of(found['name'], tag)} # {tag}"

    def image(found: re.Match[str]) -> str:
        return f"{found['before']}{found['name']}:{found['tag']}@{digest_of(found['name'], found['tag'])}"

    return IMAGE.sub(image, ACTION.sub(action, text))


def unpinned(text: str) -> Iterable[str]:
    """What in the text may change under its name."""
    for found in ACTION.finditer(text):
        if not COMMIT.fullmatch(found["now"]):
            yield f"{found['name']}{found['path'] or ''}@{found['now']}"
    for found in IMAGE.finditer(text):
        if not found["now"] and not found["name"].startswith("localhost/"):
            yield f"{found['name']}:{found['tag']}"


class _Unauthorized(Unresolved):
    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


def _ask(request: urllib.request.Request, what: str) -> tuple[dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 401 and (challenge := error.headers.get("WWW-Authenticate", "")):
            raise _Unauthorized(f"{what}: {error}", challenge) from None
        raise Unresolved(f"{what}: {error}") from None
    except (OSError, ValueError) as error:
        raise Unresolved(f"{what}: {error}") from None


def main(arguments: list[str]) -> int:
    """Pin every file, or with `--check` say what is not pinned; 1 if anything can't be, or isn't."""
    files = sorted({file for pattern in FILES for file in Path().glob(pattern)})
    if "--check" in arguments:
        loose = sorted({f"{file}: {each}" for file in files for each in unpinned(file.read_text("utf-8"))})
        print(
            *loose,
            f"{len(loose)} not pinned: run `make pin` where the internet is, and commit." if loose else "all pinned",
            sep="\n",
        )
        return 1 if loose else 0
    try:
        texts = {file: pinned(file.read_text("utf-8")) for file in files}
    except Unresolved as error:
        print(f"nothing was written: {error}", file=sys.stderr)
        return 1
    for file, text in texts.items():
        file.write_text(text, "utf-8")
    print(f"{len(texts)} files are pinned")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
