"""The motion of a whole picture between two looks: flow guesses it, alignment makes it exact.

Alignment takes the affine map that leaves the least difference, by Gauss-Newton on all pixels at
once (B. Lucas, T. Kanade, An Iterative Image Registration Technique, 1981; S. Baker, I. Matthews,
Lucas-Kanade 20 Years On, 2004). Each cell of the picture counts by its own gradient, and less where
the map does not explain it: blank walls have no vote, and things that move by themselves lose
theirs. That measures 0.02 px, where one vector of the flow errs by a third of a pixel.

Pictures here have half the size of the planes that meters see; all lengths are px of that size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np

from curation.measures import median

CELL = 4  # px
LEAST_SIDE = 16  # px of the shorter side: in less there is nothing to align
ROUNDING = 0.25  # grey levels squared that differ where nothing but rounding does
BASIC = 6.0  # times the noise's square: from there on a cell is not explained by the map
ALIEN = 9.0  # times the noise's square that a cell differs by where something moves by itself
CUT = 9.0  # times the noise's square: more difference than that tells nothing more


@dataclass(frozen=True)
class Affine:
    """Of the whole picture: (x, y) from its centre moves by shift + matrix @ (x, y), px."""

    shift: np.ndarray  # (2,)
    matrix: np.ndarray  # (2, 2)

    @property
    def zoom(self) -> float:
        """Relative growth of the picture."""
        return float(np.trace(self.matrix)) / 2

    @property
    def turn(self) -> float:
        """Turn of the picture's content, radians, clockwise on the screen positive.

        Only what both axes turn by: a pan past things near and far shears one axis alone.
        """
        across, down = float(self.matrix[1, 0]), -float(self.matrix[0, 1])
        return min(across, down, key=abs) if across * down > 0 else 0.0

    def at(self, points: np.ndarray) -> np.ndarray:
        """points: (h, w, 2) px from the centre -> (h, w, 2) px by which they move."""
        return cv2.transform(points, np.column_stack((self.matrix, self.shift)))

    def times(self, factor: float) -> Affine:
        return Affine(self.shift * factor, self.matrix * factor)


STILL = Affine(np.zeros(2), np.zeros((2, 2)))


@dataclass(frozen=True)
class Look:
    """A picture made ready for alignment."""

    luma: np.ndarray  # (h, w) uint8
    soft: np.ndarray  # (h, w) float32, lightly smoothed: linear between pixels

    @classmethod
    def at(cls, plane: np.ndarray) -> Look:
        """plane: (2h, 2w) uint8."""
        size = (plane.shape[1] // 2, plane.shape[0] // 2)
        luma = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
        return cls(luma, cv2.GaussianBlur(luma.astype(np.float32), (3, 3), 0))

    @property
    def points(self) -> np.ndarray:
        return cell_points(*self.luma.shape)

    @cached_property
    def gradient(self) -> tuple[np.ndarray, np.ndarray]:
        """Grey levels per px to the right and down."""
        right, down = (
            cv2.Sobel(self.soft, cv2.CV_32F, *d, ksize=3, scale=0.125) for d in ((1, 0), (0, 1))
        )
        return right, down

    @cached_property
    def tensor(self) -> np.ndarray:
        """(rows, columns, 3): means of the gradient's products xx, xy, yy over each cell."""
        x, y = self.gradient
        return _stacked(*(cells(cv2.multiply(*pair)) for pair in ((x, x), (x, y), (y, y))))


def cells(picture: np.ndarray) -> np.ndarray:
    """Means over CELL x CELL px: (h // CELL, w // CELL[, channels]); a rest is cut off."""
    rows, columns = max(1, picture.shape[0] // CELL), max(1, picture.shape[1] // CELL)
    whole = picture[: rows * CELL, : columns * CELL]
    return cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)


