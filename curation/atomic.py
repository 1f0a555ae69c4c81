"""Writes local files that are complete or absent: under another name first, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp-"  # prefix of unfinished files and folders


@contextmanager
def atomic_path(target: Path, durable: bool = False) -> Iterator[Path]:
    """Yields the path to write to; renames it to `target` at the end, removes it after an error.

    durable: at the end, data and name are on the disk; the data first. Creates the folder. Raises
    OSError.
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
        if durable:
            sync_folder(target.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Returns when the names of its files, and its own in the folder above, are on the disk.

    Where the system refuses it for a folder (a network file system, no permission to read), this
    does nothing.
    """
    for path in (folder, folder.parent):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            continue
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def write_atomic(target: Path, data: bytes | str, durable: bool = False) -> None:
    """Writes bytes, or text as UTF-8, as `atomic_path` does."""
    with atomic_path(target, durable) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
