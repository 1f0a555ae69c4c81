"""Reads and writes objects of a store whole, also where an answer of the store is cut off.

pyarrow takes an answer that ends within its header for a complete one. The object then seems to be
empty or shorter than it is, or none of the bytes that were asked for are written to the buffer.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

FIRST_CHUNK_BYTES = 1 << 20  # of the first request; most objects have no more
CHUNK_BYTES = 8 << 20  # of each later request
ATTEMPTS = 3  # to read an object that arrives in part
MARK_BYTES = 16

T = TypeVar("T")


class CutOff(OSError):
    """An answer of a store ended too early."""


def read_object(fs: pafs.FileSystem, path: str) -> bytes:
    """Returns all bytes. Raises FileNotFoundError, OSError; CutOff after ATTEMPTS attempts."""

    def read() -> bytes:
        data = b"".join(read_chunks(fs, path))
        check_size(fs, path, len(data))
        return data

    return retry_cut_off(read)


def retry_cut_off(read: Callable[[], T]) -> T:
    """Returns what `read` returns, which is called up to ATTEMPTS times while it raises CutOff."""
    for _ in range(ATTEMPTS - 1):
        with suppress(CutOff):
            return read()
    return read()


def read_chunks(fs: pafs.FileSystem, path: str) -> Iterator[memoryview]:
    """Yields the bytes in order, one request at a time. Raises CutOff, other OSErrors. The object
    may be longer: `check_size` finds that."""
    size = FIRST_CHUNK_BYTES
    with fs.open_input_stream(path, compression=None) as stream:  # else by the name's suffix
        while chunk := _read_next(stream, size):
            yield chunk
            size = CHUNK_BYTES


def read_range(file: pa.NativeFile, offset: int, size: int) -> memoryview:
    """Returns `size` bytes from `offset` on, by one request; fewer where the object ends before.
    Raises CutOff, other OSErrors. Not for a file that several threads read."""
    file.seek(offset)
    return _read_next(file, size)


def _read_next(file: pa.NativeFile, size: int) -> memoryview:
    """The buffer has random bytes first: if its end still has them, no answer was written to it."""
    mark = os.urandom(MARK_BYTES)
    buffer = (bytearray(mark) * (size // MARK_BYTES + 1))[:size]
    count = file.readinto(buffer)
    end = range(max(0, count - MARK_BYTES), count)
    if count and all(buffer[i] == mark[i % MARK_BYTES] for i in end):
        raise CutOff(f"none of {count} bytes arrived")
    return memoryview(buffer)[:count]


def check_size(fs: pafs.FileSystem, path: str, count: int) -> None:
    """Raises CutOff where the bytes that were read are not the whole object.

    Its size is requested again. An object that seems to be empty must also be empty in the list of
    its folder: one that is cut off lacks it."""
    size = fs.get_file_info(path).size
    if size != count or (not count and not _is_listed_as_empty(fs, path)):
        raise CutOff(f"{count} bytes of {path} arrived; its size is {size}")


def _is_listed_as_empty(fs: pafs.FileSystem, path: str) -> bool:
    listed = fs.get_file_info(pafs.FileSelector(path.rpartition("/")[0], allow_not_found=True))
    return any(found.path == path and found.size == 0 for found in listed)


def list_folder(fs: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """Returns the files and folders directly in a folder of a store; none where there is no folder.

    pyarrow takes a list whose header is cut off for an empty one, so a list counts only if the next
    one is equal. Raises CutOff if no two of ATTEMPTS + 1 lists in a row are, other OSErrors.
    """
    selector = pafs.FileSelector(path, allow_not_found=True)
    last = fs.get_file_info(selector)

    def list_again() -> list[pafs.FileInfo]:
        nonlocal last
        found, before = fs.get_file_info(selector), last
        last = found
        if {f.path for f in found} != {f.path for f in before}:
            raise CutOff(f"two lists of {path} differ")
        return found

    return retry_cut_off(list_again)


def write_object(fs: pafs.FileSystem, path: str, chunks: Iterable[bytes]) -> None:
    """Writes a whole object, or none where a chunk can't be read or the store fails.

    pyarrow can't abort an object: closing or destroying its stream completes it from what has
    arrived. So after an error the stream is never destroyed, not even when the process ends. It
    keeps its buffer of about 10 MB, once in most processes, because the error stops the run; its
    parts stay in the store as an unfinished upload. The exception of a signal could also end the
    writing. Python raises it in the main thread alone, so another thread writes; the caller gets
    the exception when that thread has ended.
    """

    def write() -> None:
        stream = fs.open_output_stream(path, compression=None)
        try:
            for chunk in chunks:
                stream.write(chunk)
        except BaseException:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
            raise
        stream.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(write).result()
