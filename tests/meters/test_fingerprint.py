"""Fingerprints of drawn videos: which copies keep them, and which other clips do not."""

import time

import cv2
import numpy as np
import pytest

from curation.video.frames import Planes, VideoInfo
from stages.meters.fingerprint import CODE, SIGNS, Fingerprint, image_span

WIDTH, HEIGHT = 320, 180
PATH = np.random.default_rng(5).uniform(0.1, 0.9, (40, 2))  # of the ball, one point a second


def background(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(40, 200, (9, 16)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def ball(t_s: float, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(height, width) grey: a bright ball that moves before a static background."""
    image = background(1, width, height).copy()
    k, share = int(t_s) % (len(PATH) - 1), t_s % 1
    path = np.roll(PATH, seed * 7, axis=0)
    x, y = path[k] * (1 - share) + path[k + 1] * share
    cv2.circle(image, (int(x * width), int(y * height)), width // 12, 240.0, -1)
    return image


def fingerprint_of(image_at, seconds: float = 15.0, fps: float = 30.0, times=None) -> Fingerprint:
    meter = Fingerprint()
    meter.start(VideoInfo(1280, 720, fps, WIDTH, HEIGHT))
    for t in np.arange(0, seconds, 1 / fps) if times is None else times:
        grey = np.clip(image_at(t), 0, 255).astype(np.uint8)
        meter.process_frame(float(t), Planes(grey))
    return meter


def codes_of(meter: Fingerprint, start_s: float = 0.0, end_s: float = 15.0) -> np.ndarray:
    return np.frombuffer(meter.encode(start_s, end_s), CODE)


def differing(one: np.ndarray, two: np.ndarray, part: str) -> float:
    """Share of differing bits in the ticks in which something moves."""
    n = min(len(one), len(two))
    bits = np.bitwise_count((one[part][:n] ^ two[part][:n]) & SIGNS) / 63
    return float(bits[one["motion"][:n] > SIGNS].mean())


@pytest.fixture(scope="module")
def original() -> np.ndarray:
    return codes_of(fingerprint_of(ball))


def test_fingerprint_of_15_s_takes_less_than_a_kilobyte():
    assert len(fingerprint_of(ball).encode(0, 15)) == 960


COPIES = {
    "darker, with less contrast": lambda t: ball(t) * 0.9 - 10,
    "brighter, with more contrast": lambda t: ball(t) * 1.1 + 5,
    "half the size": lambda t: ball(t, 0, WIDTH // 2, HEIGHT // 2),
    "another shape of pixels": lambda t: ball(t, 0, 240, 180),
    "letterboxed": lambda t: cv2.copyMakeBorder(ball(t), 30, 30, 0, 0, cv2.BORDER_CONSTANT),
    "noisy": lambda t: ball(t) + np.random.default_rng(int(t * 1e4)).normal(0, 6, (HEIGHT, WIDTH)),
}


@pytest.mark.parametrize("how", COPIES)
def test_edited_copy_has_nearly_the_same_fingerprint(original, how):
    copy = codes_of(fingerprint_of(COPIES[how]))
    assert differing(original, copy, "picture") < 0.08
    assert differing(original, copy, "motion") < 0.12


@pytest.mark.parametrize("fps", [24.0, 12.0, 59.94])
def test_copy_at_another_frame_rate_has_nearly_the_same_fingerprint(original, fps):
    copy = codes_of(fingerprint_of(ball, fps=fps))
    assert differing(original, copy, "picture") < 0.08
    assert differing(original, copy, "motion") < 0.12


def test_copy_with_a_variable_frame_rate_has_nearly_the_same_fingerprint(original):
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.06, 440))
    copy = codes_of(fingerprint_of(ball, times=times[times < 15] - times[0]))
    assert differing(original, copy, "motion") < 0.12


def test_trimmed_copy_has_the_codes_of_its_later_start(original):
    trimmed = codes_of(
        fingerprint_of(lambda t: ball(t + 3.1))
    )  # the grids are a tenth of a second apart
    assert differing(original[12:], trimmed, "motion") < 0.2


def test_static_camera_at_another_time_has_the_same_content_but_other_motion(original):
    other = codes_of(fingerprint_of(lambda t: ball(t, seed=2)))
    assert differing(original, other, "picture") < 0.3  # the ball itself is elsewhere
    assert 0.35 < differing(original, other, "motion") < 0.65


def test_another_scene_has_other_content(original):
    other = codes_of(fingerprint_of(lambda t: ball(t) - background(1) + background(2)))
    assert differing(original, other, "picture") > 0.3


def test_change_of_light_and_noise_are_no_motion():
    rng = np.random.default_rng(0)
    meter = fingerprint_of(
        lambda t: background(1) + 30 * np.sin(t) + rng.normal(0, 4, (HEIGHT, WIDTH)), seconds=5
    )
    # The change of light is a tenth of the contrast: nothing is clipped.
    assert not (codes_of(meter, 0, 5)["motion"] > SIGNS).any()


def test_fingerprint_depends_only_on_the_span_of_the_clip():
    meter = fingerprint_of(lambda t: ball(t) if t < 10 else background(7), seconds=12)
    alone = fingerprint_of(ball, seconds=10)
    assert meter.encode(2, 9) == alone.encode(2, 9)


def test_each_video_starts_afresh():
    meter = fingerprint_of(ball, seconds=5)
    meter.start(VideoInfo(1280, 720, 30, WIDTH, HEIGHT))
    assert meter.encode(0, 5) == b""
    for t in np.arange(0, 5, 1 / 30):
        meter.process_frame(float(t), Planes(ball(t, 3).astype(np.uint8)))
    assert meter.encode(0, 5) == fingerprint_of(lambda t: ball(t, 3), seconds=5).encode(0, 5)


def test_span_without_a_whole_tick_has_an_empty_fingerprint():
    meter = fingerprint_of(ball, seconds=3)
    assert meter.encode(1.05, 1.2) == b""
    assert meter.encode(2, 2) == b""


def test_frame_that_is_shown_for_weeks_takes_no_time():
    start = time.process_time()
    meter = fingerprint_of(ball, times=[0.0, 0.1, 2e6, 2e6 + 0.1])
    assert len(meter.encode(1e6, 1e6 + 15)) == 960
    assert not (codes_of(meter, 1e6, 1e6 + 15)["motion"] > SIGNS).any()
    assert time.process_time() - start < 1.0


def test_black_borders_with_a_sharp_edge_are_left_out():
    rows = np.full(180, 120.0)
    assert image_span(rows) == (0.0, 1.0)
    rows[:22] = rows[158:] = 1.0
    assert image_span(rows) == pytest.approx((22 / 180, 158 / 180))
    assert image_span(rows + 12) == pytest.approx((22 / 180, 158 / 180))  # borders graded as well
    assert image_span(np.linspace(0, 120, 180)) == (0.0, 1.0)  # a dark sky
    assert image_span(np.zeros(180)) == (0.0, 1.0)


def test_frame_takes_less_than_a_tenth_of_a_millisecond():
    frames = [Planes(ball(t).astype(np.uint8)) for t in np.arange(0, 2, 1 / 30)]
    meter = fingerprint_of(ball, seconds=0.1)
    start = time.process_time()
    for k in range(600):
        meter.process_frame(1 + k / 30, frames[k % len(frames)])
    assert (time.process_time() - start) / 600 < 1e-4
