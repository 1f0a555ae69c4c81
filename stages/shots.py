"""Where takes end: hard cuts, jump cuts from an unmoved camera among them, and gradual transitions.

Each frame is compared with the one before it after dense motion compensation, block by block. What moves, pans
or shakes is explained by motion; what a cut brings is not. A cut is a change that motion can't explain, that
lasts for exactly one pair of frames, that does not go back within half a second (a flash, a glitch), that is no mere
change of light, and that leaves no pair of frames around it alike (an overlay or a slide leaves the rest as it was).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from curation.stage import Meter, Planes, VideoFacts
from stages.transitions import Blends

THUMB_SIDE = 160  # px, about: flow costs a sixth of what it costs at 320 and misses no labelled cut
BLOCK = 4  # px of the thumb: 8 px of the planes
NOISE = 4.0  # grey levels: sensor and codec noise of 8-bit video; keeps flat blocks from dividing by nothing

# A block's change is in units of its own contrast: matched content stays well under 1 whatever the light, bit rate or
# sharpness; unrelated content lies at 1 or above. The picture's change is the mean over blocks of what lies above
# MATCHED, each block counting at most FULL: 0 (all explained by motion) to 1 (nothing is).
MATCHED = 0.5
FULL = 2.0
WINDOW_S = 0.5  # "nearby": a flash, a passing hand or a whip pan is over
WINDOW_FRAMES = 6  # "nearby" at low frame rates
SPIKE = 2.0  # times the largest change nearby ...
MIN_CHANGE = 0.02  # ... and this much more: an object of two percent of the picture, gone
# Where the median block changes out of the ordinary too (a new moment has other noise, other light), less will do:
REST_SPIKE, REST_MIN = 2.0, 0.5  # times the rest's change nearby, and so many grey levels more
BACKED_SPIKE, BACKED_MIN = 1.4, 0.01
STILL_CHANGE = 0.002  # below it without motion compensation no flow is computed: nothing can come of it

SAME_STRUCTURE = 0.6  # correlation of detail in the changed blocks: above it only light or sharpness changed
TEXT_AREA, TEXT_HEIGHT = 0.12, 0.2  # a line of text or a caption takes no more of the picture
FLAT_SHARE = 0.5  # of the picture at one level is drawn, not filmed: while that level stays, it is redrawn


@dataclass(frozen=True)
class Transitions:
    """cuts_s: time of the first frame after each hard cut.  gradual: (start_s, end_s) of each slow one."""

    cuts_s: list[float]
    gradual: list[tuple[float, float]]


class Thumb(NamedTuple):
    """A frame as the detector keeps it."""

    t_s: float
    luma: np.ndarray  # (h, w) uint8, long side about 160, both sides multiples of BLOCK
    contrast: np.ndarray  # (h/4, w/4) float32, mean distance to the local mean, grey levels


class Change(NamedTuple):
    """How one frame differs from another after motion compensation."""

    amount: float  # share of the picture that motion does not explain, 0..1
    area: float  # share of blocks that changed by more than their contrast
    rest: float  # median block's residual, grey levels


NO_CHANGE = Change(0.0, 0.0, 0.0)


def thumb(t_s: float, luma: np.ndarray) -> Thumb:
    """luma: (h, w) uint8 of any size."""
    step = max(1, round(max(luma.shape) / THUMB_SIDE))
    height, width = (max(BLOCK, side // step // BLOCK * BLOCK) for side in luma.shape)
    if min(luma.shape) >= BLOCK * step:
        small = cv2.resize(
            luma[: height * step, : width * step], (width, height), interpolation=cv2.INTER_AREA
        )
    else:  # thinner than one block: stretched, so that everything below is defined
        small = cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA)
    detail = cv2.absdiff(small, cv2.blur(small, (9, 9)))
    return Thumb(t_s, small, block_means(detail))


def block_means(picture: np.ndarray) -> np.ndarray:
    """(h, w) -> (h/4, w/4) float32."""
    height, width = picture.shape
    size = (width // BLOCK, height // BLOCK)
    return cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)


class Compare:
    """Change between two thumbs. Holds the flow's working memory, nothing of the video."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def __call__(self, before: Thumb, after: Thumb) -> Change:
        raw = change(cv2.absdiff(before.luma, after.luma), before, after)
        if raw.amount < STILL_CHANGE:
            return raw
        return change(cv2.absdiff(self.moved(before, after), after.luma), before, after)

    def moved(self, before: Thumb, after: Thumb) -> np.ndarray:
        """`before`, each pixel moved to where the flow finds it in `after`: (h, w) uint8."""
        if min(after.luma.shape) < 16:  # DIS needs a few 8 px patches
            return before.luma
        flow = self._flow.calc(after.luma, before.luma, None)
        grid = _grid(*after.luma.shape)
        return cv2.remap(
            before.luma, flow + grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )

    def changed(self, before: Thumb, after: Thumb) -> np.ndarray:
        """(h/4, w/4) bool: blocks that changed by more than their contrast."""
        residual = block_means(cv2.absdiff(self.moved(before, after), after.luma))
        return residual > (before.contrast + after.contrast) / 2 + NOISE

    def is_band(self, before: Thumb, after: Thumb) -> bool:
        """Whether what changed lies in a few neighbouring rows, as a line of text does."""
        rows = np.flatnonzero(self.changed(before, after).any(axis=1))
        return bool(rows.size) and rows[-1] - rows[0] + 1 <= TEXT_HEIGHT * before.contrast.shape[0]

    def same_structure(self, before: Thumb, after: Thumb) -> float:
        """Correlation of fine detail in the blocks that changed, -1..1: near 1 where only the light changed."""
        moved = self.moved(before, after)
        mask = np.kron(self.changed(before, after), np.ones((BLOCK, BLOCK), bool))
        if not mask.any():
            return 0.0
        details = [_detail(picture)[mask] for picture in (moved, after.luma)]
        power = float(np.sqrt(np.sum(details[0] ** 2) * np.sum(details[1] ** 2)))
        # noise in flat areas is no structure: it adds to the denominator
        return float(np.sum(details[0] * details[1])) / (power + mask.sum())


