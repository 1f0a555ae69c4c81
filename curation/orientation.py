"""How a stored picture is turned and mirrored for display: one of eight orientations.

The pipelines and the trainer share it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Orientation(NamedTuple):
    """The stored picture is mirrored first, then rotated."""

    rotation: int = 0  # degrees clockwise: 0, 90, 180 or 270
    mirrored: bool = False  # left and right are exchanged

    @property
    def swaps_sides(self) -> bool:
        """Whether the shown width is the stored height."""
        return self.rotation in (90, 270)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The shown image, a view. image: (H, W) or (H, W, C), as stored."""
        if self.mirrored:
            image = image[:, ::-1]
        if self.rotation:
            image = np.rot90(image, -self.rotation // 90)  # numpy counts counter-clockwise
        return image


def read_orientation(frame: Any) -> Orientation:
    """The nearest of the eight to the display matrix of a decoded frame of PyAV."""
    for data in list(frame.side_data):
        if data.type.name == "DISPLAYMATRIX":
            return orientation_of_matrix(*np.frombuffer(data, np.int32)[[0, 1, 3, 4]].tolist())
    return Orientation()


def orientation_of_matrix(a: int, b: int, c: int, d: int) -> Orientation:
    """A stored pixel at (x, y) is shown at (a x + c y, b x + d y), up to a scale and a shift."""
    if a * d == b * c:  # it shows nothing
        return Orientation()
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return Orientation(round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360, mirrored)
