"""Freezes are the same picture repeated; still scenes, slow rates and pulldown are not."""

import numpy as np
import pytest

from stages.freeze import Freeze, frozen_stretches
from tests.drawn import decoded, encoded, noisy, picture, planes, times, view, watch


def moving(seed: int, seconds: float, fps: float = 25.0):
    still = picture(seed)
    return [view(still, (600 + 40 * t, 500, 1.1, 0)) for t in times(seconds, fps)]


def with_freeze(seed: int, start_s: float, length_s: float, sigma: float):
    """Four seconds of motion with sensor noise; a hold of the whole frame, noise included."""
    frames = list(noisy(moving(seed, 4), sigma, seed))
    first, last = round(start_s * 25), round((start_s + length_s) * 25)
    frames[first:last] = [frames[first]] * (last - first)
    return frames


def score(frames, fps: int = 25, crf: int = 23, seconds: float = 4.0):
    meter = Freeze()
    watch([meter], decoded(encoded(frames, fps, crf)), fps)
    return meter.score(0.0, seconds)


@pytest.mark.parametrize(("length_s", "crf"), [(0.6, 20), (1.0, 28), (2.5, 33)])
def test_a_freeze_in_a_compressed_moving_take_is_found_with_its_length(length_s, crf):
    found = score(with_freeze(1, 1.0, length_s, 2.0), crf=crf)
    assert found["frozen_longest_s"] == pytest.approx(length_s, abs=0.2)
    assert found["frozen_share"] == pytest.approx(length_s / 4, abs=0.05)


@pytest.mark.parametrize(("sigma", "crf"), [(1.0, 23), (2.0, 33), (4.0, 18)])
def test_a_still_scene_with_sensor_noise_is_not_frozen(sigma, crf):
    still = view(picture(2), (800, 500, 1, 0))
    assert score(noisy([still] * 100, sigma, 3), crf=crf) == {
        "frozen_share": 0,
        "frozen_longest_s": 0,
    }


def test_a_moving_take_is_not_frozen():
    assert score(noisy(moving(3, 4), 2.0))["frozen_share"] == 0


def test_repeats_of_pulldown_are_no_freeze():
    frames = [
        f for i, f in enumerate(noisy(moving(4, 2, 24), 1.0)) for _ in range(2 if i % 4 == 0 else 1)
    ]
    assert score(frames, fps=30, seconds=2.0)["frozen_share"] == 0


def test_video_of_four_frames_a_second_is_not_frozen():
    meter = Freeze()
    watch([meter], planes(noisy(moving(5, 4, 4), 1.0), fps=4), fps=4)
    assert meter.score(0, 4)["frozen_share"] == 0


def test_one_frame_shown_for_two_seconds_is_a_freeze():
    shown = np.concatenate((np.arange(25) / 25, 3 + np.arange(25) / 25))
    assert frozen_stretches(shown, np.full(50, 20.0), np.ones(50), 0.04, 0.5) == [
        pytest.approx((0.96, 3.0))
    ]


def test_a_span_counts_only_the_part_of_a_freeze_inside_it():
    meter = Freeze()
    watch([meter], planes(with_freeze(6, 1.0, 2.0, 2.0)))
    assert meter.score(2.0, 4.0)["frozen_longest_s"] == pytest.approx(1.0, abs=0.05)


def test_a_span_without_frames_has_no_score():
    meter = Freeze()
    watch([meter], planes(noisy(moving(7, 1), 1.0)))
    assert meter.score(5.0, 6.0) == {"frozen_share": None, "frozen_longest_s": None}
