"""The dataset in the format of the trainer that Presto's authors released: mp4s and a table.

That trainer reads frames 0 to 449 of an mp4 by their number and gives each 90 of them one caption,
so a clip must be exactly 450 frames in which caption i describes frames 90 i to 90 i + 89. It
silently drops small or narrow pictures and rows whose captions don't read back as a dict with keys
90 apart.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import numpy as np
import pyarrow as pa

from curation.parquet import TableWriter
from curation.records import SPAN_TOLERANCE_S
from curation.stage import BadVideo, Row
from curation.storage import Folder
from curation.video.geometry import Geometry
from stages.export.display_tags import carry_over
from stages.export.extraction import ExtractedClip
from stages.export.mp4 import EncodeFormat, output_file, write_copy, write_encoded
from stages.export.seekable_video import SeekableVideo

NUM_FRAMES, FPS, NUM_CAPTIONS = 450, 30, 5
FRAMES_PER_CAPTION = NUM_FRAMES // NUM_CAPTIONS
# The number of the frame in the middle of each caption's frames.
CAPTION_KEYS = tuple(
    str(FRAMES_PER_CAPTION * i + FRAMES_PER_CAPTION // 2) for i in range(NUM_CAPTIONS)
)
MIN_WIDTH, MIN_HEIGHT = 1280, 720  # px
MAX_ASPECT_FACTOR = 1.5  # of the aspect ratio to 16:9, or of 16:9 to it
TICKS_PER_FRAME = 512  # common among mp4 writers

META_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        # The same keys in every row: else a reader gets the union of all keys, with None values.
        ("cap", pa.struct([(key, pa.string()) for key in CAPTION_KEYS])),
        ("num_frames", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        # The trainer ignores these.
        ("clip_id", pa.string()),
        ("speed", pa.float64()),  # seconds of the clip per second of the mp4
    ]
)


def skip_reason(width: int, height: int, sub_captions: int) -> str | None:
    """Why the released trainer would drop a clip, or None."""
    if sub_captions != NUM_CAPTIONS:
        return f"{sub_captions} sub-captions, not {NUM_CAPTIONS}"
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return f"smaller than {MIN_WIDTH}x{MIN_HEIGHT}"
    shape = (height / width) / (MIN_HEIGHT / MIN_WIDTH)
    if not 1 / MAX_ASPECT_FACTOR <= shape <= MAX_ASPECT_FACTOR:
        return f"shape more than {MAX_ASPECT_FACTOR} x off 16:9"
    return None


def frame_indices(times_s: Sequence[float], duration_s: float) -> np.ndarray:
    """(450,) int, ascending: which of a clip's frames is shown in the middle of each new frame.

    The middle, not the start: at 30 fps a time stamp with a rounding error at the start of a frame
    would select its neighbour.  times_s: when each frame of the clip is shown, ascending from 0.
    """
    middles = (np.arange(NUM_FRAMES) + 0.5) * duration_s / NUM_FRAMES + SPAN_TOLERANCE_S
    return np.maximum(np.searchsorted(times_s, middles, side="right") - 1, 0)


def write_presto_clip(clip: Row, mp4: Path, extracted: ExtractedClip, folder: Path) -> Row:
    """Writes the clip as 450 frames at 30 fps to folder/videos. Returns its row of META_SCHEMA, its
    split and the mp4's SHA-256.

    For a clip that the trainer would drop, writes no file and returns a row with the reason in
    `skipped`.  mp4: the extracted clip.
    """
    texts = [part["text"] for part in clip["sub_captions"]]
    reason = skip_reason(extracted.width, extracted.height, len(texts))
    if reason is not None:
        return {"clip_id": clip["clip_id"], "split": clip["split"], "skipped": reason}
    duration_s = clip["end_s"] - clip["start_s"]
    path = f"videos/{clip['clip_id']}.mp4"
    with closing(SeekableVideo(str(mp4))) as video, output_file(folder / path, durable=True) as out:
        try:
            width, height = _write_frames(video, extracted, duration_s, out)
        except av.error.PyAVCallbackError:  # from writing the mp4
            raise
        except av.FFmpegError as error:
            raise BadVideo(f"making 450 frames of it: {error}") from error
        out.seek(0)
        sha256 = hashlib.file_digest(out, "sha256").hexdigest()
    return {
        "path": path,
        "cap": dict(zip(CAPTION_KEYS, texts, strict=True)),
        "num_frames": NUM_FRAMES,
        "height": height,
        "width": width,
        "clip_id": clip["clip_id"],
        "speed": duration_s / (NUM_FRAMES / FPS),
        "split": clip["split"],
        "sha256": sha256,  # of the mp4; in the receipt alone
    }


def _write_frames(
    video: SeekableVideo, extracted: ExtractedClip, duration_s: float, out: BinaryIO
) -> tuple[int, int]:
    """Writes the 450 frames: a copy where they are those of the clip, else an encode. Returns their
    width and height, px."""
    packets = [packet for packet in video.packets(0.0) if packet.size]
    stamps = [packet.pts or 0 for packet in packets]
    shown = sorted(p.pts or 0 for p in packets if not p.is_discard)
    indices = frame_indices([video.time_s(pts) for pts in shown], duration_s)
    if _has_exactly_these_frames(video, extracted, indices, len(packets)):
        new_pts = [shown.index(pts) * TICKS_PER_FRAME for pts in stamps]
        time_base = Fraction(1, FPS * TICKS_PER_FRAME)
        write_copy(video.stream, packets, new_pts, time_base, NUM_FRAMES * TICKS_PER_FRAME, out)
        if carry_over(video.tags, out):
            return EncodeFormat.from_head(video.header).shown_size
        out.seek(0)
        out.truncate()
    encode_format = EncodeFormat.from_head(
        video.header, Fraction(FPS), cover=(MIN_WIDTH, MIN_HEIGHT)
    )
    write_encoded(_frames_at(video, indices), Fraction(1, FPS), encode_format, out)
    return encode_format.shown_size


def _has_exactly_these_frames(
    video: SeekableVideo, extracted: ExtractedClip, indices: np.ndarray, packets: int
) -> bool:
    """Whether the clip's own frames are the 450, so that only their times change.

    Not with stored but hidden frames, nor turned or with other than square pixels: that trainer
    reads with decord, which counts packets and ignores the header.
    """
    head = video.header
    plain = extracted.codec == "h264" and head.pix_fmt == "yuv420p" and head.geometry == Geometry()
    return plain and packets == NUM_FRAMES and np.array_equal(indices, np.arange(NUM_FRAMES))


def _frames_at(
    video: SeekableVideo, indices: np.ndarray
) -> Iterator[tuple[av.VideoFrame, int, int]]:
    """The frame of each index, its position and duration; an index may occur several times."""
    position = 0
    for number, (_, frame) in enumerate(video.frames(0.0)):
        while position < NUM_FRAMES and indices[position] == number:
            yield frame, position, 1
            position += 1
    if position < NUM_FRAMES:
        raise BadVideo(
            f"the clip shows fewer frames than it holds: {position} of {NUM_FRAMES} found"
        )


class MetaTables:
    """Writes the rows of `write_presto_clip` to the table of their split, in the order given."""

    def __init__(self, writers: dict[str, TableWriter]) -> None:
        self._writers = writers  # of each split
        self.skipped = Counter[str]()  # clips by reason

    def add(self, rows: list[Row]) -> None:
        self.skipped.update(row["skipped"] for row in rows if "skipped" in row)
        for split, writer in self._writers.items():
            chosen = [row for row in rows if row["split"] == split and "skipped" not in row]
            writer.write(pa.Table.from_pylist(chosen, schema=META_SCHEMA))


@contextmanager
def meta_tables(folder: Folder) -> Iterator[MetaTables]:
    """The files appear when the block ends without an error."""
    with (
        folder.table_writer("meta.parquet", META_SCHEMA) as train,
        folder.table_writer("meta_validation.parquet", META_SCHEMA) as validation,
    ):
        yield MetaTables({"train": train, "validation": validation})
