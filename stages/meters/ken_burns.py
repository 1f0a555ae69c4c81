"""Distinguishes a Ken Burns effect, a zoom or pan over a still image, from a camera in the world.

A still image under a virtual camera moves as one affine map: everywhere, exactly, smoothly, and no
object moves differently. A real camera that turns shows perspective distortion, one that travels
shows parallax, a handheld one shakes, and the world before it moves. A tripod shot through a very
long lens (under about 20 degrees) of a scene without motion shows none of these, and no measurement
can distinguish it.

Lengths are px of alignment images, which are 160 wide.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from stages.meters.alignment import (
    CELL_PX,
    NO_MOTION,
    Affine,
    AlignmentImage,
    Match,
    align,
    match,
    mean_length,
)

MAX_AGE_S = 3.0  # of the image that the newest is compared with
# The newest image that lies this motion back is compared with; if none does, the oldest.
DECISIVE_MOTION_PX = 6.0
MIN_MOTION_PX = 0.75  # less within MAX_AGE_S is no zoom and no pan
MIN_CELLS = 100  # of enough texture: below, nothing can be decided
MAX_CELL_ERROR_PX = 0.06  # standard error of a cell's own motion: below it its texture is enough
PRIOR_MOTION_PX = 0.2  # of a cell's own motion: keeps noise from making it much larger
MAX_DISTORTION = 0.025  # (half a width / focal length)²: between a lens of 18 and one of 25 degrees
MAX_JITTER_PX_S = 6.0  # a zoom in whole source pixels jitters by up to 4, a hand by 12 and more
PAUSE_S = 0.9  # after a comparison without a Ken Burns effect
MAX_GRAPHICS_SHARE = 0.25  # of the cells: a caption or logo that stays in place over the image


@dataclass(frozen=True)
class Window:
    """One affine map of a still image explains the difference between the images at both times."""

    start_s: float
    end_s: float
    distortion: float  # (half a width / focal length)² of the lens; nan if the shift is too small


@dataclass(frozen=True)
class _Sample:
    t_s: float
    image: AlignmentImage
    velocity: Affine  # px/s
    speed: float  # mean over the image, px/s


class KenBurnsDetector:
    """Compares each image with an older one, along the camera's path between them."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._next_s = 0.0

    def process_image(self, t_s: float, image: AlignmentImage, velocity: Affine) -> Window | None:
        """velocity: of the content, px/s. Returns the window that ends with this image, if any."""
        speed = mean_length(velocity.displacement(image.cell_centres))
        self._samples.append(_Sample(t_s, image, velocity, speed))
        while self._samples[0].t_s < t_s - MAX_AGE_S:
            self._samples.popleft()
        if t_s < self._next_s:
            return None
        if self._path_length_px() < MIN_MOTION_PX:
            return None
        old, path, moved_px = self._older_sample()
        if moved_px < MIN_MOTION_PX or self._has_camera_shake(old):
            return None
        window = _find_window(self._samples[old], self._samples[-1], path)
        self._next_s = t_s if window else t_s + PAUSE_S
        return window

    def _path_length_px(self) -> float:
        """An upper bound of the motion over all samples."""
        return sum((b.t_s - a.t_s) * (a.speed + b.speed) / 2 for a, b in pairwise(self._samples))

    def _older_sample(self) -> tuple[int, Affine, float]:
        """Index of the sample to compare with, the motion since, and its mean length, px."""
        points = self._samples[-1].image.cell_centres
        path, motion, moved_px = np.eye(3), NO_MOTION, 0.0
        number = len(self._samples) - 1
        while number > 0 and moved_px < DECISIVE_MOTION_PX:
            number -= 1
            path = path @ _motion_between(self._samples[number], self._samples[number + 1])
            motion = Affine(path[:2, 2], path[:2, :2] - np.eye(2))
            moved_px = mean_length(motion.displacement(points))
        return number, motion, moved_px

    def _has_camera_shake(self, since: int) -> bool:
        """Whether the second difference of the velocity is large; a smooth path has none."""
        shifts = np.array([s.velocity.shift for s in self._samples])[max(0, since - 1) :]
        if len(shifts) < 3:
            return False
        speed = float(np.hypot(*shifts.mean(axis=0)))
        jitter = float(np.median(_lengths(np.diff(shifts, 2, axis=0))))
        return jitter > MAX_JITTER_PX_S + 0.1 * speed


