"""The captioner that needs no model: it says what was measured, and says so in every row.

Light, camera and subject motion come from the clip's segments; colours and text are read from the
key frames. What no measure tells (what the things are, who acts, why) it leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np

from curation.stage import Needs, Row, RunContext
from curation.texts import harmless
from stages.captioning.captioner import Captioner, Captions, KeyFrame
from stages.captioning.colours import name_colours
from stages.captioning.levels import Look, look, place
from stages.captioning.wording import overall, sub_captions
from stages.scorers.ocr import MAX_LINES, Ocr, TextLine

VERSION = 1  # of the wording: another number, other texts for the same clip
SURE = 0.9  # confidence of a reading that is quoted
LEGIBLE = 0.025  # height of a line, share of the picture's height: smaller is read by chance
LETTERS = 2  # letters or digits that a quoted text has at least
TEXTS_QUOTED = 3  # per key frame, the largest
TEXT_CHARS = 40  # quoted of one text


@dataclass
class Measured(Captioner):
    """Sub-captions out of measurements: the default, and the one that runs anywhere."""

    captioner: ClassVar[str] = "measured"
    needs = Needs(cpus=1, isolated=True)

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        cv2.setNumThreads(1)
        self._ocr = Ocr()

    def provenance(self) -> dict[str, Any]:
        return {"captioner": self.captioner, "version": VERSION, "ocr": "rapidocr"}

    async def describe(self, clip: Row, frames: list[KeyFrame]) -> Captions:
        looks: list[Look] = []
        for segment, frame in zip(clip["segments"], frames, strict=True):
            bgr = frame.bgr
            lines = self._ocr.read_text(bgr)
            looks.append(
                look(
                    segment,
                    name_colours(bgr),
                    looks[-1] if looks else None,
                    texts=quoted(lines, *bgr.shape[:2]),
                    read=tuple(harmless(text, TEXT_CHARS) for text, _, _ in lines),
                    dense=len(lines) >= MAX_LINES,
                )
            )
        return Captions(sub_captions(looks), overall(looks))


def quoted(lines: list[TextLine], height: int, width: int) -> tuple[tuple[str, str], ...]:
    """The readings that are sure and large enough to quote, made harmless, and where they stand.

    height, width: of the picture, px.
    """
    found: dict[tuple[str, str], float] = {}  # text and place -> height of the line
    for text, confidence, box in lines:
        tall = float(np.linalg.norm(box[3] - box[0])) / height
        letters = sum(c.isalnum() for c in text)
        if confidence >= SURE and tall >= LEGIBLE and letters >= LETTERS:
            x, y = box.mean(axis=0)
            found.setdefault((harmless(text, TEXT_CHARS), place(x / width, y / height)), tall)
    largest = sorted(found, key=lambda text: -found[text])[:TEXTS_QUOTED]
    return tuple(text for text in found if text in largest)
