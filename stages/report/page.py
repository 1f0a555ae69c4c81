"""report.html: what a run kept, what it rejected, and why. One file: no script, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from curation.atomic import write_atomic
from curation.funnel import Funnel, Rule, count, last_line, word
from curation.progress import duration, shown
from curation.records import CLIP
from curation.stage import OutputError
from stages.report import histogram
from stages.report.examples import Read, groups_against, kept_group
from stages.report.histogram import Limits, number
from stages.report.statistics import MEASURES

LISTED_VIDEOS = 100  # of those that failed
WHAT = {c.name: c.what for c in CLIP}
MEASURED = (
    "Captions by “measured” state only what was measured (light, colours, motion of camera and "
    "subjects, text on screen): no model has looked at the frames."
)


@dataclass(frozen=True)
class Step:
    """One row of the funnel: `lost` of what `remains` before it, as shares of the whole."""

    label: str
    word: str
    n: int
    any: int | None
    kind: str  # whole | lost | failed | kept
    start: float  # 0..100
    width: float


@dataclass(frozen=True)
class Chart:
    score: str
    what: str
    picture: histogram.Histogram | None
    summary: str  # the picture in words
    unmeasured: str


def write_report(
    path: Path,
    videos: pa.Table,
    clips: pa.Table,
    stats: pa.Table,
    policy: Mapping[str, Limits],
    facts: Mapping[str, object],
    ledger: Path,
) -> None:
    """Writes the whole file or none. ledger: the folder that key frames' names start from."""
    html = report_html(videos, clips, stats, policy, facts, lambda name: _read(ledger, name))
    try:
        write_atomic(path, html)
    except OSError as error:
        raise OutputError(f"{path}: the report can't be written: {error.strerror}") from error


def report_html(
    videos: pa.Table,
    clips: pa.Table,
    stats: pa.Table,
    policy: Mapping[str, Limits],
    facts: Mapping[str, object],
    read: Read,
) -> str:
    """The page. Tables as users find them; policy: score -> (min, max); facts: name -> value.

    Columns are counted whole, rows looked at for the samples alone: a million clips take seconds.
    """
    funnel = count(videos, clips)
    few = [c for c in ("start_s", "end_s", "captioner") if c in clips.column_names]
    kept = clips.select(few).filter(pc.equal(clips["status"], "kept"))
    captioners = _captioners(kept)
    failed = videos.filter(pc.equal(videos["status"], "failed"))
    here = Path(__file__).parent
    css = (here / "report.css").read_text("utf-8")
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["count"] = lambda n: f"{n:,}".replace(",", "\u2009")
    return env.get_template("report.html.j2").render(
        css=Markup(css),  # ours
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        funnel=funnel,
        last_line=last_line(funnel),
        n_videos=sum(funnel.videos.values()),
        n_clips=sum(funnel.clips.values()),
        kept_time=duration(_seconds(kept)),
        video_steps=_video_steps(funnel),
        clip_steps=_clip_steps(funnel),
        charts=[c for c in (_chart(s, stats, policy) for s in MEASURES) if c],
        H=histogram,
        captioners=captioners,
        measured=MEASURED if "measured" in captioners else None,
        kept=kept_group(clips, policy, read),
        against=groups_against(clips, policy, read),
        failed=[(shown(v), shown(e, 400)) for v, e in _first(failed, ("video", "error"))],
        facts=[(shown(k, 60), shown(v)) for k, v in facts.items()],
    )


def _read(ledger: Path, name: str) -> bytes:
    path = (ledger / name).resolve()
    if not path.is_relative_to(ledger.resolve()):
        raise OSError(f"{name} lies outside the ledger")
    return path.read_bytes()


def _seconds(clips: pa.Table) -> float:
    return pc.sum(pc.subtract(clips["end_s"], clips["start_s"]), min_count=0).as_py()


def _captioners(kept: pa.Table) -> list[str]:
    found = pc.unique(kept["captioner"]).to_pylist() if "captioner" in kept.column_names else []
    return sorted(shown(name, 80) for name in found if name)


def _first(table: pa.Table, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    rows = table.select(columns).slice(0, LISTED_VIDEOS).to_pylist()
    return [tuple(row[c] for c in columns) for row in rows]


# ---- the funnel ----


def _video_steps(funnel: Funnel) -> list[Step]:
    total = sum(funnel.videos.values())
    lost = [(r, "lost", "duplicate") for r in funnel.duplicate_videos]
    lost += [(r, "failed", "failed") for r in funnel.failed_videos]
    return _steps(("videos", total), lost, ("videos used", funnel.videos["ok"]))


def _clip_steps(funnel: Funnel) -> list[Step]:
    total = sum(funnel.clips.values())
    takes = f" in {funnel.takes} takes" if funnel.takes else ""
    lost = [(r, "lost", word(r.name)) for r in funnel.rejected]
    lost += [(r, "failed", "failed") for r in funnel.failed]
    return _steps((f"clips{takes}", total), lost, ("clips kept", funnel.clips["kept"]))


def _steps(
    whole: tuple[str, int], lost: list[tuple[Rule, str, str]], kept: tuple[str, int]
) -> list[Step]:
    """A bar each for all, for what each rule takes of what is left before it, and for the rest."""
    share = 100 / max(whole[1], 1)
    steps = [Step(*whole[:1], "", whole[1], None, "whole", 0, whole[1] * share)]
    remains = whole[1]
    for r, kind, name in lost:
        remains -= r.first
        any_ = r.any if kind == "lost" and name != "duplicate" else None
        steps.append(Step(r.name, name, r.first, any_, kind, remains * share, r.first * share))
    return [*steps, Step(kept[0], "", kept[1], None, "kept", 0, kept[1] * share)]


# ---- the scores ----


def _chart(score: str, stats: pa.Table, policy: Mapping[str, Limits]) -> Chart | None:
    rows = stats.filter(pc.equal(stats["score"], score)).to_pylist()
    if not rows:
        return None
    by = {row["status"]: row for row in rows}
    limits = policy.get(score, (None, None))
    everyone, kept, rejected = by["all"], by["kept"], by["rejected"]
    picture, summary = None, ""
    if everyone["edges"]:
        picture = histogram.draw(
            everyone["edges"],
            kept["counts"],
            rejected["counts"],
            limits,
        )
        medians = [
            f"{name} {number(row['p50'])}"
            for name, row in (("kept", kept), ("rejected", rejected))
            if row["p50"] is not None
        ]
        summary = "median: " + ", ".join(medians) if medians else ""
    causes = sorted(everyone["null_reasons"], key=lambda cause: -cause[1])
    said = "; ".join(f"{shown(why, 120)} ({n})" for why, n in causes[:3])
    more = f"; {len(causes) - 3} more causes" if len(causes) > 3 else ""
    unmeasured = f"not measured in {everyone['nulls']}: {said}{more}" if causes else ""
    return Chart(score, WHAT.get(score, ""), picture, summary, unmeasured)
