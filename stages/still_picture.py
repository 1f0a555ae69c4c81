"""Tells a zoom or a pan over a still picture from a camera in the world.

A still picture under a virtual camera moves as one affine map: everywhere, exactly, smoothly, and with nothing moving by
itself. A real camera that turns bends the picture (its lens is a perspective), one that travels shows parallax, one in a
hand trembles, and the world before it moves. A tripod shot through a very long lens (under about 20 degrees) of a scene
where nothing stirs shows none of these, and no measure can tell it apart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from curation.measures import Affine, CellFlow, DisFlow, cell_flow, cell_points, cells, fit_affine

REACH_S = 3.0  # how far back a picture is compared with
ENOUGH_PX = (
    12.0  # a motion this large shows what it is; a slower one is judged by what REACH_S gives
)
LEAST_PX = 1.5  # a smaller motion within REACH_S is no zoom and no pan
SLOW_LEVELS, SLOW_SHARE = 2, 0.2  # grey levels, of the cells: what a slow zoom changes in REACH_S
LEAST_CELLS = 25  # of enough texture to tell; below, nothing is said
BEND = 0.025  # (160 px / focal length)^2 at 320 px wide: a lens of 18 degrees, half of that of one of 25 degrees
TREMOR_PX_S = 12.0  # a zoom in whole source pixels jitters by up to 8, a hand by 25 and more
PAUSE_S = 0.9  # after a comparison that failed; each costs as much as two looks
HUD_SHARE = 0.25  # cells of a caption or logo over the still picture may stay in place


@dataclass(frozen=True)
class Window:
    """A still picture explains everything between two looks."""

    start_s: float
    end_s: float
    bend: float  # (160 px / focal length)^2 that the lens would have; nan where the picture was not shifted enough


@dataclass(frozen=True)
class _Look:
    t_s: float
    luma: np.ndarray
    velocity: Affine  # px/s


class StillPicture:
    """Compares each look with an older one, warped by the camera's path between them."""

    def __init__(self, dis: DisFlow) -> None:
        self._dis = dis
        self._looks: deque[_Look] = deque()
        self._next_s = 0.0

    def see(self, t_s: float, luma: np.ndarray, velocity: Affine) -> Window | None:
        """velocity: of the picture's content, px/s. A window that a still picture explains, or None."""
        self._looks.append(_Look(t_s, luma, velocity))
        while self._looks[0].t_s < t_s - REACH_S:
            self._looks.popleft()
        if t_s < self._next_s:
            return None
        old, path, moved_px = self._older()
        if moved_px < LEAST_PX:
            # A slow zoom moves less than noise from one frame to the next, but not in REACH_S.
            old, path = 0, np.eye(3)
            change = cells(cv2.absdiff(self._looks[0].luma, luma))
            if float((change > SLOW_LEVELS).mean()) < SLOW_SHARE:
                return None
        if self._trembles(old):
            return None
        window = self._explained(old, path)
        self._next_s = t_s if window else t_s + PAUSE_S
        return window

    def _older(self) -> tuple[int, np.ndarray, float]:
        """The youngest look with ENOUGH_PX of motion since, else the oldest; the path from it (3 x 3); mean motion, px."""
        points = cell_points(*self._looks[-1].luma.shape)
        path, moved_px = np.eye(3), 0.0
        number = len(self._looks) - 1
        while number > 0 and moved_px < ENOUGH_PX:
            number -= 1
            before, after = self._looks[number], self._looks[number + 1]
            path = path @ _step(before, after)
            moved_px = float(_length(points @ (path[:2, :2] - np.eye(2)).T + path[:2, 2]).mean())
        return number, path, moved_px

    def _trembles(self, since: int) -> bool:
        """The velocity's second difference: zero for a smooth path."""
        shifts = np.array([look.velocity.shift for look in self._looks])[max(0, since - 1) :]
        if len(shifts) < 3:
            return False
        speed = float(np.hypot(*shifts.mean(axis=0)))
        return float(np.median(_length(np.diff(shifts, 2, axis=0)))) > TREMOR_PX_S + 0.1 * speed

    def _explained(self, old: int, path: np.ndarray) -> Window | None:
        first, last = self._looks[old], self._looks[-1]
        for _ in range(2):  # the path between the looks is a guess: what flow is left corrects it
            warped, inside = _warp(first.luma, path)
            flow = self._dis(warped, last.luma)
            left = cell_flow(self._dis, warped, last.luma, flow)
            motion = cells(flow)
            seen = left.known & inside
            if seen.sum() < LEAST_CELLS:
                return None
            points = cell_points(*last.luma.shape)
            correction = fit_affine(points, motion, seen.astype(np.float32))
            path = _matrix(correction) @ path
            error = motion - correction.at(points)
            if np.median(_length(error[seen])) > 1.0:  # far from one map: no second try mends that
                return None
        moved_px = float(_length(points @ (path[:2, :2] - np.eye(2)).T + path[:2, 2]).mean())
        if moved_px < LEAST_PX:
            return None
        in_place = cells(cv2.absdiff(first.luma, last.luma).astype(np.float32)) < 2 * left.noise
        if not _is_still(_length(error), left, seen, inside, in_place, moved_px):
            return None
        return Window(first.t_s, last.t_s, _bend(points, error, seen, path[:2, 2]))


