"""How much of a frame is new: what differs from an earlier frame after motion compensation.

Computed on luma about 160 px wide, where dense optical flow (DIS) costs a sixth of what it costs at
320 px. The properties of a frame are computed on first use.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from curation.measures import median
from curation.video.planes import reduce_plane

LONG_SIDE_PX = 160  # about, of the compared frames
BLOCK_PX = 4
# Grey levels of sensor and codec noise in 8-bit video. Keeps flat blocks from dividing by zero.
NOISE_LEVELS = 4.0

# A block's difference is divided by its own contrast: matched content stays well under 1 whatever
# the light, bit rate or sharpness; unrelated content is at 1 or above. A block counts from
# MIN_RELATIVE on, and fully from MIN_RELATIVE + RELATIVE_RANGE.
MIN_RELATIVE = 0.5
RELATIVE_RANGE = 2.0
# Below this residual without motion compensation no flow is computed: compensation lowers it.
MIN_RESIDUAL_FOR_FLOW = 0.002

LIGHT_WINDOW_PX = 49  # light changes over a third of the frame, objects within it
PATCH_PX = 8  # a codec at a low bit rate loses the detail within a patch, not its mean
# Grey levels: whole rows or columns that are darker in both frames are a black border.
MAX_BORDER_LEVEL = 32
MAX_BRIGHT_SHARE_OF_BORDER = 0.02


class SmallFrame:
    """The luma of a frame, reduced. Properties that few frames need are computed on first use."""

    def __init__(self, t_s: float, luma: np.ndarray) -> None:
        self.t_s = t_s
        self.luma = luma  # (h, w) uint8, both sides multiples of BLOCK_PX

    @cached_property
    def means(self) -> np.ndarray:
        """(h/4, w/4) float32: mean of each block."""
        return block_means(self.luma)

    @cached_property
    def contrast(self) -> np.ndarray:
        """(h/4, w/4) float32: mean distance to the local mean, grey levels."""
        return block_means(cv2.absdiff(self.luma, cv2.blur(self.luma, (9, 9))))

    @cached_property
    def is_borderless(self) -> bool:
        """Whether no side has a black border."""
        bright = self.means > MAX_BORDER_LEVEL
        edges = bright[0], bright[-1], bright[:, 0], bright[:, -1]
        limit = MAX_BRIGHT_SHARE_OF_BORDER
        return all(np.count_nonzero(edge) > limit * edge.size for edge in edges)


class Change(NamedTuple):
    """How one frame differs from another after motion compensation."""

    residual: float  # share of the frame that motion does not explain, 0..1
    area: float  # share of the blocks that changed by more than their contrast, 0..1
    median: float  # difference of the median block, grey levels


def small_frame(t_s: float, luma: np.ndarray) -> SmallFrame:
    """luma: (h, w) uint8 of any size."""
    step = max(1, round(max(luma.shape) / LONG_SIDE_PX))
    height, width = (side // step // BLOCK_PX * BLOCK_PX for side in luma.shape)
    if height and width:  # a whole factor, for which there is fast code
        return SmallFrame(t_s, reduce_plane(luma[: height * step, : width * step], step))
    size = (max(BLOCK_PX, width), max(BLOCK_PX, height))
    return SmallFrame(t_s, cv2.resize(luma, size, interpolation=cv2.INTER_AREA))


def block_means(image: np.ndarray) -> np.ndarray:
    """(h, w) uint8 or float32 -> (h/4, w/4) float32.

    Halved twice: a sixth of the time of one step by four, at the cost of one rounding.
    """
    height, width = image.shape
    half = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    size = (width // BLOCK_PX, height // BLOCK_PX)
    return cv2.resize(half.astype(np.float32, copy=False), size, interpolation=cv2.INTER_AREA)


class FrameComparison:
    """Compares two frames. Holds the flow's working memory, nothing of the video."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]
        self._pair: tuple[SmallFrame, SmallFrame] | None = None  # of which the flow was last found

    def change(self, before: SmallFrame, after: SmallFrame) -> Change:
        blocks = block_means(cv2.absdiff(before.luma, after.luma))
        relative = _inside(_relative(blocks, before, after), before, after)
        if _residual(relative) >= MIN_RESIDUAL_FOR_FLOW:
            blocks = block_means(cv2.absdiff(self._compensated(before, after), after.luma))
            relative = _inside(_relative(blocks, before, after), before, after)
        area = np.count_nonzero(relative > 1) / relative.size
        return Change(_residual(relative), area, median(_inside(blocks, before, after)))

    def residual_in_equal_light(self, before: SmallFrame, after: SmallFrame) -> float:
        """The residual after motion and a smooth change of light are compensated.

        The gain that makes the means of both frames equal is estimated once for the whole frame and
        once per wide window (the ground may darken more than the sky). The smaller residual counts.
        """
        moved, new = (p.astype(np.float32) for p in (self._compensated(before, after), after.luma))
        window = (LIGHT_WINDOW_PX, LIGHT_WINDOW_PX)
        gains = (
            (new.mean() + NOISE_LEVELS) / (moved.mean() + NOISE_LEVELS),
            (cv2.blur(new, window) + NOISE_LEVELS) / (cv2.blur(moved, window) + NOISE_LEVELS),
        )
        differences = [block_means(np.abs(moved * gain - new)) for gain in gains]
        relative = (_inside(_relative(b, before, after), before, after) for b in differences)
        return min(map(_residual, relative))

    def changed_blocks(self, before: SmallFrame, after: SmallFrame) -> np.ndarray:
        """(h/4, w/4) bool: blocks that changed by more than their contrast."""
        difference = block_means(cv2.absdiff(self._compensated(before, after), after.luma))
        return difference > (before.contrast + after.contrast) / 2 + NOISE_LEVELS

    def structure_correlation(self, before: SmallFrame, after: SmallFrame) -> float:
        """Correlation of detail in the changed blocks, -1..1.

        It is near 1 where only light, sharpness or bit rate changed.
        """
        blocks = self.changed_blocks(before, after)
        pixels = np.kron(blocks, np.ones((BLOCK_PX, BLOCK_PX), bool))
        moved = self._compensated(before, after)
        # A strong change of light misleads the flow: the frame without compensation is tried too. A
        # key frame of the codec changes fine detail most: the blocks' means are tried too.
        return max(
            _correlation(_detail(moved)[pixels], _detail(after.luma)[pixels]),
            _correlation(_detail(before.luma)[pixels], _detail(after.luma)[pixels]),
            _correlation(_detail(block_means(moved))[blocks], _detail(after.means)[blocks]),
        )

    def patch_step(self, before: SmallFrame, after: SmallFrame) -> float:
        """The 99th percentile of the change of a patch's mean, grey levels; motion and a wide
        change of light are compensated.

        It is large where an object came or went; new detail alone does not change a patch's mean.
        """
        change = after.luma.astype(np.float32) - self._compensated(before, after)
        light = cv2.blur(change, (LIGHT_WINDOW_PX, LIGHT_WINDOW_PX))
        patches = cv2.blur(change, (PATCH_PX, PATCH_PX)) - light
        return float(np.percentile(_inside(np.abs(block_means(patches)), before, after), 99))

    def _compensated(self, before: SmallFrame, after: SmallFrame) -> np.ndarray:
        """(h, w) uint8: `before` with each pixel moved to where the flow finds it in `after`.

        Kept for the last pair, of which several measures are asked for in succession.
        """
        if self._pair is None or self._pair[0] is not before or self._pair[1] is not after:
            self._pair = before, after
            self._moved = self._compensate(before, after)
        return self._moved

    def _compensate(self, before: SmallFrame, after: SmallFrame) -> np.ndarray:
        if min(after.luma.shape) < 16:  # DIS needs room for its 8 px patches
            return before.luma
        flow = self._flow.calc(after.luma, before.luma, None)
        return cv2.remap(  # type: ignore[call-overload]
            before.luma,
            flow + _grid(*after.luma.shape),
            None,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )


