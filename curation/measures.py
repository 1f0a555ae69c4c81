"""Pure measures on pictures: light, colour, sharpness, likeness of two pictures, motion between two pictures.

Pictures are arrays: luma (h, w) uint8 in full range, or BGR (h, w, 3) uint8. No video and no state in
here, so that the trainer and tests can use the same numbers as curation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

CELL_PX = (
    8  # flow is averaged over cells of this size: one vector of DIS is noise, the mean of 64 is not
)


def brightness(luma: np.ndarray) -> float:
    """Mean luma, 0..255."""
    return float(cv2.mean(luma)[0])


def sharpness(luma: np.ndarray) -> float:
    """Variance of the Laplacian (3 x 3, the four neighbours against the centre), grey levels squared."""
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return float(deviation[0, 0] ** 2)


def colourfulness(bgr: np.ndarray) -> float:
    """Hasler and Suesstrunk, Measuring colourfulness in natural images (2003): 0 grey, 109 extremely colourful."""
    blue, green, red = (bgr[..., i].astype(np.float32) for i in range(3))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one size, dB; inf where they are equal."""
    _same_size(first, second)
    error = float(np.mean((first.astype(np.float32) - second.astype(np.float32)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two luma pictures, 1 where they are equal.

    Wang et al., Image quality assessment (2004): Gaussian window of 11 x 11 with sigma 1.5, K1 0.01, K2 0.03;
    mean over the windows that lie wholly inside.
    """
    _same_size(first, second)
    if first.ndim != 2 or min(first.shape) < 11:
        raise ValueError(
            f"ssim needs luma pictures of at least 11 x 11 px, got shape {first.shape}"
        )

    def local_mean(picture: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(picture, (11, 11), 1.5)[5:-5, 5:-5]

    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def _same_size(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"two pictures of one size are compared, got {first.shape} and {second.shape}"
        )


class DisFlow:
    """Dense optical flow: Kroeger et al., Fast optical flow using dense inverse search (2016), preset ULTRAFAST.

    Preset by measurement at 320 x 180: 0.7 ms a pair against 1.5 (FAST) and 7 ms (MEDIUM). One vector errs by a third of
    a pixel, but an affine fit to the means of cells by 0.06 px (FAST: 0.04 px).
    """

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """(h, w, 2) float32: first[y, x] is found at second[y + flow[..., 1], x + flow[..., 0]], px."""
        return self._dis.calc(first, second, None)


def cells(picture: np.ndarray) -> np.ndarray:
    """Means over cells of CELL_PX x CELL_PX: (h // CELL_PX, w // CELL_PX[, channels]); what is left over is cut off."""
    rows, columns = (max(1, side // CELL_PX) for side in picture.shape[:2])
    whole = picture[: rows * CELL_PX, : columns * CELL_PX]
    return cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)


@dataclass
class CellFlow:
    """The flow from one picture to a second, per cell, with what tells motion from noise."""

    flow: np.ndarray  # (rows, columns, 2) float32, px between the two pictures
    change: np.ndarray  # (rows, columns): mean absolute difference in place, grey levels
    left: np.ndarray  # the same after motion compensation
    texture: np.ndarray  # mean absolute gradient, grey levels per px
    noise: float = field(init=False)  # grey levels that sensor and codec change where nothing moves

    def __post_init__(self) -> None:
        # Most of a picture is explained by its flow; what is left in its median cell is noise. The floor is rounding.
        self.noise = float(np.median(self.left)) + 0.5

    @property
    def moved(self) -> np.ndarray:
        """(rows, columns) bool: cells that changed by more than noise; the flow of others is fitted to noise."""
        return self.change > 2 * self.noise

    @property
    def known(self) -> np.ndarray:
        """(rows, columns) bool: cells that would show a motion of half a pixel; blank sky shows none."""
        return self.moved | (0.5 * self.texture > 2 * self.noise)


def cell_flow(
    dis: DisFlow, first: np.ndarray, second: np.ndarray, flow: np.ndarray | None = None
) -> CellFlow:
    """Flow between two luma pictures as one vector per cell; zero where nothing but noise changed.

    flow: what dis(first, second) gave, where it is known already.
    """
    flow = dis(first, second) if flow is None else flow
    back = cv2.remap(
        second, _grid(first.shape[:2]) + flow, None, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
    )
    dx, dy = (cv2.Sobel(first, cv2.CV_16S, *order, ksize=3) for order in ((1, 0), (0, 1)))
    gradient = cv2.addWeighted(
        cv2.convertScaleAbs(dx), 0.125, cv2.convertScaleAbs(dy), 0.125, 0, dtype=cv2.CV_32F
    )
    result = CellFlow(
        cells(flow),
        cells(cv2.absdiff(first, second).astype(np.float32)),
        cells(cv2.absdiff(first, back).astype(np.float32)),
        cells(gradient),
    )
    result.flow[~result.moved] = 0.0
    return result


@lru_cache(maxsize=4)
def _grid(shape: tuple[int, int]) -> np.ndarray:
    """(h, w, 2) float32: each pixel's own x, y."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return np.dstack((columns, rows))


@dataclass(frozen=True)
class Affine:
    """A motion of the whole picture: (x, y) from the centre moves by shift + matrix @ (x, y), px."""

    shift: np.ndarray  # (2,)
    matrix: np.ndarray  # (2, 2)

    @property
    def zoom(self) -> float:
        """Relative growth of the picture."""
        return float(np.trace(self.matrix)) / 2

    @property
    def turn(self) -> float:
        """Turn of the picture's content, radians, clockwise on the screen positive."""
        return float(self.matrix[1, 0] - self.matrix[0, 1]) / 2

    def at(self, points: np.ndarray) -> np.ndarray:
        """points: (..., 2) px from the centre -> (..., 2) px by which they move."""
        return points @ self.matrix.T + self.shift


@lru_cache(maxsize=4)
def cell_points(height: int, width: int) -> np.ndarray:
    """(rows, columns, 2) float32: x, y of each cell's centre, px from the picture's centre."""
    rows, columns = (max(1, side // CELL_PX) for side in (height, width))
    x = (np.arange(columns) + 0.5) * CELL_PX - width / 2
    y = (np.arange(rows) + 0.5) * CELL_PX - height / 2
    return np.dstack(np.meshgrid(x, y)).astype(np.float32)


def fit_affine(points: np.ndarray, flow: np.ndarray, weight: np.ndarray) -> Affine:
    """The affine motion of most of the picture: iteratively reweighted least squares with Tukey's biweight.

    points, flow: (..., 2).  weight: (...) >= 0. Starts from the weighted median, so that a subject of less than half of
    the picture cannot pull it away. No weight at all gives no motion.
    """
    xy, uv, base = points.reshape(-1, 2), flow.reshape(-1, 2), weight.reshape(-1).astype(np.float64)
    used = base > 0
    if used.sum() < 6:
        return Affine(np.zeros(2), np.zeros((2, 2)))
    xy, uv, base = xy[used].astype(np.float64), uv[used].astype(np.float64), base[used]
    scale = max(1.0, float(np.abs(xy).max()))
    design = np.column_stack((np.ones(len(xy)), xy / scale))
    solution = np.zeros((3, 2))
    solution[0] = np.median(uv, axis=0)
    for _ in range(8):
        error = np.hypot(*(uv - design @ solution).T)
        spread = max(4.685 * 1.4826 * float(np.median(error)), 0.2)
        robust = base * np.clip(1 - (error / spread) ** 2, 0, None) ** 2
        # The small ridge keeps the matrix at zero where all the weight lies on a line or in one spot.
        normal = design.T @ (design * robust[:, None]) + np.diag([1e-6, 1e-3, 1e-3]) * (
            robust.sum() + 1e-9
        )
        new = np.linalg.solve(normal, design.T @ (uv * robust[:, None]))
        done = float(np.abs(new - solution).max()) < 0.01
        solution = new
        if done:
            break
    return Affine(solution[0], solution[1:].T / scale)
