"""Measures which events a video shows, from its colours and edges, without a neural network.

All functions take (frames, height, width, 3) uint8 RGB. Frames are blurred slightly first, so that
noise of a few levels does not change an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from training.segmentation.config import VideoConfig
from training.segmentation.videos import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    TEXTURES,
    EventVideo,
    background,
    boundaries,
    signed_distance,
    single_event_frames,
)

MIN_CHROMA = 30  # levels between the largest and the smallest channel; the background is grey
MIN_AREA = 0.25  # of the object's; less counts as no object
MIN_DISPLACEMENT = 0.3  # of the true one; less counts as no direction
MIN_COLOUR_CHANGE = 40  # levels at a transition; less counts as no change
MAX_STEP = 2.5  # times the object's speed; more counts as a jump


@dataclass(frozen=True)
class Observation:
    """What the oracle finds in a video; None where there is no object or no direction."""

    colours: list[str | None]  # per event
    shapes: list[str | None]
    directions: list[str | None]
    textures: list[str]
    abruptness: list[float]  # per transition: largest step of the colour / total change; nan
    jumps: list[bool]  # per transition: a displacement that the object's speed can't explain
    path_px: float  # length of the object's path


def observe(cfg: VideoConfig, frames: np.ndarray) -> Observation:
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.6) for frame in frames]).astype(np.float32)
    chroma = smooth.max(-1) - smooth.min(-1)
    colour, centre = _track(cfg, smooth, chroma)
    steps = np.hypot(*np.diff(centre, axis=0).T)
    transitions = boundaries(cfg)[1:-1]
    events = single_event_frames(cfg)
    return Observation(
        [_colour(colour[event]) for event in events],
        [_shape(cfg, chroma[event], centre[event]) for event in events],
        [_direction(cfg, centre[event]) for event in events],
        [_texture(cfg, smooth[event], chroma[event]) for event in events],
        [_abruptness(colour[max(0, first - 2) : first + 2]) for first in transitions],
        [_jumps(cfg, steps[first - 2 : first + 1]) for first in transitions],
        float(np.nansum(steps)),
    )


def _track(
    cfg: VideoConfig, smooth: np.ndarray, chroma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The object's colour (frames, 3) and centre (frames, 2); nan in frames without an object."""
    weight = np.clip(chroma - MIN_CHROMA / 2, 0, None) * (chroma > MIN_CHROMA / 2)
    found = (chroma > MIN_CHROMA).sum((1, 2)) > MIN_AREA * np.pi * cfg.radius**2
    weight[~found] = np.nan
    total = weight.sum((1, 2))
    y, x = np.mgrid[: cfg.height, : cfg.width] + 0.5
    # only the strongest pixels: at its edge the object is mixed with the background
    strong = np.where(chroma >= np.quantile(chroma, 0.97, axis=(1, 2), keepdims=True), 1.0, 0.0)
    colour = (smooth * strong[..., None]).sum((1, 2)) / strong.sum((1, 2))[:, None]
    colour[~found] = np.nan
    centre = np.stack([(weight * axis).sum((1, 2)) / total for axis in (x, y)], -1)
    return colour, centre


def _colour(track: np.ndarray) -> str | None:
    """The palette's nearest in hue and saturation."""
    if np.isnan(track).any():
        return None
    mean = _chromatic(track.mean(0))
    names = list(COLOURS)
    distances = [np.linalg.norm(mean - _chromatic(np.array(COLOURS[n], float))) for n in names]
    return names[int(np.argmin(distances))]


def _chromatic(rgb: np.ndarray) -> np.ndarray:
    without_grey = rgb - rgb.mean()
    return without_grey / max(1e-6, np.linalg.norm(without_grey))


