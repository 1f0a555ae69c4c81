"""KeyFrames: small colour pictures taken on the way through a video, for its clips' key frames.

Where a clip lies is known only when its take has ended, so a still is kept once a second, in one
scratch file; the one nearest to the centre of a segment becomes its key frame. That spares
a second decode. A model of optical flow needs pairs of frames that lie much closer: for these
another picture is kept shortly after each still.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from math import inf
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Gt

from curation.stage import Planes
from curation.video.reader import colour
from stages.meters.scratch_file import Scratch, decode, encode

JPEG_QUALITY = 90


@dataclass
class KeyFrames:
    every_s: float = 1.0
    side: int = 768  # long side, px; never larger than the picture
    # also the frame so much after each still, for optical flow by a model; null: none
    pair_gap_s: Annotated[float, Gt(0)] | None = None

    _side: int = field(init=False, repr=False, default=0)
    _times: list[float] = field(init=False, repr=False, default_factory=list)
    _places: list[int] = field(init=False, repr=False, default_factory=list)  # among the kept
    _next_s: float = field(init=False, repr=False, default=inf)  # when the next is due
    _next: dict[int, tuple[float, int]] = field(init=False, repr=False, default_factory=dict)
    _kept: Scratch | None = field(init=False, repr=False, default=None)

    def start(self, side: int) -> None:
        """Forgets the last video. side: what its stills' long side is at most, px."""
        self._side = min(side, self.side)
        self._times, self._places, self._next = [], [], {}
        if self._kept is not None:
            self._kept.close()
        self._kept = Scratch(JPEG_QUALITY)

    def process_frame(self, t_s: float, frame: Planes) -> None:
        last = len(self._times) - 1
        if last < 0 or t_s >= self._times[last] + self.every_s - 1e-6:
            self._places.append(self._keep(frame))
            self._times.append(t_s)
            # A hair's tolerance, or a frame at 0.0999 s would make every gap one frame longer.
            self._next_s = inf if self.pair_gap_s is None else t_s + self.pair_gap_s - 0.002
        elif t_s >= self._next_s:
            self._next[last], self._next_s = (t_s, self._keep(frame)), inf

    def _keep(self, frame: Planes) -> int:
        assert self._kept is not None
        self._kept.add(colour(frame, self._side))
        return len(self._kept) - 1

    def nearest(self, t_s: float, start_s: float, end_s: float) -> list[tuple[float, bytes]]:
        """The still nearest to t_s in [start_s, end_s), and the frame kept after it: time, JPEG.

        Empty where there is no still; the still alone where no other is kept inside.
        """
        assert self._kept is not None
        best = self._nearest(t_s, start_s, end_s)
        if best is None:
            return []
        found = [(self._times[best], self._places[best])]
        if best in self._next and self._next[best][0] < end_s - 1e-6:
            found.append(self._next[best])
        return [(seen_s, self._kept[place]) for seen_s, place in found]

    def thumb(
        self, t_s: float, start_s: float, end_s: float, side: int
    ) -> list[tuple[float, bytes]]:
        """The same still alone, with a long side of `side` px at most."""
        assert self._kept is not None
        best = self._nearest(t_s, start_s, end_s)
        if best is None:
            return []
        picture = shrink(self._kept.picture(self._places[best]), side)
        return [(self._times[best], encode(picture, JPEG_QUALITY))]

    def _nearest(self, t_s: float, start_s: float, end_s: float) -> int | None:
        first = bisect.bisect_left(self._times, start_s - 1e-6)
        last = bisect.bisect_left(self._times, end_s - 1e-6)
        return min(range(first, last), key=lambda i: abs(self._times[i] - t_s), default=None)


def decode_small(jpeg: bytes, width: int) -> np.ndarray:
    """JPEG -> (h, w, 3) BGR, `width` wide. Half the size takes a third of the time to read."""
    bgr = decode(jpeg, cv2.IMREAD_REDUCED_COLOR_2)
    if bgr.shape[1] < width:
        bgr = decode(jpeg)
    size = (width, max(1, round(bgr.shape[0] * width / bgr.shape[1])))
    return cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)


def shrink(bgr: np.ndarray, side: int) -> np.ndarray:
    """The picture with a long side of `side` px at most."""
    scale = side / max(bgr.shape[:2])
    if scale >= 1:
        return bgr
    return cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
