"""Measures brightness, sharpness and borders of one colour, a few times a second."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Gt

from curation.measures import brightness, sharpness
from curation.video.frames import Planes, VideoInfo
from stages.meters.meter import Meter
from stages.meters.small_arrays import SmallArrays

# Difference of a pixel's luma, 0..255, from the colour of the borders
MAX_BORDER_DIFFERENCE = 12  # of a border's pixel: a codec adds little
MIN_IMAGE_DIFFERENCE = 28  # of a pixel that is clearly part of the image
MAX_STRAY_SHARE = 0.02  # of a border's line: pixels that differ
MAX_LETTERS_SHARE = 0.6  # of a line: letters in a border take at most so much of it
# Of the line right behind a border that must differ: a border ends at once, a dark scene does not.
MIN_IMAGE_SHARE_BEHIND = 0.25
MIN_IMAGE_LINES = 0.67  # of the lines between the borders: a page of text has fewer wide ones
MIN_BORDER_SHARE = 0.01  # of the width or height: a dark rim of a pixel or two is no border
MAX_COLOUR_RANGE = 6  # luma of borders that are not black, over a clip


@dataclass
class Light(Meter):
    """Keeps three numbers per sample, and how much of each row and column is no border."""

    samples_per_s: Annotated[float, Gt(0)] = 2.0
    writes = ("brightness", "sharpness", "border_share", "borders")

    def start(self, video: VideoInfo) -> None:
        self._next_s = 0.0
        self._times_s: list[float] = []
        self._levels: list[tuple[float, float]] = []  # brightness, sharpness
        self._corners: list[int] = []  # luma at the top left: the colour of borders, if there are
        self._from_black = Profiles()
        self._from_corner = Profiles()

    def process_frame(self, t_s: float, frame: Planes) -> None:
        if t_s < self._next_s:
            return
        self._next_s = max(self._next_s + 1 / self.samples_per_s, t_s)
        self._times_s.append(t_s)
        self._levels.append((brightness(frame.y), sharpness(frame.y)))
        corner = int(frame.y[0, 0])
        self._corners.append(corner)
        self._from_black.append(frame.y)
        difference = cv2.absdiff(frame.y, np.full_like(frame.y, corner))
        may_have_borders = corner > MAX_BORDER_DIFFERENCE and _has_plain_sides(difference)
        self._from_corner.append(difference if may_have_borders else None)

    def _samples_between(self, start_s: float, end_s: float) -> slice:
        """The samples with start_s <= t < end_s; the one before a span that has none."""
        first, last = (bisect.bisect_left(self._times_s, t_s) for t_s in (start_s, end_s))
        return slice(max(0, first - 1) if first == last else first, last)

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        levels = self._levels[self._samples_between(start_s, end_s)]
        if not levels:
            return dict.fromkeys(self.writes)
        borders = left, top, right, bottom = self.borders(start_s, end_s)
        return {
            "brightness": float(np.mean([level for level, _ in levels])),
            "sharpness": float(np.median([detail for _, detail in levels])),
            "border_share": 1 - (1 - left - right) * (1 - top - bottom),
            "borders": borders,
        }

    def score_segment(self, start_s: float, end_s: float) -> dict[str, float | None]:
        levels = self._levels[self._samples_between(start_s, end_s)]
        return {"brightness": float(np.mean([level for level, _ in levels])) if levels else None}

    def borders(self, start_s: float, end_s: float) -> tuple[float, float, float, float]:
        """Borders of the whole span: left, top, right, bottom, as shares of a side.

        They are black, or they have one other colour and lie on opposite sides: a plain area at one
        side alone may be a wall or the sky.
        """
        samples = self._samples_between(start_s, end_s)
        black = self._from_black.borders(samples)
        darkest, lightest = (f(self._corners[samples], default=0) for f in (min, max))
        if any(black) or lightest - darkest > MAX_COLOUR_RANGE:
            return black
        left, top, right, bottom = self._from_corner.borders(samples)
        if not (left and right):
            left = right = 0.0
        if not (top and bottom):
            top = bottom = 0.0
        return left, top, right, bottom


class Profiles:
    """How much of each row and column differs from the colour of borders, of many frames."""

    def __init__(self) -> None:
        # (2, h) and (2, w) uint8: share of each row and column above MAX_BORDER_DIFFERENCE, and
        # above MIN_IMAGE_DIFFERENCE; 255 for all of it. Empty where there can be no border.
        self._rows = SmallArrays()
        self._columns = SmallArrays()

    def append(self, difference: np.ndarray | None) -> None:
        """difference: (h, w) uint8, from the colour of borders; None where there can be none."""
        rows, columns = [], []
        for level in (MAX_BORDER_DIFFERENCE, MIN_IMAGE_DIFFERENCE):
            if difference is not None:
                above = cv2.threshold(difference, level, 255, cv2.THRESH_BINARY)[1]
                rows.append(cv2.reduce(above, 1, cv2.REDUCE_AVG).ravel())
                columns.append(cv2.reduce(above, 0, cv2.REDUCE_AVG).ravel())
        self._rows.append(np.array(rows, np.uint8))
        self._columns.append(np.array(columns, np.uint8))

    def borders(self, samples: slice) -> tuple[float, float, float, float]:
        """Of all the samples: left, top, right, bottom, as shares of a side."""
        rows_of_each = self._rows.between(samples.start, samples.stop)
        columns_of_each = self._columns.between(samples.start, samples.stop)
        if not rows_of_each or not all(rows.size for rows in rows_of_each):
            return 0.0, 0.0, 0.0, 0.0
        # The largest difference counts: a fade to black or a dark shot is no border.
        columns, rows = (np.max(p, axis=0) / 255.0 for p in (columns_of_each, rows_of_each))
        sides = columns, rows, columns[:, ::-1], rows[:, ::-1]
        left, top, right, bottom = map(border_share, sides)
        return left, top, right, bottom


def _has_plain_sides(difference: np.ndarray) -> bool:
    """Whether two opposite sides of a frame have the colour of its corner.  difference: (h, w)."""
    first_rows_and_columns = difference[0], difference[-1], difference[:, 0], difference[:, -1]
    top, bottom, left, right = (
        np.mean(line > MAX_BORDER_DIFFERENCE) <= MAX_STRAY_SHARE for line in first_rows_and_columns
    )
    return bool((top and bottom) or (left and right))


def border_share(shares: np.ndarray) -> float:
    """Share of the lines that form a border at the start of the profile.

    shares: (2, lines), of each line that ever differed by more than MAX_BORDER_DIFFERENCE, and by
    more than MIN_IMAGE_DIFFERENCE.
    """
    different, clearly = shares
    is_plain, is_wide = different <= MAX_STRAY_SHARE, different > MAX_LETTERS_SHARE
    wide = np.flatnonzero(is_wide)
    if not len(wide) or not wide[0] or not is_plain[0]:
        return 0.0
    if len(wide) < MIN_IMAGE_LINES * (wide[-1] + 1 - wide[0]):
        return 0.0
    # Letters may be inside the border; the image begins after the last plain line.
    size = int(np.flatnonzero(is_plain[: wide[0]])[-1]) + 1
    behind = slice(size + 1, size + 4)  # the line at the edge contains both
    if size < MIN_BORDER_SHARE * len(different) or not len(clearly[behind]):
        return 0.0
    # An image begins at once and over all its width; behind the margin of a page is text.
    if clearly[behind].max() < MIN_IMAGE_SHARE_BEHIND or not is_wide[behind].any():
        return 0.0
    return size / len(different)
