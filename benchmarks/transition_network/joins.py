"""Gradual transitions of random training sequences. Each function writes one from layer a to layer
b into the frames [at, end) of a plan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.transition_network.plan import (
    BLINDS,
    CLOCK,
    DOORS,
    LINE,
    LUMA,
    PATTERN,
    PATTERNS,
    RECTANGLE,
    ROUND,
    Plan,
)

Join = Callable[[Plan, np.random.Generator, int, int], None]
# Frames with at most this share of one of the two layers belong to no transition: nobody sees it.
UNSEEN = 0.02


def random_shares(rng: np.random.Generator, n: int, may_pass: bool = False) -> np.ndarray:
    """(n,) shares of layer b that rise from 0 to 1: linearly, or as animators ease a motion in or
    out. may_pass: the motion may go too far and come back."""
    share = np.arange(1, n + 1) / (n + 1)
    easing = rng.random()
    power = rng.uniform(1.5, 4)
    if easing < 0.45:
        return share
    if easing < 0.65:
        return share * share * (3 - 2 * share)
    if easing < 0.77:
        return 1 - (1 - share) ** power
    if easing < 0.87:
        return share**power
    if easing < 0.95 or not may_pass:
        return share**power / (share**power + (1 - share) ** power)
    back = rng.uniform(0.8, 2)
    return 1 + (1 + back) * (share - 1) ** 3 + back * (share - 1) ** 2


def _random_mask(rng: np.random.Generator, kind: int) -> np.ndarray:
    """(13,), a row of Plan.mask: often with a hard edge, sometimes with a border or a shadow."""
    mask = np.zeros(13)
    angle = rng.choice([0, 0.5, 1, 1.5, rng.uniform(0, 2)], p=[0.2, 0.2, 0.2, 0.2, 0.2]) * np.pi
    softness = rng.choice([0.003, 0.02, 0.08, 0.3], p=[0.4, 0.25, 0.2, 0.15])
    mask[:5] = kind, angle, softness, rng.integers(PATTERNS), rng.random() < 0.5
    mask[5:7] = rng.uniform(0.15, 0.85, 2) if rng.random() < 0.35 else 0.5
    mask[7] = rng.choice([1, 1, 2, 3, 5, 8])
    if kind == BLINDS:
        mask[7] = rng.integers(3, 9)
    if rng.random() < 0.25:  # a line, or a wide band that sweeps over the picture
        mask[8] = rng.choice([0.02, 0.06, rng.uniform(0.1, 0.6)])
        mask[9:12] = random_colour(rng)
    if rng.random() < 0.2:
        mask[12] = rng.uniform(0.3, 0.8)
    return mask


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) Y, Cb, Cr: black, white, or any colour."""
    grey = rng.choice([0, 255, rng.uniform(0, 255)])
    chroma = rng.normal(0, 40, 2) * (rng.random() < 0.6)
    return np.array([grey, *(128 + chroma).clip(20, 235)])


