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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import config
from curation.progress import Progress
from curation.records import SCHEMA_VERSION
from curation.runner.cluster import Cluster
from curation.stage import PlanError, Row, RunContext, RunError
from curation.storage import Folder
from pipelines.checksums import update_checksums
from pipelines.outdated import MANIFEST, SHARDS, manifest_bytes
from pipelines.publish import PUBLISHED, recorded_config, write_report, write_tables
from pipelines.reviews import read_captions
from pipelines.score import SAMPLE_VIDEOS
from pipelines.settings import KEY_FRAMES, Settings, main, stop_if_all_failed
from pipelines.tables import CLIPS, INPUT, VIDEOS, read_clips, read_selection, rows_of
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

PACKAGES = ("av", "numpy", "onnxruntime", "opencv-python-headless", "pyarrow", "rapidocr", "ray")


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    clips, selection = read_clips(out), read_selection(out)
    captions = read_captions(out, settings.caption.set_name)
    made = recorded_config(settings, out)
    rows = _clips_to_pack(clips, selection, captions)
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


def _clips_to_pack(clips: pa.Table, selection: pa.Table, captions: pa.Table) -> list[Row]:
    """The clips to pack: kept, with captions, in order of clip_id."""
    chosen = rows_of(clips["clip_id"], selection, "clip_id")
    captioned = rows_of(clips["clip_id"], captions, "clip_id")
    kept = pc.equal(chosen["status"], "kept")
    if unselected := kept.null_count:
        raise PlanError(f"{unselected} clips are newer than the selection; run longtake select")
    if n := pc.sum(pc.and_(kept, pc.is_null(captioned["clip_id"]))).as_py():
        raise PlanError(f"{n} kept clips have no captions yet; run longtake caption first")
    ready = pc.and_(kept, pc.is_valid(captioned["caption"]))
    known = clips.drop_columns(["fingerprint", "overlay_mask"]).filter(ready).to_pylist()
    splits = chosen["split"].filter(ready).to_pylist()
    texts = captioned.drop_columns(["clip_id", "error", "rejected"]).filter(ready).to_pylist()
    return [
        clip | text | {"split": split}
        for clip, text, split in zip(known, texts, splits, strict=True)
    ]


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
