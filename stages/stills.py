"""Stills: small colour pictures taken on the way through a video, for its clips' key frames.

Where a clip lies is known only when its take has ended, so a still is kept twice a second, as JPEG
in one scratch file; the one nearest to the centre of a segment becomes its key frame. That spares
a second decode.
"""

from __future__ import annotations

import bisect
import tempfile
from dataclasses import dataclass, field
from typing import IO

import cv2
import numpy as np

from curation.stage import Planes
from curation.video import colour

JPEG_QUALITY = 90


@dataclass
class Stills:
    every_s: float = 0.5
    side: int = 768  # long side, px; never larger than the picture

    _times: list[float] = field(init=False, repr=False, default_factory=list)
    _places: list[tuple[int, int]] = field(init=False, repr=False, default_factory=list)
    _scratch: IO[bytes] | None = field(init=False, repr=False, default=None)

    def start(self) -> None:
        self._times, self._places = [], []
        if self._scratch is not None:
            self._scratch.close()
        # In memory up to a few minutes of video, on disk beyond.
        self._scratch = tempfile.SpooledTemporaryFile(max_size=64 << 20)  # noqa: SIM115 (kept open)

    def see(self, t_s: float, frame: Planes) -> None:
        if self._times and t_s < self._times[-1] + self.every_s - 1e-6:
            return
        assert self._scratch is not None
        jpeg = encode(colour(frame, self.side))
        self._places.append((self._scratch.tell(), len(jpeg)))
        self._times.append(t_s)
        self._scratch.write(jpeg)

    def nearest(self, t_s: float, start_s: float, end_s: float) -> tuple[float, bytes] | None:
        """Time and JPEG of the still nearest to t_s in [start_s, end_s); None: there is none."""
        first = bisect.bisect_left(self._times, start_s - 1e-6)
        last = bisect.bisect_left(self._times, end_s - 1e-6)
        if first == last:
            return None
        assert self._scratch is not None
        best = min(range(first, last), key=lambda i: abs(self._times[i] - t_s))
        place, size = self._places[best]
        self._scratch.seek(place)
        jpeg = self._scratch.read(size)
        self._scratch.seek(0, 2)
        return self._times[best], jpeg


def encode(bgr: np.ndarray) -> bytes:
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return jpeg.tobytes()


def decode(jpeg: bytes) -> np.ndarray:
    """JPEG -> (h, w, 3) BGR."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return bgr


def shrink(jpeg: bytes, side: int) -> bytes:
    """The same picture with a long side of `side` px at most."""
    bgr = decode(jpeg)
    scale = side / max(bgr.shape[:2])
    if scale >= 1:
        return jpeg
    return encode(cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
