"""Measures brightness, sharpness and black borders, a few times a second."""

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

MAX_BLACK_LEVEL = 12  # luma of a border's pixel, 0..255: borders are 0, a codec adds little
MIN_LIT_LEVEL = 28  # luma of a pixel that is clearly part of the image
MAX_BRIGHT_SHARE = 0.02  # of a black line: stray pixels
MAX_LETTERS_SHARE = 0.6  # of a line: letters in a border light at most so much of it
# Of the line right behind a border that must be lit: a border ends at once, a dark scene does not.
MIN_LIT_SHARE_BEHIND = 0.25
MIN_IMAGE_LINES = 0.67  # of the lines between the borders: a black page of text has fewer wide ones
MIN_BORDER_SHARE = 0.01  # of the width or height: a dark rim of a pixel or two is no border


@dataclass
class Light(Meter):
    """Keeps two numbers per sample, and how much of each row and column is brighter than black."""

    samples_per_s: Annotated[float, Gt(0)] = 2.0
    writes = ("brightness", "sharpness", "border_share", "borders")

    def start(self, video: VideoInfo) -> None:
        self._next_s = 0.0
        self._times_s: list[float] = []
        self._levels: list[tuple[float, float]] = []  # brightness, sharpness
        # (2, h) and (2, w) uint8: share of each row and column above MAX_BLACK_LEVEL, and above
        # MIN_LIT_LEVEL; 255 for all of it.
        self._rows = SmallArrays()
        self._columns = SmallArrays()

    def process_frame(self, t_s: float, frame: Planes) -> None:
        if t_s < self._next_s:
            return
        self._next_s = max(self._next_s + 1 / self.samples_per_s, t_s)
        self._times_s.append(t_s)
        self._levels.append((brightness(frame.y), sharpness(frame.y)))
        rows, columns = _bright_shares(frame.y)
        self._rows.append(rows)
        self._columns.append(columns)

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
        """Black borders of the whole span: left, top, right, bottom, as shares of a side."""
        samples = self._samples_between(start_s, end_s)
        profiles = (p.between(samples.start, samples.stop) for p in (self._columns, self._rows))
        columns_of_each, rows_of_each = profiles
        if not rows_of_each:
            return 0.0, 0.0, 0.0, 0.0
        # The brightest sample counts: a fade to black or a dark shot is no border.
        columns, rows = (np.max(p, axis=0) / 255.0 for p in (columns_of_each, rows_of_each))
        sides = columns, rows, columns[:, ::-1], rows[:, ::-1]
        left, top, right, bottom = map(border_share, sides)
        return left, top, right, bottom


def _bright_shares(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2, h) and (2, w) uint8: share of each row and column above both levels."""
    rows, columns = [], []
    for level in (MAX_BLACK_LEVEL, MIN_LIT_LEVEL):
        above = cv2.threshold(luma, level, 255, cv2.THRESH_BINARY)[1]
        rows.append(cv2.reduce(above, 1, cv2.REDUCE_AVG).ravel())
        columns.append(cv2.reduce(above, 0, cv2.REDUCE_AVG).ravel())
    return np.array(rows), np.array(columns)


def border_share(shares: np.ndarray) -> float:
    """Share of the lines that form a black border at the start of the profile.

    shares: (2, lines), of each line that was ever above MAX_BLACK_LEVEL, and above MIN_LIT_LEVEL.
    """
    bright, lit = shares
    is_black, is_wide = bright <= MAX_BRIGHT_SHARE, bright > MAX_LETTERS_SHARE
    wide = np.flatnonzero(is_wide)
    if not len(wide) or not wide[0] or not is_black[0]:
        return 0.0
    if len(wide) < MIN_IMAGE_LINES * (wide[-1] + 1 - wide[0]):
        return 0.0
    # Letters may be inside the border; the image begins after the last black line.
    size = int(np.flatnonzero(is_black[: wide[0]])[-1]) + 1
    behind = slice(size + 1, size + 4)  # the line at the edge contains both
    if size < MIN_BORDER_SHARE * len(bright) or not len(lit[behind]):
        return 0.0
    # An image begins at once and over all its width; behind the margin of a black page is text.
    if lit[behind].max() < MIN_LIT_SHARE_BEHIND or not is_wide[behind].any():
        return 0.0
    return size / len(bright)
