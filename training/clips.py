"""Clips for training, read from the shards of `make curate` or from a list.

A clip source has `clip_ids` and returns the clip at an index; training/data.py decides their order.
docs/dataset.md describes the shards.
"""

from __future__ import annotations

import hashlib
import math
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from curation.json_text import parse_object
from curation.storage import Folder
from curation.urls import is_file_name, is_remote
from training.config import Reader, Size
from training.frames import BadData, check_reader, sample_frames

TAR_BLOCK = 512
# of a clip's files, where they are damaged
UNREADABLE = (BadData, OSError, ValueError, KeyError, TypeError, OverflowError, tarfile.TarError)

# Of shards.parquet and of the latent cache's; tables of older versions lack some.
TABLE_COLUMNS = [
    *("clip_id", "shard", "split", "offset", "bytes", "sha256", "json_sha256", "error"),
    *("num_frames", "width", "height", "clip_s", "of"),
]


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
    """May have `size_indices`, a number per clip: clips of the same number have the same size; and
    `is_remote`: its clips are in an object store."""

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

    The dataset is a folder or the URL of one. Each reading process connects to the store when it
    reads its first clip, and keeps up to `memory_mb` of decoded clips in memory.
    """

    def __init__(
        self,
        dataset: str | Path,
        split: str,
        size: Size,
        memory_mb: float = 0.0,
        sizes: Sequence[Size] = (),  # others: each clip gets its nearest_size
        reader: Reader = "pyav",
    ):
        self.dataset, self.split, self.sizes = str(dataset), split, (size, *sizes)
        self.is_remote, self.reader = is_remote(self.dataset), reader
        check_reader(reader)
        self.locations = locate_clips(Folder(self.dataset), split)
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
        shards = Folder(self.dataset) / "shards"
        try:
            metadata, mp4 = read_files(shards, location, ".mp4")
            num_frames, clip_s = location.row["num_frames"], float(metadata["duration_s"])
            video = sample_frames(mp4, clip_s, num_frames, size, self.reader)
            return parse_clip(clip_id, metadata, video)
        except UNREADABLE as error:
            raise BadData(
                f"clip {clip_id} in {shards.path(location.shard)}: "
                f"{error or type(error).__name__}; pack the dataset again: longtake export"
            ) from error


def check_selection(dataset: str) -> None:
    """Raises BadData if the manifest states that the selection differs from the exported clips."""
    folder, name = Folder(dataset), "manifest.json"
    try:
        outdated = parse_object(folder.read(name)).get("outdated_shards")
        text = outdated and f"{outdated['what']}\n  fix: {outdated['fix']}"
    except FileNotFoundError:  # only the shards were copied
        return
    except (ValueError, TypeError, KeyError) as error:
        raise BadData(f"{folder.path(name)} is damaged: {error}") from error
    if text:
        raise BadData(
            f"{dataset}: {text}\n  or use the shards as they are: data.use_outdated_shards=true"
        )


def locate_clips(dataset: Folder, split: str) -> dict[str, ClipLocation]:
    """clip_id -> location, in the order of the shards and of the clips in them."""
    table = dataset.path("shards.parquet")
    try:
        found_rows = dataset.read_table("shards.parquet", TABLE_COLUMNS).to_pylist()
    except FileNotFoundError:
        raise BadData(f"{table}: no such file; expected the output of `make curate`") from None
    rows = [r for r in found_rows if r["error"] is None]
    if any(row[name] is None for row in rows for name in ("clip_id", "shard", "offset", "bytes")):
        raise BadData(f"{table}: a clip has no place in a shard; pack the dataset again")
    found, previous = {}, ("", 0)
    for row in sorted(rows, key=lambda r: (r["shard"], r["offset"])):
        shard, end = row["shard"], row["offset"] + -(-row["bytes"] // TAR_BLOCK) * TAR_BLOCK
        for name in (shard, row["clip_id"]):  # files have these names, and lines of commands
            if not is_file_name(name):
                raise BadData(f"{table}: {name!r:.80} is not the name of a file in shards/")
        # a clip's files follow those of the clip before it without a gap
        start = previous[1] if previous[0] == shard else 0
        if not 0 <= start < end:
            raise BadData(f"{table}: {row['clip_id']} is at bytes {start} to {end} of {shard}")
        previous = (shard, end)
        if row["split"] == split:
            found[row["clip_id"]] = ClipLocation(shard, start, end, row)
    return found


def size_indices(locations: Mapping[str, ClipLocation], sizes: Sequence[Size]) -> list[int]:
    """The index of each clip's nearest size."""
    if len(sizes) == 1:
        return [0] * len(locations)
    rows = [location.row for location in locations.values()]
    if not all((row.get(name) or 0) > 0 for row in rows for name in ("width", "height", "clip_s")):
        raise BadData(
            "shards.parquet lacks the clips' width, height or clip_s, which several sizes need; "
            "pack the dataset again: longtake export"
        )
    return [nearest_size(sizes, row["width"], row["height"], row["clip_s"]) for row in rows]


def read_files(shards: Folder, location: ClipLocation, suffix: str) -> tuple[dict[str, Any], bytes]:
    """The clip's JSON, and its file of this suffix. Both are checked against the table's hashes,
    but the JSON not where an older version wrote a table without its hash."""
    clip_id = location.row["clip_id"]
    data = shards.read_part(location.shard, location.start, location.end - location.start)
    files = {}
    # not compressed: a few bytes would become gigabytes
    with tarfile.open(fileobj=BytesIO(data), mode="r:") as tar:
        for member in tar:
            opened = tar.extractfile(member) if member.isfile() else None  # a link may be to itself
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
    return parse_object(files[f"{clip_id}.json"]), files[clip_id + suffix]


def parse_clip(clip_id: str, metadata: dict[str, Any], video: Tensor) -> Clip:
    """A clip from its JSON and its frames. Raises UNREADABLE where the JSON is invalid."""
    parts = metadata["sub_captions"]
    spans = [(float(p["start_s"]), float(p["end_s"])) for p in parts]
    duration_s = float(metadata["duration_s"])
    if not spans or any(not math.isfinite(t) for span in spans for t in span):
        raise BadData(
            f"sub_captions are {parts!r:.80}; expected one or more, with start_s and end_s"
        )
    texts = [metadata["caption"], *(p["text"] for p in parts)]
    if not all(isinstance(text, str) for text in texts):
        raise BadData("a caption is not text")
    return Clip(clip_id, video, duration_s, spans, texts[1:], texts[0])
