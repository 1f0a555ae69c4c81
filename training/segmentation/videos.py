"""Videos whose truth is known: one object in front of a still background, five acts.

From act to act its colour, its shape and the way it goes change; its position is continuous, and
over two frames at each border one colour and shape turn into the next. Everything hangs on a
script's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from training import sca
from training.clips import Clip

COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 40),
    "blue": (50, 70, 240),
    "yellow": (230, 220, 40),
    "purple": (200, 50, 220),
    "cyan": (40, 210, 220),
}
SHAPES = ("disc", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y
TEXTURES = ("plain", "striped", "barred", "chequered")
TRIES = 10_000
TURN = (
    1 / 3,
    2 / 3,
)  # how far colour and shape have turned in the frames before and after a border
SECOND_PER_FRAME = 15 / 22


@dataclass(frozen=True)
class Stage:
    """What all videos of an experiment share."""

    frames: int = 22
    height: int = 32  # px
    width: int = 32
    radius: float = 7.0  # px, of the object
    speed: float = 1.35  # px per frame
    astray: float = 1.0  # px: the object starts so far from the middle at most, on both axes
    acts: int = 5
    colours: int = 6
    shapes: int = 4
    held_out: float = 0.1  # share of (colour, shape, direction) that training never shows

    @property
    def cuts(self) -> list[int]:
        """First frame of each act, and `frames`."""
        return sca.cut_points(self.spans, self.frames)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """s"""
        ends = np.linspace(0, self.frames * SECOND_PER_FRAME, self.acts + 1).tolist()
        return list(pairwise(ends))


@dataclass(frozen=True)
class Act:
    colour: str
    shape: str
    direction: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} moves {self.direction}"


@dataclass(frozen=True)
class Play:
    """A script: its acts, the background, and where the object is in each frame."""

    number: int
    acts: tuple[Act, ...]
    texture: str
    centres: np.ndarray  # (frames, 2) x, y in px

    def captions(self) -> list[str]:
        """Each act's own; the background is told once."""
        first, *others = map(str, self.acts)
        return [f"{first} on a {self.texture} ground", *others]

    def progressive_captions(self) -> list[str]:
        """From the second on they say what becomes of what was there before."""
        first, *_ = self.captions()
        return [first] + [
            f"the {a.colour} {a.shape} becomes a {b.colour} {b.shape} and moves {b.direction}"
            for a, b in pairwise(self.acts)
        ]


@lru_cache(maxsize=8)
def unseen(stage: Stage) -> frozenset[Act]:
    """The acts that training never shows: the same ones for every seed."""
    every = [
        Act(c, s, d)
        for c in list(COLOURS)[: stage.colours]
        for s in SHAPES[: stage.shapes]
        for d in DIRECTIONS
    ]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(every))
    return frozenset(every[i] for i in order[: round(stage.held_out * len(every))])


def play(stage: Stage, number: int, test: bool = False) -> Play:
    """Script `number` of training, or of the test: other chance, and acts that training lacks."""
    rng = np.random.Generator(np.random.PCG64([number, test]))
    reach = 1.4 * stage.radius  # of the widest shape
    size = np.array([stage.width, stage.height])
    room, middle = size - 2 * reach, size / 2
    for _ in range(TRIES):
        acts = _acts(stage, rng)
        if not test and unseen(stage).intersection(acts):
            continue
        path = _path(stage, acts)
        low = np.maximum(reach - path.min(0), middle - stage.astray)
        high = np.minimum(reach + room - path.max(0), middle + stage.astray)
        if (low <= high).all():
            start = low + rng.random(2) * (high - low)
            return Play(number, acts, str(rng.choice(TEXTURES)), path + start)
    raise ValueError(f"{stage}: the object finds no room for its ways; make it slower or smaller")


