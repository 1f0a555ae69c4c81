"""What every captioner shares: the frames it may trust, the row it writes, how it fails.

A captioner implements `describe` alone. It is a coroutine, so that one which waits for a server has
many clips under way at once; `measured` never waits. It gets the clip's row (with `segments`, the
measured facts, as a hint for a prompt) and its stills, checked against their hashes.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from curation.images import decode_image, read_verified, stored_image_name
from curation.records import CAPTION, frames_sha256, stored_frame_hashes
from curation.stage import OutputError, Row, RunContext, Stage, Unavailable
from curation.storage import Folder
from curation.texts import neighbour_similarity


@dataclass(frozen=True)
class Still:
    """A stored frame, its file's bytes verified."""

    jpeg: bytes
    sha256: str
    name: str  # of the file, in the ledger
    s: float  # time, relative to the clip

    @property
    def bgr(self) -> np.ndarray:
        """(h, w, 3) uint8."""
        return decode_image(self.jpeg, self.name)


@dataclass(frozen=True)
class KeyFrame(Still):
    """The frame at the centre of a segment."""

    neighbours: tuple[Still, ...] = ()  # others of the segment, in order of time


@dataclass(frozen=True)
class Captions:
    """What a captioner says of one clip."""

    sub_captions: list[str]  # one per segment, in order; fewer where a check failed for good
    caption: str  # of the whole clip
    rejected: str | None = None  # the check that they failed for good; the texts stay to be seen
    provenance: dict[str, Any] = field(default_factory=dict)  # of this clip: attempts, tokens, ...
    scores: dict[str, float | None] = field(default_factory=dict)  # of the texts, by models


@dataclass
class Captioner(Stage):
    """Key frames in, sub-captions and an overall caption out. The unit is a kept clip."""

    reads = ("clip_id", "segments")
    writes = tuple(c.name for c in CAPTION if c.name != "clip_id")
    captioner: ClassVar[str] = ""

    def setup(self, context: RunContext) -> None:
        self._ledger = Folder(context.ledger_url)
        self._set_name = context.caption_set or self.captioner

    @property
    def scores(self) -> tuple[str, ...]:
        """The columns that models fill as it is set: a policy may name these."""
        return ()

    def check(self) -> None:
        """Raises ConfigError or PlanError where weights or a server are missing. Called before any
        worker starts."""

    def provenance(self) -> dict[str, Any]:
        """What the captions depend on beside the frames: model, revision, prompt version, ..."""
        raise NotImplementedError

    async def describe(self, clip: Row, frames: list[KeyFrame]) -> Captions:
        """One text per segment, each written knowing the ones before it, and one for the whole.

        What it raises becomes the row's error.
        """
        raise NotImplementedError

    def process(self, rows: list[Row]) -> list[Row]:
        async def all_of_them() -> list[Row]:
            try:
                return list(await asyncio.gather(*(self.process_one(row) for row in rows)))
            finally:
                await self.close()

        return asyncio.run(all_of_them())

    async def close(self) -> None:
        """Ends what belongs to the running loop: connections."""

    async def process_one(self, row: Row) -> Row:
        clip, row = row, {**row, **dict.fromkeys(self.writes), "captioner": self._set_name}
        try:
            frames = await asyncio.to_thread(read_stills, self._ledger, clip["segments"])
            said = await self.describe(clip, frames)
            return row | self._columns(clip, said)
        except (OutputError, Unavailable):
            raise
        except Exception as error:  # one clip's trouble is one clip's row
            return row | {"error": f"{type(error).__name__}: {error}"}

    def _columns(self, clip: Row, said: Captions) -> Row:
        segments = clip["segments"]
        texts = [said.caption, *said.sub_captions]
        whole = len(said.sub_captions) == len(segments) and all(text.strip() for text in texts)
        if said.rejected is None and not whole:
            raise ValueError(
                f"expected a caption and {len(segments)} sub-captions with text in each, "
                f"got {len(said.sub_captions)}, empty ones: {sum(not t.strip() for t in texts)}"
            )
        made = self.provenance() | {"span_s": [clip["start_s"], clip["end_s"]]}
        return {
            "caption": said.caption or None,
            "sub_captions": [
                {"start_s": s["start_s"], "end_s": s["end_s"], "text": text}
                for s, text in zip(segments, said.sub_captions, strict=False)
            ],
            "rejected": said.rejected,
            "frames_sha256": frames_sha256(stored_frame_hashes(segments)),
            "provenance": json.dumps(made | said.provenance, sort_keys=True),
            "text_similarity_tfidf": neighbour_similarity(said.sub_captions),
            **said.scores,
        }


def read_stills(ledger: Folder, segments: list[Row]) -> list[KeyFrame]:
    """The files' bytes, which must be the ones that the row was written for."""
    if not segments:
        raise ValueError("the clip has no segments; score its video again")
    frames = []
    for segment in segments:
        name, middle_s = stored_image_name(segment), (segment["start_s"] + segment["end_s"]) / 2
        key_s = segment.get("key_frame_s")
        key = _read(ledger, name, segment["key_frame_sha256"], middle_s if key_s is None else key_s)
        neighbours = tuple(
            _read(ledger, still["file"], still["sha256"], still["s"])
            for still in segment.get("frame_samples") or []
        )
        frames.append(KeyFrame(**vars(key), neighbours=neighbours))
    return frames


def _read(ledger: Folder, name: str, sha256: str, s: float) -> Still:
    return Still(read_verified(ledger.read, name, sha256), sha256, name, s)