@lru_cache(maxsize=4)
def cell_points(height: int, width: int) -> np.ndarray:
    """(rows, columns, 2) float32: x, y of each cell's centre, px from the picture's centre."""
    rows, columns = (max(1, side // CELL) for side in (height, width))
    x = (np.arange(columns) + 0.5) * CELL - width / 2
    y = (np.arange(rows) + 0.5) * CELL - height / 2
    return np.dstack(np.meshgrid(x, y)).astype(np.float32)


@lru_cache(maxsize=4)
def _places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(3, cells): 1, x, y of each cell in half long sides; (9, cells): their products."""
    x, y = cell_points(height, width).reshape(-1, 2).T * np.float32(2 / max(height, width))
    place = np.array([np.ones_like(x), x, y])
    return place, (place[:, None] * place[None]).reshape(9, -1)


@dataclass(frozen=True)
class Match:
    """What a motion leaves of the difference between two looks, per cell."""

    first: Look
    motion: Affine
    inside: np.ndarray  # (rows, columns) bool: seen in both looks
    difference: np.ndarray  # (h, w) float32: second, moved back, minus first

    @cached_property
    def motion_px(self) -> float:
        """Its mean over the picture."""
        return mean_px(self.motion.at(self.first.points))

    @cached_property
    def error(self) -> np.ndarray:
        """(rows, columns): mean square of the difference, grey levels squared."""
        return cells(cv2.multiply(self.difference, self.difference))

    @cached_property
    def pull(self) -> np.ndarray:
        """(rows, columns, 2): means of gradient times difference."""
        right, down = self.first.gradient
        return _stacked(
            cells(cv2.multiply(self.difference, right)), cells(cv2.multiply(self.difference, down))
        )

    @cached_property
    def noise(self) -> float:
        """Grey levels squared: of the median cell, as most of a picture is explained."""
        return median(self.error[self.inside]) + ROUNDING

    @cached_property
    def alien(self) -> np.ndarray:
        """(rows, columns) bool: what the motion does not explain."""
        return self.error > ALIEN * self.noise

    def cost(self, noise: float) -> float:
        """Mean difference of a cell in units of the noise, 0..CUT."""
        seen = self.error[self.inside]
        return float(np.minimum(seen, CUT * noise).mean()) / noise if len(seen) else CUT


def match(first: Look, second: Look, motion: Affine) -> Match:
    """first[x] against second[x + motion(x)]; a change of the light as a whole is left out."""
    height, width = first.soft.shape
    back, inside = second.soft, np.ones(first.points.shape[:2], bool)
    furthest = np.abs(motion.shift) + np.abs(motion.matrix) @ (width / 2, height / 2)
    if furthest.any():
        there = np.eye(2, 3)
        there[:, :2] += motion.matrix
        there[:, 2] = motion.shift - motion.matrix @ (width / 2 - 0.5, height / 2 - 0.5)
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (width, height)
        back = cv2.warpAffine(back, there, size, flags=how, borderMode=cv2.BORDER_REPLICATE)
    if furthest.max() > 0.5:
        reach = np.abs(first.points + motion.at(first.points)) + CELL / 2
        inside = (reach[..., 0] <= width / 2 + 0.5) & (reach[..., 1] <= height / 2 + 0.5)
    difference = cv2.subtract(back, first.soft)
    light = median(cells(difference)[inside])
    return Match(first, motion, inside, difference - np.float32(light))


def refined(found: Match, second: Look) -> Match:
    """One step towards the motion that explains most of the picture."""
    first = found.first
    weight = found.inside / np.square(1 + found.error * np.float32(1 / (BASIC * found.noise)))
    place, products = _places(*first.luma.shape)
    weight = weight.reshape(-1, 1)
    blocks = products @ (first.tensor.reshape(-1, 3) * weight)
    xx, xy, yy = (block.reshape(3, 3) for block in blocks.T.astype(np.float64))
    normal = np.empty((6, 6))
    normal[:3, :3], normal[:3, 3:], normal[3:, :3], normal[3:, 3:] = xx, xy, xy, yy
    right = (place @ (found.pull.reshape(-1, 2) * weight)).T.reshape(6)
    # Where the picture says nothing, the step stays at zero.
    normal.flat[::7] += 1e-4 * normal.trace() + 1e-9
    step = np.linalg.solve(normal, -right).reshape(2, 3)
    half = max(first.luma.shape) / 2
    motion = Affine(found.motion.shift + step[:, 0], found.motion.matrix + step[:, 1:] / half)
    return match(first, second, motion)


def aligned(first: Look, second: Look, start: Affine, rounds: int = 2) -> Match:
    """The motion near `start` that explains most of the picture."""
    found = match(first, second, start)
    for _ in range(rounds):
        found = refined(found, second)
    return found


def _stacked(*planes: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.merge(planes))


class DisFlow:
    """Dense flow: Kroeger et al., Fast optical flow using dense inverse search (2016).

    Preset ULTRAFAST, down to half of the looks' size: 0.5 ms a pair at 160 x 90.
    """

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._dis.setFinestScale(1)

    def __call__(self, first: Look, second: Look) -> np.ndarray:
        """(rows, columns, 2) float32: mean flow of each cell, px."""
        flow = self._dis.calc(first.luma, second.luma, None)  # type: ignore[call-overload]
        return cells(flow)


def fit_affine(points: np.ndarray, flow: np.ndarray, weight: np.ndarray) -> Affine:
    """The affine motion of most of the weight: least squares, reweighted with Tukey's biweight.

    points, flow: (..., 2).  weight: (...) >= 0.  It starts from the median, so that a subject of
    less than half of the picture can't pull it away. No weight at all gives no motion.
    """
    used = weight.reshape(-1) > 0
    if used.sum() < 6:
        return STILL
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


def guess(first: Look, flow: np.ndarray) -> Affine:
    """The affine motion that most of the flow follows. flow: what DisFlow gave."""
    coarse = np.s_[1::3, 1::3]  # enough for a start
    strength = np.sqrt(first.tensor[coarse][..., 0] + first.tensor[coarse][..., 2])
    return fit_affine(first.points[coarse], flow[coarse], strength)


def likelier(match: Match, other: Match) -> Match:
    """That which explains more of the picture; the first, if that is as good."""
    noise = min(match.noise, other.noise)
    return other if other.cost(noise) < 0.98 * match.cost(noise) else match


def mean_px(vectors: np.ndarray) -> float:
    """Mean length. vectors: (..., 2)."""
    return float(cv2.magnitude(vectors[..., 0], vectors[..., 1]).mean())
