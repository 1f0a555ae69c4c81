"""Stores the frames of clips in the ledger, as JPEG files under names made of the clip and segment:

key_frames/AB/ABCDEF_0.jpg         the key frame of segment 0
key_frames/AB/ABCDEF_0_next.jpg    the frame shortly after it, for optical flow by a model
key_frames/AB/ABCDEF_0_1.jpg       a frame sample of it: the second
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from curation.records import segment_spans
from curation.stage import Row
from curation.storage import Folder
from stages.meters.key_frames import KeyFrames

THUMBNAIL_SIDE = 240  # px, of the key frames of clips that fail the prefilter: for the report alone


@dataclass(frozen=True)
class ClipFrames:
    kept: KeyFrames  # frames of the video, kept in the decode pass
    ledger: Folder
    samples: int  # frame samples of each segment

    def store(self, clip: Row, number: int, start_s: float, end_s: float) -> tuple[Row, bytes]:
        """Stores the frames of segment `number`, which lasts from start_s to end_s in the video.

        Returns the columns of `records.SEGMENT` that name them and the key frame's JPEG; nothing
        where no frame of the clip was kept.
        """
        middle_s = (start_s + end_s) / 2
        found = self.kept.nearest(middle_s, clip["start_s"], clip["end_s"])
        if not found:
            return {}, b""
        (key_s, jpeg), *flow_frame = found
        columns = self._store_key_frame(clip, number, key_s, jpeg)
        for t_s, flow_jpeg in flow_frame:
            columns["next_frame_s"] = t_s - clip["start_s"]
            columns["next_frame"] = self._write(clip, f"{number}_next", flow_jpeg)
            columns["next_frame_sha256"] = hashlib.sha256(flow_jpeg).hexdigest()
        columns["frame_samples"] = self._store_samples(clip, number, start_s, end_s, key_s)
        return columns, jpeg

    def store_thumbnail(self, clip: Row, number: int, start_s: float, end_s: float) -> Row:
        """Stores the key frame alone, THUMBNAIL_SIDE px long. Returns its columns."""
        middle_s = (start_s + end_s) / 2
        found = self.kept.thumbnail(middle_s, clip["start_s"], clip["end_s"], THUMBNAIL_SIDE)
        return {} if found is None else self._store_key_frame(clip, number, *found)

    def _store_key_frame(self, clip: Row, number: int, t_s: float, jpeg: bytes) -> Row:
        return {
            "key_frame_s": t_s - clip["start_s"],
            "key_frame": self._write(clip, f"{number}", jpeg),
            "key_frame_sha256": hashlib.sha256(jpeg).hexdigest(),
        }

    def _store_samples(
        self, clip: Row, number: int, start_s: float, end_s: float, key_s: float
    ) -> list[Row]:
        """Stores the frames nearest to the centres of equal parts of the segment. The key frame is
        one of these and is not stored again."""
        found = {key_s: b""}
        for a, b in segment_spans(end_s - start_s, self.samples + 1):
            for t_s, jpeg in self.kept.nearest(start_s + (a + b) / 2, start_s, end_s)[:1]:
                found.setdefault(t_s, jpeg)
        del found[key_s]
        return [
            {
                "s": t_s - clip["start_s"],
                "file": self._write(clip, f"{number}_{place}", jpeg),
                "sha256": hashlib.sha256(jpeg).hexdigest(),
            }
            for place, (t_s, jpeg) in enumerate(sorted(found.items())[: self.samples])
        ]

    def _write(self, clip: Row, which: str, jpeg: bytes) -> str:
        name = f"key_frames/{clip['clip_id'][:2]}/{clip['clip_id']}_{which}.jpg"
        self.ledger.write(name, jpeg, durable=False)
        return name
