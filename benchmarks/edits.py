"""Draws films whose transitions are known exactly, edited from single takes of real footage.

    python -m benchmarks.edits OUT [--half development|figures] [--seed 0] [--films 1]

Every film holds three transitions of one kind (KINDS) under one condition (CONDITIONS), or three
events that are no transition (negatives). OUT gets the films as mp4 files and `edits.jsonl`, one
line a film: file, kind, condition, frames per second, and the transitions as spans of frames.

Footage: the long takes of the labelled videos (LONGTAKE_VIDEOS), and of those of
benchmarks/labels that lie as SHA256.* in LONGTAKE_LABELLED, where that is set. A source belongs to
one half, by the parity of its sha256: thresholds are chosen on films of one half, figures come
from the other.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np

from benchmarks.footage import HIGH, MOST, WIDE, Take, single_takes

WIDTH, HEIGHT = 320, 180  # px, of a film
# the footage is WIDE x HIGH px: room for a virtual camera
SOURCES = 14  # takes that the films of a condition are drawn from
VARIATION = 20  # frames, by which the distance of two transitions varies
Frames = list[np.ndarray]  # (HEIGHT, WIDTH, 3) BGR uint8 each


@dataclass
class Transition:
    """first, last: the frames that belong to no shot; a hard cut has first = last + 1."""

    first: int  # of the transition; of a hard cut, the first frame after it
    last: int
    kind: str


@dataclass
class Film:
    file: str
    kind: str
    condition: str
    fps: float
    frames: int
    transitions: list[Transition] = field(default_factory=list)


# ---------------------------------------------------------------- pieces of footage


@lru_cache(maxsize=20)  # 70 MB each; some films in a row draw from the same takes
def _read(take: Take) -> Frames:
    return take.frames(WIDE, HIGH, MOST)


def drawn_take(rng: np.random.Generator) -> Frames:
    """A grey or coloured scene of drawn textures: things move before a slow camera."""
    size = HIGH + 160, WIDE + 240
    image = np.zeros((*size, 3), np.float32)
    for octave in (4, 9, 20, 45):
        noise = rng.normal(0, 1, (size[0] // octave + 2, size[1] // octave + 2, 3))
        if rng.random() < 0.5:
            noise[:] = noise[:, :, :1]  # grey
        image += cv2.resize(noise.astype(np.float32), size[::-1]) * octave**0.5
    image = rng.uniform(70, 160) + image * rng.uniform(4, 14)
    ground = np.clip(image, 0, 255).astype(np.uint8)
    velocity = rng.uniform(-0.4, 0.4, 2) * (rng.random() < 0.6)
    boxes = [
        (rng.uniform(0, 250, 2), rng.uniform(-2.5, 2.5, 2), rng.integers(20, 60, 2))
        for _ in range(int(rng.integers(1, 4)))
    ]
    colours = rng.integers(0, 256, (len(boxes), 3))
    found = []
    for number in range(250):
        x, y = 120 + number * velocity[0], 80 + number * velocity[1]
        matrix = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
        frame = cv2.warpAffine(ground, matrix, (WIDE, HIGH), borderMode=cv2.BORDER_REFLECT)
        for (place, step, side), colour in zip(boxes, colours, strict=True):
            corner = (place + number * step) % (WIDE, HIGH)
            (x0, y0), (x1, y1) = corner.astype(int), (corner + side).astype(int)
            part = frame[y0:y1, x0:x1]
            part[:] = _mix(part, np.broadcast_to(colour.astype(np.uint8), part.shape), 0.8)
        found.append(frame)
    return found


class Footage:
    """The takes of one half, read once each, and pieces of them under a virtual camera."""

    def __init__(
        self, takes: list[Take], rng: np.random.Generator, transitions: int = 3, piece: int = 75
    ) -> None:
        """transitions: of a film. piece: frames between two of them, about."""
        self._takes, self._rng, self._last = takes, rng, ""
        self.transitions, self.piece = transitions, piece
        self.drawn = False  # drawn scenes in place of the takes
        self.speed = 1  # times as fast as the takes

    def take(self) -> Frames:
        """Frames of a random take of another source than the last one, WIDE x HIGH."""
        if self.drawn:
            return drawn_take(self._rng)
        others = [take for take in self._takes if take.path != self._last]
        take = others[self._rng.integers(len(others))]
        self._last = take.path
        return _read(take)

    def pieces(self, kind: str, condition: str) -> list[Frames]:
        """Pieces for a film, longer than it shows of them; of one camera for jump cuts. One piece,
        as long as the film, where nothing is joined."""
        same = kind in ("jump_cut", "dissolve_same_place") or kind in NEGATIVES
        found: list[Frames] = []
        source = self.take()
        if kind in NEGATIVES:  # one piece long enough for the whole film
            whole = _loop(source, 0, (self.transitions + 1) * self.piece, self.speed)
            view = VIEWS.get(condition, _steady)(whole, self._rng)
            return [view]
        length = self.piece + VARIATION + 2 * KINDS[kind][1]
        camera = int(self._rng.integers(1 << 30))
        for number in range(self.transitions + 1):
            if not same:
                source = self.take()
            start = int(self._rng.integers(len(source))) if same else 0
            view = VIEWS.get(condition, _steady)
            if condition == "screen" and number % 2:  # from the desktop to footage and back
                view = _steady
            # the same camera and background on both sides of a jump cut
            rng = np.random.default_rng(camera) if same else self._rng
            if kind == "fade_plain" and number % 2:  # each second piece is black, white or grey
                level = int(self._rng.choice([0, 0, 16, 255, 128]))
                found.append([np.full((HEIGHT, WIDTH, 3), level, np.uint8)] * length)
                continue
            piece = _loop(source, start, length, self.speed)
            if same and condition == "plain_background":
                found.append(_before_plain(piece, rng, shift=number))
            else:
                found.append(view(piece, rng))
        return found


def _loop(frames: Frames, start: int, length: int, speed: int) -> Frames:
    """`length` frames from `start`, played forth and back where the take is shorter."""
    order = list(range(len(frames))) + list(range(len(frames) - 2, 0, -1))
    return [frames[order[(start + i * speed) % len(order)]] for i in range(length)]


def _crop(frame: np.ndarray, x: float, y: float) -> np.ndarray:
    matrix = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
    return cv2.warpAffine(frame, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)


def _steady(frames: Frames, rng: np.random.Generator) -> Frames:
    return [_crop(f, 40, 23) for f in frames]


def _handheld(frames: Frames, rng: np.random.Generator) -> Frames:
    """Shake: a smoothed random walk of some pixels a frame, with two jolts a piece."""
    steps = rng.normal(0, 2.5, (len(frames), 2))
    steps[rng.integers(0, len(frames), 2)] += rng.normal(0, 14, (2, 2))
    path = cv2.GaussianBlur(np.cumsum(steps, axis=0) * 0.5, (1, 5), 1.0)
    path -= cv2.blur(path, (1, 61))
    return [_crop(f, 40 + x, 23 + y) for f, (x, y) in zip(frames, path, strict=True)]


def _fast_pan(frames: Frames, rng: np.random.Generator) -> Frames:
    """A pan of 5 to 14 px a frame over the mirrored picture, with motion blur."""
    speed = rng.uniform(5, 14) * rng.choice([-1, 1])
    size = max(3, int(abs(speed)) | 1)
    kernel = np.full((1, size), 1 / size, np.float32)
    period = 2 * (WIDE - 1)
    found = []
    for number, frame in enumerate(frames):
        x = (40 + number * speed) % period
        wide = np.concatenate([frame, frame[:, ::-1], frame], axis=1)
        found.append(cv2.filter2D(_crop(wide, x, 23), -1, kernel))
    return found


def _fast_camera(frames: Frames, rng: np.random.Generator) -> Frames:
    """A camera as in a game, of a drone or in a running hand: it turns, rolls and nears in bursts,
    over the picture and its mirror images; without motion blur in half of the films."""
    count = len(frames)
    goals = rng.normal(0, 1, (count // 6 + 4, 4)) * (rng.random((count // 6 + 4, 1)) < 0.5)
    speed = cv2.resize(goals, (4, 6 * len(goals)), interpolation=cv2.INTER_CUBIC)[:count]
    speed *= rng.uniform(0.3, 1.0) * np.array([45, 14, 4, 0.04])  # px, px, degrees, log of zoom
    path = np.cumsum(speed, axis=0)
    path[:, 2:] -= cv2.blur(path[:, 2:], (1, 61))  # level and at the same distance in the mean
    blurred, found = rng.random() < 0.5, []
    for frame, (x, y, angle, near), (dx, dy, *_) in zip(frames, path, speed, strict=True):
        centre = (WIDE / 2, HIGH / 2)
        matrix = cv2.getRotationMatrix2D(centre, float(angle), float(np.exp(near + 0.15)))
        matrix[:, 2] -= 40 + x % (2 * WIDE), 23 + y % (2 * HIGH)
        wide = cv2.copyMakeBorder(frame, 0, 2 * HIGH, 0, 2 * WIDE, cv2.BORDER_REFLECT)
        moved = cv2.warpAffine(wide, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_WRAP)
        size = max(1, int(abs(dx) / 2)), max(1, int(abs(dy) / 2))
        found.append(cv2.blur(moved, size) if blurred and max(size) > 1 else moved)
    return found


def _before_plain(frames: Frames, rng: np.random.Generator, shift: int = 0) -> Frames:
    """Head and shoulders, filled with moving footage, before a plain wall. shift: pose number."""
    colour = rng.integers(0, 256, 3).astype(np.float32)
    shade = np.linspace(1, rng.uniform(0.85, 1.0), WIDTH, dtype=np.float32)[None, :, None]
    wall = np.clip(np.ones((HEIGHT, 1, 1), np.float32) * colour * shade, 0, 255)
    poses = np.random.default_rng(shift * 7919 + int(colour.sum()))
    at = np.array([WIDTH / 2 + poses.normal(0, 16), HEIGHT * 0.42 + poses.normal(0, 7)])
    scale, size = rng.uniform(0.75, 1.15), poses.uniform(0.97, 1.05)
    phase = poses.uniform(0, 6.28, 2)
    found = []
    for number, frame in enumerate(frames):
        sway = [5 * np.sin(number / 19 + phase[0]), 2 * np.sin(number / 11 + phase[1])]
        x, y = at + sway
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        r = 30 * scale * size
        cv2.ellipse(mask, (int(x), int(y)), (int(r * 0.8), int(r)), 0, 0, 360, 255, -1)
        low = (int(x), int(y + 3.1 * r))
        cv2.ellipse(mask, low, (int(2 * r), int(2.1 * r)), 0, 0, 360, 255, -1)
        alpha = cv2.GaussianBlur(mask, (5, 5), 0)[:, :, None] / np.float32(255)
        inside = _crop(frame, 40 - (x - WIDTH / 2), 23 - (y - HEIGHT * 0.42))
        found.append((wall * (1 - alpha) + inside * alpha).astype(np.uint8))
    return found


def _screen(frames: Frames, rng: np.random.Generator) -> Frames:
    """A drawn desktop: windows of text lines that are typed, scrolled and switched."""
    dark = rng.random() < 0.5
    ground, ink = (30, 220) if dark else (245, 40)
    found: Frames = []
    lines = [int(n) for n in rng.integers(20, 200, 400)]
    scrolled = 0
    for number in range(len(frames)):
        picture = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
        picture[:14] = (90, 70, 60)
        picture[14:, :50] = ground + (12 if dark else -12)
        if number % 40 == 39:
            scrolled += int(rng.integers(1, 12))
        typed = (number % 40) / 40
        for row in range(14):
            width = lines[(scrolled + row) % len(lines)]
            width = int(width * typed) if row == 13 else width
            x, y = 58, 20 + row * 11
            while width > 0:
                word = min(width, 6 + (x * 7 + y * 13) % 22)
                cv2.rectangle(picture, (x, y), (x + word, y + 4), (ink, ink, ink), -1)
                x, width = x + word + 4, width - word - 4
        found.append(picture)
    return found


def _still(frames: Frames, rng: np.random.Generator) -> Frames:
    """A photograph: the same frame all the time, or one that the camera slowly approaches."""
    zoom = rng.uniform(0, 0.002) * (rng.random() < 0.5)
    found = []
    for number in range(len(frames)):
        matrix = cv2.getRotationMatrix2D((WIDE / 2, HIGH / 2), 0, 1 + zoom * number)
        matrix[:, 2] -= 40, 23
        moved = cv2.warpAffine(frames[0], matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        found.append(moved)
    return found


VIEWS: dict[str, Callable[[Frames, np.random.Generator], Frames]] = {
    "still": _still,
    "handheld": _handheld,
    "fast_pan": _fast_pan,
    "fast_camera": _fast_camera,
    "plain_background": _before_plain,
    "screen": _screen,
}


# ---------------------------------------------------------------- transitions


def _mix(a: np.ndarray, b: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    return np.clip(
        a.astype(np.float32) * (1 - share) + b.astype(np.float32) * share, 0, 255
    ).astype(np.uint8)


def _dissolve(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
    n = len(a)
    return [_mix(x, y, (i + 1) / (n + 1)) for i, (x, y) in enumerate(zip(a, b, strict=True))]


def _fade_through(level: int) -> Callable[[Frames, Frames, np.random.Generator], Frames]:
    def fade(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
        half = len(a) // 2
        plain = np.full_like(a[0], level)
        out = [_mix(a[i], plain, (i + 1) / half) for i in range(half)]
        back = len(a) - half
        return out + [_mix(plain, b[half + i], (i + 1) / (back + 1)) for i in range(back)]

    return fade


def _masked(area: Callable[[float, np.ndarray, np.ndarray, float], np.ndarray]):
    """A transition where a region of the new picture grows. area: share, x, y in 0..1, angle."""

    def reveal(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
        n, angle = len(a), rng.choice([0, 0.5, 1, 1.5]) * np.pi
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        x, y = x / WIDTH, y / HEIGHT
        soft = rng.choice([0.002, 0.03])
        return [
            _mix(p, q, np.clip(area((i + 1) / (n + 1), x, y, angle) / soft, 0, 1)[:, :, None])
            for i, (p, q) in enumerate(zip(a, b, strict=True))
        ]

    return reveal


def _wipe_area(share: float, x: np.ndarray, y: np.ndarray, angle: float) -> np.ndarray:
    along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5
    return share - along + 0.001


def _iris_area(share: float, x: np.ndarray, y: np.ndarray, angle: float) -> np.ndarray:
    radius = np.hypot((x - 0.5) * 16 / 9, y - 0.5) / np.hypot(8 / 9, 0.5)
    return share - radius


def _moved(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    return cv2.warpAffine(picture, np.array([[1, 0, x], [0, 1, y]], np.float32), (WIDTH, HEIGHT))


def _push(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
    """Both pictures move: the new one pushes the old one out."""
    dx, dy = [(1, 0), (-1, 0), (0, 1), (0, -1)][rng.integers(4)]
    n, found = len(a), []
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        s = (i + 1) / (n + 1)
        old = _moved(p, dx * s * WIDTH, dy * s * HEIGHT)
        new = _moved(q, dx * (s - 1) * WIDTH, dy * (s - 1) * HEIGHT)
        found.append(np.maximum(old, new))
    return found


def _slide(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
    """The new picture slides over the old one, which stays."""
    dx, dy = [(1, 0), (-1, 0), (0, 1), (0, -1)][rng.integers(4)]
    n, found = len(a), []
    ones = np.ones_like(a[0])
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        s = (i + 1) / (n + 1)
        x, y = dx * (s - 1) * WIDTH, dy * (s - 1) * HEIGHT
        found.append(np.where(_moved(ones, x, y) > 0, _moved(q, x, y), p))
    return found


def _zoom(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
    """Into the old picture, which gives way to the new one in its last third."""
    n, found = len(a), []
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        s = (i + 1) / (n + 1)
        matrix = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 0, 1 + 3 * s * s)
        near = cv2.warpAffine(p, matrix, (WIDTH, HEIGHT))
        found.append(_mix(near, q, np.clip((s - 0.6) / 0.4, 0, 1)))
    return found


def _whip(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
    """A blurred swing from one place to the other."""
    n, found = len(a), []
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        s = (i + 1) / (n + 1)
        size = 2 * int(40 * np.sin(np.pi * s)) + 1
        kernel = np.full((1, size), 1 / size, np.float32)
        wide = np.concatenate([p, q], axis=1)
        x = int(WIDTH * (3 * s * s - 2 * s**3))
        found.append(cv2.filter2D(wide, -1, kernel)[:, x : x + WIDTH])
    return found


def _plain_between(level: int) -> Callable[[Frames, Frames, np.random.Generator], Frames]:
    return lambda a, b, rng: [np.full_like(p, level) for p in a]


def _none(a: Frames, b: Frames, rng: np.random.Generator) -> Frames:
    return []


# kind -> frames of the transition (least, most), how it is drawn
KINDS: dict[str, tuple[int, int, Callable[[Frames, Frames, np.random.Generator], Frames]]] = {
    "cut": (0, 0, _none),
    "jump_cut": (0, 0, _none),
    "quick_cuts": (0, 0, _none),
    "dissolve_3_6": (3, 6, _dissolve),
    "dissolve_8_16": (8, 16, _dissolve),
    "dissolve_24_60": (24, 60, _dissolve),
    "dissolve_90_120": (90, 120, _dissolve),
    "dissolve_same_place": (10, 40, _dissolve),
    "fade_black_2_8": (4, 16, _fade_through(0)),
    "fade_black_12_30": (24, 60, _fade_through(0)),
    "fade_plain": (6, 70, _dissolve),
    "fade_white": (6, 50, _fade_through(255)),
    "wipe": (8, 30, _masked(_wipe_area)),
    "push": (8, 30, _push),
    "slide": (8, 30, _slide),
    "zoom": (8, 30, _zoom),
    "iris": (8, 30, _masked(_iris_area)),
    "whip": (5, 12, _whip),
    "flash_cut": (1, 3, _plain_between(255)),
    "black_between": (2, 8, _plain_between(0)),
}


# ---------------------------------------------------------------- events that are no transition


def _captions(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """Two lines of text come and go."""
    for start in at:
        text = "".join(rng.choice(list("abcdefghij klmnop rstu"), 28))
        for frame in frames[start : start + int(rng.integers(30, 60))]:
            for line, part in enumerate((text[:14], text[14:])):
                place = (60, 150 + 18 * line)
                for thick, shade in ((3, 0), (1, 255)):
                    cv2.putText(frame, part, place, 0, 0.55, (shade,) * 3, thick, cv2.LINE_AA)
    return frames


def _flashes(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """A lamp or a photographer: one to three frames brighter, the picture as before. Or up to 15
    frames with a multiple of the light: at a high frame rate a flash lasts so long.

    A rolling shutter starts and ends the flash within a frame, so that a part of it is lit.
    """
    for start in at:
        if rng.random() < 0.4:
            gain = rng.uniform(1.4, 3.0)
            for frame in frames[start : start + int(rng.integers(2, 16))]:
                frame[:] = np.clip(frame * gain, 0, 255)
            continue
        lit = frames[start : start + int(rng.integers(1, 4))]
        border = int(rng.integers(1, HEIGHT)) if rng.random() < 0.5 else 0
        for number, frame in enumerate(lit):
            part = frame[border:] if number == 0 else frame
            part[:] = _mix(part, np.full_like(part, 255), rng.uniform(0.4, 0.95))
        if border and start + len(lit) < len(frames):
            part = frames[start + len(lit)][:border]
            part[:] = _mix(part, np.full_like(part, 255), rng.uniform(0.4, 0.95))
    return frames


def _beams(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """Small lamps that flash, and beams of light that sweep over the picture."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    for start in at:
        colour = rng.uniform(120, 255, 3).astype(np.float32)
        angle, spin = rng.uniform(0, np.pi), rng.uniform(-0.5, 0.5)
        centre, width = rng.uniform(0, 1, 2) * (WIDTH, HEIGHT), rng.uniform(8, 45)
        is_lamp, shown = rng.random() < 0.5, int(rng.integers(1, 16))
        for number, frame in enumerate(frames[start : start + shown]):
            turned = angle + number * spin
            if is_lamp:
                apart = np.hypot(x - centre[0], y - centre[1])
            else:
                apart = abs((x - centre[0]) * np.sin(turned) - (y - centre[1]) * np.cos(turned))
            light = np.exp(-((apart / width) ** 2))[:, :, None] * colour
            frame[:] = np.clip(frame + light, 0, 255)
    return frames


