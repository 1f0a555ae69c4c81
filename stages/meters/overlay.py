"""Finds graphics that stay in place while the image moves: logos, watermarks, captions."""

from __future__ import annotations

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
MIN_CHANGE_LEVELS = 6.0  # from the median image: what moves differs by more, noise by less
MIN_EDGE = 3.0  # grey levels per px of a graphic's edge, at reduced size
# How far a staying edge stands out of the motion behind it, in standard errors of the mean and in
# standard deviations of one sample: leaves in wind return to their place too.
MIN_STANDARD_ERRORS = 5.0
MIN_STANDARD_DEVIATIONS = 1.7
MIN_TEXTURE = 4.0  # grey levels per px of an edge that shows whether the image moves
MIN_MOVING_BLOCKS = 0.75  # of all blocks with edges: above it the camera moves
MIN_CHANGED_RING = 0.85  # of a graphic's surroundings, in the same sample, if the camera is static
MIN_SAMPLES = 5  # with moving surroundings: fewer prove nothing
MIN_EDGE_PX = 12  # of a graphic: fewer are chance


@dataclass
class Overlay(Meter):
    """Keeps one small image a second, a JPEG of 10 to 20 kB, and compares those of a span.

    In a shot from a tripod the world stays in place too. A graphic is there only what stays while
    everything around it changes; a lamp post before the traffic stands on ground that stays.
    """

    looks_per_s: Annotated[float, Gt(0)] = 1.0  # samples
    # samples of a span that are compared, evenly spread: bounds the time of a score
    most_looks: Annotated[int, Ge(MIN_SAMPLES)] = 15
    writes = ("overlay_share", "overlay_mask")
    after_prefilter = True

    def start(self, video: VideoInfo) -> None:
        self._next_s = 0.0
        self._times_s: list[float] = []
        self._images = ScratchFile(JPEG_QUALITY)

    def process_frame(self, t_s: float, frame: Planes) -> None:
        if t_s < self._next_s:
            return
        self._next_s = max(self._next_s + 1 / self.looks_per_s, t_s)
        self._times_s.append(t_s)
        self._images.append(frame.y)

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        mask = self.mask(start_s, end_s)
        if mask is None:
            return dict.fromkeys(self.writes)
        return {"overlay_share": float(np.mean(mask > 0)), "overlay_mask": encode_png(mask)}

    def mask(self, start_s: float, end_s: float) -> np.ndarray | None:
        """(h, w) uint8 at reduced size, 255 where a graphic stays; None: too little moved."""
        first, last = np.searchsorted(self._times_s, (start_s, end_s))
        count = min(int(last - first), self.most_looks)
        if count < MIN_SAMPLES:
            return None
        chosen = np.linspace(first, last - 1, count).round().astype(int)
        jpegs = (self._images[i] for i in chosen)
        return find_graphics([decode_image(j, "a sample", cv2.IMREAD_GRAYSCALE) for j in jpegs])


def find_graphics(samples: Sequence[np.ndarray]) -> np.ndarray | None:
    """samples: luma at different times -> (h, w) uint8, 255 where a graphic stays, or None."""
    median = _median(samples)
    moving = _camera_moves(samples, median, 2) | _camera_moves(samples, median, 4)
    changes = _changes(samples, median)
    moving_around = [
        np.ones(median.shape, np.float32)
        if moves
        else (cv2.blur(change, (15, 15)) > MIN_CHANGE_LEVELS).astype(np.float32)
        for moves, change in zip(moving, changes, strict=True)
    ]
    count = np.add.reduce(moving_around)
    if not (count >= MIN_SAMPLES).any():
        return None
    edges = _staying_edges(samples, moving_around, count, median)
    if not edges.any():
        return edges
    changed = np.array([cv2.blur(change, (5, 5)) > MIN_CHANGE_LEVELS for change in changes])
    return _surrounded_by_change(edges, changed, moving)


