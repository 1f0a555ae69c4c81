"""Score: decodes every video once -> ledger/videos: its cuts and takes, its clips with scores.

    python -m pipelines.score [CONFIG] input=VIDEOS output=OUT [key=value …]

Videos that an earlier run has scored are skipped; a file that changed is scored again. A model that
is switched on later (score.models) scores the stored key frames; no video is decoded for it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import config, records
from curation.cli import print_to_stderr
from curation.funnel import format_skipped
from curation.images import RESCORE
from curation.ledger import Ledger, check_settings, record_settings
from curation.progress import Progress
from curation.runner.cluster import Cluster
from curation.stage import OPEN, PlanError, Row, RunContext, RunError, Stage, check_plan
from curation.storage import Folder
from curation.urls import InputError
from curation.video_list import (
    LIST_SUFFIXES,
    VIDEO_SUFFIXES,
    FileError,
    file_error,
    list_videos,
)
from pipelines.select import costly_scores
from pipelines.settings import (
    ScoreSettings,
    Settings,
    main,
    stop_if_all_failed,
    stop_if_too_many_fail,
    timed_batches,
)
from pipelines.tables import (
    INPUT,
    SKIPPED,
    captions_ledger,
    embeddings_ledger,
    rows_of,
    stream_clips,
    videos_ledger,
)
from stages.scorers.models import Models

LISTED = pa.schema([("video", pa.string()), ("bytes", pa.int64()), ("version", pa.string())])
FILES_PER_PART = 65536  # of the listing that are Python's objects at the same time
SAMPLE_VIDEOS = 5  # a worker that can read none of them is refused
# About; of those that fail the prefilter, for the report. A video of 2 Mbit/s has a clip per
# BYTES_PER_CLIP.
MAX_THUMBNAIL_CLIPS = 5000
BYTES_PER_CLIP = 4_000_000


def build(settings: ScoreSettings) -> list[Stage]:
    """The stages that a video's row passes, in order."""
    decode, text, models = settings.decode, settings.ocr, settings.models
    return [decode, text, *([models] if models.enabled_scorers() else [])]


def make_context(
    settings: ScoreSettings, ledger_url: str, thumbnail_share: float, listed: pa.Table
) -> RunContext:
    """Returns the facts of the run for the stages. listed: the input. Raises PlanError if a model's
    weights are missing."""
    readable = listed.filter(pc.greater_equal(listed["bytes"], 0))
    return RunContext(
        ledger_url,
        thumbnail_share=thumbnail_share,
        weights=settings.models.find_versions(),
        input_sample=tuple(readable["video"][:SAMPLE_VIDEOS].to_pylist()),
    )


def thumbnail_share(sizes: pa.ChunkedArray) -> float:
    """Returns the share of the clips that fail the prefilter which get thumbnails. It depends only
    on the input, so that an interrupted run stores the same ones. sizes: of the videos, in
    bytes."""
    known = pc.sum(sizes.filter(pc.greater(sizes, 0))).as_py() or 0
    return min(1.0, MAX_THUMBNAIL_CLIPS / max(1, len(sizes), known / BYTES_PER_CLIP))


