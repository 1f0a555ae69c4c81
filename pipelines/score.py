"""Score: one decode pass over every video -> ledger/videos, its clips with their scores inside.

    python -m pipelines.score [CONFIG] input=VIDEOS output=OUT [key=value …]

What an earlier run has done is skipped; a file that changed is scored again. A model that is
switched on later (score.models) looks at the stored key frames: no video is decoded for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from curation import config
from curation.ledger import Ledger, check_settings, record_settings
from curation.progress import Progress
from curation.runner.cluster import Cluster
from curation.stage import PlanError, Row, RunContext, RunError, Stage, check_plan
from curation.storage import Folder, InputError, file_error, list_videos
from pipelines.select import costly_scores
from pipelines.settings import ScoreSettings, Settings, batches, main, stop_where_most_fail
from pipelines.tables import INPUT, embeddings_ledger, matched, videos_ledger
from stages.file_hash import HashFile
from stages.scorers.models import Models

SHOW_MANY = 5000  # clips below the prefilter that have pictures for the report, about


def build(settings: ScoreSettings) -> list[Stage]:
    """The list is the architecture."""
    decode, text, models = settings.decode, settings.ocr, settings.models
    return [decode, text, *([models] if models.enabled_scorers() else [])]


def context_of(settings: ScoreSettings, ledger_url: str, thumbnail_share: float) -> RunContext:
    """Raises PlanError where a model's weights are missing."""
    weights = settings.models.find_versions()
    return RunContext(ledger_url, thumbnail_share=thumbnail_share, weights=weights)


def check(settings: ScoreSettings) -> None:
    """Raises PlanError for a prefilter on costly scores or models without weights."""
    costly = costly_scores(settings)
    if late := [name for name in settings.decode.prefilter if name in costly]:
        raise PlanError(
            f"score.decode.prefilter asks for {', '.join(late)}, which are computed only"
            " for clips that pass the prefilter\n"
            "  fix: have the rule in select.policy, where such scores decide"
        )
    settings.models.find_versions()
    settings.decode.check()
    scorers = settings.models.enabled_scorers()
    pairs = [name for name, scorer in scorers.items() if scorer.needs_frame_pairs]
    if pairs and settings.decode.key_frames.pair_gap_s is None:
        raise PlanError(
            f"score.models.{pairs[0]} reads pairs of frames, and the decode pass stores none\n"
            "  fix: set score.decode.key_frames.pair_gap_s=0.1 (in a new output: it takes a decode)"
        )


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    ledger, embeddings = videos_ledger(out), embeddings_ledger(out)
    listed = listed_videos(settings)
    check(settings.score)
    stages, share = build(settings.score), min(1.0, SHOW_MANY / max(1, listed.num_rows))
    context = context_of(settings.score, (out / "ledger").url, share)
    check_plan(stages, ["video", "bytes", "version"])
    check_settings(
        out / "ledger",
        "videos",
        decode_settings(settings.score),
        decode_settings(ScoreSettings()),
        "take these settings back, or give another output",
    )
    if settings.score.models.enabled_scorers():
        record_settings(out / "ledger", "models", config.as_dict(settings.score.models))
    (out / "ledger").write_table(INPUT, listed)
    done = _done(listed, ledger, settings.retry_failed)
    todo = listed.filter(pc.is_null(done["status"]))
    unseen = _unseen(done, ledger, settings.score.models, context.weights)
    with Progress("score", listed.num_rows, "videos") as progress:
        failed = pc.sum(pc.equal(done["status"], "failed")).as_py() or 0
        progress.update(done=listed.num_rows - todo.num_rows, failed=failed)
        todo, known = _without_twins(cluster, listed, done, todo, ledger, progress)
        rows = (row | {"sha256": known.get(row["video"])} for row in blank_rows(todo))
        results = cluster.stream(stages, rows, progress.show_wait_reason, context)
        for batch in batches(_finished(results, settings.max_failed_share, progress)):
            _commit(batch, ledger, embeddings)
    if len(unseen):
        _look(settings, cluster, context, unseen, ledger, embeddings)
    ledger.compact()
    embeddings.compact()


