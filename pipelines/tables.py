"""Reads the tables of a ledger, and builds from them the tables for users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from curation import records
from curation.funnel import rules_of
from curation.ledger import ADDED_LATER, VIDEO_COLUMNS, Ledger, flatten_clips
from curation.parquet import scan
from curation.partitions import Partitions, hash_bounds, scratch_partitions
from curation.policy import Policy
from curation.records import CAPTION_SCORES, FIELD_NAMES
from curation.stage import PlanError
from curation.storage import Folder
from stages.selection.semantic_duplicates import mean_embeddings

if TYPE_CHECKING:
    import pyarrow.dataset as ds

INPUT = "input.parquet"  # the files of the last `score`
SKIPPED = "skipped.parquet"  # files of its folders that are no videos, by suffix
SELECTION = "selection.parquet"
CLIPS, VIDEOS = "clips.parquet", "videos.parquet"  # the tables for users
COPY = "same bytes as"  # begin of the error of a video whose clips are those of another one

_NO_TEXTS = pa.scalar([], pa.list_(pa.string()))

# Columns whose meaning in the tables for users differs from that in the ledger.
PUBLIC_CLIP = (
    records.Column("status", pa.string(), "kept | rejected | failed"),
    records.Column(
        "rule", pa.string(), "the first rule that it failed: a column of the policy, or another one"
    ),
    records.Column("rules", pa.list_(pa.string()), "the rule of each of `reasons`, in their order"),
    records.Column("shard", pa.string(), "name of the tar that holds it, or null"),
)
PUBLIC_VIDEO = (
    records.Column("takes", pa.int32(), "number of takes; null if it was not decoded"),
    records.Column("take_spans", pa.list_(records.SPAN), "takes, without their guard frames"),
    records.Column("clips", pa.int32(), "number of clips"),
)


def recorded_policy(rules: dict[str, Any]) -> Policy:
    """The policy in recorded settings."""
    return TypeAdapter(Policy).validate_python(rules)


def videos_ledger(out: Folder) -> Ledger:
    return Ledger(out / "ledger", "videos", records.schema(records.VIDEO), "video")


def embeddings_ledger(out: Folder) -> Ledger:
    schema = records.schema(records.EMBEDDING)
    fix = "delete it and all of ledger/videos: every video is then scored again"
    return Ledger(out / "ledger", "embeddings", schema, "clip_id", fix)


def captions_ledger(out: Folder, captioner: str) -> Ledger:
    schema = records.schema(records.CAPTION)
    return Ledger(out / "ledger", f"captions/{captioner}", schema, "clip_id")


def scan_selection(out: Folder, columns: list[str]) -> Iterator[pa.Table]:
    """Returns these columns of the selection, some rows at a time. Raises PlanError where there is
    none."""
    ledger = out / "ledger"
    if not ledger.exists(SELECTION):
        raise PlanError(f"{out.url} holds no selection; run longtake select first")
    return scan(ledger.dataset(SELECTION), columns)


def videos_of_input(out: Folder) -> pa.Table:
    """video, status, sha256 and original, in order of video, of the input of the last `score`.

    original: of a video with the bytes of another one, the first of them, whose clips count; else
    null. Raises PlanError.
    """
    ledger = out / "ledger"
    if not ledger.exists(INPUT):
        raise PlanError(f"{out.url} holds no scored videos; run longtake score first")
    videos = videos_ledger(out).read(["status", "sha256"])
    listed = ledger.read_table(INPUT, ["video"])["video"].combine_chunks()
    videos = videos.filter(pc.is_in(videos["video"], value_set=listed))
    scored = pc.and_(pc.equal(videos["status"], "ok"), pc.is_valid(videos["sha256"]))
    hashes = pc.if_else(scored, videos["sha256"], None)
    first = videos["video"].take(pc.index_in(hashes, value_set=hashes.combine_chunks()))
    is_copy = pc.and_(scored, pc.not_equal(first, videos["video"]))
    return videos.append_column("original", pc.if_else(is_copy, first, None))


def stream_videos(out: Folder, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of the videos of the input, some at a time, in no order. `clips.NAME` is a field of
    the clips. A video with the bytes of another one has the status `duplicate`, and no clips.

    Raises PlanError.
    """
    videos = videos_of_input(out)
    copies = videos.filter(pc.is_valid(videos["original"])).select(["video", "original"])
    needed = ["video", "status", "error", *columns]
    for table in videos_ledger(out).last_batches(
        list(dict.fromkeys(needed)), videos["video"].combine_chunks()
    ):
        yield _without_copies(table, copies)


def _without_copies(videos: pa.Table, copies: pa.Table) -> pa.Table:
    original = rows_of(videos["video"], copies, "video")["original"] if len(copies) else None
    if original is None or original.null_count == len(original):
        return videos
    is_copy = pc.is_valid(original)
    error = pc.binary_join_element_wise(COPY, original, " ")
    videos = videos.set_column(
        videos.column_names.index("status"),
        "status",
        pc.if_else(is_copy, "duplicate", videos["status"]),
    ).set_column(
        videos.column_names.index("error"), "error", pc.if_else(is_copy, error, videos["error"])
    )
    for name in {"clips", "takes"}.intersection(videos.column_names):
        values = pc.if_else(is_copy, pa.scalar([], videos[name].type), videos[name])
        videos = videos.set_column(videos.column_names.index(name), name, values)
    return videos


