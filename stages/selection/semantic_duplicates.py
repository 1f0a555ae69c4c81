"""Semantic duplicates, by CLIP: one crossing filmed on two days, one view filmed twice.

A clip is represented by the mean of its key frames' embeddings; the similarity of two clips is the
cosine of these. The measure and the rule (of clips above a limit one is kept) are SemDeDup's, Abbas
et al. 2023, arXiv 2303.09540. SemDeDup compares only within k-means clusters, which depends on how
the clusters are initialized; here every clip is compared with every kept one, so no pair is missed
and the order of the clips changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.selection.near_duplicates import suppress_duplicates

CLIPS_PER_BLOCK = 2048  # compared with as many others in one matrix product, to limit memory
FLOAT32_TOLERANCE = 1e-4  # above float32's error; cosines this close to the limit are recomputed
PAIRS_PER_RECHECK = 8192  # recomputed in one step


def mean_embeddings(tables: Iterable[pa.Table], clip_id: pa.ChunkedArray) -> np.ndarray:
    """(n, D) float32: the mean embedding of each clip, of length 1; NaN where it has none.

    tables: clip_id and key_frames of records.EMBEDDING, all of one model; of several rows of a clip
    the last one counts.
    """
    ids = clip_id.combine_chunks()
    out = np.full((len(ids), 1), np.nan, np.float32)
    for table in tables:
        for batch in table.to_batches(max_chunksize=CLIPS_PER_BLOCK):
            index = pc.index_in(batch["clip_id"], ids)
            batch = batch.filter(pc.is_valid(index))
            if not batch.num_rows:
                continue
            frames = pc.list_value_length(batch["key_frames"]).to_numpy()
            assert frames.all(), "embeddings of a clip without key frames"
            values = pc.list_flatten(pc.list_flatten(batch["key_frames"])).to_numpy()
            values = values.reshape(frames.sum(), -1).astype(np.float32)
            total = np.add.reduceat(values, np.cumsum(frames) - frames)
            if out.shape[1] != total.shape[1]:
                out = np.full((len(ids), total.shape[1]), np.nan, np.float32)
            out[pc.drop_null(index)] = total / np.linalg.norm(total, axis=1, keepdims=True)
    return out


def find_semantic_duplicates(
    embeddings: np.ndarray, rank: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the kept clip that each one duplicates, -1 where the clip itself is kept; and all pairs
    (P, 2) of a clip and a kept one whose cosine is above the limit.

    embeddings: (n, D) of `mean_embeddings`, none NaN.  rank: (n,) distinct, the lowest is the best.
    Greedy, as `near_duplicates.suppress_duplicates`: best first, a clip is suppressed if its cosine
    with a kept one is above the limit. Takes n * kept * D multiplications, and some 200 MB in
    addition to the embeddings and one copy of them.
    """
    order = np.argsort(rank)
    v = embeddings[order]
    duplicate_of = np.full(len(v), -1)
    kept = np.empty(0, np.int64)
    links = [np.empty((0, 2), np.int64)]
    for start in range(0, len(v), CLIPS_PER_BLOCK):
        rows = np.arange(start, min(start + CLIPS_PER_BLOCK, len(v)))
        for first_kept in range(0, len(kept), CLIPS_PER_BLOCK):
            block = kept[first_kept : first_kept + CLIPS_PER_BLOCK]
            row, other = _pairs_above(v[rows], v[block], limit)
            first, index = np.unique(row, return_index=True)  # `other` ascends: the best one
            is_new = duplicate_of[rows[first]] < 0
            duplicate_of[rows[first[is_new]]] = block[other[index[is_new]]]
            links.append(np.stack([rows[row], block[other]], 1))
        pairs = np.stack(_pairs_above(v[rows], v[rows], limit), 1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        remaining = duplicate_of[rows] < 0
        within = suppress_duplicates(pairs[remaining[pairs].all(1)], np.arange(len(rows)))
        duplicate_of[rows[within >= 0]] = rows[within[within >= 0]]
        is_kept = remaining & (within < 0)
        links.append(rows[pairs[is_kept[pairs[:, 0]]]])
        kept = np.concatenate([kept, rows[is_kept]])
    found = np.full(len(v), -1)
    found[order] = np.where(duplicate_of < 0, -1, order[duplicate_of])
    return found, order[np.concatenate(links)]


def _pairs_above(one: np.ndarray, two: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `one` and of `two` whose cosine is above the limit, in order.

    The rounding of a matrix product depends on the matrices' shapes, so cosines close to the limit
    are recomputed in float64.
    """
    cosine = one @ two.T
    a, b = np.nonzero(cosine > limit - FLOAT32_TOLERANCE)
    above = cosine[a, b] > limit + FLOAT32_TOLERANCE
    close = np.flatnonzero(~above)
    for start in range(0, len(close), PAIRS_PER_RECHECK):
        batch = close[start : start + PAIRS_PER_RECHECK]
        pairs = one[a[batch]].astype(np.float64), two[b[batch]].astype(np.float64)
        above[batch] = np.einsum("nd,nd->n", *pairs) > limit
    return a[above], b[above]
