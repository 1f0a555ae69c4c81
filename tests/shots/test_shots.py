import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.video.frames import Planes, VideoInfo
from stages.shots.detector import Transitions
from stages.shots.gradual_network import MIN_PLAIN_FRAMES
from stages.shots.learned import LearnedDetector
from tests.support.drawn_scenes import dissolved, encoded, plain, scene, texture, with_noise

FPS = 25.0
ROOT = Path(__file__).resolve().parents[2]


def detect(frames, times_s=None) -> Transitions:
    detector = LearnedDetector()
    detector.setup()
    detector.start(VideoInfo(1280, 720, FPS, 320, 180))
    times_s = np.arange(len(frames)) / FPS if times_s is None else times_s
    for t_s, luma in zip(times_s, frames, strict=True):
        detector.process_frame(float(t_s), Planes(luma))
    return detector.transitions()


NONE = Transitions([], [])


def handheld(i):  # slow
    return 6 * np.sin(i / 9), 3 * np.sin(i / 5)


def pan(speed):
    return lambda i: (speed * i - 250, 0.0)


def across(speed, row=60.0):
    return lambda i: (speed * i - 60, row)


@pytest.mark.parametrize(
    "through", [with_noise, lambda f: encoded(with_noise(f))], ids=["raw", "x264"]
)
def test_hard_cuts_are_found_at_the_exact_frame(through):
    lengths = [40, 7, 25, 60, 15, 33]
    film = [f for seed, n in enumerate(lengths) for f in scene(seed, n, camera=handheld)]
    found = detect(through(film))
    assert found.cuts_s == pytest.approx(np.cumsum(lengths)[:-1] / FPS)
    assert found.gradual == []


@pytest.mark.parametrize("seed", range(4))
def test_jump_cut_is_found_where_only_an_object_jumps(seed):
    def square(i):
        return (60 + 2.0 * i, 30) if i < 40 else (200 - 1.5 * (i - 40), 90)

    film = scene(seed, 80, square=square, square_side=80)  # 11 % of the frame
    assert detect(encoded(with_noise(film))) == Transitions([40 / FPS], [])


def test_jump_cut_of_a_panning_camera_is_found():
    film = scene(3, 100, camera=pan(2.0))
    found = detect(with_noise(film[:40] + film[75:]))
    assert found == Transitions([40 / FPS], [])


UNCUT = {
    "a still image with noise": lambda: scene(1, 60),
    "a fast pan": lambda: scene(2, 60, camera=pan(8.0)),
    "a shaking camera": lambda: scene(
        4, 60, camera=lambda i: tuple(np.random.default_rng(i).normal(0, 4, 2))
    ),
    "a fast object": lambda: scene(5, 60, square=across(14.0)),
    "an object that crosses the frame in five frames": lambda: scene(
        6, 60, square=across(80.0), square_side=90
    ),
    "one frame of flash": lambda: with_light(scene(7, 60), {30: 2.5}),
    "three frames of flash": lambda: with_light(scene(8, 60), {30: 2.5, 31: 2.0, 32: 1.5}),
    "one white frame": lambda: scene(9, 30) + plain(255, 1) + scene(9, 30),
    "a step of exposure": lambda: with_light(scene(10, 60), {i: 0.6 for i in range(30, 60)}),
    "a caption that appears and disappears": lambda: with_caption(
        scene(12, 90, camera=handheld), 33, 66
    ),
}


def with_light(film, gains):
    return [f * gains.get(i, 1.0) for i, f in enumerate(film)]


def with_caption(film, start, end):
    outline, letters = (np.zeros((180, 320), np.uint8) for _ in range(2))
    for ink, width in ((outline, 6), (letters, 2)):
        cv2.putText(ink, "A line of text", (40, 165), 0, 0.9, 255, width)
    lettered = [np.where(letters, 250, np.where(outline, 5, f)) for f in film[start:end]]
    return film[:start] + [f.astype(np.float32) for f in lettered] + film[end:]


@pytest.mark.parametrize(
    "through", [with_noise, lambda f: encoded(with_noise(f))], ids=["raw", "x264"]
)
@pytest.mark.parametrize("name", UNCUT)
def test_no_transition_is_found_in(name, through):
    assert detect(through(UNCUT[name]())) == NONE