def _graphics(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """Boxes, lines of text and icons appear at once over the picture, or on a slide of one colour,
    and stay for a while or to the end."""
    if rng.random() < 0.5:
        level = int(rng.choice([0, 20, 40, 235, 255]))
        colour = rng.integers(0, 256, 3) if rng.random() < 0.5 else np.full(3, level)
        for frame in frames:
            frame[:] = colour.astype(np.uint8)
    for start in at:
        shown = len(frames) if rng.random() < 0.6 else int(rng.integers(15, 80))
        drawing = np.zeros((HEIGHT, WIDTH), np.uint8)
        for _ in range(int(rng.integers(1, 4))):
            x, y = int(rng.integers(0, WIDTH - 40)), int(rng.integers(20, HEIGHT - 20))
            kind, size = rng.integers(3), int(rng.integers(15, 90))
            if kind == 0:
                cv2.rectangle(drawing, (x, y), (x + size, y + size), 255, rng.choice([-1, 2]))
            elif kind == 1:
                cv2.circle(drawing, (x, y), size // 2, 255, rng.choice([-1, 3]))
            else:
                text = "".join(rng.choice(list("abcdefghij klmnop rstu"), 12))
                cv2.putText(drawing, text, (x, y), 0, rng.uniform(0.4, 1.2), 255, 2, cv2.LINE_AA)
        ink = rng.integers(0, 256, 3 if rng.random() < 0.6 else 1).astype(np.uint8)
        share = drawing[:, :, None] / np.float32(255) * rng.uniform(0.6, 1)
        for frame in frames[start : start + shown]:
            frame[:] = _mix(frame, np.broadcast_to(ink, frame.shape), share)
    return frames


def _swing(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """The camera swings or zooms fast to another part of the same scene, and often back."""
    offset, near = np.zeros((len(frames), 2)), np.ones(len(frames))
    for start in at:
        length = int(rng.integers(4, 40))
        ramp = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, length))
        if rng.random() < 0.6:
            ramp = np.sin(np.linspace(0, np.pi, length))
        goal = rng.uniform(-1, 1, 2) * (1.2 * WIDTH, 0.3 * HEIGHT)
        part = slice(start, start + length)
        offset[part] += ramp[: len(offset[part]), None] * goal
        offset[start + length :] += ramp[-1] * goal
        if rng.random() < 0.4:
            near[part] += ramp[: len(near[part])] * rng.uniform(0.2, 1.2)
            near[start + length :] += (near[min(start + length, len(near)) - 1] - 1) * 1.0
    found = []
    for number, frame in enumerate(frames):
        speed = offset[number] - offset[max(0, number - 1)]
        matrix = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 0, float(near[number]))
        matrix[:, 2] -= offset[number]
        moved = cv2.warpAffine(frame, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
        blur = max(1, int(abs(speed[0]) / 2)), max(1, int(abs(speed[1]) / 2))
        found.append(cv2.blur(moved, blur) if max(blur) > 1 else moved)
    return found


def _light_switch(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    gain = 1.0
    for i, frame in enumerate(frames):
        if i in at:
            gain = rng.uniform(0.35, 0.6) if gain == 1.0 else 1.0
        frame[:] = np.clip(frame * gain, 0, 255)
    return frames


def _passing_object(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """A large near thing crosses the picture within some frames."""
    for start in at:
        n = int(rng.integers(6, 14))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        for i, frame in enumerate(frames[start : start + n]):
            x = int((i / (n - 1)) * (WIDTH + 240) - 120)
            mask = np.zeros(frame.shape[:2], np.uint8)
            cv2.ellipse(mask, (x, 100), (70, 130), 10, 0, 360, 255, -1)
            soft = cv2.blur(mask, (25, 3))[:, :, None] / np.float32(255)
            frame[:] = _mix(frame, np.broadcast_to(np.array(colour, np.uint8), frame.shape), soft)
    return frames


def _slow_light(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """Exposure that adapts, clouds, a sunset: the whole or the lower half changes its light."""
    rate, depth = rng.uniform(12, 60), rng.uniform(0.2, 0.6)
    fall = np.linspace(1, rng.uniform(0, 1), HEIGHT, dtype=np.float32)[:, None, None]
    for number, frame in enumerate(frames):
        gain = 1 - depth * (0.5 - 0.5 * np.cos(number / rate)) * fall
        frame[:] = np.clip(frame * gain, 0, 255)
    return frames


def _wrong_frames(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    """One or two frames of another picture, then the old one goes on: a fault, no cut."""
    for start in at:
        other = rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)
        for frame in frames[start : start + int(rng.integers(1, 3))]:
            frame[:] = cv2.resize(other, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return frames


def _nothing(frames: Frames, at: list[int], rng: np.random.Generator) -> Frames:
    return frames


NEGATIVES: dict[str, Callable[[Frames, list[int], np.random.Generator], Frames]] = {
    "no_transition": _nothing,
    "captions": _captions,
    "graphics": _graphics,
    "flashes": _flashes,
    "beams": _beams,
    "swing": _swing,
    "light_switch": _light_switch,
    "passing_object": _passing_object,
    "slow_light": _slow_light,
    "wrong_frames": _wrong_frames,
}


# ---------------------------------------------------------------- conditions on the whole film


def _strobe(frames: Frames, rng: np.random.Generator) -> Frames:
    """Stage light: every few frames another gain and tint."""
    gain = np.ones(3)
    for i, frame in enumerate(frames):
        if i % 4 == 0:
            gain = rng.uniform(0.4, 1.5) * rng.uniform(0.7, 1.3, 3)
        frame[:] = np.clip(frame * gain, 0, 255)
    return frames


def _lightning(frames: Frames, rng: np.random.Generator) -> Frames:
    """Night with strokes of lightning of one to four frames, about one a second."""
    for frame in frames:
        frame[:] = (frame * 0.3).astype(np.uint8)
    for start in rng.integers(0, len(frames), max(1, len(frames) // 25)):
        for frame in frames[start : start + int(rng.integers(1, 5))]:
            frame[:] = np.clip(frame * rng.uniform(2, 3.3) + rng.uniform(10, 60), 0, 255)
    return frames


def flash_bursts(frames: Frames, fps: int, rng: np.random.Generator) -> Frames:
    """Strobe light: bursts of flashes, 4 to 15 a second, over the picture, which is dark between
    the flashes in some films. Each burst has its own lamp: white or coloured, for all of the
    picture or around a place, and lit for a part of the time."""
    ground = rng.uniform(0.12, 0.6) if rng.random() < 0.6 else 1.0
    for frame in frames:
        frame[:] = cv2.convertScaleAbs(frame, alpha=ground)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    start = int(rng.integers(0, fps))
    while start < len(frames):
        rate, lit_share = rng.uniform(4, 15), rng.uniform(0.1, 0.6)
        gain, veil = rng.uniform(1, 1.2 / ground), rng.uniform(0, 0.9) * (rng.random() < 0.6)
        colour = rng.uniform(150, 255, 3) if rng.random() < 0.5 else np.full(3, 255)
        lamp = np.ones((HEIGHT, WIDTH, 1), np.float32)
        if rng.random() < 0.5:
            apart = np.hypot(x - rng.uniform(0, WIDTH), y - rng.uniform(0, HEIGHT))
            lamp = np.exp(-((apart / rng.uniform(40, 250)) ** 2))[:, :, None]
        stop = start + int(fps * rng.uniform(0.3, 3))
        for number, frame in enumerate(frames[start:stop]):
            if number * rate / fps % 1 < lit_share:
                light = frame * (1 + (gain - 1) * lamp)
                frame[:] = np.clip(light + (colour - light) * veil * lamp, 0, 255)
        start = stop + int(fps * rng.uniform(0.1, 2))
    return frames


def stage_lights(frames: Frames, fps: int, rng: np.random.Generator) -> Frames:
    """A concert: the only light are some lamps with coloured beams in haze, and others of them,
    in other colours, are switched on every 0.05 to 0.7 s."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    lamps = []
    for _ in range(int(rng.integers(3, 6))):
        dx, dy = x - rng.uniform(0, WIDTH), y - rng.uniform(0, 0.7 * HEIGHT)
        beams = 0.5 + 0.5 * np.cos(np.arctan2(dy, dx) * rng.integers(3, 16) + rng.uniform(0, 6.28))
        near = np.exp(-np.hypot(dx, dy) / rng.uniform(30, 200))
        lamps.append((near * (beams if rng.random() < 0.7 else 1))[:, :, None])
    palette = rng.uniform(0, 1, (int(rng.integers(1, 4)), 3)) ** 2
    palette /= palette.max(axis=1, keepdims=True)
    fall = np.linspace(1, rng.uniform(0.2, 1), HEIGHT, dtype=np.float32)[:, None, None]
    start = 0
    while start < len(frames):
        stop = start + max(1, int(fps * rng.uniform(0.05, 0.7)))
        ambient = palette[rng.integers(len(palette))] * rng.uniform(0.05, 0.9)
        haze, fading = np.zeros((HEIGHT, WIDTH, 3), np.float32), rng.uniform(0, 0.03)
        for lamp in lamps:
            if rng.random() < 0.5:
                haze += lamp * palette[rng.integers(len(palette))] * rng.uniform(60, 255)
        for number, frame in enumerate(frames[start:stop]):
            light = (frame * ambient * fall + haze) * (1 - fading * number)
            frame[:] = np.clip(light, 0, 255)
        start = stop
    return frames


def _dark(frames: Frames, rng: np.random.Generator) -> Frames:
    """Little light and sensor noise."""
    noise = rng.normal(4, 2.2, (2 * HEIGHT, 2 * WIDTH, 3)).astype(np.float32)
    found = []
    for frame in frames:
        y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
        noisy = frame * np.float32(0.16) + noise[y : y + HEIGHT, x : x + WIDTH]
        found.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return found


def _subtitles(frames: Frames, rng: np.random.Generator) -> Frames:
    return _captions(frames, list(range(10, len(frames) - 10, 47)), rng)


def _letterbox(frames: Frames, rng: np.random.Generator) -> Frames:
    for frame in frames:
        frame[:24] = frame[-24:] = 0
    return frames


FILTERS: dict[str, Callable[[Frames, np.random.Generator], Frames]] = {
    "strobe": _strobe,
    "lightning": _lightning,
    "dark": _dark,
    "subtitles": _subtitles,
    "letterbox": _letterbox,
}
# how often each frame is shown: 10 pictures in a 30 fps file, 12.5 in 25, 24 in 30 (pulldown)
REPEATS = {"repeated_3": [3], "repeated_2": [2], "pulldown": [1, 1, 1, 2]}
CONDITIONS = ("static", *VIEWS, *FILTERS, *REPEATS, "lag", "low_bit_rate")


# ---------------------------------------------------------------- films


def draw(footage: Footage, kind: str, condition: str, rng: np.random.Generator) -> tuple:
    """(frames, transitions) of one film."""
    pieces = footage.pieces(kind, condition)
    count, distance = footage.transitions, footage.piece
    frames: Frames = []
    transitions: list[Transition] = []

    def vary(length: int) -> int:
        return length + int(rng.integers(-VARIATION, VARIATION))

    if kind in NEGATIVES:
        frames = [f.copy() for f in pieces[0]]
        places = sorted(vary(distance * (i + 1)) for i in range(count))
        frames = NEGATIVES[kind](frames, places, rng)
    else:
        least, most, join = KINDS[kind]
        used = 0  # frames of the present piece that the last transition has shown
        for number in range(count):
            length = int(rng.integers(least, most + 1))
            stop = used + vary(distance)
            if kind == "quick_cuts" and number:
                stop = used + int(rng.integers(3, 15))
            a, b = pieces[number], pieces[number + 1]
            frames += [f.copy() for f in a[used:stop]]
            first = len(frames)
            frames += join(a[stop : stop + length], b[:length], rng)
            seen = _differ(a[stop - 1], b[length])
            transitions.append(Transition(first, len(frames) - 1, kind if seen else "unseen"))
            used = length
        frames += [f.copy() for f in pieces[-1][used : used + distance]]
    if condition in FILTERS:
        frames = FILTERS[condition](frames, rng)
    if condition in REPEATS:
        frames = repeat(frames, transitions, REPEATS[condition])
    if condition == "lag":
        frames = lag(frames, transitions, rng)
    return frames, transitions


def repeat(frames: Frames, transitions: list[Transition], pattern: list[int]) -> Frames:
    """The frames, each shown as often as the pattern says; moves the transitions with them."""
    shown: Frames = []
    starts = []
    for number, frame in enumerate(frames):
        starts.append(len(shown))
        shown += [frame] * pattern[number % len(pattern)]
    starts.append(len(shown))
    for transition in transitions:
        transition.first = starts[transition.first]
        transition.last = starts[transition.last + 1] - 1
    return shown


def lag(frames: Frames, transitions: list[Transition], rng: np.random.Generator) -> Frames:
    """A recorder that falls behind: some frames in a row are equal, then it is in time again."""
    found = list(frames)
    for start in range(int(rng.integers(3, 20)), len(frames), int(rng.integers(12, 60))):
        end = start + int(rng.integers(2, 9))
        if all(end + 2 < t.first or t.last < start - 2 for t in transitions):
            found[start:end] = [frames[start]] * len(frames[start:end])
    return found


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two percent of the picture differ by 12 grey levels: else nobody sees a cut."""
    apart = cv2.blur(cv2.absdiff(a, b), (5, 5)).max(axis=2)
    return bool(np.mean(apart > 12) > 0.02)


def encode(path: Path, frames: Frames, fps: int, condition: str, rng: np.random.Generator) -> None:
    """H.264; at a low bit rate the quality jumps at each key frame."""
    options = {"crf": "21", "g": "48", "preset": "veryfast"}
    if condition == "low_bit_rate":
        options |= {"crf": str(rng.integers(36, 48)), "g": str(rng.choice([30, 48, 60, 250]))}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = options
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
        container.mux(stream.encode())


def films(
    out: Path, half: str, seed: int, count: int, conditions: Sequence[str] = CONDITIONS
) -> Iterator[Film]:
    """Draws every kind under every condition `count` times, from footage of one half.

    The films of a condition share SOURCES takes, so that each is read once.
    """
    takes = [take for take in single_takes() if take.half == half]
    if not takes:
        raise SystemExit("no footage: LONGTAKE_VIDEOS names a folder with labels.csv")
    for number in range(count):
        for condition in conditions:
            rng = np.random.default_rng([seed, number, zlib.crc32(condition.encode())])
            sources = [takes[i] for i in rng.permutation(len(takes))[:SOURCES]]
            for kind in (*KINDS, *NEGATIVES):
                name = f"{kind}-{condition}-{number}"
                rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
                footage = Footage(sources, rng)
                frames, transitions = draw(footage, kind, condition, rng)
                fps = int(rng.choice([24, 25, 30]))
                path = out / f"{name}.mp4"
                encode(path, frames, fps, condition, rng)
                yield Film(path.name, kind, condition, fps, len(frames), transitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--half", choices=("development", "figures"), default="development")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", type=int, default=1, help="of each kind and condition")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "edits.jsonl").open("w") as lines:
        for film in films(args.out, args.half, args.seed, args.films):
            lines.write(json.dumps(asdict(film)) + os.linesep)


if __name__ == "__main__":
    main()