def _find_window(old: _Sample, last: _Sample, path: Affine) -> Window | None:
    found = align(old.image, last.image, path, steps=3)
    points = old.image.cell_centres
    moved_px = found.motion_px
    own, error_px = _own_motion(found)
    # At the edge of the frame, new content spoils a cell's surroundings.
    whole = cv2.erode(found.inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    decided = whole & (error_px < MAX_CELL_ERROR_PX)
    if decided.sum() < MIN_CELLS or moved_px < MIN_MOTION_PX:
        return None
    in_place = match(old.image, last.image, NO_MOTION)
    stays = in_place.error < 2 * found.noise
    if not _is_one_map(_lengths(own), found, decided, stays, moved_px):
        return None
    distortion = _lens_distortion(points, own, decided, found.motion.shift)
    return Window(old.t_s, last.t_s, distortion)


def _own_motion(found: Match) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns, 2) px by which each cell's surroundings deviate from the map; its standard
    error, px.

    One step of Lucas and Kanade over 3 x 3 cells. Along an edge the motion is not determined: it
    stays zero.
    """
    within = found.inside.astype(np.float32)[..., None]
    tensor, product = (
        cv2.blur(a * within, (3, 3))
        for a in (found.first.structure_tensor, found.gradient_times_difference)
    )
    # Smoothing correlates the noise of adjacent pixels: only a third of them are independent.
    variance = found.noise / (3 * CELL_PX * CELL_PX)
    prior = variance / PRIOR_MOTION_PX**2
    xx, xy, yy = tensor[..., 0] + prior, tensor[..., 1], tensor[..., 2] + prior
    determinant = xx * yy - xy * xy
    x, y = product[..., 0], product[..., 1]
    own = np.dstack((xy * y - yy * x, xy * x - xx * y)) / determinant[..., None]
    return own, np.sqrt(variance / (xx + yy))


def _is_one_map(
    own_px: np.ndarray, found: Match, decided: np.ndarray, stays: np.ndarray, moved_px: float
) -> bool:
    """Whether all cells follow the one map, except graphics that stay in place."""
    # A codec's images are off by 0.05 to 0.15 px, at edges by more.
    limit_px = min(0.45, 0.2 + 0.03 * moved_px)
    deviates = decided & (own_px > limit_px)
    # An object changes a cell by more than a pixel's misfit of its texture can.
    gradient = found.first.structure_tensor[..., 0] + found.first.structure_tensor[..., 2]
    is_new = found.inside & (found.error > 9 * found.noise + gradient)
    graphics = stays & (deviates | is_new) & decided
    if graphics.sum() > MAX_GRAPHICS_SHARE * decided.sum():
        return False
    near_graphics = cv2.dilate(graphics.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    counted = decided & ~near_graphics
    if counted.sum() < MIN_CELLS:
        return False
    return bool(
        (deviates & counted).sum() <= 0.1 * counted.sum()
        and (is_new & ~near_graphics).sum() <= max(2, 0.005 * found.inside.sum())
    )


def _lens_distortion(
    points: np.ndarray, own: np.ndarray, decided: np.ndarray, shift: np.ndarray
) -> float:
    """(half a width / focal length)², fitted to what a turning lens adds to the motion:
    xy (xy . shift) / focal²."""
    if np.hypot(*shift) < 2.5:
        return float("nan")
    xy = (points[decided] / 80).astype(np.float64)
    expected = xy * (xy @ shift)[:, None]
    # The affine fit absorbed its part of the distortion: remove the same part from the expected.
    design = np.column_stack((np.ones(len(xy)), xy))
    expected -= design @ np.linalg.lstsq(design, expected, rcond=None)[0]
    size = float((expected**2).sum())
    return float((expected * own[decided]).sum() / size) if size > 0 else float("nan")


def ken_burns_spans(windows: list[Window], min_s: float) -> list[tuple[float, float]]:
    """Joined windows of at least `min_s` that no real lens explains: (start, end), s."""
    spans: list[tuple[float, float]] = []
    group: list[Window] = []
    end = 0.0  # of the group
    for window in [*sorted(windows, key=lambda w: w.start_s), None]:
        if window and (not group or window.start_s <= end):
            group.append(window)
            end = max(end, window.end_s)
            continue
        start = group[0].start_s if group else end
        distortions = [w.distortion for w in group if not np.isnan(w.distortion)]
        is_real = bool(distortions) and float(np.median(distortions)) >= MAX_DISTORTION
        if end - start >= min_s and not is_real:
            spans.append((start, end))
        group, end = ([window], window.end_s) if window else ([], end)
    return spans


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.hypot(vectors[..., 0], vectors[..., 1])


def _motion_between(before: _Sample, after: _Sample) -> np.ndarray:
    """(3, 3) map of their mean velocity: the matrix exponential to second order."""
    seconds = after.t_s - before.t_s
    rate = np.zeros((3, 3))
    rate[:2, :2] = (before.velocity.matrix + after.velocity.matrix) / 2 * seconds
    rate[:2, 2] = (before.velocity.shift + after.velocity.shift) / 2 * seconds
    return np.eye(3) + rate + rate @ rate / 2
