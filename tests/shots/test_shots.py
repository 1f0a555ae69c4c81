import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.video.frames import Planes, VideoInfo
from stages.shots.detector import Transitions
from stages.shots.residual import ResidualDetector
from tests.support.drawn_scenes import encoded, filmed, mixed, plain, scene, texture

FPS = 25.0
ROOT = Path(__file__).resolve().parents[2]


def feed(frames, times_s=None) -> Transitions:
    shots = ResidualDetector()
    shots.start(VideoInfo(1280, 720, FPS, 320, 180))
    times_s = np.arange(len(frames)) / FPS if times_s is None else times_s
    for t_s, luma in zip(times_s, frames, strict=True):
        shots.process_frame(float(t_s), Planes(luma))
    return shots.transitions()


NOTHING = Transitions([], [])


def wander(i):  # a slow hand-held camera
    return 6 * np.sin(i / 9), 3 * np.sin(i / 5)


def pan(speed):
    return lambda i: (speed * i - 250, 0.0)


def across(speed, row=60.0):
    return lambda i: (speed * i - 60, row)


@pytest.mark.parametrize("through", [filmed, lambda f: encoded(filmed(f))], ids=["raw", "x264"])
def test_every_cut_between_places_is_found_on_its_very_frame(through):
    lengths = [40, 7, 25, 60, 15, 33]
    film = [f for seed, n in enumerate(lengths) for f in scene(seed, n, camera=wander)]
    found = feed(through(film))
    assert found.cuts_s == pytest.approx(np.cumsum(lengths)[:-1] / FPS)
    assert found.gradual == []


@pytest.mark.parametrize("through", [filmed, lambda f: encoded(filmed(f))], ids=["raw", "x264"])
@pytest.mark.parametrize("seed", range(4))
def test_a_jump_cut_is_found_where_only_an_object_moves_on_at_once(through, seed):
    def thing(i):
        return (60 + 2.0 * i, 30) if i < 40 else (200 - 1.5 * (i - 40), 90)

    film = scene(seed, 80, thing=thing)
    assert feed(through(film)) == Transitions([40 / FPS], [])


def test_a_jump_cut_of_a_moving_camera_is_found():
    film = scene(3, 100, camera=pan(2.0))
    found = feed(filmed(film[:40] + film[75:]))
    assert found == Transitions([40 / FPS], [])


UNCUT = {
    "a still picture with noise": lambda: scene(1, 60),
    "a fast pan": lambda: scene(2, 60, camera=pan(8.0)),
    "a whip pan between rests": lambda: scene(
        3, 70, camera=lambda i: (np.clip((i - 30) * 30, 0, 270) - 150, 0)
    ),
    "a shaking camera": lambda: scene(
        4, 60, camera=lambda i: tuple(np.random.default_rng(i).normal(0, 4, 2))
    ),
    "a fast object": lambda: scene(5, 60, thing=across(14.0)),
    "an object that flashes by in five frames": lambda: scene(
        6, 60, thing=across(80.0), thing_side=90
    ),
    "one frame of flash": lambda: with_light(scene(7, 60), {30: 2.5}),
    "three frames of flash": lambda: with_light(scene(8, 60), {30: 2.5, 31: 2.0, 32: 1.5}),
    "one white frame": lambda: scene(9, 30) + plain(255, 1) + scene(9, 30),
    "a step of exposure": lambda: with_light(scene(10, 60), {i: 0.6 for i in range(30, 60)}),
    "light that slowly goes": lambda: with_light(
        scene(11, 100), {i: max(0.3, 1 - (i - 20) / 60) for i in range(20, 100)}
    ),
    "a caption that appears and goes": lambda: with_caption(scene(12, 90, camera=wander), 33, 66),
}


def with_light(film, gains):
    return [f * gains.get(i, 1.0) for i, f in enumerate(film)]


def with_caption(film, start, end):
    outline, letters = (np.zeros((180, 320), np.uint8) for _ in range(2))
    for ink, width in ((outline, 6), (letters, 2)):
        cv2.putText(ink, "A line of text", (40, 165), 0, 0.9, 255, width)
    lettered = [np.where(letters, 250, np.where(outline, 5, f)) for f in film[start:end]]
    return film[:start] + [f.astype(np.float32) for f in lettered] + film[end:]