def check(settings: ScoreSettings) -> None:
    """Raises PlanError for a prefilter on costly scores, missing weights or frame pairs."""
    costly = costly_scores(settings)
    if late := [name for name in settings.decode.prefilter if name in costly]:
        raise PlanError(
            f"score.decode.prefilter has rules for {', '.join(late)}, which are computed only"
            " for clips that pass the prefilter\n"
            "  fix: move the rules to select.policy"
        )
    settings.models.find_versions()
    settings.decode.check()
    scorers = settings.models.enabled_scorers()
    pairs = [name for name, scorer in scorers.items() if scorer.needs_frame_pairs]
    if pairs and settings.decode.key_frames.pair_gap_s is None:
        raise PlanError(
            f"score.models.{pairs[0]} reads pairs of frames, and the decode pass stores none\n"
            "  fix: set score.decode.key_frames.pair_gap_s=0.1 and another output, because every "
            "video is decoded again"
        )


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    ledger, embeddings = videos_ledger(out), embeddings_ledger(out)
    skipped = Counter[str]()
    listed = list_input(settings, skipped)
    check(settings.score)
    stages = build(settings.score)
    check_plan(stages, ["video", "bytes", "version"])
    share = thumbnail_share(listed["bytes"])
    context = make_context(settings.score, (out / "ledger").url, share, listed)
    _set_aside_parts_of_removed_output(out)
    check_settings(
        out / "ledger",
        "videos",
        decode_settings(settings.score),
        decode_settings(ScoreSettings()),
        "use these settings, or another output",
    )
    if settings.score.models.enabled_scorers():
        record_settings(out / "ledger", "models", config.as_dict(settings.score.models))
    (out / "ledger").write_table(INPUT, listed)
    names, counts = zip(*skipped.most_common(), strict=True) if skipped else ((), ())
    columns = {"suffix": pa.array(names, pa.string()), "files": pa.array(counts, pa.int64())}
    (out / "ledger").write_table(SKIPPED, pa.table(columns))
    done = _up_to_date_rows(listed, ledger, settings.retry_failed)
    if settings.retry_failed:
        done = _without(done, _videos_with_damaged_frames(settings, out))
    incomplete = _missing_model_scores(done, ledger, settings.score.models, context.weights)
    if len(incomplete):
        damaged = _run_models_only(settings, cluster, context, incomplete, ledger, embeddings)
        done = _without(done, damaged)
    todo = listed.filter(pc.is_null(done["status"]))
    with Progress("score", listed.num_rows, "videos") as progress:
        failed = pc.sum(pc.equal(done["status"], "failed")).as_py() or 0
        progress.update(done=listed.num_rows - todo.num_rows, failed=failed)
        results = cluster.stream(
            stages, new_rows(todo), progress.show_wait_reason, context, progress.print_error
        )
        for batch in timed_batches(_with_status(results, settings.max_failed_share, progress)):
            _commit(batch, ledger, embeddings)
            ledger.compact_if_many()
            embeddings.compact_if_many()
    ledger.compact()
    embeddings.compact()
    stop_if_all_failed(rows_of(listed["video"], ledger.read(["error"]), "video")["error"], "videos")


def _set_aside_parts_of_removed_output(out: Folder) -> None:
    """Moves the parts that a run stored after its output was removed to ledger/removed: they
    describe key frames that are gone. Each run writes these three files before its first part, so
    they are all missing only then, or where somebody copied the parts alone."""
    ledger = out / "ledger"
    if any(ledger.exists(name) for name in (INPUT, SKIPPED, "videos.settings.json")):
        return
    captions = [f"captions/{name}" for name in (ledger / "captions").subfolders()]
    tables = ("videos", "embeddings", *captions)
    parts = [f"{table}/{name}" for table in tables for name in ledger.names(table)]
    if parts:
        print_to_stderr(
            f"{ledger.url} has {len(parts)} files but not the settings of their run: the output "
            "was removed while a run wrote to it, or they were copied alone; they don't count and "
            "are now in ledger/removed"
        )
    for name in parts:
        ledger.write(f"removed/{name}", ledger.read(name))
        ledger.delete(name)


def decode_settings(settings: ScoreSettings) -> Row:
    """The settings on which the whole ledger depends: all but those of models, of which each row
    has the versions of the weights."""
    return {name: value for name, value in config.as_dict(settings).items() if name != "models"}


def _missing_model_scores(
    done: pa.Table, ledger: Ledger, models: Models, versions: Mapping[str, str]
) -> pa.Array:
    """The scored videos whose clips lack scores of an enabled model."""
    if not models.enabled_scorers():
        return pa.array([], pa.string())
    scored = done["video"].filter(pc.equal(done["status"], "ok")).combine_chunks()
    found = []
    for table in ledger.last_batches(["video", "weights"], scored):
        weights = table["weights"].to_pylist()
        missing = [bool(models.missing_scorers({"weights": w}, versions)) for w in weights]
        found.append(table["video"].filter(pa.array(missing)))
    return pa.chunked_array([c for column in found for c in column.chunks], pa.string())


