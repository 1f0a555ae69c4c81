"""Images and tables in a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

import cv2
import numpy as np

from curation.progress import printable


def draws_images(stream: TextIO) -> bool:
    """Whether the terminal shows 24-bit colours, as far as it states."""
    return stream.isatty() and os.environ.get("COLORTERM") in ("truecolor", "24bit")


def draw_images(images: Sequence[np.ndarray], columns: int) -> str:
    """The images side by side, `columns` characters wide, each character two pixels high.

    images: (h, w, 3) uint8 BGR.
    """
    width = max(1, columns // max(len(images), 1) - 1)
    shown = [_fit(image, width) for image in images]
    rows = max((len(image) // 2 for image in shown), default=0)
    return "\n".join(" ".join(_draw_row(image, row) for image in shown) for row in range(rows))


def _fit(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1] / 2)) * 2
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _draw_row(image: np.ndarray, row: int) -> str:
    if 2 * row >= len(image):
        return " " * image.shape[1]
    cells = []
    for top, bottom in zip(*image[2 * row : 2 * row + 2, :, ::-1].tolist(), strict=True):
        front, back = ";".join(map(str, top)), ";".join(map(str, bottom))
        cells.append(f"\x1b[38;2;{front};48;2;{back}m▀")
    return "".join(cells) + "\x1b[0m"


def align(rows: Sequence[Sequence[object]], max_chars: int = 60) -> str:
    """A table; the first row is its header. Columns of numbers are right-aligned.

    max_chars: of a cell; of a longer text the middle is left out.
    """
    cells = [[_cell(value, max_chars) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [
        all(isinstance(v, int | float | None) for v in c[1:]) for c in zip(*rows, strict=True)
    ]
    lines = []
    for row in cells:
        parts = zip(row, widths, numeric, strict=True)
        lines.append("  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in parts).rstrip())
    return "\n".join(lines)


def _cell(value: object, max_chars: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return printable(value, max_chars)