def _acts(stage: Stage, rng: np.random.Generator) -> tuple[Act, ...]:
    """Neighbours differ in everything."""

    def row(values: Sequence[str]) -> list[str]:
        found = [values[int(rng.integers(len(values)))]]
        while len(found) < stage.acts:
            others = [v for v in values if v != found[-1]]
            found.append(others[int(rng.integers(len(others)))])
        return found

    columns = list(COLOURS)[: stage.colours], SHAPES[: stage.shapes], list(DIRECTIONS)
    return tuple(map(Act, *map(row, columns)))


def _path(stage: Stage, acts: Sequence[Act]) -> np.ndarray:
    """(frames, 2): a frame's step goes its own act's way."""
    steps = [
        DIRECTIONS[act.direction]
        for act, (a, b) in zip(acts, pairwise(stage.cuts), strict=True)
        for _ in range(a, b)
    ]
    return stage.speed * np.cumsum(np.array(steps, float), 0)


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """px from the shape's edge, negative inside. All shapes cover about the same area."""
    ax, ay = abs(x), abs(y)
    if shape == "disc":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(ax, ay) - 0.886 * radius
    if shape == "cross":
        arm, reach = 0.36 * radius, 1.25 * radius
        return np.minimum(np.maximum(ax - arm, ay - reach), np.maximum(ax - reach, ay - arm))
    half, tip, base = 1.4 * radius, 1.3 * radius, 0.9 * radius  # triangle
    slope = np.hypot(half, tip + base)
    return np.maximum((ax * (tip + base) - (y + tip) * half) / slope, y - base)


def ground(texture: str, stage: Stage) -> np.ndarray:
    """(height, width) grey levels."""
    y, x = np.mgrid[: stage.height, : stage.width]
    wave = {"plain": 0 * x, "striped": y // 4 % 2, "barred": x // 4 % 2}
    level = wave.get(texture, (x // 4 + y // 4) % 2)
    return 90.0 + 50 * level


def draw(stage: Stage, script: Play) -> np.ndarray:
    """(frames, height, width, 3) uint8 RGB."""
    y, x = np.mgrid[: stage.height, : stage.width] + 0.5
    x = x - script.centres[:, 0, None, None]
    y = y - script.centres[:, 1, None, None]
    share = shares(stage)
    edge, colour = np.zeros(x.shape), np.zeros((stage.frames, 3))
    for act, weight in zip(script.acts, share, strict=True):
        on = weight > 0
        edge[on] += weight[on, None, None] * distance(act.shape, x[on], y[on], stage.radius)
        colour += weight[:, None] * np.array(COLOURS[act.colour])
    back = ground(script.texture, stage)
    video = np.empty((*x.shape, 3), np.uint8)
    video[:] = back[..., None]
    frame, *place = inside = np.nonzero(edge < 0.5)  # most of the picture is ground
    cover = np.minimum(0.5 - edge[inside], 1)[:, None]
    video[inside] = np.rint(back[*place, None] * (1 - cover) + colour[frame] * cover)
    return video


@lru_cache(maxsize=8)
def shares(stage: Stage) -> np.ndarray:
    """(acts, frames): how much of each act's colour and shape a frame shows."""
    weights = np.zeros((stage.acts, stage.frames))
    for number, (a, b) in enumerate(pairwise(stage.cuts)):
        weights[number, a:b] = 1
    for number, cut in enumerate(stage.cuts[1:-1]):
        for frame, turned in zip((cut - 1, cut), TURN, strict=True):
            weights[number : number + 2, frame] = 1 - turned, turned
    return weights


def core(stage: Stage) -> list[range]:
    """Each act's frames that show it alone."""
    last = len(stage.cuts) - 2
    return [
        range(a + (number > 0), b - (number < last))
        for number, (a, b) in enumerate(pairwise(stage.cuts))
    ]


def clip_of(stage: Stage, script: Play, progressive: bool = False) -> Clip:
    captions = script.progressive_captions() if progressive else script.captions()
    return Clip(
        f"act-{script.number:08d}",
        torch.from_numpy(draw(stage, script)),
        stage.spans[-1][1],
        stage.spans,
        captions,
        ", then ".join(captions),
    )