def _shape(cfg: VideoConfig, chroma: np.ndarray, centre: np.ndarray) -> str | None:
    """The shape that overlaps most with the object when it is drawn at the object's centre."""
    if np.isnan(centre).any():
        return None
    y, x = np.mgrid[: cfg.height, : cfg.width] + 0.5
    scores = dict.fromkeys(SHAPES[: cfg.shapes], 0.0)
    for frame, (cx, cy) in zip(chroma, centre, strict=True):
        found = np.clip(frame / np.quantile(frame, 0.97), 0, 1)
        for name in scores:
            dx, dy = area_centre(name, cfg.radius)
            edge = signed_distance(name, x - cx + dx, y - cy + dy, cfg.radius)
            drawn = cv2.GaussianBlur(np.clip(0.5 - edge, 0, 1), (0, 0), 0.6)
            scores[name] += np.minimum(found, drawn).sum() / np.maximum(found, drawn).sum()
    return max(scores, key=scores.__getitem__)


def area_centre(shape: str, radius: float) -> tuple[float, float]:
    """x, y of a shape's centre of area from its origin, px: not 0 for the triangle alone."""
    return (0.0, (0.9 - 2.2 / 3) * radius) if shape == "triangle" else (0.0, 0.0)


def _direction(cfg: VideoConfig, centre: np.ndarray) -> str | None:
    moved = centre[-1] - centre[0]
    least = MIN_DISPLACEMENT * cfg.speed * (len(centre) - 1)
    if np.isnan(moved).any() or np.abs(moved).max() < least:
        return None
    return max(DIRECTIONS, key=lambda name: float(np.dot(moved, DIRECTIONS[name])))


def _texture(cfg: VideoConfig, smooth: np.ndarray, chroma: np.ndarray) -> str:
    """The texture nearest to the pixels that the object covers in none of the frames."""
    coloured = np.asarray((chroma > MIN_CHROMA).any(0), np.uint8)
    covered = cv2.dilate(coloured, np.ones((3, 3), np.uint8)) > 0
    free = ~covered if (~covered).any() else ~np.zeros_like(covered)
    grey = smooth.mean((0, 3))[free]
    blurred = {t: cv2.GaussianBlur(background(t, cfg), (0, 0), 0.6)[free] for t in TEXTURES}
    return min(blurred, key=lambda t: float(np.square(grey - blurred[t]).mean()))


def _abruptness(track: np.ndarray) -> float:
    """1: the colour changes in one step; 0.33: evenly over two frames. nan: no object, or no
    change."""
    total = np.linalg.norm(track[-1] - track[0])
    if not total > MIN_COLOUR_CHANGE:
        return float("nan")
    return float(np.linalg.norm(np.diff(track, axis=0), axis=1).max() / total)


def _jumps(cfg: VideoConfig, steps: np.ndarray) -> bool:
    """Whether the object jumps at a transition; one that vanishes does."""
    return bool(np.isnan(steps).any() or steps.max() > MAX_STEP * cfg.speed)


def compare(video: EventVideo, found: Observation) -> dict[str, list[float]]:
    """Per event, 1.0 where the colour, shape, direction, all three (`joint`) or the background are
    correct, else 0.0."""
    events = video.events
    correct = {
        "colour": [e.colour == c for e, c in zip(events, found.colours, strict=True)],
        "shape": [e.shape == s for e, s in zip(events, found.shapes, strict=True)],
        "direction": [e.direction == d for e, d in zip(events, found.directions, strict=True)],
        "background": [video.texture == t for t in found.textures],
    }
    each = zip(correct["colour"], correct["shape"], correct["direction"], strict=True)
    correct["joint"] = [all(attributes) for attributes in each]
    return {name: [float(v) for v in values] for name, values in correct.items()}


def confusion(video: EventVideo, found: Observation) -> np.ndarray:
    """(events, captions): 1 where an event shows the colour and the shape of a caption."""
    shown = list(zip(found.colours, found.shapes, strict=True))
    return np.array([[float(s == (e.colour, e.shape)) for e in video.events] for s in shown])
