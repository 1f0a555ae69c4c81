"""Finds static graphics over a moving image: logos, watermarks, burnt-in captions."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge, Gt

from curation.images import decode_image, encode_png
from curation.video.frames import Planes, VideoInfo
from stages.meters.meter import Meter
from stages.meters.scratch_file import ScratchFile

JPEG_QUALITY = 92
MIN_CHANGE_LEVELS = 6.0  # from the median image: motion changes more, noise less
MIN_GRAPHIC_GRADIENT = 3.0  # grey levels per px of a graphic's edge, at reduced size
# The mean gradient of a graphic's edge, in standard errors of the mean and in standard deviations
# of one sample. The second bound excludes leaves in the wind, which return to the same place.
MIN_STANDARD_ERRORS = 5.0
MIN_STANDARD_DEVIATIONS = 1.7
MIN_SCENE_GRADIENT = 4.0  # grey levels per px of an edge that shows whether the camera moves
MIN_MOVING_BLOCK_SHARE = 0.75  # of the blocks with edges: above it the camera moves
MIN_CHANGED_RING_SHARE = 0.85  # of the ring around a graphic, in a sample of a static camera
MIN_SAMPLES = 5  # with moving surroundings: fewer are no evidence
MIN_EDGE_PX = 12  # pixels of edges in a graphic: fewer may be chance


@dataclass
class Overlay(Meter):
    """Stores one small image a second, a JPEG of 10 to 20 kB, and compares those of a span.

    If the camera is static, so is the scene. Then an edge belongs to a graphic only if everything
    around it changes: a lamp post in front of traffic is none, because its ground is static too.
    """

    samples_per_s: Annotated[float, Gt(0)] = 1.0
    # number of evenly spaced samples of a span that are compared: limits the time of a score
    max_samples: Annotated[int, Ge(MIN_SAMPLES)] = 15
    writes = ("overlay_share", "overlay_mask")
    after_prefilter = True

    def start(self, video: VideoInfo) -> None:
        self._next_s = 0.0
        self._times_s: list[float] = []
        self._images = ScratchFile(JPEG_QUALITY)

    def process_frame(self, t_s: float, frame: Planes) -> None:
        if t_s < self._next_s:
            return
        self._next_s = max(self._next_s + 1 / self.samples_per_s, t_s)
        self._times_s.append(t_s)
        self._images.append(frame.y)

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        mask = self.mask(start_s, end_s)
        if mask is None:
            return dict.fromkeys(self.writes)
        return {"overlay_share": float(np.mean(mask > 0)), "overlay_mask": encode_png(mask)}

    def mask(self, start_s: float, end_s: float) -> np.ndarray | None:
        """(h, w) uint8 at reduced size, 255 in graphics; None if too little moves."""
        first, last = (bisect.bisect_left(self._times_s, t_s) for t_s in (start_s, end_s))
        count = min(last - first, self.max_samples)
        if count < MIN_SAMPLES:
            return None
        chosen = np.linspace(first, last - 1, count).round().astype(int)
        jpegs = (self._images[i] for i in chosen)
        return find_graphics([decode_image(j, "a sample", cv2.IMREAD_GRAYSCALE) for j in jpegs])


def find_graphics(samples: Sequence[np.ndarray]) -> np.ndarray | None:
    """samples: luma at different times -> (h, w) uint8, 255 in graphics, or None."""
    median = _median(samples)
    moving = _camera_moves(samples, median, 2) | _camera_moves(samples, median, 4)
    changes = _changes(samples, median)
    surroundings_move = [
        np.ones(median.shape, np.float32)
        if moves
        else (cv2.blur(change, (15, 15)) > MIN_CHANGE_LEVELS).astype(np.float32)
        for moves, change in zip(moving, changes, strict=True)
    ]
    num_moving = np.add.reduce(surroundings_move)
    if not (num_moving >= MIN_SAMPLES).any():
        return None
    edges = _static_edges(samples, surroundings_move, num_moving, median)
    if not edges.any():
        return edges
    changed = np.array([cv2.blur(change, (5, 5)) > MIN_CHANGE_LEVELS for change in changes])
    return _surrounded_by_change(edges, changed, moving)


def _median(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Per-pixel median by odd-even sort, fifty times as fast as NumPy's. The last sample of an even
    number is dropped."""
    images = list(samples[: len(samples) - 1 + len(samples) % 2])
    for step in range(len(images)):
        for i in range(step % 2, len(images) - 1, 2):
            one, two = images[i], images[i + 1]
            images[i], images[i + 1] = cv2.min(one, two), cv2.max(one, two)
    return images[len(images) // 2]


def _gradient(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradient to the right and down, (h, w) float32 each: grey levels per px, smoothed."""
    smooth = cv2.GaussianBlur(luma, (3, 3), 0)
    right, down = (
        cv2.Sobel(smooth, cv2.CV_32F, *d, ksize=3, scale=0.125) for d in ((1, 0), (0, 1))
    )
    return right, down


def _changes(samples: Sequence[np.ndarray], median: np.ndarray) -> list[np.ndarray]:
    """Per sample (h, w) float32, grey levels: the smaller of its differences from the median image
    and from the previous sample. After a pan the view may be static and differ from the median.

    Each difference is limited by that of the images without low frequencies, so that a change of
    exposure does not count as motion.
    """
    flat = [_without_shading(sample) for sample in samples]
    flat_median = _without_shading(median)
    changes = []
    for number, sample in enumerate(samples):
        previous = number - 1 if number else 1
        others = (median, flat_median), (samples[previous], flat[previous])
        from_median, from_previous = (
            cv2.min(
                cv2.absdiff(sample, other).astype(np.float32),
                1.5 * cv2.absdiff(flat[number], other_flat),
            )
            for other, other_flat in others
        )
        changes.append(cv2.min(from_median, from_previous))
    return changes


def _without_shading(luma: np.ndarray) -> np.ndarray:
    levels = luma.astype(np.float32)
    return cv2.subtract(levels, cv2.blur(levels, (31, 31)))


def _camera_moves(samples: Sequence[np.ndarray], median: np.ndarray, divisor: int) -> np.ndarray:
    """(samples,) bool: most edges in most blocks differ from the median image and from the previous
    sample.

    Blocks are counted, not pixels: a graphic has many strong edges, but in few places.
    divisor: of the image size. Soft edges, of clouds or out of focus, are found in small images.
    """
    height, width = (side // divisor for side in median.shape)
    images = (median, *samples)
    small = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images]
    gradients = [_gradient(image) for image in small]
    size = (max(1, width // 8), max(1, height // 8))
    moves = []
    for number, gradient in enumerate(gradients[1:]):
        strength = cv2.magnitude(*gradient)
        is_edge = strength > MIN_SCENE_GRADIENT
        is_new = is_edge.copy()
        for other in (gradients[0], gradients[number] if number else gradients[2]):
            is_new &= cv2.magnitude(*map(cv2.subtract, gradient, other)) > 0.5 * strength
        edges, new_edges = (
            cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            for m in (is_edge, is_new)
        )
        has_edges = edges > 0.05
        new_blocks = (new_edges > 0.5 * edges)[has_edges]
        moves.append(bool(has_edges.any()) and float(new_blocks.mean()) > MIN_MOVING_BLOCK_SHARE)
    return np.array(moves)


def _static_edges(
    samples: Sequence[np.ndarray],
    surroundings_move: list[np.ndarray],
    num_moving: np.ndarray,
    median: np.ndarray,
) -> np.ndarray:
    """(h, w) uint8: 1 where the mean gradient of the samples with moving surroundings is large
    compared with its spread, and near that of the median image.

    A transparent graphic adds its own gradient to the changing one behind it.
    surroundings_move: per sample (h, w), 1 where the surroundings move; num_moving: their sum.
    """
    right, down, squares = (np.zeros(median.shape, np.float32) for _ in range(3))
    for sample, weight in zip(samples, surroundings_move, strict=True):
        for total, gradient in zip((right, down), _gradient(sample), strict=True):
            weighted = cv2.multiply(gradient, weight)
            cv2.add(total, weighted, dst=total)
            cv2.add(squares, cv2.multiply(weighted, gradient), dst=squares)
    divisor = np.maximum(num_moving, 1)
    right, down = right / divisor, down / divisor
    mean = cv2.magnitude(right, down)
    deviation = cv2.magnitude(*map(cv2.subtract, (right, down), _gradient(median)))
    spread = np.sqrt(np.maximum(squares / divisor - mean**2, 0))
    is_static = (mean > MIN_GRAPHIC_GRADIENT) & (mean > MIN_STANDARD_DEVIATIONS * spread)
    is_static &= mean * np.sqrt(divisor) > MIN_STANDARD_ERRORS * spread
    is_static &= (deviation < 0.5 * mean) & (num_moving >= MIN_SAMPLES)
    return is_static.astype(np.uint8)


def _surrounded_by_change(edges: np.ndarray, changed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """(h, w) uint8, 255 in graphics: edges joined to shapes whose surroundings change in enough
    samples.

    changed: (samples, h, w) bool.  moving: (samples,) bool, whether the camera moves.
    """
    height, width = edges.shape
    padded = cv2.copyMakeBorder(edges, 8, 8, 8, 8, cv2.BORDER_CONSTANT)
    joined = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(3))[8:-8, 8:-8]
    mask = np.zeros((height, width), np.uint8)
    for contour in cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        left, top = max(0, x - 8), max(0, y - 8)
        box = (slice(top, y + h + 8), slice(left, x + w + 8))
        graphic = np.zeros_like(edges[box])
        # The convex hull, because an outline is open where the background has the same colour.
        hull = cv2.convexHull(contour)
        cv2.drawContours(graphic, [hull], -1, 1, -1, offset=(-left, -top))
        is_border_edge = (w > 0.95 * width and h <= 6) or (h > 0.95 * height and w <= 6)
        if is_border_edge or int(edges[box][graphic > 0].sum()) < MIN_EDGE_PX:
            continue
        ring = (cv2.dilate(graphic, _disc(7)) > 0) & (cv2.dilate(graphic, _disc(2)) == 0)
        ring_changes = moving
        if ring.any():
            ring_changes = changed[(slice(None), *box)][:, ring].mean(1) > MIN_CHANGED_RING_SHARE
        if np.count_nonzero(ring_changes | moving) >= MIN_SAMPLES:
            mask[box][graphic > 0] = 255
    return mask


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
