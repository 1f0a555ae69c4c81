"""Alignment of drawn pictures whose motion is known."""

import numpy as np
import pytest

from stages.meters.alignment import (
    STILL,
    DisFlow,
    Look,
    aligned,
    cell_points,
    fit_affine,
    guess,
    likelier,
    match,
)
from tests.support.drawn import cutout, noisy, paste, picture, planes, view


def looks(frames, sigma: float = 3) -> list[Look]:
    return [Look.at(plane.y) for _, plane in planes(noisy(frames, sigma))]


@pytest.mark.parametrize("shift_px", [0.4, 2.0, 16.0, 50.0])
def test_a_pan_with_zoom_and_turn_is_measured_to_a_twentieth_of_a_pixel(shift_px):
    still = picture(3)
    first, second = looks(
        [view(still, (800, 500, 1, 0)), view(still, (800 + shift_px, 500, 1.01, 0.5))]
    )
    motion = aligned(first, second, guess(first, DisFlow()(first, second))).motion
    turn = np.radians(0.5)
    expected = [-shift_px / 4 * 1.01 * np.cos(turn), shift_px / 4 * 1.01 * np.sin(turn)]
    assert motion.shift == pytest.approx(expected, abs=0.05)
    assert motion.zoom == pytest.approx(0.01, abs=0.001)
    assert motion.turn == pytest.approx(-turn, abs=0.001)


def test_a_shear_of_things_near_and_far_is_no_turn():
    still = picture(4)
    near, far = (view(still, (800 + x, 500, 1, 0)) for x in (12, 4))
    moved = np.where(np.arange(360)[:, None] < 180, far, near)
    first, second = looks([view(still, (800, 500, 1, 0)), moved])
    motion = aligned(first, second, guess(first, DisFlow()(first, second))).motion
    assert abs(np.degrees(motion.turn)) < 0.1


def test_blank_ground_that_stays_outvotes_a_thing_that_moves_before_it():
    ground = 120 + 20 * np.sin(np.arange(640) / 60) * np.ones((360, 1))
    thing, frames = cutout(5, 200), []
    for x in (300, 312):
        frames.append(np.float32(ground))
        paste(frames[-1], thing, x, 180)
    first, second = looks(frames, 2)
    at_rest = aligned(first, second, STILL, rounds=1)
    found = aligned(first, second, guess(first, DisFlow()(first, second)))
    assert likelier(at_rest, found).motion_px < 0.15  # the thing moves by 3 px


def test_brighter_light_is_no_motion():
    still = view(picture(6), (800, 500, 1, 0))
    first, second = looks([still, still * 0.9 + 12])
    assert aligned(first, second, STILL).motion_px < 0.05
    assert match(first, second, STILL).noise < 8


def test_a_subject_on_a_third_of_the_picture_does_not_pull_the_fit_away():
    points = cell_points(90, 160)
    flow = np.zeros_like(points) + np.array([3.0, 0.0])
    flow[:, :13] = (-9.0, 4.0)
    motion = fit_affine(points, flow, np.ones(points.shape[:2]))
    assert motion.shift == pytest.approx([3, 0], abs=0.05)
    assert motion.matrix == pytest.approx(np.zeros((2, 2)), abs=1e-3)
