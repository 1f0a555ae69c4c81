"""Graphics that stay in place while the picture moves: logos, watermarks, captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge, Gt

from curation.images import decode_image, encode_png
from curation.video.frames import Planes, VideoInfo
from stages.meters.meter import Meter
from stages.meters.scratch_file import Scratch

JPEG_QUALITY = 92
CHANGED = 6.0  # grey levels: what moves differs by more from the usual picture, noise by less
EDGE = 3.0  # grey levels per px of a graphic's edge, at reduced size
SURE = 5.0  # standard errors by which a staying edge stands out of what moves behind it
STEADY = 1.7  # standard deviations by which it does in a single look: leaves in wind come back too
TEXTURE = 4.0  # grey levels per px of an edge that shows whether the picture moves
MOVING_SHARE = 0.75  # of all blocks with edges must show other ones than usual: the camera moves
RING_SHARE = 0.85  # of a graphic's surroundings must have changed at once, if the camera stands
LEAST_LOOKS = 5  # with moving surroundings, or nothing is said
LEAST_EDGE_PX = 12  # of a graphic: fewer are chance


@dataclass
class Overlay(Meter):
    """Keeps one small picture a second, a JPEG of 10 to 20 kB; looks at them when asked.

    In a shot from a tripod the world stays in place too. There only what is surrounded by change on
    all sides, and still stays, is a graphic; a lamp post before the traffic stands on ground that
    does not move.
    """

    looks_per_s: Annotated[float, Gt(0)] = 1.0
    # of a span are compared, evenly spread: bounds the time of an answer
    most_looks: Annotated[int, Ge(LEAST_LOOKS)] = 15
    writes = ("overlay_share", "overlay_mask")
    after_prefilter = True

    def start(self, video: VideoInfo) -> None:
        self._next_s = 0.0
        self._times: list[float] = []
        self._looks = Scratch(JPEG_QUALITY)

    def process_frame(self, t_s: float, frame: Planes) -> None:
        if t_s < self._next_s:
            return
        self._next_s = max(self._next_s + 1 / self.looks_per_s, t_s)
        self._times.append(t_s)
        self._looks.add(frame.y)

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        mask = self.mask(start_s, end_s)
        if mask is None:
            return dict.fromkeys(self.writes)
        png = encode_png(mask)
        return {"overlay_share": float(np.mean(mask > 0)), "overlay_mask": png}

    def mask(self, start_s: float, end_s: float) -> np.ndarray | None:
        """(h, w) uint8 at reduced size, 255 where a graphic stays; None: too little moved."""
        first, last = np.searchsorted(self._times, (start_s, end_s))
        number = min(int(last - first), self.most_looks)
        if number < LEAST_LOOKS:
            return None
        chosen = np.linspace(first, last - 1, number).round().astype(int)
        looks = [decode_image(self._looks[i], "a frame", cv2.IMREAD_GRAYSCALE) for i in chosen]
        return graphics(looks)


def graphics(looks: Sequence[np.ndarray]) -> np.ndarray | None:
    """looks: luma at different times -> mask (h, w) uint8, 255 where a graphic stays, or None."""
    usual = _median(looks)
    moving = _camera_moves(looks, usual, 2) | _camera_moves(looks, usual, 4)
    changed = _changed(looks, usual)
    near = [
        np.ones(usual.shape, np.float32)
        if moves
        else (cv2.blur(change, (15, 15)) > CHANGED).astype(np.float32)
        for moves, change in zip(moving, changed, strict=True)
    ]
    number = np.add.reduce(near)
    if not (number >= LEAST_LOOKS).any():
        return None
    edges = _staying_edges(looks, near, number, usual)
    if not edges.any():
        return edges
    around = np.array([cv2.blur(change, (5, 5)) > CHANGED for change in changed])
    return _surrounded(edges, around, moving)


def _median(looks: Sequence[np.ndarray]) -> np.ndarray:
    """Of an odd number of them, by swapping neighbours: fifty times as fast as NumPy's."""
    row = list(looks[: len(looks) - 1 + len(looks) % 2])
    for turn in range(len(row)):
        for i in range(turn % 2, len(row) - 1, 2):
            row[i], row[i + 1] = cv2.min(row[i], row[i + 1]), cv2.max(row[i], row[i + 1])
    return row[len(row) // 2]


def _gradient(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and down, (h, w) float32 each: grey levels per px, lightly smoothed."""
    soft = cv2.GaussianBlur(luma, (3, 3), 0)
    right, down = (cv2.Sobel(soft, cv2.CV_32F, *d, ksize=3, scale=0.125) for d in ((1, 0), (0, 1)))
    return right, down


def _changed(looks: Sequence[np.ndarray], usual: np.ndarray) -> list[np.ndarray]:
    """Per look, (h, w) float32: grey levels that differ from the usual picture, and from the look
    before: a camera that stopped elsewhere has one view, not many.

    They differ both as they are and without slow shading, which keeps a change of exposure, which
    lifts the whole picture, from reading as motion.
    """
    flat = [_without_shading(look) for look in looks]
    flat_usual = _without_shading(usual)
    changed = []
    for number, look in enumerate(looks):
        before = number - 1 if number else 1
        others = (usual, flat_usual), (looks[before], flat[before])
        to_usual, to_before = (
            cv2.min(
                cv2.absdiff(look, other).astype(np.float32),
                1.5 * cv2.absdiff(flat[number], other_flat),
            )
            for other, other_flat in others
        )
        changed.append(cv2.min(to_usual, to_before))
    return changed


def _without_shading(look: np.ndarray) -> np.ndarray:
    levels = look.astype(np.float32)
    return cv2.subtract(levels, cv2.blur(levels, (31, 31)))


def _camera_moves(looks: Sequence[np.ndarray], usual: np.ndarray, by: int) -> np.ndarray:
    """(looks,) bool: most edges in most blocks are new, to the usual picture and the look before.

    Blocks, not pixels: a graphic has many strong edges, but in few places. by: how much smaller the
    pictures are made for it. Small ones show the soft edges of clouds and of what is out of focus.
    """
    height, width = (side // by for side in usual.shape)
    small = [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in (usual, *looks)]
    thin = [_gradient(p) for p in small]
    size = (max(1, width // 8), max(1, height // 8))
    moves = []
    for number, gradient in enumerate(thin[1:]):
        strength = cv2.magnitude(*gradient)
        textured = strength > TEXTURE
        new = textured.copy()
        for other in (thin[0], thin[number] if number else thin[2]):
            new &= cv2.magnitude(*map(cv2.subtract, gradient, other)) > 0.5 * strength
        edges, fresh = (
            cv2.resize(m.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            for m in (textured, new)
        )
        told = edges > 0.05
        moves.append(bool(told.any()) and float((fresh > 0.5 * edges)[told].mean()) > MOVING_SHARE)
    return np.array(moves)


def _staying_edges(
    looks: Sequence[np.ndarray], near: list[np.ndarray], number: np.ndarray, usual: np.ndarray
) -> np.ndarray:
    """(h, w) uint8: where the gradient is the usual one in all looks with moving surroundings.

    A see-through graphic adds its own gradient to the one behind it, which comes and goes: the mean
    stands out of the spread.  near: per look (h, w), 1 where the surroundings moved; number: sum.
    """
    right, down, squares = (np.zeros(usual.shape, np.float32) for _ in range(3))
    for look, weight in zip(looks, near, strict=True):
        for total, gradient in zip((right, down), _gradient(look), strict=True):
            weighted = cv2.multiply(gradient, weight)
            cv2.add(total, weighted, dst=total)
            cv2.add(squares, cv2.multiply(weighted, gradient), dst=squares)
    count = np.maximum(number, 1)
    right, down = right / count, down / count
    mean = cv2.magnitude(right, down)
    off = cv2.magnitude(*map(cv2.subtract, (right, down), _gradient(usual)))
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
    stays = (mean > EDGE) & (mean > STEADY * spread) & (mean * np.sqrt(count) > SURE * spread)
    return (stays & (off < 0.5 * mean) & (number >= LEAST_LOOKS)).astype(np.uint8)


def _surrounded(edges: np.ndarray, around: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Edges joined to whole graphics; of these, those surrounded by change often enough."""
    height, width = edges.shape
    padded = cv2.copyMakeBorder(edges, 8, 8, 8, 8, cv2.BORDER_CONSTANT)
    joined = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(3))[8:-8, 8:-8]
    mask = np.zeros((height, width), np.uint8)
    for contour in cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        left, top = max(0, x - 8), max(0, y - 8)
        box = (slice(top, y + h + 8), slice(left, x + w + 8))
        one = np.zeros_like(edges[box])
        # The hull: a plate's outline may be open where what is behind has its colour.
        cv2.drawContours(one, [cv2.convexHull(contour)], -1, 1, -1, offset=(-left, -top))
        bar_edge = (w > 0.95 * width and h <= 6) or (h > 0.95 * height and w <= 6)
        if bar_edge or int(edges[box][one > 0].sum()) < LEAST_EDGE_PX:
            continue
        ring = (cv2.dilate(one, _disc(7)) > 0) & (cv2.dilate(one, _disc(2)) == 0)
        free = around[(slice(None), *box)][:, ring].mean(1) > RING_SHARE if ring.any() else moving
        if np.count_nonzero(free | moving) >= LEAST_LOOKS:
            mask[box][one > 0] = 255
    return mask


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
