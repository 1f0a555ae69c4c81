"""Clips for training, read from the shards of `make curate` or from a list.

A clip source has `clip_ids` and returns the clip at an index; training/data.py decides their order.
docs/dataset.md describes the shards.
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
from curation.orientation import read_orientation
from curation.records import SPAN_TOLERANCE_S
from training.config import Size

TAR_BLOCK = 512


class BadData(UserError):
    """A dataset or a clip in it can't be used."""


@dataclass(frozen=True)
class Clip:
    clip_id: str
    video: Tensor  # (frames, height, width, 3) uint8 RGB; of a clip with latents, no frames
    duration_s: float
    spans: list[tuple[float, float]]  # start and end of each segment, s from the clip's start
    sub_captions: list[str]  # one per segment
    caption: str  # of the whole clip
    # from the latent cache:
    latents: Tensor | None = None  # what the codec's `encode` returned
    texts: Mapping[str, Tensor] = field(default_factory=dict)  # caption -> (tokens, width); '' too


# A clip of this length that has the first size's number of frames has its frame rate.
REFERENCE_CLIP_S = 15.0


def nearest_size(sizes: Sequence[Size], width: int, height: int, clip_s: float) -> int:
    """The index of the size for a clip of this shape (px) and length: those of the nearest aspect
    ratio, and of them the one whose frame rate is nearest to the first size's."""

    def distance(size: Size) -> tuple[float, float]:
        aspect = math.log(size.width / size.height) - math.log(width / height)
        length = math.log(size.frames / sizes[0].frames) - math.log(clip_s / REFERENCE_CLIP_S)
        return round(abs(aspect), 3), abs(length)

    return min(range(len(sizes)), key=lambda i: distance(sizes[i]))


class ClipSource(Protocol):
    """May have `size_indices`, a number per clip: clips of the same number have the same size."""

    clip_ids: Sequence[str]

    def __getitem__(self, index: int, /) -> Clip: ...


class ClipList:
    """Clips in memory."""

    def __init__(self, clips: Sequence[Clip]):
        self.clips = clips
        self.clip_ids: Sequence[str] = [clip.clip_id for clip in clips]

    def __getitem__(self, index: int, /) -> Clip:
        return self.clips[index]


@dataclass(frozen=True)
class ClipLocation:
    """Where the two files of a clip, JSON and mp4 or safetensors, lie in its shard."""

    shard: str
    start: int  # byte
    end: int
    row: dict[str, Any]  # of shards.parquet


