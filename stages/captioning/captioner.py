"""What every captioner shares: verified key frames, the row that it writes, and its errors.

A captioner implements `describe` and `provenance`. `describe` is a coroutine, so that a captioner
that waits for a server has many clips in flight; `measured` never waits. It gets the clip's row,
whose `segments` hold the measurements, and its key frames, verified by their hashes.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from curation.images import decode_image, read_verified, stored_image_name
from curation.records import CAPTION, FIELD_NAMES, hash_frames, stored_frame_hashes
from curation.stage import OutputError, Row, RunContext, Stage, TransientError, Unavailable
from curation.storage import Folder
from curation.texts import MAX_ERROR_CHARS, clean_outside_text, max_adjacent_similarity

MAX_TEXT_CHARS = 10_000  # of a caption

NOT_STRUCTURED = "caption.structured is false"  # null reason of the fields


@dataclass(frozen=True)
class StoredFrame:
    """A frame that the decode pass stored, its file verified."""

    jpeg: bytes
    sha256: str
    name: str  # of the file, in the ledger
    s: float  # time from the clip's start

    @property
    def bgr(self) -> np.ndarray:
        """(h, w, 3) uint8."""
        return decode_image(self.jpeg, self.name)


@dataclass(frozen=True)
class KeyFrame(StoredFrame):
    """The frame nearest to a segment's centre."""

    frame_samples: tuple[StoredFrame, ...] = ()  # others of the segment, in order of time


@dataclass(frozen=True)
class Captions:
    """The texts of one clip."""

    sub_captions: list[str]  # one per segment, in order; fewer where one failed a check
    caption: str  # of the whole clip
    rejected: str | None = None  # the check that failed in every attempt; the texts are kept
    provenance: dict[str, Any] = field(default_factory=dict)  # of this clip: requests, tokens, ...
    scores: dict[str, float | None] = field(default_factory=dict)  # of the texts, by column
    # with caption.structured: name -> text of each sub-caption's fields, and why a field is null
    fields: list[dict[str, str | None]] = field(default_factory=list)
    field_null_reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class Captioner(Stage):
    """Writes the sub-captions and the caption of kept clips from their key frames."""

    reads = ("clip_id", "segments")
    writes = tuple(c.name for c in CAPTION if c.name != "clip_id")
    captioner: ClassVar[str] = ""
    structured = False  # whether sub-captions have fields; caption.structured sets it

    def setup(self, context: RunContext) -> None:
        self._ledger = Folder(context.ledger_url)
        self._set_name = context.caption_set or self.captioner

    def api_key(self) -> str | None:
        """The key of its server, from this machine's environment; None where there is none."""
        return None

    @property
    def scores(self) -> tuple[str, ...]:
        """Columns with scores of the texts that it fills with these settings."""
        return ()

    def check(self) -> None:
        """Raises ConfigError or PlanError where weights or a server are missing.

        Called before any worker starts.
        """

    def provenance(self) -> dict[str, Any]:
        """What the captions depend on in addition to the frames: model, prompts' version, ..."""
        raise NotImplementedError

    async def describe(self, clip: Row, frames: list[KeyFrame]) -> Captions:
        """Returns a text per segment, each written with the earlier ones known, and the caption.

        frames: one per segment, in order. An exception becomes the row's error.
        """
        raise NotImplementedError

    def process(self, rows: list[Row]) -> list[Row]:
        async def process_all() -> list[Row]:
            try:
                return list(await asyncio.gather(*(self.process_one(row) for row in rows)))
            finally:
                await self.close()

        return asyncio.run(process_all())

    async def close(self) -> None:
        """Closes what belongs to the running event loop, such as connections."""

    async def process_one(self, row: Row) -> Row:
        clip, row = row, {**row, **dict.fromkeys(self.writes), "captioner": self._set_name}
        try:
            frames = await asyncio.to_thread(read_key_frames, self._ledger, clip["segments"])
            captions = await self.describe(clip, frames)
            return row | self._columns(clip, captions)
        except (OutputError, Unavailable, TransientError):
            raise
        except Exception as error:  # an error of one clip must not stop the others
            cause = f"{type(error).__name__}: {error}"
            return row | {"error": clean_outside_text(cause, MAX_ERROR_CHARS)}

    def _columns(self, clip: Row, captions: Captions) -> Row:
        segments = clip["segments"]
        caption, *sub_captions = (
            clean_outside_text(text, MAX_TEXT_CHARS)
            for text in (captions.caption, *captions.sub_captions)
        )
        empty = sum(not text.strip() for text in (caption, *sub_captions))
        if captions.rejected is None and (empty or len(sub_captions) != len(segments)):
            raise ValueError(
                f"expected a caption and {len(segments)} sub-captions with text in each, "
                f"got {len(sub_captions)}, empty ones: {empty}"
            )
        fields_of_each: list[Row] = [dict.fromkeys(FIELD_NAMES) for _ in sub_captions]
        for of_one, written in zip(fields_of_each, captions.fields, strict=False):
            of_one.update(written)
        provenance = self.provenance() | {"span_s": [clip["start_s"], clip["end_s"]]}
        return {
            "caption": caption or None,
            "sub_captions": [
                {"start_s": s["start_s"], "end_s": s["end_s"], "text": text} | fields
                for s, text, fields in zip(segments, sub_captions, fields_of_each, strict=False)
            ],
            "field_null_reasons": self._field_null_reasons(captions, fields_of_each),
            "rejected": captions.rejected,
            "frames_sha256": hash_frames(stored_frame_hashes(segments)),
            "provenance": json.dumps(provenance | captions.provenance, sort_keys=True),
            "text_similarity_tfidf": max_adjacent_similarity(sub_captions),
            **captions.scores,
        }

    def _field_null_reasons(self, captions: Captions, fields: list[Row]) -> dict[str, str]:
        """Field -> why it is null in at least one sub-caption."""
        default = f"{self.captioner} does not write it"
        if not self.structured:
            default = NOT_STRUCTURED
        elif captions.rejected is not None:
            default = "a text failed a check"
        return {
            name: captions.field_null_reasons.get(name, default)
            for name in FIELD_NAMES
            if any(of_one[name] is None for of_one in fields)
        }


def read_key_frames(ledger: Folder, segments: list[Row]) -> list[KeyFrame]:
    """Returns the key frames of a clip. Raises DamagedFrame where a file is not the one scored."""
    if not segments:
        raise ValueError("the clip has no segments; score its video again")
    frames = []
    for segment in segments:
        name, time_s = stored_image_name(segment), segment.get("key_frame_s")
        if time_s is None:
            time_s = (segment["start_s"] + segment["end_s"]) / 2
        key_frame = _read(ledger, name, segment["key_frame_sha256"], time_s)
        samples = tuple(
            _read(ledger, sample["file"], sample["sha256"], sample["s"])
            for sample in segment.get("frame_samples") or []
        )
        frames.append(KeyFrame(**vars(key_frame), frame_samples=samples))
    return frames


def _read(ledger: Folder, name: str, sha256: str, s: float) -> StoredFrame:
    return StoredFrame(read_verified(ledger.read, name, sha256), sha256, name, s)
