"""A list of many small arrays in one block of memory."""

from __future__ import annotations

from array import array

import numpy as np


class SmallArrays:
    """Arrays of one type, in the order in which they were appended.

    Each by itself in memory would lie in a gap that a freed image leaves. The next image would then
    not fit there, so that the memory of the process grew without end: by 80 kB for a second of
    video, of which 12 kB were such arrays.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])  # the first is the start
        self._shapes: list[tuple[int, ...]] = []
        self._type = np.dtype(np.uint8)

    def append(self, values: np.ndarray) -> None:
        self._type = values.dtype
        self._bytes += values.tobytes()
        self._ends.append(len(self._bytes))
        self._shapes.append(values.shape)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, number: int) -> np.ndarray:
        """A copy."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = self._bytes[self._ends[number] : self._ends[number + 1]]
        return np.frombuffer(part, self._type).reshape(self._shapes[number])

    def between(self, first: int, stop: int) -> list[np.ndarray]:
        """Copies of those with first <= number < stop."""
        return [self[number] for number in range(first, min(stop, len(self)))]
