"""What every captioner shares: the frames it may trust, the row it writes, how it fails.

A captioner implements `describe` alone. It is a coroutine, so that one which waits for a server has
many clips under way at once; `measured` never waits. It gets the clip's row (with `segments`, the
measured facts, as a hint for a prompt) and its key frames, checked against their hashes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from curation.records import CAPTION, frames_sha256
from curation.stage import OutputError, Row, Stage
from curation.storage import Folder
from curation.texts import neighbour_similarity
from stages.text import decode_image, key_frame_name


@dataclass(frozen=True)
class KeyFrame:
    """The frame at the centre of a segment, its file's bytes verified."""

    jpeg: bytes
    sha256: str
    name: str  # of the file, in the ledger

    @property
    def bgr(self) -> np.ndarray:
        """(h, w, 3) uint8."""
        return decode_image(self.jpeg, self.name)


@dataclass(frozen=True)
class Captions:
    """What a captioner says of one clip."""

    sub_captions: list[str]  # one per segment, in order
    caption: str  # of the whole clip
    rejected: str | None = None  # the check that they failed for good; the texts stay to be seen
    provenance: dict[str, Any] = field(default_factory=dict)  # of this clip: attempts, tokens, ...


@dataclass
class Captioner(Stage):
    """Key frames in, sub-captions and an overall caption out. The unit is a kept clip."""

    ledger_url: str = field(init=False, default="")  # where the key frames are

    reads = ("clip_id", "segments")
    writes = tuple(c.name for c in CAPTION if c.name != "clip_id")
    captioner: ClassVar[str] = ""  # its name in every row that it writes

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
            return list(await asyncio.gather(*(self._row(row) for row in rows)))

        return asyncio.run(all_of_them())

    async def _row(self, clip: Row) -> Row:
        row = {**clip, **dict.fromkeys(self.writes), "captioner": self.captioner}
        try:
            frames = read_key_frames(Folder(self.ledger_url), clip["segments"])
            said = await self.describe(clip, frames)
            return row | self._columns(clip["segments"], frames, said)
        except OutputError:
            raise
        except Exception as error:  # one clip's trouble is one clip's row
            return row | {"error": f"{type(error).__name__}: {error}"}

    def _columns(self, segments: list[Row], frames: list[KeyFrame], said: Captions) -> Row:
        texts = [said.caption, *said.sub_captions]
        if len(said.sub_captions) != len(segments) or not all(text.strip() for text in texts):
            raise ValueError(
                f"expected a caption and {len(segments)} sub-captions with text in each, "
                f"got {len(said.sub_captions)}, empty ones: {sum(not t.strip() for t in texts)}"
            )
        return {
            "caption": said.caption,
            "sub_captions": [
                {"start_s": s["start_s"], "end_s": s["end_s"], "text": text}
                for s, text in zip(segments, said.sub_captions, strict=True)
            ],
            "rejected": said.rejected,
            "frames_sha256": frames_sha256([frame.sha256 for frame in frames]),
            "provenance": json.dumps(self.provenance() | said.provenance, sort_keys=True),
            "text_similarity_tfidf": neighbour_similarity(said.sub_captions),
        }


def read_key_frames(ledger: Folder, segments: list[Row]) -> list[KeyFrame]:
    """The files' bytes, which must be the ones that the row was written for."""
    if not segments:
        raise ValueError("the clip has no segments; score its video again")
    frames = []
    for segment in segments:
        name = key_frame_name(segment)
        jpeg = ledger.read(name)
        sha256 = hashlib.sha256(jpeg).hexdigest()
        if sha256 != segment["key_frame_sha256"]:
            raise ValueError(
                f"{name} is not the key frame that was scored (sha256 {sha256[:12]}…, expected "
                f"{segment['key_frame_sha256'][:12]}…); score the video again"
            )
        frames.append(KeyFrame(jpeg, sha256, name))
    return frames
