"""How much of a picture is new: what differs between two frames after motion is taken out.

Measured on thumbs of the luma, about 160 px wide. Dense optical flow (DIS) there costs a sixth of
what it costs at 320 px, so it can run on every pair of frames.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

THUMB_SIDE = 160  # px, about
BLOCK = 4  # px of the thumb
# grey levels: sensor and codec noise of 8-bit video; keeps flat blocks from dividing by nothing
NOISE = 4.0

# A block's change is in units of its own contrast: matched content stays well under 1 whatever the
# light, bit rate or sharpness; unrelated content lies at 1 or above. A block counts from MATCHED
# on, and in full MATCHED + RANGE.
MATCHED = 0.5
RANGE = 2.0
# an amount without any motion taken out below which no flow is computed: nothing can come of it
STILL = 0.002

DARK = 32  # grey levels: what is darker in both frames over whole rows or columns is a border
# of the picture, and inside its borders, at one level: drawn, not filmed
FLAT_SHARE, FLAT_INSIDE = 0.5, 0.3


class Thumb(NamedTuple):
    """A frame as the detectors keep it."""

    t_s: float
    luma: np.ndarray  # (h, w) uint8, both sides multiples of BLOCK
    means: np.ndarray  # (h/4, w/4) float32, mean of each block
    contrast: np.ndarray  # (h/4, w/4) float32, mean distance to the local mean, grey levels


class Change(NamedTuple):
    """How one frame differs from another after motion compensation."""

    amount: float  # share of the picture that motion does not explain, 0..1
    area: float  # share of the blocks that changed by more than their contrast, 0..1
    rest: float  # median block's difference, grey levels: what the unchanged part does


NO_CHANGE = Change(0.0, 0.0, 0.0)


def thumb(t_s: float, luma: np.ndarray) -> Thumb:
    """luma: (h, w) uint8 of any size."""
    step = max(1, round(max(luma.shape) / THUMB_SIDE))
    height, width = (side // step // BLOCK * BLOCK for side in luma.shape)
    if height and width:  # a whole factor: the fast way
        luma = luma[: height * step, : width * step]
    size = (max(BLOCK, width), max(BLOCK, height))
    small = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
    detail = cv2.absdiff(small, cv2.blur(small, (9, 9)))
    return Thumb(t_s, small, block_means(small), block_means(detail))


def block_means(picture: np.ndarray) -> np.ndarray:
    """(h, w) uint8 -> (h/4, w/4) float32."""
    height, width = picture.shape
    size = (width // BLOCK, height // BLOCK)
    return cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)


class Compare:
    """Changes between two thumbs. Holds the flow's working memory, nothing of the video."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def __call__(self, before: Thumb, after: Thumb) -> Change:
        raw = _change(cv2.absdiff(before.luma, after.luma), before, after)
        if raw.amount < STILL:
            return raw
        return _change(cv2.absdiff(self._moved(before, after), after.luma), before, after)

    def changed(self, before: Thumb, after: Thumb) -> np.ndarray:
        """(h/4, w/4) bool: blocks that changed by more than their contrast."""
        residual = block_means(cv2.absdiff(self._moved(before, after), after.luma))
        return residual > (before.contrast + after.contrast) / 2 + NOISE

    def same_structure(self, before: Thumb, after: Thumb) -> float:
        """Correlation of detail in the changed blocks, -1..1.

        It is near 1 where only light, sharpness or bit rate changed.
        """
        blocks = self.changed(before, after)
        pixels = np.kron(blocks, np.ones((BLOCK, BLOCK), bool))
        moved = self._moved(before, after)
        # a strong change of light misleads the flow: the unmoved picture is tried too; a codec that
        # starts anew changes fine detail most: the blocks' means are tried too
        return max(
            _correlation(_detail(moved)[pixels], _detail(after.luma)[pixels]),
            _correlation(_detail(before.luma)[pixels], _detail(after.luma)[pixels]),
            _correlation(_detail(block_means(moved))[blocks], _detail(after.means)[blocks]),
        )

    def _moved(self, before: Thumb, after: Thumb) -> np.ndarray:
        """`before`, each pixel moved to where the flow finds it in `after`: (h, w) uint8."""
        if min(after.luma.shape) < 16:  # DIS needs room for its 8 px patches
            return before.luma
        where = self._flow.calc(after.luma, before.luma, None) + _grid(*after.luma.shape)
        return cv2.remap(
            before.luma, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )


def is_redrawn(before: Thumb, after: Thumb) -> bool:
    """Whether both are drawn on one flat ground that stays: slides, terminals, line animation."""
    inside = tuple(_pixels(blocks) for blocks in lit(before.luma, after.luma))
    levels = []
    for picture in (before.luma, after.luma):
        level = int(np.bincount(picture.ravel(), minlength=256).argmax())
        ground = np.abs(picture.astype(np.int16) - level) <= 1
        # a black border may be most of the picture, but lies outside
        if ground.mean() < FLAT_SHARE or ground[inside].mean() < FLAT_INSIDE:
            return False
        levels.append(level)
    return abs(levels[0] - levels[1]) <= 2


def lit(before: np.ndarray, after: np.ndarray) -> tuple[slice, slice]:
    """Blocks (rows, columns) inside the black borders that both share; all where all is dark."""
    bright = cv2.compare(cv2.max(before, after), DARK, cv2.CMP_GT)
    slices = []
    for axis in (1, 0):
        share = cv2.reduce(bright, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
        blocks = np.flatnonzero(share > 0.02 * 255) // BLOCK
        slices.append(slice(blocks[0], blocks[-1] + 1) if blocks.size else slice(None))
    return slices[0], slices[1]


def _change(residual: np.ndarray, before: Thumb, after: Thumb) -> Change:
    """residual: (h, w) uint8, absolute difference."""
    area = lit(before.luma, after.luma)
    blocks = block_means(residual)[area]
    relative = blocks / ((before.contrast + after.contrast)[area] / 2 + NOISE)
    amount = np.clip((relative - MATCHED) / RANGE, 0, 1).mean()
    return Change(float(amount), float((relative > 1).mean()), float(np.median(blocks)))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """-1..1. One grey level of noise per pixel is added: flat areas are no structure."""
    power = float(np.sqrt(np.vdot(first, first) * np.vdot(second, second)))
    return float(np.vdot(first, second)) / (power + first.size + 1.0)


def _pixels(blocks: slice) -> slice:
    return blocks if blocks.start is None else slice(blocks.start * BLOCK, blocks.stop * BLOCK)


def _detail(luma: np.ndarray) -> np.ndarray:
    values = luma.astype(np.float32)
    return values - cv2.blur(values, (5, 5))


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> np.ndarray:
    """(h, w, 2) float32: each pixel's own x and y."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1)
