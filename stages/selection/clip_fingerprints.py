"""The fingerprints of many clips, in memory or in a scratch file that is mapped."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.scratch import driver_scratch_errors, scratch_file, write_all
from stages.meters.fingerprint import CODE

TICKS_PER_CHUNK = 1 << 19  # read in one step, to limit memory


@dataclass(frozen=True)
class ClipFingerprints:
    """The fingerprints of n clips, one after the other, in memory or in a mapped file."""

    ticks: np.ndarray  # (ticks,) CODE
    start: np.ndarray  # (n + 1,) int64: clip i has the ticks start[i] to start[i + 1]
    file: mmap.mmap | None = None  # that holds the ticks

    def release(self) -> None:
        """Removes the pages that were read from this process's memory."""
        if self.file is not None:
            self.file.madvise(mmap.MADV_DONTNEED)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 of consecutive clips with about TICKS_PER_CHUNK ticks."""
        first, n = 0, len(self.start) - 1
        while first < n:
            end = self.start[first] + TICKS_PER_CHUNK
            last = max(first + 1, int(np.searchsorted(self.start, end, "right")) - 1)
            yield first, last
            first = last

    def take(self, clips: np.ndarray) -> ClipFingerprints:
        """The fingerprints of these clips, in this order, in a scratch file."""
        file = FingerprintFile()
        first, sizes = self.start[clips], self.start[clips + 1] - self.start[clips]
        chunk = np.cumsum(sizes) // TICKS_PER_CHUNK
        for rows in np.split(np.arange(len(clips)), np.flatnonzero(np.diff(chunk)) + 1):
            start = np.concatenate([[0], np.cumsum(sizes[rows])])
            ticks = np.arange(start[-1]) + np.repeat(first[rows] - start[:-1], sizes[rows])
            file.append(ClipFingerprints(self.ticks[ticks], start))
            self.release()
        return file.read()


class FingerprintFile:
    """Fingerprints that are appended to a scratch file. Raises OutputError where it can't be
    written."""

    def __init__(self) -> None:
        with driver_scratch_errors():
            self._file = scratch_file()
        self._sizes: list[np.ndarray] = [np.zeros(1, np.int64)]

    def append(self, codes: ClipFingerprints) -> None:
        with driver_scratch_errors():
            write_all(self._file, codes.ticks.view(np.uint8))
        self._sizes.append(np.diff(codes.start).astype(np.uint32))

    def read(self) -> ClipFingerprints:
        """All of them; the file is closed, and deleted when they are no longer used."""
        start = np.cumsum(np.concatenate(self._sizes), dtype=np.int64)
        self._sizes = []
        with self._file as file:
            if not start[-1]:
                return ClipFingerprints(np.empty(0, CODE), start)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return ClipFingerprints(np.frombuffer(mapped, CODE), start, mapped)


def read_fingerprints(column: pa.ChunkedArray) -> ClipFingerprints:
    """The fingerprints in the ledger's column; a null or empty one has no ticks."""
    chunks = [c.cast(pa.large_binary()) for c in column.chunks]
    values = pa.concat_arrays([pa.array([], pa.large_binary()), *chunks]).fill_null(b"")
    sizes = np.diff(np.frombuffer(values.buffers()[1], np.int64)[: len(values) + 1])
    if (sizes % CODE.itemsize).any():
        raise ValueError(f"a fingerprint is not a whole number of {CODE.itemsize}-byte codes")
    start = np.concatenate([[0], np.cumsum(sizes // CODE.itemsize)]).astype(np.int64)
    data = values.buffers()[2]
    ticks = np.frombuffer(data, CODE, count=start[-1]) if start[-1] else np.empty(0, CODE)
    return ClipFingerprints(ticks, start)
