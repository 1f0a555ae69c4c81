"""A score's histogram as geometry: the positions of its bars, ticks and thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# All in px. The upper half shows the kept clips, the lower half the rejected ones; the labels of
# the axis are between the halves.
WIDTH, HALF_HEIGHT, TOP = 360.0, 54.0, 20.0
UPPER_AXIS = TOP + HALF_HEIGHT
LOWER_AXIS = UPPER_AXIS + 15
MARGIN, OUTLIER_WIDTH = 12.0, 10.0  # at either end; of a bar for outliers
MIN_BAR_HEIGHT = 1.5  # one clip in a million is still visible
MIN_PART_WIDTH = 3.0  # of a bar that a threshold cuts off

Thresholds = tuple[float | None, float | None]  # min, max


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Label:
    x: float
    text: str
    anchor: str = "middle"  # SVG's text-anchor


@dataclass(frozen=True)
class Histogram:
    kept: list[Box]
    rejected: list[Box]
    ticks: list[Label]
    thresholds: list[Label]
    outside: list[Box]  # the ranges that the policy rejects
    tails: list[Label]  # the ends of the outliers' ranges


def format_value(value: float) -> str:
    """A measured value as text: 1280, 24.5, 0.0123, ≈0."""
    if 0 < abs(value) < 1e-4:
        return "≈0"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def layout_histogram(
    edges: list[float], kept: list[int], rejected: list[int], thresholds: Thresholds
) -> Histogram:
    """edges: (B + 1,) of `statistics.bin_edges`, B >= 1. kept, rejected: (B,) clips per bin.

    Heights are shares of the kept and of the rejected clips. Kept clips are drawn on the allowed
    side of a threshold, also those of a bin that contains it.
    """
    edge = np.asarray(edges)
    step = float(np.median(np.diff(edge)))
    # A bin whose width differs from the others' is that of the outliers.
    uneven = np.abs(np.diff(edge) - step) > 1e-3 * step if len(edge) > 3 else np.zeros(1, bool)
    low_tail, high_tail = bool(uneven[0]), bool(uneven[-1])
    low, high = edge[1 if low_tail else 0], edge[-2 if high_tail else -1]
    span = high - low
    # A threshold close to the values is drawn to scale; one far away is labelled at the border.
    near = [x for x in thresholds if x is not None and low - 2 * span <= x <= high + 2 * span]
    low, high = min([low, *near]), max([high, *near])
    left, right = MARGIN + OUTLIER_WIDTH, WIDTH - MARGIN - OUTLIER_WIDTH

    def x(value: float) -> float:
        return left + (right - left) * (min(max(value, low), high) - low) / (high - low)

    xs = [x(v) for v in edges]
    xs[0] -= OUTLIER_WIDTH if low_tail else 0
    xs[-1] += OUTLIER_WIDTH if high_tail else 0
    kept = _off_the_edges(kept, edge, thresholds)
    largest = max([*_shares(kept), *_shares(rejected)], default=0) or 1.0
    bars = [(a + 0.5, max(b - a - 1, 1.0)) for a, b in pairwise(xs)]
    kept_bars = [
        _allowed_part(bar, ends, thresholds, x)
        for bar, ends in zip(bars, pairwise(edges), strict=True)
    ]

    def boxes(counts: list[int], upwards: bool) -> list[Box]:
        found = []
        of_status = kept_bars if upwards else bars
        for (left, width), share in zip(of_status, _shares(counts), strict=True):
            height = max(HALF_HEIGHT * share / largest, MIN_BAR_HEIGHT)
            if share:
                found.append(
                    Box(left, UPPER_AXIS - height if upwards else LOWER_AXIS, width, height)
                )
        return found

    return Histogram(
        kept=boxes(kept, upwards=True),
        rejected=boxes(rejected, upwards=False),
        ticks=[Label(x(v), f"{v:g}") for v in _round_values(low, high)],
        thresholds=_threshold_labels(thresholds, low, high, x),
        outside=_rejected_ranges(thresholds, low, high, x),
        tails=[Label(1, f"from {format_value(edge[0])}", "start")] * low_tail
        + [Label(WIDTH - 1, f"to {format_value(edge[-1])}", "end")] * high_tail,
    )


def _shares(counts: list[int]) -> list[float]:
    total = sum(counts)
    return [n / total if total else 0.0 for n in counts]


def _round_values(low: float, high: float) -> list[float]:
    """Three to six round numbers in the range."""
    power = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(f * power for f in (1, 2, 5, 10) if (high - low) / (f * power) <= 5)
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _off_the_edges(counts: list[int], edges: np.ndarray, thresholds: Thresholds) -> list[int]:
    """The counts of kept clips. Those of a value that equals a threshold, which is also an edge,
    move to the neighbouring bin on the allowed side: a bin includes one of its edges only."""
    counts = list(counts)
    least, most = thresholds
    for i in range(len(counts) - 1):
        if most is not None and math.isclose(edges[i + 1], most, rel_tol=1e-6):
            counts[i], counts[i + 1] = counts[i] + counts[i + 1], 0
        if least is not None and math.isclose(edges[i + 1], least, rel_tol=1e-6):
            counts[i], counts[i + 1] = 0, counts[i] + counts[i + 1]
    return counts


def _allowed_part(
    bar: tuple[float, float],
    ends: tuple[float, float],
    thresholds: Thresholds,
    x: Callable[[float], float],
) -> tuple[float, float]:
    """The part of a bar, (left, width), on the allowed side of a threshold in its bin."""
    (left, width), (least, most) = bar, thresholds
    right = left + width
    if least is not None and ends[0] < least < ends[1]:
        left = x(least)
        right = max(right, left + MIN_PART_WIDTH)
    if most is not None and ends[0] <= most < ends[1]:
        right = min(right, x(most))
        left = min(left, right - MIN_PART_WIDTH)
    return left, right - left


def _threshold_labels(
    thresholds: Thresholds, low: float, high: float, x: Callable[[float], float]
) -> list[Label]:
    labels = []
    for name, value in zip(("min", "max"), thresholds, strict=True):
        if value is None:
            continue
        text = f"{name} {value:g}"
        if value < low:
            labels.append(Label(1, f"← {text}", "start"))
        elif value > high:
            labels.append(Label(WIDTH - 1, f"{text} →", "end"))
        else:
            labels.append(Label(x(value), text, "start" if x(value) < WIDTH / 2 else "end"))
    if len(labels) == 2 and abs(labels[0].x - labels[1].x) < 120:
        # Close to each other, labels would overlap: each extends outwards, except at a border.
        least, most = labels
        labels = [
            least if least.x == 1 else Label(least.x, least.text, "end"),
            most if most.x == WIDTH - 1 else Label(most.x, most.text, "start"),
        ]
    return labels


def _rejected_ranges(
    thresholds: Thresholds, low: float, high: float, x: Callable[[float], float]
) -> list[Box]:
    """Nothing that is drawn to scale is beyond a threshold at the border."""
    height = LOWER_AXIS + HALF_HEIGHT - TOP
    least, most = thresholds
    boxes = []
    if least is not None and least >= low:
        width = x(least) if least <= high else WIDTH
        boxes.append(Box(0, TOP, width, height))
    if most is not None and most <= high:
        start = x(most) if most >= low else 0
        boxes.append(Box(start, TOP, WIDTH - start, height))
    return boxes
