"""Keeps small colour frames during the decode pass, from which clips get their key frames.

Where a clip lies is known only after the pass. So one frame a second is kept in a scratch file, and
the one nearest to a segment's centre becomes its key frame; no video is decoded twice. A model of
optical flow needs two frames that lie closer: for it another frame is kept shortly after each.
HDR frames are tone-mapped: read as SDR they are grey and dim.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from math import inf
from typing import Annotated

from annotated_types import Ge, Gt

from curation.images import encode_jpeg, shrink
from curation.records import SPAN_TOLERANCE_S
from curation.video.frames import Planes
from curation.video.planes import bgr_image
from curation.video.tone_mapping import HDR_TRANSFERS, to_sdr
from stages.meters.scratch_file import ScratchFile

JPEG_QUALITY = 90
GAP_TOLERANCE_S = 0.002  # of time stamps: without it a frame at 0.0999 s would wait for the next


@dataclass
class KeyFrames:
    every_s: Annotated[float, Gt(0)] = 1.0
    side: Annotated[int, Ge(32)] = 768  # long side, px; never larger than the frame
    # also the frame so much after each kept one, for optical flow by a model; null: none
    pair_gap_s: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        self._kept: ScratchFile | None = None

    def start(self) -> None:
        """Begins a video and forgets the one before."""
        self.limit_side(self.side)
        self._times_s: list[float] = []
        self._places: list[int] = []  # in the scratch file
        self._flow_frames: dict[int, tuple[float, int]] = {}  # of frame number: time, place
        self._flow_frame_due_s = inf
        if self._kept is not None:
            self._kept.close()
        self._kept = ScratchFile(JPEG_QUALITY)

    def limit_side(self, side: int) -> None:
        """Limits the long side of the frames from here on, px."""
        self._side = min(side, self.side)

    def process_frame(self, t_s: float, frame: Planes) -> None:
        last = len(self._times_s) - 1
        if last < 0 or t_s >= self._times_s[last] + self.every_s - SPAN_TOLERANCE_S:
            self._places.append(self._keep(frame))
            self._times_s.append(t_s)
            gap_s = inf if self.pair_gap_s is None else self.pair_gap_s - GAP_TOLERANCE_S
            self._flow_frame_due_s = t_s + gap_s
        elif t_s >= self._flow_frame_due_s:
            self._flow_frames[last] = (t_s, self._keep(frame))
            self._flow_frame_due_s = inf

    def _keep(self, frame: Planes) -> int:
        assert self._kept is not None
        source = frame.source
        if source.frame.color_trc in HDR_TRANSFERS:
            source = source._replace(frame=to_sdr(source.frame))
        self._kept.append(bgr_image(Planes(frame.y, source), self._side))
        return len(self._kept) - 1

    def nearest(self, t_s: float, start_s: float, end_s: float) -> list[tuple[float, bytes]]:
        """Time and JPEG of the frame nearest to t_s in [start_s, end_s), then of its flow frame.

        Empty where no frame was kept in the span; without a flow frame where that lies outside.
        """
        assert self._kept is not None
        best = self._nearest(t_s, start_s, end_s)
        if best is None:
            return []
        found = [(self._times_s[best], self._places[best])]
        if best in self._flow_frames and self._flow_frames[best][0] < end_s - SPAN_TOLERANCE_S:
            found.append(self._flow_frames[best])
        return [(frame_s, self._kept[place]) for frame_s, place in found]

    def thumbnail(
        self, t_s: float, start_s: float, end_s: float, side: int
    ) -> tuple[float, bytes] | None:
        """Time and JPEG of the same frame, its long side at most `side` px."""
        assert self._kept is not None
        best = self._nearest(t_s, start_s, end_s)
        if best is None:
            return None
        image = shrink(self._kept.image(self._places[best]), side)
        return self._times_s[best], encode_jpeg(image, JPEG_QUALITY)

    def _nearest(self, t_s: float, start_s: float, end_s: float) -> int | None:
        first = bisect.bisect_left(self._times_s, start_s - SPAN_TOLERANCE_S)
        last = bisect.bisect_left(self._times_s, end_s - SPAN_TOLERANCE_S)
        return min(range(first, last), key=lambda i: abs(self._times_s[i] - t_s), default=None)
