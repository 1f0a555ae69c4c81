"""Export: writes the kept clips to WebDataset shards, and the dataset's tables, report and card.

    python -m pipelines.export [CONFIG] output=OUT [key=value …]

A shard that is up to date is not written again; the same ledger gives the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import config
from curation.partitions import as_bytes
from curation.progress import Progress
from curation.records import SCHEMA_VERSION
from curation.runner.cluster import Cluster
from curation.stage import PlanError, Row, RunContext, RunError
from curation.storage import Folder, scan
from pipelines.checksums import update_checksums
from pipelines.outdated import MANIFEST, SHARDS, manifest_bytes
from pipelines.publish import PUBLISHED, recorded_config, write_report, write_tables
from pipelines.reviews import read_captions
from pipelines.score import SAMPLE_VIDEOS
from pipelines.settings import KEY_FRAMES, Settings, main, stop_if_all_failed
from pipelines.tables import (
    CLIP_COLUMNS,
    CLIPS,
    INPUT,
    SELECTION,
    VIDEOS,
    clip_schema,
    rows_of,
    stream_clips,
)
from stages.export.export_stages import (
    EXTRACTED,
    RECEIPTS,
    ExtractClips,
    PackShard,
    settings_text,
    up_to_date_receipt,
)
from stages.export.presto import write_meta_tables
from stages.export.shards import Receipt, ShardPlan, plan_shards, shards_table
from stages.report.card import dataset_card

SPLITS = ("train", "validation")
PACKAGES = ("av", "numpy", "onnxruntime", "opencv-python-headless", "pyarrow", "rapidocr", "ray")


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    clips = _read_kept(out)
    captions = read_captions(out, settings.caption.set_name)
    made = recorded_config(settings, out)
    rows = _clips_to_pack(clips, captions)
    plans = plan_shards(
        rows, int(settings.export.shard_mb * 1e6), settings.export.shard_clips, settings.export.seed
    )
    receipts = _pack(settings, out, cluster, plans, {row["clip_id"]: row for row in rows})
    _delete_outdated(out, plans, receipts)
    shards = shards_table(receipts)
    out.write_table(SHARDS, shards)
    skipped = _write_presto(settings, out, receipts)
    written = write_tables(settings, out)
    videos = out.read_table(VIDEOS, ["video", "sha256", "status", "weights"])
    columns = ["status", "split", "duration_s", "width", "height", "fps"]
    table = out.read_table(CLIPS, columns)
    manifest = _manifest(made, videos, table, shards, skipped)
    text = write_report(out, written, made, _facts(settings, manifest))
    card = dataset_card(manifest, out.read_table("funnel.parquet"), videos, table)
    out.write("README.md", card.encode())
    out.write(MANIFEST, manifest_bytes(manifest))
    _write_checksums(out, receipts)
    print(text)
    print(_shard_line(shards, skipped))
    print(f"report: {out.path('report.html')}")
    stop_if_all_failed(shards["error"], "kept clips")


def _read_kept(out: Folder) -> pa.Table:
    """The kept clips with their `split`, in order of clip_id, without their large columns."""
    selection = SelectedIds.read(out)
    columns = [name for name in CLIP_COLUMNS if name not in ("fingerprint", "overlay_mask")]
    parts = [clip_schema(columns).append(pa.field("split", pa.string())).empty_table()]
    unselected = 0
    for clips in stream_clips(out, columns):
        split, is_known = selection.split_of(clips["clip_id"])
        unselected += len(is_known) - int(is_known.sum())
        parts.append(clips.append_column("split", split).filter(pc.is_valid(split)))
    if unselected:
        raise PlanError(f"{unselected} clips are newer than the selection; run longtake select")
    return pa.concat_tables(parts).sort_by("clip_id")


@dataclass(frozen=True)
class SelectedIds:
    """The selection: about 30 bytes of memory a clip."""

    ids: np.ndarray  # sorted bytes
    split: np.ndarray  # of SPLITS: an index, -1 where the clip is not kept

    @classmethod
    def read(cls, out: Folder) -> SelectedIds:
        if not (out / "ledger").exists(SELECTION):
            raise PlanError(f"{out.url} holds no selection; run longtake select first")
        ids, split = [np.empty(0, "S1")], [np.empty(0, np.int8)]
        for table in scan((out / "ledger").dataset(SELECTION), ["clip_id", "split"]):
            ids.append(as_bytes(table["clip_id"]))
            index = pc.index_in(table["split"], value_set=pa.array(SPLITS))
            split.append(pc.fill_null(index, -1).to_numpy().astype(np.int8))
        names = np.concatenate(ids)
        order = np.argsort(names)
        return cls(names[order], np.concatenate(split)[order])

    def split_of(self, clip_id: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
        """(n,) the split of each clip, null where it is not kept; and whether it is selected."""
        if not len(self.ids):
            return pa.nulls(len(clip_id), pa.string()), np.zeros(len(clip_id), bool)
        names = as_bytes(clip_id)
        place = np.minimum(np.searchsorted(self.ids, names), len(self.ids) - 1)
        is_known = self.ids[place] == names
        index = np.where(is_known, self.split[place], -1)
        return pa.array(SPLITS).take(pa.array(index, mask=index < 0)), is_known


def _clips_to_pack(clips: pa.Table, captions: pa.Table) -> list[Row]:
    """The clips to pack: those of the kept ones that have captions, in order of clip_id."""
    captioned = rows_of(clips["clip_id"], captions, "clip_id")
    if n := captioned["clip_id"].null_count:
        raise PlanError(f"{n} kept clips have no captions yet; run longtake caption first")
    ready = pc.is_valid(captioned["caption"])
    known = clips.filter(ready).to_pylist()
    texts = captioned.drop_columns(["clip_id", "error", "rejected"]).filter(ready).to_pylist()
    return [clip | text for clip, text in zip(known, texts, strict=True)]


def _pack(
    settings: Settings,
    out: Folder,
    cluster: Cluster,
    plans: list[ShardPlan],
    clips: dict[str, Row],
) -> list[Receipt]:
    presto, tone_map, retry = (
        settings.export.presto,
        settings.export.tone_map,
        settings.retry_failed,
    )
    made_with = settings_text(presto, tone_map)
    found = [(plan, up_to_date_receipt(out, plan, clips, made_with, retry)) for plan in plans]
    receipts = [receipt for _, receipt in found if receipt]
    todo = [plan for plan, receipt in found if not receipt]
    with Progress("export", len(clips), "clips") as progress:
        for receipt in receipts:
            progress.update(done=len(receipt.rows), failed=receipt.failed)
        extracted: dict[str, Any] = {}
        work = _by_video([clips[i] for plan in todo for i in plan.clip_ids])
        extract = ExtractClips(out.url, presto, tone_map, settings.cluster.memory_gib)
        videos = dict.fromkeys(clip["video"] for clip in clips.values())
        context = RunContext(input_sample=tuple(videos)[:SAMPLE_VIDEOS])
        for row in cluster.stream(
            [extract], work, progress.show_wait_reason, context, progress.print_error
        ):
            for clip_id in (clip["clip_id"] for clip in row["clips"]):
                result = row["error"] or row["extracted"][clip_id]
                extracted[clip_id] = result
                if isinstance(result, str):
                    progress.add_error(f"{clip_id}: {result}")
                progress.update(done=1, failed=int(isinstance(result, str)))
        packing = (_shard(plan, clips, extracted) for plan in todo)
        pack = PackShard(out.url, presto, tone_map)
        for row in cluster.stream([pack], packing, progress.show_wait_reason):
            if row["error"] is not None:
                raise RunError(f"{row['plan']['name']} can't be packed: {row['error']}")
            receipts.append(Receipt(**row["receipt"]))
    return receipts


def _by_video(clips: list[Row]) -> Iterator[Row]:
    """A row per video, with its clips; those with the most clips first."""
    of_video: dict[str, list[Row]] = {}
    for clip in clips:
        of_video.setdefault(clip["video"], []).append(clip)
    for of_one in sorted(of_video.values(), key=len, reverse=True):
        yield {"clips": of_one, "error": None}


def _shard(plan: ShardPlan, clips: dict[str, Row], extracted: dict[str, Any]) -> Row:
    """The row of a shard to pack."""
    members = {i: clips[i] for i in plan.clip_ids}
    receipts = {i: extracted[i] for i in members}
    return {"plan": asdict(plan), "clips": members, "extracted": receipts, "error": None}


def _delete_outdated(out: Folder, plans: list[ShardPlan], receipts: list[Receipt]) -> None:
    """Deletes shards, receipts and mp4s of an earlier selection, and unfinished files."""
    out.delete_unfinished(skip=KEY_FRAMES)
    wanted = {plan.name for plan in plans}
    outdated = [f"{EXTRACTED}/{n}" for n in out.names(EXTRACTED)]
    packed = {row["clip_id"] for receipt in receipts for row in receipt.extra if "path" in row}
    outdated += [f"shards/{n}" for n in out.names("shards") if n not in wanted]
    outdated += [
        f"{RECEIPTS}/{n}" for n in out.names(RECEIPTS) if n.removesuffix(".json") not in wanted
    ]
    outdated += [
        f"presto/videos/{n}"
        for n in out.names("presto/videos")
        if n.removesuffix(".mp4") not in packed
    ]
    if not packed:
        outdated += [f"presto/{n}" for n in out.names("presto")]
    for name in outdated:
        out.delete(name)


def _write_presto(settings: Settings, out: Folder, receipts: list[Receipt]) -> dict[str, int]:
    """Writes the tables of presto/. Returns how many clips are not in it, by reason."""
    if not settings.export.presto:
        return {}
    rows = [row for receipt in receipts for row in receipt.extra]
    if out.is_local:
        return write_meta_tables(rows, Path(out.url) / "presto")
    with tempfile.TemporaryDirectory() as scratch:
        skipped = write_meta_tables(rows, Path(scratch))
        for file in Path(scratch).iterdir():
            out.upload(f"presto/{file.name}", file)
    return skipped


def _write_checksums(out: Folder, receipts: list[Receipt]) -> None:
    """Of all files for users but the mp4s in presto/, of which the shards' receipts have them."""
    names = [f"presto/{name}" for name in out.names("presto")]
    shards = {f"shards/{receipt.shard}": receipt.sha256 for receipt in receipts}
    update_checksums(out, [*PUBLISHED, SHARDS, MANIFEST, *names], shards)


