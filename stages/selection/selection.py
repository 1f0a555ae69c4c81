"""Which clips enter the dataset, and on which side of the split: one row per clip, no decode.

`select` before captioning; `select_captioned` adds what the captions tell against a kept clip.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.policy import Policy, by_row, decide_table
from stages.selection import duplicates, semantic

CAPTION_SCORES = tuple(c.name for c in records.CAPTION if c.name in records.SCORE_NAMES)
SCHEMA = records.schema(records.SELECTION)
RANKED = ("clip_id", "width", "height", "duration_s", "sharpness", "packet_bytes")


def select(
    clips: pa.Table,
    policy: Policy,
    *,
    semantic_similarity: float | None = None,
    vectors: np.ndarray | None = None,
    seed: int = 0,
    validation_share: float = 0.05,
) -> pa.Table:
    """A row of records.SELECTION per clip, whatever the order of the clips.

    clips: records.CLIP with `sha256` of its source (`ledger.flatten_clips`). Rules about captions
    wait for `select_captioned`. Of near-duplicates among the clips that pass the policy, the best
    is kept: see `ranks`. With a `semantic_similarity`, of those left that show the same by their
    vectors (`semantic.vectors`, a row per clip as given) too; one without a vector is rejected. The
    split goes by source: `validation_share` of the groups of sources that are linked by a pair of
    duplicates, or of clips that show the same; at least one on each side where there are two.
    """
    needed = [*RANKED, "sha256", "null_reasons", *policy]
    order = pc.sort_indices(clips["clip_id"])
    prints = clips["fingerprint"].cast(pa.large_binary())  # binary's offsets end at 2 GB
    clips = clips.select([c for c in dict.fromkeys(needed) if c in clips.column_names]).take(order)
    reasons = decide_table(clips, policy.without(CAPTION_SCORES))
    passed = np.flatnonzero(pc.list_value_length(reasons).to_numpy() == 0)
    passing = clips.take(pa.array(passed))
    source = _numbers(passing["sha256"])
    of_passing = duplicates.prints(prints.take(order.take(pa.array(passed))))
    rank = ranks(passing)
    twin, edges = duplicates.duplicates(of_passing, source, rank)
    reasons = _and(reasons, passed[twin >= 0], _named("duplicate of", passing, twin))
    kept = np.flatnonzero(twin < 0)
    if semantic_similarity is not None:
        assert vectors is not None
        rows = order.to_numpy()[passed[kept]]
        seen = ~np.isnan(vectors[rows, 0])
        unseen, kept = passed[kept[~seen]], kept[seen]
        reasons = _and(reasons, unseen, np.full(len(unseen), "embeddings not measured"))
        same, links = semantic.alike(vectors[rows[seen]], rank[kept], semantic_similarity)
        texts = _named("shows the same as", passing.take(pa.array(kept)), same)
        reasons = _and(reasons, passed[kept[same >= 0]], texts)
        edges = np.concatenate([edges, kept[links]])
        kept = kept[same < 0]

    split = np.full(clips.num_rows, None, object)
    held_out = _held_out(passing["sha256"], source, edges, kept, seed, validation_share)
    split[passed[kept]] = np.where(held_out[kept], "validation", "train")
    assert len(pc.unique(clips["clip_id"])) == clips.num_rows, "a clip stands in the table twice"
    return _table(clips["clip_id"], reasons, pa.array(split, pa.string()))


def select_captioned(selection: pa.Table, captions: pa.Table, policy: Policy) -> pa.Table:
    """The selection, with what the captions tell against a kept clip: it is rejected then.

    captions: records.CAPTION. A kept clip without captions (not written yet, or failed with an
    `error`, which makes the clip a failed one) is left as it is. What was rejected stays so.
    """
    policy = policy.without([name for name in policy if name not in CAPTION_SCORES])
    captions = captions.filter(pc.is_null(captions["error"]))
    at = pc.index_in(selection["clip_id"], captions["clip_id"].combine_chunks()).to_numpy()
    has = np.flatnonzero(~np.isnan(at) & pc.equal(selection["status"], "kept").to_numpy())
    theirs = captions.take(pa.array(at[has].astype(np.int64)))
    failed_check = theirs["rejected"].to_numpy()
    checked = np.flatnonzero(pc.is_valid(theirs["rejected"]).to_numpy())
    reasons = _and(selection["reasons"].combine_chunks(), has[checked], failed_check[checked])
    ruled = decide_table(theirs, policy)
    rows = has[pc.list_parent_indices(ruled).to_numpy()]
    reasons = _and(reasons, rows, pc.list_flatten(ruled).to_numpy(zero_copy_only=False))
    return _table(selection["clip_id"], reasons, selection["split"])


def to_caption(selection: pa.Table) -> pa.Array:
    """clip_id of what is kept, or rejected for its captions alone: another set may do better."""
    reasons = selection["reasons"].combine_chunks()
    about = rf"^(caption|{'|'.join(CAPTION_SCORES)}) "
    others = pc.invert(pc.match_substring_regex(pc.list_flatten(reasons), about))
    out = pc.unique(pc.list_parent_indices(reasons).filter(others))
    return (
        selection["clip_id"]
        .combine_chunks()
        .filter(pc.invert(pc.is_in(pa.array(np.arange(len(reasons))), value_set=out)))
    )


def ranks(clips: pa.Table) -> np.ndarray:
    """(n,) place of each clip when near-duplicates compete, 0 the best.

    The larger picture, then the sharper one, then more bytes per second, then the longer, then
    clip_id. Sharpness and bytes are the source's means, not the clip's, so that of two copies of a
    video one wins all along, and shifted spans of both don't keep each other out by turns.
    """
    source = _numbers(clips["sha256"])
    area = _floats(clips["width"]) * _floats(clips["height"])
    seconds = _floats(clips["duration_s"])
    sharpness = _mean_of(source, _floats(clips["sharpness"]))
    rate = _mean_of(source, _floats(clips["packet_bytes"]) / np.maximum(seconds, 1e-3))
    order = np.lexsort((_numbers(clips["clip_id"]), -seconds, -rate, -sharpness, -area))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def _held_out(
    sha256: pa.ChunkedArray,
    source: np.ndarray,
    edges: np.ndarray,
    kept: np.ndarray,
    seed: int,
    share: float,
) -> np.ndarray:
    """(n,) bool: whether the clip is for validation. Hangs on the sources and the seed alone."""
    if not len(source):
        return np.zeros(0, bool)
    group = duplicates.groups(source[edges], int(source.max()) + 1)[source]
    # A group's draw is its first hash's: `_numbers` counts in the order of the hashes.
    names = pc.unique(sha256).sort().to_pylist()
    drawn = np.array([_draw(name, seed) for name in names])[group]
    out = drawn < share
    sides = np.unique(drawn[kept])
    if share <= 0 or len(sides) < 2:
        return out
    if not out[kept].any():
        return drawn == sides[0]
    return drawn < sides[-1] if out[kept].all() else out


def _draw(name: str, seed: int) -> float:
    """A number in [0, 1) from a name and a seed, the same on any machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _numbers(names: pa.ChunkedArray) -> np.ndarray:
    """(n,) int64: each name's place among the sorted distinct names."""
    distinct = pc.unique(names).sort()
    return pc.index_in(names, distinct).to_numpy().astype(np.int64)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.nan_to_num(column.cast(pa.float64()).to_numpy())  # not measured: 0, ranks last


