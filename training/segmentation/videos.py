"""Test videos whose content is known: a disc in the left half and a square in the right half.

In each event one of the two moves to another corner of its half. From the second event on it also
changes its colour: it turns a colour that the caption names, returns to its first colour, or takes
the colour of the other object. So captions depend on earlier events. Events have 3 to 7 frames; a
movement is equally long in all of them, so in a short event it is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.segmentation.config import MEAN_FRAMES

HALF = 16  # px; a frame is HALF high and two halves wide
RADIUS = 3.6  # px, of the disc; the square has the same area
CORNERS = (4.5, 11.5)  # px, centres of an object in its half
STEP = CORNERS[1] - CORNERS[0]  # px, that a movement covers
BACKGROUND = 90  # grey level
FRAMES = range(3, 8)  # of an event
OBJECTS = ("disc", "square")
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 40),
    "blue": (50, 70, 240),
    "yellow": (230, 220, 40),
    "purple": (200, 50, 220),
    "cyan": (40, 210, 220),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y
NUMBERS = ("three", "four", "five", "six", "seven")
KINDS = ("moves", "turns", "returns", "takes")  # `moves`: the first event's
KIND_SHARES = (0.4, 0.35, 0.25)  # of the others, where they are possible
PADDING, END = 0, 1  # tokens
WORDS = (
    *("a", "and", "the", "its", "of", "to", "colour", "first", "frames", "disc", "square"),
    *("moves", "turns", "returns", "takes", *NUMBERS, *COLOURS, *DIRECTIONS),
)
TOKEN_OF = {word: number for number, word in enumerate(WORDS, 2)}
CAPTION_TOKENS = 14  # of the longest caption, with END


@dataclass(frozen=True)
class Videos:
    """B videos of S events."""

    lengths: np.ndarray  # (B, S) frames of each event
    actors: np.ndarray  # (B, S) the object that moves
    kinds: np.ndarray  # (B, S)
    directions: np.ndarray  # (B, S)
    colours: np.ndarray  # (B, S + 1, 2) of both objects, before the first event and after each
    corners: np.ndarray  # (B, S + 1, 2, 2) column and row of both objects, likewise

    @property
    def frames(self) -> int:
        return int(self.lengths[0].sum())

    @property
    def starts(self) -> np.ndarray:
        """(B, S + 1): the first frame of each event, and the number of frames."""
        return np.pad(np.cumsum(self.lengths, 1), ((0, 0), (1, 0)))

    def captions(self, video: int) -> list[str]:
        first = tuple(self.colours[video, 0].tolist())
        columns = (self.lengths, self.actors, self.kinds, self.directions, self.colours[:, 1:])
        rows = zip(*(column[video].tolist() for column in columns), strict=True)
        return [
            caption(first, length, actor, kind, direction, colours[actor])
            for length, actor, kind, direction, colours in rows
        ]

    def tokens(self) -> np.ndarray:
        """(B, S, CAPTION_TOKENS)"""
        return np.array(
            [[caption_tokens(c) for c in self.captions(i)] for i in range(len(self.lengths))]
        )


@cache
def caption(
    first: tuple[int, int], length: int, actor: int, kind: int, direction: int, colour: int
) -> str:
    """first: both objects' first colours.  colour: the actor's after the event."""
    names, this, other = list(COLOURS), OBJECTS[actor], OBJECTS[1 - actor]
    what = {
        "moves": f"a {names[first[0]]} disc and a {names[first[1]]} square the {this}",
        "turns": f"the {this} turns {names[colour]} and",
        "returns": f"the {this} returns to its first colour and",
        "takes": f"the {this} takes the colour of the {other} and",
    }[KINDS[kind]]
    return f"{NUMBERS[length - FRAMES.start]} frames {what} moves {list(DIRECTIONS)[direction]}"


@cache
def caption_tokens(text: str) -> tuple[int, ...]:
    found = [*(TOKEN_OF[word] for word in text.split()), END]
    return (*found, *[PADDING] * (CAPTION_TOKENS - len(found)))


def make_videos(count: int, events: int, *key: int) -> Videos:
    """Random videos, a function of the arguments."""
    rng = np.random.Generator(np.random.PCG64(key))
    colours = np.empty((count, events + 1, 2), int)
    corners = np.zeros((count, events + 1, 2, 2), int)
    actors, axes = rng.integers(2, size=(2, count, events))
    kinds, directions = np.zeros((2, count, events), int)
    colours[:, 0, 0] = rng.integers(len(COLOURS), size=count)
    colours[:, 0, 1] = _other_than(colours[:, 0, 0], rng)
    row = np.arange(count)
    for event in range(events):
        actor, axis = actors[:, event], axes[:, event]
        before, corner = colours[:, event], corners[:, event]
        moved = corner.copy()
        moved[row, actor, axis] = 1 - moved[row, actor, axis]
        corners[:, event + 1] = moved
        directions[:, event] = 2 * axis + moved[row, actor, axis]
        colours[:, event + 1] = before
        if event:
            own, other, first = before[row, actor], before[row, 1 - actor], colours[row, 0, actor]
            kind = 1 + rng.choice(3, size=count, p=KIND_SHARES)
            kind[(kind == 2) & (own == first) | (kind == 3) & (own == other)] = 1
            new = np.choose(kind - 1, [_other_than(own, rng), first, other])
            colours[row, event + 1, actor] = new
            kinds[:, event] = kind
    return Videos(_lengths(count, events, rng), actors, kinds, directions, colours, corners)


def _other_than(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (colour + rng.integers(1, len(COLOURS), size=len(colour))) % len(COLOURS)


def _lengths(count: int, events: int, rng: np.random.Generator) -> np.ndarray:
    """(count, events): uniform among those whose sum is MEAN_FRAMES times the events."""
    found = np.empty((0, events), int)
    while len(found) < count:
        some = rng.integers(FRAMES.start, FRAMES.stop, size=(16 * count, events))
        found = np.concatenate([found, some[some.sum(1) == MEAN_FRAMES * events]])
    return found[:count]


class Tracks(NamedTuple):
    centres: Tensor  # (B, frames, 2, 2) x, y of both objects in the frame, px
    colours: Tensor  # (B, frames, 2, 3)


def tracks(videos: Videos, device: torch.device | str = "cpu") -> Tracks:
    """A movement takes all frames of its event; a change of colour is half done in its first."""
    ends = torch.from_numpy(videos.starts[:, 1:]).to(device)
    lengths = torch.from_numpy(videos.lengths).to(device)
    corners = torch.from_numpy(videos.corners).to(device)
    colours = torch.from_numpy(videos.colours).to(device)
    time = torch.arange(videos.frames, device=device)
    event = (time[None, :, None] >= ends[:, None]).sum(2)  # (B, frames)
    row = torch.arange(len(event), device=device)[:, None]
    done = (time - ends[row, event] + lengths[row, event] + 1) / lengths[row, event]
    places = torch.tensor(CORNERS, device=device)[corners]
    places[:, :, 1, 0] += HALF
    before, after = places[row, event], places[row, event + 1]
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device)
    old, new = palette[colours[row, event]], palette[colours[row, event + 1]]
    is_first = (time == ends[row, event] - lengths[row, event])[..., None, None]
    return Tracks(
        before + (after - before) * done[..., None, None],
        torch.where(is_first, (old + new) / 2, new),
    )


def render(videos: Videos, device: torch.device | str = "cpu") -> Tensor:
    """(B, frames, height, width, 3) uint8 RGB."""
    centres, colours = tracks(videos, device)
    y = torch.arange(HALF, device=device)[:, None] + 0.5
    x = torch.arange(2 * HALF, device=device) + 0.5
    dx = (x - centres[..., 0, None, None]).abs()  # (B, frames, 2, 1, width)
    dy = (y - centres[..., 1, None, None]).abs()  # (B, frames, 2, height, 1)
    disc = torch.hypot(dx[:, :, 0], dy[:, :, 0]) - RADIUS
    square = torch.maximum(dx[:, :, 1], dy[:, :, 1]) - 0.886 * RADIUS
    cover = (0.5 - torch.stack([disc, square], 2)).clamp(0, 1)[..., None]
    picture = BACKGROUND + (cover * (colours[:, :, :, None, None] - BACKGROUND)).sum(2)
    return picture.round().to(torch.uint8)
