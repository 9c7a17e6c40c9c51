"""What PostgreSQL calls to have finished pieces of its log kept, and to get them back: `archive.py keep FILE KEPT`, or `fetch`.

A script of its own that needs nothing installed, since it runs as whoever the server is.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from pathlib import Path


def keep(piece: str, kept: str) -> None:
    """Have a copy on the disk, or raise; without the folder nobody has asked for any. What is kept already is never replaced."""
    source, target = Path(piece), Path(f"{kept}.gz")
    if not target.parent.exists():
        return
    if target.exists():
        with source.open("rb") as new, gzip.open(target, "rb") as old:
            if new.read() != old.read():
                sys.exit(f"{target} is another piece of the same name.")
        return
    draft = target.with_name(f".{target.name}")
    with source.open("rb") as whole, draft.open("wb") as raw:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1) as packed:
            shutil.copyfileobj(whole, packed, 1 << 20)
        raw.flush()
        os.fsync(raw.fileno())
    draft.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def fetch(target: str, *places: str) -> None:
    """Bring a piece back from the first place that has it, packed or not; exits with 1 if none does."""
    for place in map(Path, places):
        packed = Path(f"{place}.gz")
        if packed.exists():
            with gzip.open(packed, "rb") as source, Path(target).open("wb") as output:
                shutil.copyfileobj(source, output, 1 << 20)
            return
        if place.exists():
            shutil.copyfile(place, target)
            return
    sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(*sys.argv[2:])
    else:
        fetch(*sys.argv[2:])
