"""Pictures of several views have a seam; one view with straight edges in it has none."""

import cv2
import numpy as np
import pytest

from stages.meters.seams import Seams, seam_share
from tests.support.drawn import cutout, decoded, encoded, feed, noisy, paste, textured_image, view
from tests.support.drawn_views import SAMPLES, collage, film, grid
from tests.support.paths import VIDEOS, labelled_takes

MAX_SEAM_SHARE = 0.48  # of configs/local.yaml
CAMERAS = ("pan", "static")
STATIC_SCENES = ("door", "window", "shelves", "railing", "road")


def share(frames: list[np.ndarray]) -> float:
    luma = noisy(frames, 2)
    return seam_share(
        [cv2.resize(f, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for f in luma]
    )


def test_split_screens_and_collages_have_a_seam():
    shares = {}
    for columns, rows in ((2, 1), (1, 2), (2, 2), (3, 3)):
        for border in (0, 2, 8, 16):
            cells = grid(columns, rows, border)
            films = [film(number, CAMERAS[number % 2]) for number in range(len(cells))]
            shares[columns, rows, border] = share(collage(films, cells, 255 * (rows == 2)))
    missed = {layout: found for layout, found in shares.items() if found < MAX_SEAM_SHARE}
    assert len(missed) <= 1, missed  # where two smooth grounds of one grey meet without a border


def test_two_parts_of_the_same_film_have_a_seam():
    shown = film(3, "pan")
    later = [*shown[3:], *shown[:3]]
    assert share(collage([shown, later], grid(2, 1, 0))) > MAX_SEAM_SHARE


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("camera", CAMERAS)
def test_one_view_has_no_seam(camera, seed):
    assert share(film(seed, camera)) < 0.3


@pytest.mark.parametrize("bars", [(0, 50), (90, 0), (20, 30)])
def test_black_borders_are_no_seam(bars):
    left, top = bars
    frames = [frame.copy() for frame in film(5, "pan")]
    for frame in frames:
        frame[:top] = frame[360 - top :] = 0
        frame[:, :left] = frame[:, 640 - left :] = 0
    assert share(frames) < 0.3


def straight_edges(kind: str) -> np.ndarray:
    """(360, 640) float32: a wall with texture and something straight before it."""
    scene = view(textured_image(11), (600, 450, 1, 0))
    other = view(textured_image(12), (600, 450, 1, 0))
    if kind == "door":
        scene[60:, 250:390] = 0.4 * other[60:, 250:390] + 90
        scene[60:, 246:250] = scene[60:, 390:394] = scene[56:60, 246:394] = 200
    elif kind == "window":
        scene[50:300, 200:440] = other[50:300, 200:440]
        for part in (slice(200, 208), slice(316, 324), slice(432, 440)):
            scene[50:300, part] = 200 + 15 * np.sin(np.arange(250) / 60)[:, None]
        scene[50:58, 200:440] = scene[171:179, 200:440] = scene[292:300, 200:440] = 210
    elif kind == "shelves":
        for y in (90, 180, 270):
            scene[y : y + 6, 120:560] = 60 + 20 * np.sin(np.arange(440) / 40)
    elif kind == "railing":
        scene[120:, 40:600:40] = scene[120:, 41:600:40] = 30
        scene[116:122] = 40 + 20 * np.sin(np.arange(640) / 25)
    elif kind == "road":
        for y in range(140, 360):
            scene[y, 316 - y // 60 : 324 + y // 60] = 230 if y // 30 % 2 else 90
    return scene


def crossed(scene: np.ndarray) -> list[np.ndarray]:
    """Frames of a static scene through which an object moves."""
    walker, frames = cutout(13, 170), [scene.copy() for _ in range(SAMPLES)]
    for t, frame in enumerate(frames):
        paste(frame, walker, 80 + 65 * t, 250)
    return frames


@pytest.mark.parametrize("kind", STATIC_SCENES)
def test_straight_edges_of_a_static_scene_are_no_seam(kind):
    assert share(crossed(straight_edges(kind))) < MAX_SEAM_SHARE


def test_meter_scores_a_span_of_a_video_and_is_null_for_a_short_one():
    meter = Seams()
    shown = collage([film(1, "pan"), film(2, "static")], grid(2, 1, 4))
    frames = [frame for frame in shown for _ in range(5)]
    feed([meter], decoded(encoded(noisy(frames, 1), 5, 24)), 5)
    assert meter.score(0, SAMPLES)["seam_share"] > MAX_SEAM_SHARE
    assert meter.score(0, 1) == {"seam_share": None}


def test_picture_of_a_few_pixels_has_no_seam():
    assert seam_share([np.zeros((20, 30), np.uint8)] * 5) == 0


@pytest.mark.slow
@pytest.mark.skipif(
    not VIDEOS.is_dir(), reason=f"no labelled videos at {VIDEOS}: set LONGTAKE_VIDEOS"
)
def test_no_labelled_take_has_a_seam():
    for path in labelled_takes("take_"):
        meter = Seams()
        end_s = feed([meter], decoded(str(path)))
        assert meter.score(0, end_s)["seam_share"] < MAX_SEAM_SHARE, path
