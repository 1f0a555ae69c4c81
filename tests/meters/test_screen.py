"""Pages of text and user interfaces are screens, in any colours; footage with captions is none."""

import cv2
import numpy as np
import pytest

from curation.images import encode_jpeg
from stages.meters.key_frame_scores import key_frame_scores
from stages.meters.screen import screen_share
from tests.support.drawn import noisy, textured_image, view
from tests.support.drawn_views import text_page

MAX_SCREEN_SHARE = 0.08  # of configs/local.yaml
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


def test_blank_and_tiny_images_are_no_screen():
    assert screen_share(np.zeros((216, 384), np.uint8)) == 0
    assert screen_share(np.zeros((3, 5), np.uint8)) == 0


def test_clip_without_key_frames_has_no_screen_share():
    assert key_frame_scores([])["screen_share"] is None