def change(residual: np.ndarray, before: Thumb, after: Thumb) -> Change:
    """residual: (h, w) uint8, absolute difference of the two."""
    rows, columns = _lit(before.luma, after.luma)
    blocks = block_means(residual)[rows, columns]
    contrast = (before.contrast + after.contrast)[rows, columns] / 2
    relative = blocks / (contrast + NOISE)
    amount = float(np.mean(np.clip((relative - MATCHED) / FULL, 0, 1)))
    return Change(amount, float(np.mean(relative > 1)), float(np.median(blocks)))


def _pixels(blocks: slice) -> slice:
    return blocks if blocks.start is None else slice(blocks.start * BLOCK, blocks.stop * BLOCK)


def _detail(picture: np.ndarray) -> np.ndarray:
    values = picture.astype(np.float32)
    return values - cv2.blur(values, (5, 5))


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1)


def _lit(before: np.ndarray, after: np.ndarray) -> tuple[slice, slice]:
    """The blocks inside black borders that both frames share; everything where all is black."""
    lit = cv2.max(before, after) > 32
    slices = []
    for axis in (1, 0):
        blocks = np.flatnonzero(lit.mean(axis=axis) > 0.02) // BLOCK
        slices.append(slice(blocks[0], blocks[-1] + 1) if blocks.size else slice(None))
    return slices[0], slices[1]


