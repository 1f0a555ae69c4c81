"""Finds and reads text in an image with RapidOCR (PP-OCR models, in its wheel).

Its detector also finds textures (gravel, bark, paving, floor boards): one box as large as the
image, with scores as high as those of real text, so that no threshold separates them. Reading does:
a box too tall for a line of a caption counts only where the recogniser reads something in it.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

# Area to which an image is reduced for detection, px: lines of 4 % of its height are found. A
# smaller first pass that skips images without text would miss whole screens of small text.
DETECTION_AREA_PX = 512 * 288
READING_AREA_PX = 520_000  # the same where text is read, px: 960 x 540
TALL_LINE = 0.10  # share of the shorter side: a box taller than this must be readable to count
MAX_LINES = 8  # read per image, tallest first: 0.03 CPU-s each
MAX_TALL_BOXES = 4  # read per image, largest first; others do not count
MIN_READABLE_CONFIDENCE = 0.75  # textures are read as single letters with less
MIN_READABLE_LETTERS = 2  # letters or digits
MIN_OCR_SIDE_PX = 32  # the detector rounds sides to multiples of 32; a shorter one becomes 0

TextLine = tuple[str, float, np.ndarray]  # text, confidence 0..1, box (4, 2) in px of the image


class OcrEngine:
    """RapidOCR on one thread. The models are in its wheel; nothing is downloaded."""

    def __init__(self) -> None:
        from rapidocr import RapidOCR  # takes 1.4 s and 400 MB: only in workers

        self._engine: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": 0.0,  # confidence is checked below
                "Det.limit_type": "max",  # the default scales small frames up: 15 times the cost
                "Det.limit_side_len": 4096,  # images are reduced below, by area
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                # without it, memory is mapped, zeroed and freed for every layer of every image
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
            }
        )

    def find_text_boxes(self, bgr: np.ndarray) -> list[np.ndarray]:
        """Returns boxes of text: (4, 2) px of `bgr`, clockwise from the top left."""
        boxes = self._detect(bgr, DETECTION_AREA_PX)
        tall_px = TALL_LINE * min(bgr.shape[:2])
        tall = sorted((b for b in boxes if _size(b)[1] > tall_px), key=_area, reverse=True)
        read = [b for b in tall[:MAX_TALL_BOXES] if self._is_readable(bgr, b)]
        return [b for b in boxes if _size(b)[1] <= tall_px] + read

    def read_lines(self, bgr: np.ndarray) -> list[TextLine]:
        """Returns the MAX_LINES tallest lines of text, in reading order."""
        boxes = self._detect(bgr, READING_AREA_PX)
        tallest = sorted(range(len(boxes)), key=lambda i: -_size(boxes[i])[1])[:MAX_LINES]
        return [(*self._read(bgr, boxes[i]), boxes[i]) for i in sorted(tallest)]

    def _detect(self, bgr: np.ndarray, area_px: int) -> list[np.ndarray]:
        small, scale = reduce_to_area(bgr, area_px)
        found = self._engine(small, use_det=True, use_cls=False, use_rec=False)
        return (
            [] if found.boxes is None else [np.asarray(b, np.float32) / scale for b in found.boxes]
        )

    def _read(self, bgr: np.ndarray, box: np.ndarray) -> tuple[str, float]:
        """Returns text and confidence of one line; empty and 0 where there is no text."""
        found = self._engine(_crop(bgr, box), use_det=False, use_cls=False, use_rec=True)
        return (found.txts[0], float(found.scores[0])) if found.txts else ("", 0.0)

    def _is_readable(self, bgr: np.ndarray, box: np.ndarray) -> bool:
        text, confidence = self._read(bgr, box)
        return (
            sum(c.isalnum() for c in text) >= MIN_READABLE_LETTERS
            and confidence >= MIN_READABLE_CONFIDENCE
        )


def reduce_to_area(bgr: np.ndarray, area_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image with an area of about `area_px` at most, and (2,) its scale in x and y."""
    height, width = bgr.shape[:2]
    scale = min(1.0, math.sqrt(area_px / (height * width)))
    size = (max(MIN_OCR_SIDE_PX, round(width * scale)), max(MIN_OCR_SIDE_PX, round(height * scale)))
    small = bgr if size == (width, height) else cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    return small, np.array([size[0] / width, size[1] / height], np.float32)


def _size(box: np.ndarray) -> tuple[float, float]:
    """Width and height of a rotated box along its sides, px."""
    width = max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3]))
    height = max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2]))
    return float(width), float(height)


def _area(box: np.ndarray) -> float:
    width, height = _size(box)
    return width * height


def _crop(bgr: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns the content of the box, turned upright."""
    width, height = (max(1, round(side)) for side in _size(box))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(box.astype(np.float32), corners)
    return cv2.warpPerspective(bgr, transform, (width, height), borderMode=cv2.BORDER_REPLICATE)
