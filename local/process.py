"""A child process that is launched, watched and ended, with all its descendants, and never outlives its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

KILL_SECONDS = 6.0


class Process(ABC):
    """One process, however often it is launched anew. What it prints is appended to `log`.

    Launch it from a thread that stays: the kernel takes the end of the thread for the parent's.
    """

    stop_signal = signal.SIGTERM
    at_parents_death = signal.SIGKILL

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._thawer: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether its clock stands still, whoever stopped it; to look at all its descendants would take much longer."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.process is not None and psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED
        return False

    @property
    def exit_status(self) -> str:
        """How it ended, for a person."""
        code = self.process.poll() if self.process else None
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    @abstractmethod
    def launch(self) -> None:
        """Start it anew, without waiting until it is ready; what a former launch left behind is killed first."""

    def ask(self) -> None:
        """Ask it to end, without waiting."""
        if self.process:
            self.thaw()
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(self.stop_signal)

    def stop(self, seconds: float = 5.0) -> None:
        """Ask it to end, and give it `seconds` to do so."""
        self.ask()
        self.finish(seconds)

    def finish(self, seconds: float) -> None:
        """Wait `seconds` for the end that was asked for, then kill what is left."""
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a crash would, with all its descendants."""
        if not self.process:
            return
        family = self.family()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        # Those whose parent died first are nobody's children any more, but still of its group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until_dead(family)
        self.thaw()
        self.process = None

    def freeze(self) -> None:
        """Stop its clock: connections stay open and nothing is answered."""
        pids = [str(member.pid) for member in self.family()]
        # What is frozen can't even end with its parent; this one thaws it when its standard input ends, as that then does.
        thaw = ["sh", "-c", 'read _; kill -CONT "$@"', "thaw", *pids]
        self._thawer = subprocess.Popen(thaw, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, whoever froze it."""
        if self._thawer:
            self._thawer.communicate()
            self._thawer = None
        self._signal(signal.SIGCONT)

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants, as far as they live."""
        if self.running and self.process:
            with contextlib.suppress(psutil.NoSuchProcess):
                leader = psutil.Process(self.process.pid)
                return [leader, *leader.children(recursive=True)]
        return []

    def addresses(self) -> set[str]:
        """The host:port of its own end of each of its connections."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for leader in self.family()[:1]:
                return {f"{each.laddr.ip}:{each.laddr.port}" for each in leader.net_connections("tcp") if each.raddr}
        return set()

    def last_words(self) -> str:
        """The last line that it printed, as the reason why it ended."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
            return lines[-1] if lines else "it said nothing"
        return "it left no log"

    def _spawn(
        self,
        command: Sequence[str | Path],
        *,
        environ: Mapping[str, str] | None = None,
        not_root: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start `command`, in a session of its own, so that a terminal's Ctrl-C reaches only its parent."""
        become = Path(__file__).with_name("become.py")
        ties = [str(self.at_parents_death.value), str(os.getpid()), str(not_root or "")]
        output: IO[bytes]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", become, *ties, *command],
                stdin=stdin,
                stdout=output if stdout is None else stdout,
                stderr=output,
                env=environ,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    def _signal(self, number: signal.Signals) -> None:
        for member in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)


def wait_until_dead(processes: Sequence[psutil.Process]) -> None:
    """Wait until killed processes have let go of everything; their parents may take longer to notice."""
    deadline = time.monotonic() + KILL_SECONDS
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.005)
