"""Which clips enter the dataset, and in which split: one row per clip, no decode.

`select_clips` runs before captioning; `apply_caption_rules` then rejects kept clips whose captions
fail a check or a rule.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.policy import Policy, decide_table, group_by_row
from curation.records import CAPTION_SCORES, CORRECTED
from curation.texts import split_words
from stages.selection.near_duplicates import (
    connected_components,
    find_duplicates,
    read_fingerprints,
)
from stages.selection.semantic_duplicates import find_semantic_duplicates

SCHEMA = records.schema(records.SELECTION)
OUTSIDE = "outside where"
OUTSIDE_BY_CAPTION = "outside where, by its caption"
RANK_COLUMNS = ("clip_id", "width", "height", "duration_s", "sharpness", "packet_bytes")


def select_clips(
    clips: pa.Table,
    policy: Policy,
    *,
    semantic_similarity: float | None = None,
    embeddings: np.ndarray | None = None,
    seed: int = 0,
    validation_share: float = 0.05,
    inside: pa.ChunkedArray | None = None,
    flags: Mapping[str, str] | None = None,
) -> pa.Table:
    """A row of records.SELECTION per clip, in order of clip_id.

    clips: records.CLIP with `sha256` of the source (`ledger.flatten_clips`), in any order. Rules
    about captions are left to `apply_caption_rules`. `flags`: clip_id -> the reason against it, of
    clips that a person rejects. Of near-duplicates among the clips that pass
    the policy, the best is kept: see `quality_ranks`. With `semantic_similarity`, also of the
    remaining clips whose embeddings (`mean_embeddings`, a row per clip as given) have a cosine
    above it; a clip without an embedding is rejected. The split is by source: sources that are
    linked by a pair of duplicates form a group, and `validation_share` of the groups are for
    validation; where there are two groups or more, at least one is on each side.
    """
    needed = [*RANK_COLUMNS, "sha256", "null_reasons", *policy]
    order = pc.sort_indices(clips["clip_id"])
    codes = clips["fingerprint"].cast(pa.large_binary())  # binary's offsets end at 2 GB
    clips = clips.select([c for c in dict.fromkeys(needed) if c in clips.column_names]).take(order)
    reasons = decide_table(clips, policy.without(CAPTION_SCORES))
    if inside is not None:
        is_outside = pc.invert(pc.fill_null(inside, False)).take(order)
        outside = np.flatnonzero(is_outside.to_numpy())
        reasons = _append_reasons(reasons, outside, np.full(len(outside), OUTSIDE))
    if flags:
        row = pc.index_in(pa.array(flags, pa.string()), clips["clip_id"].combine_chunks())
        is_known = row.is_valid()
        texts = pa.array(flags.values(), pa.string()).filter(is_known)
        texts = texts.to_numpy(zero_copy_only=False)
        reasons = _append_reasons(reasons, row.filter(is_known).to_numpy(), texts)
    passed = np.flatnonzero(pc.list_value_length(reasons).to_numpy() == 0)
    passing = clips.take(pa.array(passed))
    source = _sorted_index(passing["sha256"])
    fingerprints = read_fingerprints(codes.take(order.take(pa.array(passed))))
    rank = quality_ranks(passing)
    duplicate_of, edges = find_duplicates(fingerprints, source, rank)
    texts = _duplicate_reasons("duplicate of", passing, duplicate_of)
    reasons = _append_reasons(reasons, passed[duplicate_of >= 0], texts)
    kept = np.flatnonzero(duplicate_of < 0)
    if semantic_similarity is not None:
        assert embeddings is not None
        rows = order.to_numpy()[passed[kept]]
        has_embedding = ~np.isnan(embeddings[rows, 0])
        without, kept = passed[kept[~has_embedding]], kept[has_embedding]
        texts = np.full(len(without), "embeddings not measured")
        reasons = _append_reasons(reasons, without, texts)
        same, links = find_semantic_duplicates(
            embeddings[rows[has_embedding]], rank[kept], semantic_similarity
        )
        texts = _duplicate_reasons("shows the same as", passing.take(pa.array(kept)), same)
        reasons = _append_reasons(reasons, passed[kept[same >= 0]], texts)
        edges = np.concatenate([edges, kept[links]])
        kept = kept[same < 0]

    split = np.full(clips.num_rows, None, object)
    held_out = _for_validation(passing["sha256"], source, edges, kept, seed, validation_share)
    split[passed[kept]] = np.where(held_out[kept], "validation", "train")
    assert len(pc.unique(clips["clip_id"])) == clips.num_rows, "a clip_id is in the table twice"
    return _selection_table(clips["clip_id"], reasons, pa.array(split, pa.string()))


def apply_caption_rules(
    selection: pa.Table, captions: pa.Table, policy: Policy, max_equal_captions: int | None = None
) -> pa.Table:
    """The selection, in which a kept clip is rejected if its captions fail a check or a rule.

    max_equal_captions: clips that may have equal texts; above it, all of them are rejected.
    captions: records.CAPTION. A kept clip without captions (not written yet, or with an `error`,
    which makes it a failed clip) stays kept. A rejected clip stays rejected. The policy's rules do
    not hold for captions that a person corrected.
    """
    policy = policy.without([name for name in policy if name not in CAPTION_SCORES])
    captions = captions.filter(pc.is_null(captions["error"]))
    index = pc.index_in(selection["clip_id"], captions["clip_id"].combine_chunks()).to_numpy()
    is_kept = pc.equal(selection["status"], "kept").to_numpy()
    captioned = np.flatnonzero(~np.isnan(index) & is_kept)
    captions = captions.take(pa.array(index[captioned].astype(np.int64)))
    failed_check = captions["rejected"].to_numpy()
    rejected = np.flatnonzero(pc.is_valid(captions["rejected"]).to_numpy())
    reasons = selection["reasons"].combine_chunks()
    reasons = _append_reasons(reasons, captioned[rejected], failed_check[rejected])
    if max_equal_captions is not None:
        equal, texts = _equal_captions(captions, max_equal_captions)
        reasons = _append_reasons(reasons, captioned[equal], texts)
    is_written = pc.invert(pc.fill_null(pc.equal(captions["captioner"], CORRECTED), False))
    captions, captioned = captions.filter(is_written), captioned[is_written.to_numpy()]
    by_policy = decide_table(captions, policy)
    rows = captioned[pc.list_parent_indices(by_policy).to_numpy()]
    texts = pc.list_flatten(by_policy).to_numpy(zero_copy_only=False)
    reasons = _append_reasons(reasons, rows, texts)
    return _selection_table(selection["clip_id"], reasons, selection["split"])


def reject_clips(selection: pa.Table, rows: np.ndarray, reason: str) -> pa.Table:
    """The selection, in which the clips of these rows have one more reason against them."""
    texts = np.full(len(rows), reason)
    reasons = _append_reasons(selection["reasons"].combine_chunks(), rows, texts)
    return _selection_table(selection["clip_id"], reasons, selection["split"])


def _equal_captions(captions: pa.Table, max_clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose caption, or whose sub-captions together, more than `max_clips` rows have, and
    the reason of each. Case, punctuation and spaces do not count; failed checks are left out."""
    passed = np.flatnonzero(pc.is_null(captions["rejected"]).to_numpy())
    clips = np.zeros(captions.num_rows, np.int64)
    for texts in (captions["caption"], captions["sub_captions"]):
        words = [_words_of(text) for text in texts.take(pa.array(passed)).to_pylist()]
        counts = Counter(words)
        clips[passed] = np.maximum(clips[passed], [counts[w] if w else 0 for w in words])
    equal = np.flatnonzero(clips > max_clips)
    return equal, np.array([f"caption repeated: on {n} clips" for n in clips[equal]], object)


