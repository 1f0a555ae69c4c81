"""What is known of a video before its first frame, one frame of it, and what processes its frames.

The decode pass (stages/decode_pass.py) gives every frame once to one detector
(stages/shots/detector.py), to every meter (stages/meters/meter.py) and to the fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before its first frame."""

    width: int  # px, as shown (after rotation)
    height: int
    fps: float  # nominal; the frames' own times decide
    reduced_width: int  # px, of `Planes.y`
    reduced_height: int


@dataclass
class Planes:
    """One frame at reduced size: 8 bit, full range, upright.

    y: (h, w) uint8, luma; its long side is about 320 px (the source's divided by a whole number).
    chroma: (36, 64, 2) uint8, `chroma_image` of it, where a frame processor has `reads_chroma`.
    source: the decoder's frame, from which `curation.video.planes` makes a colour image of any
    size. None unless the frame processor has `reads_source`.
    """

    y: np.ndarray
    source: Any = None
    chroma: np.ndarray | None = None


class FrameProcessor:
    """Gets each frame of a video once, in order of time.

    It keeps small numbers per frame, never frames beyond a short buffer: a video may be hours long.
    """

    reads_source: ClassVar[bool] = False  # it needs `Planes.source`
    reads_chroma: ClassVar[bool] = False  # it needs `Planes.chroma`

    def start(self, video: VideoInfo) -> None:
        """Begins a video and forgets the one before."""
        raise NotImplementedError

    def process_frame(self, t_s: float, frame: Planes) -> None:
        """t_s: seconds from the first frame, strictly increasing."""
        raise NotImplementedError
