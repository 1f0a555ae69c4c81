"""What is measured over a window of time that may hold one gradual transition.

Nine frames stand for a window of any length. While one picture dissolves into another, all blocks
go from their old colour to their new one at one pace; a wipe, an iris, a push or a slide changes
each block at once, at a time that depends on its place; a fade lets the contrast go; a whip lets
the detail go. Motion within a take does none of these over a whole window, and looks before and
after the window as it does in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.shots.frame_view import BINS, GRID, FrameView

SAMPLES = 9
LENGTHS = (5, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # frames at up to 33 frames a second
MIN_DIFFERENCE = 4.0  # grey levels, mean over the blocks of both ends: below it nothing changed
MIN_RATIO = 1.2  # of a window's change to that of half its length before or after it
CHANGED = 8.0  # grey levels: a block that changed
PACE = 0.2  # of the way: tolerance of a block's progress

# Of the blocks' mean path and of light alone: cheap enough for every window.
OUTLINE_FEATURES = (
    *("length_s", "changed", "pace_largest", "pace_smallest", "off_line"),
    *("spread_first", "spread_last", "spread_dip", "spread_smallest"),
    *("luma_first", "luma_last", "luma_smallest", "luma_largest"),
    *("difference", "difference_largest", "difference_mean", "difference_smallest"),
    *("difference_before", "difference_after"),
    *("difference_to_outside", "difference_to_calmer_side"),
    *("difference_to_steps", "largest_to_mean_step"),
)
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
_LINE = np.linspace(0, 1, SAMPLES, dtype=np.float32)


def standing_out(blocks: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a window changes at all, and more than the time before it, or the time
    after it, does.

    blocks: (N, SAMPLES + 2, B), of the frame before each window by half its length, of its frames,
    and of the frame after it by half its length.
    """
    luma = blocks.shape[2] // 3
    apart = np.abs(blocks[:, -2] - blocks[:, 1])
    changes = apart[:, :luma].sum(axis=1) >= MIN_DIFFERENCE * luma
    sides = [np.abs(blocks[:, i] - blocks[:, i + 1]).mean(axis=1) for i in (0, -2)]
    return changes & (apart.mean(axis=1) >= MIN_RATIO * (np.minimum(*sides) + 0.5))


