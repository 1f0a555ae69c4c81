"""What is measured in addition over the few windows that `window_features.py` leaves likely.

A picture that dissolves into another is, pixel by pixel, a mixture of both ends, and shows the
edges of both. A camera that moves shows one scene all the time: motion explains the change before
and after the window, and the ends may show the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from stages.shots.change import FrameComparison
from stages.shots.frame_view import FrameView

MIDDLE = (2, 4, 6)  # of the nine frames

FEATURES = (
    *(f"{name}_{at}" for at in MIDDLE for name in ("off_mixture", "share", "noise")),
    *("edges_unexplained", "edges_of_first", "edges_of_last", "edges_alike"),
    *("before_difference", "before_compensated", "after_difference", "after_compensated"),
    *("whole_residual", "whole_area", "whole_median"),
    *("unexplained_before", "unexplained_after"),
)


class WindowDetails:
    """Holds the flow's working memory, nothing of the video."""

    def __init__(self) -> None:
        self._comparison = FrameComparison()

    def features(self, window: Sequence[FrameView]) -> list[float]:
        """FEATURES of a window: the frame before it, its nine frames, the frame after it."""
        lumas = [view.yuv[:, :, 0].astype(np.float32) for view in window[1:-1]]
        found = _mixture(lumas) + _edges(lumas[0], lumas[4], lumas[8])
        outside = [self._comparison.motion(window[i].small, window[i + 1].small) for i in (0, 9)]
        for difference, compensated in outside:
            found += [difference, compensated]
        found += self._comparison.change(window[1].small, window[9].small)
        # the ratio, which trees cannot compute from the values themselves
        return found + [compensated / (difference + 0.5) for difference, compensated in outside]


def _mixture(lumas: list[np.ndarray]) -> list[float]:
    """For each frame of MIDDLE: its distance to the nearest mixture of both ends, the share of the
    last frame in it, and its distance to the mixture that is expected for its time.
    """
    first, last = lumas[0], lumas[-1]
    step = last - first
    power = float(np.vdot(step, step)) + 1.0
    found = []
    for at in MIDDLE:
        way = lumas[at] - first
        share = min(max(float(np.vdot(way, step)) / power, 0.0), 1.0)
        for part in (share, at / (len(lumas) - 1)):
            off = way - part * step
            distance = (float(np.vdot(off, off)) / power) ** 0.5
            found += [distance, share] if part is share else [distance]
    return found


def _edges(first: np.ndarray, middle: np.ndarray, last: np.ndarray) -> list[float]:
    """How much of the middle frame's edges both ends leave unexplained, the shares of both ends,
    and how much the ends' edges are alike (correlation).
    """
    a, m, b = (_gradients(luma) for luma in (first, middle, last))
    aa, bb, ab, am, bm, mm = (
        float(np.vdot(x, y)) for x, y in ((a, a), (b, b), (a, b), (a, m), (b, m), (m, m))
    )
    aa, bb, mm = aa + 1.0, bb + 1.0, mm + 1.0
    determinant = max(aa * bb - ab * ab, 1e-3 * aa * bb)
    of_first, of_last = (am * bb - bm * ab) / determinant, (bm * aa - am * ab) / determinant
    unexplained = 1 - (of_first * am + of_last * bm) / mm
    return [unexplained, of_first, of_last, ab / (aa * bb) ** 0.5]


def _gradients(luma: np.ndarray) -> np.ndarray:
    x, y = cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)
    return np.stack([x, y]).ravel()
