"""What a child process does before it is its command: tie itself to its parent and, for PostgreSQL, not look like root.

A script of its own, so that no code of ours runs between fork and exec, where a parent's threads could do harm.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_CAPBSET_READ, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 23, 28, 47, 2
SECBIT_NO_SETUID_FIXUP = 4
CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 1, 6, 7, 8
NEEDED = (CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID, CAP_SETPCAP)
CAPABILITY_VERSION_3 = 0x20080522
CLONE_NEWUSER = 0x10000000


def become(at_parents_death: str, parent: str, not_root: str, *command: str) -> None:
    """Be `command`, and get the signal `at_parents_death` when the parent's thread that asked for it ends.

    With the folder `not_root`, root takes on its owner, or, if that is root too, makes it nobody's and becomes nobody; it
    can enter root's own folders all the same.
    """
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
        sys.exit("PostgreSQL won't run as root, and root can't become another user here; run as one, or set DATABASE_URL.")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{nobody.pw_uid} 0 1")
    Path("/proc/self/gid_map").write_text(f"{nobody.pw_gid} 0 1")


def _can_change_user() -> bool:
    """Whether root may take on another user here and keep the right to pass through folders."""
    if sys.platform != "linux":
        return True
    return all(_libc().prctl(PR_CAPBSET_READ, right) == 1 for right in NEEDED)


def _change_user(user: int, group: int) -> None:
    libc = _libc()
    if sys.platform == "linux":
        # Else rights go with root's number, and access(2), which initdb asks, counts none for anybody but root.
        libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
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
    become(*sys.argv[1:])