def _run_models_only(
    settings: Settings,
    cluster: Cluster,
    context: RunContext,
    videos: pa.Array,
    ledger: Ledger,
    embeddings: Ledger,
) -> list[str]:
    """Adds the scores of models to videos that are scored; a row that fails is left unchanged.

    With retry_failed, returns the videos whose stored frames are damaged. Raises RunError.
    """
    with Progress("score", len(videos), "videos, by the models alone") as progress:
        rows = _read_rows(ledger, videos)
        results = cluster.stream(
            [settings.score.models], rows, progress.show_wait_reason, context, progress.print_error
        )
        failed: Counter[str] = Counter()
        damaged: list[str] = []
        if settings.retry_failed:
            results = _take_damaged(results, damaged)
        successful = _successful(results, failed, settings.max_failed_share, progress)
        for batch in timed_batches(successful):
            _commit(batch, ledger, embeddings)
    if failed:
        (worst, n), *_ = failed.most_common(1)
        raise RunError(
            f"the models failed on {failed.total()} of {len(videos)} videos: {worst} ({n})\n"
            "  fix: remove the cause and run again; the finished scores are kept"
        )
    return damaged


def _take_damaged(rows: Iterable[Row], damaged: list[str]) -> Iterator[Row]:
    """Yields the other rows; appends the videos with damaged frames."""
    for row in rows:
        if RESCORE in (row["error"] or ""):
            damaged.append(row["video"])
        else:
            yield row


def _videos_with_damaged_frames(settings: Settings, out: Folder) -> list[str]:
    """The videos of clips that could not be captioned because a stored frame is damaged."""
    captions = captions_ledger(out, settings.caption.set_name).read(["error"])
    found = pc.fill_null(pc.match_substring(captions["error"], RESCORE), False)
    clip_ids = captions["clip_id"].filter(found).combine_chunks()
    if not len(clip_ids):
        return []
    videos: list[str] = []
    for clips in stream_clips(out, ["clip_id", "video"]):
        videos += clips["video"].filter(pc.is_in(clips["clip_id"], value_set=clip_ids)).to_pylist()
    return videos


def _without(done: pa.Table, videos: list[str]) -> pa.Table:
    """The table of `_up_to_date_rows`, with nulls for these videos."""
    again = pc.is_in(done["video"], value_set=pa.array(videos, pa.string()))
    null = pa.scalar(None, pa.string())
    return pa.table({"video": done["video"], "status": pc.if_else(again, null, done["status"])})


def _successful(
    rows: Iterable[Row], failed: Counter[str], max_failed_share: float, progress: Progress
) -> Iterator[Row]:
    """Yields the rows without an error; prints the others and counts them in `failed`."""
    for done, row in enumerate(rows, 1):
        progress.update(done=1, failed=int(row["error"] is not None))
        if row["error"] is None:
            yield row
            continue
        failed[row["error"]] += 1
        progress.print_error(f"failed: {row['video']}: {row['error']}")
        stop_if_too_many_fail(failed, done, max_failed_share, "videos")


def _read_rows(ledger: Ledger, videos: pa.Array) -> Iterator[Row]:
    for table in ledger.last_batches(records.schema(records.VIDEO).names, videos):
        for batch in table.to_batches(max_chunksize=100):
            yield from batch.to_pylist()


def _commit(rows: list[Row], ledger: Ledger, embeddings: Ledger) -> None:
    """Embeddings first, so that a row in the ledger has them."""
    embeddings.append([vectors for row in rows for vectors in row.pop("embeddings", [])])
    ledger.append(rows)


