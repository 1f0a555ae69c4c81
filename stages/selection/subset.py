"""A part of the kept clips: at most so many, drawn at random, in equal numbers of each group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.selection.clip_selection import uniform_hash

MAX_VALUES = 50  # numbers with more distinct values are grouped by ranges
RANGES = 10  # of equal width, between the percentiles 1 and 99
EMBEDDING_GROUPS = 50
KMEANS_STEPS = 10
CLIPS_PER_BLOCK = 8192  # compared with the centres in one matrix product, to limit memory


def clips_over_limit(
    clip_id: np.ndarray,
    held_out: np.ndarray,
    limit: int,
    seed: int,
    group: np.ndarray | None = None,
) -> np.ndarray:
    """(R,) which of the kept clips are not among the `limit` drawn ones, ascending.

    clip_id: (n,) bytes.  held_out: (n,) bool, for validation.  group: (n,) int: the clips are drawn
    in turn from all groups, so that a group is smaller than another only where it has no more
    clips. The draw depends on clip_ids and the seed. Where the clips are in both splits and the
    limit is 2 or more, so are those drawn.
    """
    if len(clip_id) <= limit:
        return np.empty(0, np.int64)
    by_hash = np.argsort([uniform_hash(name.decode(), seed) for name in clip_id], kind="stable")
    group = np.zeros(len(clip_id), np.int64) if group is None else group
    order = by_hash[np.argsort(_rank_in_group(group[by_hash]), kind="stable")]
    drawn = order[:limit].copy()
    for side in (True, False):
        of_side = held_out[order] == side
        if limit > 1 and of_side.any() and not of_side[:limit].any():
            drawn[-1] = order[np.flatnonzero(of_side)[0]]
    return np.delete(np.arange(len(clip_id)), drawn)


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """(n,) how many earlier entries are of the same group."""
    order = np.argsort(group, kind="stable")
    first = np.flatnonzero(np.diff(group[order], prepend=group[order][:1] - 1))
    start = np.repeat(first, np.diff(np.append(first, len(group))))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - start
    return rank


def column_groups(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) int64: a group per value, of numbers with many values per range. Null is a group."""
    distinct = len(pc.unique(column))
    if distinct > MAX_VALUES and not pa.types.is_string(column.type):
        values = column.cast(pa.float64()).to_numpy()
        finite = np.isfinite(values)
        low, high = np.percentile(values[finite], [1, 99])
        edges = np.linspace(low, high, RANGES + 1)[1:-1]
        return np.where(finite, np.searchsorted(edges, values), -1)
    return pc.index_in(column, pc.unique(column).sort()).to_numpy().astype(np.int64)


def embedding_groups(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """(n,) int64: groups of clips with similar embeddings, by spherical k-means from k-means++'s
    centres (Arthur and Vassilvitskii 2007).

    embeddings: (n, D) of length 1, in order of clip_id; NaN where a clip has none: a group, too.
    """
    has_one = np.flatnonzero(~np.isnan(embeddings[:, 0]))
    groups = np.full(len(embeddings), -1)
    if not len(has_one):
        return groups
    v = embeddings[has_one]
    centres = _far_apart(v, min(EMBEDDING_GROUPS, len(v)), np.random.default_rng(seed))
    for _ in range(KMEANS_STEPS):
        nearest = np.concatenate(
            [
                np.argmax(v[i : i + CLIPS_PER_BLOCK] @ centres.T, axis=1)
                for i in range(0, len(v), CLIPS_PER_BLOCK)
            ]
        )
        total = np.zeros_like(centres, np.float64)
        np.add.at(total, nearest, v)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        centres = np.where(length > 0, total / np.maximum(length, 1e-9), centres).astype(v.dtype)
    groups[has_one] = nearest
    return groups


def _far_apart(v: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, D) rows of v; each is drawn in proportion to its squared distance to the earlier."""
    chosen = [int(rng.integers(len(v)))]
    distance = np.full(len(v), np.inf)
    for draw in rng.uniform(size=count - 1):
        distance = np.minimum(distance, np.maximum(2 - 2 * (v @ v[chosen[-1]]), 0))
        total = np.cumsum(distance, dtype=np.float64)
        chosen.append(min(int(np.searchsorted(total, draw * total[-1])), len(v) - 1))
    return v[chosen]
