"""The captioner that needs no model: its texts state measurements, and each row records that.

Light, camera and subject motion come from the clip's segments; colours and text in the image are
read from the key frames. What no measurement shows (what things are, who acts, why) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np

from curation.stage import Needs, Row, RunContext
from curation.texts import sanitize_text
from stages.captioning.captioner import Captioner, Captions, KeyFrame
from stages.captioning.colours import name_colours
from stages.captioning.measured_text import (
    FIELD_NULL_REASONS,
    write_caption,
    write_fields,
    write_sub_captions,
)
from stages.captioning.segment_state import SegmentState, name_position, quantize_segment
from stages.scorers.ocr_engine import OcrEngine, TextLine

VERSION = 2  # of the sentences: another version writes other texts for the same clip
MIN_CONFIDENCE = 0.9  # of a line that is quoted
MIN_LINE_HEIGHT = 0.025  # share of the image's height: smaller lines are often misread
MIN_LETTERS = 2  # letters or digits in a quoted line
MAX_QUOTES = 3  # per key frame, the tallest lines
MAX_QUOTE_CHARS = 40  # of one line


@dataclass
class MeasuredCaptioner(Captioner):
    """Writes captions from measurements: the default, because it runs anywhere."""

    captioner: ClassVar[str] = "measured"
    needs = Needs(cpus=1, isolated=True)

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        cv2.setNumThreads(1)
        self._ocr = OcrEngine()

    def provenance(self) -> dict[str, Any]:
        made_by = {"captioner": self.captioner, "version": VERSION, "ocr": "rapidocr"}
        return made_by | ({"structured": True} if self.structured else {})

    async def describe(self, clip: Row, frames: list[KeyFrame]) -> Captions:
        states: list[SegmentState] = []
        for segment, frame in zip(clip["segments"], frames, strict=True):
            bgr = frame.bgr
            lines = self._ocr.read_lines(bgr)
            states.append(
                quantize_segment(
                    segment,
                    name_colours(bgr),
                    states[-1] if states else None,
                    quotes=quotable_lines(lines, *bgr.shape[:2]),
                    ocr_lines=tuple(sanitize_text(text, MAX_QUOTE_CHARS) for text, _, _ in lines),
                )
            )
        texts, caption = write_sub_captions(states), write_caption(states)
        if not self.structured:
            return Captions(texts, caption)
        fields = [write_fields(state) for state in states]
        return Captions(texts, caption, fields=fields, field_null_reasons=FIELD_NULL_REASONS)


def quotable_lines(lines: list[TextLine], height: int, width: int) -> tuple[tuple[str, str], ...]:
    """Returns (text, position) of the lines that are certain and large enough to quote.

    The text is made harmless.  height, width: of the image, px.
    """
    heights: dict[tuple[str, str], float] = {}
    for text, confidence, box in lines:
        line_height = float(np.linalg.norm(box[3] - box[0])) / height
        letters = sum(c.isalnum() for c in text)
        if (
            confidence >= MIN_CONFIDENCE
            and line_height >= MIN_LINE_HEIGHT
            and letters >= MIN_LETTERS
        ):
            x, y = box.mean(axis=0)
            quote = (sanitize_text(text, MAX_QUOTE_CHARS), name_position(x / width, y / height))
            heights.setdefault(quote, line_height)
    tallest = sorted(heights, key=lambda quote: -heights[quote])[:MAX_QUOTES]
    return tuple(quote for quote in heights if quote in tallest)
