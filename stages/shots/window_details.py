"""What is measured in addition over the few windows that `window_features.py` leaves likely.

A picture that dissolves into another is, pixel by pixel, a mixture of both ends, and shows the
edges of both. A camera that moves shows one scene all the time: consecutive frames match once
they are shifted or compensated for motion, and the ends may show the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from stages.shots.change import FrameComparison
from stages.shots.frame_view import HEIGHT, WIDTH, FrameView

MIDDLE = (2, 4, 6)  # of the nine frames
STEPS = ((1, 2), (4, 5), (5, 6), (8, 9))  # places in the window with the frame before it at 0

FEATURES = (
    *(f"{name}_{at}" for at in MIDDLE for name in ("off_mixture", "share", "noise")),
    *("edges_unexplained", "edges_of_first", "edges_of_last", "edges_alike"),
    *("shift", "shift_largest", "match", "match_smallest", "shift_whole", "match_whole"),
    *(f"{name}_step_{i}" for i in range(4) for name in ("difference", "compensated", "moved")),
    *("before_difference", "before_compensated", "after_difference", "after_compensated"),
    *("whole_residual", "whole_area", "whole_median"),
    *(f"unexplained_step_{i}" for i in range(4)),
    *("unexplained_before", "unexplained_after", "steps_to_outside"),
)

_WINDOW = cv2.createHanningWindow((WIDTH, HEIGHT), cv2.CV_32F)


class WindowDetails:
    """Holds the flow's working memory, nothing of the video."""

    def __init__(self) -> None:
        self._comparison = FrameComparison()

    def features(self, window: Sequence[FrameView]) -> list[float]:
        """FEATURES of a window: the frame before it, its nine frames, the frame after it."""
        lumas = [view.yuv[:, :, 0].astype(np.float32) for view in window]
        found = _mixture(lumas[1:-1]) + _edges(lumas[1], lumas[5], lumas[9])
        found += _shifts(lumas[1:-1])
        for i, j in STEPS:
            found += self._comparison.motion(window[i].small, window[j].small)
        for i, j in ((0, 1), (9, 10)):
            found += self._comparison.motion(window[i].small, window[j].small)[:2]
        found += self._comparison.change(window[1].small, window[9].small)
        return found + _ratios(dict(zip(FEATURES, found, strict=False)))


def _ratios(of: dict[str, float]) -> list[float]:
    """What trees cannot compute from the values themselves."""
    outside = of["before_difference"] + of["after_difference"]
    names = [(f"compensated_step_{i}", f"difference_step_{i}") for i in range(4)]
    names += [(f"{side}_compensated", f"{side}_difference") for side in ("before", "after")]
    found = [of[compensated] / (of[difference] + 0.5) for compensated, difference in names]
    return [*found, (of["difference_step_1"] + of["difference_step_2"]) / (outside + 1)]


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


def _shifts(lumas: list[np.ndarray]) -> list[float]:
    """Shifts in px between consecutive frames, and how well they match (phase correlation)."""
    pairs = [*pairwise(lumas), (lumas[0], lumas[-1])]
    shifts, matches = [], []
    for a, b in pairs:
        (x, y), match = cv2.phaseCorrelate(a, b, _WINDOW)
        shifts.append(float(np.hypot(x, y)))
        matches.append(float(match))
    inner = matches[:-1]
    found = [sum(shifts[:-1]), max(shifts[:-1]), sum(inner) / len(inner), min(inner)]
    return [*found, shifts[-1], matches[-1]]
