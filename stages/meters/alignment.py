"""Estimates the motion of a whole frame: optical flow gives a start, alignment makes it precise.

Alignment finds the affine map that leaves the smallest difference, by Gauss-Newton on all pixels
(B. Lucas, T. Kanade, An Iterative Image Registration Technique, 1981; S. Baker, I. Matthews,
Lucas-Kanade 20 Years On, 2004). Each cell is weighted by its own gradient, and less where the map
does not explain it: textureless cells get no weight, and moving objects are down-weighted. It is
precise to 0.02 px, where a single vector of the flow errs by a third of a pixel.

The images here have half the size of the planes that meters get; all lengths are px of that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np

from curation.measures import median

CELL_PX = 4
MIN_ALIGNED_SIDE_PX = 16  # of the shorter side: smaller images cannot be aligned
ROUNDING_NOISE = 0.25  # grey levels squared: the error where only rounding differs
# Errors in units of the noise, both in grey levels squared.
ROBUST_SCALE = 6.0  # error at which a cell's weight is a quarter
MIN_OUTLIER_ERROR = 9.0  # a cell above it moves differently from the frame
MAX_ERROR = 9.0  # larger errors of a cell are limited to it in the mean


@dataclass(frozen=True)
class Affine:
    """Motion of a frame: the point (x, y) from its centre moves by shift + matrix @ (x, y), px."""

    shift: np.ndarray  # (2,)
    matrix: np.ndarray  # (2, 2)

    @property
    def zoom(self) -> float:
        """Relative growth of the content."""
        return float(np.trace(self.matrix)) / 2

    @property
    def rotation(self) -> float:
        """Rotation of the content, radians, clockwise on the screen positive.

        Only what both axes rotate by: a pan past near and far objects shears one axis alone.
        """
        across, down = float(self.matrix[1, 0]), -float(self.matrix[0, 1])
        return min(across, down, key=abs) if across * down > 0 else 0.0

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """points: (h, w, 2) px from the centre -> (h, w, 2) px by which they move."""
        return cv2.transform(points, np.column_stack((self.matrix, self.shift)))

    def scaled(self, factor: float) -> Affine:
        return Affine(self.shift * factor, self.matrix * factor)


NO_MOTION = Affine(np.zeros(2), np.zeros((2, 2)))


@dataclass(frozen=True)
class AlignmentImage:
    """A frame prepared for alignment."""

    luma: np.ndarray  # (h, w) uint8
    smooth: np.ndarray  # (h, w) float32, lightly smoothed: linear between pixels

    @classmethod
    def from_plane(cls, plane: np.ndarray) -> AlignmentImage:
        """plane: (2h, 2w) uint8."""
        size = (plane.shape[1] // 2, plane.shape[0] // 2)
        luma = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
        return cls(luma, cv2.GaussianBlur(luma.astype(np.float32), (3, 3), 0))

    @property
    def cell_centres(self) -> np.ndarray:
        return cell_centres(*self.luma.shape)

    @cached_property
    def gradient(self) -> tuple[np.ndarray, np.ndarray]:
        """Right and down, (h, w) each: grey levels per px."""
        right, down = (
            cv2.Sobel(self.smooth, cv2.CV_32F, *d, ksize=3, scale=0.125) for d in ((1, 0), (0, 1))
        )
        return right, down

    @cached_property
    def structure_tensor(self) -> np.ndarray:
        """(rows, columns, 3): means over each cell of the gradient's products xx, xy, yy."""
        x, y = self.gradient
        return _stack(*(cell_means(cv2.multiply(*pair)) for pair in ((x, x), (x, y), (y, y))))


def cell_means(image: np.ndarray) -> np.ndarray:
    """(h // CELL_PX, w // CELL_PX[, channels]): means of the cells; the remainder is cut off."""
    rows, columns = max(1, image.shape[0] // CELL_PX), max(1, image.shape[1] // CELL_PX)
    whole = image[: rows * CELL_PX, : columns * CELL_PX]
    return cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=4)
