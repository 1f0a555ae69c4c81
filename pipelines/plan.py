"""Plan: estimates what a run would keep and cost, from scoring a few videos; keeps no result.

    python -m pipelines.plan [CONFIG] input=VIDEOS output=OUT [plan.videos=12] [key=value …]

First it checks all settings, and lists each problem with its fix. Then it reads the headers of up
to 200 videos, drawn at random, in less than a minute, and estimates hours of video, the largest
possible number of clips, cost and disk space. Then it scores some videos (plan.videos=0: none), and
scales their counts and costs by bytes to the whole input. Each estimate has the range that 8 of 10
such trials would give.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pyarrow as pa

from curation import funnel, records
from curation.errors import UserError
from curation.ledger import flatten_clips
from curation.progress import Progress
from curation.runner.cluster import Cluster
from curation.stage import OutputError, PlanError, Row, check_plan
from curation.storage import Folder
from curation.urls import is_url, local_path
from pipelines import score, select
from pipelines.headers import Estimate, estimate_total, header_report
from pipelines.settings import Settings, main
from pipelines.subset import inside_where, reads_captions
from stages.captioning.vlm import VlmCaptioner
from stages.selection.clip_selection import select_clips
from stages.selection.semantic_duplicates import mean_embeddings

MAX_EXPECTED_IF_NONE = 2.3  # with more expected events, less than 1 trial in 10 would have none
IMAGE_TOKEN_PX = 28  # side of the image area of one token, of Qwen2.5-VL
EMBEDDING_BYTES = 768 * 2


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    problems = find_problems(settings, out)
    if problems:
        raise PlanError("this can't run:\n" + "\n".join(problems))
    listed = score.list_input(settings)
    print(header_report(settings, listed), flush=True)
    if settings.plan.videos:
        print(make_report(settings, out, cluster, listed))


def find_problems(settings: Settings, out: Folder) -> list[str]:
    """The message of each check that a run with these settings would fail."""
    checks: list[Callable[[], object]] = [
        lambda: select.check(settings, out, will_score=True),
        lambda: score.check(settings.score),
        settings.caption.chosen.check,
    ]
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return problems


def make_report(settings: Settings, out: Folder, cluster: Cluster, listed: pa.Table) -> str:
    """Scores a trial of the listed input. Returns the estimates as text."""
    rng = np.random.default_rng(0)
    count = min(settings.plan.videos, listed.num_rows)
    chosen = listed.take(np.sort(rng.choice(listed.num_rows, count, replace=False)))
    trial = out / "plan"
    try:
        rows = _score(settings, cluster, chosen, trial)
        kept = _select(settings, rows)
        stored = [_stored(row, trial) for row in rows]
    finally:
        with suppress(OutputError):  # the estimates count more
            trial.delete_all()
    sizes = np.array([max(row["bytes"], 1) for row in rows], float)
    total = float(np.maximum(listed["bytes"].to_numpy(), 1).sum())
    failed = np.array([row["error"] is not None for row in rows], float)
    clips = [[c for c in row["clips"] if c["clip_id"] in kept] for row in rows]

    def of(amounts: list[float]) -> Estimate:
        return estimate_total(np.array(amounts, float), sizes, total)

    def count_of(counts: list[float]) -> Estimate:
        if any(counts):
            return of(counts)
        # None in the trial; the other videos may have some.
        high = MAX_EXPECTED_IF_NONE / sizes.sum() * total if count < listed.num_rows else 0.0
        return Estimate(0.0, 0.0, high)

    stages = score.build(settings.score)
    gpu_share = {type(stage).__name__: stage.needs.gpus for stage in stages}
    kept_clips = count_of([len(c) for c in clips])
    packed = [sum(c["packet_bytes"] or 0 for c in of_video) for of_video in clips]
    stored_bytes = [a + b for a, b in zip(stored, packed, strict=True)]
    lines = [
        f"trial: {count} of {listed.num_rows} videos, {sizes.sum() / 1e9:.3g} of "
        f"{total / 1e9:.3g} GB; in brackets the range of 8 in 10 such trials",
        f"videos that fail     {estimate_total(failed, np.ones(count), listed.num_rows)}",
        f"hours of video       {of([(row.get('duration_s') or 0) / 3600 for row in rows])}",
        f"takes                {of([len(row.get('takes') or []) for row in rows])}",
        f"clips                {of([len(row['clips']) for row in rows])}   with the shorter ones: "
        f"a take below {settings.score.decode.clip_s:g} s or a video that is not decoded has one",
        f"  kept               {kept_clips}   not counting near-duplicates among other videos",
        *_reasons(rows, kept),
        f"CPU hours to score   {of([_hours(row, gpu_share, on_gpu=False) for row in rows])}",
        f"GPU hours to score   {of([_hours(row, gpu_share, on_gpu=True) for row in rows])}",
        *_captions(settings, clips, of),
        f"GB on disk           {of([b / 1e9 for b in stored_bytes])}   key frames, shards",
    ]
    if not is_url(out.url):
        free = shutil.disk_usage(local_path(out.url)).free
        if of(stored_bytes).high > free:
            lines.append(f"WARNING: {out.url} has room for {free / 1e9:.3g} GB; free some first")
    return "\n".join(lines)


def _score(settings: Settings, cluster: Cluster, chosen: pa.Table, trial: Folder) -> list[Row]:
    stages = score.build(settings.score)
    context = score.make_context(settings.score, trial.url, 0.0, chosen)
    check_plan(stages, ["video", "bytes", "version"])
    rows, new = [], score.new_rows(chosen)
    with Progress("plan", chosen.num_rows, "videos") as progress:
        for row in cluster.stream(
            stages, new, progress.show_wait_reason, context, progress.print_error
        ):
            if row["error"] is not None:  # maybe of a stage after the decode pass
                row |= {"clips": [], "takes": []}
            rows.append(row)
            progress.update(done=1, failed=int(row["error"] is not None))
    return sorted(rows, key=lambda row: row["video"])


def _select(settings: Settings, rows: list[Row]) -> set[str]:
    """The clip_ids that the policy keeps. The clips of files with the same bytes count once."""
    scored = {row["sha256"] or row["video"]: row for row in rows if row["error"] is None}
    videos = pa.Table.from_pylist(list(scored.values()), records.schema(records.VIDEO))
    clips = flatten_clips(videos)
    vectors = [embedding for row in rows for embedding in row.get("embeddings", [])]
    embeddings = pa.Table.from_pylist(vectors, records.schema(records.EMBEDDING))
    where = settings.select.where
    by_caption = where is not None and reads_captions(where)  # no captions in a trial
    chosen = select_clips(
        clips,
        settings.select.policy,
        semantic_similarity=settings.select.semantic_similarity,
        embeddings=mean_embeddings([embeddings], clips["clip_id"]),
        seed=settings.select.seed,
        inside=None if by_caption or where is None else inside_where(settings.select, [clips])[0],
    )
    for row in rows:
        if row["error"] is None and scored[row["sha256"] or row["video"]] is not row:
            row["clips"] = []
    reasons = dict(zip(chosen["clip_id"].to_pylist(), chosen["reason"].to_pylist(), strict=True))
    for row in rows:
        for clip in row["clips"]:
            clip["reason"] = reasons[clip["clip_id"]]
    return {clip_id for clip_id, reason in reasons.items() if reason is None}


def _reasons(rows: list[Row], kept: set[str]) -> list[str]:
    """Lines of the most frequent reasons against the trial's clips."""
    clips = [clip for row in rows for clip in row["clips"]]
    against = [c["reason"] for c in clips if c["clip_id"] not in kept]
    names = funnel.normalize_reasons(pa.chunked_array([pa.array(against, pa.string())])).to_pylist()
    return [f"    {n / len(clips):5.1%} {name}" for name, n in Counter(names).most_common(6)]


