"""Text in the picture: how much of the area it covers, and what it says.

Detection is RapidOCR's (PP-OCR models, in its wheel). Its detector takes textures (gravel, bark,
paving, floor boards) for one block of text as large as the picture, with scores as high as real
text has, so no threshold on the score tells them apart. What does is reading: a box too tall to be
a line of a caption counts only where the recogniser reads something in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge

from curation.images import decode_image, read_image
from curation.stage import Needs, Row, RunContext, Stage
from curation.storage import Folder

# Area a frame is reduced to for detection, px: lines of 4 % of the height show. A look at fewer to
# decide whether to look at all would miss whole screens of small text.
DETECT_PX = 512 * 288
READ_PX = 520_000  # the same where text shall be read, px: 960 x 540
TALL_LINE = 0.10  # of the shorter side: a box taller than this must be readable to count
MAX_LINES = 8  # read per frame, largest first: .03 CPU-s each
MAX_TALL = 4  # tall boxes read per frame, largest first; the rest do not count
READABLE_CONFIDENCE = 0.75  # below it a reading is a guess: textures give single letters at most
READABLE_LETTERS = 2  # letters or digits
MIN_SIDE_PX = 32  # the detector rounds sides to multiples of 32; less than one vanishes

TextLine = tuple[str, float, np.ndarray]  # text, confidence 0..1, box (4, 2) in px of the frame


class Ocr:
    """RapidOCR on one thread, kept quiet. Models come with its wheel; nothing is downloaded."""

    def __init__(self) -> None:
        from rapidocr import RapidOCR  # 1.4 s and 400 MB: only where a worker reads text

        self._engine: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": 0.0,  # we judge confidence ourselves
                "Det.limit_type": "max",  # the default scales small frames up: 15 times the cost
                "Det.limit_side_len": 4096,  # we scale ourselves, by area
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                # else each layer's memory is mapped, zeroed and given back anew for every picture
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
            }
        )

    def find_text(self, bgr: np.ndarray) -> list[np.ndarray]:
        """Boxes of text, (4, 2) px of `bgr`, clockwise from the top left; textures taken out."""
        boxes = self._detect(bgr, DETECT_PX)
        tall_px = TALL_LINE * min(bgr.shape[:2])
        tall = sorted((b for b in boxes if _size(b)[1] > tall_px), key=_area, reverse=True)
        read = [b for b in tall[:MAX_TALL] if self._readable(bgr, b)]
        return [b for b in boxes if _size(b)[1] <= tall_px] + read

    def read_text(self, bgr: np.ndarray) -> list[TextLine]:
        """What the picture says in its MAX_LINES largest lines, in reading order."""
        boxes = self._detect(bgr, READ_PX)
        largest = sorted(range(len(boxes)), key=lambda i: -_size(boxes[i])[1])[:MAX_LINES]
        return [(*self._read(bgr, boxes[i]), boxes[i]) for i in sorted(largest)]

    def _detect(self, bgr: np.ndarray, area_px: int) -> list[np.ndarray]:
        small, scale = reduced(bgr, area_px)
        found = self._engine(small, use_det=True, use_cls=False, use_rec=False)
        return (
            [] if found.boxes is None else [np.asarray(b, np.float32) / scale for b in found.boxes]
        )

    def _read(self, bgr: np.ndarray, box: np.ndarray) -> tuple[str, float]:
        """Text and confidence of one line; nothing and 0 where there is none."""
        found = self._engine(_cut_out(bgr, box), use_det=False, use_cls=False, use_rec=True)
        return (found.txts[0], float(found.scores[0])) if found.txts else ("", 0.0)

    def _readable(self, bgr: np.ndarray, box: np.ndarray) -> bool:
        text, confidence = self._read(bgr, box)
        return (
            sum(c.isalnum() for c in text) >= READABLE_LETTERS and confidence >= READABLE_CONFIDENCE
        )


def reduced(bgr: np.ndarray, area_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture at `area_px` or less, and (2,) its scale in x and y."""
    height, width = bgr.shape[:2]
    scale = min(1.0, math.sqrt(area_px / (height * width)))
    size = (max(MIN_SIDE_PX, round(width * scale)), max(MIN_SIDE_PX, round(height * scale)))
    small = bgr if size == (width, height) else cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
    return small, np.array([size[0] / width, size[1] / height], np.float32)