def read_videos(out: Folder, columns: list[str]) -> pa.Table:
    """All rows of `stream_videos`, in order of video."""
    needed = list(dict.fromkeys(["video", "status", "error", *columns]))
    parts = [videos_ledger(out).empty(needed), *stream_videos(out, columns)]
    return pa.concat_tables(parts).sort_by("video")


def read_not_decoded(out: Folder, columns: list[str]) -> pa.Table:
    """The rows of these videos that header rules reject. Raises PlanError."""
    videos = read_videos(out, ["status", "num_frames", *columns])
    is_scored = pc.equal(videos["status"], "ok")
    return videos.filter(pc.and_(is_scored, pc.is_null(videos["num_frames"]))).select(columns)


def read_skipped(out: Folder) -> dict[str, int]:
    """Suffix -> files in the input's folders that were not read, most frequent first."""
    if not (out / "ledger").exists(SKIPPED):  # scored by an older version
        return {}
    rows = (out / "ledger").read_table(SKIPPED).to_pylist()
    return {row["suffix"]: row["files"] for row in rows}


def stream_clips(out: Folder, columns: Iterable[str]) -> Iterator[pa.Table]:
    """These columns of all clips of these videos, some at a time, in no order. Raises PlanError.

    columns: of records.CLIP, and VIDEO_COLUMNS. The type of `fingerprint` is large_binary.
    """
    of_video = [name for name in columns if name in VIDEO_COLUMNS]
    of_clip = [f"clips.{name}" for name in columns if name not in VIDEO_COLUMNS]
    for videos in stream_videos(out, [*of_video, *of_clip]):
        clips = flatten_clips(videos).select(list(columns))
        if "fingerprint" in clips.column_names:  # binary's offsets end at 2 GB
            place = clips.column_names.index("fingerprint")
            large = clips["fingerprint"].cast(pa.large_binary())
            clips = clips.set_column(place, "fingerprint", large)
        if clips.num_rows:
            yield clips


CLIP_COLUMNS = (*VIDEO_COLUMNS, *(column.name for column in records.CLIP))
SMALL_CLIP_COLUMNS = [n for n in CLIP_COLUMNS if n not in ("fingerprint", "overlay_mask")]


def clip_schema(columns: Iterable[str]) -> pa.Schema:
    """Returns the schema of the tables of `stream_clips`."""
    types = {c.name: c.type for c in (*records.VIDEO, *records.CLIP)}
    types["fingerprint"] = pa.large_binary()
    return pa.schema([(name, types[name]) for name in columns])


def read_clips(out: Folder, columns: Iterable[str] = CLIP_COLUMNS) -> pa.Table:
    """These columns of all clips of these videos, in order of clip_id. Raises PlanError."""
    columns = list(dict.fromkeys(["clip_id", *columns]))
    empty = clip_schema(columns).empty_table()
    return pa.concat_tables([empty, *stream_clips(out, columns)]).sort_by("clip_id")


@contextmanager
def clip_partitions(out: Folder) -> Iterator[Partitions]:
    """Scratch partitions of tables by clip_id, for as many clips as the ledger has."""
    clips = sum(
        pc.sum(pc.list_value_length(table["clips"])).as_py() or 0
        for table in videos_ledger(out).batches(["clips.clip_id"])
    )
    with scratch_partitions("clip_id", hash_bounds(clips)) as partitions:
        yield partitions


def read_embeddings(out: Folder, clip_id: pa.ChunkedArray) -> np.ndarray:
    """(n, D) `mean_embeddings` of these clips. Raises PlanError for those of several models."""
    ledger = embeddings_ledger(out)
    models = pc.unique(rows_of(clip_id, ledger.read(["model"]), "clip_id")["model"]).drop_null()
    if len(models) > 1:
        raise PlanError(
            f"{out.url}: the clips' embeddings are of {len(models)} models: "
            f"{', '.join(sorted(models.to_pylist()))}; select.semantic_similarity needs one\n"
            "  fix: run longtake score with score.models.clip.weights, which computes all "
            "with these weights, or set select.semantic_similarity=null"
        )
    parts = ledger.batches(["clip_id", "model", "key_frames"])
    of_model = (part.filter(pc.is_in(part["model"], value_set=models)) for part in parts)
    return mean_embeddings(of_model, clip_id)


def open_clips(out: Folder) -> ds.Dataset:
    """OUT/clips.parquet. Raises PlanError where there is none."""
    if not out.exists(CLIPS):
        raise PlanError(f"{out.url} has no {CLIPS}; expected the output of longtake curate")
    return out.dataset(CLIPS)