def _hours(row: Row, gpu_share: dict[str, float], *, on_gpu: bool) -> float:
    """Hours of one CPU, or of a whole GPU of which a worker reserves a share."""
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
    tokens = round(side / IMAGE_TOKEN_PX) * round(side * 9 / 16 / IMAGE_TOKEN_PX)  # at 16:9
    counts = [float(len(c)) for c in clips]
    samples = settings.score.decode.frame_samples * segments  # in one request each
    images = calls * segments + samples  # key frames are in every request
    return [
        f"captions: requests   {of([n * calls for n in counts])}",
        f"  image tokens       {of([n * images * tokens for n in counts])}   {tokens} an image at "
        f"{IMAGE_TOKEN_PX} px a token; cached prefixes: {segments + samples} of {images} computed",
        f"  answer tokens      {of([n * calls * captioner.max_tokens for n in counts])}   at most",
    ]


def _stored(row: Row, trial: Folder) -> float:
    """Bytes of the stored frames and embeddings of a video's clips."""
    segments = [segment for clip in row["clips"] for segment in clip["segments"]]
    files = [segment.get(name) for segment in segments for name in ("key_frame", "next_frame")]
    files += [sample["file"] for s in segments for sample in s.get("frame_samples") or []]
    vectors = sum(len(e["key_frames"]) for e in row.get("embeddings", []))
    return vectors * EMBEDDING_BYTES + sum(trial.size(file) for file in files if file)


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
