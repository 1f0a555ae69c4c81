"""What a container's header and index state about all frames of its video stream."""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """What the header states of a video track, before any of it is checked."""

    width: int  # px, turned as shown
    height: int
    duration_s: float  # of the whole file
    fps: tuple[float, float] | None  # as in StreamIndex


class StreamIndex(NamedTuple):
    """None: the index does not state it, or not for all frames."""

    size: tuple[int, int] | None  # width and height, px, as decoded
    fps: tuple[float, float] | None  # the lowest and the highest rate between two frames
    end_s: float | None  # no frame begins later
