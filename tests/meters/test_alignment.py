"""Alignment of drawn images whose motion is known."""

import numpy as np
import pytest

from stages.meters.alignment import (
    NO_MOTION,
    AlignmentImage,
    DisFlow,
    align,
    better_match,
    cell_centres,
    fit_affine,
    fit_flow,
    match,
)
from tests.support.drawn import cutout, noisy, paste, planes, textured_image, view


def images(frames, sigma: float = 3) -> list[AlignmentImage]:
    return [AlignmentImage.from_plane(plane.y) for _, plane in planes(noisy(frames, sigma))]


@pytest.mark.parametrize("shift_px", [0.4, 2.0, 16.0, 50.0])
def test_pan_with_zoom_and_rotation_is_measured_to_a_twentieth_of_a_pixel(shift_px):
    image = textured_image(3)
    first, second = images(
        [view(image, (800, 500, 1, 0)), view(image, (800 + shift_px, 500, 1.01, 0.5))]
    )
    motion = align(first, second, fit_flow(first, DisFlow()(first, second))).motion
    angle = np.radians(0.5)
    expected = [-shift_px / 4 * 1.01 * np.cos(angle), shift_px / 4 * 1.01 * np.sin(angle)]
    assert motion.shift == pytest.approx(expected, abs=0.05)
    assert motion.zoom == pytest.approx(0.01, abs=0.001)
    assert motion.rotation == pytest.approx(-angle, abs=0.001)


def test_parallax_of_near_and_far_objects_is_no_rotation():
    image = textured_image(4)
    near, far = (view(image, (800 + x, 500, 1, 0)) for x in (12, 4))
    moved = np.where(np.arange(360)[:, None] < 180, far, near)
    first, second = images([view(image, (800, 500, 1, 0)), moved])
    motion = align(first, second, fit_flow(first, DisFlow()(first, second))).motion
    assert abs(np.degrees(motion.rotation)) < 0.1


def test_object_that_moves_before_blank_ground_is_no_camera_motion():
    ground = 120 + 20 * np.sin(np.arange(640) / 60) * np.ones((360, 1))
    object_, frames = cutout(5, 200), []
    for x in (300, 312):
        frames.append(np.float32(ground))
        paste(frames[-1], object_, x, 180)
    first, second = images(frames, 2)
    static = align(first, second, NO_MOTION, steps=1)
    found = align(first, second, fit_flow(first, DisFlow()(first, second)))
    assert better_match(static, found).motion_px < 0.15  # the object moves by 3 px


def test_change_of_brightness_is_no_motion():
    image = view(textured_image(6), (800, 500, 1, 0))
    first, second = images([image, image * 0.9 + 12])
    assert align(first, second, NO_MOTION).motion_px < 0.05
    assert match(first, second, NO_MOTION).noise < 8


def test_object_on_a_third_of_the_frame_does_not_bias_the_fit():
    points = cell_centres(90, 160)
    flow = np.zeros_like(points) + np.array([3.0, 0.0])
    flow[:, :13] = (-9.0, 4.0)
    motion = fit_affine(points, flow, np.ones(points.shape[:2]))
    assert motion.shift == pytest.approx([3, 0], abs=0.05)
    assert motion.matrix == pytest.approx(np.zeros((2, 2)), abs=1e-3)