def dissolve(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    share = random_shares(rng, end - at)
    plan.share[at:end] = share
    rise_and_fall = np.sin(np.pi * share)
    kind = rng.random()
    if kind < 0.12:  # out of focus in the middle
        plan.blur[at:end] += (rise_and_fall * rng.uniform(0.1, 0.5))[:, None]
    elif kind < 0.2:  # through a bright picture
        plan.light[at:end, 1] += rise_and_fall * rng.uniform(40, 200)
    elif kind < 0.3:  # the pictures zoom, or turn
        axis, amount = int(rng.integers(2, 4)), rng.uniform(0.1, 0.7) * rng.choice([-1, 1])
        plan.camera_a[at:end, axis] += amount * share
        plan.camera_b[at:end, axis] += amount * (share - 1)


def masked(*kinds: int) -> Join:
    """A transition by a mask of one of these kinds."""

    def add(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
        plan.share[at:end] = random_shares(rng, end - at)
        plan.mask[at:end] = _random_mask(rng, int(rng.choice(kinds)))

    return add


def glitch(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """Parts of both pictures in another pattern each few frames, and pictures that jump."""
    n, every = end - at, int(rng.integers(1, 4))
    mask = _random_mask(rng, PATTERN)
    plan.share[at:end] = random_shares(rng, n)
    plan.mask[at:end] = mask
    rows = np.repeat(rng.integers(0, PATTERNS, n // every + 1), every)[:n]
    plan.mask[at:end, 3] = rows
    jumps = rng.normal(0, rng.uniform(0.01, 0.15), (n // every + 1, 2))
    plan.camera_a[at:end, :2] += np.repeat(jumps, every, axis=0)[:n]
    plan.camera_b[at:end, :2] += np.repeat(jumps, every, axis=0)[:n]


def push(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """Layer b moves in from a side and pushes layer a out, or slides over it; or layer a moves out
    and uncovers layer b."""
    share = random_shares(rng, end - at, may_pass=True)
    mask = _random_mask(rng, LINE)
    side = int(rng.integers(4))
    axis, sign = side % 2, 1 if side < 2 else -1
    moving = rng.random()  # decides which pictures move: both, the new one, or the old one
    # both pictures move at a distance of the border, which in slideshows is often as wide as theirs
    gap = 0.0
    if moving < 0.45 and rng.random() < 0.3:
        mask[8] = gap = rng.uniform(0.02, 0.3)
        mask[9:12] = random_colour(rng)
    if moving < 0.75:
        plan.camera_b[at:end, axis] += sign * (share - 1) * (1 + gap)
    if moving < 0.45 or moving >= 0.75:
        plan.camera_a[at:end, axis] += sign * share * (1 + gap)
    elif moving < 0.55:
        plan.camera_a[at:end, axis] += (
            sign * share * rng.uniform(0.1, 0.5)
        )  # the old one moves less far
    plan.share[at:end] = share.clip(0, 1)
    mask[2] = 0.003
    mask[1] = _edge_angle(axis, sign)
    plan.mask[at:end] = mask
    if rng.random() < 0.4:
        speed = np.abs(np.diff(share, prepend=0))
        plan.blur[at:end, axis] += speed * rng.uniform(0.3, 1.0)


def _edge_angle(axis: int, sign: int) -> float:
    """The angle of a mask of kind LINE that begins at the side from which a picture moves in."""
    return (0.5 if axis else 0.0) * np.pi + (0 if sign > 0 else np.pi)


def box(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """Layer b grows from a small rectangle to the whole picture, or layer a shrinks to nothing."""
    share = random_shares(rng, end - at).clip(0.02, 0.98)
    grows = rng.random() < 0.5
    size = share if grows else 1 - share  # of the smaller picture
    centre = rng.uniform(0.2, 0.8, 2) if rng.random() < 0.5 else np.array([0.5, 0.5])
    centres = centre + (0.5 - centre) * size[:, None]
    camera = plan.camera_b if grows else plan.camera_a
    if rng.random() < 0.8:  # the picture shrinks with its frame
        camera[at:end, 2] += np.log(size)
        camera[at:end, :2] += (centres - 0.5) / size[:, None]
        if rng.random() < 0.2:
            camera[at:end, 3] += (1 - size) * rng.uniform(-3, 3)
    reach = 2 * np.maximum(centres, 1 - centres).max(axis=1)
    mask = _random_mask(rng, RECTANGLE)
    mask[2], mask[4], mask[8] = 0.003, not grows, 0
    plan.mask[at:end] = mask
    plan.mask[at:end, 5:7] = centres
    plan.share[at:end] = size / reach if grows else 1 - size / reach


def zoom(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """Zooms into or out of layer a, and blends with layer b in the last part or in the middle."""
    share = random_shares(rng, end - at)
    sign = 1 if rng.random() < 0.8 else -1
    plan.camera_a[at:end, 2] += sign * rng.uniform(0.3, 1.6) * share ** rng.choice([1, 2])
    if rng.random() < 0.5:
        plan.camera_b[at:end, 2] -= sign * rng.uniform(-0.5, 1.2) * (1 - share)
    if rng.random() < 0.25:  # and turns
        turn = rng.uniform(-1.5, 1.5)
        plan.camera_a[at:end, 3] += turn * share
        plan.camera_b[at:end, 3] += turn * (share - 1)
    if rng.random() < 0.4:
        plan.blur[at:end] += (np.sin(np.pi * share) * rng.uniform(0.05, 0.3))[:, None]
    start = rng.uniform(0.1, 0.8)
    length = rng.uniform(0.05, 1 - start)
    plan.share[at:end] = ((share - start) / length).clip(0, 1)


def whip(plan: Plan, rng: np.random.Generator, at: int, end: int) -> None:
    """A fast, blurred pan that starts in layer a and ends in layer b."""
    share = random_shares(rng, end - at)
    axis, sign = int(rng.random() < 0.2), rng.choice([-1, 1])
    speed = rng.uniform(0.3, 1.2)
    if rng.random() < 0.4:  # one pan: the scene of layer b lies next to that of layer a
        along = share * share * (3 - 2 * share)
        plan.camera_b[at:end, axis] += sign * (along - 1)
        plan.camera_a[at:end, axis] += sign * along
        plan.mask[at:end, :3] = LINE, _edge_angle(axis, int(sign)), 0.003
        plan.share[at:end] = along
    else:
        plan.camera_a[at:end, axis] += sign * speed * share**2 * 2
        plan.camera_b[at:end, axis] -= sign * speed * (1 - share) ** 2 * 2
        plan.share[at:end] = ((share - 0.5) * rng.choice([4, 20]) + 0.5).clip(0, 1)
    plan.blur[at:end, axis] = np.sin(np.pi * share) * speed * rng.uniform(0.3, 1)


def through(
    plan: Plan, rng: np.random.Generator, at: int, end: int, row: int, is_masked: bool
) -> None:
    """A transition to the frame `row` of the footage, sometimes a pause, and a transition to layer
    b: a fade, or, with masks that cover and uncover (is_masked), a stinger."""
    down = at + max(1, int((end - at) * rng.uniform(0.25, 0.6)))
    up = min(end, down + int((end - down) * rng.choice([0, 0, rng.uniform(0, 0.6)])))
    after, camera = plan.b[up:end].copy(), plan.camera_b[up:end].copy()
    plan.b[at:up], plan.camera_b[at:up] = row, 0
    plan.share[at:down] = np.arange(1, down - at + 1) / (down - at + (down < up))
    plan.share[down:up] = 1
    plan.a[up:end], plan.camera_a[up:end] = row, 0
    plan.b[up:end], plan.camera_b[up:end] = after, camera
    plan.share[up:end] = np.arange(1, end - up + 1) / (end - up + 1)
    if is_masked:
        kinds = (LINE, LINE, LINE, BLINDS, ROUND, PATTERN, CLOCK, DOORS, RECTANGLE)
        cover = _random_mask(rng, int(rng.choice(kinds)))
        uncover = cover.copy()
        if rng.random() < 0.5:
            uncover[1], uncover[4] = cover[1] + np.pi, not cover[4]
        if rng.random() < 0.3:
            uncover = _random_mask(rng, int(rng.choice(kinds)))
        plan.mask[at:down], plan.mask[up:end] = cover, uncover
        power = rng.choice([1, 2, 0.5])
        plan.share[at:down] **= power
        plan.share[up:end] **= 1 / power


# kind -> probability, least and most frames of its length, function. `Planner` itself adds the
# kinds without a function: cuts, and those through a third picture.
JOINS: dict[str, tuple[float, int, int, Join | None]] = {
    "cut": (0.24, 0, 0, None),
    "flash_cut": (0.03, 1, 8, None),
    "fade": (0.10, 4, 100, None),
    "stinger": (0.05, 6, 50, None),
    "dissolve": (0.20, 3, 110, dissolve),
    "short_dissolve": (0.06, 4, 13, dissolve),
    "wipe": (0.07, 4, 50, masked(LINE, LINE, LINE, BLINDS, CLOCK, DOORS)),
    "iris": (0.03, 4, 50, masked(ROUND, RECTANGLE)),
    "pattern": (0.03, 4, 40, masked(PATTERN, PATTERN, LUMA)),
    "glitch": (0.01, 4, 20, glitch),
    "push": (0.11, 4, 45, push),
    "box": (0.02, 4, 40, box),
    "zoom": (0.04, 4, 40, zoom),
    "whip": (0.03, 4, 20, whip),
}
