"""Clips for training: straight from the shards of `make curate`, or from any list of clips.

A *source* has `clip_ids` and gives the clip at an index; what order they come in is data.py's
business. What a shard holds is said in docs/dataset.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from curation.errors import UserError
from curation.records import SPAN_TOLERANCE_S
from training.config import Size

TAR_BLOCK = 512


class BadData(UserError):
    """A dataset or a clip in it can't be used: which, where, why, what to do."""


@dataclass(frozen=True)
class Clip:
    clip_id: str
    video: Tensor  # (frames, height, width, 3) uint8 RGB; of one computed ahead, no frames
    duration_s: float
    spans: list[tuple[float, float]]  # start and end of each segment, s from the clip's start
    sub_captions: list[str]  # one per segment
    caption: str  # of the whole clip
    # computed ahead (training/precompute.py):
    latents: Tensor | None = None  # what the codec's `encode` gave
    texts: Mapping[str, Tensor] = field(default_factory=dict)  # caption -> (tokens, width); '' too


USUAL_S = 15.0  # how long a clip is that has the frames of the first size


def nearest(sizes: Sequence[Size], width: int, height: int, clip_s: float) -> int:
    """Which size a clip of this shape (px) and length is brought to: of the most like aspect those,
    of them the one whose frames come nearest to the first size's rate."""

    def far(size: Size) -> tuple[float, float]:
        aspect = math.log(size.width / size.height) - math.log(width / height)
        length = math.log(size.frames / sizes[0].frames) - math.log(clip_s / USUAL_S)
        return round(abs(aspect), 3), abs(length)

    return min(range(len(sizes)), key=lambda i: far(sizes[i]))


class Source(Protocol):
    """May have `groups`, a number per clip: clips of one group are of one size."""

    clip_ids: Sequence[str]

    def __getitem__(self, index: int, /) -> Clip: ...


class Listed:
    """Clips that are in memory already: drawn ones, say."""

    def __init__(self, clips: Sequence[Clip]):
        self.clips = clips
        self.clip_ids: Sequence[str] = [clip.clip_id for clip in clips]

    def __getitem__(self, index: int, /) -> Clip:
        return self.clips[index]


@dataclass(frozen=True)
class Place:
    """Where a clip's two files, JSON and mp4 (or what was made of it), lie in its shard."""

    shard: str
    start: int
    end: int
    row: dict[str, Any]  # of shards.parquet


