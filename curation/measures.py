"""Pure measures on images: brightness, colour, sharpness, similarity of two images.

Images are arrays: luma (h, w) uint8 in full range, or BGR (h, w, 3) uint8. Without video or state,
so that the trainer and tests can use the same numbers as curation.
"""

from __future__ import annotations

import cv2
import numpy as np


def brightness(luma: np.ndarray) -> float:
    """Mean luma, 0..255."""
    return float(cv2.mean(luma)[0])


def sharpness(luma: np.ndarray) -> float:
    """Variance of the Laplacian (3 x 3: four neighbours and the centre), grey levels squared."""
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return float(deviation[0, 0] ** 2)


def colourfulness(bgr: np.ndarray) -> float:
    """From 0 for grey to 109 for extremely colourful.

    Hasler and Suesstrunk, Measuring colourfulness in natural images (2003).
    """
    opponents = np.array([[0, -1, 1], [-1, 0.5, 0.5]], np.float32)  # red - green, yellow - blue
    mean, spread = cv2.meanStdDev(cv2.transform(bgr.astype(np.float32), opponents))
    return float(np.hypot(*spread.ravel()) + 0.3 * np.hypot(*mean.ravel()))


def median(values: np.ndarray) -> float:
    """As np.median, but 0 of an empty array; a fraction of its time for few values."""
    if not values.size:
        return 0.0
    low, high = (values.size - 1) // 2, values.size // 2
    copy = values.flatten()
    copy.partition((low, high))
    return (float(copy[low]) + float(copy[high])) / 2


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one size, dB; inf where they are equal."""
    _check_same_size(first, second)
    error = float(np.mean((first.astype(np.float32) - second.astype(np.float32)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two luma images, 1 where they are equal.

    Wang et al., Image quality assessment (2004): Gaussian window of 11 x 11 with sigma 1.5,
    K1 0.01, K2 0.03; mean over the windows that lie completely inside.
    """
    _check_same_size(first, second)
    if first.ndim != 2 or min(first.shape) < 11:
        raise ValueError(f"ssim needs luma images of at least 11 x 11 px, got shape {first.shape}")

    def local_mean(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (11, 11), 1.5)[5:-5, 5:-5]

    a, b = first.astype(np.float32), second.astype(np.float32)
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float(np.mean(similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def _check_same_size(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ValueError(f"expected two images of one size, got {first.shape} and {second.shape}")
