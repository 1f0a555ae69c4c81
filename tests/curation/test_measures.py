"""Measures on images, against their formulas written in another way."""

import numpy as np
import pytest

from curation import measures
from tests.support.drawn import noisy, textured_image, view


def test_psnr_follows_its_formula():
    black, grey = np.zeros((20, 30), np.uint8), np.full((20, 30), 10, np.uint8)
    assert measures.psnr(black, grey) == pytest.approx(20 * np.log10(255 / 10))
    assert measures.psnr(grey, grey) == float("inf")


@pytest.mark.parametrize("shape", [(1,), (2,), (7, 5), (6, 8)])
def test_median_equals_that_of_numpy(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert measures.median(values) == pytest.approx(np.median(values), rel=1e-6)
    assert measures.median(values[:0]) == 0.0


def test_images_of_different_sizes_are_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"\(20, 30\) and \(20, 31\)"):
        measures.psnr(np.zeros((20, 30), np.uint8), np.zeros((20, 31), np.uint8))


def direct_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of Wang et al., window by window, without a filter."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = (i[y : y + 11, x : x + 11].astype(float) for i in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(np.mean(values))


def test_ssim_equals_its_formula_computed_window_by_window():
    image = textured_image(1)[:40, :50].astype(np.uint8)
    other = next(noisy([textured_image(1)[:40, 2:52]], 8))
    assert measures.ssim(image, other) == pytest.approx(direct_ssim(image, other), abs=1e-5)
    assert measures.ssim(image, image) == pytest.approx(1.0)


def test_colourfulness_of_two_flat_colours_follows_its_formula():
    picture_bgr = np.zeros((2, 2, 3), np.uint8)
    picture_bgr[0] = (0, 0, 255)  # red above, black below
    # red - green: 255, 0; yellow - blue: 127.5, 0
    expected = np.hypot(127.5, 63.75) + 0.3 * np.hypot(127.5, 63.75)
    assert measures.colourfulness(picture_bgr) == pytest.approx(expected, rel=1e-6)
    assert measures.colourfulness(np.full((4, 4, 3), 90, np.uint8)) == 0.0


def test_blurred_image_is_less_sharp():
    sharp, soft = (
        textured_image(2).astype(np.uint8),
        view(textured_image(2), (800, 500, 3.0, 0)).astype(np.uint8),
    )
    assert measures.sharpness(sharp) > 3 * measures.sharpness(soft)
