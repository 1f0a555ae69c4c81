"""WebDataset shards: a plan, which is a pure function of the clips, and the packing of one shard.

The same clips give the same names, the same order and the same bytes, wherever and however often
they are packed. A clip that can't be cut is left out, and said so; its neighbours are not touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from curation.records import (
    SCHEMA_VERSION,
    SCORE_NAMES,
    SHARD,
    frames_sha256,
    schema,
    stored_frame_hashes,
)
from curation.stage import BadVideo, OutputError, Row
from curation.storage import TEMPORARY
from stages.export.extraction import Cut
from stages.export.mp4 import whole_file

# Bits per pixel of a re-encoded clip, for sizes before they are known: real 720p and 1080p takes
# gave 0.04 to 0.06, grainy ones more.
ENCODED_BPP = 0.08


@dataclass(frozen=True)
class ShardPlan:
    name: str  # the tar's file name
    split: str
    clip_ids: tuple[str, ...]  # in the order of the tar
    bytes: int  # estimated


@dataclass(frozen=True)
class Receipt:
    """What became of each clip of a shard. Written after the shard: with it, the shard is whole."""

    signature: str  # of everything that the shard is made of
    shard: str
    bytes: int  # of the tar; 0 where no clip was left, and no tar is there
    sha256: str | None
    rows: list[Row]  # one per planned clip, as curation/records.py has it under SHARD
    also: list[Row]  # what `also` gave for each packed clip

    @property
    def failed(self) -> int:
        return sum(row["error"] is not None for row in self.rows)


def plan_shards(
    clips: Iterable[Row], target_bytes: int, max_samples: int, seed: str = ""
) -> list[ShardPlan]:
    """Splits into shards of even size, none with more than `max_samples` clips.

    Within a split the order is a shuffle that depends on `seed` and the ids alone. A clip takes the
    larger of its share of `target_bytes` and of `max_samples`; the sum of these, rounded up, is the
    number of shards, and each clip goes where the sum of those before it falls.
    """
    splits: dict[str, list[Row]] = {}
    for clip in clips:
        splits.setdefault(clip["split"], []).append(clip)
    plans = []
    for split in sorted(splits):
        rows = sorted(splits[split], key=lambda row: _shuffled(seed, row["clip_id"]))
        whole = target_bytes * max_samples  # whole numbers: the same on every machine
        takes = [max(estimated_bytes(row) * max_samples, target_bytes) for row in rows]
        sum_of_takes = sum(takes)
        count, before = -(-sum_of_takes // whole), 0
        shards: dict[int, list[Row]] = {}
        for row, share in zip(rows, takes, strict=True):
            shards.setdefault(before * count // sum_of_takes, []).append(row)
            before += share
        for index, number in enumerate(sorted(shards)):
            members = shards[number]
            plans.append(
                ShardPlan(
                    name=f"{split}-{index:06d}.tar",
                    split=split,
                    clip_ids=tuple(row["clip_id"] for row in members),
                    bytes=sum(map(estimated_bytes, members)),
                )
            )
    return plans


def estimated_bytes(clip: Row) -> int:
    """Of the clip's mp4: its packets' where they can be copied, else by the area encoded."""
    if clip["starts_on_keyframe"]:
        return clip["packet_bytes"]
    return int(clip["num_frames"] * clip["width"] * clip["height"] * ENCODED_BPP / 8)


def _shuffled(seed: str, clip_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{clip_id}".encode(), digest_size=16).digest()


def sample(clip: Row, cut: Cut) -> dict[str, Any]:
    """The JSON beside a clip's mp4."""
    return _known(clip) | {
        "width": cut.width,
        "height": cut.height,
        "fps": cut.fps,
        "num_frames": cut.num_frames,
        "codec": cut.codec,
        "method": cut.method,
    }


def _known(clip: Row) -> dict[str, Any]:
    """The part of the sample that is known before the cut."""
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
            {key: part[key] for key in ("start_s", "end_s", "text")}
            for part in clip["sub_captions"]
        ],
        "captioner": clip["captioner"],
        "frames_sha256": clip["frames_sha256"],
        "provenance": json.loads(clip["provenance"] or "{}"),
        "scores": {name: clip.get(name) for name in SCORE_NAMES},
    }


def to_json(value: Any) -> bytes:
    """UTF-8 that any JSON parser reads: NaN and infinity are null, every number comes back."""
    text = json.dumps(_no_nan(value), ensure_ascii=False, allow_nan=False, sort_keys=True)
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes its \\u escape


def _no_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return value


