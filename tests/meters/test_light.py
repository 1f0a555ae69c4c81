"""Brightness, and borders as opposed to night, fades and subtitles."""

import cv2
import numpy as np
import pytest

from curation.video.frames import VideoInfo
from stages.meters.light import Light
from tests.support.drawn import (
    HEIGHT,
    WIDTH,
    decoded,
    encoded,
    feed,
    noisy,
    planes,
    textured_image,
    times,
    view,
)


def scene(seed: int = 1, gain: float = 1.0):
    image = textured_image(seed)
    return [gain * view(image, (600 + 40 * t, 500, 1.0, 0)) for t in times(3, 5)]


def with_borders(frames, left=0, top=0, right=0, bottom=0, luma=0):
    for frame in frames:
        boxed = np.full_like(frame, luma)
        part = np.s_[top : HEIGHT - bottom, left : WIDTH - right]
        boxed[part] = frame[part]
        yield boxed


def measured_borders(frames):
    meter = Light()
    feed([meter], decoded(encoded(noisy(frames, 1.5), 5)), 5)
    return meter.borders(0, 3), meter.score(0, 3)["border_share"]


@pytest.mark.parametrize(
    "widths", [{"top": 44, "bottom": 44}, {"left": 80, "right": 80}, {"top": 20}]
)
def test_borders_are_measured_to_a_line_or_two(widths):
    found, share = measured_borders(with_borders(scene(), **widths))
    sizes = {"left": WIDTH, "right": WIDTH, "top": HEIGHT, "bottom": HEIGHT}
    expected = [widths.get(side, 0) / sizes[side] for side in ("left", "top", "right", "bottom")]
    assert found == pytest.approx(expected, abs=0.012)
    assert share == pytest.approx(
        1 - (1 - sum(expected[::2])) * (1 - sum(expected[1::2])), abs=0.02
    )


@pytest.mark.parametrize("luma", [40, 235])
@pytest.mark.parametrize("widths", [{"top": 44, "bottom": 44}, {"left": 90, "right": 40}])
def test_borders_of_another_colour_on_opposite_sides_are_measured(widths, luma):
    found, _ = measured_borders(with_borders(scene(), **widths, luma=luma))
    sizes = {"left": WIDTH, "right": WIDTH, "top": HEIGHT, "bottom": HEIGHT}
    expected = [widths.get(side, 0) / sizes[side] for side in ("left", "top", "right", "bottom")]
    assert found == pytest.approx(expected, abs=0.012)


def test_white_sky_above_the_sea_is_no_border():
    assert measured_borders(with_borders(scene(), top=60, luma=250))[1] == 0


def test_black_border_below_a_white_sky_is_measured():
    sky = with_borders(scene(), top=30, luma=250)
    found, _ = measured_borders(with_borders(sky, bottom=36))
    assert found == pytest.approx((0, 0, 0, 36 / HEIGHT), abs=0.012)


@pytest.mark.parametrize("radius", [30, 60])
def test_white_studio_around_an_object_is_no_border(radius):
    texture = textured_image(2)[:HEIGHT, :WIDTH]
    shape = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(shape, (WIDTH // 2, HEIGHT // 2), radius, 1, -1)
    frames = [np.where(shape > 0, np.roll(texture, 3 * i, axis=1), 245.0) for i in range(15)]
    assert measured_borders(frames)[1] == 0


def test_full_frame_has_no_borders():
    assert measured_borders(scene()) == ((0, 0, 0, 0), 0)


def test_dark_night_sky_is_no_border():
    roofs = np.repeat(np.random.default_rng(1).uniform(60, 260, 32), WIDTH // 32)
    night = np.arange(HEIGHT)[:, None] < roofs
    frames = [np.where(night, 2.0, frame * 0.4) for frame in scene(2)]
    assert measured_borders(frames)[1] == 0


def test_border_with_a_subtitle_is_found():
    frames = list(with_borders(scene(), top=44, bottom=44))
    for frame in frames:
        text = np.zeros(frame.shape, np.uint8)
        cv2.putText(
            text, "and where did it go then?", (150, 345), cv2.FONT_HERSHEY_DUPLEX, 0.8, 255, 2
        )
        frame[text > 0] = 250
    assert measured_borders(frames)[0] == pytest.approx((0, 44 / HEIGHT, 0, 44 / HEIGHT), abs=0.012)


def test_black_page_of_text_has_no_borders():
    page = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row in range(4):
        place = (40, 80 + 70 * row)
        cv2.putText(page, "what was found here", place, cv2.FONT_HERSHEY_DUPLEX, 1.6, 255, 3)
    page[260:330, 30:610] = 200  # a box, wide and bright
    assert measured_borders([page] * 15)[1] == 0


def test_fade_to_black_is_no_border_and_hides_none():
    faded = [
        frame * gain
        for frame, gain in zip(with_borders(scene(), top=44), np.linspace(1, 0, 15), strict=True)
    ]
    assert measured_borders(faded)[0] == pytest.approx((0, 44 / HEIGHT, 0, 0), abs=0.012)
    assert measured_borders([np.zeros((HEIGHT, WIDTH))] * 15)[1] == 0


def test_brightness_is_the_mean_luma_of_the_span():
    meter = Light()
    levels = [np.full((HEIGHT, WIDTH), level) for level in [40.0] * 50 + [200.0] * 50]
    feed([meter], planes(noisy(levels, 0)))
    assert meter.score(0, 2)["brightness"] == pytest.approx(40)
    assert meter.score_segment(2, 4) == {"brightness": pytest.approx(200)}
    assert meter.score(0, 4)["brightness"] == pytest.approx(120)


def test_span_before_any_frame_has_no_score():
    meter = Light()
    meter.start(VideoInfo(640, 360, 25, 320, 180))
    assert meter.score(0, 1) == dict.fromkeys(meter.writes)
