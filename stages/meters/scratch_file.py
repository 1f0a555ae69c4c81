"""Keeps the images of a video outside of memory, as JPEGs in one temporary file."""

from __future__ import annotations

import tempfile
from collections import deque
from contextlib import suppress

import cv2
import numpy as np

from curation.images import decode_image, encode_jpeg
from curation.scratch import scratch_errors

MAX_FILE_IN_MEMORY_BYTES = 32 << 20  # a few minutes of video; larger files are on disk
MAX_PENDING_BYTES = 64 << 20  # of images not encoded yet: a minute of key frames


class ScratchFile:
    """A list of images that is read as JPEGs. The file is deleted with the object.

    The latest images are not encoded yet: most lie in takes too short for a clip, or between clips,
    and are never read.
    """

    def __init__(self, quality: int) -> None:
        self._quality = quality
        self._file = tempfile.SpooledTemporaryFile(max_size=MAX_FILE_IN_MEMORY_BYTES)  # noqa: SIM115 (kept)
        self._end = 0
        # Per image: start and end in the file, or the image that is not encoded yet.
        self._images: list[tuple[int, int] | np.ndarray] = []
        self._pending: deque[int] = deque()
        self._pending_bytes = 0

    def __len__(self) -> int:
        return len(self._images)

    def append(self, image: np.ndarray) -> None:
        """image: (h, w) grey or (h, w, 3) BGR, uint8. It must not change afterwards."""
        self._pending.append(len(self._images))
        self._pending_bytes += image.nbytes
        self._images.append(image)
        while self._pending_bytes > MAX_PENDING_BYTES:
            self._encode(self._pending[0])

    def __getitem__(self, number: int) -> bytes:
        """The image as JPEG."""
        start, end = self._encode(number)
        with scratch_errors():  # what is buffered is written first
            self._file.seek(start)
            return self._file.read(end - start)

    def image(self, number: int) -> np.ndarray:
        """The image as it was appended, or decoded from its JPEG if that was written."""
        image = self._images[number]
        if isinstance(image, np.ndarray):
            return image
        return decode_image(self[number], "a stored image", cv2.IMREAD_UNCHANGED)

    def _encode(self, number: int) -> tuple[int, int]:
        """Writes the image to the file if it is pending. Returns its start and end there."""
        place = self._images[number]
        if isinstance(place, np.ndarray):
            jpeg = encode_jpeg(place, self._quality)
            with scratch_errors():
                self._file.seek(self._end)
                self._file.write(jpeg)
            self._pending.remove(number)
            self._pending_bytes -= place.nbytes
            self._images[number] = place = (self._end, self._end + len(jpeg))
            self._end += len(jpeg)
        return place

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, to which the last bytes can't be written
            self._file.close()
        self._images.clear()
        self._pending.clear()
