"""Tells a zoom or a pan over a still picture from a camera in the world.

A still picture under a virtual camera moves as one affine map: everywhere, exactly, smoothly, and
with nothing moving by itself. A real camera that turns bends the picture (its lens is a
perspective), one that travels shows parallax, one in a hand trembles, and the world before it
moves. A tripod shot through a very long lens (under about 20 degrees) of a scene where nothing
stirs shows none of these, and no measure can tell it apart.

Lengths are px of looks, which are 160 wide.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from stages.meters.alignment import CELL, STILL, Affine, Look, Match, aligned, match, mean_px

REACH_S = 3.0  # how far back a picture is compared with
ENOUGH_PX = 6.0  # a motion this large shows what it is; a slower one is judged by REACH_S
LEAST_PX = 0.75  # a smaller motion within REACH_S is no zoom and no pan
LEAST_CELLS = 100  # of enough texture to tell; below, nothing is said
PRECISE_PX = 0.06  # standard error of a cell's own motion from which on its texture is enough
FAR_PX = 0.2  # a cell's own motion is taken to be about this: noise can't make it much more
BEND = 0.025  # (half a width / focal length)^2: a lens of 18 degrees, half of one of 25 degrees
TREMOR_PX_S = 6.0  # a zoom in whole source pixels jitters by up to 4, a hand by 12 and more
PAUSE_S = 0.9  # after a comparison that failed
HUD_SHARE = 0.25  # cells of a caption or logo over the still picture may stay in place


@dataclass(frozen=True)
class Window:
    """A still picture explains everything between two looks."""

    start_s: float
    end_s: float
    bend: float  # (half a width / focal length)^2 of the lens; nan where it was not shifted enough


@dataclass(frozen=True)
class _Seen:
    t_s: float
    look: Look
    velocity: Affine  # px/s
    speed: float  # mean over the picture, px/s


class StillPicture:
    """Compares each look with an older one, moved along the camera's path between them."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque()
        self._next_s = 0.0

    def process_frame(self, t_s: float, look: Look, velocity: Affine) -> Window | None:
        """velocity: of the content, px/s. A window that a still picture explains, or None."""
        self._seen.append(_Seen(t_s, look, velocity, mean_px(velocity.at(look.points))))
        while self._seen[0].t_s < t_s - REACH_S:
            self._seen.popleft()
        if t_s < self._next_s:
            return None
        if self._most_px() < LEAST_PX:
            return None
        old, path, moved_px = self._older()
        if moved_px < LEAST_PX or self._trembles(old):
            return None
        window = _explained(self._seen[old], self._seen[-1], path)
        self._next_s = t_s if window else t_s + PAUSE_S
        return window

    def _most_px(self) -> float:
        """What the motion adds up to, were it all one way."""
        return sum((b.t_s - a.t_s) * (a.speed + b.speed) / 2 for a, b in pairwise(self._seen))

    def _older(self) -> tuple[int, Affine, float]:
        """The youngest look with ENOUGH_PX of motion since, else the oldest; path; mean px."""
        points = self._seen[-1].look.points
        path, motion, moved_px = np.eye(3), STILL, 0.0
        number = len(self._seen) - 1
        while number > 0 and moved_px < ENOUGH_PX:
            number -= 1
            path = path @ _step(self._seen[number], self._seen[number + 1])
            motion = Affine(path[:2, 2], path[:2, :2] - np.eye(2))
            moved_px = mean_px(motion.at(points))
        return number, motion, moved_px

    def _trembles(self, since: int) -> bool:
        """The velocity's second difference: zero for a smooth path."""
        shifts = np.array([seen.velocity.shift for seen in self._seen])[max(0, since - 1) :]
        if len(shifts) < 3:
            return False
        speed = float(np.hypot(*shifts.mean(axis=0)))
        return float(np.median(_length(np.diff(shifts, 2, axis=0)))) > TREMOR_PX_S + 0.1 * speed


