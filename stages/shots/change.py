"""How much of a picture is new: what differs between two frames after motion is taken out.

Measured on thumbs of the luma, about 160 px wide: dense optical flow (DIS) there costs a sixth of
what it costs at 320 px. Still, most pairs of frames are too alike for a cut, and nothing but
`may_differ` is ever computed of them: thumbs and changes are worked out where they are asked for.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from curation.measures import median

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

LIGHT_SIDE = 49  # px of the thumb: light changes over a third of the picture, things within it
PATCH_SIDE = 8  # px of the thumb: what a codec gets wrong is the detail within it, not its mean
DARK = 32  # grey levels: what is darker in both frames over whole rows or columns is a border
# of the picture, and inside its borders, at one level: drawn, not filmed
FLAT_SHARE, FLAT_INSIDE = 0.5, 0.3


class Thumb:
    """A frame as the detectors keep it. What only some frames are asked for is made when asked."""

    def __init__(self, t_s: float, luma: np.ndarray) -> None:
        self.t_s = t_s
        self.luma = luma  # (h, w) uint8, both sides multiples of BLOCK

    @cached_property
    def means(self) -> np.ndarray:
        """(h/4, w/4) float32, mean of each block."""
        return block_means(self.luma)

    @cached_property
    def contrast(self) -> np.ndarray:
        """(h/4, w/4) float32, mean distance to the local mean, grey levels."""
        return block_means(cv2.absdiff(self.luma, cv2.blur(self.luma, (9, 9))))

    @cached_property
    def least_contrast(self) -> np.ndarray:
        """(h/4, w/4) float32: what `contrast` of a pair has at least, a block's motion away."""
        return cv2.erode(self.contrast, np.ones((3, 3), np.uint8)) / 2 + NOISE

    @cached_property
    def borderless(self) -> bool:
        """Whether the outermost blocks of all four sides are lit."""
        bright = self.means > DARK
        edges = bright[0], bright[-1], bright[:, 0], bright[:, -1]
        return all(np.count_nonzero(edge) > 0.02 * edge.size for edge in edges)


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
    return Thumb(t_s, cv2.resize(luma, size, interpolation=cv2.INTER_AREA))


def block_means(picture: np.ndarray) -> np.ndarray:
    """(h, w) uint8 or float32 -> (h/4, w/4) float32.

    Halved twice: a sixth of the time of one step by four, for a rounding between the two.
    """
    height, width = picture.shape
    half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    size = (width // BLOCK, height // BLOCK)
    return cv2.resize(half.astype(np.float32, copy=False), size, interpolation=cv2.INTER_AREA)


def may_differ(before: Thumb, after: Thumb, amount: float, like: Thumb) -> bool:
    """A cheap look at a pair: whether its change can be that large an amount at all.

    No motion is taken out here. Taking it out can only lessen the change, but for where the flow
    goes astray.  like: a frame before the pair that looks much like `before`: whatever comes after
    it, the pair has half its contrast, and most pairs end there.
    """
    blocks = block_means(cv2.absdiff(before.luma, after.luma))
    # black borders count for nothing: a quarter of the picture at least lies inside
    lit_share = 1.0 if like.borderless else 0.25
    if _amount(blocks / like.least_contrast) < amount * lit_share:
        return False
    return _amount(_inside(_relative(blocks, before, after), before, after)) >= amount


class Compare:
    """Changes between two thumbs. Holds the flow's working memory, nothing of the video."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]

    def __call__(self, before: Thumb, after: Thumb) -> Change:
        blocks = block_means(cv2.absdiff(before.luma, after.luma))
        relative = _inside(_relative(blocks, before, after), before, after)
        if _amount(relative) >= STILL:
            blocks = block_means(cv2.absdiff(self._moved(before, after), after.luma))
            relative = _inside(_relative(blocks, before, after), before, after)
        changed = np.count_nonzero(relative > 1) / relative.size
        rest = median(_inside(blocks, before, after))
        return Change(_amount(relative), changed, rest)

    def relit(self, before: Thumb, after: Thumb) -> float:
        """The amount of change when motion and then a smooth change of light are taken out.

        The light is what makes the means of the two pictures equal, be it over the whole or over
        wide parts: it may go down on the ground more than in the sky. What explains more counts.
        """
        moved, new = (p.astype(np.float32) for p in (self._moved(before, after), after.luma))
        wide = (LIGHT_SIDE, LIGHT_SIDE)
        lights = (
            (new.mean() + NOISE) / (moved.mean() + NOISE),
            (cv2.blur(new, wide) + NOISE) / (cv2.blur(moved, wide) + NOISE),
        )
        left = [block_means(np.abs(moved * light - new)) for light in lights]
        relative = (_inside(_relative(blocks, before, after), before, after) for blocks in left)
        return min(map(_amount, relative))

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

    def step(self, before: Thumb, after: Thumb) -> float:
        """Grey levels by which the brightness of whole patches changes, in the hundredth of the
        picture where it changes most; motion and a wide change of light taken out.

        Where a thing went or came it is large; new detail alone leaves a patch's mean as it was.
        """
        change = after.luma.astype(np.float32) - self._moved(before, after)
        patches = cv2.blur(change, (PATCH_SIDE, PATCH_SIDE)) - cv2.blur(change, (LIGHT_SIDE,) * 2)
        return float(np.percentile(_inside(np.abs(block_means(patches)), before, after), 99))

    def _moved(self, before: Thumb, after: Thumb) -> np.ndarray:
        """`before`, each pixel moved to where the flow finds it in `after`: (h, w) uint8."""
        if min(after.luma.shape) < 16:  # DIS needs room for its 8 px patches
            return before.luma
        where = self._flow.calc(after.luma, before.luma, None) + _grid(*after.luma.shape)
        return cv2.remap(  # type: ignore[call-overload]
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
    bright = cv2.compare(cv2.max(before, after), DARK, cv2.CMP_GT)  # type: ignore[call-overload]
    slices = []
    for axis in (1, 0):
        share = cv2.reduce(bright, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
        blocks = np.flatnonzero(share > 0.02 * 255) // BLOCK
        slices.append(slice(blocks[0], blocks[-1] + 1) if blocks.size else slice(None))
    return slices[0], slices[1]


def _relative(blocks: np.ndarray, before: Thumb, after: Thumb) -> np.ndarray:
    """(h/4, w/4) residual of each block -> the same in units of contrast."""
    return blocks / ((before.contrast + after.contrast) / 2 + NOISE)


def _inside(blocks: np.ndarray, before: Thumb, after: Thumb) -> np.ndarray:
    if before.borderless or after.borderless:
        return blocks
    return blocks[_lit(before, after)]


@lru_cache(maxsize=1)  # of a pair that is asked for several times, one after the other
def _lit(before: Thumb, after: Thumb) -> tuple[slice, slice]:
    return lit(before.luma, after.luma)


def _amount(relative: np.ndarray) -> float:
    counted = np.minimum(np.maximum(relative, MATCHED), MATCHED + RANGE)
    return (cv2.mean(counted)[0] - MATCHED) / RANGE


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
