"""Writes the tables and the report for users from the present ledger."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from curation import config, funnel
from curation.ledger import recorded_settings
from curation.policy import Range
from curation.records import SHARD, schema
from curation.storage import Folder
from pipelines.checksums import update_checksums
from pipelines.outdated import SHARDS
from pipelines.reviews import read_captions
from pipelines.settings import Settings
from pipelines.tables import (
    CLIPS,
    make_clips_table,
    make_videos_table,
    read_clips,
    read_selection,
    read_skipped,
    read_videos,
    recorded_policy,
)
from stages.report.page import report_html
from stages.report.statistics import score_statistics

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


def read_tables(settings: Settings, out: Folder) -> tuple[pa.Table, pa.Table]:
    """The tables of videos and clips for users. Shards are those of the last export."""
    captions = read_captions(out, settings.caption.set_name)
    shards = out.read_table(SHARDS) if out.exists(SHARDS) else schema(SHARD).empty_table()
    clips = make_clips_table(read_clips(out), read_selection(out), captions, shards)
    return make_videos_table(read_videos(out)), clips


def publish(
    out: Folder,
    videos: pa.Table,
    clips: pa.Table,
    made: dict[str, Any],
    facts: dict[str, Any],
) -> str:
    """Writes tables and report. Returns the funnel as text. Raises Unaccounted."""
    counted = funnel.count_rows(videos, clips)
    statistics = score_statistics(clips)
    out.write_table(CLIPS, clips)
    out.write_table("videos.parquet", videos)
    out.write_table("stats.parquet", statistics)
    out.write_table("funnel.parquet", funnel.funnel_table(videos, clips))
    rules = recorded_policy(made["select"]["policy"])
    ranges = {name: rule for name, rule in rules.items() if isinstance(rule, Range)}
    policy = {name: (rule.min, rule.max) for name, rule in ranges.items()}
    skipped = read_skipped(out)
    if skipped:
        facts |= {"files that are no videos": funnel.format_skipped(skipped)}
    page = report_html(videos, clips, statistics, policy, facts, (out / "ledger").read)
    out.write("report.html", page.encode())
    update_checksums(out, PUBLISHED)
    return funnel.format_funnel(counted, skipped)