def _median(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Per-pixel median by odd-even sort, fifty times as fast as NumPy's; of an even count the last
    sample is dropped."""
    row = list(samples[: len(samples) - 1 + len(samples) % 2])
    for turn in range(len(row)):
        for i in range(turn % 2, len(row) - 1, 2):
            row[i], row[i + 1] = cv2.min(row[i], row[i + 1]), cv2.max(row[i], row[i + 1])
    return row[len(row) // 2]


def _gradient(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and down, (h, w) float32 each: grey levels per px, lightly smoothed."""
    smooth = cv2.GaussianBlur(luma, (3, 3), 0)
    right, down = (
        cv2.Sobel(smooth, cv2.CV_32F, *d, ksize=3, scale=0.125) for d in ((1, 0), (0, 1))
    )
    return right, down


def _changes(samples: Sequence[np.ndarray], median: np.ndarray) -> list[np.ndarray]:
    """Per sample (h, w) float32, grey levels: the smaller of its differences from the median image
    and from the sample before, because a camera that stopped elsewhere shows the same view twice.

    Each difference is limited by the one without slow shading, so that a change of exposure, which
    lifts the whole image, does not count as motion.
    """
    flat = [_without_shading(sample) for sample in samples]
    flat_median = _without_shading(median)
    changes = []
    for number, sample in enumerate(samples):
        before = number - 1 if number else 1
        others = (median, flat_median), (samples[before], flat[before])
        from_median, from_before = (
            cv2.min(
                cv2.absdiff(sample, other).astype(np.float32),
                1.5 * cv2.absdiff(flat[number], other_flat),
            )
            for other, other_flat in others
        )
        changes.append(cv2.min(from_median, from_before))
    return changes


def _without_shading(luma: np.ndarray) -> np.ndarray:
    levels = luma.astype(np.float32)
    return cv2.subtract(levels, cv2.blur(levels, (31, 31)))


def _camera_moves(samples: Sequence[np.ndarray], median: np.ndarray, by: int) -> np.ndarray:
    """(samples,) bool: most edges in most blocks differ from the median image and from the sample
    before.

    Blocks are counted, not pixels: a graphic has many strong edges, but in few places.
    by: how much smaller the images are made. Small ones show the soft edges of clouds and of what
    is out of focus.
    """
    height, width = (side // by for side in median.shape)
    images = (median, *samples)
    small = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images]
    gradients = [_gradient(image) for image in small]
    size = (max(1, width // 8), max(1, height // 8))
    moves = []
    for number, gradient in enumerate(gradients[1:]):
        strength = cv2.magnitude(*gradient)
        textured = strength > MIN_TEXTURE
        new = textured.copy()
        for other in (gradients[0], gradients[number] if number else gradients[2]):
            new &= cv2.magnitude(*map(cv2.subtract, gradient, other)) > 0.5 * strength
        edges, new_edges = (
            cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            for m in (textured, new)
        )
        has_edges = edges > 0.05
        new_blocks = (new_edges > 0.5 * edges)[has_edges]
        moves.append(bool(has_edges.any()) and float(new_blocks.mean()) > MIN_MOVING_BLOCKS)
    return np.array(moves)


def _staying_edges(
    samples: Sequence[np.ndarray],
    moving_around: list[np.ndarray],
    count: np.ndarray,
    median: np.ndarray,
) -> np.ndarray:
    """(h, w) uint8: where the gradient is that of the median image in all samples with moving
    surroundings.

    A transparent graphic adds its own gradient to the changing one behind it: the mean stands out
    of the spread.
    moving_around: per sample (h, w), 1 where the surroundings moved; count: their sum.
    """
    right, down, squares = (np.zeros(median.shape, np.float32) for _ in range(3))
    for sample, weight in zip(samples, moving_around, strict=True):
        for total, gradient in zip((right, down), _gradient(sample), strict=True):
            weighted = cv2.multiply(gradient, weight)
            cv2.add(total, weighted, dst=total)
            cv2.add(squares, cv2.multiply(weighted, gradient), dst=squares)
    divisor = np.maximum(count, 1)
    right, down = right / divisor, down / divisor
    mean = cv2.magnitude(right, down)
    off = cv2.magnitude(*map(cv2.subtract, (right, down), _gradient(median)))
    spread = np.sqrt(np.maximum(squares / divisor - mean**2, 0))
    stays = (mean > MIN_EDGE) & (mean > MIN_STANDARD_DEVIATIONS * spread)
    stays &= mean * np.sqrt(divisor) > MIN_STANDARD_ERRORS * spread
    return (stays & (off < 0.5 * mean) & (count >= MIN_SAMPLES)).astype(np.uint8)


def _surrounded_by_change(edges: np.ndarray, changed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """(h, w) uint8, 255: edges joined to whole graphics, of which the surroundings changed in
    enough samples.

    changed: (samples, h, w) bool.  moving: (samples,) bool, of the camera.
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
        # The hull: a plate's outline may be open where the background has its colour.
        hull = cv2.convexHull(contour)
        cv2.drawContours(graphic, [hull], -1, 1, -1, offset=(-left, -top))
        is_border_edge = (w > 0.95 * width and h <= 6) or (h > 0.95 * height and w <= 6)
        if is_border_edge or int(edges[box][graphic > 0].sum()) < MIN_EDGE_PX:
            continue
        ring = (cv2.dilate(graphic, _disc(7)) > 0) & (cv2.dilate(graphic, _disc(2)) == 0)
        free = moving
        if ring.any():
            free = changed[(slice(None), *box)][:, ring].mean(1) > MIN_CHANGED_RING
        if np.count_nonzero(free | moving) >= MIN_SAMPLES:
            mask[box][graphic > 0] = 255
    return mask


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
