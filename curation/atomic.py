"""Writes local files that are complete or absent: under another name first, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp-"  # prefix of unfinished files and folders


@contextmanager
def atomic_path(target: Path, durable: bool = False) -> Iterator[Path]:
    """Yields the path to write to; renames it to `target` at the end, removes it after an error.

    durable: the data are on the disk before the new name is. Creates the folder. Raises OSError.
    """
    # Not the process id: two containers that write to one file system may both have it.
    part = target.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if durable:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink()


def write_atomic(target: Path, data: bytes | str, durable: bool = False) -> None:
    """Writes bytes, or text as UTF-8, as `atomic_path` does."""
    with atomic_path(target, durable) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
