"""What a container's index states about all frames of its video stream."""

from __future__ import annotations

from typing import NamedTuple


class StreamIndex(NamedTuple):
    """None: the index does not state it, or not for all frames."""

    size: tuple[int, int] | None  # width and height, px, as decoded
    fps: tuple[float, float] | None  # the lowest and the highest rate between two frames
    end_s: float | None  # no frame begins later