def _explained(old: _Seen, last: _Seen, path: Affine) -> Window | None:
    found = aligned(old.look, last.look, path, rounds=3)
    points = old.look.points
    moved_px = found.motion_px
    own, precision = _own_motion(found)
    # At the edge, what came into view since spoils a cell's surroundings.
    whole = cv2.erode(found.inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    told = whole & (precision < PRECISE_PX)
    if told.sum() < LEAST_CELLS or moved_px < LEAST_PX:
        return None
    in_place = match(old.look, last.look, STILL)
    stays = in_place.error < 2 * found.noise
    if not _is_still(_length(own), found, told, stays, moved_px):
        return None
    return Window(old.t_s, last.t_s, _bend(points, own, told, found.motion.shift))


def _own_motion(found: Match) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns, 2) px by which the surroundings of each cell miss the map; its error, px.

    Lucas and Kanade's own step, over 3 x 3 cells. Along an edge nothing can be seen: it stays zero.
    """
    within = found.inside.astype(np.float32)[..., None]
    tensor, pull = (cv2.blur(a * within, (3, 3)) for a in (found.first.tensor, found.pull))
    # Noise of neighbouring pixels hangs together after smoothing: a third of them count.
    sure = found.noise / (3 * CELL * CELL)
    damp = sure / FAR_PX**2
    xx, xy, yy = tensor[..., 0] + damp, tensor[..., 1], tensor[..., 2] + damp
    whole = xx * yy - xy * xy
    own = (
        np.dstack((xy * pull[..., 1] - yy * pull[..., 0], xy * pull[..., 0] - xx * pull[..., 1]))
        / whole[..., None]
    )
    return own, np.sqrt(sure / (xx + yy))


def _is_still(
    own_px: np.ndarray, found: Match, told: np.ndarray, stays: np.ndarray, moved_px: float
) -> bool:
    """Whether all cells follow the one map, but for graphics that stay in place."""
    # A codec's picture errs by 0.05 to 0.15 px, at edges more.
    limit_px = min(0.45, 0.2 + 0.03 * moved_px)
    astray = told & (own_px > limit_px)
    # A thing of its own changes a cell by more than a pixel's misfit of its texture could.
    steep = found.first.tensor[..., 0] + found.first.tensor[..., 2]
    alien = found.inside & (found.error > 9 * found.noise + steep)
    graphics = stays & (astray | alien) & told
    if graphics.sum() > HUD_SHARE * told.sum():
        return False
    near_graphics = cv2.dilate(graphics.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    judged = told & ~near_graphics
    if judged.sum() < LEAST_CELLS:
        return False
    strangers = (alien & ~near_graphics).sum()
    return bool(
        (astray & judged).sum() <= 0.1 * judged.sum()
        and strangers <= max(2, 0.005 * found.inside.sum())
    )


def _bend(points: np.ndarray, own: np.ndarray, told: np.ndarray, shift: np.ndarray) -> float:
    """(half a width / focal length)^2 from what a turning lens adds: xy (xy . shift) / focal^2."""
    if np.hypot(*shift) < 2.5:
        return float("nan")
    xy = (points[told] / 80).astype(np.float64)
    expected = xy * (xy @ shift)[:, None]
    # The affine fit took its part of the bend: take the same part out of what is expected.
    design = np.column_stack((np.ones(len(xy)), xy))
    expected -= design @ np.linalg.lstsq(design, expected, rcond=None)[0]
    size = float((expected**2).sum())
    return float((expected * own[told]).sum() / size) if size > 0 else float("nan")


def still_stretches(windows: list[Window], least_s: float) -> list[tuple[float, float]]:
    """Joined windows of at least `least_s` that no real lens explains: (start, end), s."""
    stretches: list[tuple[float, float]] = []
    group: list[Window] = []
    for window in [*sorted(windows, key=lambda w: w.start_s), None]:
        if window and (not group or window.start_s <= max(w.end_s for w in group)):
            group.append(window)
            continue
        start, end = group[0].start_s if group else 0.0, max((w.end_s for w in group), default=0.0)
        bends = [w.bend for w in group if not np.isnan(w.bend)]
        if end - start >= least_s and (not bends or float(np.median(bends)) < BEND):
            stretches.append((start, end))
        group = [window] if window else []
    return stretches


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.hypot(vectors[..., 0], vectors[..., 1])


def _step(before: _Seen, after: _Seen) -> np.ndarray:
    """The map that their mean velocity makes: the matrix exponential to second order."""
    seconds = after.t_s - before.t_s
    rate = np.zeros((3, 3))
    rate[:2, :2] = (before.velocity.matrix + after.velocity.matrix) / 2 * seconds
    rate[:2, 2] = (before.velocity.shift + after.velocity.shift) / 2 * seconds
    return np.eye(3) + rate + rate @ rate / 2