def area_share(
    boxes: list[np.ndarray],
    width: int,
    height: int,
    *,
    overlay: np.ndarray | None = None,
    borders: list[float] | None = None,
) -> float:
    """Share of a (width, height) picture that the union of all covers, 0..1.

    boxes: (4, 2) px.  overlay: (h, w) uint8 at any size, nonzero where a graphic is.
    borders: left, top, right, bottom, shares of width and height.
    """
    covered = np.zeros((180, 320), np.uint8)
    rows, columns = covered.shape
    to_cells = np.array([columns / width, rows / height], np.float32)
    for box in boxes:
        cv2.fillPoly(
            covered, [np.round((box * to_cells - 0.5) * 16).astype(np.int32)], 255, shift=4
        )
    if overlay is not None:
        covered[cv2.resize(overlay, (columns, rows), interpolation=cv2.INTER_NEAREST) > 0] = 255
    if borders is not None:
        left, top, right, bottom = borders
        covered[:, : round(left * columns)] = 255
        covered[: round(top * rows)] = 255
        covered[:, columns - round(right * columns) :] = 255
        covered[rows - round(bottom * rows) :] = 255
    return float(np.count_nonzero(covered)) / covered.size


@dataclass
class Text(Stage):
    """Area of text, and of text, graphics and borders together, in the clips of a video."""

    frames: Annotated[int, Ge(1)] = 2  # key frames looked at, spread over the clip

    reads = ("clips",)
    writes = ("text_share", "artifact_share")
    needs = Needs(cpus=1, isolated=True)

    def setup(self, context: RunContext) -> None:
        cv2.setNumThreads(1)
        self._ledger = Folder(context.ledger_url)
        self._ocr = Ocr()

    def process(self, rows: list[Row]) -> list[Row]:
        return [{**row, "clips": [self._clip(c) for c in row.get("clips") or []]} for row in rows]

    def _clip(self, clip: Row) -> Row:
        if clip.get("prefilter") is not None:
            return _without(clip, f"failed the prefilter: {clip['prefilter']}")
        try:
            shares = self._shares(clip)
        except Exception as error:  # a frame that OCR chokes on costs this score, not the clip
            return _without(clip, f"{type(error).__name__}: {error}")
        return {**clip, **shares}

    def _shares(self, clip: Row) -> dict[str, float]:
        overlay = _mask(clip.get("overlay_mask"))
        text, artifacts = [], []
        for segment in spread(clip["segments"], self.frames):
            bgr = read_image(self._ledger.read, segment)
            height, width = bgr.shape[:2]
            boxes = self._ocr.find_text(bgr)
            text.append(area_share(boxes, width, height))
            artifacts.append(
                area_share(boxes, width, height, overlay=overlay, borders=clip.get("borders"))
            )
        return {
            "text_share": float(np.mean(text)),
            "artifact_share": float(np.mean(artifacts)),
        }


def spread(items: list[Any], count: int) -> list[Any]:
    """`count` of the items, evenly spread; all of them where there are no more."""
    if count >= len(items):
        return items
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def _mask(png: bytes | None) -> np.ndarray | None:
    if png is None:
        return None
    mask = decode_image(png, "overlay_mask", cv2.IMREAD_GRAYSCALE)
    return np.where(mask > 127, 255, 0).astype(np.uint8)


def _without(clip: Row, cause: str) -> Row:
    causes = {**dict(clip.get("null_reasons") or {}), "text_share": cause, "artifact_share": cause}
    return {**clip, "text_share": None, "artifact_share": None, "null_reasons": causes}


def _size(box: np.ndarray) -> tuple[float, float]:
    """Width and height of a box along its own sides, px."""
    width = max(np.linalg.norm(box[0] - box[1]), np.linalg.norm(box[2] - box[3]))
    height = max(np.linalg.norm(box[0] - box[3]), np.linalg.norm(box[1] - box[2]))
    return float(width), float(height)


def _area(box: np.ndarray) -> float:
    width, height = _size(box)
    return width * height


def _cut_out(bgr: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The box, upright."""
    width, height = (max(1, round(side)) for side in _size(box))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turn = cv2.getPerspectiveTransform(box.astype(np.float32), corners)
    return cv2.warpPerspective(bgr, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
