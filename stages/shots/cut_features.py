"""What is measured around two consecutive pictures that may be the two sides of a hard cut.

Pictures are distinct frames: repeated frames are skipped, so a file with 10 pictures a second is
measured like one with 30. Two kinds of evidence: how much colour and histogram differ, and how
much the motion-compensated picture differs (`stages/shots/change.py`), which alone shows a jump
cut. All is compared with the pairs nearby and across several pictures, since a flash returns to
the old picture and fast motion changes every pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from stages.shots.change import FrameComparison
from stages.shots.frame_view import FrameView, histogram_distance, hsv_difference

NEARBY = 6  # pairs on either side
NEARBY_S = 0.5  # at most so long before and after: a photograph may be the last picture for seconds
REACH = 8  # pictures on either side that any feature reads

# Cheap enough for every pair that stands out
HISTOGRAM_FEATURES = (
    *("luma_chroma", "histogram", "histogram_before", "histogram_after", "histogram_nearby"),
    *("histogram_across_7", "histogram_across_3", "luma_before", "luma_after"),
    *("histogram_to_median", "histogram_to_largest", "histogram_across_share"),
    "pictures_per_frame",
)
COLOUR_FEATURES = (
    *("content", "hue", "saturation", "value", "luma_chroma"),
    *("before_1", "before_2", "before_largest", "before_second", "before_median"),
    *("after_1", "after_2", "after_largest", "after_second", "after_median", "nearby_median"),
    *("across_5", "later_3", "earlier_3", "returns", "was_there"),
    *("histogram", "histogram_before", "histogram_after", "histogram_nearby"),
    *("histogram_across_7", "histogram_across_3"),
    *("luma_before", "luma_after", "flat_before", "flat_after"),
    *("content_to_median", "content_to_largest", "returns_share", "across_share"),
    *("later_share", "earlier_share"),
    *("histogram_to_median", "histogram_to_largest", "histogram_across_share"),
    "pictures_per_frame",
)
MOTION_FEATURES = (
    *("residual", "area", "median_change", "residual_in_equal_light", "structure", "patch_step"),
    *("changed_share", "changed_rows", "changed_columns", "changed_low"),
    *("contrast_before", "contrast_after", "residual_in_equal_light_share"),
)
FEATURES = (*COLOUR_FEATURES, *MOTION_FEATURES)


def nearby(pictures: Sequence[FrameView], at: int) -> tuple[int, int]:
    """The pictures [start, stop) that are shown within NEARBY_S of the one that a pair ends at."""
    t_s = pictures[at].t_s
    start, stop = at - 1, at + 1
    while start > max(0, at - REACH) and t_s - pictures[start].t_s <= NEARBY_S:
        start -= 1
    while stop < min(len(pictures), at + REACH + 1) and pictures[stop].t_s - t_s <= NEARBY_S:
        stop += 1
    return start, stop


class CutFeatures:
    """Measures on a sequence of distinct pictures, with what was measured before kept."""

    def __init__(self) -> None:
        self._comparison = FrameComparison()
        self._contents: dict[tuple[int, int], tuple[float, float, float]] = {}

    def forget_before(self, number: int) -> None:
        """Drops what was kept of pairs that begin before a picture's number."""
        for pair in [pair for pair in self._contents if pair[0] < number]:
            del self._contents[pair]

    def histograms(self, pictures: Sequence[FrameView], at: int) -> dict[str, float]:
        """HISTOGRAM_FEATURES of the pair (at - 1, at) by name."""
        start, stop = nearby(pictures, at)
        before, after = pictures[at - 1], pictures[at]
        y, cb, cr = (cv2.norm(a, b, cv2.NORM_L1) for a, b in _channels(before, after))
        steps = [
            [histogram_distance(pictures[i - 1], pictures[i]) for i in numbers if start < i < stop]
            for numbers in (range(at - 4, at), range(at + 1, at + 5))
        ]
        sides = [max(side, default=0.0) for side in steps]
        across_7, across_3 = (
            histogram_distance(pictures[max(at + early, start)], pictures[min(at + late, stop - 1)])
            for early, late in ((-4, 3), (-2, 1))
        )
        near = pictures[max(0, at - NEARBY) : at + NEARBY + 1]
        span_s = near[-1].t_s - near[0].t_s
        histogram, median = histogram_distance(before, after), _median(steps[0] + steps[1])
        return {
            "luma_chroma": (y + 1.5 * (cb + cr)) / (before.blocks.size // 3),
            "histogram": histogram,
            "histogram_before": sides[0],
            "histogram_after": sides[1],
            "histogram_nearby": median,
            "histogram_across_7": across_7,
            "histogram_across_3": across_3,
            "luma_before": mean_luma(before),
            "luma_after": mean_luma(after),
            "histogram_to_median": histogram / (median + 0.1),
            "histogram_to_largest": histogram / (max(sides) + 0.1),
            "histogram_across_share": across_7 / (histogram + 0.1),
            # density in time
            "pictures_per_frame": (len(near) - 1) / (30 * span_s) if span_s else 1.0,
        }

    def colour(
        self, pictures: Sequence[FrameView], at: int, first: int, of: dict[str, float]
    ) -> list[float]:
        """COLOUR_FEATURES of the pair (at - 1, at).

        first: number of pictures[0] in the video.  of: `histograms` of the pair.
        """
        start, stop = nearby(pictures, at)

        def picture(offset: int) -> int:
            return min(max(at + offset, start), stop - 1)

        def content(i: int, j: int) -> float:
            return sum(self._content(pictures, i, j, first)) / 3

        hue, saturation, value = self._content(pictures, at - 1, at, first)
        own = (hue + saturation + value) / 3
        of = of | {"content": own, "hue": hue, "saturation": saturation, "value": value}
        left = [content(at - 1 - j, at - j) for j in range(1, NEARBY + 1) if at - 1 - j >= start]
        right = [content(at - 1 + j, at + j) for j in range(1, NEARBY + 1) if at + j < stop]
        for name, side in (("before", left), ("after", right)):
            nearest, ranked = [*side[:2], 0.0, 0.0], [*sorted(side, reverse=True), 0.0, 0.0]
            of |= {f"{name}_1": nearest[0], f"{name}_2": nearest[1]}
            of |= {f"{name}_largest": ranked[0], f"{name}_second": ranked[1]}
            of[f"{name}_median"] = _median(side)
        median, largest = _median(left + right), max([*left, *right], default=0.0)
        across, later = content(picture(-3), picture(2)), content(at - 1, picture(3))
        earlier = content(picture(-4), at)
        returns = min(content(at - 1, picture(j)) for j in (1, 2, 4, 8))
        was_there = min(content(picture(-1 - j), at) for j in (1, 2, 4, 8))
        of |= {
            "nearby_median": median,
            "across_5": across,
            "later_3": later,
            "earlier_3": earlier,
            "returns": returns,
            "was_there": was_there,
            "flat_before": pictures[at - 1].flat_share,
            "flat_after": pictures[at].flat_share,
            # What trees cannot compute from the values themselves
            "content_to_median": own / (median + 1),
            "content_to_largest": own / (largest + 1),
            "returns_share": min(returns, was_there) / (own + 1),
            "across_share": across / (own + 1),
            "later_share": later / (own + 1),
            "earlier_share": earlier / (own + 1),
        }
        return [of[name] for name in COLOUR_FEATURES]

    def motion(self, pictures: Sequence[FrameView], at: int) -> list[float]:
        """MOTION_FEATURES of the pair (at - 1, at)."""
        before, after = pictures[at - 1].small, pictures[at].small
        change = self._comparison.change(before, after)
        in_equal_light = self._comparison.residual_in_equal_light(before, after)
        changed = self._comparison.changed_blocks(before, after)
        extents = []
        for axis in (1, 0):
            lines = np.flatnonzero(changed.any(axis=axis))
            size = changed.shape[1 - axis]
            extents.append(float(lines[-1] - lines[0] + 1) / size if lines.size else 0.0)
        low = changed[int(0.65 * len(changed)) :].sum() / max(1, changed.sum())
        return [
            *change,
            in_equal_light,
            self._comparison.structure_correlation(before, after),
            self._comparison.patch_step(before, after),
            float(changed.mean()),
            *extents,
            float(low),
            float(before.contrast.mean()),
            float(after.contrast.mean()),
            in_equal_light / (change.residual + 0.02),
        ]

    def _content(
        self, pictures: Sequence[FrameView], i: int, j: int, first: int
    ) -> tuple[float, float, float]:
        key = first + i, first + j
        if key not in self._contents:
            self._contents[key] = hsv_difference(pictures[i], pictures[j])
        return self._contents[key]


def _channels(a: FrameView, b: FrameView) -> zip[tuple[np.ndarray, np.ndarray]]:
    """The blocks of both frames, channel by channel."""
    return zip(a.blocks.reshape(3, -1), b.blocks.reshape(3, -1), strict=True)


def mean_luma(view: FrameView) -> float:
    """Mean luma, grey levels."""
    return float(view.blocks[: len(view.blocks) // 3].mean())


def _median(values: list[float]) -> float:
    if not values:
        return 0.0
    ranked, middle = sorted(values), len(values) // 2  # NumPy takes ten times as long
    return ranked[middle] if len(values) % 2 else (ranked[middle - 1] + ranked[middle]) / 2
