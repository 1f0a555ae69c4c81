"""WebDataset shards: assigns clips to shards, and packs one shard.

The same clips give the same names, the same order and the same bytes, on any machine and in any
run. A clip that can't be extracted is left out of its shard, and its row has the error; the other
clips are not affected.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from curation.atomic import TEMPORARY
from curation.json_text import parse_hashed, replace_non_finite, with_hash
from curation.records import (
    FIELD_NAMES,
    SCHEMA_VERSION,
    SCORE_NAMES,
    SHARD,
    hash_frames,
    schema,
    stored_frame_hashes,
)
from curation.stage import BadVideo, OutputError, Row
from curation.urls import is_file_name, is_inside
from stages.export.extraction import ExtractedClip
from stages.export.mp4 import output_file

# To estimate the size of a re-encoded clip. Measured: 0.04 to 0.06 for real takes of 720p and
# 1080p, more for grainy ones.
ENCODED_BITS_PER_PIXEL = 0.08
SHUFFLE_KEY_BYTES = 16


@dataclass(frozen=True)
class ShardPlan:
    name: str  # the tar's file name
    split: str
    clip_ids: tuple[str, ...]  # in the order of the tar
    bytes: int  # estimated


@dataclass(frozen=True)
class Receipt:
    """What a shard was made from, and the outcome for each clip. Written after the shard, so that
    a shard with a receipt is complete."""

    signature: str  # hash of everything that determines the shard's bytes
    shard: str
    bytes: int  # of the tar; 0 where every clip failed, and there is no tar
    sha256: str | None
    rows: list[Row]  # of curation.records.SHARD, one per planned clip
    extra: list[Row]  # what `extra_output` returned for each packed clip

    @property
    def failed(self) -> int:
        return sum(row["error"] is not None for row in self.rows)


def plan_shards(
    clips: Iterable[Row], target_bytes: int, max_samples: int, seed: str = ""
) -> list[ShardPlan]:
    """Divides the clips into shards of even size, none with more than `max_samples` clips.

    Within a split the clips are shuffled; the order depends only on `seed` and the ids. A clip's
    weight is the larger of its shares of `target_bytes` and of `max_samples`. The number of shards
    is the sum of the weights, rounded up. A clip's shard follows from the sum of the weights before
    it. Memory: about 120 bytes a clip. Raises OutputError for an id that can't be a file's name.
    """
    splits: dict[str, _SplitClips] = {}
    for clip in clips:
        splits.setdefault(clip["split"], _SplitClips()).add(clip, seed)
    plans = []
    for split, members in sorted(splits.items()):
        full = target_bytes * max_samples  # weights are integers: the same on every machine
        total = sum(max(size * max_samples, target_bytes) for size in members.bytes)
        count, before, last = -(-total // full), 0, -1
        shards: list[tuple[list[str], int]] = []  # clip_ids and bytes
        for i in members.shuffled():
            size, number = members.bytes[i], before * count // total
            if number != last:
                shards.append(([], 0))
            ids, known = shards[-1]
            ids.append(members.ids[i])
            shards[-1] = ids, known + size
            before, last = before + max(size * max_samples, target_bytes), number
        plans += [
            ShardPlan(f"{split}-{index:06d}.tar", split, tuple(ids), size)
            for index, (ids, size) in enumerate(shards)
        ]
    return plans


class _SplitClips:
    """What decides the shards of a split's clips."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.bytes = array("q")  # estimated
        self._keys = bytearray()

    def add(self, clip: Row, seed: str) -> None:
        if not is_file_name(clip["clip_id"]):  # in a ledger of others
            raise OutputError(f"{clip['clip_id']!r:.80} is not the id of a clip")
        self.ids.append(clip["clip_id"])
        self.bytes.append(estimate_bytes(clip))
        self._keys += _shuffle_key(seed, clip["clip_id"])

    def shuffled(self) -> np.ndarray:
        """The numbers of the clips in the order of their keys."""
        return np.argsort(np.frombuffer(self._keys, f"S{SHUFFLE_KEY_BYTES}"), kind="stable")


def estimate_bytes(clip: Row) -> int:
    """Estimated size of the clip's mp4: of its packets if they can be copied, else by the number of
    pixels."""
    if clip["starts_on_keyframe"]:
        return clip["packet_bytes"]
    return int(clip["num_frames"] * clip["width"] * clip["height"] * ENCODED_BITS_PER_PIXEL / 8)


def _shuffle_key(seed: str, clip_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=SHUFFLE_KEY_BYTES).digest()


def sample_metadata(clip: Row, extracted: ExtractedClip) -> dict[str, Any]:
    """The JSON of a sample: properties of the mp4, captions and scores."""
    return _planned_metadata(clip) | {
        "width": extracted.width,
        "height": extracted.height,
        "fps": extracted.fps,
        "num_frames": extracted.num_frames,
        "codec": extracted.codec,
        "method": extracted.method,
    }


