"""Plan: what a run would give and cost, from a short trial of `score`; nothing is kept of it.

    python -m pipelines.plan [CONFIG] input=VIDEOS output=OUT [plan.videos=12] [key=value …]

First all settings that can't work, with what mends each; then some of the videos, drawn at random,
are scored as `score` does it, and their counts and costs scaled by bytes to the whole input. Each
estimate comes with the range that 8 of 10 such trials would give.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation import funnel, records
from curation.errors import UserError
from curation.ledger import flatten_clips
from curation.progress import Progress
from curation.runner.cluster import Cluster
from curation.stage import PlanError, Row, check_plan
from curation.storage import Folder, is_url, local_path
from pipelines import score, select
from pipelines.settings import Settings, main
from stages.captioning.vlm import VlmCaptioner
from stages.selection.clip_selection import select_clips
from stages.selection.semantic_duplicates import mean_embeddings

DRAWS = 1000  # of videos out of the trial, with replacement, for the ranges
RANGE = (10, 90)  # percentiles
NONE_SEEN = 2.3  # events expected, at which 1 trial in 10 sees none
PATCH = 28  # px: side of what one image token shows to Qwen2.5-VL
EMBEDDING_BYTES = 768 * 2


@dataclass(frozen=True)
class Estimate:
    """Of the whole input: the likeliest value, and the range of 8 trials in 10."""

    low: float
    value: float
    high: float

    def __str__(self) -> str:
        low, value, high = (f"{v:,.4g}" if v < 1e4 else f"{v:,.0f}" for v in self.row())
        return f"{value} ({low} to {high})"

    def row(self) -> tuple[float, float, float]:
        return self.low, self.value, self.high


def scaled(amounts: np.ndarray, sizes: np.ndarray, total: float) -> Estimate:
    """amounts, sizes: (V,) of the trial's videos; total: the size of all.

    Ratio of sums: long videos count as what they are. Range: bootstrap over the videos, fixed seed;
    a trial of all of them leaves none.
    """
    value = amounts.sum() / sizes.sum() * total
    if sizes.sum() >= total:
        return Estimate(value, value, value)
    drawn = np.random.default_rng(0).integers(0, len(sizes), (DRAWS, len(sizes)))
    ratios = amounts[drawn].sum(1) / sizes[drawn].sum(1) * total
    low, high = np.percentile(ratios, RANGE)
    return Estimate(float(low), float(value), float(high))


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    problems = impossible(settings, out)
    if problems:
        raise PlanError("this can't run:\n" + "\n".join(problems))
    print(report(settings, out, cluster))


def impossible(settings: Settings, out: Folder) -> list[str]:
    """Everything that would stop a run with these settings, each with its mend."""
    checks: list[Callable[[], object]] = [
        lambda: select.check(settings, out, will_score=True),
        lambda: score.check(settings.score),
        settings.caption.chosen.check,
    ]
    found = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def report(settings: Settings, out: Folder, cluster: Cluster) -> str:
    """The trial, and what follows from it."""
    listed = score.listed_videos(settings)
    rng = np.random.default_rng(0)
    count = min(settings.plan.videos, listed.num_rows)
    chosen = listed.take(np.sort(rng.choice(listed.num_rows, count, replace=False)))
    trial = out / "plan"
    try:
        rows = _score(settings, cluster, chosen, trial)
        kept = _select(settings, rows)
        stored = [_stored(row, trial) for row in rows]
    finally:
        if not is_url(trial.url):
            shutil.rmtree(local_path(trial.url), ignore_errors=True)
    sizes = np.array([max(row["bytes"], 1) for row in rows], float)
    total = float(np.maximum(listed["bytes"].to_numpy(), 1).sum())
    failed = np.array([row["error"] is not None for row in rows], float)
    clips = [[c for c in row["clips"] if c["clip_id"] in kept] for row in rows]

    def of(amounts: list[float]) -> Estimate:
        return scaled(np.array(amounts, float), sizes, total)

    def count_of(counts: list[float]) -> Estimate:
        found = of(counts)  # none seen in the trial: there may be some for all that
        unseen = NONE_SEEN / sizes.sum() * total if count < listed.num_rows else 0.0
        return Estimate(0.0, 0.0, unseen) if not any(counts) else found

    models = settings.score.models
    gpu_share = {"Models": models.gpus, "DecodePass": settings.score.decode.needs.gpus}
    kept_clips = count_of([len(c) for c in clips])
    disk = of(
        [a + sum(c["packet_bytes"] or 0 for c in b) for a, b in zip(stored, clips, strict=True)]
    )
    lines = [
        f"trial: {count} of {listed.num_rows} videos, {sizes.sum() / 1e9:.3g} of "
        f"{total / 1e9:.3g} GB; in brackets the range of 8 such trials in 10",
        f"videos that fail     {scaled(failed, np.ones(count), listed.num_rows)}",
        f"hours of video       {of([(row.get('duration_s') or 0) / 3600 for row in rows])}",
        f"takes                {of([len(row.get('takes') or []) for row in rows])}",
        f"clips                {of([len(row['clips']) for row in rows])}",
        f"  kept               {kept_clips}   near-duplicates among those not tried aside",
        *_reasons(rows, kept),
        f"CPU hours to score   {of([_hours(row, gpu_share, on_gpu=False) for row in rows])}",
        f"GPU hours to score   {of([_hours(row, gpu_share, on_gpu=True) for row in rows])}",
        *_captions(settings, clips, of),
        f"GB on disk           {Estimate(*(v / 1e9 for v in disk.row()))}   key frames, shards",
    ]
    if not is_url(out.url):
        free = shutil.disk_usage(local_path(out.url)).free
        if disk.high > free:
            lines.append(f"WARNING: {out.url} has room for {free / 1e9:.3g} GB; free some first")
    return "\n".join(lines)


def _score(settings: Settings, cluster: Cluster, chosen: pa.Table, trial: Folder) -> list[Row]:
    stages = score.build(settings.score)
    context = score.context_of(settings.score, trial.url, thumbnail_share=0.0)
    check_plan(stages, ["video", "bytes", "version"])
    rows, blank = [], score.blank_rows(chosen)
    with Progress("plan", chosen.num_rows, "videos") as progress:
        for row in cluster.stream(stages, blank, progress.show_wait_reason, context):
            row.setdefault("clips", [])
            rows.append(row)
            progress.update(done=1, failed=int(row["error"] is not None))
    return sorted(rows, key=lambda row: row["video"])


def _select(settings: Settings, rows: list[Row]) -> set[str]:
    """The clips that the policy keeps. Same bytes twice are the same clips: they count once."""
    whole = {row["sha256"]: row for row in rows if row["error"] is None}
    videos = pa.Table.from_pylist(list(whole.values()), records.schema(records.VIDEO))
    clips = flatten_clips(videos)
    made = [embedding for row in rows for embedding in row.get("embeddings", [])]
    embeddings = pa.Table.from_pylist(made, records.schema(records.EMBEDDING))
    chosen = select_clips(
        clips,
        settings.select.policy,
        semantic_similarity=settings.select.semantic_similarity,
        embeddings=mean_embeddings([embeddings], clips["clip_id"]),
        seed=settings.select.seed,
    )
    for row in rows:
        if row["error"] is None and whole[row["sha256"]] is not row:
            row["clips"] = []
    reasons = dict(zip(chosen["clip_id"].to_pylist(), chosen["reason"].to_pylist(), strict=True))
    for row in rows:
        for clip in row["clips"]:
            clip["reason"] = reasons[clip["clip_id"]]
    return {clip_id for clip_id, reason in reasons.items() if reason is None}


def _reasons(rows: list[Row], kept: set[str]) -> list[str]:
    """The commonest reasons of the trial's clips."""
    clips = [clip for row in rows for clip in row["clips"]]
    against = [c["reason"] for c in clips if c["clip_id"] not in kept]
    names = funnel.normalize_reasons(pa.chunked_array([pa.array(against, pa.string())])).to_pylist()
    return [f"    {n / len(clips):5.1%} {name}" for name, n in Counter(names).most_common(6)]