def _words_of(text: str | list[dict[str, Any]] | None) -> tuple[str, ...]:
    texts = [part["text"] for part in text] if isinstance(text, list) else [text or ""]
    return tuple(word for text in texts for word in split_words(text))


def clips_to_caption(selection: pa.Table) -> pa.Array:
    """clip_id of the kept clips and of those rejected only for their captions: the captions of
    another captioner may pass."""
    reasons = selection["reasons"].combine_chunks()
    about_captions = rf"^(caption|{'|'.join(CAPTION_SCORES)}) |^{OUTSIDE_BY_CAPTION}$"
    others = pc.invert(pc.match_substring_regex(pc.list_flatten(reasons), about_captions))
    rejected = pc.unique(pc.list_parent_indices(reasons).filter(others))
    return (
        selection["clip_id"]
        .combine_chunks()
        .filter(pc.invert(pc.is_in(pa.array(np.arange(len(reasons))), value_set=rejected)))
    )


def quality_ranks(clips: pa.Table) -> np.ndarray:
    """(n,) rank of each clip among near-duplicates, 0 the best.

    The larger picture is better, then the sharper one, then more bytes per second, then the longer
    clip, then clip_id. Sharpness and bytes are means over the source's clips: so of two copies of a
    video all clips of one are better, and shifted spans of both don't suppress each other in turns.
    """
    source = _sorted_index(clips["sha256"])
    area = _floats(clips["width"]) * _floats(clips["height"])
    seconds = _floats(clips["duration_s"])
    sharpness = _group_means(source, _floats(clips["sharpness"]))
    rate = _group_means(source, _floats(clips["packet_bytes"]) / np.maximum(seconds, 1e-3))
    order = np.lexsort((_sorted_index(clips["clip_id"]), -seconds, -rate, -sharpness, -area))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _for_validation(
    sha256: pa.ChunkedArray,
    source: np.ndarray,
    edges: np.ndarray,
    kept: np.ndarray,
    seed: int,
    share: float,
) -> np.ndarray:
    """(n,) bool: whether the clip is for validation. Depends on the sources and the seed only."""
    if not len(source):
        return np.zeros(0, bool)
    group = connected_components(source[edges], int(source.max()) + 1)[source]
    # A group's number is that of its first hash: `source` counts the hashes in sorted order.
    names = pc.unique(sha256).sort().to_pylist()
    uniform = np.array([uniform_hash(name, seed) for name in names])[group]
    chosen = uniform < share
    groups = np.unique(uniform[kept])
    if share <= 0 or len(groups) < 2:
        return chosen
    if not chosen[kept].any():
        return uniform == groups[0]
    return uniform < groups[-1] if chosen[kept].all() else chosen


