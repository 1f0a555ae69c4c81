"""Writes the tables and the report for users from the present ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import config, funnel, records
from curation.cli import print_to_stderr
from curation.ledger import recorded_settings
from curation.parquet import scan
from curation.partitions import ROWS_PER_RANGE, as_bytes, scratch_partitions
from curation.policy import Range
from curation.storage import Folder
from pipelines.checksums import update_checksums
from pipelines.outdated import SHARDS, exported_captions
from pipelines.reviews import stream_captions
from pipelines.settings import Settings
from pipelines.tables import (
    CLIPS,
    VIDEOS,
    clip_partitions,
    clip_schema,
    make_clips_table,
    make_videos_table,
    read_skipped,
    recorded_policy,
    scan_selection,
    stream_clips,
    stream_videos,
    videos_ledger,
    videos_of_input,
)
from stages.report.page import report_html
from stages.report.statistics import score_statistics

# Large columns of a clip, which the table for users lacks.
NOT_PUBLISHED = ("fingerprint", "overlay_mask", "borders")
PUBLISHED_CLIP_COLUMNS = [
    "video",
    *(column.name for column in records.CLIP if column.name not in NOT_PUBLISHED),
]
PUBLISHED_VIDEO_COLUMNS = [
    *(column.name for column in records.VIDEO if column.name != "clips"),
    "clips.clip_id",  # to count the clips
]
PUBLISHED = ("clips.parquet", "videos.parquet", "stats.parquet", "funnel.parquet", "report.html")


def recorded_config(settings: Settings, out: Folder) -> dict[str, Any]:
    """The settings of each phase as it ran; of one that has not run, those of this command."""
    now, ledger, name = config.as_dict(settings), out / "ledger", settings.caption.set_name
    score = recorded_settings(ledger, "videos") or now["score"]
    captions = recorded_settings(ledger, f"captions/{name}")
    return {
        "score": score | {"models": recorded_settings(ledger, "models")},
        "select": recorded_settings(ledger, "selection") or now["select"],
        "caption": {"name": name, **(captions or settings.caption.chosen.provenance())},
        "export": now["export"],
    }


@dataclass(frozen=True)
class WrittenTables:
    """What is known of the tables of clips and videos once they are written."""

    counter: funnel.RowCounter
    not_in_shards: int  # kept clips


def write_tables(settings: Settings, out: Folder) -> WrittenTables:
    """Writes the tables of clips and videos. Shards are those of the last export.

    Raises Unaccounted."""
    name = settings.caption.set_name
    before = exported_captions(out)
    if before not in (None, name):
        print_to_stderr(f"captions in the tables: {name}, before {before}")
    counter, not_in_shards = funnel.RowCounter(), 0
    with (
        out.table_writer(CLIPS, clips_schema()) as clips_file,
        out.table_writer(VIDEOS, _videos_schema()) as videos_file,
    ):
        for clips in _clips_tables(settings, out):
            counter.add_clips(clips)
            kept = clips.filter(pc.equal(clips["status"], "kept"))
            not_in_shards += kept["shard"].null_count
            clips_file.write(clips)
        for videos in _videos_tables(out):
            counter.add_videos(videos)
            videos_file.write(videos)
        counter.funnel()  # before the files appear
    return WrittenTables(counter, not_in_shards)


def write_report(
    out: Folder, written: WrittenTables, made: dict[str, Any], facts: dict[str, Any]
) -> str:
    """Writes the other tables and the report. Returns the funnel as text."""
    counted = written.counter.funnel()
    statistics = score_statistics(out.dataset(CLIPS))
    out.write_table("stats.parquet", statistics)
    out.write_table("funnel.parquet", written.counter.table())
    rules = recorded_policy(made["select"]["policy"])
    ranges = {name: rule for name, rule in rules.items() if isinstance(rule, Range)}
    policy = {name: (rule.min, rule.max) for name, rule in ranges.items()}
    skipped = read_skipped(out)
    if skipped:
        facts |= {"files that are no videos": funnel.format_skipped(skipped)}
    tables = out.dataset(VIDEOS), out.dataset(CLIPS)
    page = report_html(counted, *tables, statistics, policy, facts, (out / "ledger").read)
    out.write("report.html", page.encode())
    update_checksums(out, PUBLISHED)
    return funnel.format_funnel(counted, skipped)


def _clips_tables(settings: Settings, out: Folder) -> Iterator[pa.Table]:
    """OUT/clips.parquet, table by table. Raises PlanError where there is no selection."""
    tables = {
        "clips": (clip_schema(PUBLISHED_CLIP_COLUMNS), stream_clips(out, PUBLISHED_CLIP_COLUMNS)),
        "selection": (
            records.schema(records.SELECTION),
            scan_selection(out, [c.name for c in records.SELECTION]),
        ),
        "captions": (
            records.schema(records.CAPTION),
            stream_captions(out, settings.caption.set_name),
        ),
        "shards": (
            records.schema(records.SHARD),
            scan(out.dataset(SHARDS), [c.name for c in records.SHARD])
            if out.exists(SHARDS)
            else [],
        ),
    }
    with clip_partitions(out) as partitions:
        for name, (schema, parts) in tables.items():
            partitions.write(parts, {name: schema.names})
        for number in range(len(partitions)):
            found = [partitions.read(n, number, schema) for n, (schema, _) in tables.items()]
            yield make_clips_table(*found)


def _videos_tables(out: Folder) -> Iterator[pa.Table]:
    """OUT/videos.parquet, table by table."""
    names = videos_of_input(out)["video"]
    bounds = as_bytes(names.take(pa.array(range(0, len(names), ROWS_PER_RANGE))))[1:]
    schema = videos_ledger(out).empty(PUBLISHED_VIDEO_COLUMNS).schema
    with scratch_partitions("video", bounds) as partitions:
        partitions.write(stream_videos(out, PUBLISHED_VIDEO_COLUMNS), {"videos": schema.names})
        for number in range(len(partitions)):
            yield make_videos_table(partitions.read("videos", number, schema))


def clips_schema() -> pa.Schema:
    """Returns the schema of clips.parquet."""
    others = [
        records.schema(columns).empty_table()
        for columns in (records.SELECTION, records.CAPTION, records.SHARD)
    ]
    return make_clips_table(clip_schema(PUBLISHED_CLIP_COLUMNS).empty_table(), *others).schema


def _videos_schema() -> pa.Schema:
    return make_videos_table(records.schema(records.VIDEO).empty_table()).schema
