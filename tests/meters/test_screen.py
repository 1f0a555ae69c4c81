"""Pages of text and windows are screens, in any colours; footage with captions is none."""

import cv2
import numpy as np
import pytest

from curation.images import encode_jpeg
from stages.meters.key_frame_scores import key_frame_scores
from stages.meters.screen import screen_share
from tests.support.drawn import noisy, textured_image, view
from tests.support.drawn_views import text_page, window

MAX_SCREEN_SHARE = 0.08  # of configs/local.yaml
WINDOW = (0.3, 0.2, 0.7, 0.75)
WINDOW_SHARE = 0.4 * 0.55
CORNERS = ((0.0, 0.0, 0.3, 0.08), (0.0, 0.92, 0.16, 1.0))


def footage(seed: int) -> np.ndarray:
    """(720, 1280) uint8."""
    [frame] = noisy([view(textured_image(seed), (800, 500, 1, 0), (1280, 720))], 2, seed)
    return frame


def as_scored(frame: np.ndarray) -> float:
    """The score of a key frame that was stored as the decode pass stores it."""
    small = cv2.resize(frame, (768, 432), interpolation=cv2.INTER_AREA)
    jpeg = encode_jpeg(cv2.cvtColor(small, cv2.COLOR_GRAY2BGR), 90)
    share = key_frame_scores([jpeg])["screen_share"]
    assert share is not None
    return share


@pytest.mark.parametrize("letter_px", [12, 18, 32])
@pytest.mark.parametrize(("ground", "ink"), [(30, 210), (255, 20), (20, 110), (200, 60)])
def test_page_of_text_is_a_screen_in_any_colours_and_size(ground, ink, letter_px):
    assert as_scored(text_page(letter_px, ground, ink, letter_px)) > 2 * MAX_SCREEN_SHARE


def test_window_over_footage_is_a_screen():
    page = text_page(1, 25, 200, 14, (0.3, 0.1, 0.95, 0.9), footage(1))
    assert as_scored(page) > 2 * MAX_SCREEN_SHARE


@pytest.mark.parametrize("seed", range(4))
def test_footage_is_no_screen(seed):
    assert as_scored(footage(seed)) < 0.01


@pytest.mark.parametrize("darkening", [1, 3, 25])
def test_two_caption_boxes_in_corners_are_no_screen(darkening):
    frame = footage(5) // darkening
    for number, box in enumerate(CORNERS):
        frame = text_page(number, 230, 20, 34, box, frame)
    assert as_scored(frame) < MAX_SCREEN_SHARE / 1.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("ground", "ink", "opacity"), [(30, 210, 1), (250, 20, 1), (235, 20, 0.9)])
def test_window_with_little_text_counts_as_a_whole(ground, ink, opacity, seed):
    desktop = window(ground, ink, WINDOW, footage(seed), opacity)
    assert 0.8 * WINDOW_SHARE < as_scored(desktop) < 1.1 * WINDOW_SHARE


@pytest.mark.parametrize("degrees", [0, 2])
@pytest.mark.parametrize("grey", [8, 120, 255])
def test_door_window_and_dark_television_are_no_screen(grey, degrees):
    frame = footage(2)
    corners = cv2.boxPoints(((600, 350), (420, 300), degrees)).astype(np.int32)
    cv2.fillConvexPoly(frame, corners, grey, cv2.LINE_AA)
    assert as_scored(frame) < 0.01


def test_tilted_sign_with_text_does_not_count_as_a_whole():
    sign = window(235, 20, WINDOW, footage(2))
    turn = cv2.getRotationMatrix2D((640, 360), 3, 1)
    assert as_scored(cv2.warpAffine(sign, turn, (1280, 720))) < WINDOW_SHARE / 2


def test_wide_banner_with_few_words_does_not_count_as_a_whole():
    banner = window(235, 20, (0.08, 0.72, 0.92, 0.88), footage(2))
    assert as_scored(banner) < MAX_SCREEN_SHARE / 1.5


def test_blank_and_tiny_images_are_no_screen():
    assert screen_share(np.zeros((216, 384), np.uint8)) == 0
    assert screen_share(np.zeros((3, 5), np.uint8)) == 0


def test_clip_without_key_frames_has_no_screen_share():
    assert key_frame_scores([])["screen_share"] is None
