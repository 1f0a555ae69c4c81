"""Finds gradual transitions: dissolves, and fades from and to black, white or another plain image.

During a dissolve the mean of every block of the frame goes from its old value to its new one along
a straight line, all blocks at the same pace: a quarter of the way after a quarter of the time. In
motion, blocks change one after another. In a change of light, both ends show the same structure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np

from stages.shots.change import FrameComparison, SmallFrame

MIN_SAMPLE_GAP_S = 0.03  # every frame up to 30 fps
# Samples, 0.13 to 3.8 s; each finds dissolves of 0.8 to 1.3 times its length.
WINDOW_LENGTHS = (4, 8, 12, 16, 24, 32, 48, 64, 96)
LONGEST = WINDOW_LENGTHS[-1]
# Grey levels of a block's mean: several times the noise of a mean of 256 source pixels.
MIN_CHANGE_LEVELS = 8.0
MIN_CHANGED_SHARE = 0.4  # of the frame: a title or a passing object is no transition
PACE_TOLERANCE = 0.2  # of a block's whole change
MIN_SHARE_IN_PACE = 0.6  # of the changed blocks
# Correlation of structure of the two ends: above it both show the same scene in another light.
MAX_STRUCTURE_CORRELATION = 0.3
MAX_PLAIN_CONTRAST = 0.2  # relative to the other end: below it this end is black, white or plain
MIN_RESIDUAL = 0.1  # of the two ends, after motion compensation
MIN_RESIDUAL_IN_EQUAL_LIGHT = 0.3  # after a change of light is compensated too: sun, exposure
# Grey levels of the brightest parts. No camera leaves them that dark: a transition from or to a
# frame below, by this factor, is a fade.
MAX_FADED_LEVEL, MIN_FADE_RATIO = 64.0, 1.4
EDGE_PROGRESS = 0.03  # below it the dissolve has not begun; the same at its end
MIN_RELATIVE_PACE = 0.25  # of the mean pace: where progress is slower, it has begun or ended
MAX_BORDER_LEVEL = 24  # grey levels, block means


@dataclass
class DissolveCandidate:
    """A dissolve that may still go on."""

    start_s: float
    end_s: float
    first: np.ndarray  # block means before
    step: np.ndarray  # block means after, less those before
    pace: float  # progress per sample
    progress: float = 1.0  # of the last sample

    def progress_of(self, means: np.ndarray) -> float:
        """0 for the block means before, 1 for those after."""
        return float(np.vdot(means - self.first, self.step) / np.vdot(self.step, self.step))


class GradualDetector:
    """Keeps the block means of the last 2 * LONGEST samples: six seconds at 30 fps."""

    def __init__(self, comparison: FrameComparison) -> None:
        self._comparison = comparison
        self._times_s: deque[float] = deque(maxlen=2 * LONGEST + 1)
        self._means: deque[np.ndarray] = deque(maxlen=2 * LONGEST + 1)
        # Sum over the blocks and over time of the absolute change since the video's start.
        self._total_change: deque[float] = deque(maxlen=LONGEST + 1)
        self._frames: deque[SmallFrame] = deque(maxlen=LONGEST + 1)
        self._samples = 0
        self._open: list[DissolveCandidate] = []
        self._spans: list[tuple[float, float]] = []

    def process_frame(self, frame: SmallFrame) -> None:
        if self._times_s and frame.t_s - self._times_s[-1] < MIN_SAMPLE_GAP_S:
            return
        change = cv2.norm(self._means[-1], frame.means, cv2.NORM_L1) if self._means else 0.0
        before = self._total_change[-1] if self._total_change else 0.0
        self._total_change.append(change + before)
        self._times_s.append(frame.t_s)
        self._means.append(frame.means)
        self._frames.append(frame)
        self._samples += 1
        self._open = [candidate for candidate in self._open if self._goes_on(candidate)]
        for length in WINDOW_LENGTHS:
            if len(self._frames) > length and self._samples % (length // 4) == 0:
                self._check_window(length)

    def spans(self) -> list[tuple[float, float]]:
        """Start and end of the transitions in order of time, overlapping ones joined."""
        spans = sorted(self._spans + [(c.start_s, c.end_s) for c in self._open])
        joined: list[tuple[float, float]] = []
        for start_s, end_s in spans:
            if joined and start_s <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end_s, joined[-1][1]))
            else:
                joined.append((start_s, end_s))
        return joined

    def _check_window(self, length: int) -> None:
        """Finds the dissolve that fills the last `length` samples."""
        first, last = self._means[-1 - length], self._means[-1]
        min_change = MIN_CHANGE_LEVELS * MIN_CHANGED_SHARE / 2 * last.size
        if self._total_change[-1] - self._total_change[-1 - length] < min_change:
            return  # true of most windows
        if cv2.norm(first, last, cv2.NORM_L1) < min_change:
            return
        if any(c.start_s <= self._times_s[-1 - length] for c in self._open):
            return  # found already
        quarters = [self._means[-1 - length + length * q // 4] for q in (1, 2, 3)]
        if not is_dissolve(first, quarters, last):
            return
        before, after = self._frames[-1 - length], self._frames[-1]
        if self._comparison.change(before, after).residual < MIN_RESIDUAL:
            return
        if not is_fade(first, last):
            residual = self._comparison.residual_in_equal_light(before, after)
            if residual < MIN_RESIDUAL_IN_EQUAL_LIGHT:
                return
        self._add_candidate(length)

    def _add_candidate(self, length: int) -> None:
        """Finds where the dissolve of about the last `length` samples begins, and whether it is
        over."""
        newest = len(self._means) - 1
        first, step = self._means[-1 - length], self._means[-1] - self._means[-1 - length]
        candidate = DissolveCandidate(0.0, self._times_s[-1], first, step, 1 / length)
        window = islice(self._means, newest - length, None)
        progress = [candidate.progress_of(means) for means in window]
        begin, end = newest - length, newest
        while progress[begin + 1 - newest + length] < EDGE_PROGRESS:
            begin += 1
        while progress[end - 1 - newest + length] > 1 - EDGE_PROGRESS:
            end -= 1
        if begin == newest - length:
            begin = self._find_begin(candidate, begin)
        candidate.start_s, candidate.end_s = self._times_s[begin], self._times_s[end]
        if end == newest:
            self._open.append(candidate)
        else:
            self._spans.append((candidate.start_s, candidate.end_s))

    def _find_begin(self, candidate: DissolveCandidate, at: int) -> int:
        """Follows the dissolve back from sample `at` to its first."""
        last = 0.0
        while at > 0:
            before = candidate.progress_of(self._means[at - 1])
            if before > last - MIN_RELATIVE_PACE * candidate.pace:
                break
            at, last = at - 1, before
        return at

    def _goes_on(self, candidate: DissolveCandidate) -> bool:
        """Extends the candidate by the newest sample, or adds it to the spans if it has ended."""
        now = candidate.progress_of(self._means[-1])
        if now < candidate.progress + MIN_RELATIVE_PACE * candidate.pace:
            self._spans.append((candidate.start_s, candidate.end_s))
            return False
        candidate.progress, candidate.end_s = now, self._times_s[-1]
        return True


def is_dissolve(first: np.ndarray, quarters: list[np.ndarray], last: np.ndarray) -> bool:
    """Whether the block means at 1/4, 1/2 and 3/4 of the time are mixtures of the first and last.

    All are (h, w).
    """
    step = last - first
    size = cv2.absdiff(last, first)
    changed = size > MIN_CHANGE_LEVELS
    count = np.count_nonzero(changed)
    if count < MIN_CHANGED_SHARE / 2 * step.size:  # true of most windows
        return False
    in_pace = changed
    for number in (2, 1, 3):
        expected = cv2.scaleAdd(step, number / 4, first)
        error = cv2.absdiff(quarters[number - 1], expected)
        in_pace = in_pace & (error < PACE_TOLERANCE * size)
        if np.count_nonzero(in_pace) < MIN_SHARE_IN_PACE / 2 * count:
            return False  # motion, mostly
    area = inside_borders(cv2.max(first, last))
    count = np.count_nonzero(changed[area])
    if count < MIN_CHANGED_SHARE * changed[area].size:
        return False
    if np.count_nonzero(in_pace[area]) < MIN_SHARE_IN_PACE * count:
        return False
    return not have_same_structure(first[area], last[area])


def have_same_structure(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether two frames' block means show the same scene, maybe in another light."""
    details = [_detail(means) for means in (first, last)]
    powers = sorted(float(np.vdot(d, d)) for d in details)
    if powers[0] <= MAX_PLAIN_CONTRAST**2 * powers[1]:
        return False
    return float(np.vdot(*details)) >= MAX_STRUCTURE_CORRELATION * (powers[0] * powers[1]) ** 0.5


def is_fade(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether one end is plain, or darker than a camera exposes and than the other end."""
    area = inside_borders(np.maximum(first, last))
    first, last = first[area], last[area]
    plainest, other = sorted(float(np.vdot(d, d)) for d in (_detail(first), _detail(last)))
    if plainest <= MAX_PLAIN_CONTRAST**2 * other:
        return True
    darkest, brightest = sorted(float(np.percentile(means, 95)) for means in (first, last))
    return darkest < MAX_FADED_LEVEL and brightest > MIN_FADE_RATIO * darkest


def _detail(means: np.ndarray) -> np.ndarray:
    return means - cv2.blur(means, (5, 5))


def inside_borders(means: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns inside black borders, less a border's edge; all where all is dark."""
    slices = []
    bright = (means > MAX_BORDER_LEVEL).view(np.uint8)
    for axis in (1, 0):
        size = means.shape[1 - axis]
        counts = cv2.reduce(bright, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
        lines = np.flatnonzero(counts > 0.02 * means.shape[axis])
        if lines.size < 5:
            slices.append(slice(0, size))
            continue
        start, stop = int(lines[0]), int(lines[-1]) + 1
        slices.append(slice(start + (start > 0), stop - (stop < size)))
    return slices[0], slices[1]
