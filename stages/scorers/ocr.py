"""The area of text in clips, and of text, graphics and borders together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
from annotated_types import Ge

from curation.heartbeat import report_progress
from curation.images import DamagedFrame, decode_image, read_image
from curation.records import FAILED_PREFILTER
from curation.stage import Needs, Row, RunContext, Stage, TransientError
from curation.storage import Folder
from stages.scorers.ocr_engine import OcrEngine


@dataclass
class OcrStage(Stage):
    """Scores the area of text, and of text, graphics and borders together, in clips."""

    frames: Annotated[int, Ge(1)] = 2  # key frames that are read, evenly spaced over the clip

    reads = ("clips",)
    writes = ("text_share", "artifact_share")
    needs = Needs(cpus=1, isolated=True)
    stall_timeout_s = 120.0  # of one clip, which takes 0.1 s

    def row_timeout_s(self, row: Row) -> float:
        return self.stall_timeout_s * (1 + len(row.get("clips") or []))

    def setup(self, context: RunContext) -> None:
        cv2.setNumThreads(1)
        self._ledger = Folder(context.ledger_url)
        self._ocr = OcrEngine()

    def process(self, rows: list[Row]) -> list[Row]:
        return [
            {**row, "clips": [self._score_clip(c) for c in row.get("clips") or []]} for row in rows
        ]

    def _score_clip(self, clip: Row) -> Row:
        report_progress()
        if clip["num_frames"] is None:
            return clip
        if clip.get("prefilter") is not None:
            return _set_null(clip, FAILED_PREFILTER + clip["prefilter"])
        try:
            shares = self._compute_shares(clip)
        except DamagedFrame as error:  # this run has just stored it: its storage fails
            raise TransientError(str(error)) from None
        except ValueError as error:  # no image was stored
            return _set_null(clip, str(error))
        return {**clip, **shares}

    def _compute_shares(self, clip: Row) -> dict[str, float]:
        overlay = _decode_mask(clip.get("overlay_mask"))
        text, artifacts = [], []
        for segment in evenly_spaced(clip["segments"], self.frames):
            bgr = read_image(self._ledger.read, segment)
            height, width = bgr.shape[:2]
            boxes = self._ocr.find_text_boxes(bgr)
            text.append(covered_share(boxes, width, height))
            artifacts.append(
                covered_share(boxes, width, height, overlay=overlay, borders=clip.get("borders"))
            )
        return {
            "text_share": float(np.mean(text)),
            "artifact_share": float(np.mean(artifacts)),
        }


def evenly_spaced(items: list[Any], count: int) -> list[Any]:
    """Returns `count` evenly spaced items, or all where there are no more."""
    if count >= len(items):
        return items
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def _decode_mask(png: bytes | None) -> np.ndarray | None:
    if png is None:
        return None
    mask = decode_image(png, "overlay_mask", cv2.IMREAD_GRAYSCALE)
    return np.where(mask > 127, 255, 0).astype(np.uint8)


def _set_null(clip: Row, reason: str) -> Row:
    columns = ("text_share", "artifact_share")
    reasons = dict(clip.get("null_reasons") or {}) | dict.fromkeys(columns, reason)
    return {**clip, **dict.fromkeys(columns), "null_reasons": reasons}


def covered_share(
    boxes: list[np.ndarray],
    width: int,
    height: int,
    *,
    overlay: np.ndarray | None = None,
    borders: list[float] | None = None,
) -> float:
    """Share of a (width, height) image that is covered by the union of all arguments, 0..1.

    boxes: (4, 2) px.  overlay: (h, w) uint8 of any size, nonzero in graphics.
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
