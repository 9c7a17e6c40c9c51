"""A child process that ends when its parent does and, for PostgreSQL, doesn't look like root.

The parent imports this module; the child is this file run as a script, which ties itself to its parent and then becomes
the command. No code of ours runs between fork and exec, so threads in the parent (a test's clients, say) do no harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 23, 47, 2
CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID = 1, 6, 7
CAPABILITY_VERSION_3 = 0x20080522
CLONE_NEWUSER = 0x10000000


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    environ: Mapping[str, str] | None = None,
    at_parents_death: signal.Signals = signal.SIGKILL,
    not_root: Path | None = None,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, what it prints appended to `log`.

    The kernel sends it `at_parents_death` when the thread that called this ends. With `not_root`, a child of root takes
    on the owner of that folder, or, if that is root too, makes it nobody's and becomes nobody; it can enter root's own
    folders all the same.
    """
    ties = [str(at_parents_death.value), str(os.getpid()), str(not_root or "")]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *ties, *map(str, command)],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )


def last_line(log: Path) -> str:
    """The last line that is not empty in a log, as the reason why a process ended."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"
    return "it left no log"


def _become(at_parents_death: str, parent: str, not_root: str, *command: str) -> None:
    """What the child does before it is the command."""
    if not_root and os.geteuid() == 0:
        _shed_root(not_root)
    if sys.platform == "linux":
        # Only now, because a change of user clears it.
        _libc().prctl(PR_SET_PDEATHSIG, int(at_parents_death))
        if os.getppid() != int(parent):
            sys.exit("The parent ended first.")
    os.execv(command[0], command)


def _shed_root(folder: str) -> None:
    """Be no longer root to those who ask (PostgreSQL does), and enter root's folders all the same."""
    if _can_change_user():
        owner = os.stat(folder)
        user, group = owner.st_uid, owner.st_gid
        if user == 0:
            nobody = pwd.getpwnam("nobody")
            user, group = nobody.pw_uid, nobody.pw_gid
            os.chown(folder, user, group)
        _change_user(user, group)
        return
    # A namespace in which root's number reads as another: needs no privilege, but containers often forbid it.
    nobody = pwd.getpwnam("nobody")
    if _libc().unshare(CLONE_NEWUSER) != 0:
        sys.exit(
            "PostgreSQL won't run as root, and root can't become another user here; run as one, or set DATABASE_URL."
        )
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{nobody.pw_uid} 0 1")
    Path("/proc/self/gid_map").write_text(f"{nobody.pw_gid} 0 1")


def _can_change_user() -> bool:
    """Whether root may take on another user here and keep the right to pass through folders."""
    if sys.platform != "linux":
        return True
    return all(_libc().prctl(PR_CAPBSET_READ, right) == 1 for right in (CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID))


def _change_user(user: int, group: int) -> None:
    libc = _libc()
    if sys.platform == "linux":
        libc.prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    if sys.platform != "linux":
        return
    # Ambient is what an ordinary program keeps through exec; the kernel wants it permitted and inheritable first.
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    right = 1 << CAP_DAC_OVERRIDE
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(right, right, right, 0, 0, 0)
    if libc.capset(header, effective_permitted_inheritable) != 0:
        sys.exit("PostgreSQL won't run as root, and the right to pass through root's folders can't be kept here.")
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    _become(*sys.argv[1:])
