"""What a meter keeps for later, without keeping it in memory: blobs in one scratch file."""

from __future__ import annotations

import tempfile

IN_MEMORY_BYTES = 32 << 20  # a few minutes of video; beyond, the file is on disk


class Scratch:
    """Grows by one blob at a time; gone with the object."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 (kept)
        self._ends = [0]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, blob: bytes) -> None:
        self._file.seek(self._ends[-1])
        self._file.write(blob)
        self._ends.append(self._ends[-1] + len(blob))

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number : number + 2]
        self._file.seek(start)
        return self._file.read(end - start)

    def close(self) -> None:
        self._file.close()