@pytest.mark.parametrize("through", [filmed, lambda f: encoded(filmed(f))], ids=["raw", "x264"])
@pytest.mark.parametrize("name", UNCUT)
def test_no_transition_is_seen_in(name, through):
    assert feed(through(UNCUT[name]())) == NOTHING


def sway(i):  # a slow swing of three blocks' width to and fro
    return 15 * np.sin(i / 75), 0.0


def busy(i):
    return 130 + 100 * np.sin(i / 30), 90


HEIGHT = np.linspace(0, 1, 180, dtype=np.float32)[:, None]  # of each row, 0 at the top
SHADE = texture(99, 180, 1200) / 255

LIGHTS = {
    "light that swings": lambda t: 0.85 + 0.15 * np.cos(t / 2),
    "a sunset, darker on the ground": lambda t: 1.1 - (0.04 + 0.03 * HEIGHT) * t,
    "clouds that pass": lambda t: 0.6 + 0.4 * SHADE[:, int(60 * t) : int(60 * t) + 320],
    "exposure that adapts": lambda t: np.clip(1 - (t - 4) * 0.3, 0.5, 1),
}


@pytest.mark.parametrize("camera", [sway, wander], ids=["swaying", "in hand"])
@pytest.mark.parametrize("name", LIGHTS)
def test_a_slow_change_of_light_on_a_moving_camera_is_no_transition(name, camera):
    film = [0.6 * f + 90 for f in scene(2, 250, camera=camera, thing=busy)]
    assert feed(filmed([f * LIGHTS[name](i / FPS) for i, f in enumerate(film)])) == NOTHING


def pumping(film, light):
    """At a bit rate at which only key frames hold any detail, and bring the light up to date."""
    lit = [f * LIGHTS[light](i / FPS) for i, f in enumerate(film)]
    return encoded(filmed(lit), crf=38, key_every=30)


@pytest.mark.parametrize("camera", [sway, wander], ids=["swaying", "in hand"])
@pytest.mark.parametrize("light", LIGHTS)
def test_a_key_frame_that_brings_back_lost_detail_is_no_cut(light, camera):
    film = [0.6 * f + 90 for f in scene(2, 150, camera=camera, thing=busy)]
    assert feed(pumping(film, light)) == NOTHING


@pytest.mark.parametrize("at", [60, 70], ids=["at a key frame of the rhythm", "between them"])
@pytest.mark.parametrize("light", LIGHTS)
def test_a_jump_cut_among_such_key_frames_is_found(light, at):
    def jumping(i):
        return (60 + i, 30) if i < at else (200 - i / 2, 100)

    film = [0.6 * f + 90 for f in scene(2, 150, camera=sway, thing=jumping)]
    assert feed(pumping(film, light)) == Transitions([at / FPS], [])


@pytest.mark.parametrize("name", ["light that swings", "a sunset, darker on the ground"])
def test_a_dissolve_in_changing_light_is_found_and_ends_where_it_ends(name):
    film = mixed(scene(3, 120, camera=sway, thing=busy), scene(4, 120, camera=sway), 25)
    found = feed(filmed([f * LIGHTS[name](i / FPS) for i, f in enumerate(film)]))
    ((start_s, end_s),) = found.gradual
    assert start_s == pytest.approx(95 / FPS, abs=0.25)
    assert end_s == pytest.approx(120 / FPS, abs=0.25)


def test_a_glitch_of_two_frames_splits_nothing():
    film = filmed(scene(1, 60, camera=wander))
    film[30:32] = filmed(scene(2, 2))
    assert feed(film) == NOTHING


def test_repeated_frames_change_nothing():
    """24 frames per second shown at 30: every fourth frame twice."""
    film = filmed(scene(1, 40, thing=across(5.0)) + scene(2, 40, camera=pan(4.0)))
    shown = [i for i in range(80) for _ in range(2 if i % 4 == 3 else 1)]
    found = feed([film[i] for i in shown], np.arange(100) / 30)
    assert found == Transitions([pytest.approx(50 / 30)], [])


@pytest.mark.parametrize("fps", [4, 10])
def test_at_low_frame_rates_motion_is_no_cut_but_a_cut_is(fps):
    film = filmed(scene(1, 30, thing=across(12.0)) + scene(2, 30, thing=across(12.0)))
    assert feed(film, np.arange(60) / fps) == Transitions([30 / fps], [])


