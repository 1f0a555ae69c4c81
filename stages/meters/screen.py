"""The area of user interfaces, pages, slides and windows in an image."""

from __future__ import annotations

import cv2
import numpy as np

COMPARED_SIDE = 384  # px, long side at most: lines of text are then strokes of a pixel or two
MAX_FLAT_LEVELS = 1  # range within 3 x 3 px: drawn areas; a camera's have noise and shading
MIN_STROKE_LEVELS = 24  # grey levels of a thin line or letter, darker or brighter than its ground
STROKE_PX = 5  # wider shapes are no strokes
MIN_GROUND_SHARE = 0.06  # of the strokes that have a ground of one of its levels
MIN_STROKE_SHARE = 0.001  # of the image that is strokes: less is no text
CELL_PX = 8
MIN_TEXT_GROUND = 0.25  # share of a cell of text that is its ground
MIN_TEXT_STROKES = 0.03  # share of it that is strokes
MIN_BLANK_GROUND = 0.95  # share of a cell without text
BLANK_CELLS = 4  # so far from text, a blank cell with its ground belongs to it
# A window is one flat area with straight sides, and text on it.
MAX_WINDOW_LEVELS = 2  # range within 3 x 3 px: a translucent window is shaded
MIN_WINDOW_SHARE = 0.006  # of the image
MIN_WINDOW_PX = (12, 8)  # width, height
MAX_WINDOW_ASPECT = 4  # captions and banners are wider than so many heights
MIN_SIDE_STEP = 0.45  # of the longest row or column of its area: from one to the next, at a side
MIN_WINDOW_STROKES_PX = 16  # thin lines and letters inside


def screen_share(luma: np.ndarray) -> float:
    """luma: (h, w) uint8 -> 0..1, the area of text and thin lines on flat colour, and around it.

    Neither the colours nor the size of the text matter: a stroke is darker or brighter than its
    ground, and a ground is any grey level around many strokes. A window counts as a whole.
    """
    luma = _reduced(luma)
    nearby = np.ones((3, 3), np.uint8)
    levels = cv2.subtract(cv2.dilate(luma, nearby), cv2.erode(luma, nearby))
    is_flat = levels <= MAX_FLAT_LEVELS
    kernel = np.ones((STROKE_PX, STROKE_PX), np.uint8)
    opened, closed = (
        cv2.morphologyEx(luma, how, kernel) for how in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE)
    )
    brighter, darker = cv2.subtract(luma, opened), cv2.subtract(closed, luma)
    is_stroke = cv2.max(brighter, darker) > MIN_STROKE_LEVELS
    if np.count_nonzero(is_stroke) < MIN_STROKE_SHARE * luma.size:
        return 0.0
    grounds = np.where(brighter > darker, opened, closed)[is_stroke]
    counts = np.convolve(np.bincount(grounds, minlength=256), np.ones(3), "same")
    is_ground_level = counts >= MIN_GROUND_SHARE * len(grounds)
    ground = _cell_shares(is_flat & is_ground_level[luma])
    is_text = (ground >= MIN_TEXT_GROUND) & (_cell_shares(is_stroke) >= MIN_TEXT_STROKES)
    around = np.ones((2 * BLANK_CELLS + 1, 2 * BLANK_CELLS + 1), np.uint8)
    near_text = cv2.dilate(is_text.astype(np.uint8), around) > 0
    is_window = _cell_shares(_windows(levels <= MAX_WINDOW_LEVELS, is_stroke)) >= 0.5
    return float((is_text | (near_text & (ground >= MIN_BLANK_GROUND)) | is_window).mean())


def _windows(is_flat: np.ndarray, is_stroke: np.ndarray) -> np.ndarray:
    """(h, w) bool each -> (h, w) bool: in a window.

    A side is a step in the number of pixels that the flat area has in each row or column: the sides
    of other flat areas are tilted or uneven, and their numbers grow over several rows.
    """
    height, width = is_flat.shape
    found = np.zeros(is_flat.shape, bool)
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(is_flat.astype(np.uint8), connectivity=4)
    columns, rows = boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]
    candidates = np.flatnonzero(
        (boxes[:, cv2.CC_STAT_AREA] >= MIN_WINDOW_SHARE * found.size)
        & (columns < width - 2)
        & (rows < height - 2)
    )
    for label in candidates[candidates > 0]:
        left, top, columns, rows, _ = boxes[label]
        area = labels[top : top + rows, left : left + columns] == label
        x, x_end = _straight_sides(np.count_nonzero(area, axis=0))
        y, y_end = _straight_sides(np.count_nonzero(area, axis=1))
        wide, high = x_end - x, y_end - y
        is_large = wide >= MIN_WINDOW_PX[0] and high >= MIN_WINDOW_PX[1]
        if is_large and wide <= MAX_WINDOW_ASPECT * high:
            box = slice(top + y, top + y_end), slice(left + x, left + x_end)
            if np.count_nonzero(is_stroke[box][2:-2, 2:-2]) >= MIN_WINDOW_STROKES_PX:
                found[box] = True
    return found


def _straight_sides(counts: np.ndarray) -> tuple[int, int]:
    """Where counts first rises and last falls by MIN_SIDE_STEP of its maximum; 0, 0 if nowhere."""
    steps = np.diff(counts / counts.max(), prepend=0.0, append=0.0)
    rises, falls = np.flatnonzero(steps >= MIN_SIDE_STEP), np.flatnonzero(steps <= -MIN_SIDE_STEP)
    return (int(rises[0]), int(falls[-1])) if len(rises) and len(falls) else (0, 0)


def _reduced(luma: np.ndarray) -> np.ndarray:
    scale = COMPARED_SIDE / max(luma.shape)
    if scale >= 1:
        return luma
    size = [max(CELL_PX, round(side * scale)) for side in luma.shape[::-1]]
    return cv2.resize(luma, size, interpolation=cv2.INTER_AREA)


def _cell_shares(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool -> (h // CELL_PX, w // CELL_PX) float32: the share of each cell."""
    rows, columns = (max(1, side // CELL_PX) for side in mask.shape)
    whole = mask[: rows * CELL_PX, : columns * CELL_PX].astype(np.float32)
    return cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