def _planned_metadata(clip: Row) -> dict[str, Any]:
    """The metadata that are known before the clip is extracted."""
    has_fields = any(part.get(name) for part in clip["sub_captions"] for name in FIELD_NAMES)
    fields = FIELD_NAMES if has_fields else ()
    return {
        "schema_version": SCHEMA_VERSION,
        "clip_id": clip["clip_id"],
        "video": clip["video"],
        "split": clip["split"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "duration_s": clip["end_s"] - clip["start_s"],
        "caption": clip["caption"],
        "sub_captions": [
            {key: part[key] for key in ("start_s", "end_s", "text", *fields)}
            for part in clip["sub_captions"]
        ],
        "captioner": clip["captioner"],
        "frames_sha256": clip["frames_sha256"],
        "provenance": json.loads(clip["provenance"] or "{}"),
        "scores": {name: clip.get(name) for name in SCORE_NAMES},
    }


def to_json(value: Any) -> bytes:
    """UTF-8 that any JSON parser accepts: NaN and infinity are null, other numbers are exact."""
    text = json.dumps(
        replace_non_finite(value), ensure_ascii=False, allow_nan=False, sort_keys=True
    )
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its \\u escape


def check_captions_match(clip: Row) -> None:
    """Raises BadVideo if the captions were not made from this clip's stored frames and span."""
    if hash_frames(stored_frame_hashes(clip["segments"])) != clip["frames_sha256"]:
        raise BadVideo("the caption was made from other frames; caption the clip again")
    span_s = json.loads(clip["provenance"] or "{}").get("span_s")
    if span_s is not None and span_s != [clip["start_s"], clip["end_s"]]:
        raise BadVideo("the caption was made for another span; caption the clip again")


def pack_shard(
    plan: ShardPlan,
    clips: Mapping[str, Row],
    folder: Path,
    receipts: Path,
    extract: Callable[[Row, Path], ExtractedClip],
    extra_output: Callable[[Row, Path, ExtractedClip], Row] | None = None,
    settings: str = "",
) -> Receipt:
    """Writes one shard to `folder` and its receipt to `receipts`.

    clips: the rows of the plan's clips, with captions.  extract: writes the mp4 of a clip to a
    path, or raises BadVideo.  extra_output: called with each packed clip; the rows that it returns
    are stored in the receipt.  settings: everything else that the shard depends on, as text.
    """
    rows: list[Row] = []
    extra: list[Row] = []
    with output_file(folder / plan.name, durable=True) as out:
        with (
            tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
            tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as scratch,
        ):
            for clip_id in plan.clip_ids:
                row: Row = dict.fromkeys(column.name for column in SHARD)
                row |= {"clip_id": clip_id, "shard": plan.name, "split": plan.split}
                mp4 = Path(scratch) / f"{clip_id}.mp4"
                try:
                    check_captions_match(clips[clip_id])
                    extracted = extract(clips[clip_id], mp4)
                    if extra_output:
                        extra.append(extra_output(clips[clip_id], mp4, extracted))
                    row |= _add_sample(tar, clips[clip_id], mp4, extracted)
                except BadVideo as error:
                    row["error"] = str(error)
                mp4.unlink(missing_ok=True)
                rows.append(row)
        size = out.tell()
        out.seek(0)
        sha256 = hashlib.file_digest(out, "sha256").hexdigest()
    signature = shard_signature(plan, clips, settings)
    receipt = Receipt(signature, plan.name, size, sha256, rows, extra)
    if receipt.failed == len(rows):
        (folder / plan.name).unlink()
        receipt = replace(receipt, bytes=0, sha256=None)
    with output_file(receipts / f"{plan.name}.json", durable=True) as file:
        file.write(to_json(with_hash(asdict(receipt))))
    return receipt


def shard_signature(plan: ShardPlan, clips: Mapping[str, Row], settings: str = "") -> str:
    """Hash of everything that determines a shard's bytes."""
    members = [_planned_metadata(clips[clip_id]) for clip_id in plan.clip_ids]
    return hashlib.sha256(to_json([settings, plan.name, members])).hexdigest()


def clip_signature(clip: Row, settings: str = "") -> str:
    """Hash of everything that determines a clip's files."""
    return hashlib.sha256(to_json([settings, _planned_metadata(clip)])).hexdigest()


def parse_receipt(text: bytes, path: str) -> Receipt:
    try:
        receipt = Receipt(**parse_hashed(text))
        names = [receipt.shard, *(row["path"] for row in receipt.extra if "path" in row)]
        if not all(map(is_inside, names)):
            raise ValueError("it names a file outside of the output")
        return receipt
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path} is damaged ({error}); delete it and run again") from error


def shards_table(receipts: Iterable[Receipt]) -> pa.Table:
    """Rows of OUT/shards.parquet: one per planned clip, ordered as in the shards."""
    ordered = sorted(receipts, key=lambda receipt: receipt.shard)
    rows = [row for receipt in ordered for row in receipt.rows]
    return pa.Table.from_pylist(rows, schema=schema(SHARD))


def _add_sample(tar: tarfile.TarFile, clip: Row, mp4: Path, extracted: ExtractedClip) -> Row:
    """Adds the clip's JSON and mp4 to the tar. Returns its columns of records.SHARD."""
    text = to_json(sample_metadata(clip, extracted))
    _add_member(tar, f"{clip['clip_id']}.json", BytesIO(text), len(text))
    size = mp4.stat().st_size
    with mp4.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        end = _add_member(tar, f"{clip['clip_id']}.mp4", file, size)
    padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return {
        "offset": end - padded,
        "bytes": size,
        "sha256": sha256,
        "json_sha256": hashlib.sha256(text).hexdigest(),
        "method": extracted.method,
        "codec": extracted.codec,
        "num_frames": extracted.num_frames,
        "width": extracted.width,
        "height": extracted.height,
        "clip_s": clip["end_s"] - clip["start_s"],
        "start_error_s": extracted.start_error_s,
    }


def _add_member(tar: tarfile.TarFile, name: str, data: BinaryIO, size: int) -> int:
    """Adds a file without time and owner. Returns the offset in the tar after it."""
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0
    info.size = size
    tar.addfile(info, data)
    return tar.offset
