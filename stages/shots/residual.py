"""Where takes end: hard cuts, jump cuts from an unmoved camera among them, and gradual transitions.

Every frame is compared with the one before it, motion taken out. What moves, pans or shakes is
explained by motion; what a cut brings is not. A cut is a change that stands out from the pairs of
frames nearby, does not go back at once (a flash, a glitch), is more than a change of light or
sharpness, more than detail that the codec renews, and more than a text or a redrawn slide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from curation.video.frames import Planes, VideoInfo
from stages.shots.change import Change, Compare, Thumb, is_redrawn, may_differ, thumb
from stages.shots.detector import Detector, Transitions
from stages.shots.transitions import Blends

WINDOW_S = 0.5  # "nearby": a flash, a passing hand or a whip pan is over
WINDOW_FRAMES = 6  # "nearby" at low frame rates
NEAREST = 2  # pairs on either side in which fast motion shows
LIKE_S = 0.25  # a picture whose changes are that small looks much like itself so long
SPIKE = 2.0  # times the largest amount nearby ...
MIN_AMOUNT = 0.02  # ... and this much more: an object of two percent of the picture, gone
# Where the median block changes out of the ordinary too (another moment has other noise, other
# light), less will do:
REST_SPIKE, REST_MIN = 2.0, 0.5  # times the rest's change nearby, and so many grey levels more
BACKED_SPIKE, BACKED_AMOUNT = 1.4, 0.01

# blocks changed wholly over the amount: below it many changed a little, the codec's doing
MANY_A_LITTLE = 0.7
SAME_STRUCTURE = 0.65  # correlation of the changed blocks: above it only light or sharpness changed
# by so many grey levels a cut changes whole patches, or by so many times what the median block does
# beyond what it does nearby: a key frame of a low bit rate renews detail alone, but everywhere
STEP, STEP_SPIKE = 16.0, 5.0
TEXT_AREA, TEXT_HEIGHT = 0.12, 0.2  # a line of text or a caption takes no more of the picture
REDRAWN_AREA = 0.5  # on a flat ground that stays, a smaller change is a redrawn slide


@dataclass
class ResidualDetector(Detector):
    """Finds hard cuts, jump cuts and gradual transitions by the motion-compensated residual."""

    def start(self, video: VideoInfo) -> None:
        self._compare = Compare()
        self._blends = Blends(self._compare)
        self._frames: list[Thumb] = []  # the last second or so
        self._changes: list[Change | None] = []  # of each of them to the one before it, if known
        self._next = 1  # the next one to judge
        self._like: Thumb | None = None  # a frame just before the next one
        self._cuts_s: list[float] = []

    def process_frame(self, t_s: float, frame: Planes) -> None:
        new = thumb(t_s, frame.y)
        last = self._frames[-1] if self._frames else None
        if last and last.luma.shape != new.luma.shape:  # the stream changes its size midway
            new = thumb(t_s, cv2.resize(frame.y, last.luma.shape[::-1]))
        self._frames.append(new)
        self._changes.append(None)
        self._blends.process_frame(new)
        while self._next + WINDOW_FRAMES < len(self._frames) and (
            t_s - self._frames[self._next].t_s > WINDOW_S
        ):
            self._judge_next()

    def transitions(self) -> Transitions:
        """What was found, in order of time. Takes no more frames after that."""
        while self._next < len(self._frames):
            self._judge_next()
        gradual = self._blends.found()
        within = [any(start <= t <= end for start, end in gradual) for t in self._cuts_s]
        cuts_s = [t for t, inside in zip(self._cuts_s, within, strict=True) if not inside]
        return Transitions(cuts_s, gradual)

    def _judge_next(self) -> None:
        if self._is_cut(self._next):
            self._cuts_s.append(self._frames[self._next].t_s)
        self._next += 1
        judged_s = self._frames[self._next - 1].t_s
        while self._next > WINDOW_FRAMES + 2 and judged_s - self._frames[1].t_s > WINDOW_S:
            del self._frames[0], self._changes[0]
            self._next -= 1

    def _nearby(self, at: int) -> tuple[range, range]:
        """Places of the pairs before and after, nearest first."""
        here_s = self._frames[at].t_s
        near = [
            i
            for i in range(1, len(self._frames))
            if abs(i - at) <= WINDOW_FRAMES or abs(self._frames[i].t_s - here_s) <= WINDOW_S
        ]
        return range(at - 1, near[0] - 1, -1), range(at + 1, near[-1] + 1)

    def _change(self, at: int) -> Change:
        """From the frame before to this one."""
        change = self._changes[at]
        if change is None:
            change = self._changes[at] = self._compare(self._frames[at - 1], self._frames[at])
        return change

    def _is_cut(self, at: int) -> bool:
        before, after = self._frames[at - 1], self._frames[at]
        if self._like is None or before.t_s - self._like.t_s > LIKE_S:
            self._like = before
        if not may_differ(before, after, BACKED_AMOUNT, self._like):
            return False  # most pairs end here: no motion is worked out
        self._like = after
        left, right = self._nearby(at)
        here = self._change(at)
        if not is_spike(here, *(Side(self._change, places) for places in (left, right))):
            return False
        if self._compare.same_structure(before, after) > SAME_STRUCTURE:
            return False
        nearby = float(np.median([self._change(i).rest for i in (*left, *right)] or [0.0]))
        if self._compare.step(before, after) < min(STEP, STEP_SPIKE * (here.rest - nearby)):
            return False
        if here.area < REDRAWN_AREA and is_redrawn(before, after):
            return False
        is_text = here.area < TEXT_AREA and self._is_line(before, after)
        if is_text and not stands_out(here.rest, nearby):
            return False
        return not self._goes_back(at, left, right)

    def _is_line(self, before: Thumb, after: Thumb) -> bool:
        """Whether what changed lies in a few neighbouring rows of blocks, as text does."""
        changed = self._compare.changed(before, after)
        rows = np.flatnonzero(changed.any(axis=1))
        return bool(rows.size) and rows[-1] - rows[0] < TEXT_HEIGHT * len(changed)

    def _goes_back(self, at: int, left: range, right: range) -> bool:
        """Whether the old picture soon returns, or the new one was there just before: a flash."""
        before, after = self._frames[at - 1], self._frames[at]
        limit = self._change(at).amount / SPIKE
        steps = (1, 2, 4, 8, 16, 32)
        later = [self._frames[at + step] for step in steps if step <= len(right)]
        earlier = [self._frames[at - 1 - step] for step in steps if step <= len(left)]
        return any(self._compare(before, frame).amount < limit for frame in later) or any(
            self._compare(frame, after).amount < limit for frame in earlier
        )


@dataclass(frozen=True)
class Side:
    """The changes before or after a pair, nearest first, each worked out when it is reached."""

    change: Callable[[int], Change]
    places: range

    def __iter__(self) -> Iterator[Change]:
        return map(self.change, self.places)


def is_spike(here: Change, left: Iterable[Change], right: Iterable[Change]) -> bool:
    """Whether a change stands out from those nearby, given nearest first."""
    if here.area < MANY_A_LITTLE * here.amount:
        return False
    # the looser limit first: in steady motion the nearest change is the last that is looked at
    limit = (here.amount - BACKED_AMOUNT) / BACKED_SPIKE
    if not (is_quiet(left, limit) and is_quiet(right, limit)):
        return False
    limit = (here.amount - MIN_AMOUNT) / SPIKE
    if is_quiet(left, limit) and is_quiet(right, limit):
        return True
    others = _without_largest(list(left)) + _without_largest(list(right))
    return stands_out(here.rest, max((c.rest for c in others), default=0.0))


def is_quiet(side: Iterable[Change], limit: float) -> bool:
    """Whether no amount exceeds the limit, but for one that is not among the nearest two.

    That one may be the next cut; nearer, both would be one fast motion.
    """
    if limit < 0:
        return False
    loud = 0
    for place, change in enumerate(side):
        loud += change.amount > limit
        if loud > (place >= NEAREST):
            return False
    return True


def stands_out(rest: float, nearby: float) -> bool:
    """Whether the picture's unchanged part differs more than it does nearby; grey levels."""
    return rest >= REST_SPIKE * nearby + REST_MIN


def _without_largest(side: list[Change]) -> list[Change]:
    """Unless it is among the nearest."""
    largest = max(range(len(side)), key=lambda i: side[i].amount, default=0)
    return side if largest < NEAREST else side[:largest] + side[largest + 1 :]