def uniform_hash(name: str, seed: int) -> float:
    """A number in [0, 1) from a name and a seed, the same on any machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _sorted_index(names: pa.ChunkedArray) -> np.ndarray:
    """(n,) int64: the index of each name among the sorted distinct names."""
    distinct = pc.unique(names).sort()
    return pc.index_in(names, distinct).to_numpy().astype(np.int64)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.nan_to_num(column.cast(pa.float64()).to_numpy())  # not measured: 0, ranks last


def _group_means(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) the mean of the values in each one's group, rounded: a float sum depends on the order
    of its terms."""
    total, count = np.bincount(group, values), np.bincount(group)
    return np.round(total / np.maximum(count, 1), 6)[group]


def _duplicate_reasons(prefix: str, clips: pa.Table, duplicate_of: np.ndarray) -> np.ndarray:
    """The reason of each clip that duplicates another one (not -1)."""
    names = clips["clip_id"].take(pa.array(duplicate_of[duplicate_of >= 0])).to_pylist()
    return np.array([f"{prefix} {name}" for name in names], object)


def _append_reasons(reasons: pa.ListArray, rows: np.ndarray, texts: np.ndarray) -> pa.ListArray:
    """The lists, with each text appended to the list of its row."""
    all_rows = np.concatenate([pc.list_parent_indices(reasons).to_numpy(), rows])
    values = pa.concat_arrays([pc.list_flatten(reasons), pa.array(texts, pa.string())])
    return group_by_row(all_rows, values, len(reasons))


def _selection_table(clip_id: pa.ChunkedArray, reasons: pa.ListArray, split: pa.Array) -> pa.Table:
    """records.SELECTION: a clip without reasons is kept, and only a kept one has a split."""
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
