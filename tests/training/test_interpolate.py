import numpy as np
import pytest

pytest.importorskip("torch")

from training.interpolate import interpolate_by_flow, optical_flow, resample_frames

rng = np.random.default_rng(0)
COARSE = rng.integers(0, 256, (12, 20, 3), np.uint8)


def scene(x: float) -> np.ndarray:
    """A patterned square at x, y = 20, before a pattern that stands. (96, 160, 3)"""
    import cv2

    ground = cv2.resize(COARSE, (160, 96), interpolation=cv2.INTER_CUBIC) // 3
    square = cv2.resize(COARSE[:6, :6], (40, 40), interpolation=cv2.INTER_CUBIC) // 2 + 120
    shift = np.float32([[1, 0, x], [0, 1, 20]])
    moved = cv2.warpAffine(square, shift, (160, 96))
    mask = cv2.warpAffine(np.ones((40, 40), np.float32), shift, (160, 96))[..., None]
    return np.rint(mask * moved + (1 - mask) * ground).astype(np.uint8)


@pytest.mark.parametrize("t", [0.25, 0.5, 0.8])
def test_a_moving_object_is_interpolated_to_its_position(t):
    first, second, truth = scene(40), scene(52), scene(40 + 12 * t).astype(float)
    (made,) = interpolate_by_flow(first, second, [t])
    blended = (1 - t) * first + t * second
    wrong = np.abs(made - truth).mean()
    assert wrong < 0.35 * np.abs(blended - truth).mean()
    assert wrong < 2


def test_optical_flow_is_the_motion_in_pixels():
    inside = optical_flow(scene(40), scene(52))[30:50, 50:70]
    assert np.median(inside, (0, 1)) == pytest.approx([12, 0], abs=0.5)


def test_resampled_frames_are_spaced_evenly_over_the_same_time():
    still = np.stack([np.full((16, 16, 3), 20 * i, np.uint8) for i in range(5)])
    out = resample_frames(still, 15)[:, 0, 0, 0]
    expected = np.clip((np.arange(15) + 0.5) / 3 - 0.5, 0, 4) * 20
    assert np.abs(out - expected).max() <= 0.5
    assert np.array_equal(resample_frames(still, 5), still)
    assert len(resample_frames(still, 2)) == 2
    assert len(resample_frames(still[:1], 3)) == 3
