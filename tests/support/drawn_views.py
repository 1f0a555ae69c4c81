"""Draws pictures of several views, and screens: pages of text in any colours, windows."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from tests.support.drawn import cutout, paste, textured_image, view

SAMPLES = 8  # one a second
Cell = tuple[int, int, int, int]  # x, y, width, height


@cache
def film(seed: int, camera: str, size: tuple[int, int] = (640, 360)) -> list[np.ndarray]:
    """One frame a second, (h, w) float32, not to be changed.

    The camera pans, or it is static and an object moves before it.
    """
    image, object_ = textured_image(seed), cutout(seed, 150)
    frames = []
    for t in range(SAMPLES):
        shift = 35 * t if camera == "pan" else 0
        frame = view(image, (500 + shift, 450 + shift / 4, 1, 0), size)
        if camera == "static":
            paste(frame, object_, size[0] * (0.2 + 0.08 * t), size[1] * 0.6)
        frames.append(frame)
    return frames


def grid(columns: int, rows: int, border: int, size: tuple[int, int] = (640, 360)) -> list[Cell]:
    width, height = (
        (side - border * (count - 1)) // count
        for side, count in zip(size, (columns, rows), strict=True)
    )
    return [
        (column * (width + border), row * (height + border), width, height)
        for row in range(rows)
        for column in range(columns)
    ]


def collage(
    films: list[list[np.ndarray]],
    cells: list[Cell],
    grey: int = 0,
    size: tuple[int, int] = (640, 360),
) -> list[np.ndarray]:
    """The films, each in the middle of its cell; between the cells is grey."""
    frames = []
    for t in range(SAMPLES):
        frame = np.full(size[::-1], grey, np.float32)
        for shown, (x, y, width, height) in zip(films, cells, strict=True):
            source = shown[t]
            top, left = (source.shape[0] - height) // 2, (source.shape[1] - width) // 2
            frame[y : y + height, x : x + width] = source[top : top + height, left : left + width]
        frames.append(frame)
    return frames


def text_page(
    seed: int,
    ground: int,
    ink: int,
    letter_px: int,
    box: tuple[float, float, float, float] = (0.02, 0.02, 0.98, 0.98),
    frame: np.ndarray | None = None,
    size: tuple[int, int] = (1280, 720),
) -> np.ndarray:
    """(h, w) uint8: lines of text of random length in a box (left, top, right, bottom, shares).

    frame: what lies around the box; without one it is blank.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    page = np.full((height, width), ground, np.uint8) if frame is None else frame.copy()
    left, top, right, bottom = (
        round(b * side) for b, side in zip(box, (*size, *size), strict=True)
    )
    page[top:bottom, left:right] = ground
    for y in range(top + round(1.2 * letter_px), bottom, round(1.6 * letter_px)):
        letters = "".join(rng.choice(list("abcdefghijk lmnop()=_"), 200))
        fits = int((right - left) * rng.uniform(0.3, 0.95) / (0.65 * letter_px))
        cv2.putText(page, letters[:fits], (left + 4, y), 0, letter_px / 30, ink, 1, cv2.LINE_AA)
    return page


def window(
    ground: int,
    ink: int,
    box: tuple[float, float, float, float],
    frame: np.ndarray,
    opacity: float = 1.0,
) -> np.ndarray:
    """(h, w) uint8: the frame with a window in a box: a title bar, and a few words below it.

    opacity: below 1, the frame shows through the window, blurred.
    """
    height, width = frame.shape
    left, top, right, bottom = (
        round(b * side) for b, side in zip(box, (width, height) * 2, strict=True)
    )
    page, inside = frame.copy(), (slice(top, bottom), slice(left, right))
    behind = cv2.GaussianBlur(frame, (0, 0), 60)[inside]
    page[inside] = (opacity * ground + (1 - opacity) * behind).astype(np.uint8)
    page[top : top + 24, left:right] = ground // 2 + 64
    for text, y in (("Terminal", 17), ("last login: today", 60), ("user@host: ls", 82)):
        x = (left + right) // 2 - 40 if y < 24 else left + 16
        cv2.putText(page, text, (x, top + y), 0, 0.5, ink, 1, cv2.LINE_AA)
    return page
