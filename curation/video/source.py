"""Where a video is read from: a local path, or parts of an object in a store."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

from curation.objects import read_range, retry_cut_off
from curation.stage import BadVideo, TransientError
from curation.urls import UnreachableError, file_system

BLOCK_BYTES = 256 << 10  # of a request: the header of most videos
MAX_BYTES = 64 << 20  # that are read of one object; the index of a day of video has 100 MB


class RangeFile(io.RawIOBase):
    """An object of a store, of which only the blocks that are read are fetched, each once.

    Raises TransientError where the store fails; BadVideo where there is no such object, its size is
    not the listed one, or more than MAX_BYTES of it are needed.
    """

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size = url, size
        self._blocks: dict[int, bytes] = {}
        self._at = 0
        try:
            fs, fs_path = file_system(url)
            self._object = fs.open_input_file(fs_path)
            found = self._object.size()
        except FileNotFoundError as e:
            raise BadVideo(f"can't be fetched: {e}") from None
        except (UnreachableError, OSError, pa.ArrowException) as e:
            raise TransientError(f"can't fetch {url}: {e}") from None
        if found != size:
            raise BadVideo(f"{found} bytes, listed with {size}")

    @property
    def fetched_bytes(self) -> int:
        return sum(map(len, self._blocks.values()))

    def view(self) -> RangeFile:
        """The same object and blocks, read from a place of its own: its start."""
        view = RangeFile.__new__(RangeFile)
        vars(view).update(vars(self), _at=0)
        return view

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, count: int = -1) -> bytes:
        end = self.size if count < 0 else min(self.size, self._at + count)
        first, last = self._at // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        if end <= self._at:
            return b""
        self._fetch(first, last)
        data = b"".join(self._blocks[number] for number in range(first, last + 1))
        start = self._at - first * BLOCK_BYTES
        data = data[start : start + end - self._at]
        self._at = end
        return data

    def _fetch(self, first: int, last: int) -> None:
        """The blocks from first to last that are missing, by one request."""
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if not missing:
            return
        start = missing[0] * BLOCK_BYTES
        count = min((missing[-1] + 1) * BLOCK_BYTES, self.size) - start
        if self.fetched_bytes + count > MAX_BYTES:
            raise BadVideo(f"its header takes more than {MAX_BYTES} bytes")
        try:
            data = bytes(retry_cut_off(lambda: read_range(self._object, start, count)))
        except (OSError, pa.ArrowException) as e:
            raise TransientError(f"can't fetch {self.url}: {e}") from None
        if len(data) != count:
            raise TransientError(f"{len(data)} of {count} bytes of {self.url} arrived")
        for at in range(0, count, BLOCK_BYTES):
            self._blocks[missing[0] + at // BLOCK_BYTES] = data[at : at + BLOCK_BYTES]


Source = str | RangeFile


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """The source as a file, read from its start."""
    if isinstance(source, RangeFile):
        yield source.view()  # type: ignore[misc]
    else:
        with open(source, "rb") as file:
            yield file


def is_matroska(source: Source) -> bool:
    """By its first bytes."""
    with opened(source) as file:
        return file.read(4) == b"\x1aE\xdf\xa3"


def size_of(file: BinaryIO) -> int:
    """Bytes. The place from which it is read is then its end."""
    return file.seek(0, os.SEEK_END)
