"""Temporary files, and the errors of a temporary folder that is full."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import IO

import numpy as np

from curation.stage import OutputError, TransientError

# of a disk that is full, or a file above a limit of the process
FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@contextmanager
def scratch_errors() -> Iterator[None]:
    """In a worker: raises TransientError where a temporary file can't be written, because another
    row may fit."""
    try:
        yield
    except OSError as e:
        if e.errno not in FULL_ERRNOS:
            raise
        raise TransientError(f"can't write to {tempfile.gettempdir()}: {e.strerror}") from None


@contextmanager
def driver_scratch_errors() -> Iterator[None]:
    """In a command itself: raises OutputError where a temporary file can't be written."""
    try:
        yield
    except OSError as e:
        folder = tempfile.tempdir or "the temporary folder"  # None where no folder can be used
        raise OutputError(
            f"can't write to {folder}: {e.strerror or e}\n"
            "  fix: free some space there, or set TMPDIR to a folder with more"
        ) from None


def scratch_file() -> FileIO:
    """A temporary file without a name and without a buffer, for `write_all`. Raises OSError."""
    return tempfile.TemporaryFile(buffering=0)


def write_all(file: IO[bytes], data: bytes | memoryview | np.ndarray) -> None:
    """Writes bytes, or an array of uint8, to an unbuffered file. Raises OSError.

    With a buffer, a full disk may raise no error before the file is closed; `numpy.tofile` then
    raises none at all, and the file lacks its end.
    """
    left = memoryview(data)  # type: ignore[arg-type]  # NumPy declares it from Python 3.12 on
    while left:
        left = left[file.write(left) :]
