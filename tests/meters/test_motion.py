"""Motion of drawn cameras and objects of known speed; virtual cameras compared with real ones."""

import numpy as np
import pytest

from stages.meters.motion import Motion
from tests.support.drawn import (
    HEIGHT,
    WIDTH,
    cutout,
    decoded,
    encoded,
    feed,
    noisy,
    paste,
    planes,
    rotated_view,
    shake,
    textured_image,
    times,
    view,
)
from tests.support.paths import VIDEOS, labelled_takes


def measured(frames, fps: float = 25.0) -> Motion:
    meter = Motion()
    feed([meter], planes(frames, fps), fps)
    return meter


@pytest.mark.parametrize("fps", [4, 10, 25, 100])
def test_pan_is_measured_with_its_speed_at_any_frame_rate(fps):
    image = textured_image(1)
    frames = (view(image, (700 + 48 * t, 500, 1, 0)) for t in times(2, fps))
    meter = measured(noisy(frames, 2), fps)
    segment = meter.score_segment(0, 2)
    # The view moves right: 48 px/s of 640 are 24 of 320.
    assert segment["camera_x"] == pytest.approx(24, abs=1)
    assert segment["camera_y"] == pytest.approx(0, abs=1)
    assert meter.score(0, 2)["motion_dis"] == pytest.approx(24, abs=2)


def test_zoom_in_with_clockwise_roll_has_positive_signs():
    image = textured_image(2)
    # The content rotates counter-clockwise (OpenCV's positive angle): the view rolls clockwise.
    meter = measured(noisy((view(image, (800, 500, 1.1**t, 6 * t)) for t in times(2)), 1))
    segment = meter.score_segment(0, 2)
    assert segment["camera_zoom"] == pytest.approx(np.log(1.1), abs=0.02)
    assert segment["camera_roll"] == pytest.approx(6, abs=1)


def test_tripod_shot_with_sensor_noise_is_static():
    image = view(textured_image(3), (800, 500, 1, 0))
    score = measured(noisy([image] * 50, 6)).score(0, 2)
    assert score["motion_dis"] < 0.1
    assert score["static_share"] == 1
    assert score["ken_burns_share"] == 0


def test_object_that_crosses_a_static_scene_is_subject_motion_and_not_camera_motion():
    image, object_ = view(textured_image(4), (800, 500, 1, 0)), cutout(5, 140)

    def frames():
        for t in times(2):
            frame = image.copy()
            paste(frame, object_, 200 + 80 * t, 120)
            yield frame

    meter = measured(noisy(frames(), 2))
    segment = meter.score_segment(0, 2)
    # Cells that it covers in part lower the mean below its 40 px/s.
    assert 20 < segment["subject_x"] < 45
    assert segment["subject_y"] == pytest.approx(0, abs=5)
    assert segment["subject_at_x"] == pytest.approx(280 / WIDTH, abs=0.08)
    assert segment["subject_at_y"] == pytest.approx(120 / HEIGHT, abs=0.08)
    assert abs(segment["camera_x"]) < 0.5
    assert meter.score(0, 2)["static_share"] == 0


def test_span_without_samples_has_no_score():
    meter = measured([np.zeros((HEIGHT, WIDTH), np.uint8)])
    assert set(meter.score(0, 1).values()) == {None}
    assert set(meter.score_segment(0, 1).values()) == {None}


def virtual_camera(seed: int):
    """A pan, a zoom or both over an image, some with the whole-pixel jitter of FFmpeg's zoompan."""
    rng, image = np.random.default_rng(seed), textured_image(seed)
    pan, zoom = rng.uniform(10, 90) * (seed % 3 != 0), rng.uniform(0.02, 0.07) * (seed % 3 != 1)
    heading = rng.uniform(0, 6.28)
    for t in times(5):
        eased = t if seed % 2 else 2.5 * (1 - np.cos(np.pi * t / 5))
        x, y = (
            800 + pan * (eased - 2.5) * np.cos(heading),
            500 + pan * (eased - 2.5) * np.sin(heading),
        )
        if seed % 5 == 1:
            x, y = round(x), round(y)
        yield view(image, (x, y, 1.1 * np.exp(zoom * t), 0))


def real_camera(seed: int):
    """A camera of 30 to 70 degrees that rotates, handheld or on a tripod, or passes objects."""
    rng, image = np.random.default_rng(seed), textured_image(seed + 1000)
    tremor, speed = shake(seed, rng.uniform(0, 5)), rng.uniform(20, 90)
    field, objects = rng.uniform(30, 70), [cutout(seed * 10 + i, 180) for i in range(4)]
    for t in times(5):
        dx, dy = tremor(t)
        if seed % 2:
            degrees = field / WIDTH
            yield rotated_view(image, (speed * (t - 2.5) + dx) * degrees, dy * degrees, 0, field)
        else:
            frame = view(image, (700 + speed * t + dx, 500 + dy, 1, 0))
            for i, object_ in enumerate(objects):
                near = 1.15 + 0.25 * i
                paste(
                    frame,
                    object_,
                    80 + 200 * i - near * (speed * t + dx) + 60,
                    90 + 60 * i - near * dy,
                )
            yield frame


def ken_burns_share(frames, seed: int) -> float:
    meter = Motion()
    file = encoded(noisy(frames, seed % 4, seed), crf=20 + 3 * (seed % 5))
    feed([meter], decoded(file))
    return meter.score(0, 5)["ken_burns_share"]


def errors(seeds) -> tuple[list[int], list[int]]:
    """Seeds of virtual cameras that were missed, and of real ones that were found."""
    return (
        [s for s in seeds if ken_burns_share(virtual_camera(s), s) < 0.5],
        [s for s in seeds if ken_burns_share(real_camera(s), s) >= 0.3],
    )


def test_ken_burns_effect_is_distinguished_from_a_real_camera():
    assert errors(range(2)) == ([], [])


@pytest.mark.slow
def test_ken_burns_effect_is_found_with_95_percent_precision_and_recall():
    missed, false = errors(range(40))
    assert len(missed) <= 2, missed
    assert len(false) <= 2, false


@pytest.mark.slow
@pytest.mark.skipif(
    not VIDEOS.is_dir(), reason=f"no labelled videos at {VIDEOS}: set LONGTAKE_VIDEOS"
)
def test_no_labelled_take_is_a_ken_burns_effect():
    for path in labelled_takes("take_", "portrait_sea"):
        meter = Motion()
        end_s = feed([meter], decoded(str(path)))
        assert meter.score(0, end_s)["ken_burns_share"] == 0, path