def decode_settings(settings: ScoreSettings) -> Row:
    """The settings that a row hangs on for good. Models may come and go: a row names its own."""
    return {name: of for name, of in config.as_dict(settings).items() if name != "models"}


def _unseen(
    done: pa.Table, ledger: Ledger, models: Models, versions: Mapping[str, str]
) -> pa.Array:
    """The scored videos whose clips some model has not looked at yet."""
    if not models.enabled_scorers():
        return pa.array([], pa.string())
    known = matched(done["video"], ledger.read(["weights"]), "video")["weights"].to_pylist()
    lacks = [bool(models.missing_scorers({"weights": weights}, versions)) for weights in known]
    return done["video"].filter(pc.and_(pc.equal(done["status"], "ok"), pa.array(lacks)))


def _look(
    settings: Settings,
    cluster: Cluster,
    context: RunContext,
    videos: pa.Array,
    ledger: Ledger,
    embeddings: Ledger,
) -> None:
    """The models alone, over clips that are scored already; a row that fails stays as it was."""
    with Progress("score", len(videos), "videos, by the models alone") as progress:
        scored = _scored(ledger, videos)
        results = cluster.stream(
            [settings.score.models], scored, progress.show_wait_reason, context
        )
        failed = Counter[str]()
        for batch in batches(_good(results, failed, settings.max_failed_share, progress)):
            _commit(batch, ledger, embeddings)
    if failed:
        (worst, n), *_ = failed.most_common(1)
        raise RunError(
            f"the models failed on {failed.total()} of {len(videos)} videos: {worst} ({n})\n"
            "  fix: mend the cause and run again; what is scored stays"
        )


def _good(
    rows: Iterable[Row], failed: Counter[str], max_failed_share: float, progress: Progress
) -> Iterator[Row]:
    """The rows without an error; the others are told of and counted in `failed`."""
    for done, row in enumerate(rows, 1):
        progress.update(done=1, failed=int(row["error"] is not None))
        if row["error"] is None:
            yield row
            continue
        failed[row["error"]] += 1
        progress.print_line(f"failed: {row['video']}: {row['error']}")
        stop_where_most_fail(failed, done, max_failed_share, "videos")


def _scored(ledger: Ledger, videos: pa.Array) -> Iterator[Row]:
    """Whole rows of the ledger, a few at a time."""
    table = ledger.read()
    table = table.filter(pc.is_in(table["video"], value_set=videos))
    for batch in table.to_batches(max_chunksize=100):
        yield from batch.to_pylist()


def _commit(rows: list[Row], ledger: Ledger, embeddings: Ledger) -> None:
    """Embeddings first: a row that stands has them."""
    embeddings.append([made for row in rows for made in row.pop("embeddings", [])])
    ledger.append(rows)


def listed_videos(settings: Settings) -> pa.Table:
    """video, bytes, version of the input's files, each once. Raises InputError."""
    if settings.input is None:
        raise InputError("no input; give input=FOLDER, a video, a pattern or a list")
    listed = {v.video: v for v in list_videos(settings.input)}
    if not listed:
        raise InputError(f"{settings.input}: no video in it")
    rows = listed.values()
    return pa.table(
        {
            "video": pa.array(listed, pa.string()),
            "bytes": pa.array((v.bytes for v in rows), pa.int64()),
            "version": pa.array((v.version for v in rows), pa.string()),
        }
    )


