"""What random training sequences have in addition to their shots: changes of light, overlays, and
how they are recorded."""

from __future__ import annotations

import numpy as np

from benchmarks.transition_network.joins import random_colour, random_shares
from benchmarks.transition_network.plan import (
    BLURRED_SURROUND,
    PLAIN_SURROUND,
    STILL_SURROUND,
    WHOLE_FRAME,
    Plan,
    Shot,
)


def add_light(plan: Plan, rng: np.random.Generator) -> None:
    """Adds random changes of light to a plan."""
    light, count = plan.light, len(plan.light)
    if rng.random() < 0.12:  # flashes of a lamp or a photographer
        for at in rng.integers(0, count, int(rng.integers(1, 5))):
            span = slice(at, at + int(rng.integers(1, 5)))
            light[span, 1] += rng.uniform(30, 220)
            light[at, 4] = rng.choice([1, rng.uniform(0.2, 0.9)])
    if rng.random() < 0.06:  # stage light
        every = int(rng.integers(2, 8))
        steps = rng.normal(0, 1, (count // every + 1, 4)) * np.array([0.25, 5, 10, 10])
        light[:, :4] += np.repeat(steps, every, axis=0)[:count]
    if rng.random() < 0.05:  # strobe light: short and bright, with darkness between
        period, at = int(rng.integers(2, 14)), int(rng.integers(count))
        is_lit = np.arange(count) % period < rng.integers(1, max(2, period // 2))
        is_lit[:at] = True
        light[:, 0] *= np.where(is_lit, 1, rng.uniform(0.05, 0.6))
        light[at:, 1] += is_lit[at:] * rng.choice([0, rng.uniform(0, 90)])
    if rng.random() < 0.10:  # automatic exposure, clouds
        rate, depth = rng.uniform(8, 60), rng.uniform(0.15, 0.6)
        light[:, 0] *= 1 - depth * (0.5 - 0.5 * np.cos(np.arange(count) / rate))
    if rng.random() < 0.16:  # it gets darker or brighter, and stays so or comes back
        share = _random_change(count, rng, 6, 100)
        least = rng.uniform(0.3, 0.8)
        gain = 1 - (1 - least) * (share if rng.random() < 0.6 else 1 - share)
        light[:, 0] *= gain
        light[:, 2:4] += (rng.normal(0, 8, 2) * share[:, None]) * (rng.random() < 0.4)
    if rng.random() < 0.06:  # automatic white balance
        share = _random_change(count, rng, 1, 60)
        light[:, 2:4] += rng.normal(0, 14, 2) * share[:, None]
        light[:, 0] *= 1 + rng.normal(0, 0.08) * share
    if rng.random() < 0.05:  # automatic exposure that finds its level in swings
        light[:, 0] *= np.exp(rng.uniform(-0.8, 0.8) * _random_hunt(count, rng))
    if rng.random() < 0.06:  # so does the focus
        light[:, 5] = rng.uniform(0.3, 3) * np.abs(_random_hunt(count, rng)).clip(0, 1)
    if rng.random() < 0.06:  # a light switch
        at = int(rng.integers(count))
        light[at : at + int(rng.integers(10, count)), 0] *= rng.uniform(0.35, 0.7)
    if rng.random() < 0.1:  # night
        light[:, 0] *= rng.uniform(0.12, 0.35)
        light[:, 1] += rng.uniform(0, 8)
    light[:, 0] = light[:, 0].clip(0.05, 3)


def _random_change(count: int, rng: np.random.Generator, least: int, most: int) -> np.ndarray:
    """(count,), from 0 to 1 within some frames, and in some cases back to 0."""
    length, at = int(rng.integers(least, most)), int(rng.integers(count))
    change = np.zeros(count)
    part = change[at : at + length]
    part[:] = random_shares(rng, length)[: len(part)]
    change[at + length :] = 1
    if rng.random() < 0.25:
        back = change[at + length + int(rng.integers(0, 40)) :]
        back[:] = 1 - (np.arange(1, len(back) + 1) / (length + 1)).clip(0, 1)
    return change


def _random_hunt(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,), -1 to 1: leaves 0 within some frames and comes back in swings that get smaller."""
    t = np.arange(count) - int(rng.integers(-10, count))
    swings = np.exp(-t.clip(0) / rng.uniform(6, 40)) * np.cos(t / rng.uniform(2, 12))
    rise = (t / rng.integers(2, 12) + 1).clip(0, 1)
    return np.where(t < 0, rise, swings)


def random_recording(rng: np.random.Generator, area: np.ndarray) -> np.ndarray:
    """A random Plan.recording, float32.  area: the last numbers of it, as
    `random_area` draws them."""
    kind = rng.random()
    numbers = [
        0 if rng.random() < 0.12 else np.exp(rng.normal(0, 0.2)),
        rng.uniform(-np.pi, np.pi) if kind < 0.2 else rng.normal(0, 0.1),
        rng.choice([0, rng.uniform(0, 1.2), rng.uniform(0, 4)], p=[0.4, 0.45, 0.15]),
        rng.choice([0, rng.integers(1, 8)], p=[0.8, 0.2]),
        rng.random() < 0.5,
        rng.random() < 0.06,
        rng.choice([0, rng.uniform(0.5, 5)], p=[0.7, 0.3]),
        rng.choice([0, rng.uniform(2, 14)], p=[0.88, 0.12]),
        rng.choice([12, 24, 30, 48, 60, 250]),
        np.exp(rng.normal(0, 0.18)),
        np.exp(rng.normal(0, 0.18)),
        *area,
    ]
    return np.array(numbers, np.float32)


def random_area(rng: np.random.Generator, row: int) -> np.ndarray:
    """The part of the frame in which a portrait or a 4:3 video is shown, and its surround: the last
    numbers of RECORDING.  row: a frame of the footage."""
    area = np.array(WHOLE_FRAME, np.float32)
    half = rng.uniform(0.14, 0.4, 2)
    kind = rng.random()
    if kind < 0.7:  # bars at the sides
        area[2] = rng.choice([half[0], 0.158, 0.28, 0.375], p=[0.55, 0.2, 0.1, 0.15])
    elif kind < 0.85:  # above and below
        area[3] = half[1]
    else:
        area[2:4] = half + 0.05
    if rng.random() < 0.35:  # anywhere
        area[:2] = rng.uniform(area[2:4], 1 - area[2:4])
    area[4] = rng.choice([PLAIN_SURROUND, BLURRED_SURROUND, STILL_SURROUND], p=[0.6, 0.25, 0.15])
    area[5:8] = random_colour(rng) if rng.random() < 0.4 else (rng.choice([0, 0, 16]), 128, 128)
    if area[4] == BLURRED_SURROUND:
        area[5] = rng.uniform(90, 255)
    area[8] = row
    return area


def _add_slide(path: np.ndarray, at: int, end: int, rng: np.random.Generator) -> None:
    """Changes an overlay's x and y, (count, 2), in place: it moves in from beyond an edge of the
    picture from frame `at` on, and often moves out again before frame `end`."""
    length = int(rng.integers(3, 18))
    away = [(-0.7, 0), (0.7, 0), (0, -0.6), (0, 0.6)][rng.integers(4)]
    far = 1 - random_shares(rng, length)
    part = path[at : at + length]
    part += far[: len(part), None] * np.array(away)
    if rng.random() < 0.6:
        start = max(at, end - length)
        part = path[start:end]
        part += far[::-1][: len(part), None] * np.array(away)


def random_patch(count: int, rng: np.random.Generator, shot: Shot) -> np.ndarray:
    """(count, 8), as one of Plan.patches: in one sequence of three a permanent display, an inset, a
    window or a menu that opens, or an object that passes, which shows the shot."""
    patch, kind = np.zeros((count, 8), np.float32), rng.random()
    if kind < 0.17:  # a display: a strip, or a corner
        height, width = rng.uniform(0.04, 0.16), rng.choice([1.0, rng.uniform(0.08, 0.5)])
        if rng.random() < 0.25:
            height, width = width / 2 + 0.1, height
        patch[:, :4] = rng.choice([0, 1]), rng.choice([0, 1]), width, height * 2
        patch[:, 4], patch[:, 7] = rng.uniform(0.6, 1), 1
    elif kind < 0.19:
        side = rng.uniform(0.1, 0.2)
        place = [rng.choice([side, 1 - side]) for _ in range(2)]
        patch[:, :5] = *place, side, side, 1
    elif kind < 0.25:
        patch = _random_window(count, rng)
    elif kind < 0.3:
        patch = _random_passing_object(count, rng)
    patch[:, 6] = shot.first
    if 0.17 <= kind < 0.19:  # an inset that plays
        patch[:, 6] += np.arange(count) % (shot.end - shot.first)
    return patch


def _random_window(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 8), as one of Plan.patches: a window, a menu or a translucent panel that opens over
    the picture."""
    patch = np.zeros((count, 8), np.float32)
    at, length = int(rng.integers(count)), int(rng.integers(8, 150))
    patch[:, :2] = rng.uniform(0.25, 0.75, 2)
    patch[:, 2:4] = rng.uniform(0.1, 0.38, 2)
    opacity = np.zeros(count)
    opacity[at : at + length] = rng.choice([rng.uniform(0.6, 1), rng.uniform(0.25, 0.8)])
    kind = rng.random()
    if rng.random() < 0.35:  # along a whole side of the frame
        axis, half = int(rng.integers(2)), rng.uniform(0.07, 0.3)
        patch[:, axis], patch[:, 1 - axis] = rng.choice([half, 1 - half]), 0.5
        patch[:, 2 + axis], patch[:, 3 - axis] = half, 0.5
    if kind < 0.4:
        _add_slide(patch[:, :2], at, min(count, at + length), rng)
    elif kind < 0.7:
        opacity = _smoothed(opacity, int(rng.integers(2, 12)))
    elif kind < 0.85:  # opens from its centre
        n = int(rng.integers(3, 12))
        part = patch[at : at + n, 2:4]
        part *= random_shares(rng, n)[: len(part), None]
    patch[:, 4] = opacity
    return patch


def _random_passing_object(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 8), as one of Plan.patches: a large object that crosses the picture or turns
    back."""
    patch = np.zeros((count, 8), np.float32)
    patch[:, 2:4] = rng.uniform(0.12, 0.55), rng.uniform(0.3, 1.0)
    at, length = int(rng.integers(count)), int(rng.integers(6, 50))
    x = (np.arange(count) - at) / length * 2.2 - 0.6
    if rng.random() < 0.3:  # turns back
        x = 0.8 - np.abs(x - 0.5) * rng.uniform(1, 2)
    patch[:, 0] = x if rng.random() < 0.5 else 1 - x
    patch[:, 1] = rng.uniform(0.2, 0.8) + 0.03 * np.sin(np.arange(count) / 3)
    patch[:, 4] = (x > -0.7) & (x < 1.7)
    patch[:, 5] = rng.random() < 0.7
    return patch


def _smoothed(opacity: np.ndarray, ramp: int) -> np.ndarray:
    """opacity: (count,).  Returns it with steps that take 2 * ramp + 1 frames."""
    kernel = np.ones(2 * ramp + 1) / (2 * ramp + 1)
    return np.convolve(np.pad(opacity, ramp, "edge"), kernel, "valid")


def random_box(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 10), as one of Plan.boxes: a caption, a title, an icon or a translucent panel that
    appears and disappears, a lamp, a passing object, or a permanent display."""
    box, glows = np.zeros((count, 10), np.float32), False
    kind = rng.choice(
        ["caption", "title", "icon", "panel", "lamp", "passing", "display"],
        p=[0.24, 0.1, 0.16, 0.09, 0.1, 0.1, 0.21],
    )
    at, length = int(rng.integers(count)), int(rng.integers(4, 90))
    box[:, 5:8] = random_colour(rng)
    box[:, 0], box[:, 1] = rng.uniform(0, 1, 2)
    box[:, 8] = float(kind in ("lamp", "passing"))  # round and soft
    if kind == "caption":
        box[:, :4] = (
            0.5 + rng.normal(0, 0.08),
            rng.choice([0.85, 0.15, 0.5]),
            rng.uniform(0.1, 0.4),
            rng.uniform(0.03, 0.12),
        )
        box[:, 9] = 1  # is text
    elif kind == "title":
        box[:, :4] = 0.5, rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.5), rng.uniform(0.08, 0.3)
        box[:, 9] = rng.random() < 0.7
    elif kind == "icon":
        box[:, 2:4] = rng.uniform(0.02, 0.2, 2)
        box[:, 9] = rng.random() < 0.4
    elif kind == "panel":  # of a part of the frame or the whole
        box[:, :2] = rng.choice([0.5, rng.uniform(0.2, 0.8)]), rng.uniform(0.2, 0.8)
        box[:, 2:4] = rng.uniform(0.2, 0.7, 2)
    elif kind == "lamp":
        glows = bool(rng.random() < 0.5)
        box[:, 2:4] = rng.uniform(0.03, 0.5 if glows else 0.25, 2)
        length = int(rng.integers(20, 190) if glows else rng.integers(1, 16))
    elif kind == "passing":
        box[:, 2:4] = rng.uniform(0.15, 0.5), rng.uniform(0.3, 1.2)
        length = int(rng.integers(5, 24))
        x = (np.arange(count) - at) / length * 1.8 - 0.4
        box[:, 0] = x if rng.random() < 0.5 else 1 - x
    else:
        side = rng.uniform(0.04, 0.15)
        box[:, :4] = (
            rng.choice([side, 1 - side, 0.5]),
            rng.choice([side, 1 - side]),
            rng.uniform(0.04, 0.5),
            side,
        )
        box[:, 9] = rng.choice([0, 1])
        at, length = 0, count
    opacity = np.zeros(count, np.float32)
    opacity[at : at + length] = rng.uniform(0.25, 0.75) if kind == "panel" else rng.uniform(0.5, 1)
    if glows:
        opacity *= 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(count) - at) / rng.uniform(12, 120))
    if kind in ("caption", "title", "icon", "panel"):
        if (way := rng.random()) < 0.4:
            opacity = _smoothed(opacity, int(rng.integers(2, 12)))
        elif way < 0.65:
            _add_slide(box[:, :2], at, min(count, at + length), rng)
    box[:, 4] = opacity
    return box