def list_input(settings: Settings, skipped: Counter[str] | None = None) -> pa.Table:
    """Columns video, bytes, version: the files of the input, each once. `skipped` counts the other
    files by suffix. Raises InputError."""
    if settings.input is None:
        raise InputError("no input; give input=FOLDER, a video, a pattern or a list")
    skipped = Counter() if skipped is None else skipped
    found, parts = list_videos(settings.input, skipped), []
    while files := list(islice(found, FILES_PER_PART)):
        rows = [(file.video, file.bytes, file.version) for file in files]
        parts.append(pa.table(list(zip(*rows, strict=True)), schema=LISTED))
    if not parts:
        others = f"; files of other kinds: {format_skipped(skipped)}" if skipped else ""
        if settings.input.lower().endswith(LIST_SUFFIXES):
            fix = "write the path or URL of a video on each line"
        else:
            fix = (
                "give a folder with videos. In a folder, only files that end in one of these are "
                f"read: {' '.join(VIDEO_SUFFIXES)}. A list (.txt) or a pattern, as 'in/*', may "
                "name any file"
            )
        raise InputError(f"{settings.input}: no video in it{others}\n  fix: {fix}")
    listed = pa.concat_tables(parts).combine_chunks()
    first = pc.index_in(listed["video"], value_set=listed["video"].combine_chunks())
    return listed.filter(pc.equal(first, pa.array(np.arange(len(first), dtype=np.int32))))


def _up_to_date_rows(listed: pa.Table, ledger: Ledger, retry_failed: bool) -> pa.Table:
    """Columns video and status of the listed files; null where the ledger has no row of the present
    file, or one that is to be tried again."""
    known = ledger.read(["bytes", "version", "status", "sha256"])
    known = rows_of(listed["video"], known, "video")
    up_to_date = pc.and_(
        pc.equal(known["bytes"], listed["bytes"]), pc.equal(known["version"], listed["version"])
    )
    if retry_failed:
        up_to_date = pc.and_(up_to_date, pc.not_equal(known["status"], "failed"))
    # Of an older version: a copy's row is up to date as long as the row of its original is.
    is_copy = pc.equal(known["status"], "duplicate")
    originals = known["sha256"].filter(pc.and_(up_to_date, pc.invert(is_copy))).combine_chunks()
    has_original = pc.is_in(known["sha256"], value_set=originals)
    up_to_date = pc.and_(up_to_date, pc.or_(pc.invert(is_copy), has_original))
    null = pa.scalar(None, pa.string())
    status = pc.if_else(up_to_date, known["status"], null)
    return pa.table({"video": listed["video"], "status": status})


def new_rows(todo: pa.Table) -> Iterator[Row]:
    """The rows to score, those of the largest files first: the last ones then end together. Files
    that are missing have their error already."""
    todo = todo.sort_by([("bytes", "descending"), ("video", "ascending")])
    for batch in todo.to_batches(max_chunksize=1000):
        yield from map(_new_row, batch.to_pylist())


def _new_row(listed: Row) -> Row:
    row: Row = {name: listed[name] for name in ("video", "bytes", "version")}
    error = file_error(listed["bytes"])
    if listed["bytes"] == FileError.UNREACHABLE:
        return row | {"error": None, OPEN: f"{error}: {listed['video']}"}
    return row | {"error": error}


def _with_status(rows: Iterable[Row], max_failed_share: float, progress: Progress) -> Iterator[Row]:
    """Yields the rows with their status, and prints errors. Raises RunError where too many fail."""
    failed = Counter[str]()
    for done, row in enumerate(rows, 1):
        row["status"] = "ok" if row["error"] is None else "failed"
        if row["error"] is not None:
            row |= {"clips": [], "cuts_s": [], "gradual": [], "takes": []}
            failed[row["error"]] += 1
            progress.print_error(f"failed: {row['video']}: {row['error']}")
        progress.update(done=1, failed=int(row["error"] is not None))
        yield row
        stop_if_too_many_fail(failed, done, max_failed_share, "videos")


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