def _hours(row: Row, gpu_share: dict[str, float], *, on_gpu: bool) -> float:
    """Of a CPU, or of a whole GPU: a worker holds its share for as long as it works."""
    took = row.get("took_s", {})
    if on_gpu:
        return sum(seconds * gpu_share.get(name, 0) for name, seconds in took.items()) / 3600
    return sum(took.values()) / 3600


def _captions(
    settings: Settings, clips: list[list[Row]], of: Callable[[list[float]], Estimate]
) -> list[str]:
    captioner = settings.caption.chosen
    if not isinstance(captioner, VlmCaptioner):
        return []
    segments = settings.score.decode.segments
    calls = (2 if captioner.refine else 1) * segments + 1
    side = captioner.image_side
    tokens = round(side / PATCH) * round(side * 9 / 16 / PATCH)  # of one picture of 16:9
    counts = [float(len(c)) for c in clips]
    beside = (
        settings.score.decode.frame_samples * segments
    )  # shown once, key frames in every request
    shown = calls * segments + beside
    return [
        f"captions: requests   {of([n * calls for n in counts])}",
        f"  picture tokens     {of([n * shown * tokens for n in counts])}   {tokens} a picture at "
        f"{PATCH} px a token; cached prefixes: {segments + beside} of {shown} computed",
        f"  answer tokens      {of([n * calls * captioner.max_tokens for n in counts])}   at most",
    ]


def _stored(row: Row, trial: Folder) -> float:
    """Bytes of its key frames and embeddings."""
    names = [s.get(f) for c in row["clips"] for s in c["segments"] for f in STORED]
    neighbours = [n["file"] for c in row["clips"] for s in c["segments"] for n in _beside(s)]
    kept = sum(len(e["key_frames"]) for e in row.get("embeddings", []))
    return kept * EMBEDDING_BYTES + sum(trial.size(n) for n in [*names, *neighbours] if n)


STORED = ("key_frame", "next_frame")


def _beside(segment: Row) -> list[Row]:
    return segment.get("frame_samples") or []


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
