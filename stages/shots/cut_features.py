"""What is measured around two consecutive pictures that may be the two sides of a hard cut.

Pictures are distinct frames: repeated frames are skipped, so a file with 10 pictures a second is
measured like one with 30. Three kinds of evidence: how much colour and histogram differ; how much
the motion-compensated picture differs (`stages/shots/change.py`), which alone shows a jump cut; and
how much the blocks that changed differ nearby, which shows a jump cut of a small object. All is
compared with the pairs nearby and across several pictures, since a flash returns to the old picture
and fast motion changes every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from stages.shots.change import FrameComparison
from stages.shots.frame_view import FrameView, hsv_difference

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
BLOCK_FEATURES = (
    *("block_share", "block_share_before", "block_share_after", "block_share_median"),
    *("block_share_to_largest", "block_step", "block_step_before", "block_step_after"),
    *("block_step_median", "block_step_to_largest", "block_step_across"),
    *("block_returns", "block_was_there", "block_undone"),
)
FEATURES = (*COLOUR_FEATURES, *MOTION_FEATURES, *BLOCK_FEATURES)
CHANGED_LEVELS = 12.0  # grey levels: a block whose mean changes by more has changed


def nearby(pictures: Sequence[FrameView], at: int) -> tuple[int, int]:
    """The pictures [start, stop) that are shown within NEARBY_S of the one that a pair ends at."""
    t_s = pictures[at].t_s
    start, stop = at - 1, at + 1
    first, end = max(0, at - REACH), min(len(pictures), at + REACH + 1)
    while start > first and t_s - pictures[start].t_s <= NEARBY_S:
        start -= 1
    while stop < end and pictures[stop].t_s - t_s <= NEARBY_S:
        stop += 1
    return start, stop


def histogram_features(pictures: Sequence[FrameView], pairs: list[int]) -> np.ndarray:
    """(pairs, HISTOGRAM_FEATURES) float64, of the pairs (at - 1, at)."""
    at = np.array(pairs)[:, None]
    start, stop = np.array([nearby(pictures, pair) for pair in pairs]).T[..., None]
    # (pairs, 10): the pictures from at - 5 to at + 4, as far as they are nearby
    read = np.clip(at + np.arange(-5, 5), start, stop - 1)
    histograms = np.concatenate([pictures[i].histogram for i in read.ravel().tolist()])
    histograms = histograms.reshape(*read.shape, -1)
    steps = _distance(histograms[:, :-1], histograms[:, 1:])  # (pairs, 9), the fifth is the pair's
    histogram, steps[:, 4] = steps[:, 4].copy(), 0
    before, after = steps[:, :4].max(1), steps[:, 5:].max(1)
    is_nearby = (read[:, 1:] > read[:, :-1]) & (np.arange(9) != 4)
    median = _row_medians(steps, is_nearby)
    across_7, across_3 = (
        _distance(histograms[:, a], histograms[:, b]) for a, b in ((1, 8), (3, 6))
    )
    blocks = np.stack([(pictures[i - 1].blocks, pictures[i].blocks) for i in pairs])
    blocks = blocks.reshape(len(pairs), 2, 3, -1)  # picture, channel
    y, cb, cr = np.abs(blocks[:, 1] - blocks[:, 0]).sum(2, np.float64).T
    luma_before, luma_after = blocks[:, :, 0].mean(2).T
    features = {
        "luma_chroma": (y + 1.5 * (cb + cr)) / blocks.shape[-1],
        "histogram": histogram,
        "histogram_before": before,
        "histogram_after": after,
        "histogram_nearby": median,
        "histogram_across_7": across_7,
        "histogram_across_3": across_3,
        "luma_before": luma_before,
        "luma_after": luma_after,
        "histogram_to_median": histogram / (median + 0.1),
        "histogram_to_largest": histogram / (np.maximum(before, after) + 0.1),
        "histogram_across_share": across_7 / (histogram + 0.1),
        "pictures_per_frame": [_pictures_per_frame(pictures, pair) for pair in pairs],
    }
    return np.stack([features[name] for name in HISTOGRAM_FEATURES], axis=1)


def _distance(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Earth mover's distance between cumulative histograms (…, bins), in bins, summed over the
    channels.  (…,) float64"""
    return np.abs(one - two).sum(-1, np.float64)