class ShardedClips:
    """The clips of one split of a dataset, by random access: one read per clip.

    Each reading process keeps up to `memory_mb` of decoded clips in memory.
    """

    def __init__(
        self,
        dataset: str | Path,
        split: str,
        size: Size,
        memory_mb: float = 0.0,
        sizes: Sequence[Size] = (),  # others: each clip gets its nearest_size
    ):
        self.dataset, self.split, self.sizes = Path(dataset), split, (size, *sizes)
        self.locations = locate_clips(self.dataset, split)
        self.clip_ids: Sequence[str] = list(self.locations)
        self.size_indices = size_indices(self.locations, self.sizes)
        self._in_memory: dict[int, Clip] = {}
        self._free_bytes = memory_mb * 1e6

    def __getitem__(self, index: int, /) -> Clip:
        if index in self._in_memory:
            return self._in_memory[index]
        clip = self._read(self.clip_ids[index], self.sizes[self.size_indices[index]])
        if clip.video.nbytes <= self._free_bytes:
            self._free_bytes -= clip.video.nbytes
            self._in_memory[index] = clip
        return clip

    def _read(self, clip_id: str, size: Size) -> Clip:
        location = self.locations[clip_id]
        shard = self.dataset / "shards" / location.shard
        try:
            metadata, mp4 = read_files(shard, location, ".mp4")
            num_frames, clip_s = location.row["num_frames"], float(metadata["duration_s"])
            return parse_clip(clip_id, metadata, sample_frames(mp4, clip_s, num_frames, size))
        except (BadData, OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            raise BadData(
                f"clip {clip_id} in {shard}: {error or type(error).__name__}; "
                "pack the dataset again: longtake export"
            ) from error


def check_selection(dataset: Path) -> None:
    """Raises BadData where, by the manifest, the selection differs from what was exported."""
    path = dataset / "manifest.json"
    if not path.is_file():  # only the shards were copied
        return
    try:
        outdated = json.loads(path.read_bytes()).get("outdated_shards")
        text = outdated and f"{outdated['what']}\n  fix: {outdated['fix']}"
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise BadData(f"{path} is damaged: {error}") from error
    if text:
        raise BadData(
            f"{dataset}: {text}\n  or use the shards as they are: data.use_outdated_shards=true"
        )


def locate_clips(dataset: Path, split: str) -> dict[str, ClipLocation]:
    """clip_id -> location, in the order of the shards and of the clips in them."""
    table = dataset / "shards.parquet"
    if not table.is_file():
        raise BadData(f"{table}: no such file; expected the output of `make curate`")
    rows = [r for r in pq.read_table(table).to_pylist() if r["error"] is None]
    found, previous = {}, ("", 0)
    for row in sorted(rows, key=lambda r: (r["shard"], r["offset"])):
        shard, end = row["shard"], row["offset"] + -(-row["bytes"] // TAR_BLOCK) * TAR_BLOCK
        if Path(shard).name != shard:
            raise BadData(f"{table}: {shard!r:.80} is not the name of a file in shards/")
        # a clip's files follow those of the clip before it without a gap
        start = previous[1] if previous[0] == shard else 0
        previous = (shard, end)
        if row["split"] == split:
            found[row["clip_id"]] = ClipLocation(shard, start, end, row)
    return found


def size_indices(locations: Mapping[str, ClipLocation], sizes: Sequence[Size]) -> list[int]:
    """The index of each clip's nearest size."""
    if len(sizes) == 1:
        return [0] * len(locations)
    rows = [location.row for location in locations.values()]
    if any(row.get(name) is None for row in rows for name in ("width", "height", "clip_s")):
        raise BadData(
            "shards.parquet lacks the clips' width, height or clip_s, which several sizes need; "
            "pack the dataset again: longtake export"
        )
    return [nearest_size(sizes, row["width"], row["height"], row["clip_s"]) for row in rows]


def read_files(shard: Path, location: ClipLocation, suffix: str) -> tuple[dict[str, Any], bytes]:
    """The clip's JSON, and its file of this suffix. Both are checked against the table's hashes,
    but the JSON not where an older version wrote a table without its hash."""
    clip_id = location.row["clip_id"]
    with shard.open("rb") as file:
        file.seek(location.start)
        data = file.read(location.end - location.start)
    files = {}
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        for member in tar:
            opened = tar.extractfile(member)
            files[member.name] = opened.read() if opened else b""
    missing = {f"{clip_id}.json", clip_id + suffix} - files.keys()
    if missing:
        raise BadData(f"{' and '.join(sorted(missing))} not at byte {location.start}")
    for kind, sha256 in (
        (suffix, location.row["sha256"]),
        (".json", location.row.get("json_sha256")),
    ):
        if sha256 not in (None, hashlib.sha256(files[clip_id + kind]).hexdigest()):
            raise BadData(f"its {kind[1:]} does not have the hash in shards.parquet")
    return json.loads(files[f"{clip_id}.json"]), files[clip_id + suffix]


def parse_clip(clip_id: str, metadata: dict[str, Any], video: Tensor) -> Clip:
    """A clip from its JSON and its frames; BadData where the JSON is invalid."""
    parts = metadata["sub_captions"]
    try:
        spans = [(float(p["start_s"]), float(p["end_s"])) for p in parts]
        duration_s = float(metadata["duration_s"])
    except OverflowError as error:
        raise BadData(f"a time in its JSON is {error}") from error
    if not spans or any(not math.isfinite(t) for span in spans for t in span):
        raise BadData(
            f"sub_captions are {parts!r:.80}; expected one or more, with start_s and end_s"
        )
    texts = [metadata["caption"], *(p["text"] for p in parts)]
    if not all(isinstance(text, str) for text in texts):
        raise BadData("a caption is not text")
    return Clip(clip_id, video, duration_s, spans, texts[1:], texts[0])


def sample_frames(mp4: bytes, clip_s: float, num_frames: int, size: Size) -> Tensor:
    """(frames, height, width, 3) uint8 RGB: frame i is what the clip shows in the middle of the
    i-th of `size.frames` equal parts of its time. BadData where fewer than `num_frames` decode."""
    if not 0 < clip_s < math.inf:
        raise BadData(f"it lasts {clip_s} s")
    part_s = clip_s / size.frames
    sampled: list[np.ndarray] = []
    previous, count = None, 0
    try:
        for t_s, frame, pixel_aspect in _decode(mp4):
            # sampling times before this frame show the previous one
            due = min(size.frames, math.ceil((t_s - SPAN_TOLERANCE_S) / part_s - 0.5))
            if previous is not None and due > len(sampled):
                sampled += [resize_and_crop(*previous, size)] * (due - len(sampled))
            previous, count = (frame, pixel_aspect), count + 1
    except av.FFmpegError as error:
        raise BadData(f"its mp4 can't be decoded after frame {count}: {error}") from error
    if previous is None or count < num_frames:
        raise BadData(f"{count} of {num_frames} frames can be decoded")
    sampled += [resize_and_crop(*previous, size)] * (size.frames - len(sampled))
    return torch.from_numpy(np.stack(sampled))


def _decode(mp4: bytes) -> Iterator[tuple[float, av.VideoFrame, Fraction]]:
    """Frames with their time, s from the first frame, and their pixels' width over height."""
    with av.open(BytesIO(mp4), "r") as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1  # one per reading process
        first = None
        for frame in file.decode(stream):
            if frame.time is None:
                raise BadData("a frame has no time")
            first = frame.time if first is None else first
            yield frame.time - first, frame, stream.sample_aspect_ratio or Fraction(1)


def resize_and_crop(frame: av.VideoFrame, pixel_aspect: Fraction, size: Size) -> np.ndarray:
    """(height, width, 3) uint8 RGB: as shown, scaled to cover the size, cropped to its middle.
    pixel_aspect: a pixel's width over its height."""
    orientation = read_orientation(frame)
    wide, high = size.width, size.height
    if orientation.swaps_sides:
        wide, high = high, wide
    square_width = float(frame.width * (pixel_aspect if pixel_aspect > 0 else 1))
    scale = max(wide / square_width, high / frame.height)
    w, h = max(wide, round(square_width * scale)), max(high, round(frame.height * scale))
    # one thread: in a forked process PyAV 19 waits for its thread pool for ever
    whole = frame.reformat(w, h, "rgb24", interpolation="AREA", threads=1).to_ndarray()
    left, top = (w - wide) // 2, (h - high) // 2
    return np.ascontiguousarray(orientation.apply(whole[top : top + high, left : left + wide]))
