"""Draws scenes of flat colours, as they are in two-dimensional games, animation, slides, menus and
titles.

    python -m benchmarks.transition_network.scenes OUT

OUT gets SCENE_COUNT sources without transitions, as `collect.py` writes the takes of real footage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.transition_network.screens import slide, web_page
from benchmarks.transition_network.sources import Source, write_source
from stages.shots.frame_view import HEIGHT, WIDTH

SCALE = 4  # scenes are drawn this much larger than they are stored
WIDE, HIGH = WIDTH * SCALE, HEIGHT * SCALE
FRAMES = 110  # of a scene
FIRST_SCREEN = 420  # the scenes from this number on are those of `screens.py`
SCENE_COUNT = 560
Colour = tuple[int, int, int]


def _palette(rng: np.random.Generator, count: int) -> list[Colour]:
    """`count` colours of similar hues, BGR."""
    hue, spread = rng.uniform(0, 180), rng.choice([8, 30, 90])
    hsv = np.stack(
        [
            (hue + rng.normal(0, spread, count)) % 180,
            rng.uniform(0, 1, count) ** 0.7 * 255,
            rng.uniform(0.1, 1, count) * 255,
        ],
        axis=1,
    )
    bgr = cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2BGR)[0]
    return [tuple(int(c) for c in colour) for colour in bgr]


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A plain or shaded picture, (height, width, 3) BGR uint8."""
    top, bottom = (np.array(c, np.float32) for c in _palette(rng, 2))
    if rng.random() < 0.4:
        bottom = top
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    picture = top * (1 - share) + bottom * share
    return np.broadcast_to(picture, (height, width, 3)).astype(np.uint8).copy()


def _shape(
    picture: np.ndarray, rng: np.random.Generator, x: float, y: float, size: float, colour: Colour
) -> None:
    """Draws a filled shape of a kind that `rng` chooses."""
    at, half, kind = (int(x), int(y)), max(1, int(size / 2)), rng.integers(4)
    if kind == 0:
        cv2.circle(picture, at, half, colour, -1, cv2.LINE_AA)
    elif kind == 1:
        corners = (at[0] - half, at[1] - half), (at[0] + half, at[1] + half)
        cv2.rectangle(picture, *corners, colour, -1)
    else:
        count = int(rng.integers(3, 8))
        angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 6)
        radii = half * rng.uniform(0.5, 1.2, count)
        points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
        cv2.fillPoly(picture, [points.astype(np.int32)], colour, cv2.LINE_AA)


def _text(picture: np.ndarray, rng: np.random.Generator, x: int, y: int, size: float) -> None:
    """Draws random letters from (x, y) on; `size` is OpenCV's font scale."""
    letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz  0123"), rng.integers(3, 24)))
    colour = (255, 255, 255) if rng.random() < 0.5 else _palette(rng, 1)[0]
    cv2.putText(picture, letters, (x, y), 0, size, colour, int(1 + 2 * size), cv2.LINE_AA)


