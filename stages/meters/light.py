"""Brightness, sharpness and black borders, a few looks a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Gt

from curation.measures import brightness, sharpness
from curation.video.frames import Planes, VideoInfo
from stages.meters.meter import Meter

BLACK = 12  # luma, 0..255, up to which a pixel may be a bar's: bars are 0, a codec adds little
LIT = 28  # luma from which a pixel is clearly picture
STRAY = 0.02  # of a bar's row may be brighter
CAPTION = 0.6  # of a row that letters in a bar light at most
EDGE = (
    0.25  # of a row that must be lit right behind a bar: a dark scene fades in, a bar ends at once
)
PICTURE = 0.67  # of the lines between the bars must be lit so widely: a black page of text is none
LEAST_SHARE = 0.01  # of the width or height: a dark rim of a pixel or two is no border


@dataclass
class Light(Meter):
    """Keeps, per look, two levels and how much of each row and column is brighter than a bar."""

    looks_per_s: Annotated[float, Gt(0)] = 2.0
    writes = ("brightness", "sharpness", "border_share", "borders")

    def start(self, video: VideoInfo) -> None:
        self._next_s = 0.0
        self._times: list[float] = []
        self._levels: list[tuple[float, float]] = []  # brightness, sharpness
        self._rows: list[
            np.ndarray
        ] = []  # (2, h) uint8: share of each row above BLACK and above LIT, 255 = 1
        self._columns: list[np.ndarray] = []  # (2, w) uint8

    def process_frame(self, t_s: float, frame: Planes) -> None:
        if t_s < self._next_s:
            return
        self._next_s = max(self._next_s + 1 / self.looks_per_s, t_s)
        self._times.append(t_s)
        self._levels.append((brightness(frame.y), sharpness(frame.y)))
        rows, columns = _profiles(frame.y)
        self._rows.append(rows)
        self._columns.append(columns)

    def _within(self, start_s: float, end_s: float) -> slice:
        """The looks with start_s <= t < end_s; of a span between two looks, the one before it."""
        first, last = np.searchsorted(self._times, (start_s, end_s))
        return (
            slice(max(0, int(first) - 1), int(last))
            if first == last
            else slice(int(first), int(last))
        )

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        looks = self._levels[self._within(start_s, end_s)]
        if not looks:
            return dict.fromkeys(self.writes)
        borders = left, top, right, bottom = self.borders(start_s, end_s)
        return {
            "brightness": float(np.mean([level for level, _ in looks])),
            "sharpness": float(np.median([detail for _, detail in looks])),
            "border_share": 1 - (1 - left - right) * (1 - top - bottom),
            "borders": borders,
        }

    def score_segment(self, start_s: float, end_s: float) -> dict[str, float | None]:
        looks = self._levels[self._within(start_s, end_s)]
        return {"brightness": float(np.mean([level for level, _ in looks])) if looks else None}

    def borders(self, start_s: float, end_s: float) -> tuple[float, float, float, float]:
        """Black bars that stay for the whole span: left, top, right, bottom; shares of a side."""
        looks = self._within(start_s, end_s)
        if not self._rows[looks]:
            return 0.0, 0.0, 0.0, 0.0
        # The brightest look counts: a fade to black or a dark shot is no bar.
        columns, rows = (np.max(p[looks], axis=0) / 255.0 for p in (self._columns, self._rows))
        return bar(columns), bar(rows), bar(columns[:, ::-1]), bar(rows[:, ::-1])


def _profiles(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2, h) and (2, w) uint8: how much of each row and column is above BLACK, and above LIT."""
    rows, columns = [], []
    for level in (BLACK, LIT):
        above = cv2.threshold(luma, level, 255, cv2.THRESH_BINARY)[1]
        rows.append(cv2.reduce(above, 1, cv2.REDUCE_AVG).ravel())
        columns.append(cv2.reduce(above, 0, cv2.REDUCE_AVG).ravel())
    return np.array(rows), np.array(columns)


def bar(bright: np.ndarray) -> float:
    """Share of the lines that are a black bar at the start of the profile.

    bright: (2, lines), the share of each line that was ever above BLACK, and above LIT, 0..1.
    """
    black, lit = bright[0] <= STRAY, bright[1]
    lines = len(black)
    end = int(np.argmax(bright[0] > CAPTION)) if (bright[0] > CAPTION).any() else 0
    if not end or not black[0]:
        return 0.0
    wide = np.flatnonzero(bright[0] > CAPTION)
    if len(wide) < PICTURE * (wide[-1] + 1 - end):
        return 0.0
    # Letters may stand inside the bar; the picture begins behind its last black line.
    size = int(np.flatnonzero(black[:end])[-1]) + 1
    behind = slice(size + 1, size + 4)  # the line at the edge itself is mixed of both
    if size < LEAST_SHARE * lines or not len(lit[behind]) or lit[behind].max() < EDGE:
        return 0.0
    # A picture begins at once and over all its width; behind a black page's margin is text.
    if bright[0][behind].max() <= CAPTION:
        return 0.0
    return size / lines
