"""Finds straight lines and outlines at which two views meet: split screens, collages, insets."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge, Gt

from curation.video.frames import Planes, VideoInfo
from stages.meters.meter import Meter
from stages.meters.outlines import outline_share
from stages.meters.panels import panel_share
from stages.meters.scratch_file import ScratchFile

JPEG_QUALITY = 92
MIN_SAMPLES = 4  # fewer do not show that an edge stays
MARGIN_SHARE = 0.15  # of a side: borders, banners and tickers lie nearer to the picture's edge
NUM_LINES = 6  # examined per direction: those with the largest jumps
BORDERS_PX = (0, 1, 2, 3, 4, 6, 8, 11, 14)  # widths of a border between two views, reduced size
MIN_JUMP_LEVELS = 6.0  # grey levels across an edge
MIN_JUMP_RATIO = 1.5  # of an edge to the differences on both sides of it
MAX_JUMP_LEVELS = 40  # a larger one counts as this: no single object decides about a line
MAX_BORDER_DEVIATION = 3.0  # grey levels, standard deviation of a border's pixels
MIN_BORDER_JUMPS = 0.3  # share of the length at which each side differs from the border
MIN_STAYING_SHARE = 0.7  # of the samples, in which a pixel of the line is an edge
FULL_TEXTURE = 2.0  # grey levels per two px: rms change along the line that counts in full
FULL_CORRELATION = 0.2  # of these changes with those three px away on the same side: noise has none
MIN_THIN_LINE_LENGTH = 0.98  # share of a thin line that is not clearly the opposite of the line
MIN_CLEAR_SHARE = 0.6  # of its length that is clearly darker, or brighter, than both sides
BANDS = 6  # equal parts of a line, of which each may continue across it
MIN_END_SHARE = 0.2  # of the first and of the last part: less, and the line ends in the picture
MIN_BAND_CORRELATION = 0.4  # of a part that continues
MIN_CHANGE_LEVELS = 6.0  # between samples: motion
# Of the samples, in which each side of a pixel of the line moves. A person who walks across a door
# frame moves first on one side, then on the other: less often than a view whose camera moves.
MIN_MOVING_SHARE = 0.5
MIN_LINE_PX = 48  # a smaller picture has no lines to examine


@dataclass
class Seams(Meter):
    """Stores two small images a second and compares those of a span.

    A scene may have straight edges too: walls, doors, tables. But what lies on both sides of them
    belongs together: other edges cross the line, and what moves on one side moves on the other.
    """

    samples_per_s: Annotated[float, Gt(0)] = 2.0
    # number of evenly spaced samples of a span that are compared: limits the time of a score
    max_samples: Annotated[int, Ge(MIN_SAMPLES)] = 10
    writes = ("seam_share",)
    after_prefilter = True

    def start(self, video: VideoInfo) -> None:
        self._next_s = 0.0
        self._times_s: list[float] = []
        self._images = ScratchFile(JPEG_QUALITY)

    def process_frame(self, t_s: float, frame: Planes) -> None:
        if t_s < self._next_s:
            return
        self._next_s = max(self._next_s + 1 / self.samples_per_s, t_s)
        self._times_s.append(t_s)
        self._images.append(frame.y)

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        first, last = (bisect.bisect_left(self._times_s, t_s) for t_s in (start_s, end_s))
        count = min(last - first, self.max_samples)
        if count < MIN_SAMPLES:
            return {"seam_share": None}
        chosen = np.linspace(first, last - 1, count).round().astype(int)
        return {"seam_share": seam_share([self._images.image(i) for i in chosen])}


def seam_share(samples: Sequence[np.ndarray]) -> float:
    """samples: luma (h, w) at different times -> 0..1, of the clearest line or outline.

    Of a line, about the share at which two unrelated pictures meet; of the outline of an inset or
    panel, how clear it is. 0 where the picture is small.
    """
    stack = np.stack(samples)
    if min(stack.shape[1:]) < MIN_LINE_PX:
        return 0.0
    turned = np.ascontiguousarray(stack.transpose(0, 2, 1))
    lines = _clearest_vertical(stack), _clearest_vertical(turned)
    return max(*lines, outline_share(stack), panel_share(stack))


def _clearest_vertical(stack: np.ndarray) -> float:
    """stack: (samples, h, w) uint8."""
    found = 0.0
    for x in _candidates(stack):
        for border in BORDERS_PX:
            found = max(found, _line_share(stack, x, border))
        for line in range(x, x + 3):
            found = max(found, *(_thin_line_share(stack, line, width) for width in (1, 2)))
    return found


def _candidates(stack: np.ndarray) -> list[int]:
    """Left of each of the lines with the largest jumps, compared with the pixels next to them."""
    width = stack.shape[2]
    jumps, sides = np.zeros((2, width), np.float32)
    for image in stack:
        # across[k] is the jump from k to k + 3: a line between k + 1 and k + 2
        across = np.minimum(cv2.absdiff(image[:, 3:], image[:, :-3]), MAX_JUMP_LEVELS)
        next_to = cv2.max(across[:, :-6], across[:, 6:])
        jumps[4:-5] += across[:, 3:-3].mean(0)
        sides[4:-5] += next_to.mean(0)
    margin = round(MARGIN_SHARE * width)
    ratio = jumps / (sides + 0.5 * len(stack))
    ratio[:margin] = ratio[width - margin :] = 0
    # A thin border has a jump on both sides, so that its ratio is small. It is a column of one
    # colour, or, thinner than a pixel, one that is darker or brighter than its neighbours.
    spread = stack.reshape(-1, width).std(0)
    is_border = spread < MAX_BORDER_DEVIATION
    starts = np.flatnonzero(is_border[1:] & ~is_border[:-1])
    inside = starts[(starts >= margin) & (starts < width - margin)]
    chosen = [int(x) for x in inside[:NUM_LINES]]
    columns = stack.reshape(-1, width).mean(0)
    depth = np.abs(columns[2:-2] - (columns[:-4] + columns[4:]) / 2)
    deepest = margin + int(depth[margin : width - 4 - margin].argmax())
    chosen.append(deepest)  # the column after it is the deepest
    for _ in range(NUM_LINES):
        x = int(ratio.argmax())
        if ratio[x] <= 1:
            break
        chosen.append(x)
        ratio[max(0, x - 3) : x + 4] = 0
    return chosen


def _line_share(stack: np.ndarray, x: int, border: int) -> float:
    """0..1, of the line right of x. Its border covers the columns x + 1 to x + border."""
    right_x = x + 2 + border
    if right_x + 5 >= stack.shape[2]:
        return 0.0
    # (samples, h) each, float32; the columns next to the line are blurred by the codec
    left, outer_left, right, outer_right = (
        stack[:, :, column].astype(np.float32) for column in (x - 1, x - 4, right_x, right_x + 3)
    )
    jump, by_border = np.abs(right - left), 0.0
    if border:
        inner = stack[:, :, x + 1 + (border > 2) : right_x - 1 - (border > 2)]
        if inner.std() > MAX_BORDER_DEVIATION:
            return 0.0
        jumps = np.abs(left - inner.mean()), np.abs(right - inner.mean())
        by_border = float(min((side > MIN_JUMP_LEVELS).mean() for side in jumps))
        if by_border < MIN_BORDER_JUMPS:
            return 0.0
        jump = np.maximum(*jumps)
    next_to = np.maximum(np.abs(left - outer_left), np.abs(right - outer_right))
    is_edge = (jump > MIN_JUMP_LEVELS) & (jump > MIN_JUMP_RATIO * next_to)
    stays = is_edge.mean(0) >= MIN_STAYING_SHARE
    staying_share = float(stays.mean()) * _reaches_both_ends(stays)
    unrelated = _unrelated_share(left, right, outer_left, outer_right)
    by_structure = staying_share * max(unrelated, by_border)
    by_motion = _independent_motion(left, right, stays)
    return 1 - (1 - by_structure) * (1 - by_motion)


def _thin_line_share(stack: np.ndarray, x: int, width: int) -> float:
    """0..1, of a border that is thinner than a pixel of the reduced size: a blend with the views.

    It is darker than both sides, or brighter, and nowhere the opposite. A cable or a pole ends.
    """
    columns = stack[:, :, x - 1 : x + width + 1].astype(np.float32)
    to_left, to_right = columns[..., 0] - columns[..., 1], columns[..., -1] - columns[..., -2]
    darker_by, brighter_by = np.minimum(to_left, to_right), np.minimum(-to_left, -to_right)
    for difference in (darker_by, brighter_by):
        if (difference > -MIN_JUMP_LEVELS).mean() > MIN_THIN_LINE_LENGTH:
            is_clear = (difference > MIN_JUMP_LEVELS).mean(0) >= MIN_STAYING_SHARE
            share = float(is_clear.mean()) * _reaches_both_ends(is_clear)
            return share if share > MIN_CLEAR_SHARE else 0.0
    return 0.0


def _reaches_both_ends(stays: np.ndarray) -> float:
    """0..1: whether the line goes from one edge of the picture to the other, as no door does."""
    part = len(stays) // BANDS
    return float(min(1.0, min(stays[:part].mean(), stays[-part:].mean()) / MIN_END_SHARE))


def _unrelated_share(
    left: np.ndarray, right: np.ndarray, outer_left: np.ndarray, outer_right: np.ndarray
) -> float:
    """0..1: how little of the structure along one side of a line continues on the other.

    0 where a side has no structure: its changes are weak, or noise.
    """
    one, two = _changes_along(left), _changes_along(right)
    texture = float(min((one**2).mean(), (two**2).mean()) ** 0.5)
    own = min(
        _correlation(side, _changes_along(outer))
        for side, outer in ((one, outer_left), (two, outer_right))
    )
    known = min(1.0, texture / FULL_TEXTURE) * float(np.clip(own / FULL_CORRELATION, 0, 1))
    correlation = max(0.0, float(_correlation(one, two)))
    length = one.shape[1] // BANDS * BANDS
    bands = [side[:, :length].reshape(len(side), BANDS, -1) for side in (one, two)]
    strength = np.sqrt(np.sqrt((bands[0] ** 2).mean((0, 2)) * (bands[1] ** 2).mean((0, 2))))
    weight = np.minimum(strength, 2 * FULL_TEXTURE)
    continues = _correlation(bands[0], bands[1], (0, 2)) > MIN_BAND_CORRELATION
    continued_share = float((weight * continues).sum() / (weight.sum() + 0.3))
    return (1 - correlation) * (1 - continued_share) * known


def _independent_motion(left: np.ndarray, right: np.ndarray, stays: np.ndarray) -> float:
    """0..1: the share of the line that stays while both sides move, if they move independently."""
    moves = []
    for side in (left, right):
        change = (np.abs(np.diff(side, axis=0)) > MIN_CHANGE_LEVELS).astype(np.float32)
        moves.append((cv2.blur(change, (5, 1)) > 0.3).astype(np.float32))
    both = stays & (moves[0].mean(0) >= MIN_MOVING_SHARE) & (moves[1].mean(0) >= MIN_MOVING_SHARE)
    together = float(_correlation(*(side - side.mean() for side in moves)))
    return float(both.mean()) * min(1.0, max(0.0, 1 - 2 * together))


def _changes_along(column: np.ndarray) -> np.ndarray:
    """(samples, h) -> (samples, h): the luma's change from the pixel before to the one after."""
    smooth = cv2.blur(column, (3, 1))
    change = np.zeros_like(smooth)
    change[:, 1:-1] = smooth[:, 2:] - smooth[:, :-2]
    return change


def _correlation(one: np.ndarray, two: np.ndarray, axis: tuple[int, ...] | None = None) -> Any:
    product = (one * two).sum(axis)
    return product / np.sqrt((one * one).sum(axis) * (two * two).sum(axis) + 1e-3)
