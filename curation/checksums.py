"""Hashes of files in the format of the command `sha256sum`, which can check them too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from curation.urls import is_inside

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def format_checksums(checksums: Mapping[str, str]) -> bytes:
    """Returns the lines of a file for `sha256sum -c`. checksums: name of a file -> SHA-256."""
    return "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)).encode()


def parse_checksums(data: bytes) -> dict[str, str]:
    """Returns name of a file -> SHA-256. Raises ValueError where a line has another form, or names
    a file outside of the folder."""
    found = {}
    for line in data.decode().splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{line!r:.80} is not a line of the format of sha256sum")
        if not is_inside(match[2]):
            raise ValueError(f"{match[2]!r:.80} is not the name of a file in this folder")
        found[match[2]] = match[1]
    return found


def file_sha256(path: Path) -> str | None:
    """Returns 64 hex digits; None if the file is missing. Raises OSError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def changed_files(
    expected: Mapping[str, str | None], sha256_of: Callable[[str], str | None]
) -> dict[str, str]:
    """Name -> what is wrong. expected: None where the hash is not known, which counts as wrong."""
    found = {name: sha256_of(name) for name in expected}
    return {
        name: "is missing" if found[name] is None else "is not the file that was written"
        for name, sha256 in expected.items()
        if sha256 is None or found[name] != sha256
    }
