"""Clips that show the same, by CLIP: a crowd at one crossing on two days, one view filmed twice.

What a clip shows is the mean of its key frames' embeddings; two clips agree by the cosine of these.
The measure and what is done about it (above a limit one is kept) are SemDeDup's, Abbas et al. 2023,
arXiv 2303.09540. It compares only within k-means clusters, which hangs on how these are drawn; here
every clip is compared with every kept one, so no pair is missed and no order changes the result.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.selection.duplicates import better_of

ROWS = 2048  # clips compared at once with as many others, for the memory's sake
SLACK = 1e-4  # more than float32 can be off; what lies this close to the limit is compared anew
PRECISE = 8192  # pairs compared anew at once


def vectors(tables: Iterable[pa.Table], clip_id: pa.ChunkedArray) -> np.ndarray:
    """(n, D) float32: the mean embedding of each clip, of length 1; NaN where it has none.

    tables: clip_id and key_frames of records.EMBEDDING, all of one model; a later row of a clip
    counts.
    """
    ids = clip_id.combine_chunks()
    out = np.full((len(ids), 1), np.nan, np.float32)
    for table in tables:
        for batch in table.to_batches(max_chunksize=ROWS):
            place = pc.index_in(batch["clip_id"], ids)
            batch = batch.filter(pc.is_valid(place))
            if not batch.num_rows:
                continue
            frames = pc.list_value_length(batch["key_frames"]).to_numpy()
            assert frames.all(), "embeddings of a clip without key frames"
            values = pc.list_flatten(pc.list_flatten(batch["key_frames"])).to_numpy()
            values = values.reshape(frames.sum(), -1).astype(np.float32)
            total = np.add.reduceat(values, np.cumsum(frames) - frames)
            if out.shape[1] != total.shape[1]:
                out = np.full((len(ids), total.shape[1]), np.nan, np.float32)
            out[pc.drop_null(place)] = total / np.linalg.norm(total, axis=1, keepdims=True)
    return out


def alike(v: np.ndarray, rank: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the kept clip that each one shows the same as, -1 where it is kept itself; and all pairs
    (P, 2) of a clip and a kept one that agree above the limit.

    v: (n, D) `vectors`, none NaN.  rank: (n,) distinct, the lowest is the best.  limit: cosine.
    Best first, a clip goes out if it agrees with one that is kept, as in `duplicates.better_of`.
    n * kept * D multiplications; some 200 MB beside v and a copy of it.
    """
    order = np.argsort(rank)
    v = v[order]
    twin = np.full(len(v), -1)
    kept = np.empty(0, np.int64)
    links = [np.empty((0, 2), np.int64)]
    for start in range(0, len(v), ROWS):
        rows = np.arange(start, min(start + ROWS, len(v)))
        for at in range(0, len(kept), ROWS):
            some = kept[at : at + ROWS]
            row, other = _agreeing(v[rows], v[some], limit)
            first, where = np.unique(row, return_index=True)  # `other` ascends: the best
            fresh = twin[rows[first]] < 0
            twin[rows[first[fresh]]] = some[other[where[fresh]]]
            links.append(np.stack([rows[row], some[other]], 1))
        pairs = np.stack(_agreeing(v[rows], v[rows], limit), 1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        left = twin[rows] < 0
        out = better_of(pairs[left[pairs].all(1)], np.arange(len(rows)))
        twin[rows[out >= 0]] = rows[out[out >= 0]]
        stays = left & (out < 0)
        links.append(rows[pairs[stays[pairs[:, 0]]]])
        kept = np.concatenate([kept, rows[stays]])
    found = np.full(len(v), -1)
    found[order] = np.where(twin < 0, -1, order[twin])
    return found, order[np.concatenate(links)]


def _agreeing(one: np.ndarray, two: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `one` and of `two` whose cosine is above the limit, in order.

    A product of matrices rounds as its shape has it: what is close to the limit is compared anew.
    """
    cosine = one @ two.T
    a, b = np.nonzero(cosine > limit - SLACK)
    above = cosine[a, b] > limit + SLACK
    close = np.flatnonzero(~above)
    for at in range(0, len(close), PRECISE):
        some = close[at : at + PRECISE]
        pairs = one[a[some]].astype(np.float64), two[b[some]].astype(np.float64)
        above[some] = np.einsum("nd,nd->n", *pairs) > limit
    return a[above], b[above]
