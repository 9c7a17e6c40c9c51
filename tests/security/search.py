"""Looking for words in bytes, in any form in which a program may have written them down."""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

WHOLE_CPF = re.compile(rb"(?<![0-9a-f])404[. ]?040[. ]?([0-9]{3})[-. ]?([0-9]{2})(?![0-9a-f])")
DIGESTS = re.compile(rb"(?<![0-9a-f])(?:[0-9a-f]{128}|[0-9a-f]{96}|[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{32})(?![0-9a-f])")
SHORTEST = 8
EMPTY = bytes(256)  # most of a database's files; no form of a word has two zeros in a row
TOKEN = re.compile(rb"eyj[a-z0-9_-]{8,}\.eyj[a-z0-9_-]{8,}")


def forms(word: str) -> Iterator[tuple[str, bytes]]:
    """A word's forms, each with its name, all in lower case: what it is looked for in must be, too."""
    for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        try:
            yield encoding, word.lower().encode(encoding)
            yield f"{encoding}, upper case", word.upper().encode(encoding).lower()
        except UnicodeEncodeError:
            continue
    for cased in (word, word.lower(), word.upper()):
        plain = cased.encode()
        yield "hexadecimal", plain.hex().encode()
        yield "JSON", json.dumps(cased).strip('"').lower().encode()
        yield "in a URL", quote(cased, safe="").lower().encode()
        for shift in range(3):
            # What stands at the edges depends on what stands beside it.
            known = slice(-(-8 * shift // 6), 8 * (shift + len(plain)) // 6)
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                yield "base64", encode(b"\0" * shift + plain)[known].lower()
        yield "backwards", plain[::-1].lower()


def digests(words: Iterable[str]) -> set[bytes]:
    """The unkeyed hashes of words that could be guessed from them, in hexadecimal."""
    names = ("md5", "sha1", "sha256", "sha384", "sha512")
    return {hashlib.new(name, word.encode()).hexdigest().encode() for word in words for name in names}


class Search:
    """What to look for: words that stand nowhere by accident, whole CPFs, guessable hashes, and tokens."""

    def __init__(self, words: Iterable[str], cpfs: Iterable[str], guessable: Iterable[str]) -> None:
        self._cpfs = {cpf.encode() for cpf in cpfs}
        self._digests = digests([*guessable, *(each for cpf in cpfs for each in (cpf, dotted(cpf)))])
        # So short a form would stand somewhere by accident.
        self._forms = {form: (word, name) for word in words for name, form in forms(word) if len(form) >= SHORTEST}

    def find(self, data: bytes) -> set[str]:
        """What of it stands in the data, and how."""
        data = data.replace(EMPTY, b"\0").lower()
        found = {f"{word} ({name})" for form, (word, name) in self._forms.items() if form in data}
        found |= {"a CPF" for match in WHOLE_CPF.finditer(data) if b"404040" + match[1] + match[2] in self._cpfs}
        found |= {"a hash" for match in DIGESTS.finditer(data) if match[0] in self._digests}
        found |= {"a token" for _ in TOKEN.finditer(data)}
        return found

    def find_in_files(self, folder: Path) -> dict[str, set[str]]:
        """What stands in the files of a folder, by the files' names: in each as a whole, and across what it is divided into."""
        found = {}
        for file in sorted(each for each in folder.rglob("*") if each.is_file() and each.stat().st_size):
            with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if here := self.find(bytes(data)):
                    found[str(file.relative_to(folder))] = here
        return found


def dotted(cpf: str) -> str:
    """A CPF as people write it."""
    return f"{cpf[:3]}.{cpf[3:6]}.{cpf[6:9]}-{cpf[9:]}"