def written_by_older_version(out: Folder) -> PlanError:
    return PlanError(
        f"{out.url} was written by an older version\n"
        f"  fix: longtake select CONFIG output={out.url}, which writes its tables again"
    )


def rows_of(ids: pa.ChunkedArray, table: pa.Table, key: str) -> pa.Table:
    """The table's row of each id, nulls where it has none. (Arrow's own joins refuse lists.)"""
    place = pc.index_in(ids, value_set=table[key].combine_chunks())
    return table.take(place)


def make_clips_table(
    clips: pa.Table, selection: pa.Table, captions: pa.Table, shards: pa.Table
) -> pa.Table:
    """OUT/clips.parquet: each clip with its status, scores, captions and shard.

    A kept clip whose captions or export failed is `failed`, with that error as its reason.
    """
    chosen = rows_of(clips["clip_id"], selection, "clip_id")
    captioned = rows_of(clips["clip_id"], captions, "clip_id")
    kept = pc.equal(chosen["status"], "kept")
    packed = rows_of(clips["clip_id"], shards, "clip_id")
    error = pc.coalesce(
        pc.binary_join_element_wise("caption failed", captioned["error"], ": "),
        pc.binary_join_element_wise("export failed", packed["error"], ": "),
    )
    shard = pc.if_else(pc.is_null(packed["error"]), packed["shard"], None)
    failed = pc.and_(kept, pc.is_valid(error))
    reason = pc.if_else(failed, error, chosen["reason"])
    reasons = [r if r is None else [r] for r in pc.if_else(failed, error, None).to_pylist()]
    columns = {
        "clip_id": clips["clip_id"],
        "video": clips["video"],
        "start_s": clips["start_s"],
        "end_s": clips["end_s"],
        "status": pc.if_else(failed, "failed", chosen["status"]),
        "reason": reason,
        "reasons": pc.coalesce(pa.array(reasons, pa.list_(pa.string())), chosen["reasons"]),
        "rule": rules_of(pc.if_else(failed, None, chosen["reason"]).combine_chunks()),
        "rules": rules_of(pc.if_else(failed, _NO_TEXTS, chosen["reasons"]).combine_chunks()),
    }
    for name in records.SCORE_NAMES:
        columns[name] = clips[name]
    for name in CAPTION_SCORES:
        columns[name] = captioned[name]
    for name in ("caption", "sub_captions", "captioner"):
        columns[name] = captioned[name]
    columns["field_null_reasons"] = _field_null_reasons(captioned)
    columns["split"] = pc.if_else(kept, chosen["split"], None)
    columns["shard"] = pc.if_else(kept, shard, None)
    measured = ("take", "duration_s", "num_frames", "width", "height", "fps", *records.TAG_NAMES)
    for name in (*measured, "prefilter", "null_reasons", "segments"):
        columns[name] = clips[name]
    columns["null_reasons"] = _null_reasons_of_nulls(columns)
    known = (*PUBLIC_CLIP, *records.CLIP, *records.SELECTION, *records.CAPTION, *records.VIDEO)
    return records.described(pa.table(columns), known)


def _null_reasons_of_nulls(columns: dict[str, pa.ChunkedArray]) -> pa.MapArray:
    """`null_reasons` without those of scores that were measured later, as captions are."""
    known = columns["null_reasons"]
    rows, names, reasons = records.null_reason_entries(known)
    is_null = np.ones(len(rows), bool)
    for score in records.SCORE_NAMES:
        entry = np.flatnonzero(pc.equal(names, score))
        is_null[entry] = pc.is_null(columns[score].take(pa.array(rows[entry]))).to_numpy()
    offsets = np.cumsum([0, *np.bincount(rows[is_null], minlength=len(known))])
    names, reasons = names.filter(pa.array(is_null)), reasons.filter(pa.array(is_null))
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), names, reasons)


def _field_null_reasons(captions: pa.Table) -> pa.ChunkedArray:
    """The column; in rows that are older than it, each field has the reason ADDED_LATER."""
    is_older = pc.and_(
        pc.is_valid(captions["sub_captions"]), pc.is_null(captions["field_null_reasons"])
    )
    reasons = pa.scalar(dict.fromkeys(FIELD_NAMES, ADDED_LATER), records.NULL_REASONS)
    return pc.if_else(is_older, reasons, captions["field_null_reasons"])


def make_videos_table(videos: pa.Table) -> pa.Table:
    """OUT/videos.parquet: each input file with its status, cuts and numbers of takes and clips."""
    # without cpu_s: it differs between equal runs
    videos = videos.drop_columns(["cpu_s"]).append_column("take_spans", videos["takes"])
    for name in ("takes", "clips"):
        count = pc.list_value_length(videos[name])
        videos = videos.set_column(videos.column_names.index(name), name, count)
    order = [
        *("video", "status", "error", "duration_s", "width", "height", "fps", "codec"),
        *records.TAG_NAMES,
        *("cuts_s", "gradual", "takes", "clips"),
    ]
    videos = videos.select([*order, *(c for c in videos.column_names if c not in order)])
    return records.described(videos, (*PUBLIC_VIDEO, *records.VIDEO))
