"""Finds cuts by the motion-compensated residual: hard cuts, jump cuts from a static camera, and,
with stages/shots/transitions.py, gradual transitions.

Every frame is compared with the one before it after motion compensation, which explains a pan, a
shake or a moving object, but no cut. A cut is a change that stands out from the pairs of frames
nearby, is not undone at once (a flash, a glitch), is more than a change of light or sharpness, more
than detail that the codec renews, and more than a line of text or a redrawn slide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from curation.video.frames import Planes, VideoInfo
from stages.shots.change import (
    Change,
    FrameComparison,
    SmallFrame,
    is_redrawn_slide,
    may_differ,
    small_frame,
)
from stages.shots.detector import Detector, Transitions
from stages.shots.transitions import GradualDetector

# Pairs of frames are nearby within this time: longer than a flash, a passing hand or a whip pan,
# or within this number of frames at low frame rates.
WINDOW_S = 0.5
WINDOW_FRAMES = 6
ADJACENT_PAIRS = 2  # on either side, in which fast motion shows
SIMILAR_S = 0.25  # as long as all changes are small, frames this far apart look much alike

# A residual stands out by this factor and by this much over the largest nearby: an object of two
# percent of the frame that is gone.
MIN_SPIKE_RATIO = 2.0
MIN_SPIKE = 0.02
# Less is enough if the median block changes too, by this factor and so many grey levels over its
# change nearby: another moment has other noise and other light.
MIN_MEDIAN_RATIO, MIN_MEDIAN_STEP = 2.0, 0.5
RELAXED_RATIO, RELAXED_SPIKE = 1.4, 0.01

# Share of wholly changed blocks over the residual. Below it many blocks changed a little, as they
# do when the codec renews detail.
MIN_STRONG_CHANGE_RATIO = 0.7
MAX_STRUCTURE_CORRELATION = 0.65  # of the changed blocks: above it only light or sharpness changed
# Grey levels by which a cut changes the mean of patches, or this factor times what the median block
# changes more than nearby: a key frame of a low bit rate renews detail everywhere, but no mean.
MIN_PATCH_STEP, MIN_PATCH_STEP_RATIO = 16.0, 5.0
MAX_TEXT_AREA, MAX_TEXT_HEIGHT = 0.12, 0.2  # of the frame, for a line of text or a caption
MAX_REDRAWN_AREA = 0.5  # on a flat ground that stays, a smaller change is a redrawn slide

RETURN_STEPS = (1, 2, 4, 8, 16, 32)  # frames after a change at which the old image may be back


@dataclass
class ResidualDetector(Detector):
    """Finds hard cuts, jump cuts and gradual transitions by the motion-compensated residual."""

    def start(self, video: VideoInfo) -> None:
        self._comparison = FrameComparison()
        self._gradual = GradualDetector(self._comparison)
        self._frames: list[SmallFrame] = []  # the last second or so
        self._changes: list[Change | None] = []  # from the frame before; None: not computed yet
        self._next = 1  # index of the next frame to decide on
        self._similar: SmallFrame | None = None  # an earlier frame, much like the one before it
        self._cuts_s: list[float] = []

    def process_frame(self, t_s: float, frame: Planes) -> None:
        new = small_frame(t_s, frame.y)
        last = self._frames[-1] if self._frames else None
        if last and last.luma.shape != new.luma.shape:  # the stream changes its size midway
            new = small_frame(t_s, cv2.resize(frame.y, last.luma.shape[::-1]))
        self._frames.append(new)
        self._changes.append(None)
        self._gradual.process_frame(new)
        while self._next + WINDOW_FRAMES < len(self._frames) and (
            t_s - self._frames[self._next].t_s > WINDOW_S
        ):
            self._decide_next()

    def transitions(self) -> Transitions:
        while self._next < len(self._frames):
            self._decide_next()
        gradual = self._gradual.spans()
        within = [any(start <= t <= end for start, end in gradual) for t in self._cuts_s]
        cuts_s = [t for t, inside in zip(self._cuts_s, within, strict=True) if not inside]
        return Transitions(cuts_s, gradual)

    def _decide_next(self) -> None:
        if self._is_cut(self._next):
            self._cuts_s.append(self._frames[self._next].t_s)
        self._next += 1
        decided_s = self._frames[self._next - 1].t_s
        while self._next > WINDOW_FRAMES + 2 and decided_s - self._frames[1].t_s > WINDOW_S:
            del self._frames[0], self._changes[0]
            self._next -= 1

    def _nearby(self, at: int) -> tuple[range, range]:
        """Indices of the frames nearby before and after, nearest first."""
        here_s = self._frames[at].t_s
        near = [
            i
            for i in range(1, len(self._frames))
            if abs(i - at) <= WINDOW_FRAMES or abs(self._frames[i].t_s - here_s) <= WINDOW_S
        ]
        return range(at - 1, near[0] - 1, -1), range(at + 1, near[-1] + 1)

    def _change(self, at: int) -> Change:
        """From the frame before `at` to it."""
        change = self._changes[at]
        if change is None:
            change = self._comparison.change(self._frames[at - 1], self._frames[at])
            self._changes[at] = change
        return change

    def _is_cut(self, at: int) -> bool:
        before, after = self._frames[at - 1], self._frames[at]
        if self._similar is None or before.t_s - self._similar.t_s > SIMILAR_S:
            self._similar = before
        if not may_differ(before, after, RELAXED_SPIKE, self._similar):
            return False  # true of most pairs: no flow is computed for them
        self._similar = after
        left, right = self._nearby(at)
        here = self._change(at)
        if not is_spike(here, LazyChanges(self._change, left), LazyChanges(self._change, right)):
            return False
        if self._comparison.structure_correlation(before, after) > MAX_STRUCTURE_CORRELATION:
            return False
        nearby = float(np.median([self._change(i).median for i in (*left, *right)] or [0.0]))
        min_step = min(MIN_PATCH_STEP, MIN_PATCH_STEP_RATIO * (here.median - nearby))
        if self._comparison.patch_step(before, after) < min_step:
            return False
        if here.area < MAX_REDRAWN_AREA and is_redrawn_slide(before, after):
            return False
        is_text = here.area < MAX_TEXT_AREA and self._is_text_line(before, after)
        if is_text and not median_stands_out(here.median, nearby):
            return False
        return not self._is_undone(at, left, right)

    def _is_text_line(self, before: SmallFrame, after: SmallFrame) -> bool:
        """Whether the changed blocks lie in a few neighbouring rows."""
        changed = self._comparison.changed_blocks(before, after)
        rows = np.flatnonzero(changed.any(axis=1))
        return bool(rows.size) and rows[-1] - rows[0] < MAX_TEXT_HEIGHT * len(changed)

    def _is_undone(self, at: int, left: range, right: range) -> bool:
        """Whether the old image soon returns, or the new one was there just before: a flash."""
        before, after = self._frames[at - 1], self._frames[at]
        limit = self._change(at).residual / MIN_SPIKE_RATIO
        later = [self._frames[at + step] for step in RETURN_STEPS if step <= len(right)]
        earlier = [self._frames[at - 1 - step] for step in RETURN_STEPS if step <= len(left)]
        change = self._comparison.change
        return any(change(before, frame).residual < limit for frame in later) or any(
            change(frame, after).residual < limit for frame in earlier
        )


@dataclass(frozen=True)
class LazyChanges:
    """The changes before or after a pair, nearest first, each computed when it is reached."""

    change: Callable[[int], Change]
    frames: range

    def __iter__(self) -> Iterator[Change]:
        return map(self.change, self.frames)


def is_spike(here: Change, left: Iterable[Change], right: Iterable[Change]) -> bool:
    """Whether a change stands out from those nearby, given nearest first."""
    if here.area < MIN_STRONG_CHANGE_RATIO * here.residual:
        return False
    # The looser limit first: in steady motion the nearest change already exceeds it.
    limit = (here.residual - RELAXED_SPIKE) / RELAXED_RATIO
    if not (is_quiet(left, limit) and is_quiet(right, limit)):
        return False
    limit = (here.residual - MIN_SPIKE) / MIN_SPIKE_RATIO
    if is_quiet(left, limit) and is_quiet(right, limit):
        return True
    others = _without_largest(list(left)) + _without_largest(list(right))
    return median_stands_out(here.median, max((c.median for c in others), default=0.0))


def is_quiet(side: Iterable[Change], limit: float) -> bool:
    """Whether no residual exceeds the limit, except one that is not adjacent.

    That one may be the next cut; if it is adjacent, both are the same fast motion.
    """
    if limit < 0:
        return False
    exceeding = 0
    for place, change in enumerate(side):
        exceeding += change.residual > limit
        if exceeding > (place >= ADJACENT_PAIRS):
            return False
    return True


def median_stands_out(median: float, nearby: float) -> bool:
    """Whether the median block changes more than it does nearby; both in grey levels."""
    return median >= MIN_MEDIAN_RATIO * nearby + MIN_MEDIAN_STEP


def _without_largest(side: list[Change]) -> list[Change]:
    """The changes less the one of the largest residual, unless that is adjacent."""
    largest = max(range(len(side)), key=lambda i: side[i].residual, default=0)
    return side if largest < ADJACENT_PAIRS else side[:largest] + side[largest + 1 :]