def test_at_a_hundred_frames_per_second_a_cut_is_found_and_a_flash_is_not():
    film = filmed(with_light(scene(1, 150, camera=wander), {i: 2.0 for i in range(60, 72)}))
    film += filmed(scene(2, 100))
    assert feed(film, np.arange(250) / 100) == Transitions([1.5], [])


def test_times_of_variable_rate_are_reported_as_they_are():
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.12, 80))
    film = filmed(scene(1, 40, camera=wander) + scene(2, 40, camera=wander))
    assert feed(film, times) == Transitions([times[40]], [])


def test_slides_that_are_redrawn_are_no_cuts():
    slide = np.full((180, 320), 20, np.uint8)
    film = []
    for step in range(5):
        slide = slide.copy()
        cv2.rectangle(slide, (30 + 50 * step, 40), (70 + 50 * step, 120), 220, -1)
        cv2.putText(slide, f"Point {step}", (20, 20 + 30 * step), 0, 0.7, 255, 2)
        film += [slide] * 30
    assert feed(film) == NOTHING


MIXES = {
    "a quick dissolve": (lambda: mixed(scene(1, 60), scene(2, 60), 8), 52, 60),
    "a dissolve": (lambda: mixed(scene(3, 80, camera=wander), scene(4, 80), 25), 55, 80),
    "a slow dissolve": (
        lambda: mixed(scene(5, 120), scene(6, 120, thing=across(2.0)), 75),
        45,
        120,
    ),
    "a fade to black": (lambda: mixed(scene(7, 80), plain(0, 60), 20), 60, 80),
    "a fade to white": (lambda: mixed(scene(8, 80, camera=wander), plain(240, 60), 20), 60, 80),
    "a fade from black": (lambda: mixed(plain(0, 40), scene(9, 100, camera=wander), 30), 10, 40),
}


@pytest.mark.parametrize("through", [filmed, lambda f: encoded(filmed(f))], ids=["raw", "x264"])
@pytest.mark.parametrize("name", MIXES)
def test_a_gradual_transition_is_found_with_its_bounds(name, through):
    draw, start, end = MIXES[name]
    found = feed(through(draw()))
    assert found.cuts_s == []
    ((start_s, end_s),) = found.gradual
    assert start_s == pytest.approx(start / FPS, abs=0.25)
    assert end_s == pytest.approx(end / FPS, abs=0.25)


def test_a_video_of_one_colour_or_one_frame_or_none_has_no_transition():
    assert feed([]) == NOTHING
    assert feed(filmed(scene(1, 1))) == NOTHING
    assert feed([np.zeros((180, 320), np.uint8)] * 30) == NOTHING


@pytest.mark.parametrize("shape", [(2, 2), (3, 320), (200, 5), (64, 64)])
def test_pictures_of_any_shape_are_taken_and_nothing_is_found_where_nothing_changes(shape):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    assert set(feed([first] * 10 + [second] * 10).cuts_s) <= {10 / FPS}


def test_a_change_of_size_midway_is_survived():
    big = filmed(scene(1, 20, camera=wander))
    small = [cv2.resize(f, (240, 180)) for f in filmed(scene(2, 20))]
    assert feed(big + small).cuts_s == [20 / FPS]


def test_a_meter_forgets_the_last_video():
    shots = ResidualDetector()
    for seed in (1, 1):
        shots.start(VideoInfo(1280, 720, FPS, 320, 180))
        for i, luma in enumerate(filmed(scene(seed, 20) + scene(seed + 1, 20))):
            shots.process_frame(i / FPS, Planes(luma))
        assert shots.transitions() == Transitions([20 / FPS], [])


def test_what_the_meter_keeps_does_not_grow_with_the_video():
    shots = ResidualDetector()
    shots.start(VideoInfo(1280, 720, FPS, 320, 180))
    luma = texture(1, 180, 320).astype(np.uint8)
    for i in range(2000):
        shots.process_frame(i / FPS, Planes(luma))
    assert len(shots._frames) < 40


@pytest.mark.slow
def test_on_labelled_videos_cuts_are_found_and_long_takes_are_left_whole():
    folder = Path(os.environ.get("LONGTAKE_VIDEOS", ROOT.parent / "shared" / "videos"))
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"{folder}/labels.csv: not there; set LONGTAKE_VIDEOS to the labelled videos")
    script = [sys.executable, str(ROOT / "benchmarks" / "shots.py")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    (row,) = (line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ours "))
    f1, false_in_takes = float(row[4]), int(row[7])
    assert f1 >= 0.95
    assert false_in_takes == 0