def outline(blocks: np.ndarray, lengths_s: np.ndarray) -> dict[str, np.ndarray]:
    """OUTLINE_FEATURES by name, (N,) each, of the blocks of windows as in `standing_out`."""
    inside = blocks[:, 1:-1]
    first, last = inside[:, 0], inside[:, -1]
    step = last - first
    progress = _progress(inside, step)
    lumas = inside[:, :, : blocks.shape[2] // 3]
    pace = np.diff(progress, axis=1)
    spread, luma = lumas.std(axis=2), lumas.mean(axis=2)
    apart = np.abs(np.diff(inside, axis=1)).mean(axis=2)
    of = {
        "length_s": lengths_s,
        "changed": (np.abs(step) > CHANGED).mean(axis=1),
        "pace_largest": pace.max(axis=1),
        "pace_smallest": pace.min(axis=1),
        "off_line": np.abs(progress - _LINE).max(axis=1),
        **_ends_and_dip("spread", spread, 1.0),
        "spread_smallest": spread[:, 1:-1].min(axis=1),
        "luma_first": luma[:, 0],
        "luma_last": luma[:, -1],
        "luma_smallest": luma[:, 1:-1].min(axis=1),
        "luma_largest": luma[:, 1:-1].max(axis=1),
        "difference": np.abs(step).mean(axis=1),
        "difference_largest": apart.max(axis=1),
        "difference_mean": apart.mean(axis=1),
        "difference_smallest": apart.min(axis=1),
        "difference_before": np.abs(blocks[:, 0] - first).mean(axis=1),
        "difference_after": np.abs(last - blocks[:, -1]).mean(axis=1),
    }
    sides = of["difference_before"], of["difference_after"]
    return of | {
        "difference_to_outside": of["difference"] / (np.maximum(*sides) + 1),
        "difference_to_calmer_side": of["difference"] / (np.minimum(*sides) + 1),
        "difference_to_steps": of["difference"] / (8 * of["difference_mean"] + 1),
        "largest_to_mean_step": of["difference_largest"] / (of["difference_mean"] + 0.5),
    }


def window_features(windows: Sequence[Sequence[FrameView]]) -> np.ndarray:
    """(N, len(FEATURES)) float32.

    windows: for each, the frame before it by half its length, its SAMPLES frames, and the frame
    after it by half its length.
    """
    every = np.array([[f.blocks for f in window] for window in windows])  # (N, 11, B)
    of = outline(every, np.array([w[-2].t_s - w[1].t_s for w in windows], np.float32))
    of |= _paths(every[:, 1:-1], of["difference"])
    detail = np.array([[f.detail for f in window[1:-1]] for window in windows], np.float32)
    of |= _ends_and_dip("detail", detail, 0.25)
    of |= _histograms(np.array([[f.histogram for f in window] for window in windows]))
    return np.stack([of[name] for name in FEATURES], axis=1).astype(np.float32)


def _paths(blocks: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """How each block goes from the first of the (N, SAMPLES, B) frames to the last.

    size: (N,), the mean difference of both.
    """
    first = blocks[:, 0]
    step = blocks[:, -1] - first
    changed = np.abs(step) > CHANGED
    count = np.maximum(changed.sum(axis=1), 1)

    def share(condition: np.ndarray) -> np.ndarray:
        return (condition & changed).sum(axis=1) / count

    divisor = np.where(changed, step, np.inf)
    path = (blocks - first[:, None]) / divisor[:, None]  # 0 at the first frame, 1 at the last
    progress = _progress(blocks, step)
    moves = np.diff(path, axis=1)  # (N, 8, B)
    off_pace = np.abs(path - progress[:, :, None])
    off_path = np.abs(blocks - first[:, None] - progress[:, :, None] * step[:, None]).mean(axis=2)
    return {
        "linear": share((np.abs(path - _LINE[:, None]) < PACE).all(axis=1)),
        "in_pace": share((off_pace < PACE).all(axis=1)),
        "in_pace_loosely": share((off_pace[:, 2:7:2] < 1.5 * PACE).all(axis=1)),
        "monotonic": share((moves > -0.1).all(axis=1)),
        "steps": share(moves.max(axis=1) > 0.7),
        "travel": (np.minimum(np.abs(moves).sum(axis=1), 9) * changed).sum(axis=1) / count,
        **_step_times(moves.argmax(axis=1).astype(np.float32), changed, count[:, None]),
        "off_path": off_path.max(axis=1),
        "off_path_relative": off_path.max(axis=1) / (size + 1),
    }


def _histograms(histograms: np.ndarray) -> dict[str, np.ndarray]:
    """Distances of the (N, SAMPLES + 2, 3 * BINS) cumulative histograms; shares of one luma."""
    shifts = np.abs(np.diff(histograms, axis=1)).sum(axis=2)  # (N, 10)
    whole = np.abs(histograms[:, -2] - histograms[:, 1]).sum(axis=1)
    flat = np.diff(histograms[:, 1:-1, :BINS], axis=2, prepend=0).max(axis=2)
    return {
        "histogram": whole,
        "histogram_largest": shifts[:, 1:-1].max(axis=1),
        "histogram_mean": shifts[:, 1:-1].mean(axis=1),
        "histogram_before": shifts[:, 0],
        "histogram_after": shifts[:, -1],
        "histogram_to_outside": whole / (np.maximum(shifts[:, 0], shifts[:, -1]) + 0.2),
        "flat_first": flat[:, 0],
        "flat_last": flat[:, -1],
        "flat_largest": flat.max(axis=1),
    }


def _progress(blocks: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(N, SAMPLES): how far all blocks together have come, 0 at the first frame, 1 at the last."""
    power = (step**2).sum(axis=1)[:, None] + 1e-6
    return ((blocks - blocks[:, :1]) * step[:, None]).sum(axis=2) / power


def _ends_and_dip(name: str, values: np.ndarray, margin: float) -> dict[str, np.ndarray]:
    """The first and the last of (N, SAMPLES) values, and the least between relative to them."""
    ends = np.minimum(values[:, 0], values[:, -1]) + margin
    dip = values[:, 2:7].min(axis=1) / ends
    return {f"{name}_first": values[:, 0], f"{name}_last": values[:, -1], f"{name}_dip": dip}


def _step_times(times: np.ndarray, changed: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    """How far the time at which a block changes follows its column, its row and its distance to
    the centre (squared correlations), and the spread of these times.
    """
    mean = (times * changed).sum(axis=1)[:, None] / count
    off = (times - mean) * changed
    variance = (off**2).sum(axis=1)[:, None] / count
    of = {"step_time_spread": np.sqrt(variance)[:, 0]}
    for name, place in zip(("x", "y", "radius"), _PLACES, strict=True):
        centre = (place * changed).sum(axis=1)[:, None] / count
        side = (place - centre) * changed
        square = (side**2).sum(axis=1)[:, None] / count
        covariance = (off * side).sum(axis=1)[:, None] / count
        of[f"step_time_{name}"] = (covariance**2 / (variance * square + 1e-3))[:, 0]
    return of