def sway(i):  # slow, three blocks wide
    return 15 * np.sin(i / 75), 0.0


def moving_square(i):
    return 130 + 100 * np.sin(i / 30), 90


HEIGHT = np.linspace(0, 1, 180, dtype=np.float32)[:, None]  # of each row, 0 at the top
SHADE = texture(99, 180, 1200) / 255

LIGHTS = {
    "swinging light": lambda t: 0.85 + 0.15 * np.cos(t / 2),
    "a sunset, darker on the ground": lambda t: 1.1 - (0.04 + 0.03 * HEIGHT) * t,
    "passing clouds": lambda t: 0.6 + 0.4 * SHADE[:, int(60 * t) : int(60 * t) + 320],
}


@pytest.mark.parametrize("camera", [sway, handheld], ids=["sway", "handheld"])
@pytest.mark.parametrize("name", LIGHTS)
def test_slow_change_of_light_with_a_moving_camera_is_no_transition(name, camera):
    film = [0.6 * f + 90 for f in scene(2, 250, camera=camera, square=moving_square)]
    assert detect(with_noise([f * LIGHTS[name](i / FPS) for i, f in enumerate(film)])) == NONE


def with_restored_detail(film, light):
    """At a bit rate at which only keyframes have detail and the right brightness."""
    lit = [f * LIGHTS[light](i / FPS) for i, f in enumerate(film)]
    return encoded(with_noise(lit), crf=38, key_every=30)


@pytest.mark.parametrize("camera", [sway, handheld], ids=["sway", "handheld"])
@pytest.mark.parametrize("light", LIGHTS)
def test_codec_keyframe_that_restores_detail_is_no_cut(light, camera):
    film = [0.6 * f + 90 for f in scene(2, 150, camera=camera, square=moving_square)]
    assert detect(with_restored_detail(film, light)).cuts_s == []


@pytest.mark.parametrize("name", ["swinging light", "a sunset, darker on the ground"])
def test_dissolve_in_changing_light_is_found_with_its_bounds(name):
    film = dissolved(
        scene(3, 120, camera=sway, square=moving_square), scene(4, 120, camera=sway), 25
    )
    found = detect(with_noise([f * LIGHTS[name](i / FPS) for i, f in enumerate(film)]))
    ((start_s, end_s),) = found.gradual
    assert start_s == pytest.approx(95 / FPS, abs=0.25)
    assert end_s == pytest.approx(120 / FPS, abs=0.25)


def test_two_wrong_frames_are_no_cut():
    film = with_noise(scene(1, 60, camera=handheld))
    film[30:32] = with_noise(scene(2, 2))
    assert detect(film) == NONE


def test_cut_is_found_in_video_with_repeated_frames():
    """24 frames per second shown at 30: every fourth frame twice."""
    film = with_noise(scene(1, 40, square=across(5.0)) + scene(2, 40, camera=pan(4.0)))
    shown = [i for i in range(80) for _ in range(2 if i % 4 == 3 else 1)]
    found = detect([film[i] for i in shown], np.arange(100) / 30)
    assert found == Transitions([pytest.approx(50 / 30)], [])


@pytest.mark.parametrize("fps", [4, 10])
def test_at_low_frame_rates_only_the_cut_is_found(fps):
    film = with_noise(scene(1, 30, square=across(12.0)) + scene(2, 30, square=across(12.0)))
    assert detect(film, np.arange(60) / fps) == Transitions([30 / fps], [])


def test_at_100_fps_the_cut_is_found_and_a_flash_is_not():
    film = with_noise(with_light(scene(1, 150, camera=handheld), {i: 2.0 for i in range(60, 72)}))
    film += with_noise(scene(2, 100))
    assert detect(film, np.arange(250) / 100) == Transitions([1.5], [])


def test_cut_time_is_the_frames_own_at_a_variable_frame_rate():
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.12, 80))
    film = with_noise(scene(1, 40, camera=handheld) + scene(2, 40, camera=handheld))
    assert detect(film, times) == Transitions([times[40]], [])


def test_redrawn_slides_are_no_cuts():
    slide = np.full((180, 320), 20, np.uint8)
    film = []
    for step in range(5):
        slide = slide.copy()
        cv2.rectangle(slide, (30 + 50 * step, 40), (70 + 50 * step, 120), 220, -1)
        cv2.putText(slide, f"Point {step}", (20, 20 + 30 * step), 0, 0.7, 255, 2)
        film += [slide] * 30
    assert detect(film) == NONE


