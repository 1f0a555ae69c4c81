"""The bytes of one video: its hash, and a local copy of one in a store."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from curation.heartbeat import report_progress
from curation.objects import check_size, read_chunks
from curation.scratch import scratch_errors, write_all
from curation.stage import BadVideo, TransientError
from curation.urls import InputError, UnreachableError, file_system, is_remote, local_path

# Of a network file system, a disk or the machine; other errors are properties of the file.
STORAGE_ERRNOS = frozenset(
    (
        *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
        *(errno.ENOTCONN, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
        *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    )
)

HASHED_BYTES = 1 << 20  # of a local file at a time


def compute_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a local file, 64 hex digits.

    Raises BadVideo if it can't be read, TransientError if the storage fails.
    """
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(HASHED_BYTES):
                digest.update(chunk)
                report_progress()
        return digest.hexdigest()
    except OSError as e:
        if e.errno in STORAGE_ERRNOS:
            raise TransientError(f"can't read {path}: {e.strerror}") from None
        raise BadVideo(f"can't be read: {e.strerror}") from None


@contextmanager
def local_copy(video: str, size: int | None = None) -> Iterator[str]:
    """Yields a local path of a video: of a remote one, of a temporary copy.

    size: as listed, in bytes; None: not known.

    Raises BadVideo if there is no such object or it is not a URL of one, TransientError if the
    store fails or the temporary folder is full.
    """
    if not is_remote(video):
        yield local_path(video)
        return
    try:
        fs, fs_path = file_system(video)
    except UnreachableError as e:
        raise TransientError(str(e)) from None
    except InputError as e:
        raise BadVideo(str(e)) from None
    with scratch_errors():
        file = tempfile.NamedTemporaryFile(suffix=Path(fs_path).suffix, buffering=0)  # noqa: SIM115
    with file as scratch:
        free = shutil.disk_usage(scratch.name).free
        if size is not None and size > free:
            raise TransientError(f"{video} has {size} bytes; the temporary folder has {free} free")
        with scratch_errors():
            for chunk in _chunks(fs, fs_path, size):
                write_all(scratch, chunk)
        yield scratch.name


def _chunks(fs: pafs.FileSystem, fs_path: str, listed_size: int | None) -> Iterator[memoryview]:
    count = 0
    try:
        for chunk in read_chunks(fs, fs_path):
            count += len(chunk)
            report_progress()
            yield chunk
        if count or listed_size:
            check_size(fs, fs_path, count)
    except FileNotFoundError as e:
        raise BadVideo(f"can't be fetched: {e}") from None
    except (OSError, pa.ArrowException) as e:
        raise TransientError(f"can't fetch {fs_path}: {e}") from None