class Shards:
    """The clips of one split of a dataset, by random access: one read per clip.

    Decoded clips stay in memory up to `memory_mb` (per process that reads): small runs see the same
    few clips often.
    """

    def __init__(
        self,
        dataset: str | Path,
        split: str,
        size: Size,
        memory_mb: float = 0.0,
        sizes: Sequence[Size] = (),  # others, for clips that they suit better
    ):
        self.dataset, self.split, self.sizes = Path(dataset), split, (size, *sizes)
        self.places = places(self.dataset, split)
        self.clip_ids: Sequence[str] = list(self.places)
        self.groups = groups(self.places, self.sizes)
        self._kept: dict[int, Clip] = {}
        self._room = memory_mb * 1e6

    def __getitem__(self, index: int, /) -> Clip:
        if index in self._kept:
            return self._kept[index]
        clip = self._read(self.clip_ids[index], self.sizes[self.groups[index]])
        if clip.video.nbytes <= self._room:
            self._room -= clip.video.nbytes
            self._kept[index] = clip
        return clip

    def _read(self, clip_id: str, size: Size) -> Clip:
        place = self.places[clip_id]
        where = self.dataset / "shards" / place.shard
        try:
            told, mp4 = members(where, place, ".mp4")
            return parse(clip_id, told, even_frames(mp4, told, place.row["num_frames"], size))
        except (BadData, OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            raise BadData(
                f"clip {clip_id} in {where}: {error or type(error).__name__}; "
                "pack the dataset again: python -m pipelines.export"
            ) from error


def places(dataset: Path, split: str) -> dict[str, Place]:
    """clip_id -> place, in order of shard and of place in it."""
    table = dataset / "shards.parquet"
    if not table.is_file():
        raise BadData(f"{table}: no such file; expected the output of `make curate`")
    rows = [r for r in pq.read_table(table).to_pylist() if r["error"] is None]
    found, before = {}, ("", 0)
    for row in sorted(rows, key=lambda r: (r["shard"], r["offset"])):
        shard, end = row["shard"], row["offset"] + -(-row["bytes"] // TAR_BLOCK) * TAR_BLOCK
        if Path(shard).name != shard:
            raise BadData(f"{table}: {shard!r:.80} is not the name of a file in shards/")
        # a clip's files follow right on those of the clip before it
        start = before[1] if before[0] == shard else 0
        before = (shard, end)
        if row["split"] == split:
            found[row["clip_id"]] = Place(shard, start, end, row)
    return found


def groups(places: Mapping[str, Place], sizes: Sequence[Size]) -> list[int]:
    """Which of the sizes each clip is brought to."""
    if len(sizes) == 1:
        return [0] * len(places)
    rows = [place.row for place in places.values()]
    if any(row.get(name) is None for row in rows for name in ("width", "height", "clip_s")):
        raise BadData(
            "shards.parquet does not say how large the clips are, which several sizes need; "
            "pack the dataset again: python -m pipelines.export"
        )
    return [nearest(sizes, row["width"], row["height"], row["clip_s"]) for row in rows]


def members(shard: Path, place: Place, suffix: str) -> tuple[dict[str, Any], bytes]:
    """The clip's JSON and the file beside it, which is checked against the table's hash."""
    clip_id = place.row["clip_id"]
    with shard.open("rb") as file:
        file.seek(place.start)
        data = file.read(place.end - place.start)
    files = {}
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        for member in tar:
            opened = tar.extractfile(member)
            files[member.name] = opened.read() if opened else b""
    missing = {f"{clip_id}.json", clip_id + suffix} - files.keys()
    if missing:
        raise BadData(f"{' and '.join(sorted(missing))} not at byte {place.start}")
    if hashlib.sha256(files[clip_id + suffix]).hexdigest() != place.row["sha256"]:
        raise BadData(f"its {suffix[1:]} is not the one that shards.parquet describes")
    return json.loads(files[f"{clip_id}.json"]), files[clip_id + suffix]


def parse(clip_id: str, told: dict[str, Any], video: Tensor) -> Clip:
    """A clip from its JSON and its frames; BadData where the JSON says what can't be."""
    parts = told["sub_captions"]
    spans = [(float(p["start_s"]), float(p["end_s"])) for p in parts]
    if not spans or any(not math.isfinite(t) for span in spans for t in span):
        raise BadData(f"sub_captions are {parts!r:.80}; expected some, with start_s and end_s")
    texts = [told["caption"], *(p["text"] for p in parts)]
    if not all(isinstance(text, str) for text in texts):
        raise BadData("a caption is not text")
    duration_s = float(told["duration_s"])
    return Clip(clip_id, video, duration_s, spans, texts[1:], texts[0])


def even_frames(mp4: bytes, told: dict[str, Any], num_frames: int, size: Size) -> Tensor:
    """(frames, height, width, 3) uint8 RGB: frame i is what the clip shows in the middle of the
    i-th of `frames` equal parts of its time."""
    part_s = float(told["duration_s"]) / size.frames
    pictures: list[np.ndarray] = []
    before, count = None, 0
    try:
        for t_s, frame, aspect in _decode(mp4):
            # how many of the wanted moments lie before this frame; those are shown by the last one
            due = min(size.frames, math.ceil((t_s - SPAN_TOLERANCE_S) / part_s - 0.5))
            if before is not None and due > len(pictures):
                pictures += [fitted(*before, size)] * (due - len(pictures))
            before, count = (frame, aspect), count + 1
    except av.FFmpegError as error:
        raise BadData(f"its mp4 can't be decoded after frame {count}: {error}") from error
    if before is None or count < num_frames:
        raise BadData(f"{count} of {num_frames} frames can be decoded")
    pictures += [fitted(*before, size)] * (size.frames - len(pictures))
    return torch.from_numpy(np.stack(pictures))


def _decode(mp4: bytes) -> Iterator[tuple[float, av.VideoFrame, Fraction]]:
    """Frames with their time, s from the first, and their pixels' width over height."""
    with av.open(BytesIO(mp4), "r") as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1  # workers share the machine
        first = None
        for frame in file.decode(stream):
            if frame.time is None:
                raise BadData("a frame has no time")
            first = frame.time if first is None else first
            yield frame.time - first, frame, stream.sample_aspect_ratio or Fraction(1)


def fitted(frame: av.VideoFrame, aspect: Fraction, size: Size) -> np.ndarray:
    """(height, width, 3) uint8 RGB: upright, scaled to cover the size, the middle of it."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as numpy counts
    wide, high = (size.height, size.width) if turns % 2 else (size.width, size.height)
    shown = float(frame.width * (aspect if aspect > 0 else 1))
    scale = max(wide / shown, high / frame.height)
    w, h = max(wide, round(shown * scale)), max(high, round(frame.height * scale))
    # one thread: workers share the machine, and in a forked one PyAV 19 waits for its pool for ever
    whole = frame.reformat(w, h, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    left, top = (w - wide) // 2, (h - high) // 2
    return np.ascontiguousarray(np.rot90(whole[top : top + high, left : left + wide], turns))
