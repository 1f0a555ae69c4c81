"""Draws scenes of screens for `scenes.py`: slides of presentations, and pages of the web with
pictures, menus and panels. Each function returns `count` pictures, (height, width, 3) BGR uint8."""

from __future__ import annotations

import cv2
import numpy as np

from benchmarks.transition_network.joins import random_shares

# Grounds of slides, BGR; they are few, so that slides that follow each other may have the same
GROUNDS = np.array(
    [
        *([255, 255, 255], [255, 255, 255], [245, 245, 245], [0, 0, 0], [25, 25, 25]),
        *([80, 40, 20], [60, 60, 60], [210, 230, 240], [120, 70, 30]),
    ],
    np.uint8,
)


def _ink(rng: np.random.Generator, ground: np.ndarray) -> tuple[int, ...]:
    """A colour that stands out from the ground."""
    colour = rng.integers(0, 80, 3) if ground.mean() > 120 else rng.integers(180, 256, 3)
    return tuple(int(c) for c in colour)


def _photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth random colours with some detail, as a photograph has from afar."""
    picture = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((2, 60), (5, 40), (14, 22), (40, 12)):
        noise = rng.normal(0, 1, (cells, cells, 3)) * 0.5 + rng.normal(0, 1, (cells, cells, 1))
        picture += strength * cv2.resize(noise.astype(np.float32), (width, height))
    return np.clip(rng.uniform(60, 190, 3) + picture, 0, 255).astype(np.uint8)


def _place_photo(picture: np.ndarray, rng: np.random.Generator, y: int, most: int) -> int:
    """Draws a photograph of at most `most` px height at row y; returns its height."""
    wide = picture.shape[1]
    height, width = int(rng.integers(12, max(13, most))), int(rng.integers(20, int(wide * 0.7)))
    height = min(height, len(picture) - y)
    x = int(rng.integers(0, wide - width))
    picture[y : y + height, x : x + width] = _photo(rng, height, width)
    return height


def _line(picture: np.ndarray, rng: np.random.Generator, x: int, y: int, ink: tuple) -> None:
    """Draws a line of words from (x, y) on, as bars."""
    end = int(rng.integers(x + 20, picture.shape[1] - 4))
    while x < end:
        word = int(rng.integers(4, 28))
        cv2.rectangle(picture, (x, y), (min(end, x + word), y + 3), ink, -1)
        x += word + 4


def slide(rng: np.random.Generator, count: int, height: int, width: int) -> list[np.ndarray]:
    """A slide with a title, lines and photographs, or a photograph alone. It stays, or its lines
    appear one after the other."""
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    picture = np.broadcast_to(ground, (height, width, 3)).copy()
    ink, accent = _ink(rng, ground), tuple(int(c) for c in rng.integers(0, 256, 3))
    if rng.random() < 0.25:  # a photograph of some shape in the middle, often all of the slide
        tall = height if rng.random() < 0.6 else int(height * rng.uniform(0.5, 0.95))
        wide = min(width, int(tall * rng.choice([0.6, 0.75, 1, 1.33, 1.5, 1.8])))
        y, x = (height - tall) // 2, (width - wide) // 2
        picture[y : y + tall, x : x + wide] = _photo(rng, tall, wide)
        return [picture] * count
    if rng.random() < 0.3:
        picture[: int(height * 0.17)] = accent
    x = int(rng.choice([14, width // 4]))
    if rng.random() < 0.85:
        place, scale = (x, int(height * rng.uniform(0.12, 0.3))), rng.uniform(0.4, 1.1)
        letters = "".join(rng.choice(list("abcdefghijklmno pqrst"), rng.integers(4, 16)))
        cv2.putText(picture, letters, place, 0, scale, ink, int(1 + 2 * scale), cv2.LINE_AA)
    if rng.random() < 0.5:
        _place_photo(picture, rng, height // 3, int(height * 0.6))
    builds = rng.random() < 0.3
    shown: list[np.ndarray] = []
    for number in range(int(rng.integers(0, 7))):
        if builds:
            shown += [picture.copy()] * int(rng.integers(10, 40))
        _line(picture, rng, x, int(height * (0.36 + 0.09 * number)), ink)
    return (shown + [picture] * count)[:count]


def web_page(rng: np.random.Generator, count: int, height: int, width: int) -> list[np.ndarray]:
    """A page with text and photographs that scrolls in flicks, under a bar that stays; now and then
    a menu or a panel slides in, or the page gets darker behind a panel."""
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    page = np.broadcast_to(ground, (6 * height, width, 3)).copy()
    ink, y = _ink(rng, ground), 6
    while y < len(page) - 60:
        if rng.random() < 0.2:
            y += _place_photo(page, rng, y, 60) + 5
        else:
            _line(page, rng, int(rng.choice([8, 40])), y, ink)
            y += int(rng.choice([8, 10, 18]))
    tops = np.zeros(count)
    at = int(rng.integers(3, 40))
    while at < count:  # flicks that slow down, of up to three screens
        length = int(rng.integers(8, 45))
        far = rng.choice([rng.uniform(0.1, 1), rng.uniform(0.5, 3)]) * height
        share = random_shares(rng, length)
        part = tops[at : at + length]
        part += share[: len(part)] * far
        tops[at + length :] += far
        at += length + int(rng.integers(5, 70))
    tops = np.abs((tops + rng.uniform(0, height)) % (8 * height) - 4 * height)  # down, then up
    bar = np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), (14, width, 3))
    has_bar = rng.random() < 0.6
    opened = _panel_shares(rng, count) if rng.random() < 0.5 else np.zeros(count)
    panel = _photo(rng, height, width) if rng.random() < 0.3 else 255 - page[:height]
    reach = int(rng.uniform(0.2, 0.7) * width)
    dims = rng.random() < 0.5
    found = []
    for top, share in zip(tops.astype(int), opened, strict=True):
        picture = page[top : top + height].copy()
        if has_bar:
            picture[: len(bar)] = bar
        if share > 0:
            if dims:
                picture = (picture * (1 - 0.5 * share)).astype(np.uint8)
            edge = max(1, int(reach * share))
            picture[:, :edge] = panel[:, reach - edge : reach]
        found.append(picture)
    return found


def _panel_shares(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,): how far a panel has slid in; it slides out again."""
    length, at = int(rng.integers(3, 20)), int(rng.integers(count))
    stays = int(rng.integers(10, 70))
    t = np.arange(count) - at
    return np.minimum(t / length, (stays + 2 * length - t) / length).clip(0, 1)
