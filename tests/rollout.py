"""A new version over a running one, under load, and back: `python -m tests.rollout [OLD] [NEW]`, what `make pipeline` ends with.

The local stack stands in for the cluster. Its code is a work tree of its own, in which one commit takes the place of another
before `make restart` puts new processes in the place of the old ones.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.crowd import Crowd
from local.servers import free_port
from tests.faults.clients import SETTINGS, Load
from tests.faults.history import Call, History

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 90.0
RATE = 60.0  # things that the clients do in a second
SETTLED_SECONDS = 3.0  # of load before and after each deployment
MISTAKE = "\nraise RuntimeError('a release that does not start')\n"


class Failed(Exception):
    """The rollout did not go as it must; the message says what happened."""


class Deployment:
    """A running stack, and the work tree that its code stands in."""

    def __init__(self, folder: Path, version: str) -> None:
        self.tree, self.port = folder / "release", free_port()
        self._environ = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")},
            **SETTINGS,
            "STATE_DIR": str(folder / "state"),
            "PORT": str(self.port),
        }
        _git(ROOT, "worktree", "add", "--quiet", "--detach", str(self.tree), version)
        self._stack = self._start("local.up", stdout=subprocess.PIPE)

    @property
    def base_url(self) -> str:
        """Where its API listens."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        """Wait until the stack says that it is up. Raises Failed."""
        assert self._stack.stdout is not None
        for line in self._stack.stdout:
            if line.startswith(b"ready "):
                return
        raise Failed("the old version does not come up")

    def run(self, module: str, *arguments: str) -> None:
        """Run a module of the deployed version. Raises Failed, with its last words."""
        process = self._start(module, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = process.communicate(timeout=READY_SECONDS * 2)
        if process.returncode:
            raise Failed(f"{module} ended with {process.returncode}: {said.decode()[-600:]}")

    def deploy(self, version: str) -> None:
        """Put a version in the place of the one that runs. Raises Failed, and then the former still runs."""
        _git(self.tree, "checkout", "--quiet", "--force", "--detach", version)
        self.run("local.restart")

    def break_release(self) -> None:
        """Leave a release in the tree that does not start."""
        with (self.tree / "api" / "wsgi.py").open("a") as file:
            file.write(MISTAKE)

    def end(self) -> None:
        """End the stack, and remove the tree."""
        self._stack.send_signal(signal.SIGTERM)
        try:
            self._stack.communicate(timeout=60)
        finally:
            self._stack.kill()
            _git(ROOT, "worktree", "remove", "--force", str(self.tree))

    def _start(
        self, module: str, *arguments: str, stdout: int | None = None, stderr: int | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, cwd=self.tree, env=self._environ, stdout=stdout, stderr=stderr)


def main() -> int:
    """Deploy, try, roll back, and try a release that does not start; 1 if any request failed, or anything else went wrong."""
    parser = argparse.ArgumentParser(prog="tests.rollout")
    parser.add_argument("old", nargs="?", default="HEAD^", help="the version that runs (HEAD^)")
    parser.add_argument("new", nargs="?", default="HEAD", help="the version that takes its place (HEAD)")
    asked = parser.parse_args()
    old, new = (_git(ROOT, "rev-parse", "--short", version) for version in (asked.old, asked.new))
    try:
        with tempfile.TemporaryDirectory(prefix="healthmed-rollout-") as folder, _deployed(Path(folder), old) as deployment:
            print(f"{old} runs", flush=True)
            calls = _roll(deployment, Path(folder), old, new)
    except (Failed, subprocess.CalledProcessError) as error:
        print(f"FAILED: {error}")
        return 1
    failed = [call for call in calls if call.outcome == "info" or (call.end and call.end.status and call.end.status >= 500)]
    print(f"{len(calls):,} requests meanwhile, {len(failed)} of them failed")
    for call in failed[:10]:
        print(f"  {call.begin.f}: {call.end.status if call.end else None} {call.end.detail if call.end else ''}")
    return 1 if failed or not calls else 0


def _roll(deployment: Deployment, folder: Path, old: str, new: str) -> list[Call]:
    members = folder / "crowd.json"
    deployment.run("local.within", "local.crowd", str(members), "--doctors", "8", "--patients", "200")
    history = History(folder / "history.jsonl")
    load = Load(deployment.base_url, Crowd.read(members), history, seed=1, clients=8)
    load.start(rate=RATE)
    try:
        time.sleep(SETTLED_SECONDS)
        for version, what in ((new, "deployed over it"), (old, "rolled back to"), (new, "deployed again")):
            began = time.monotonic()
            deployment.deploy(version)
            took = time.monotonic() - began
            deployment.run("local.demo", deployment.base_url)
            print(f"{version} {what} in {took:.0f} s, and make demo passes against it", flush=True)
            time.sleep(SETTLED_SECONDS)
        deployment.break_release()
        try:
            deployment.run("local.restart")
        except Failed:
            deployment.run("local.demo", deployment.base_url)
            print(f"a release that does not start was refused, and {new} still serves", flush=True)
        else:
            raise Failed("a release that does not start took the place of one that serves")
        time.sleep(SETTLED_SECONDS)
    finally:
        load.stop()
        history.close()
    return list(history.calls())


@contextmanager
def _deployed(folder: Path, version: str) -> Iterator[Deployment]:
    deployment = Deployment(folder, version)
    try:
        deployment.wait_until_ready()
        yield deployment
    finally:
        deployment.end()


def _git(tree: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(tree), *arguments], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
