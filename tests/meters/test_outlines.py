"""Insets and panels have an outline that shows several views; what a scene contains has none."""

import cv2
import numpy as np
import pytest

from stages.meters.outlines import outline_share
from stages.meters.panels import panel_share
from tests.meters.test_seams import STATIC_SCENES, crossed, straight_edges
from tests.support.drawn import noisy, textured_image, view
from tests.support.drawn_views import SAMPLES, collage, film

MAX_SEAM_SHARE = 0.48  # of configs/local.yaml
PLACES = {
    "top left": (0, 0),
    "top right": (440, 0),
    "bottom right": (440, 210),
    "with a margin": (24, 186),
}


def share(frames: list[np.ndarray]) -> float:
    luma = noisy(frames, 2)
    half = [cv2.resize(f, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for f in luma]
    stack = np.stack(half)
    return max(outline_share(stack), panel_share(stack))


def with_inset(main: str, place: str, border: int = 0, seed: int = 0) -> list[np.ndarray]:
    """A view that pans to the left, in another that is static or pans to the right."""
    x, y = PLACES[place]
    frames = [frame.copy() for frame in film(seed, main)]
    for frame, inset in zip(frames, film(seed + 40, "pan")[::-1], strict=True):
        frame[max(0, y - border) : y + 150 + border, max(0, x - border) : x + 200 + border] = 255
        frame[y : y + 150, x : x + 200] = inset[100:250, 200:400]
    return frames


@pytest.mark.parametrize("place", PLACES)
def test_inset_in_a_moving_view_is_found(place):
    assert share(with_inset("pan", place)) > MAX_SEAM_SHARE


@pytest.mark.parametrize("border", [0, 10])
def test_inset_in_a_static_view_is_found(border):
    assert share(with_inset("static", "with a margin", border)) > MAX_SEAM_SHARE


@pytest.mark.parametrize("degrees", [1.2, -2.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_television_in_a_room_is_no_inset(seed, degrees):
    turn = cv2.getRotationMatrix2D((320, 180), degrees, 0.4)
    mask = cv2.warpAffine(np.ones((360, 640), np.float32), turn, (640, 360))
    room = film(seed, "static")
    shown = [cv2.warpAffine(frame, turn, (640, 360)) for frame in film(seed + 50, "pan")]
    frames = [mask * inside + (1 - mask) * frame for inside, frame in zip(shown, room, strict=True)]
    assert share(frames) < MAX_SEAM_SHARE


@pytest.mark.parametrize("kind", STATIC_SCENES)
def test_rectangles_of_a_static_scene_are_no_inset(kind):
    assert share(crossed(straight_edges(kind))) < MAX_SEAM_SHARE


@pytest.mark.parametrize("camera", ["pan", "static"])
@pytest.mark.parametrize("box", [(24, 24, 120, 70), (0, 290, 640, 50), (120, 300, 400, 40)])
def test_logos_banners_and_boxes_of_text_are_no_inset(box, camera):
    x, y, width, height = box
    frames = [frame.copy() for frame in film(7, camera)]
    for t, frame in enumerate(frames):
        plate = np.full((height, width), 40, np.uint8)
        cv2.putText(plate, f"PART {t // 4}", (6, height - 14), 0, 0.7, 220, 2, cv2.LINE_AA)
        frame[y : y + height, x : x + width] = plate
    assert share(frames) < MAX_SEAM_SHARE


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.7])
def test_translucent_plate_over_a_moving_view_is_no_inset(seed, alpha):
    frames = [frame.copy() for frame in film(seed, "pan")]
    for frame in frames:
        plate = np.full((90, 200), 30, np.uint8)
        cv2.putText(plate, "DISTANCE", (12, 58), 0, 1.0, 230, 2, cv2.LINE_AA)
        frame[24:114, 220:420] = alpha * plate + (1 - alpha) * frame[24:114, 220:420]
    assert share(frames) < MAX_SEAM_SHARE


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("blur_px", [8, 20])
def test_blurred_patch_of_a_moving_view_is_no_inset(seed, blur_px):
    frames = [frame.copy() for frame in film(seed, "pan")]
    for frame in frames:
        frame[:120, 440:] = cv2.GaussianBlur(frame[:120, 440:], (0, 0), blur_px)
    assert share(frames) < MAX_SEAM_SHARE


@pytest.mark.parametrize("bars", [(0, 50), (90, 0), (60, 40)])
def test_one_view_between_black_bars_is_no_inset(bars):
    left, top = bars
    frames = [np.zeros((360, 640), np.float32) for _ in range(SAMPLES)]
    area = slice(top, 360 - top), slice(left, 640 - left)
    for frame, shown in zip(frames, film(5, "pan"), strict=True):
        frame[area] = shown[area]
    assert share(frames) < MAX_SEAM_SHARE


@pytest.mark.parametrize("grey", [0, 255])
def test_two_panels_on_one_colour_are_found(grey):
    cells = [(20, 80, 270, 200), (350, 70, 270, 200)]
    assert share(collage([film(1, "pan"), film(2, "pan")], cells, grey)) > MAX_SEAM_SHARE


def test_two_round_views_on_black_are_found():
    frames = collage([film(1, "pan"), film(2, "pan")], [(15, 40, 280, 280), (345, 40, 280, 280)])
    mask = np.zeros((360, 640), np.float32)
    for x in (155, 485):
        cv2.circle(mask, (x, 180), 138, (1.0,), -1, cv2.LINE_AA)
    assert share([frame * mask for frame in frames]) > MAX_SEAM_SHARE


@pytest.mark.parametrize("seed", range(3))
def test_moving_camera_shows_no_inset(seed):
    image = textured_image(seed)
    frames = [view(image, (500 + 35 * t, 450, 1, 0)) for t in range(SAMPLES)]
    assert share(frames) < 0.3


def test_picture_of_a_few_pixels_has_no_outline():
    small = np.zeros((5, 20, 30), np.uint8)
    assert (outline_share(small), panel_share(small)) == (0, 0)
