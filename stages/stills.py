"""Stills: small colour pictures taken on the way through a video, for its clips' key frames.

Where a clip lies is known only when its take has ended, so a still is kept once a second, as JPEG
in one scratch file; the one nearest to the centre of a segment becomes its key frame. That spares
a second decode.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import cv2
import numpy as np

from curation.stage import Planes
from curation.video import colour
from stages.scratch import Scratch

JPEG_QUALITY = 90


@dataclass
class Stills:
    every_s: float = 1.0
    side: int = 768  # long side, px; never larger than the picture

    _side: int = field(init=False, repr=False, default=0)
    _times: list[float] = field(init=False, repr=False, default_factory=list)
    _kept: Scratch | None = field(init=False, repr=False, default=None)

    def start(self, side: int) -> None:
        """Forgets the last video. side: what its stills' long side is at most, px."""
        self._side = min(side, self.side)
        self._times = []
        if self._kept is not None:
            self._kept.close()
        self._kept = Scratch()

    def see(self, t_s: float, frame: Planes) -> None:
        if self._times and t_s < self._times[-1] + self.every_s - 1e-6:
            return
        assert self._kept is not None
        self._kept.add(encode(colour(frame, self._side)))
        self._times.append(t_s)

    def nearest(self, t_s: float, start_s: float, end_s: float) -> tuple[float, bytes] | None:
        """Time and JPEG of the still nearest to t_s in [start_s, end_s); None: there is none."""
        first = bisect.bisect_left(self._times, start_s - 1e-6)
        last = bisect.bisect_left(self._times, end_s - 1e-6)
        if first == last:
            return None
        assert self._kept is not None
        best = min(range(first, last), key=lambda i: abs(self._times[i] - t_s))
        return self._times[best], self._kept[best]


def encode(bgr: np.ndarray) -> bytes:
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return jpeg.tobytes()


def decode(jpeg: bytes, how: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """JPEG -> (h, w, 3) BGR."""
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), how)
    assert bgr is not None
    return bgr


def decode_small(jpeg: bytes, width: int) -> np.ndarray:
    """The same, `width` wide. Half the size comes out of the file in a third of the time."""
    bgr = decode(jpeg, cv2.IMREAD_REDUCED_COLOR_2)
    if bgr.shape[1] < width:
        bgr = decode(jpeg)
    size = (width, max(1, round(bgr.shape[0] * width / bgr.shape[1])))
    return cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)


def shrink(jpeg: bytes, side: int) -> bytes:
    """The same picture with a long side of `side` px at most."""
    bgr = decode(jpeg)
    scale = side / max(bgr.shape[:2])
    if scale >= 1:
        return jpeg
    return encode(cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