def blocks_inside_borders(before: np.ndarray, after: np.ndarray) -> tuple[slice, slice]:
    """Blocks (rows, columns) inside the black borders of both frames; all where all is dark."""
    bright = cv2.compare(cv2.max(before, after), MAX_BORDER_LEVEL, cv2.CMP_GT)  # type: ignore[call-overload]
    slices = []
    for axis in (1, 0):
        share = cv2.reduce(bright, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
        blocks = np.flatnonzero(share > MAX_BRIGHT_SHARE_OF_BORDER * 255) // BLOCK_PX
        slices.append(slice(blocks[0], blocks[-1] + 1) if blocks.size else slice(None))
    return slices[0], slices[1]


def _relative(blocks: np.ndarray, before: SmallFrame, after: SmallFrame) -> np.ndarray:
    """(h/4, w/4) difference of each block -> the same in units of contrast."""
    return blocks / ((before.contrast + after.contrast) / 2 + NOISE_LEVELS)


def _inside(blocks: np.ndarray, before: SmallFrame, after: SmallFrame) -> np.ndarray:
    if before.is_borderless or after.is_borderless:
        return blocks
    return blocks[_inside_borders(before, after)]


@lru_cache(maxsize=1)  # the same pair is asked for several times in succession
def _inside_borders(before: SmallFrame, after: SmallFrame) -> tuple[slice, slice]:
    return blocks_inside_borders(before.luma, after.luma)


def _residual(relative: np.ndarray) -> float:
    counted = np.minimum(np.maximum(relative, MIN_RELATIVE), MIN_RELATIVE + RELATIVE_RANGE)
    return (cv2.mean(counted)[0] - MIN_RELATIVE) / RELATIVE_RANGE


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """-1..1. One grey level of noise per pixel is added, so that flat areas do not correlate."""
    power = float(np.sqrt(np.vdot(first, first) * np.vdot(second, second)))
    return float(np.vdot(first, second)) / (power + first.size + 1.0)


def _detail(luma: np.ndarray) -> np.ndarray:
    values = luma.astype(np.float32)
    return values - cv2.blur(values, (5, 5))


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> np.ndarray:
    """(h, w, 2) float32: each pixel's own x and y."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1)
