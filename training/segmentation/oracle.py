"""What a video of acts_videos.py shows: measured by its colours and edges, judged by no network.

All functions take (frames, height, width, 3) uint8 RGB. Frames are blurred slightly first: noise of
a few levels then changes no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from training.segmentation.videos import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    TEXTURES,
    Play,
    Stage,
    core,
    distance,
    ground,
)

COLOURED = 30  # levels between the largest and the smallest channel; the ground is grey
LEAST_AREA = 0.25  # of the object's; less is no object
LEAST_WAY = 0.3  # of the true displacement; less is no direction


@dataclass(frozen=True)
class Seen:
    """What the oracle sees; None where there is nothing to see."""

    colours: list[str | None]  # per act
    shapes: list[str | None]
    directions: list[str | None]
    grounds: list[str]
    abruptness: list[float]  # per border: largest step of the colour / the whole change; nan
    teleports: list[bool]  # per border: a jump that the object's speed can't explain
    path_px: float  # how far the object goes in all


def see(stage: Stage, video: np.ndarray) -> Seen:
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.6) for frame in video]).astype(np.float32)
    chroma = smooth.max(-1) - smooth.min(-1)
    colour, centre = _track(stage, smooth, chroma)
    steps = np.hypot(*np.diff(centre, axis=0).T)
    borders = stage.cuts[1:-1]
    acts = core(stage)
    return Seen(
        [_colour(colour[act]) for act in acts],
        [_shape(stage, chroma[act], centre[act]) for act in acts],
        [_direction(stage, centre[act]) for act in acts],
        [_ground(stage, smooth[act], chroma[act]) for act in acts],
        [_abruptness(colour[max(0, cut - 2) : cut + 2]) for cut in borders],
        [_jumps(stage, steps[cut - 2 : cut + 1]) for cut in borders],
        float(np.nansum(steps)),
    )


def _track(stage: Stage, smooth: np.ndarray, chroma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object's colour (frames, 3) and centre (frames, 2); nan in frames without one."""
    weight = np.clip(chroma - COLOURED / 2, 0, None) * (chroma > COLOURED / 2)
    there = (chroma > COLOURED).sum((1, 2)) > LEAST_AREA * np.pi * stage.radius**2
    weight[~there] = np.nan
    total = weight.sum((1, 2))
    y, x = np.mgrid[: stage.height, : stage.width] + 0.5
    # the colour by its strongest pixels, or the edge's mixture with the ground would count
    strong = np.where(chroma >= np.quantile(chroma, 0.97, axis=(1, 2), keepdims=True), 1.0, 0.0)
    colour = (smooth * strong[..., None]).sum((1, 2)) / strong.sum((1, 2))[:, None]
    colour[~there] = np.nan
    centre = np.stack([(weight * axis).sum((1, 2)) / total for axis in (x, y)], -1)
    return colour, centre


def _colour(track: np.ndarray) -> str | None:
    """The palette's nearest in hue and saturation."""
    if np.isnan(track).any():
        return None
    mean = _chromatic(track.mean(0))
    names = list(COLOURS)
    far = [np.linalg.norm(mean - _chromatic(np.array(COLOURS[n], float))) for n in names]
    return names[int(np.argmin(far))]


def _chromatic(rgb: np.ndarray) -> np.ndarray:
    grey = rgb - rgb.mean()
    return grey / max(1e-6, np.linalg.norm(grey))


def _shape(stage: Stage, chroma: np.ndarray, centre: np.ndarray) -> str | None:
    """The shape whose drawing at the object's place overlaps most with it."""
    if np.isnan(centre).any():
        return None
    y, x = np.mgrid[: stage.height, : stage.width] + 0.5
    scores = dict.fromkeys(SHAPES[: stage.shapes], 0.0)
    for picture, (cx, cy) in zip(chroma, centre, strict=True):
        found = np.clip(picture / np.quantile(picture, 0.97), 0, 1)
        for name in scores:
            dx, dy = offset(name, stage.radius)
            edge = distance(name, x - cx + dx, y - cy + dy, stage.radius)
            drawn = cv2.GaussianBlur(np.clip(0.5 - edge, 0, 1), (0, 0), 0.6)
            scores[name] += np.minimum(found, drawn).sum() / np.maximum(found, drawn).sum()
    return max(scores, key=scores.__getitem__)


def offset(shape: str, radius: float) -> tuple[float, float]:
    """The centre of a shape's area from its origin, px: only the triangle's lies elsewhere."""
    return (0.0, (0.9 - 2.2 / 3) * radius) if shape == "triangle" else (0.0, 0.0)


def _direction(stage: Stage, centre: np.ndarray) -> str | None:
    way = centre[-1] - centre[0]
    if np.isnan(way).any() or np.abs(way).max() < LEAST_WAY * stage.speed * (len(centre) - 1):
        return None
    return max(DIRECTIONS, key=lambda name: float(np.dot(way, DIRECTIONS[name])))


def _ground(stage: Stage, smooth: np.ndarray, chroma: np.ndarray) -> str:
    """The texture nearest to the pixels that the object covers in none of the frames."""
    coloured = np.asarray((chroma > COLOURED).any(0), np.uint8)
    covered = cv2.dilate(coloured, np.ones((3, 3), np.uint8)) > 0
    free = ~covered if (~covered).any() else ~np.zeros_like(covered)
    grey = smooth.mean((0, 3))[free]
    blurred = {t: cv2.GaussianBlur(ground(t, stage), (0, 0), 0.6)[free] for t in TEXTURES}
    return min(blurred, key=lambda t: float(np.square(grey - blurred[t]).mean()))


def _abruptness(track: np.ndarray) -> float:
    """1: all at once.  Where colour turns over two frames: 0.33.  nan: no object, or no change."""
    whole = np.linalg.norm(track[-1] - track[0])
    if not whole > 40:
        return float("nan")
    return float(np.linalg.norm(np.diff(track, axis=0), axis=1).max() / whole)


def _jumps(stage: Stage, steps: np.ndarray) -> bool:
    """Of the object, at a border; an object that vanishes has jumped."""
    return bool(np.isnan(steps).any() or steps.max() > 2.5 * stage.speed)


def compare(script: Play, seen: Seen) -> dict[str, list[float]]:
    """Per act: 1.0 where colour, shape, direction, all three, the ground are the script's."""
    acts: Sequence = script.acts
    right = {
        "colour": [a.colour == s for a, s in zip(acts, seen.colours, strict=True)],
        "shape": [a.shape == s for a, s in zip(acts, seen.shapes, strict=True)],
        "direction": [a.direction == s for a, s in zip(acts, seen.directions, strict=True)],
        "ground": [script.texture == s for s in seen.grounds],
    }
    every = zip(right["colour"], right["shape"], right["direction"], strict=True)
    right["joint"] = [all(parts) for parts in every]
    return {name: [float(v) for v in values] for name, values in right.items()}


def bleed(script: Play, seen: Seen) -> np.ndarray:
    """(acts, acts): 1 where act i shows the colour and the shape of caption j."""
    shown = list(zip(seen.colours, seen.shapes, strict=True))
    return np.array([[float(s == (a.colour, a.shape)) for a in script.acts] for s in shown])
