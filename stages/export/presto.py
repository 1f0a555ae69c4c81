"""The dataset as the trainer that Presto's authors released reads it: mp4 files and one Parquet.

What that trainer does decides every choice here. It takes frames 0 to 449 of an mp4 by their number
and gives each 90 of them one caption, so a clip must be exactly 450 frames in which caption i
describes frames 90 i to 90 i + 89. It drops, without a word, small or narrow pictures and rows
whose captions don't read back as a dict with keys 90 apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.records import SPAN_TOLERANCE_S
from curation.stage import BadVideo, Row
from stages.export.extraction import Cut
from stages.export.mp4 import Look, whole_file, write_copy, write_encoded
from stages.export.seekable_video import Source

FRAMES, RATE, CAPTIONS = 450, 30, 5
KEYS = tuple(str(FRAMES // CAPTIONS * i + FRAMES // CAPTIONS // 2) for i in range(CAPTIONS))
MIN_WIDTH, MIN_HEIGHT, MAX_ASPECT_RATIO = 1280, 720, 1.5  # to 16:9, either way
TICKS = 512  # per frame, as mp4 writers commonly count

META = pa.schema(
    [
        ("path", pa.string()),
        # One key set in every row: else a reader gets the union of all keys, the others None.
        ("cap", pa.struct([(key, pa.string()) for key in KEYS])),
        ("num_frames", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        # The trainer doesn't look at these.
        ("clip_id", pa.string()),
        ("speed", pa.float64()),  # seconds of the clip per second of the mp4
    ]
)


def left_out(width: int, height: int, sub_captions: int) -> str | None:
    """Why the released trainer would not take a clip, or None."""
    if sub_captions != CAPTIONS:
        return f"{sub_captions} sub-captions, not {CAPTIONS}"
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return f"smaller than {MIN_WIDTH}x{MIN_HEIGHT}"
    shape = (height / width) / (MIN_HEIGHT / MIN_WIDTH)
    if not 1 / MAX_ASPECT_RATIO <= shape <= MAX_ASPECT_RATIO:
        return f"shape more than {MAX_ASPECT_RATIO} x off 16:9"
    return None


def frame_choice(times_s: Sequence[float], duration_s: float) -> np.ndarray:
    """Which of a clip's frames each of the 450 shows: (450,) int, growing.

    The one on the screen in the middle of the new frame's time. A frame's own time would do as well
    at 30 fps, but there a stamp that is off by a rounding error takes the neighbour; the middle is
    as far from both as can be.  times_s: when each frame of the clip is shown, from 0, growing.
    """
    middles = (np.arange(FRAMES) + 0.5) * duration_s / FRAMES + SPAN_TOLERANCE_S
    return np.maximum(np.searchsorted(times_s, middles, side="right") - 1, 0)


def make_presto(clip: Row, mp4: Path, cut: Cut, folder: Path) -> Row:
    """Writes the clip as 450 frames at 30 fps to folder/videos; its row of META, and its split.

    A clip that the trainer would drop gives a row with `left_out`, the reason, and no file.
    mp4: the clip as it was cut.
    """
    texts = [part["text"] for part in clip["sub_captions"]]
    reason = left_out(cut.width, cut.height, len(texts))
    if reason is not None:
        return {"clip_id": clip["clip_id"], "split": clip["split"], "left_out": reason}
    duration_s = clip["end_s"] - clip["start_s"]
    path = f"videos/{clip['clip_id']}.mp4"
    with closing(Source(str(mp4))) as video, whole_file(folder / path) as out:
        look = Look.of(video.head, Fraction(RATE), cover=(MIN_WIDTH, MIN_HEIGHT))
        try:
            packets = [packet for packet in video.packets(0.0) if packet.size]
            stamps = [packet.pts or 0 for packet in packets]
            shown = sorted(p.pts or 0 for p in packets if not p.is_discard)
            choice = frame_choice([video.time_s(pts) for pts in shown], duration_s)
            if _is_there_already(video, cut, choice, len(packets)):
                look = Look.of(video.head)
                places = [shown.index(pts) * TICKS for pts in stamps]
                time_base, end = Fraction(1, RATE * TICKS), FRAMES * TICKS
                write_copy(video.stream, packets, places, time_base, end, out)
            else:
                write_encoded(_chosen(video, choice), Fraction(1, RATE), look, out)
        except av.error.PyAVCallbackError:  # of our own file
            raise
        except av.FFmpegError as error:
            raise BadVideo(f"making 450 frames of it: {error}") from error
    return {
        "path": path,
        "cap": dict(zip(KEYS, texts, strict=True)),
        "num_frames": FRAMES,
        "height": look.size[1],
        "width": look.size[0],
        "clip_id": clip["clip_id"],
        "speed": duration_s / (FRAMES / RATE),
        "split": clip["split"],
    }


def _is_there_already(video: Source, cut: Cut, choice: np.ndarray, packets: int) -> bool:
    """Whether the cut's own frames are the 450, so that only their times change.

    Not with frames stored but hidden, nor with a turn in the header: that trainer reads with
    decord, which counts the packets.
    """
    plain = cut.codec == "h264" and video.head.pix_fmt == "yuv420p" and video.head.rotation == 0
    return plain and packets == FRAMES and np.array_equal(choice, np.arange(FRAMES))


def _chosen(video: Source, choice: np.ndarray) -> Iterator[tuple[av.VideoFrame, int, int]]:
    """Each of the 450 with its place; a frame chosen more than once is given as often."""
    place = 0
    for number, (_, frame) in enumerate(video.frames(0.0)):
        while place < FRAMES and choice[place] == number:
            yield frame, place, 1
            place += 1
    if place < FRAMES:
        raise BadVideo(f"the clip shows fewer frames than it holds: {place} of {FRAMES} found")


def write_meta(rows: Iterable[Row], folder: Path) -> dict[str, int]:
    """Writes meta.parquet (train) and meta_validation.parquet; counts who was left out, by reason.

    rows: what make_presto gave. In order of clip_id, so that the same rows give the same file.
    """
    ordered = sorted(rows, key=lambda row: row["clip_id"])
    for split, name in (("train", "meta.parquet"), ("validation", "meta_validation.parquet")):
        chosen = [row for row in ordered if row["split"] == split and "left_out" not in row]
        with whole_file(folder / name, durable=True) as out:
            pq.write_table(pa.Table.from_pylist(chosen, schema=META), out)
    return dict(Counter(row["left_out"] for row in ordered if "left_out" in row))
