"""What is measured over a window of time that may hold one gradual transition.

Nine frames stand for a window of any length. While one picture dissolves into another, all blocks
go from their old colour to their new one at one pace; a wipe, an iris, a push or a slide changes
each block at once, at a time that depends on its place; a fade lets the contrast go; a whip lets
the detail go. Motion within a take does none of these over a whole window, and looks before and
after the window as it does in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from stages.shots.frame_view import BINS, GRID, FrameView

SAMPLES = 9
LENGTHS = (5, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # frames at up to 33 frames a second
MIN_DIFFERENCE = 4.0  # grey levels, mean over the blocks of both ends: below it nothing changed
MIN_RATIO = 1.2  # of a window's change to that of half its length before or after it
CHANGED = 8.0  # grey levels: a block that changed
PACE = 0.2  # of the way: tolerance of a block's progress

FEATURES = (
    *(
        "length_s",
        "changed",
        "linear",
        "in_pace",
        "in_pace_loosely",
        "monotonic",
        "steps",
        "travel",
    ),
    *("step_time_x", "step_time_y", "step_time_radius", "step_time_spread"),
    *("pace_largest", "pace_smallest", "off_line", "off_path", "off_path_relative"),
    *("spread_first", "spread_last", "spread_dip", "spread_smallest"),
    *("detail_first", "detail_last", "detail_dip"),
    *("luma_first", "luma_last", "luma_smallest", "luma_largest"),
    *("difference", "difference_largest", "difference_mean", "difference_smallest"),
    *("histogram", "histogram_largest", "histogram_mean"),
    *("difference_before", "difference_after", "histogram_before", "histogram_after"),
    *("flat_first", "flat_last", "flat_largest"),
    *("difference_to_outside", "difference_to_calmer_side", "histogram_to_outside"),
    *("difference_to_steps", "largest_to_mean_step"),
)

_y, _x = np.mgrid[0 : GRID[1], 0 : GRID[0]].astype(np.float32)
_PLACES = np.stack(
    [
        np.tile(place.ravel(), 3)
        for place in (_x, _y, np.hypot(_x - GRID[0] / 2 + 0.5, (_y - GRID[1] / 2 + 0.5) * 16 / 9))
    ]
)  # (3, 3 * blocks): column, row and distance to the centre, for each channel


def may_hold_transition(first: FrameView, last: FrameView) -> bool:
    """Whether the two ends of a window differ enough for it to be measured."""
    size = first.blocks.size // 3
    apart = cv2.norm(first.blocks[:size], last.blocks[:size], cv2.NORM_L1)
    return apart >= MIN_DIFFERENCE * size


def stands_out(window: Sequence[FrameView]) -> bool:
    """Whether a window changes more than the time before it, or the time after it, does."""

    def difference(a: FrameView, b: FrameView) -> float:
        return cv2.norm(a.blocks, b.blocks, cv2.NORM_L1) / a.blocks.size

    outside = min(difference(*window[:2]), difference(*window[-2:]))
    return difference(window[1], window[-2]) >= MIN_RATIO * (outside + 0.5)


def window_features(windows: Sequence[Sequence[FrameView]]) -> np.ndarray:
    """(N, len(FEATURES)) float32.

    windows: for each, the frame before it by half its length, its SAMPLES frames, and the frame
    after it by half its length.
    """
    frames = [window[1:-1] for window in windows]
    blocks = np.array([[f.blocks for f in window] for window in frames])  # (N, 9, B)
    histograms = np.array([[f.histogram for f in window] for window in frames])
    detail = np.array([[f.detail for f in window] for window in frames], np.float32)
    lengths_s = np.array([[window[-1].t_s - window[0].t_s] for window in frames], np.float32)
    table = np.concatenate(
        [
            lengths_s,
            *_progress(blocks),
            *_luma_and_detail(blocks[:, :, : blocks.shape[2] // 3], detail),
            *_differences(blocks, histograms, windows),
        ],
        axis=1,
    )
    return np.concatenate([table, _ratios(table)], axis=1).astype(np.float32)


def _progress(blocks: np.ndarray) -> list[np.ndarray]:
    """From `changed` to `off_path_relative`: how the blocks go from the first frame to the last."""
    first, last = blocks[:, 0], blocks[:, -1]
    step = last - first
    changed = np.abs(step) > CHANGED
    count = np.maximum(changed.sum(axis=1), 1)[:, None]

    def share(condition: np.ndarray) -> np.ndarray:
        return (condition & changed).sum(axis=1)[:, None] / count

    divisor = np.where(changed, step, np.inf)
    path = (blocks - first[:, None]) / divisor[:, None]  # 0 at the first frame, 1 at the last
    power = (step**2).sum(axis=1)[:, None] + 1e-6
    progress = ((blocks - first[:, None]) * step[:, None]).sum(axis=2) / power  # (N, 9)
    line = np.linspace(0, 1, SAMPLES, dtype=np.float32)
    moves = np.diff(path, axis=1)  # (N, 8, B)
    off_pace = np.abs(path - progress[:, :, None])
    pace = np.diff(progress, axis=1)
    off_path = np.abs(blocks - first[:, None] - progress[:, :, None] * step[:, None]).mean(axis=2)
    return [
        changed.mean(axis=1)[:, None],
        share((np.abs(path - line[:, None]) < PACE).all(axis=1)),
        share((off_pace < PACE).all(axis=1)),
        share((off_pace[:, 2:7:2] < 1.5 * PACE).all(axis=1)),
        share((moves > -0.1).all(axis=1)),
        share(moves.max(axis=1) > 0.7),
        (np.minimum(np.abs(moves).sum(axis=1), 9) * changed).sum(axis=1)[:, None] / count,
        _step_times(moves.argmax(axis=1).astype(np.float32), changed, count),
        _largest(pace),
        pace.min(axis=1)[:, None],
        _largest(np.abs(progress - line)),
        _largest(off_path),
        _largest(off_path) / (np.abs(step).mean(axis=1)[:, None] + 1),
    ]


def _luma_and_detail(lumas: np.ndarray, detail: np.ndarray) -> list[np.ndarray]:
    """From `spread_first` to `luma_largest`. lumas: (N, 9, blocks); detail: (N, 9)."""
    spread, luma = lumas.std(axis=2), lumas.mean(axis=2)
    found = []
    for values, margin in ((spread, 1.0), (detail, 0.25)):
        ends = np.minimum(values[:, 0], values[:, -1]) + margin
        found += [values[:, :1], values[:, -1:], (values[:, 2:7].min(axis=1) / ends)[:, None]]
        if values is spread:
            found.append(values[:, 1:-1].min(axis=1)[:, None])
    inner = luma[:, 1:-1]
    return [*found, luma[:, :1], luma[:, -1:], inner.min(axis=1)[:, None], _largest(inner)]


def _differences(
    blocks: np.ndarray, histograms: np.ndarray, windows: Sequence[Sequence[FrameView]]
) -> list[np.ndarray]:
    """From `difference` to `flat_largest`: of neighbours, of both ends, and of what is outside."""
    apart = np.abs(np.diff(blocks, axis=1)).mean(axis=2)
    size = np.abs(blocks[:, -1] - blocks[:, 0]).mean(axis=1)[:, None]
    found = [size, _largest(apart), apart.mean(axis=1)[:, None], apart.min(axis=1)[:, None]]
    shifts = np.abs(np.diff(histograms, axis=1)).sum(axis=2)
    whole = np.abs(histograms[:, -1] - histograms[:, 0]).sum(axis=1)[:, None]
    found += [whole, _largest(shifts), shifts.mean(axis=1)[:, None]]
    outer = [(w[0], w[1]) for w in windows], [(w[-2], w[-1]) for w in windows]
    for attribute, combine in (("blocks", np.mean), ("histogram", np.sum)):
        for pairs in outer:
            differences = [
                combine(np.abs(getattr(a, attribute) - getattr(b, attribute))) for a, b in pairs
            ]
            found.append(np.array(differences)[:, None])
    flat = np.diff(histograms[:, :, :BINS], axis=2, prepend=0).max(axis=2)
    return [*found, flat[:, :1], flat[:, -1:], _largest(flat)]


def _ratios(table: np.ndarray) -> np.ndarray:
    """(N, 5): what trees cannot compute from the values themselves."""
    of = dict(zip(FEATURES, table.T, strict=False))
    sides = of["difference_before"], of["difference_after"]
    histograms = np.maximum(of["histogram_before"], of["histogram_after"])
    ratios = [
        of["difference"] / (np.maximum(*sides) + 1),
        of["difference"] / (np.minimum(*sides) + 1),
        of["histogram"] / (histograms + 0.2),
        of["difference"] / (8 * of["difference_mean"] + 1),
        of["difference_largest"] / (of["difference_mean"] + 0.5),
    ]
    return np.stack(ratios, axis=1)


def _step_times(times: np.ndarray, changed: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(N, 4): how far the time at which a block changes follows its column, its row and its
    distance to the centre (squared correlations), and the spread of these times.
    """
    mean = (times * changed).sum(axis=1)[:, None] / count
    off = (times - mean) * changed
    variance = (off**2).sum(axis=1)[:, None] / count
    found = []
    for place in _PLACES:
        centre = (place * changed).sum(axis=1)[:, None] / count
        side = (place - centre) * changed
        square = (side**2).sum(axis=1)[:, None] / count
        covariance = (off * side).sum(axis=1)[:, None] / count
        found.append(covariance**2 / (variance * square + 1e-3))
    return np.concatenate([*found, np.sqrt(variance)], axis=1)


def _largest(values: np.ndarray) -> np.ndarray:
    return values.max(axis=1)[:, None]
