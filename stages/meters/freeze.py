"""Frozen stretches: the same picture repeated. A still scene before a tripod is not frozen."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Gt

from curation.video.frames import Planes, VideoInfo
from stages.meters.alignment import cells
from stages.meters.meter import Meter

# A repeated picture is coded as "skip everything": the decoded frames are equal to the last pixel.
# A still scene is not, however hard it was compressed: its noise makes the encoder renew some block
# somewhere in nearly every frame.
SAME_SHARE = 1e-4  # of the pixels may differ in a repeat (5 of 57,600)
# Out of full motion the encoder still refines the held picture for a second: a trickle, where the
# frames around pour.
TRICKLE_SHARE = 0.1
POUR_SHARE = 0.3
POP_LEVELS = 6.0  # what coding the same picture anew, in a key frame, changes in a cell of 8 x 8 px
SETTLE_S = 0.25  # after a freeze begins, the encoder refines the picture for a few frames
QUIET_LEVELS = 2.0  # a cell of a scene in which nothing moves changes by less
# Of the frames of a freeze so many may differ so; of a still scene's, more than half do.
RENEWED_SHARE = 0.3
# Equal frames for so long are a freeze whatever is round them; fewer may be a still scene's, noise
# and all coded away.
SURE_S = 5.0


@dataclass
class Freeze(Meter):
    """Compares each frame with the one before it."""

    # a shorter repeat (pulldown, a dropped frame) is no freeze
    least_s: Annotated[float, Gt(0)] = 0.5
    writes = ("frozen_share", "frozen_longest_s")

    def start(self, video: VideoInfo) -> None:
        self._frame_s = 1 / video.fps if video.fps > 0 else 0.04
        self._last: np.ndarray | None = None
        self._times = array("d")
        self._change = array(
            "f"
        )  # to the frame before: 0 where equal, else the worst cell's levels
        self._share = array("f")  # of the pixels that differ from the frame before
        self._ready: list[tuple[float, float]] | None = None

    def process_frame(self, t_s: float, frame: Planes) -> None:
        self._ready = None
        self._times.append(t_s)
        change, share = _change(self._last, frame.y)
        self._change.append(change)
        self._share.append(share)
        self._last = frame.y

    def score(self, start_s: float, end_s: float) -> dict[str, float | None]:
        times = np.frombuffer(self._times)
        if not ((times >= start_s) & (times < end_s)).any():
            return dict.fromkeys(self.writes)
        if self._ready is None:
            change, share = (np.frombuffer(a, np.float32) for a in (self._change, self._share))
            self._ready = frozen_stretches(times, change, share, self._frame_s, self.least_s)
        inside = [
            min(e, end_s) - max(s, start_s) for s, e in self._ready if e > start_s and s < end_s
        ]
        return {
            "frozen_share": float(min(1.0, sum(inside) / (end_s - start_s))),
            "frozen_longest_s": float(max(inside, default=0.0)),
        }


def _change(last: np.ndarray | None, luma: np.ndarray) -> tuple[float, float]:
    """Of the worst cell, grey levels, 0 for a repeat; and the share of pixels that differ."""
    if last is None:
        return 255.0, 1.0
    difference = cv2.absdiff(last, luma)
    share = cv2.countNonZero(difference) / difference.size
    if share <= SAME_SHARE:
        return 0.0, share
    size = (max(1, luma.shape[1] // 2), max(1, luma.shape[0] // 2))
    half = cv2.resize(difference, size, interpolation=cv2.INTER_AREA)
    return max(float(cells(half).max()), 0.01), share


def frozen_stretches(
    times_s: np.ndarray, change: np.ndarray, share: np.ndarray, frame_s: float, least_s: float
) -> list[tuple[float, float]]:
    """(start, end) s of each freeze of at least `least_s`.

    change: (frames,) to the frame before, grey levels of the worst cell, 0 where equal.
    share: (frames,) of the pixels that differ from it, 0..1.  frame_s: the usual step.
    """
    ends = np.append(times_s[1:], times_s[-1] + frame_s) if len(times_s) else times_s
    # A frame shown for a long time is a freeze too: that is how variable frame rates store one.
    held = np.append(np.diff(times_s), 0.0) > max(least_s, 4 * frame_s)
    same = (change == 0) | held
    runs = _runs(same)
    stretches = []
    for first, last in _joined(runs, change):
        start = first if change[first] > 0 else first - 1  # the frame that is repeated
        begin, end = _settling(times_s, change, start), float(ends[last])
        equal_s = float(ends[last] - times_s[start])
        renewed = 1 - float(same[first : last + 1].mean())
        if end - begin < least_s - 1e-6 or equal_s < 0.6 * least_s or renewed > RENEWED_SHARE:
            continue
        if equal_s < SURE_S and _quiet_around(change, times_s, first, last, end - begin):
            continue
        stretches.append((begin, end))
    return _merged(stretches + _out_of_motion(times_s, ends, change, share, least_s))


def _out_of_motion(
    times_s: np.ndarray, ends: np.ndarray, change: np.ndarray, share: np.ndarray, least_s: float
) -> list[tuple[float, float]]:
    """Stretches that hardly change, right between frames that change all over."""
    found = []
    for first, last in _runs((share <= TRICKLE_SHARE) & (change <= QUIET_LEVELS / 2)):
        # A few frames of refinement lie between the motion and the trickle.
        start = first - 1
        while (
            start > 0
            and change[start] < POP_LEVELS
            and share[start] < POUR_SHARE
            and first - start < 8
        ):
            start -= 1
        before, after = share[max(1, start - 3) : start + 1], share[last + 1 : last + 4]
        pours = [side for side in (before, after) if len(side)]
        if ends[last] - times_s[start] < least_s - 1e-6 or not pours:
            continue
        if all(float(np.median(side)) > POUR_SHARE for side in pours):
            found.append((float(times_s[start]), float(ends[last])))
    return found


def _merged(stretches: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Overlapping stretches as one."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(stretches):
        if merged and begin <= merged[-1][1] + 1e-6:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _joined(runs: list[tuple[int, int]], change: np.ndarray) -> list[tuple[int, int]]:
    """Runs of equal frames across a few that code the same picture anew.

    That is a key frame, or a last refinement.
    """
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        if joined:
            between = change[joined[-1][1] + 1 : first]
            if (
                between.max() < (POP_LEVELS if len(between) == 1 else QUIET_LEVELS / 2)
                and len(between) <= 4
            ):
                joined[-1] = (joined[-1][0], last)
                continue
        joined.append((first, last))
    return joined


def _quiet_around(
    change: np.ndarray, times_s: np.ndarray, first: int, last: int, length_s: float
) -> bool:
    """Whether nothing moves for as long before and after: then equal frames prove little."""
    near = (times_s > times_s[first] - length_s) & (times_s < times_s[last] + length_s)
    near[first : last + 1] = False
    near[0] = False  # has no frame before it
    return not near.any() or float(change[near].max()) < POP_LEVELS


def _settling(times_s: np.ndarray, change: np.ndarray, start: int) -> float:
    """When the freeze began: earlier by the frames in which the encoder refined the picture."""
    begin = start
    while (
        begin > 0
        and change[begin] < QUIET_LEVELS / 2
        and times_s[start] - times_s[begin - 1] <= SETTLE_S
    ):
        begin -= 1
    return float(times_s[begin])
