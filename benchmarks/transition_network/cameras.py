"""Random camera paths of training sequences. Each function draws the path of `count` frames,
(count, 4) as `Plan.camera_a`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.transition_network.joins import random_shares


def _static_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((count, 4), np.float32)


def shaking_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    steps = (
        rng.normal(0, 1, (count, 4)) * np.array([0.008, 0.012, 0.004, 0.004]) * rng.uniform(0.3, 2)
    )
    if rng.random() < 0.4:
        steps[rng.integers(count)] *= rng.uniform(3, 12)
    path = np.cumsum(steps, axis=0)
    kernel = np.ones(31) / 31
    smooth = np.stack([np.convolve(np.pad(p, 15, "edge"), kernel, "valid") for p in path.T], axis=1)
    return path - smooth


def _panning_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    speed = rng.uniform(0.005, 0.05) * rng.choice([-1, 1])
    axis = int(rng.random() < 0.25)
    path = np.zeros((count, 4))
    path[:, axis] = np.arange(count) * speed
    return path


def _burst_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    """As in a game, on a drone or in the hand of a runner: it pans, rolls and zooms in bursts."""
    knots = count // 6 + 4
    goals = rng.normal(0, 1, (knots, 4)) * (rng.random((knots, 1)) < 0.4)
    at = np.linspace(0, knots - 1, count)
    speed = np.stack([np.interp(at, np.arange(knots), g) for g in goals.T], axis=1)
    speed *= rng.uniform(0.2, 1.0) * np.array([0.14, 0.08, 0.04, 0.06])
    path = np.cumsum(speed, axis=0)
    path[:, 2:] -= path[:, 2:].mean(axis=0)
    return np.clip(path, [-9, -9, -0.3, -0.6], [9, 9, 0.9, 0.6])


def _zooming_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    path = np.zeros((count, 4))
    path[:, 2] = np.arange(count) * rng.uniform(0.0005, 0.012)
    return path if rng.random() < 0.5 else path[::-1].copy()


def _swinging_camera(count: int, rng: np.random.Generator) -> np.ndarray:
    """Rests, and now and then swings, scrolls or zooms fast to another part of the scene, or there
    and back."""
    path = np.zeros((count, 4))
    at = int(rng.integers(5, 90))
    while at < count:
        length = int(rng.integers(3, rng.choice([14, 40])))
        share = random_shares(rng, length)
        is_moved = rng.random(4) < (0.7, 0.4, 0.25, 0.1)
        goal = rng.uniform(-1, 1, 4) * (1.2, 0.9, 0.9, 0.2) * is_moved
        part = path[at : at + length]
        part += share[: len(part), None] * goal
        if (rest := rng.random()) < 0.55:
            path[at + length :] += goal
        elif rest < 0.8:  # and back at the same speed
            back = path[at + length : at + 2 * length]
            back += (1 - share[: len(back), None]) * goal
            at += length
        at += length + int(rng.integers(15, 120))
    return np.clip(path, [-9, -9, -0.5, -0.6], [9, 9, 1.2, 0.6])


# The probability of each function
CAMERAS: list[tuple[float, Callable[[int, np.random.Generator], np.ndarray]]] = [
    (0.48, _static_camera),
    (0.13, shaking_camera),
    (0.10, _panning_camera),
    (0.12, _burst_camera),
    (0.06, _zooming_camera),
    (0.11, _swinging_camera),
]