def cell_centres(height: int, width: int) -> np.ndarray:
    """(rows, columns, 2) float32: x, y of each cell's centre, px from the image's centre."""
    rows, columns = (max(1, side // CELL_PX) for side in (height, width))
    x = (np.arange(columns) + 0.5) * CELL_PX - width / 2
    y = (np.arange(rows) + 0.5) * CELL_PX - height / 2
    return np.dstack(np.meshgrid(x, y)).astype(np.float32)


@lru_cache(maxsize=4)
def _design_terms(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(3, cells): 1, x, y of each cell in half long sides; (9, cells): their products."""
    x, y = cell_centres(height, width).reshape(-1, 2).T * np.float32(2 / max(height, width))
    terms = np.array([np.ones_like(x), x, y])
    return terms, (terms[:, None] * terms[None]).reshape(9, -1)


@dataclass(frozen=True)
class Match:
    """A motion between two images and the difference that it leaves."""

    first: AlignmentImage
    motion: Affine
    inside: np.ndarray  # (rows, columns) bool: the cell is visible in both images
    difference: np.ndarray  # (h, w) float32: second, motion-compensated, minus first

    @cached_property
    def motion_px(self) -> float:
        """Mean length of the motion over the image."""
        return mean_length(self.motion.displacement(self.first.cell_centres))

    @cached_property
    def error(self) -> np.ndarray:
        """(rows, columns): mean square of the difference, grey levels squared."""
        return cell_means(cv2.multiply(self.difference, self.difference))

    @cached_property
    def gradient_times_difference(self) -> np.ndarray:
        """(rows, columns, 2): means over each cell."""
        right, down = self.first.gradient
        return _stack(
            cell_means(cv2.multiply(self.difference, right)),
            cell_means(cv2.multiply(self.difference, down)),
        )

    @cached_property
    def noise(self) -> float:
        """The median cell's error, grey levels squared: most of a frame is explained."""
        return median(self.error[self.inside]) + ROUNDING_NOISE

    @cached_property
    def outliers(self) -> np.ndarray:
        """(rows, columns) bool: cells that the motion does not explain."""
        return self.error > MIN_OUTLIER_ERROR * self.noise

    def cost(self, noise: float) -> float:
        """Mean error of a cell in units of the noise, 0..MAX_ERROR."""
        error = self.error[self.inside]
        limited = np.minimum(error, MAX_ERROR * noise)
        return float(limited.mean()) / noise if len(error) else MAX_ERROR


def match(first: AlignmentImage, second: AlignmentImage, motion: Affine) -> Match:
    """Compares first[x] with second[x + motion(x)], less the median difference (brightness)."""
    height, width = first.smooth.shape
    compensated, inside = second.smooth, np.ones(first.cell_centres.shape[:2], bool)
    furthest = np.abs(motion.shift) + np.abs(motion.matrix) @ (width / 2, height / 2)
    if furthest.any():
        to_second = np.eye(2, 3)
        to_second[:, :2] += motion.matrix
        to_second[:, 2] = motion.shift - motion.matrix @ (width / 2 - 0.5, height / 2 - 0.5)
        compensated = cv2.warpAffine(
            compensated,
            to_second,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    if furthest.max() > 0.5:
        moved = first.cell_centres + motion.displacement(first.cell_centres)
        reach = np.abs(moved) + CELL_PX / 2
        inside = (reach[..., 0] <= width / 2 + 0.5) & (reach[..., 1] <= height / 2 + 0.5)
    difference = cv2.subtract(compensated, first.smooth)
    brightness = median(cell_means(difference)[inside])
    return Match(first, motion, inside, difference - np.float32(brightness))


def refine(found: Match, second: AlignmentImage) -> Match:
    """One step of Gauss-Newton towards the motion that explains most of the frame."""
    first = found.first
    scale = np.float32(1 / (ROBUST_SCALE * found.noise))
    weight = found.inside / np.square(1 + found.error * scale)
    terms, products = _design_terms(*first.luma.shape)
    weight = weight.reshape(-1, 1)
    blocks = products @ (first.structure_tensor.reshape(-1, 3) * weight)
    xx, xy, yy = (block.reshape(3, 3) for block in blocks.T.astype(np.float64))
    normal = np.empty((6, 6))
    normal[:3, :3], normal[:3, 3:], normal[3:, :3], normal[3:, 3:] = xx, xy, xy, yy
    right = (terms @ (found.gradient_times_difference.reshape(-1, 2) * weight)).T.reshape(6)
    # The small ridge keeps the step at zero where the image has no texture.
    normal.flat[::7] += 1e-4 * normal.trace() + 1e-9
    step = np.linalg.solve(normal, -right).reshape(2, 3)
    half = max(first.luma.shape) / 2
    motion = Affine(found.motion.shift + step[:, 0], found.motion.matrix + step[:, 1:] / half)
    return match(first, second, motion)


def align(first: AlignmentImage, second: AlignmentImage, start: Affine, steps: int = 2) -> Match:
    """The motion near `start` that explains most of the frame."""
    found = match(first, second, start)
    for _ in range(steps):
        found = refine(found, second)
    return found


def _stack(*planes: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.merge(planes))


class DisFlow:
    """Dense flow: Kroeger et al., Fast optical flow using dense inverse search (2016).

    Preset ULTRAFAST, down to half of the images' size: 0.5 ms a pair at 160 x 90.
    """

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._dis.setFinestScale(1)

    def __call__(self, first: AlignmentImage, second: AlignmentImage) -> np.ndarray:
        """(rows, columns, 2) float32: mean flow of each cell, px."""
        flow = self._dis.calc(first.luma, second.luma, None)  # type: ignore[call-overload]
        return cell_means(flow)


def fit_affine(points: np.ndarray, flow: np.ndarray, weight: np.ndarray) -> Affine:
    """The affine motion of most of the weight: least squares, reweighted with Tukey's biweight.

    points, flow: (..., 2).  weight: (...) >= 0. The fit starts from the median, so that an object
    smaller than half of the frame does not bias it. Without any weight there is no motion.
    """
    used = weight.reshape(-1) > 0
    if used.sum() < 6:
        return NO_MOTION
    xy, uv = (a.reshape(-1, 2)[used].astype(np.float64) for a in (points, flow))
    base = weight.reshape(-1)[used].astype(np.float64)
    scale = max(1.0, float(np.abs(xy).max()))
    design = np.column_stack((np.ones(len(xy)), xy / scale))
    solution = np.zeros((3, 2))
    solution[0] = [median(along) for along in uv.T]
    for _ in range(3):
        error = np.hypot(*(uv - design @ solution).T)
        spread = max(4.685 * 1.4826 * median(error), 0.2)
        robust = base * np.clip(1 - (error / spread) ** 2, 0, None) ** 2
        # The small ridge keeps the matrix at zero where all the weight lies in one spot.
        normal = design.T @ (design * robust[:, None])
        normal += np.diag([1e-6, 1e-3, 1e-3]) * (robust.sum() + 1e-9)
        solution = np.linalg.solve(normal, design.T @ (uv * robust[:, None]))
    return Affine(solution[0], solution[1:].T / scale)


def fit_flow(first: AlignmentImage, flow: np.ndarray) -> Affine:
    """The affine motion of most of the flow, as a start for `align`. flow: of DisFlow."""
    coarse = np.s_[1::3, 1::3]  # every third cell is enough for a start
    tensor = first.structure_tensor[coarse]
    strength = np.sqrt(tensor[..., 0] + tensor[..., 2])
    return fit_affine(first.cell_centres[coarse], flow[coarse], strength)


def better_match(match: Match, other: Match) -> Match:
    """The one that explains more of the frame; `match` if they are about equal."""
    noise = min(match.noise, other.noise)
    return other if other.cost(noise) < 0.98 * match.cost(noise) else match


def mean_length(vectors: np.ndarray) -> float:
    """vectors: (..., 2)."""
    return float(cv2.magnitude(vectors[..., 0], vectors[..., 1]).mean())
