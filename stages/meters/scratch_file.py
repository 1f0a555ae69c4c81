"""What a meter keeps for later, without keeping it in memory: pictures in one scratch file."""

from __future__ import annotations

import tempfile
from collections import deque

import cv2
import numpy as np

from curation.images import decode_image, encode_jpeg

IN_MEMORY_BYTES = 32 << 20  # a few minutes of video; beyond, the file is on disk
WAITING_BYTES = 64 << 20  # of pictures as they are: a minute of stills


class Scratch:
    """Grows by one picture at a time, gives JPEG files; gone with the object.

    The latest pictures wait as they are: most belong to takes too short for a clip, or lie beside
    the clips, and are never asked for.
    """

    def __init__(self, quality: int) -> None:
        self._quality = quality
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 (kept)
        self._end = 0
        self._places: list[tuple[int, int] | np.ndarray] = []  # of the file; or the picture waiting
        self._waiting: deque[int] = deque()
        self._waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, picture: np.ndarray) -> None:
        self._waiting.append(len(self._places))
        self._waiting_bytes += picture.nbytes
        self._places.append(picture)
        while self._waiting_bytes > WAITING_BYTES:
            self._write(self._waiting[0])

    def __getitem__(self, number: int) -> bytes:
        start, end = self._write(number)
        self._file.seek(start)
        return self._file.read(end - start)

    def picture(self, number: int) -> np.ndarray:
        """As it was added, or, if it waits no longer, as its file shows it."""
        place = self._places[number]
        if isinstance(place, np.ndarray):
            return place
        return decode_image(self[number], "a stored image", cv2.IMREAD_UNCHANGED)

    def _write(self, number: int) -> tuple[int, int]:
        """Where the picture lies in the file, which it is put into if it waits."""
        place = self._places[number]
        if isinstance(place, np.ndarray):
            jpeg = encode_jpeg(place, self._quality)
            self._file.seek(self._end)
            self._file.write(jpeg)
            self._waiting.remove(number)
            self._waiting_bytes -= place.nbytes
            self._places[number] = place = (self._end, self._end + len(jpeg))
            self._end += len(jpeg)
        return place

    def close(self) -> None:
        self._file.close()
        self._places.clear()
        self._waiting.clear()
