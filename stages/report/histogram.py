"""A score's histogram as geometry: where bars, ticks and thresholds lie in its picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

WIDTH, SIDE, TOP = 360.0, 54.0, 20.0  # px of the picture; SIDE: kept above the axis, rejected below
AXIS = TOP + SIDE
MARGIN, OUTLIER = 12.0, 10.0  # px left and right; width of the bar that holds outliers
BELOW = AXIS + 15  # where the lower half starts: the axis' labels lie between the halves

Limits = tuple[float | None, float | None]  # min, max


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Mark:
    x: float
    label: str
    anchor: str = "middle"  # SVG's text-anchor


@dataclass(frozen=True)
class Histogram:
    kept: list[Box]
    rejected: list[Box]
    ticks: list[Mark]
    limits: list[Mark]
    outside: list[Box]  # what the policy refuses
    tails: list[Mark]  # how far the outliers' bars reach


def number(value: float) -> str:
    """A measured value for a person: 1280, 24.5, 0.0123, ≈0."""
    if 0 < abs(value) < 1e-4:
        return "≈0"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def draw(edges: list[float], kept: list[int], rejected: list[int], limits: Limits) -> Histogram:
    """edges: (B + 1,) of stages/report/statistics.py, B >= 1.

    Heights are shares of the side's own clips.
    """
    at = np.asarray(edges)
    step = float(np.median(np.diff(at)))
    # a bin of another width than the rest holds the outliers
    uneven = np.abs(np.diff(at) - step) > 1e-3 * step if len(at) > 3 else np.zeros(1, bool)
    low_tail, high_tail = bool(uneven[0]), bool(uneven[-1])
    low, high = at[1 if low_tail else 0], at[-2 if high_tail else -1]
    span = high - low
    # a threshold near the values belongs into the picture; one far away is named at the edge
    near = [x for x in limits if x is not None and low - 2 * span <= x <= high + 2 * span]
    low, high = min([low, *near]), max([high, *near])
    left, right = MARGIN + OUTLIER, WIDTH - MARGIN - OUTLIER

    def x(value: float) -> float:
        return left + (right - left) * (min(max(value, low), high) - low) / (high - low)

    xs = [x(v) for v in edges]
    xs[0] -= OUTLIER if low_tail else 0
    xs[-1] += OUTLIER if high_tail else 0
    top = max([*_shares(kept), *_shares(rejected)], default=0) or 1.0
    up = [SIDE * s / top for s in _shares(kept)]
    down = [SIDE * s / top for s in _shares(rejected)]
    bars = [(a + 0.5, max(b - a - 1, 1.0)) for a, b in pairwise(xs)]
    return Histogram(
        kept=[
            Box(a, AXIS - _seen(h), w, _seen(h)) for (a, w), h in zip(bars, up, strict=True) if h
        ],
        rejected=[Box(a, BELOW, w, _seen(h)) for (a, w), h in zip(bars, down, strict=True) if h],
        ticks=[Mark(x(v), f"{v:g}") for v in _ticks(low, high)],
        limits=_limits(limits, low, high, x),
        outside=_outside(limits, x),
        tails=[Mark(1, f"from {number(at[0])}", "start")] * bool(low_tail)
        + [Mark(WIDTH - 1, f"to {number(at[-1])}", "end")] * bool(high_tail),
    )


def _shares(counts: list[int]) -> list[float]:
    total = sum(counts)
    return [n / total if total else 0.0 for n in counts]


def _seen(height: float) -> float:
    """One clip among a million still gets a line."""
    return max(height, 1.5)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers."""
    power = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(f * power for f in (1, 2, 5, 10) if (high - low) / (f * power) <= 5)
    return [
        i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _limits(limits: Limits, low: float, high: float, x: Callable[[float], float]) -> list[Mark]:
    marks = []
    for name, value in zip(("min", "max"), limits, strict=True):
        if value is None:
            continue
        label = f"{name} {value:g}"
        label = f"← {label}" if value < low else f"{label} →" if value > high else label
        anchor = "start" if x(value) < WIDTH / 2 else "end"
        marks.append(Mark(x(value), label, anchor))
    if len(marks) == 2 and abs(marks[0].x - marks[1].x) < 120:
        # both labels beside each other would overlap: each to its own outer side
        marks = [Mark(marks[0].x, marks[0].label, "end"), Mark(marks[1].x, marks[1].label, "start")]
    return marks


def _outside(limits: Limits, x: Callable[[float], float]) -> list[Box]:
    height = BELOW + SIDE - TOP
    least, most = limits
    boxes = []
    if least is not None:
        boxes.append(Box(0, TOP, x(least), height))
    if most is not None:
        boxes.append(Box(x(most), TOP, WIDTH - x(most), height))
    return boxes
