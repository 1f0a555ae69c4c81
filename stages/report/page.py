"""report.html: what a run kept and rejected, and why. One file without scripts and links."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from markupsafe import Markup

from curation.funnel import Funnel, ReasonCount, short_label, summary_line
from curation.parquet import scan
from curation.progress import format_duration, printable
from curation.records import CLIP
from stages.report import histogram
from stages.report.examples import ReadFile, find_examples
from stages.report.histogram import Histogram, Thresholds, format_value, layout_histogram
from stages.report.statistics import MEASUREMENTS

MAX_FAILED_VIDEOS = 100  # listed on the page
DESCRIPTIONS = {c.name: c.what for c in CLIP}
MEASURED_NOTE = (
    "Captions by “measured” state only measurements (light, colours, motion of camera and "
    "subjects, text on screen). No vision model was used."
)


@dataclass(frozen=True)
class FunnelRow:
    label: str
    short_label: str  # empty where the label contains it
    count: int
    any_reason: int | None  # clips with this among their reasons
    kind: str  # all | lost | failed | kept
    start: float  # of the bar, % of all
    width: float


@dataclass(frozen=True)
class ScoreChart:
    score: str
    description: str
    histogram: Histogram | None
    summary: str
    not_measured: str  # in how many clips, and why


def report_html(
    funnel: Funnel,
    videos: ds.Dataset,
    clips: ds.Dataset,
    stats: pa.Table,
    policy: Mapping[str, Thresholds],
    facts: Mapping[str, object],
    read_file: ReadFile,
) -> str:
    """The page. Tables as in the output; policy: score -> (min, max); facts: name -> value;
    read_file: returns a file of the ledger.

    Counts are by column, and only the examples are read as rows: a million clips take seconds.
    """
    kept_s, kept_videos, captioners = _kept_totals(clips)
    kept, rejected = find_examples(clips, policy, read_file)
    folder = Path(__file__).parent
    css = (folder / "report.css").read_text("utf-8")
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["thousands"] = lambda n: f"{n:,}".replace(",", "\u2009")
    return env.get_template("report.html.j2").render(
        css=Markup(css),  # our own file, so not escaped
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        funnel=funnel,
        summary_line=summary_line(funnel),
        total_videos=sum(funnel.videos.values()),
        total_clips=sum(funnel.clips.values()),
        kept_time=format_duration(kept_s),
        kept_videos=kept_videos,
        video_rows=_video_rows(funnel),
        clip_rows=_clip_rows(funnel),
        charts=[c for c in (_chart(s, stats, policy) for s in MEASUREMENTS) if c],
        geometry=histogram,
        captioners=captioners,
        measured_note=MEASURED_NOTE if "measured" in captioners else None,
        kept=kept,
        rejected=rejected,
        failed=_failed_videos(videos),
        facts=[(printable(k, 60), printable(v)) for k, v in facts.items()],
    )


def _kept_totals(clips: ds.Dataset) -> tuple[float, int, list[str]]:
    """The length of the kept clips, s, the number of their videos, and who wrote their captions."""
    names = ["status", "video", "start_s", "end_s", "captioner"]
    seconds, captioners = 0.0, set[str]()
    videos = [pa.array([], pa.string())]
    for table in scan(clips, [name for name in names if name in clips.schema.names]):
        kept = table.filter(pc.equal(table["status"], "kept"))
        seconds += pc.sum(pc.subtract(kept["end_s"], kept["start_s"]), min_count=0).as_py()
        videos.append(pc.unique(kept["video"]))
        if "captioner" in kept.column_names:
            captioners.update(filter(None, pc.unique(kept["captioner"]).to_pylist()))
    count = pc.count_distinct(pa.chunked_array(videos)).as_py()
    return seconds, count, sorted(printable(name, 80) for name in captioners)


def _failed_videos(videos: ds.Dataset) -> list[tuple[str, str]]:
    """(video, error) of the first ones."""
    rows: list[dict[str, str]] = []
    for table in scan(videos, ["status", "video", "error"]):
        failed = table.filter(pc.equal(table["status"], "failed"))
        rows += failed.slice(0, MAX_FAILED_VIDEOS - len(rows)).to_pylist()
        if len(rows) >= MAX_FAILED_VIDEOS:
            break
    return [(printable(row["video"]), printable(row["error"], 400)) for row in rows]


# ---- the funnel ----


def _video_rows(funnel: Funnel) -> list[FunnelRow]:
    total = sum(funnel.videos.values())
    lost = [(r, "lost", "duplicate") for r in funnel.duplicate_videos]
    lost += [(r, "failed", "failed") for r in funnel.failed_videos]
    return _funnel_rows(("videos", total), lost, ("ok", funnel.videos["ok"]))


def _clip_rows(funnel: Funnel) -> list[FunnelRow]:
    total = sum(funnel.clips.values())
    takes = f" in {funnel.takes} takes" if funnel.takes or funnel.not_decoded else ""
    if funnel.not_decoded:
        takes += f" and {funnel.not_decoded} videos that were not decoded"
    lost = [(r, "lost", short_label(r.name)) for r in funnel.rejected]
    lost += [(r, "failed", "failed") for r in funnel.failed]
    return _funnel_rows((f"clips{takes}", total), lost, ("clips kept", funnel.clips["kept"]))


def _funnel_rows(
    everything: tuple[str, int], lost: list[tuple[ReasonCount, str, str]], kept: tuple[str, int]
) -> list[FunnelRow]:
    """A row for all, one for each rule, and one for what is kept. The bar of a rule shows its share
    at the end of what the rules above it leave.

    everything, kept: label, count.  lost: rule, kind, short label.
    """
    label, remaining = everything
    percent = 100 / max(remaining, 1)
    rows = [FunnelRow(label, "", remaining, None, "all", 0, remaining * percent)]
    for r, kind, short in lost:
        remaining -= r.first
        any_reason = r.any if kind == "lost" else None
        bar = (remaining * percent, r.first * percent)
        short = "" if f" {short} " in f" {r.name} " else short
        rows.append(FunnelRow(r.name, short, r.first, any_reason, kind, *bar))
    return [*rows, FunnelRow(kept[0], "", kept[1], None, "kept", 0, kept[1] * percent)]


# ---- the scores ----


def _chart(score: str, stats: pa.Table, policy: Mapping[str, Thresholds]) -> ScoreChart | None:
    """Returns the histogram of a score; None if the statistics lack the score."""
    rows = stats.filter(pc.equal(stats["score"], score)).to_pylist()
    if not rows:
        return None
    by_status = {row["status"]: row for row in rows}
    everything, kept, rejected = by_status["all"], by_status["kept"], by_status["rejected"]
    drawn, summary = None, ""
    if everything["edges"]:
        drawn = layout_histogram(
            everything["edges"],
            kept["counts"],
            rejected["counts"],
            policy.get(score, (None, None)),
        )
        medians = [
            f"{name} {format_value(row['p50'])}"
            for name, row in (("kept", kept), ("rejected", rejected))
            if row["p50"] is not None
        ]
        summary = "median: " + ", ".join(medians) if medians else ""
    reasons = sorted(everything["null_reasons"], key=lambda reason: -reason[1])
    text = "; ".join(f"{printable(why, 120)} ({n})" for why, n in reasons[:3])
    more = f"; {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
    nulls = f"not measured in {everything['nulls']} clips: {text}{more}" if reasons else ""
    return ScoreChart(score, DESCRIPTIONS.get(score, ""), drawn, summary, nulls)