def _mean_of(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) the mean of the values in each one's group. Rounded: a sum hangs on its order."""
    total, count = np.bincount(group, values), np.bincount(group)
    return np.round(total / np.maximum(count, 1), 6)[group]


def _named(what: str, clips: pa.Table, twin: np.ndarray) -> np.ndarray:
    """The reason of each clip that has a twin (not -1)."""
    names = clips["clip_id"].take(pa.array(twin[twin >= 0])).to_pylist()
    return np.array([f"{what} {name}" for name in names], object)


def _and(reasons: pa.ListArray, rows: np.ndarray, texts: np.ndarray) -> pa.ListArray:
    """The lists with one more text at the end of each given row's."""
    all_rows = np.concatenate([pc.list_parent_indices(reasons).to_numpy(), rows])
    values = pa.concat_arrays([pc.list_flatten(reasons), pa.array(texts, pa.string())])
    return by_row(all_rows, values, len(reasons))


def _table(clip_id: pa.ChunkedArray, reasons: pa.ListArray, split: pa.Array) -> pa.Table:
    count = pc.list_value_length(reasons).to_numpy()
    texts = pa.concat_arrays([pc.list_flatten(reasons), pa.nulls(1, pa.string())])
    first = np.where(count > 0, reasons.offsets.to_numpy()[:-1], len(texts) - 1)
    rejected = pa.array(count > 0)
    columns = {
        "clip_id": clip_id,
        "status": pc.if_else(rejected, "rejected", "kept"),
        "reason": texts.take(pa.array(first)),
        "reasons": reasons,
        "split": pc.if_else(rejected, pa.scalar(None, pa.string()), split),
    }
    return pa.table(columns, schema=SCHEMA)
