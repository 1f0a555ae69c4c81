"""Test videos whose content is known: one object before a still background, five events.

From event to event the object's colour, shape and direction change. Its position is continuous;
in the frames before and after a transition its colour and shape lie between those of both events.
A video is a function of its number.
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
from training.segmentation.config import VideoConfig

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
MAX_ATTEMPTS = 10_000
NEXT_EVENT_WEIGHTS = (1 / 3, 2 / 3)  # in the last frame before a transition, in the first after it


@dataclass(frozen=True)
class Event:
    colour: str
    shape: str
    direction: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape} moves {self.direction}"


@dataclass(frozen=True)
class EventVideo:
    number: int
    events: tuple[Event, ...]
    texture: str  # of the background
    centres: np.ndarray  # (frames, 2) x, y of the object, px

    def captions(self) -> list[str]:
        """One per event; only the first describes the background."""
        first, *others = map(str, self.events)
        return [f"{first} on a {self.texture} ground", *others]

    def progressive_captions(self) -> list[str]:
        """From the second on, captions describe the change from the event before."""
        first, *_ = self.captions()
        return [first] + [
            f"the {a.colour} {a.shape} becomes a {b.colour} {b.shape} and moves {b.direction}"
            for a, b in pairwise(self.events)
        ]


def boundaries(cfg: VideoConfig) -> list[int]:
    """First frame of each event, and the number of frames."""
    return sca.segment_starts(cfg.spans, cfg.frames)


@lru_cache(maxsize=8)
def unseen_events(cfg: VideoConfig) -> frozenset[Event]:
    """The events that training videos never contain: the same ones for every seed."""
    every = [
        Event(c, s, d)
        for c in list(COLOURS)[: cfg.colours]
        for s in SHAPES[: cfg.shapes]
        for d in DIRECTIONS
    ]
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(every))
    return frozenset(every[i] for i in order[: round(cfg.unseen_share * len(every))])


def make_video(cfg: VideoConfig, number: int, test: bool = False) -> EventVideo:
    """Video `number` of training, or of the test: another random stream, and unseen events too."""
    rng = np.random.Generator(np.random.PCG64([number, test]))
    margin = 1.4 * cfg.radius  # half the width of the widest shape
    size = np.array([cfg.width, cfg.height])
    middle = size / 2
    for _ in range(MAX_ATTEMPTS):
        events = _random_events(cfg, rng)
        if not test and unseen_events(cfg).intersection(events):
            continue
        path = _path(cfg, events)
        low = np.maximum(margin - path.min(0), middle - cfg.max_start_offset)
        high = np.minimum(size - margin - path.max(0), middle + cfg.max_start_offset)
        if (low <= high).all():
            start = low + rng.random(2) * (high - low)
            return EventVideo(number, events, str(rng.choice(TEXTURES)), path + start)
    raise ValueError(f"{cfg}: the object's path leaves the frame; lower its speed or radius")


def _random_events(cfg: VideoConfig, rng: np.random.Generator) -> tuple[Event, ...]:
    """Consecutive events differ in colour, shape and direction."""

    def sequence(values: Sequence[str]) -> list[str]:
        found = [values[int(rng.integers(len(values)))]]
        while len(found) < cfg.events:
            others = [v for v in values if v != found[-1]]
            found.append(others[int(rng.integers(len(others)))])
        return found

    columns = list(COLOURS)[: cfg.colours], SHAPES[: cfg.shapes], list(DIRECTIONS)
    return tuple(map(Event, *map(sequence, columns)))


def _path(cfg: VideoConfig, events: Sequence[Event]) -> np.ndarray:
    """(frames, 2) px from the start: in each frame one step in the direction of its event."""
    steps = [
        DIRECTIONS[event.direction]
        for event, (a, b) in zip(events, pairwise(boundaries(cfg)), strict=True)
        for _ in range(a, b)
    ]
    return cfg.speed * np.cumsum(np.array(steps, float), 0)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """px from the shape's edge, negative inside. All shapes cover about the same area."""
    ax, ay = abs(x), abs(y)
    if shape == "disc":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(ax, ay) - 0.886 * radius
    if shape == "cross":
        half_width, half_length = 0.36 * radius, 1.25 * radius
        upright = np.maximum(ax - half_width, ay - half_length)
        return np.minimum(upright, np.maximum(ax - half_length, ay - half_width))
    half, tip, base = 1.4 * radius, 1.3 * radius, 0.9 * radius  # triangle
    slope = np.hypot(half, tip + base)
    return np.maximum((ax * (tip + base) - (y + tip) * half) / slope, y - base)


def background(texture: str, cfg: VideoConfig) -> np.ndarray:
    """(height, width) grey levels."""
    y, x = np.mgrid[: cfg.height, : cfg.width]
    pattern = {"plain": 0 * x, "striped": y // 4 % 2, "barred": x // 4 % 2}
    return 90.0 + 50 * pattern.get(texture, (x // 4 + y // 4) % 2)


def render(cfg: VideoConfig, video: EventVideo) -> np.ndarray:
    """(frames, height, width, 3) uint8 RGB."""
    y, x = np.mgrid[: cfg.height, : cfg.width] + 0.5
    x = x - video.centres[:, 0, None, None]
    y = y - video.centres[:, 1, None, None]
    edge, colour = np.zeros(x.shape), np.zeros((cfg.frames, 3))
    for event, weight in zip(video.events, event_weights(cfg), strict=True):
        on = weight > 0
        distance = signed_distance(event.shape, x[on], y[on], cfg.radius)
        edge[on] += weight[on, None, None] * distance
        colour += weight[:, None] * np.array(COLOURS[event.colour])
    back = background(video.texture, cfg)
    frames = np.empty((*x.shape, 3), np.uint8)
    frames[:] = back[..., None]
    frame, *pixel = inside = np.nonzero(edge < 0.5)  # a small part of all pixels
    cover = np.minimum(0.5 - edge[inside], 1)[:, None]
    frames[inside] = np.rint(back[*pixel, None] * (1 - cover) + colour[frame] * cover)
    return frames


@lru_cache(maxsize=8)
def event_weights(cfg: VideoConfig) -> np.ndarray:
    """(events, frames): how much each event's colour and shape count in a frame; columns sum to
    1."""
    weights = np.zeros((cfg.events, cfg.frames))
    for number, (a, b) in enumerate(pairwise(boundaries(cfg))):
        weights[number, a:b] = 1
    for number, start in enumerate(boundaries(cfg)[1:-1]):
        for frame, weight in zip((start - 1, start), NEXT_EVENT_WEIGHTS, strict=True):
            weights[number : number + 2, frame] = 1 - weight, weight
    return weights


def single_event_frames(cfg: VideoConfig) -> list[range]:
    """Each event's frames without those of a transition."""
    last = len(boundaries(cfg)) - 2
    return [
        range(a + (number > 0), b - (number < last))
        for number, (a, b) in enumerate(pairwise(boundaries(cfg)))
    ]


def to_clip(cfg: VideoConfig, video: EventVideo, progressive: bool = False) -> Clip:
    captions = video.progressive_captions() if progressive else video.captions()
    return Clip(
        f"video-{video.number:08d}",
        torch.from_numpy(render(cfg, video)),
        cfg.spans[-1][1],
        cfg.spans,
        captions,
        ", then ".join(captions),
    )
