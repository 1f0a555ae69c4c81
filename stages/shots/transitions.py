"""Gradual transitions: dissolves, fades from and to black, white or any plain picture.

While one picture is mixed into another, every block of the picture goes from its old brightness to
its new one along a straight line, all at the same pace: a quarter of the way after a quarter of the
time. Under motion blocks change one after another; under a change of light both ends show the same
structure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice

import cv2
import numpy as np

from stages.shots.change import Compare, Thumb

SAMPLE_S = 0.03  # at least between two looks: every frame up to 30 fps
# samples: 0.13 to 3.8 s; each fits mixes from 0.8 to 1.3 times as long
LENGTHS = (4, 8, 12, 16, 24, 32, 48, 64, 96)
# grey levels of a block's mean: several times what noise does to a mean of 256 source pixels
CHANGED = 8.0
CHANGED_SHARE = 0.4  # of the picture: a title or a passing object is no transition between pictures
PACE = 0.2  # tolerance of a block's progress
IN_PACE_SHARE = 0.6  # of the changed blocks
# correlation of structure of the two ends: above it the picture is the same in another light
UNLIKE = 0.3
PLAIN = 0.2  # contrast relative to the other end: below it this end is black, white or plain
UNMOVED = 0.1  # share of the picture that motion must leave unexplained between the two ends
RELIT = 0.3  # the same after a change of light is taken out too: sun, clouds, exposure
# grey levels: cameras don't leave the brightest parts of a picture that dark; a picture that goes
# from there or to there, by that factor, is faded
DARK_END, FADED = 64.0, 1.4
EDGE = 0.03  # progress below which it has not begun, and the same at its end
REACH = 0.25  # of the mean pace: where the mix goes slower than that it has begun or ended


@dataclass
class Mix:
    """A transition that may still be going on."""

    start_s: float
    end_s: float
    first: np.ndarray  # block means of the picture before
    step: np.ndarray  # difference to the picture after
    pace: float  # progress per sample
    progress: float = 1.0  # of the last sample


@dataclass
class Blends:
    """Fed with every thumb; keeps the block means of the last four seconds."""

    compare: Compare
    _times_s: deque[float] = field(default_factory=lambda: deque(maxlen=2 * LENGTHS[-1] + 1))
    _means: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=2 * LENGTHS[-1] + 1))
    # sum over the blocks of how far each has changed since the video's start, to and fro
    _travelled: deque[float] = field(default_factory=lambda: deque(maxlen=LENGTHS[-1] + 1))
    _thumbs: deque[Thumb] = field(default_factory=lambda: deque(maxlen=LENGTHS[-1] + 1))
    _count: int = 0
    _open: list[Mix] = field(default_factory=list)
    _spans: list[tuple[float, float]] = field(default_factory=list)

    def process_frame(self, thumb: Thumb) -> None:
        if self._times_s and thumb.t_s - self._times_s[-1] < SAMPLE_S:
            return
        travelled = cv2.norm(self._means[-1], thumb.means, cv2.NORM_L1) if self._means else 0.0
        self._travelled.append(travelled + (self._travelled[-1] if self._travelled else 0.0))
        self._times_s.append(thumb.t_s)
        self._means.append(thumb.means)
        self._thumbs.append(thumb)
        self._count += 1
        self._open = [mix for mix in self._open if self._goes_on(mix)]
        for length in LENGTHS:
            if len(self._thumbs) > length and self._count % (length // 4) == 0:
                self._look(length)

    def found(self) -> list[tuple[float, float]]:
        """Transitions in order of time, overlapping ones joined."""
        spans = sorted(self._spans + [(mix.start_s, mix.end_s) for mix in self._open])
        joined: list[tuple[float, float]] = []
        for start_s, end_s in spans:
            if joined and start_s <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end_s, joined[-1][1]))
            else:
                joined.append((start_s, end_s))
        return joined

    def _look(self, length: int) -> None:
        first, last = self._means[-1 - length], self._means[-1]
        least = CHANGED * CHANGED_SHARE / 2 * last.size
        if self._travelled[-1] - self._travelled[-1 - length] < least:
            return  # most windows end here: however they went, they have not come far enough
        if cv2.norm(first, last, cv2.NORM_L1) < least:
            return
        if any(mix.start_s <= self._times_s[-1 - length] for mix in self._open):
            return  # known already
        quarters = [self._means[-1 - length + length * q // 4] for q in (1, 2, 3)]
        if not is_mix(first, quarters, last):
            return
        before, after = self._thumbs[-1 - length], self._thumbs[-1]
        if self.compare(before, after).amount < UNMOVED:
            return
        if not is_fade(first, last) and self.compare.relit(before, after) < RELIT:
            return
        self._follow(length)

    def _follow(self, length: int) -> None:
        """Finds where the mix that fills about the last `length` samples begins, and whether it
        is over.
        """
        newest = len(self._means) - 1
        first, step = self._means[-1 - length], self._means[-1] - self._means[-1 - length]
        mix = Mix(0.0, self._times_s[-1], first, step, 1 / length)
        done = [progress(mix, means) for means in islice(self._means, newest - length, None)]
        begin, end = newest - length, newest
        while done[begin + 1 - newest + length] < EDGE:
            begin += 1
        while done[end - 1 - newest + length] > 1 - EDGE:
            end -= 1
        if begin == newest - length:
            begin = self._begun(mix, begin)
        mix.start_s, mix.end_s = self._times_s[begin], self._times_s[end]
        if end == newest:
            self._open.append(mix)
        else:
            self._spans.append((mix.start_s, mix.end_s))

    def _begun(self, mix: Mix, at: int) -> int:
        """Follows the mix back from sample `at` to where it began."""
        last = 0.0
        while at > 0:
            before = progress(mix, self._means[at - 1])
            if before > last - REACH * mix.pace:
                break
            at, last = at - 1, before
        return at

    def _goes_on(self, mix: Mix) -> bool:
        now = progress(mix, self._means[-1])
        if now < mix.progress + REACH * mix.pace:
            self._spans.append((mix.start_s, mix.end_s))
            return False
        mix.progress, mix.end_s = now, self._times_s[-1]
        return True


def progress(mix: Mix, means: np.ndarray) -> float:
    """How far the picture has come: 0 at the mix's first picture, 1 at its last."""
    return float(np.vdot(means - mix.first, mix.step) / np.vdot(mix.step, mix.step))


