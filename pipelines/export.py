"""Export: writes the kept clips to WebDataset shards, and the dataset's tables, report and card.

    python -m pipelines.export [CONFIG] output=OUT [key=value …]

A shard that is up to date is not written again; the same ledger gives the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import config
from curation.funnel import count_values
from curation.partitions import as_bytes
from curation.progress import Progress
from curation.records import SCHEMA_VERSION, SHARD, schema
from curation.runner.cluster import Cluster
from curation.stage import Row, RunContext, RunError
from curation.storage import Folder
from pipelines.checksums import update_checksums
from pipelines.kept_clips import KeptClips, group_rows, read_kept
from pipelines.outdated import MANIFEST, SHARDS, manifest_bytes
from pipelines.publish import PUBLISHED, recorded_config, write_report, write_tables
from pipelines.score import SAMPLE_VIDEOS
from pipelines.settings import KEY_FRAMES, Settings, main, stop_if_all_failed
from pipelines.tables import CLIPS, INPUT, VIDEOS
from stages.export.export_stages import (
    EXTRACTED,
    RECEIPTS,
    ExtractClips,
    PackShard,
    settings_text,
    up_to_date_receipt,
)
from stages.export.presto import meta_tables
from stages.export.shards import ShardPlan, parse_receipt, plan_shards, shards_table
from stages.report.card import dataset_card

PACKAGES = ("av", "numpy", "onnxruntime", "opencv-python-headless", "pyarrow", "rapidocr", "ray")


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    with read_kept(out, settings.caption.set_name) as kept:
        made = recorded_config(settings, out)
        names = _pack(settings, out, cluster, kept)
    hashes, in_presto, skipped = _write_tables_of_shards(settings, out, names)
    _delete_outdated(settings, out, names, in_presto)
    shards = out.read_table(SHARDS, ["shard", "error", "method"])
    written = write_tables(settings, out)
    videos = out.read_table(VIDEOS, ["video", "sha256", "status", "weights"])
    columns = ["status", "video", "split", "duration_s", "width", "height", "fps"]
    table = out.read_table(CLIPS, columns)
    manifest = _manifest(made, videos, table, shards, skipped)
    text = write_report(out, written, made, _facts(settings, manifest))
    card = dataset_card(manifest, out.read_table("funnel.parquet"), videos, table)
    out.write("README.md", card.encode())
    out.write(MANIFEST, manifest_bytes(manifest))
    _write_checksums(out, hashes)
    print(text)
    print(_shard_line(shards, skipped))
    print(f"report: {out.path('report.html')}")
    stop_if_all_failed(shards["error"], "kept clips")


def _pack(settings: Settings, out: Folder, cluster: Cluster, kept: KeptClips) -> list[str]:
    """Packs all shards that are not up to date. Returns the names of all, in order."""
    export = settings.export
    made_with = settings_text(export.presto, export.tone_map)
    counts: dict[str, int] = {}  # of the clips of each video
    plans = plan_shards(
        kept.plan_rows(counts), int(export.shard_mb * 1e6), export.shard_clips, export.seed
    )
    shards = _ShardNumbers(plans)
    with (
        Progress("export", sum(counts.values()), "clips") as progress,
        group_rows(kept.tables(), shards.of, [len(plan.clip_ids) for plan in plans]) as by_shard,
    ):
        todo = set[int]()
        for number, rows in by_shard:
            clips = {row["clip_id"]: row for row in rows}
            retry = settings.retry_failed
            if receipt := up_to_date_receipt(out, plans[number], clips, made_with, retry):
                progress.update(done=len(rows), failed=receipt.failed)
            else:
                todo.add(number)
        is_todo = np.isin(np.arange(len(plans)), sorted(todo))
        chosen = (table.filter(pa.array(is_todo[shards.of(table)])) for table in kept.tables())
        errors = _extract(settings, out, cluster, chosen, counts, progress)
        packing = (_shard(plans[n], rows, errors) for n, rows in by_shard if n in todo)
        pack = PackShard(out.url, export.presto, export.tone_map)
        for row in cluster.stream([pack], packing, progress.show_wait_reason):
            if row["error"] is not None:
                raise RunError(f"{row['plan']['name']} can't be packed: {row['error']}")
    return sorted(plan.name for plan in plans)


def _extract(
    settings: Settings,
    out: Folder,
    cluster: Cluster,
    clips: Iterable[pa.Table],
    counts: dict[str, int],
    progress: Progress,
) -> dict[str, str]:
    """Extracts clips to EXTRACTED, the videos with most clips first. Returns the error of each clip
    that failed, by clip_id. counts: most clips of each video."""
    by_count = sorted(counts, key=lambda video: -counts[video])
    rank = {video: number for number, video in enumerate(by_count)}

    def rank_of(table: pa.Table) -> np.ndarray:
        return np.array([rank[video] for video in table["video"].to_pylist()], np.int64)

    export, errors = settings.export, dict[str, str]()
    extract = ExtractClips(out.url, export.presto, export.tone_map, settings.cluster.memory_gib)
    context = RunContext(input_sample=tuple(counts)[:SAMPLE_VIDEOS])
    with group_rows(clips, rank_of, [counts[video] for video in by_count]) as by_video:
        work = ({"clips": rows, "error": None} for _, rows in by_video)
        for row in cluster.stream(
            [extract], work, progress.show_wait_reason, context, progress.print_error
        ):
            for clip_id in (clip["clip_id"] for clip in row["clips"]):
                result = row["error"] or row["extracted"][clip_id]
                if is_failed := isinstance(result, str):
                    errors[clip_id] = result
                    progress.add_error(f"{clip_id}: {result}")
                progress.update(done=1, failed=int(is_failed))
    return errors


class _ShardNumbers:
    """The number of the shard of each planned clip."""

    def __init__(self, plans: list[ShardPlan]) -> None:
        ids = np.array([i for plan in plans for i in plan.clip_ids], np.bytes_)
        number = np.repeat(np.arange(len(plans), dtype=np.int32), [len(p.clip_ids) for p in plans])
        order = np.argsort(ids)
        self._ids, self._number = ids[order], number[order]

    def of(self, table: pa.Table) -> np.ndarray:
        """Returns (n,) the shard numbers of the clips of a table."""
        return self._number[np.searchsorted(self._ids, as_bytes(table["clip_id"]))]


def _shard(plan: ShardPlan, rows: list[Row], errors: dict[str, str]) -> Row:
    """The row of a shard to pack."""
    clips = {row["clip_id"]: row for row in rows}
    of_shard = {i: errors[i] for i in clips if i in errors}
    return {"plan": asdict(plan), "clips": clips, "errors": of_shard, "error": None}


def _write_tables_of_shards(
    settings: Settings, out: Folder, names: list[str]
) -> tuple[dict[str, str | None], set[str], dict[str, int]]:
    """Writes shards.parquet and the tables of presto/ from the receipts of these shards, which are
    in order. Returns the SHA-256 of each shard, the ids of the clips in presto/, and how many are
    not in it, by reason."""
    hashes: dict[str, str | None] = {}
    in_presto: set[str] = set()
    with ExitStack() as stack:
        file = stack.enter_context(out.table_writer(SHARDS, schema(SHARD)))
        presto = None
        if settings.export.presto:
            presto = stack.enter_context(meta_tables(out / "presto"))
        for name in names:
            path = f"{RECEIPTS}/{name}.json"
            receipt = parse_receipt(out.read(path), out.path(path))
            file.write(shards_table([receipt]))
            hashes[f"shards/{name}"] = receipt.sha256
            if presto is not None:
                presto.add(receipt.extra)
                in_presto.update(row["clip_id"] for row in receipt.extra if "path" in row)
    return hashes, in_presto, dict(presto.skipped) if presto is not None else {}


def _delete_outdated(
    settings: Settings, out: Folder, shards: list[str], in_presto: set[str]
) -> None:
    """Deletes shards, receipts and mp4s of an earlier selection, and unfinished files."""
    out.delete_unfinished(skip=KEY_FRAMES)
    wanted = set(shards)
    outdated = [f"{EXTRACTED}/{n}" for n in out.names(EXTRACTED)]
    outdated += [f"shards/{n}" for n in out.names("shards") if n not in wanted]
    outdated += [
        f"{RECEIPTS}/{n}" for n in out.names(RECEIPTS) if n.removesuffix(".json") not in wanted
    ]
    outdated += [
        f"presto/videos/{n}"
        for n in out.names("presto/videos")
        if n.removesuffix(".mp4") not in in_presto
    ]
    if not settings.export.presto:
        outdated += [f"presto/{n}" for n in out.names("presto")]
    for name in outdated:
        out.delete(name)


def _write_checksums(out: Folder, shards: dict[str, str | None]) -> None:
    """Writes SHA256SUMS, for all files but the mp4s in presto/, whose hashes are in the
    receipts."""
    names = [f"presto/{name}" for name in out.names("presto")]
    update_checksums(out, [*PUBLISHED, SHARDS, MANIFEST, *names], shards)


def _manifest(
    made: dict[str, Any],
    videos: pa.Table,
    clips: pa.Table,
    shards: pa.Table,
    skipped: dict[str, int],
) -> dict[str, Any]:
    """Returns settings, input, versions and counts, without times and paths, so that equal runs
    give equal manifests."""
    listed = sorted(zip(videos["video"].to_pylist(), videos["sha256"].to_pylist(), strict=True))
    return {
        "schema_version": SCHEMA_VERSION,
        "config": made,
        "config_hash": config.digest(made),
        "input_hash": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
        "versions": {"longtake": _version("longtake"), "python": sys.version.split()[0]}
        | {name: _version(name) for name in PACKAGES},
        "videos": {**count_values(videos["status"]), "all": videos.num_rows},
        "clips": {**count_values(clips["status"]), "all": clips.num_rows},
        "splits": count_values(clips["split"].drop_null()),
        "shards": _shard_counts(shards),
        "presto_skipped": skipped,
        "hours_kept": _hours_kept(clips),
        "captioner": made["caption"]["name"],
    }


def _hours_kept(clips: pa.Table) -> float:
    kept = clips.filter(pc.equal(clips["status"], "kept"))
    return round((pc.sum(kept["duration_s"]).as_py() or 0.0) / 3600, 6)


def _shard_counts(shards: pa.Table) -> dict[str, int]:
    whole = shards.filter(pc.is_null(shards["error"]))
    methods = {f"clips_{name}": n for name, n in count_values(whole["method"]).items()}
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
