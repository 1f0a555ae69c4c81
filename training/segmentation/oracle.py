"""Measures which events a video shows, from its colours, without a neural network.

Each object has a half of the frame. Its centre and colour are means over the half's pixels, which
weigh as much as they are coloured; the background is grey.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.segmentation.videos import COLOURS, DIRECTIONS, HALF, RADIUS, STEP, Videos

MIN_CHROMA = 40  # levels between the largest and the smallest channel of a coloured pixel
MIN_AREA = 0.25  # of the object's; less counts as no object
MIN_DISPLACEMENT = 0.5  # of the true one; less counts as no direction
MAX_STILL_PX = STEP / 4  # more counts as a movement
ABSENT = -1  # in place of a colour or direction
MIN_RUN_FRAMES = 2  # a colour that is shown for less is a transition


def find_objects(frames: Tensor) -> tuple[Tensor, Tensor]:
    """frames: (B, T, HALF, 2 HALF, 3) uint8 -> of the left and the right object the centres
    (B, T, 2, 2), px from its half's corner, and the mean RGB (B, T, 2, 3); nan without an
    object."""
    halves = torch.stack(frames.float().split(HALF, 3), 2)  # (B, T, 2, HALF, HALF, 3)
    chroma = halves.amax(-1) - halves.amin(-1)
    weight = (chroma - MIN_CHROMA).clamp(min=0)
    present = (weight > 0).sum((3, 4)) > MIN_AREA * np.pi * RADIUS**2
    total = torch.where(present, weight.sum((3, 4)), torch.nan)[..., None]
    axis = torch.arange(HALF, device=frames.device) + 0.5
    x, y = weight.sum(3) @ axis, weight.sum(4) @ axis
    return torch.stack([x, y], -1) / total, (weight[..., None] * halves).sum((3, 4)) / total


def name_colours(rgb: Tensor) -> Tensor:
    """(..., 3) -> the number of the palette's nearest in hue and saturation; ABSENT for nan."""
    palette = torch.tensor(list(COLOURS.values()), dtype=rgb.dtype, device=rgb.device)
    chromatic = [F.normalize(c - c.mean(-1, keepdim=True), dim=-1) for c in (rgb, palette)]
    nearest = (chromatic[0] @ chromatic[1].T).argmax(-1)
    return torch.where(rgb.isnan().any(-1), ABSENT, nearest)


def judge(videos: Videos, frames: Tensor) -> dict[str, np.ndarray]:
    """Whether `frames` (B, T, HALF, 2 HALF, 3) show the events of `videos`.

    (B, events) bool: `colour` and `direction` of the object that moves are correct; `other`: the
    other object has its colour and does not move; `joint`: all three.  (B,): `order`, see
    `order_score`.
    """
    centres, rgb = (x.cpu() for x in find_objects(frames))
    starts = torch.from_numpy(videos.starts)
    row = torch.arange(len(starts))[:, None]
    first, last = starts[:, :-1], starts[:, 1:] - 1
    # from the last frame of the event before: in the first one a half changed colour may be grey
    moved = centres[row, last] - centres[row, (first - 1).clamp(min=0)]  # (B, events, 2, 2)
    colours = name_colours(_event_means(rgb, starts))
    correct = colours == torch.from_numpy(videos.colours[:, 1:])
    units = torch.tensor(list(DIRECTIONS.values()), dtype=moved.dtype)
    found = (moved @ units.T).argmax(-1)
    is_moving = moved.abs().amax(-1) >= MIN_DISPLACEMENT * STEP
    found = torch.where(is_moving, found, ABSENT)  # also where the displacement is nan
    actors = torch.from_numpy(videos.actors)[..., None]
    still = moved.abs().amax(-1) < MAX_STILL_PX
    result = {
        "colour": correct.gather(2, actors)[..., 0].numpy(),
        "direction": found.gather(2, actors)[..., 0].numpy() == videos.directions,
        "other": (correct & still).gather(2, 1 - actors)[..., 0].numpy(),
    }
    result["joint"] = result["colour"] & result["direction"] & result["other"]
    return result | {"order": order_score(videos, rgb)}


def _event_means(rgb: Tensor, starts: Tensor) -> Tensor:
    """(B, events, 2, 3): means without the events' first frames, and without frames that lack the
    object."""
    time = torch.arange(rgb.shape[1])
    inside = (time > starts[:, :-1, None]) & (time < starts[:, 1:, None])  # (B, events, T)
    weight = inside.float()
    known = (~rgb.isnan()).float()
    total = torch.einsum("bet,btoc->beoc", weight, rgb.nan_to_num())
    return total / torch.einsum("bet,btoc->beoc", weight, known)


def order_score(videos: Videos, rgb: Tensor) -> np.ndarray:
    """(B,): whether both objects show their colours in the right order, at whatever time: the
    longest common subsequence of the shown and the true colours, as a share of the longer one."""
    shown = name_colours(rgb).numpy()  # (B, T, 2)
    scores = np.empty(shown.shape[::2])
    for video, thing in np.ndindex(*scores.shape):
        true = _without_repeats(videos.colours[video, 1:, thing].tolist(), 1)
        found = _without_repeats(shown[video, :, thing].tolist(), MIN_RUN_FRAMES)
        scores[video, thing] = _common(true, found) / max(len(true), len(found))
    return scores.mean(1)


def _without_repeats(values: list[int], least: int) -> list[int]:
    """Each run of at least `least` equal values once."""
    ends = [i for i in range(1, len(values) + 1) if i == len(values) or values[i] != values[i - 1]]
    runs = [values[b - 1] for a, b in zip([0, *ends], ends, strict=False) if b - a >= least]
    return [v for i, v in enumerate(runs) if not i or v != runs[i - 1]]


def _common(a: list[int], b: list[int]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], previous + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]
