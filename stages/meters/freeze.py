"""Finds freezes, in which the same frame is repeated. A static scene before a tripod is no freeze.

A repeated frame is coded as "skip everything", so its decoded frames are equal to the last pixel. A
static scene, however much it was compressed, is not: because of its noise the encoder renews some
block in nearly every frame.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Gt

from curation.video.frames import Planes, VideoInfo
from stages.meters.alignment import cell_means
from stages.meters.meter import Meter, spans_near

MAX_EQUAL_SHARE = 1e-4  # of the pixels that may differ in a repeated frame (5 of 57,600)
# After full motion the encoder refines a held frame for a second: few pixels change, while the
# frames around the freeze change all over.
LOW_CHANGE_SHARE = 0.1
HIGH_CHANGE_SHARE = 0.3
MAX_RECODING_LEVELS = 6.0  # change of a cell of 8 x 8 px when a keyframe codes the same frame again
MAX_SETTLING_S = 0.25  # after a freeze begins, in which the encoder refines the frame
MAX_SETTLING_FRAMES = 8
MAX_STATIC_LEVELS = 2.0  # change of a cell of a scene without motion
# Of the frames of a freeze at most this share differs so; of a static scene more than half do.
MAX_RENEWED_SHARE = 0.3
# Equal frames for this time are a freeze whatever surrounds them; a shorter run may be a static
# scene whose noise was coded away.
MIN_CERTAIN_S = 5.0

Span = tuple[float, float]


@dataclass
class Freeze(Meter):
    """Compares each frame with the one before it."""

    # a shorter repeat (pulldown, a dropped frame) is no freeze
    min_freeze_s: Annotated[float, Gt(0)] = 0.5
    writes = ("frozen_share", "frozen_longest_s")

    def start(self, video: VideoInfo) -> None:
        self._frame_s = 1 / video.fps if video.fps > 0 else 0.04
        self._last: np.ndarray | None = None
        self._times_s = array("d")
        self._change = array("f")  # from the frame before, grey levels; see _change
        self._share = array("f")
        self._freezes: list[Span] | None = None

    def process_frame(self, t_s: float, frame: Planes) -> None:
        self._freezes = None
        self._times_s.append(t_s)
        change, share = _change(self._last, frame.y)
        self._change.append(change)
        self._share.append(share)
        self._last = frame.y

    def score(self, start_s: float, end_s: float) -> dict[str, float | None]:
        times = np.frombuffer(self._times_s)
        first, last = np.searchsorted(times, (start_s, end_s))
        if first == last:
            return dict.fromkeys(self.writes)
        if self._freezes is None:
            change, share = (np.frombuffer(a, np.float32) for a in (self._change, self._share))
            self._freezes = find_freezes(times, change, share, self._frame_s, self.min_freeze_s)
        near = spans_near(self._freezes, start_s, end_s)
        inside = [min(e, end_s) - max(s, start_s) for s, e in near if e > start_s]
        return {
            "frozen_share": float(min(1.0, sum(inside) / (end_s - start_s))),
            "frozen_longest_s": float(max(inside, default=0.0)),
        }


def _change(last: np.ndarray | None, luma: np.ndarray) -> tuple[float, float]:
    """Change of the cell that changes most, grey levels, 0 for a repeated frame; and the share of
    pixels that differ."""
    if last is None:
        return 255.0, 1.0
    difference = cv2.absdiff(last, luma)
    share = cv2.countNonZero(difference) / difference.size
    if share <= MAX_EQUAL_SHARE:
        return 0.0, share
    size = (max(1, luma.shape[1] // 2), max(1, luma.shape[0] // 2))
    half = cv2.resize(difference, size, interpolation=cv2.INTER_AREA)
    return max(float(cell_means(half).max()), 0.01), share


def find_freezes(
    times_s: np.ndarray, change: np.ndarray, share: np.ndarray, frame_s: float, min_s: float
) -> list[Span]:
    """(start, end) s of each freeze of at least `min_s`.

    change, share: (frames,) from the frame before, as _change returns them.  frame_s: the usual
    time between frames.
    """
    ends = np.append(times_s[1:], times_s[-1] + frame_s) if len(times_s) else times_s
    # A frame shown for a long time is a freeze too: a variable frame rate stores one like that.
    is_held = np.append(np.diff(times_s), 0.0) > max(min_s, 4 * frame_s)
    is_equal = (change == 0) | is_held
    freezes = []
    for first, last in _join_across_recoding(_runs(is_equal), change):
        start = first if change[first] > 0 else first - 1  # the frame that is repeated
        begin, end = _begin_of_settling(times_s, change, start), float(ends[last])
        equal_s = float(ends[last] - times_s[start])
        renewed = 1 - float(is_equal[first : last + 1].mean())
        if end - begin < min_s - 1e-6 or equal_s < 0.6 * min_s or renewed > MAX_RENEWED_SHARE:
            continue
        is_certain = equal_s >= MIN_CERTAIN_S
        if not is_certain and _is_static_around(change, times_s, first, last, end - begin):
            continue
        freezes.append((begin, end))
    return _merge(freezes + _freezes_within_motion(times_s, ends, change, share, min_s))


def _freezes_within_motion(
    times_s: np.ndarray, ends: np.ndarray, change: np.ndarray, share: np.ndarray, min_s: float
) -> list[Span]:
    """Spans with little change right between frames that change all over."""
    found = []
    for first, last in _runs((share <= LOW_CHANGE_SHARE) & (change <= MAX_STATIC_LEVELS / 2)):
        # A few frames in which the encoder refines the held one may lie before.
        start = first - 1
        while (
            start > 0
            and change[start] < MAX_RECODING_LEVELS
            and share[start] < HIGH_CHANGE_SHARE
            and first - start < MAX_SETTLING_FRAMES
        ):
            start -= 1
        before, after = share[max(1, start - 3) : start + 1], share[last + 1 : last + 4]
        sides = [side for side in (before, after) if len(side)]
        if ends[last] - times_s[start] < min_s - 1e-6 or not sides:
            continue
        if all(float(np.median(side)) > HIGH_CHANGE_SHARE for side in sides):
            found.append((float(times_s[start]), float(ends[last])))
    return found


def _merge(spans: list[Span]) -> list[Span]:
    """Overlapping spans as one."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1] + 1e-6:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _join_across_recoding(runs: list[tuple[int, int]], change: np.ndarray) -> list[tuple[int, int]]:
    """Joins runs of equal frames across a few that code the same frame again: a keyframe, or a last
    refinement."""
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        if joined:
            between = change[joined[-1][1] + 1 : first]
            limit = MAX_RECODING_LEVELS if len(between) == 1 else MAX_STATIC_LEVELS / 2
            if len(between) <= 4 and between.max() < limit:
                joined[-1] = (joined[-1][0], last)
                continue
        joined.append((first, last))
    return joined


def _is_static_around(
    change: np.ndarray, times_s: np.ndarray, first: int, last: int, length_s: float
) -> bool:
    """Whether nothing moves for as long before and after: equal frames are then no evidence."""
    begin = int(np.searchsorted(times_s, times_s[first] - length_s, side="right"))
    end = int(np.searchsorted(times_s, times_s[last] + length_s))
    # The first frame of the video has none before it.
    near = np.concatenate([change[max(1, begin) : first], change[max(1, last + 1) : end]])
    return not len(near) or float(near.max()) < MAX_RECODING_LEVELS


def _begin_of_settling(times_s: np.ndarray, change: np.ndarray, start: int) -> float:
    """When the freeze began: before the frames in which the encoder refined the held one."""
    begin = start
    while (
        begin > 0
        and change[begin] < MAX_STATIC_LEVELS / 2
        and times_s[start] - times_s[begin - 1] <= MAX_SETTLING_S
    ):
        begin -= 1
    return float(times_s[begin])
