"""What is measured around two consecutive pictures that may be the two sides of a hard cut.

Pictures are distinct frames: repeated frames are skipped, so a file with 10 pictures a second is
measured like one with 30. Two kinds of evidence: how much colour and histogram differ, and how
much the motion-compensated picture differs (`stages/shots/change.py`), which alone shows a jump
cut. All is compared with the pairs nearby and across several pictures, since a flash returns to
the old picture and fast motion changes every pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.shots.change import Change, FrameComparison
from stages.shots.frame_view import FrameView, histogram_distance, hsv_difference

NEARBY = 6  # pairs on either side
NEARBY_S = 0.5  # at most so long before and after: a photograph may be the last picture for seconds
REACH = 8  # pictures on either side that any feature reads

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
    *(
        "residual_before_1",
        "residual_before_largest",
        "residual_before_median",
        "median_before_largest",
    ),
    *(
        "residual_after_1",
        "residual_after_largest",
        "residual_after_median",
        "median_after_largest",
    ),
    *("residual_across_3", "median_across_3", "residual_later", "median_later"),
    *("residual_earlier", "median_earlier", "contrast_before", "contrast_after"),
    *("residual_to_largest", "residual_across_share", "median_to_largest", "median_across_share"),
    "residual_in_equal_light_share",
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
        self._changes: dict[tuple[int, int], Change] = {}

    def forget_before(self, number: int) -> None:
        """Drops what was kept of pairs that begin before a picture's number."""
        for kept in (self._contents, self._changes):
            for pair in [pair for pair in kept if pair[0] < number]:
                del kept[pair]

    def colour(self, pictures: Sequence[FrameView], at: int, first: int) -> list[float]:
        """COLOUR_FEATURES of the pair (at - 1, at). first: number of pictures[0] in the video."""

        start, stop = nearby(pictures, at)

        def picture(offset: int) -> int:
            return min(max(at + offset, start), stop - 1)

        def content(i: int, j: int) -> float:
            return sum(self._content(pictures, i, j, first)) / 3

        hue, saturation, value = self._content(pictures, at - 1, at, first)
        before, after = pictures[at - 1], pictures[at]
        difference = np.abs(before.blocks - after.blocks).reshape(3, -1).mean(axis=1)
        found = [(hue + saturation + value) / 3, hue, saturation, value]
        found.append(float(difference[0] + 1.5 * (difference[1] + difference[2])))
        left = [content(at - 1 - j, at - j) for j in range(1, NEARBY + 1) if at - 1 - j >= start]
        right = [content(at - 1 + j, at + j) for j in range(1, NEARBY + 1) if at + j < stop]
        for side in (left, right):
            padded = [*side[:2], 0.0, 0.0][:2]
            ranked = [*sorted(side, reverse=True), 0.0, 0.0]
            found += [*padded, ranked[0], ranked[1], _median(side)]
        found.append(_median(left + right))
        found.append(content(picture(-3), picture(2)))
        found += [content(at - 1, picture(3)), content(picture(-4), at)]
        found.append(min(content(at - 1, picture(j)) for j in (1, 2, 4, 8)))
        found.append(min(content(picture(-1 - j), at) for j in (1, 2, 4, 8)))
        found.append(histogram_distance(before, after))
        steps = [
            [histogram_distance(pictures[i - 1], pictures[i]) for i in numbers if start < i < stop]
            for numbers in (range(at - 4, at), range(at + 1, at + 5))
        ]
        found += [max(side, default=0.0) for side in steps]
        found.append(_median(steps[0] + steps[1]))
        for early, late in ((-4, 3), (-2, 1)):
            found.append(histogram_distance(pictures[picture(early)], pictures[picture(late)]))
        found += [mean_luma(before), mean_luma(after), before.flat_share, after.flat_share]
        return found + _colour_ratios(dict(zip(COLOUR_FEATURES, found, strict=False)))

    def motion(self, pictures: Sequence[FrameView], at: int, first: int) -> list[float]:
        """MOTION_FEATURES of the pair (at - 1, at)."""

        start, stop = nearby(pictures, at)

        def picture(offset: int) -> int:
            return min(max(at + offset, start), stop - 1)

        def change(i: int, j: int) -> Change:
            return self._change(pictures, i, j, first)

        before, after = pictures[at - 1].small, pictures[at].small
        found = [*change(at - 1, at), self._comparison.residual_in_equal_light(before, after)]
        found += [
            self._comparison.structure_correlation(before, after),
            self._comparison.patch_step(before, after),
        ]
        changed = self._comparison.changed_blocks(before, after)
        for axis in (1, 0):
            lines = np.flatnonzero(changed.any(axis=axis))
            size = changed.shape[1 - axis]
            found.append(float(lines[-1] - lines[0] + 1) / size if lines.size else 0.0)
        found.insert(6, float(changed.mean()))
        low = changed[int(0.65 * len(changed)) :].sum() / max(1, changed.sum())
        found.append(float(low))
        left = [change(at - 1 - j, at - j) for j in (1, 2, 3) if at - 1 - j >= start]
        right = [change(at - 1 + j, at + j) for j in (1, 2, 3) if at + j < stop]
        for side in (left, right):
            residuals = [c.residual for c in side] or [0.0]
            found += [residuals[0], max(residuals), sorted(residuals)[len(residuals) // 2]]
            found.append(max((c.median for c in side), default=0.0))
        for i, j in ((picture(-2), picture(1)), (at - 1, picture(3)), (picture(-4), at)):
            pair = change(i, j)
            found += [pair.residual, pair.median]
        found += [float(before.contrast.mean()), float(after.contrast.mean())]
        return found + _motion_ratios(dict(zip(MOTION_FEATURES, found, strict=False)))

    def _content(
        self, pictures: Sequence[FrameView], i: int, j: int, first: int
    ) -> tuple[float, float, float]:
        key = first + i, first + j
        if key not in self._contents:
            self._contents[key] = hsv_difference(pictures[i], pictures[j])
        return self._contents[key]

    def _change(self, pictures: Sequence[FrameView], i: int, j: int, first: int) -> Change:
        key = first + i, first + j
        if key not in self._changes:
            self._changes[key] = self._comparison.change(pictures[i].small, pictures[j].small)
        return self._changes[key]


def _colour_ratios(of: dict[str, float]) -> list[float]:
    """What trees cannot compute from the values themselves."""
    content, histogram = of["content"], of["histogram"]
    largest = max(of["before_largest"], of["after_largest"])
    return [
        content / (of["nearby_median"] + 1),
        content / (largest + 1),
        min(of["returns"], of["was_there"]) / (content + 1),
        *(of[name] / (content + 1) for name in ("across_5", "later_3", "earlier_3")),
        histogram / (of["histogram_nearby"] + 0.1),
        histogram / (max(of["histogram_before"], of["histogram_after"]) + 0.1),
        of["histogram_across_7"] / (histogram + 0.1),
    ]


def _motion_ratios(of: dict[str, float]) -> list[float]:
    residual, change = of["residual"], of["median_change"]
    across = min(of["residual_across_3"], of["residual_later"], of["residual_earlier"])
    return [
        residual / (max(of["residual_before_largest"], of["residual_after_largest"]) + 0.02),
        across / (residual + 0.02),
        change / (max(of["median_before_largest"], of["median_after_largest"]) + 1),
        min(of["median_later"], of["median_earlier"]) / (change + 1),
        of["residual_in_equal_light"] / (residual + 0.02),
    ]


def mean_luma(view: FrameView) -> float:
    """Mean luma, grey levels."""
    return float(view.blocks[: len(view.blocks) // 3].mean())


def _median(values: list[float]) -> float:
    if not values:
        return 0.0
    ranked, middle = sorted(values), len(values) // 2  # NumPy takes ten times as long
    return ranked[middle] if len(values) % 2 else (ranked[middle - 1] + ranked[middle]) / 2