def tiles(rng: np.random.Generator) -> list[np.ndarray]:
    """A game: layers of tiles scroll at several speeds, and figures move in front of them."""
    size = int(rng.choice([8, 12, 16, 24]))
    layers = []
    for depth in range(int(rng.integers(1, 4))):
        wide = 3 * WIDE
        layer, solid = np.zeros((HIGH, wide, 3), np.uint8), np.zeros((HIGH, wide), bool)
        colours = _palette(rng, 4)
        is_map = rng.random() < 0.4 and depth == 0
        heights = np.cumsum(rng.integers(-1, 2, wide // size + 1)) % 5 + 1 + depth
        for column in range(wide // size):
            for row in range(HIGH // size + 1):
                filled = is_map or row >= HIGH // size - heights[column] or rng.random() < 0.04
                if filled:
                    y, x = row * size, column * size
                    layer[y : y + size, x : x + size] = colours[rng.integers(4)]
                    layer[y : y + 1, x : x + size] = 0
                    solid[y : y + size, x : x + size] = True
        layers.append((layer, solid))
    ground = _ground(rng, HIGH, WIDE)
    speed = rng.choice([0, rng.uniform(0.3, 6)]) * rng.choice([-1, 1])
    figures = [
        (rng.uniform(0, 1, 2) * (WIDE, HIGH), rng.normal(0, 2.5, 2), rng.uniform(5, 30))
        for _ in range(int(rng.integers(1, 12)))
    ]
    colours, seeds = _palette(rng, len(figures)), rng.integers(0, 1 << 30, len(figures))
    pauses = np.repeat(rng.random(FRAMES // 20 + 1) < 0.8, 20)[:FRAMES]
    shifts = np.cumsum(speed * pauses)
    found = []
    for number in range(FRAMES):
        picture = ground.copy()
        for depth, (layer, solid) in enumerate(layers):
            shift = int(shifts[number] * (depth + 1) / len(layers))
            columns = (np.arange(WIDE) + shift) % layer.shape[1]
            mask = solid[:, columns]
            picture[mask] = layer[:, columns][mask]
        for (at, step, side), colour, seed in zip(figures, colours, seeds, strict=True):
            x, y = (at + number * step) % (WIDE, HIGH)
            _shape(picture, np.random.default_rng(seed), x, y, side, colour)
        found.append(picture)
    return found


def graphics(rng: np.random.Generator) -> list[np.ndarray]:
    """Animation: some large flat shapes that move, turn and grow, and titles."""
    ground = _ground(rng, HIGH, WIDE)
    for _ in range(int(rng.integers(0, 6))):
        _shape(
            ground,
            rng,
            *rng.uniform(0, 1, 2) * (WIDE, HIGH),
            rng.uniform(20, 140),
            _palette(rng, 1)[0],
        )
    for _ in range(int(rng.integers(0, 3))):
        _text(
            ground,
            rng,
            *(int(v) for v in rng.uniform(0, 0.8, 2) * (WIDE, HIGH)),
            rng.uniform(0.4, 2),
        )
    count = int(rng.integers(0, 6))
    places, steps = rng.uniform(0, 1, (count, 2)) * (WIDE, HIGH), rng.normal(0, 1.2, (count, 2))
    sizes, growth = rng.uniform(10, 90, count), rng.normal(0, 0.3, count)
    colours, seeds = _palette(rng, max(1, count)), rng.integers(0, 1 << 30, count)
    found = []
    for number in range(FRAMES):
        picture = ground.copy()
        for n in range(count):
            x, y = places[n] + number * steps[n]
            size = abs(sizes[n] + number * growth[n])
            _shape(picture, np.random.default_rng(seeds[n]), x, y, size, colours[n])
        found.append(picture)
    return found


def page(rng: np.random.Generator) -> list[np.ndarray]:
    """A screen: a page of text lines and fields that scrolls now and then."""
    height = 4 * HIGH
    ground = _ground(rng, height, WIDE)
    ink = (255, 255, 255) if ground.mean() < 110 else (30, 30, 30)
    if rng.random() < 0.3:
        ink = _palette(rng, 1)[0]
    y = 8
    while y < height - 10:
        if rng.random() < 0.15:
            side = int(rng.integers(10, 60))
            x = int(rng.integers(0, WIDE - side))
            ground[y : y + side, x : x + 2 * side] = _palette(rng, 1)[0]
            y += side + 4
        x, end = int(rng.choice([8, 60])), int(rng.integers(60, WIDE))
        while x < end:
            word = int(rng.integers(4, 30))
            cv2.rectangle(ground, (x, y), (min(end, x + word), y + 3), ink, -1)
            x += word + 4
        y += int(rng.choice([7, 9, 20]))
    bar = _ground(rng, int(rng.integers(8, 24)), WIDE) if rng.random() < 0.6 else None
    goals = rng.normal(0, 4, FRAMES // 10 + 1) * (rng.random(FRAMES // 10 + 1) < 0.3)
    speeds = np.repeat(goals, 10)
    tops = np.abs(np.cumsum(speeds[:FRAMES]) + rng.uniform(0, HIGH)).astype(int) % (height - HIGH)
    found = []
    for top in tops:
        picture = ground[top : top + HIGH].copy()
        if bar is not None:
            picture[: len(bar)] = bar
        found.append(picture)
    return found


def title(rng: np.random.Generator) -> list[np.ndarray]:
    """Some centred lines of text, often with an emblem, on black or on another plain ground. They
    stay, or grow or shrink slowly."""
    picture = (
        np.zeros((HIGH, WIDE, 3), np.uint8) if rng.random() < 0.6 else _ground(rng, HIGH, WIDE)
    )
    size = rng.uniform(0.4, 1.6)
    y = int(HIGH * rng.uniform(0.35, 0.6))
    for _ in range(int(rng.integers(0, 4))):
        x = int(WIDE * rng.uniform(0.1, 0.35))
        _text(picture, rng, x, y, size)
        y += int(34 * size)
        size *= rng.uniform(0.5, 1)
    if rng.random() < 0.5:
        place = rng.uniform(0.25, 0.75, 2) * (WIDE, HIGH)
        _shape(picture, rng, *place, rng.uniform(8, 60), _palette(rng, 1)[0])
    growth = rng.choice([0, rng.normal(0, 0.002)])
    centre = (WIDE / 2, HIGH / 2)
    found = []
    for number in range(FRAMES):
        scaled = cv2.getRotationMatrix2D(centre, 0, 1 + growth * number)
        edge = cv2.BORDER_REPLICATE
        found.append(cv2.warpAffine(picture, scaled, (WIDE, HIGH), borderMode=edge))
    return found


SCENES: list[Callable[[np.random.Generator], list[np.ndarray]]] = [tiles, graphics, page, title]


def draw_scene(number: int) -> np.ndarray:
    """(FRAMES, 36, 64, 3) uint8, Y, Cb and Cr."""
    rng = np.random.default_rng([19, number])
    if number < FIRST_SCREEN:
        pictures = SCENES[rng.choice(4, p=[0.38, 0.34, 0.13, 0.15])](rng)
    else:
        pictures = (slide if rng.random() < 0.6 else web_page)(rng, FRAMES, HIGH, WIDE)
    small = [cv2.resize(p, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for p in pictures]
    return np.array([cv2.cvtColor(p, cv2.COLOR_BGR2YCrCb)[:, :, [0, 2, 1]] for p in small])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    times_s = [number / 25 for number in range(FRAMES)]
    for number in range(SCENE_COUNT):
        name = f"scene-{number:04d}"
        source = Source(name, name, False, times_s, [], [], [])
        write_source(args.out / f"{name}.npz", source, draw_scene(number))


if __name__ == "__main__":
    main()