def check_caption(clip: Row) -> None:
    """Raises BadVideo where the captions were not made from this clip's stills and span."""
    if frames_sha256(stored_frame_hashes(clip["segments"])) != clip["frames_sha256"]:
        raise BadVideo("the caption was made from other frames; caption the clip again")
    span_s = json.loads(clip["provenance"] or "{}").get("span_s")
    if span_s is not None and span_s != [clip["start_s"], clip["end_s"]]:
        raise BadVideo("the caption was made for another span; caption the clip again")


def pack_shard(
    plan: ShardPlan,
    clips: Mapping[str, Row],
    folder: Path,
    receipts: Path,
    make: Callable[[Row, Path], Cut],
    also: Callable[[Row, Path, Cut], Row] | None = None,
    settings: str = "",
    retry_failed: bool = False,
) -> Receipt:
    """Writes one shard to `folder` and its receipt to `receipts`; nothing where both are there.

    clips: the rows of the plan's clips, with their captions.  make: cuts a clip to a path or raises
    BadVideo.  also: makes something else from each packed clip (its row, mp4 and cut), while the
    mp4 is at hand; its row goes into the receipt.  settings: what else the shard depends on, as
    text.  retry_failed: packs again a shard that lacks a clip.
    """
    signature = sign(plan, clips, settings)
    done = read_receipt(receipts, plan.name)
    if done and done.signature == signature and not (retry_failed and done.failed):
        path = folder / plan.name
        if (path.stat().st_size if path.exists() else 0) == done.bytes:
            return done
    rows: list[Row] = []
    made: list[Row] = []
    with whole_file(folder / plan.name, durable=True) as out:
        with (
            tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
            tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as scratch,
        ):
            for clip_id in plan.clip_ids:
                row: Row = dict.fromkeys(column.name for column in SHARD)
                row |= {"clip_id": clip_id, "shard": plan.name, "split": plan.split}
                mp4 = Path(scratch) / f"{clip_id}.mp4"
                try:
                    check_caption(clips[clip_id])
                    cut = make(clips[clip_id], mp4)
                    made += [also(clips[clip_id], mp4, cut)] if also else []
                    row |= _add(tar, clips[clip_id], mp4, cut)
                except BadVideo as error:
                    row["error"] = str(error)
                mp4.unlink(missing_ok=True)
                rows.append(row)
        size = out.tell()
        out.seek(0)
        sha256 = hashlib.file_digest(out, "sha256").hexdigest()
    receipt = Receipt(signature, plan.name, size, sha256, rows, made)
    if receipt.failed == len(rows):
        (folder / plan.name).unlink()
        receipt = replace(receipt, bytes=0, sha256=None)
    with whole_file(receipts / f"{plan.name}.json", durable=True) as file:
        file.write(to_json(asdict(receipt)))
    return receipt


def sign(plan: ShardPlan, clips: Mapping[str, Row], settings: str = "") -> str:
    """Of all that decides a shard's bytes: the same signature, the same shard."""
    members = [_known(clips[clip_id]) for clip_id in plan.clip_ids]
    return hashlib.sha256(to_json([settings, plan.name, members])).hexdigest()


def sign_clip(clip: Row, settings: str = "") -> str:
    """Of all that decides what is made of a clip."""
    return hashlib.sha256(to_json([settings, _known(clip)])).hexdigest()


def read_receipt(receipts: Path, name: str) -> Receipt | None:
    path = receipts / f"{name}.json"
    return parse_receipt(path.read_bytes(), str(path)) if path.exists() else None


def parse_receipt(text: bytes, place: str) -> Receipt:
    try:
        return Receipt(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise OutputError(f"{place} is damaged ({error}); delete it and run again") from error


def shards_table(receipts: Iterable[Receipt]) -> pa.Table:
    """OUT/shards.parquet: one row per planned clip, in order of shard and of place in it."""
    ordered = sorted(receipts, key=lambda receipt: receipt.shard)
    rows = [row for receipt in ordered for row in receipt.rows]
    return pa.Table.from_pylist(rows, schema=schema(SHARD))


def _add(tar: tarfile.TarFile, clip: Row, mp4: Path, cut: Cut) -> Row:
    """Adds the clip's two files to the tar; where the mp4 lies in it."""
    text = to_json(sample(clip, cut))
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
        "method": cut.method,
        "codec": cut.codec,
        "num_frames": cut.num_frames,
        "width": cut.width,
        "height": cut.height,
        "clip_s": clip["end_s"] - clip["start_s"],
        "start_error_s": cut.start_error_s,
    }


def _add_member(tar: tarfile.TarFile, name: str, data: BinaryIO, size: int) -> int:
    """Adds one file that tells nothing of when, where and by whom; where the tar ends after it."""
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0
    info.size = size
    tar.addfile(info, data)
    return tar.offset