def _manifest(
    made: dict[str, Any],
    videos: pa.Table,
    clips: pa.Table,
    shards: pa.Table,
    skipped: dict[str, int],
) -> dict[str, Any]:
    """Settings, input, versions and counts. Without times and paths: equal runs give equal ones."""
    listed = sorted(zip(videos["video"].to_pylist(), videos["sha256"].to_pylist(), strict=True))
    return {
        "schema_version": SCHEMA_VERSION,
        "config": made,
        "config_hash": config.digest(made),
        "input_hash": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
        "versions": {"longtake": _version("longtake"), "python": sys.version.split()[0]}
        | {name: _version(name) for name in PACKAGES},
        "videos": _counts(videos["status"]) | {"all": videos.num_rows},
        "clips": _counts(clips["status"]) | {"all": clips.num_rows},
        "splits": _counts(clips["split"].drop_null()),
        "shards": _shard_counts(shards),
        "presto_skipped": skipped,
        "hours_kept": _hours_kept(clips),
        "captioner": made["caption"]["name"],
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {c["values"]: c["counts"] for c in pc.value_counts(column).to_pylist()}


def _hours_kept(clips: pa.Table) -> float:
    kept = clips.filter(pc.equal(clips["status"], "kept"))
    return round((pc.sum(kept["duration_s"]).as_py() or 0.0) / 3600, 6)


def _shard_counts(shards: pa.Table) -> dict[str, int]:
    whole = shards.filter(pc.is_null(shards["error"]))
    methods = {f"clips_{name}": n for name, n in _counts(whole["method"]).items()}
    return {"shards": len(pc.unique(whole["shard"])), "clips": whole.num_rows} | methods


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _facts(settings: Settings, manifest: dict[str, Any]) -> dict[str, Any]:
    counts = manifest["shards"]
    return {
        "input": settings.input or f"see ledger/{INPUT}",
        "captioner": manifest["captioner"],
        "shards": counts["shards"],
        "stream-copied clips": counts.get("clips_copy", 0),
        "re-encoded clips": counts.get("clips_encode", 0),
        "config hash": manifest["config_hash"],
        "input hash": manifest["input_hash"][:16],
        **{f"version of {name}": v for name, v in manifest["versions"].items()},
    }


def _shard_line(shards: pa.Table, skipped: dict[str, int]) -> str:
    counts = _shard_counts(shards)
    line = (
        f"{counts['clips']} clips in {counts['shards']} shards: "
        f"{counts.get('clips_copy', 0)} stream-copied, {counts.get('clips_encode', 0)} re-encoded"
    )
    if skipped:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(skipped.items()))
        line += f"; not in presto/: {reasons}"
    return line


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