def _row_medians(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(rows,): of the values (rows, N) that `counts` is true of; 0 where there is none."""
    ranked = np.sort(np.where(counts, values, np.inf))
    count, row = counts.sum(1), np.arange(len(values))
    middle = (ranked[row, np.maximum(count - 1, 0) // 2] + ranked[row, count // 2]) / 2
    return np.where(count > 0, middle, 0.0)


def _pictures_per_frame(pictures: Sequence[FrameView], at: int) -> float:
    """Density of the pictures in time, where 30 frames a second are 1."""
    near = pictures[max(0, at - NEARBY) : at + NEARBY + 1]
    span_s = near[-1].t_s - near[0].t_s
    return (len(near) - 1) / (30 * span_s) if span_s else 1.0


class CutFeatures:
    """Measures on a sequence of distinct pictures, with what was measured before kept."""

    def __init__(self) -> None:
        self._comparison = FrameComparison()
        self._contents: dict[tuple[int, int], tuple[float, float, float]] = {}

    def forget_before(self, number: int) -> None:
        """Drops what was kept of pairs that begin before a picture's number."""
        for pair in [pair for pair in self._contents if pair[0] < number]:
            del self._contents[pair]

    def colour(
        self, pictures: Sequence[FrameView], at: int, first: int, histograms: np.ndarray
    ) -> list[float]:
        """COLOUR_FEATURES of the pair (at - 1, at).

        first: number of pictures[0] in the video.  histograms: its HISTOGRAM_FEATURES.
        """
        start, stop = nearby(pictures, at)

        def picture(offset: int) -> int:
            return min(max(at + offset, start), stop - 1)

        def content(i: int, j: int) -> float:
            return sum(self._content(pictures, i, j, first)) / 3

        hue, saturation, value = self._content(pictures, at - 1, at, first)
        own = (hue + saturation + value) / 3
        of = dict(zip(HISTOGRAM_FEATURES, histograms.tolist(), strict=True))
        of |= {"content": own, "hue": hue, "saturation": saturation, "value": value}
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

    def blocks(self, pictures: Sequence[FrameView], at: int) -> list[float]:
        """BLOCK_FEATURES of the pair (at - 1, at): the share of the luma's blocks that changed, and
        how much these blocks change in the pair, nearby and across several pictures.

        Where little has changed, the two percent of the blocks that changed most count.
        """
        start, stop = nearby(pictures, at)
        means = [picture.small.means for picture in pictures[start:stop]]
        steps = [cv2.absdiff(a, b) for a, b in pairwise(means)]
        new = at - start  # of `means`; the pair is steps[new - 1]
        own = steps[new - 1]
        sides = steps[max(0, new - 1 - NEARBY) : new - 1], steps[new : new + NEARBY]
        is_changed = own > CHANGED_LEVELS
        share = float(is_changed.mean())
        shares = [[float((s > CHANGED_LEVELS).mean()) for s in side] for side in sides]
        if not share:
            is_changed = own >= np.sort(own, axis=None)[-max(1, own.size // 50)]
        count = np.count_nonzero(is_changed)

        def mean(difference: np.ndarray) -> float:
            return float(difference[is_changed].sum() / count)

        def between(early: int, late: int) -> float:
            last = len(means) - 1
            return mean(cv2.absdiff(means[max(0, new + early)], means[min(last, new + late)]))

        step, near = mean(own), [[mean(s) for s in side] for side in sides]
        returns = min(between(-1, j) for j in (1, 2, 4, 8))
        was_there = min(between(-1 - j, 0) for j in (1, 2, 4, 8))
        return [
            share,
            *(max(side, default=0.0) for side in shares),
            _median(shares[0] + shares[1]),
            share / (max([*shares[0], *shares[1]], default=0.0) + 0.01),
            step,
            *(max(side, default=0.0) for side in near),
            _median(near[0] + near[1]),
            step / (max([*near[0], *near[1]], default=0.0) + 2),
            between(-3, 2) / (step + 1),
            returns / (step + 1),
            was_there / (step + 1),
            min(returns, was_there) / (step + 1),
        ]

    def _content(
        self, pictures: Sequence[FrameView], i: int, j: int, first: int
    ) -> tuple[float, float, float]:
        key = first + i, first + j
        if key not in self._contents:
            self._contents[key] = hsv_difference(pictures[i], pictures[j])
        return self._contents[key]


def _median(values: list[float]) -> float:
    if not values:
        return 0.0
    ranked, middle = sorted(values), len(values) // 2  # NumPy takes ten times as long
    return ranked[middle] if len(values) % 2 else (ranked[middle - 1] + ranked[middle]) / 2