@dataclass
class Shots(Meter):
    """Finds the cuts and slow transitions of a video in the one decode pass; ask `transitions()` after the last frame."""

    _ring: deque[Thumb] = field(default_factory=deque, init=False, repr=False)
    _changes: list[Change] = field(default_factory=list, init=False, repr=False)
    _times_s: list[float] = field(default_factory=list, init=False, repr=False)
    _cuts_s: list[float] = field(default_factory=list, init=False, repr=False)

    def start(self, video: VideoFacts) -> None:
        self._compare = Compare()
        self._blends = Blends()
        self._ring, self._changes, self._times_s, self._cuts_s = deque(), [], [], []
        self._judged = 1  # number of the next pair to judge; pair i is frames i-1 and i

    def see(self, t_s: float, frame: Planes) -> None:
        new = thumb(t_s, frame.y)
        if self._ring and self._ring[-1].luma.shape != new.luma.shape:  # the picture's size changed
            resized = cv2.resize(new.luma, self._ring[-1].luma.shape[::-1])
            new = thumb(t_s, resized)
        self._changes.append(self._compare(self._ring[-1], new) if self._ring else NO_CHANGE)
        self._ring.append(new)
        self._times_s.append(t_s)
        self._blends.see(t_s, new.luma)
        while self._judged < len(self._times_s) and self._past(self._judged, t_s):
            self._judge(self._judged)
            self._judged += 1
        self._forget()

    def transitions(self) -> Transitions:
        """What was found, in order of time."""
        while self._judged < len(self._times_s):
            self._judge(self._judged)
            self._judged += 1
        return Transitions(list(self._cuts_s), self._blends.found(self._cuts_s))

    def score(self, start_s: float, end_s: float) -> dict[str, float | None]:
        return {}  # it says where takes end, nothing about a clip

    def _past(self, pair: int, now_s: float) -> bool:
        """Whether all that lies near the pair has been seen."""
        enough = len(self._times_s) - 1 - pair >= WINDOW_FRAMES
        return enough and now_s - self._times_s[pair] >= WINDOW_S

    def _forget(self) -> None:
        """Keeps what judging the next pair needs: frames and pairs near it on the left, all on the right."""
        first = len(self._times_s) - len(self._ring)
        while first < self._judged - 1 - WINDOW_FRAMES and (
            self._times_s[first] < self._times_s[self._judged - 1] - WINDOW_S
        ):
            self._ring.popleft()
            first += 1

    def _near(self, pair: int) -> tuple[range, range]:
        """Numbers of the pairs before and after that are nearby."""
        first = last = pair
        while first > 1 and self._is_near(pair, first - 1):
            first -= 1
        while last < len(self._times_s) - 1 and self._is_near(pair, last + 1):
            last += 1
        return range(first, pair), range(pair + 1, last + 1)

    def _is_near(self, pair: int, other: int) -> bool:
        apart_s = abs(self._times_s[other] - self._times_s[pair])
        return abs(other - pair) <= WINDOW_FRAMES or apart_s <= WINDOW_S

    def _judge(self, pair: int) -> None:
        near = self._near(pair)
        left, right = ([self._changes[p] for p in side] for side in near)
        here = self._changes[pair]
        if not is_spike(here, left, right):
            return
        offset = len(self._times_s) - len(self._ring)
        before, after = self._ring[pair - 1 - offset], self._ring[pair - offset]
        if self._compare.same_structure(before, after) > SAME_STRUCTURE:
            return
        if is_redrawn(before, after) and here.area < 0.5:
            return
        rest = float(np.median([c.rest for c in left + right])) if left or right else 0.0
        if here.area < TEXT_AREA and not stands_out(here.rest, rest) and self._compare.is_band(before, after):
            return
        if not self._goes_back(pair, *near):
            self._cuts_s.append(self._times_s[pair])

    def _goes_back(self, pair: int, left: range, right: range) -> bool:
        """Whether the picture is soon, or was just now, the same: a flash, a glitch."""
        offset = len(self._times_s) - len(self._ring)
        before, after = self._ring[pair - 1 - offset], self._ring[pair - offset]
        limit = self._changes[pair].amount / SPIKE
        for step in (1, 2, 4, 8, 16, 32):
            if step <= len(right):
                later = self._ring[pair + step - offset]
                if self._compare(before, later).amount < limit:
                    return True
            if step <= len(left):
                earlier = self._ring[pair - 1 - step - offset]
                if self._compare(earlier, after).amount < limit:
                    return True
        return False


def is_redrawn(before: Thumb, after: Thumb) -> bool:
    """Whether both are drawn on the same flat ground: slides, terminals, line animation."""
    rows, columns = _lit(before.luma, after.luma)
    levels = []
    for frame in (before, after):
        picture = frame.luma[_pixels(rows), _pixels(columns)]
        counts = np.bincount(picture.ravel(), minlength=256)
        level = int(counts.argmax())
        if counts[max(0, level - 1) : level + 2].sum() < FLAT_SHARE * picture.size:
            return False
        levels.append(level)
    return abs(levels[0] - levels[1]) <= 2


def is_spike(here: Change, left: list[Change], right: list[Change]) -> bool:
    """Whether the change stands out from the pairs nearby (in order of time)."""
    others = _without_largest(left[::-1]) + _without_largest(right)
    amount = max((c.amount for c in others), default=0.0)
    if here.amount >= SPIKE * amount + MIN_CHANGE:
        return True
    rest = max((c.rest for c in others), default=0.0)
    return here.amount >= BACKED_SPIKE * amount + BACKED_MIN and stands_out(here.rest, rest)


def stands_out(rest: float, nearby: float) -> bool:
    return rest >= REST_SPIKE * nearby + REST_MIN


def _without_largest(side: list[Change]) -> list[Change]:
    """side: nearest first. The largest may be the next cut: it is left out unless it touches this change."""
    largest = max(range(len(side)), key=lambda i: side[i].amount, default=0)
    if largest < 2:
        return side
    return side[:largest] + side[largest + 1 :]