def is_mix(first: np.ndarray, quarters: list[np.ndarray], last: np.ndarray) -> bool:
    """Whether pictures at 1/4, 1/2 and 3/4 of the time are mixes of the first and the last:
    block means, (h, w) each.
    """
    step = last - first
    size = cv2.absdiff(last, first)
    changed = size > CHANGED
    count = np.count_nonzero(changed)
    if count < CHANGED_SHARE / 2 * step.size:  # most windows end here
        return False
    in_pace = changed
    for number in (2, 1, 3):
        expected = cv2.scaleAdd(step, number / 4, first)
        in_pace = in_pace & (cv2.absdiff(quarters[number - 1], expected) < PACE * size)
        if np.count_nonzero(in_pace) < IN_PACE_SHARE / 2 * count:
            return False  # what moves, mostly
    area = lit(cv2.max(first, last))
    count = np.count_nonzero(changed[area])
    if count < CHANGED_SHARE * changed[area].size:
        return False
    if np.count_nonzero(in_pace[area]) < IN_PACE_SHARE * count:
        return False
    return not alike(first[area], last[area])


def alike(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether two pictures show the same structure, be it in another light."""
    details = [_detail(picture) for picture in (first, last)]
    powers = sorted(float(np.vdot(d, d)) for d in details)
    if powers[0] <= PLAIN**2 * powers[1]:
        return False
    return float(np.vdot(*details)) >= UNLIKE * (powers[0] * powers[1]) ** 0.5


def is_fade(first: np.ndarray, last: np.ndarray) -> bool:
    """Whether one end is plain, or darker than a camera would have it and than the other end."""
    area = lit(np.maximum(first, last))
    first, last = first[area], last[area]
    plainest, other = sorted(float(np.vdot(d, d)) for d in (_detail(first), _detail(last)))
    if plainest <= PLAIN**2 * other:
        return True
    darkest, brightest = sorted(float(np.percentile(p, 95)) for p in (first, last))
    return darkest < DARK_END and brightest > FADED * darkest


def _detail(means: np.ndarray) -> np.ndarray:
    return means - cv2.blur(means, (5, 5))


def lit(means: np.ndarray) -> tuple[slice, slice]:
    """What lies inside black borders, their edge taken off; everything where all is dark."""
    slices = []
    lights = (means > 24).view(np.uint8)
    for axis in (1, 0):
        size = means.shape[1 - axis]
        number = cv2.reduce(lights, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
        bright = np.flatnonzero(number > 0.02 * means.shape[axis])
        if bright.size < 5:
            slices.append(slice(0, size))
            continue
        start, stop = int(bright[0]), int(bright[-1]) + 1
        slices.append(slice(start + (start > 0), stop - (stop < size)))
    return slices[0], slices[1]
