"""Runs a program with a small disk of its own: `python -m tests.faults.disk FOLDER MEGABYTES PROGRAM ...`, as root or as anybody.

The disk is a tmpfs in a mount namespace that only the program and its children see, and that ends with them. Where the kernel
lets nobody have that, the exit code is 77.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE = 16384, 1 << 18
REFUSED = 77

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Mount the disk and become `python -m PROGRAM`."""
    folder, megabytes, *program = sys.argv[1:]
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER) != 0:
        sys.exit(REFUSED)
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        sys.exit(REFUSED)
    Path(folder).mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,mode=0755".encode()
    if _libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options) != 0:
        sys.exit(REFUSED)
    os.execv(sys.executable, [sys.executable, "-m", *program])


if __name__ == "__main__":
    main()