def _is_still(
    error: np.ndarray,
    left: CellFlow,
    seen: np.ndarray,
    inside: np.ndarray,
    in_place: np.ndarray,
    moved_px: float,
) -> bool:
    """Whether all cells follow the one map, but for graphics that stay in place over the picture."""
    limit_px = min(
        0.6, 0.15 + 0.02 * moved_px
    )  # the flow of a codec's picture errs by 0.1 to 0.3 px
    astray = seen & (error > limit_px)
    # A thing of its own changes a cell by more than a pixel's misfit of its texture could.
    alien = inside & (left.change > 3 * left.noise + left.texture)
    graphics = in_place & (astray | alien) & left.known
    if graphics.sum() > HUD_SHARE * seen.sum():
        return False
    near_graphics = cv2.dilate(graphics.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    judged = seen & ~near_graphics
    if judged.sum() < LEAST_CELLS:
        return False
    strangers = int((alien & ~near_graphics).sum())
    return (astray & judged).sum() <= 0.1 * judged.sum() and strangers <= max(
        2, 0.005 * inside.sum()
    )


def _bend(points: np.ndarray, error: np.ndarray, seen: np.ndarray, shift: np.ndarray) -> float:
    """(160 px / focal length)^2 from what a turning lens adds to its shift: (x, y) * (x, y) . shift / focal^2."""
    if np.hypot(*shift) < 5:
        return float("nan")
    xy = (points[seen] / 160).astype(np.float64)
    expected = xy * (xy @ shift)[:, None]
    # The affine fit took its part of the bend: take the same part out of what is expected.
    design = np.column_stack((np.ones(len(xy)), xy))
    expected -= design @ np.linalg.lstsq(design, expected, rcond=None)[0]
    size = float((expected**2).sum())
    return float((expected * error[seen]).sum() / size) if size > 0 else float("nan")


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


def _matrix(motion: Affine) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, :2] += motion.matrix
    matrix[:2, 2] = motion.shift
    return matrix


def _step(before: _Look, after: _Look) -> np.ndarray:
    """The map that their mean velocity makes between two looks: the matrix exponential to second order."""
    seconds = after.t_s - before.t_s
    rate = np.zeros((3, 3))
    rate[:2, :2] = (before.velocity.matrix + after.velocity.matrix) / 2 * seconds
    rate[:2, 2] = (before.velocity.shift + after.velocity.shift) / 2 * seconds
    return np.eye(3) + rate + rate @ rate / 2


def _warp(luma: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture moved along the path (about its centre), and which cells lie wholly inside it."""
    height, width = luma.shape
    centre = np.eye(3)
    centre[:2, 2] = width / 2 - 0.5, height / 2 - 0.5
    matrix = (centre @ path @ np.linalg.inv(centre))[:2]
    moved = cv2.warpAffine(luma, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    whole = cv2.warpAffine(np.full_like(luma, 255), matrix, (width, height))
    inside = cv2.erode((cells(whole) >= 250).astype(np.uint8), np.ones((3, 3), np.uint8))
    return moved, inside > 0