def _done(listed: pa.Table, ledger: Ledger, retry_failed: bool) -> pa.Table:
    """For each listed file: video; status and sha256 of its row where that stands, else nulls."""
    known = ledger.read(["bytes", "version", "status", "sha256"])
    known = matched(listed["video"], known, "video")
    stands = pc.and_(
        pc.equal(known["bytes"], listed["bytes"]), pc.equal(known["version"], listed["version"])
    )
    if retry_failed:
        stands = pc.and_(stands, pc.not_equal(known["status"], "failed"))
    # A copy's row stands as long as the row of what it is a copy of does.
    is_copy = pc.equal(known["status"], "duplicate")
    originals = known["sha256"].filter(pc.and_(stands, pc.invert(is_copy)))
    stands = pc.and_(
        stands,
        pc.or_(pc.invert(is_copy), pc.is_in(known["sha256"], value_set=originals.combine_chunks())),
    )
    nothing = pa.scalar(None, pa.string())
    facts = {name: pc.if_else(stands, known[name], nothing) for name in ("status", "sha256")}
    return pa.table({"video": listed["video"], **facts})


def _without_twins(
    cluster: Cluster,
    listed: pa.Table,
    done: pa.Table,
    todo: pa.Table,
    ledger: Ledger,
    progress: Progress,
) -> tuple[pa.Table, dict[str, str]]:
    """What is left to score once copies have their row; the hashes known by now, by file.

    Only files of equal size are read for it; the others can't be equal.
    """
    sizes = pc.value_counts(listed["bytes"])
    shared = sizes.field("values").filter(pc.greater(sizes.field("counts"), 1))
    new_sizes = todo["bytes"].filter(pc.is_in(todo["bytes"], value_set=shared))
    alike = pc.and_(
        pc.is_in(listed["bytes"], value_set=new_sizes.combine_chunks()),
        pc.greater(listed["bytes"], 0),
    )
    group = listed.append_column("sha256", done["sha256"]).append_column("status", done["status"])
    rows = group.filter(alike).to_pylist()
    sha256 = {row["video"]: row["sha256"] for row in rows if row["sha256"]}
    unread = (_blank(row) for row in rows if row["video"] not in sha256)
    for row in cluster.stream([HashFile()], unread, progress.show_wait_reason):
        if row["error"] is None:
            sha256[row["video"]] = row["sha256"]
    twins = _twins(rows, sha256)
    ledger.append(twins)
    progress.update(done=len(twins))
    found = pa.array([row["video"] for row in twins], pa.string())
    return todo.filter(pc.invert(pc.is_in(todo["video"], value_set=found))), sha256


def _twins(rows: list[Row], sha256: dict[str, str]) -> list[Row]:
    """Rows for the new files that are byte for byte another: one that is scored, else the first."""
    first: dict[str, str] = {}
    twins = []
    for row in sorted(rows, key=lambda row: row["status"] in (None, "duplicate")):
        digest = sha256.get(row["video"])
        if digest is None:
            continue
        same = first.setdefault(digest, row["video"])
        if same != row["video"] and row["status"] is None:
            status = {"sha256": digest, "status": "duplicate", "error": f"same bytes as {same}"}
            twins.append(_blank(row) | status | {"clips": []})
    return twins


def blank_rows(todo: pa.Table) -> Iterator[Row]:
    """The rows to score. Files that aren't there have their error already."""
    for batch in todo.to_batches(max_chunksize=1000):
        yield from map(_blank, batch.to_pylist())


def _blank(listed: Row) -> Row:
    error = file_error(listed["bytes"])
    return {name: listed[name] for name in ("video", "bytes", "version")} | {"error": error}


def _finished(rows: Iterable[Row], max_failed_share: float, progress: Progress) -> Iterator[Row]:
    """Rows with their status. Raises RunError where too many fail to be the videos' own fault."""
    failed = Counter[str]()
    for done, row in enumerate(rows, 1):
        row["status"] = "ok" if row["error"] is None else "failed"
        if row["error"] is not None:
            row |= {"clips": [], "cuts_s": [], "gradual": [], "takes": []}
            failed[row["error"]] += 1
            progress.print_line(f"failed: {row['video']}: {row['error']}")
        progress.update(done=1, failed=int(row["error"] is not None))
        yield row
        stop_where_most_fail(failed, done, max_failed_share, "videos")


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