TRANSITIONS = {
    "a quick dissolve": (lambda: dissolved(scene(1, 60), scene(2, 60), 8), 52, 60),
    "a dissolve": (lambda: dissolved(scene(3, 80, camera=handheld), scene(4, 80), 25), 55, 80),
    "a slow dissolve": (
        lambda: dissolved(scene(5, 120), scene(6, 120, square=across(2.0)), 75),
        45,
        120,
    ),
    "a fade to black": (lambda: dissolved(scene(7, 80), plain(0, 60), 20), 60, 80),
    "a fade to white": (
        lambda: dissolved(scene(8, 80, camera=handheld), plain(240, 60), 20),
        60,
        80,
    ),
    "a fade from black": (
        lambda: dissolved(plain(0, 40), scene(9, 100, camera=handheld), 30),
        10,
        40,
    ),
}


@pytest.mark.parametrize(
    "through", [with_noise, lambda f: encoded(with_noise(f))], ids=["raw", "x264"]
)
@pytest.mark.parametrize("name", TRANSITIONS)
def test_gradual_transition_is_found_with_its_bounds(name, through):
    draw, start, end = TRANSITIONS[name]
    found = detect(through(draw()))
    assert found.cuts_s == []
    ((start_s, end_s),) = found.gradual
    tolerance_s = max(0.25, 0.15 * (end - start) / FPS)
    assert start_s == pytest.approx(start / FPS, abs=tolerance_s)
    assert end_s == pytest.approx(end / FPS, abs=tolerance_s)


@pytest.mark.parametrize("level", [0, 30, 235])
@pytest.mark.parametrize("seed", [31, 32])
def test_plain_picture_beside_a_fade_is_no_part_of_it(level, seed):
    shot, still = scene(seed, 60, camera=handheld), plain(level, 100)
    ((_, end_s),) = detect(with_noise(dissolved(shot, still, 20))).gradual
    assert end_s <= 62 / FPS
    ((start_s, _),) = detect(with_noise(dissolved(still, shot, 20))).gradual
    assert start_s > (80 - MIN_PLAIN_FRAMES) / FPS


def test_video_of_one_colour_one_frame_or_no_frame_has_no_transition():
    assert detect([]) == NONE
    assert detect(with_noise(scene(1, 1))) == NONE
    assert detect([np.zeros((180, 320), np.uint8)] * 30) == NONE


@pytest.mark.parametrize("shape", [(2, 2), (3, 320), (200, 5), (64, 64)])
def test_frames_of_any_shape_are_accepted_and_only_the_change_is_a_cut(shape):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    assert set(detect([first] * 10 + [second] * 10).cuts_s) <= {10 / FPS}


def test_cut_is_found_where_the_frame_size_changes_midway():
    big = with_noise(scene(1, 20, camera=handheld))
    small = [cv2.resize(f, (240, 180)) for f in with_noise(scene(2, 20))]
    assert detect(big + small).cuts_s == [20 / FPS]


def test_detector_starts_each_video_afresh():
    detector = LearnedDetector()
    detector.setup()
    for seed in (1, 1):
        detector.start(VideoInfo(1280, 720, FPS, 320, 180))
        for i, luma in enumerate(with_noise(scene(seed, 20) + scene(seed + 1, 20))):
            detector.process_frame(i / FPS, Planes(luma))
        assert detector.transitions() == Transitions([20 / FPS], [])


@pytest.mark.slow
def test_labelled_cuts_are_found_and_long_takes_stay_whole():
    folder = Path(os.environ.get("LONGTAKE_VIDEOS", ROOT.parent / "shared" / "videos"))
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"{folder}/labels.csv: not there; set LONGTAKE_VIDEOS to the labelled videos")
    command = [sys.executable, "-m", "benchmarks.shots", "--detectors", "learned"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    f1 = re.search(r"hard cuts: F1 (\S+),", done.stdout)
    false_in_takes = re.search(r"in takes (\d+) =", done.stdout)
    assert f1 is not None
    assert float(f1[1]) >= 0.95
    assert false_in_takes is not None
    assert int(false_in_takes[1]) == 0
