"""The search of version 0.2.0, which needs all fingerprints in memory: a reference for tests.

Candidates: two ticks (quarters of a second) of different clips that agree in 32 of their 128 bits.
There are four choices of the 32 bits (bands, as in locality-sensitive hashing), so that a few
flipped bits don't hide a pair. Verification: the two clips are aligned so that the two ticks
coincide, and must then agree over all of the time that they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.meters.fingerprint import CODE, SIGNS

BANDS = 4
MAX_COMPARISONS_PER_TICK = 6  # with the next ones in its bucket: large buckets cost linear time
SORT_SLICES = 8  # the keys are sorted in this many slices, to limit memory
MAX_TICKS_PER_BATCH = 4_000_000  # verified in one step, to limit memory

MIN_SHARED_TICKS = 17  # 4.25 s: 5 s, less a tick at either end and a rounding
MIN_SHARED_SHARE = 0.75  # of the shorter clip, where that is less; it is nearly all of such a clip
MIN_MOVING_SHARE = 0.7  # of the ticks that must be shared: with less motion there is no evidence
# Distances are in bits of 64; unrelated signals differ in 32. A share of 0.28 is an angle of 50
# degrees between two signals: the common part outweighs the difference (re-encoded real videos:
# 0.01..0.13, faint motion in front of moving leaves: 0.28).
MAX_MOTION_DISTANCE = 0.28 * 64  # mean over the shared time
MAX_PIECE_MOTION_DISTANCE = 0.40 * 64  # mean over any 2 s: larger where the speeds differ
PIECE_TICKS = 8
MAX_PICTURE_DISTANCE = 0.20 * 64  # mean over the shared time (re-encoded: 0.00..0.05)


@dataclass(frozen=True)
class ClipFingerprints:
    """The fingerprints of n clips, one after the other (views of the column's own bytes)."""

    picture: np.ndarray  # (ticks,) uint64
    motion: np.ndarray  # (ticks,) uint64
    start: np.ndarray  # (n + 1,) int64: clip i has the ticks start[i] to start[i + 1]

    def motion_distance(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """(T,) motion bits that differ between ticks `one` and `two`."""
        return np.bitwise_count((self.motion[one] ^ self.motion[two]) & SIGNS)

    def picture_distance(self, one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """(T,) picture bits that differ between ticks `one` and `two`."""
        return np.bitwise_count(self.picture[one] ^ self.picture[two])


def read_fingerprints(column: pa.ChunkedArray) -> ClipFingerprints:
    """The fingerprints in the ledger's column; a null or empty one has no ticks."""
    chunks = [c.cast(pa.large_binary()) for c in column.chunks]
    values = pa.concat_arrays([pa.array([], pa.large_binary()), *chunks]).fill_null(b"")
    sizes = np.diff(np.frombuffer(values.buffers()[1], np.int64)[: len(values) + 1])
    if (sizes % CODE.itemsize).any():
        raise ValueError(f"a fingerprint is not a whole number of {CODE.itemsize}-byte codes")
    start = np.concatenate([[0], np.cumsum(sizes // CODE.itemsize)]).astype(np.int64)
    data = values.buffers()[2]
    ticks = np.frombuffer(data, CODE, count=start[-1]) if start[-1] else np.empty(0, CODE)
    return ClipFingerprints(ticks["picture"], ticks["motion"], start)


def find_pairs(codes: ClipFingerprints, video: np.ndarray) -> np.ndarray:
    """(P, 2) clips that are near-duplicates of each other, the lower number first.

    video: (n,) a number per clip; clips of one video never overlap, so they are no pairs.
    A bucket with many equal keys (one camera, ten thousand clips) is not searched exhaustively: it
    is sorted by the remaining bits, and each tick is compared with the next
    MAX_COMPARISONS_PER_TICK only.
    """
    clip = np.repeat(np.arange(len(codes.start) - 1, dtype=np.int32), np.diff(codes.start))
    found = [np.empty((0, 3), np.int64)]
    for one, two in _candidate_ticks(codes):
        a, b = clip[one], clip[two]
        near = codes.motion_distance(one, two) <= MAX_MOTION_DISTANCE
        near &= codes.picture_distance(one, two) <= MAX_PICTURE_DISTANCE
        near &= video[a] != video[b]
        one, two, a, b = one[near], two[near], a[near], b[near]
        shift = (one - codes.start[a]) - (two - codes.start[b])
        swap = a > b
        low, high = np.where(swap, b, a), np.where(swap, a, b)
        found.append(np.stack([low, high, np.where(swap, -shift, shift)], 1))
    candidates = _unique_rows(np.concatenate(found))
    return _unique_rows(candidates[_clips_agree(codes, candidates)][:, :2])


def _candidate_ticks(codes: ClipFingerprints) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of ticks whose 16 bits of picture and 16 bits of motion agree, band by band."""
    assert len(codes.motion) < 2**32, "4 billion ticks, 70 million clips: sort them in two passes"
    moving = np.flatnonzero(codes.motion > SIGNS).astype(np.uint32)
    for band in range(BANDS):
        offset = np.uint64(16 * band)
        for part in range(SORT_SLICES):
            ticks = moving[((codes.motion[moving] >> offset) & np.uint64(SORT_SLICES - 1)) == part]
            picture = (codes.picture[ticks] >> offset) << np.uint64(48)
            motion = codes.motion[ticks]
            if band:  # rotate, so that the band's bits come first
                motion = (motion >> offset) | (motion << (np.uint64(64) - offset))
            # The band's bits of motion, then the other bits: the most similar ticks are adjacent.
            key = (
                picture
                | ((motion & np.uint64(0xFFFF)) << np.uint64(32))
                | (motion >> np.uint64(16) & np.uint64(0xFFFFFFFF))
            )
            del picture, motion
            order = np.argsort(key, kind="stable")  # changed: equal keys in order of the ticks
            ticks, bucket = ticks[order], (key[order] >> np.uint64(32)).astype(np.uint32)
            del key, order
            for step in range(1, MAX_COMPARISONS_PER_TICK + 1):
                same = np.flatnonzero(bucket[step:] == bucket[:-step])
                yield ticks[same], ticks[same + step]


def _clips_agree(codes: ClipFingerprints, candidates: np.ndarray) -> np.ndarray:
    """(C,) bool: whether clips a and b of each row (a, b, shift) agree over their shared time.

    Tick t of b coincides with tick t + shift of a.
    """
    a, b, shift = candidates.T
    first_a = codes.start[a] + np.maximum(shift, 0)
    first_b = codes.start[b] + np.maximum(-shift, 0)
    shared = np.minimum(codes.start[a + 1] - first_a, codes.start[b + 1] - first_b)
    agree = np.zeros(len(candidates), bool)
    sizes = np.diff(codes.start)
    required = min_shared_ticks(np.minimum(sizes[a], sizes[b]))
    long = np.flatnonzero(shared >= required)
    batch = np.cumsum(shared[long]) // MAX_TICKS_PER_BATCH
    for rows in np.split(long, np.flatnonzero(np.diff(batch)) + 1):
        spans = first_a[rows], first_b[rows], shared[rows]
        agree[rows] = _spans_agree(codes, *spans, MIN_MOVING_SHARE * required[rows])
    return agree


def min_shared_ticks(shorter: np.ndarray) -> np.ndarray:
    """(P,) how many ticks a pair must share; shorter: (P,) ticks of the shorter clip."""
    return np.clip(np.ceil(MIN_SHARED_SHARE * shorter), 1, MIN_SHARED_TICKS)


def _spans_agree(
    codes: ClipFingerprints, a: np.ndarray, b: np.ndarray, ticks: np.ndarray, min_moving: np.ndarray
) -> np.ndarray:
    """(S,) bool: whether the spans of `ticks` ticks from ticks a and b agree; none is empty.

    min_moving: (S,) ticks in which something moves in either clip.
    """
    first = np.cumsum(ticks) - ticks
    span = np.repeat(np.arange(len(ticks)), ticks)
    position = np.arange(len(span)) - first[span]
    one, two = a[span] + position, b[span] + position
    moves = (codes.motion[one] | codes.motion[two]) > SIGNS
    distance = np.where(moves, codes.motion_distance(one, two), 0)
    pieces = np.maximum(ticks // PIECE_TICKS, 1)
    piece = (np.cumsum(pieces) - pieces)[span] + position * pieces[span] // ticks[span]
    piece_moving = np.bincount(piece, moves, minlength=pieces.sum())
    piece_distance = np.bincount(piece, distance, minlength=pieces.sum())
    differs = (piece_moving >= PIECE_TICKS * 0.4) & (
        piece_distance > MAX_PIECE_MOTION_DISTANCE * piece_moving
    )
    moving = np.add.reduceat(moves, first, dtype=np.int64)
    picture = np.add.reduceat(codes.picture_distance(one, two), first, dtype=np.int64)
    return (
        (moving >= min_moving)
        & (np.add.reduceat(distance, first, dtype=np.int64) <= MAX_MOTION_DISTANCE * moving)
        & (picture <= MAX_PICTURE_DISTANCE * ticks)
        & (np.bincount(np.repeat(np.arange(len(ticks)), pieces), differs, len(ticks)) == 0)
    )


def _unique_rows(rows: np.ndarray) -> np.ndarray:
    """The distinct rows of an integer matrix, in order."""
    rows = rows[np.lexsort(rows.T[::-1])]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(1)
    return rows[is_new]


def connected_components(edges: np.ndarray, n: int) -> np.ndarray:
    """(n,) the lowest member of each one's connected component. edges: (P, 2)."""
    root = np.arange(n)
    while True:
        low = np.minimum(root[edges[:, 0]], root[edges[:, 1]])
        before = root.copy()
        for end in (0, 1):
            np.minimum.at(root, before[edges[:, end]], low)
            np.minimum.at(root, edges[:, end], low)
        root = root[root]
        if (root == before).all():
            return root


def suppress_duplicates(edges: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(n,) the kept clip that each one duplicates, -1 where the clip itself is kept.

    rank: (n,) distinct, the lowest is the best. Greedy, as in non-maximum suppression: best first,
    each clip that is not suppressed yet suppresses its direct duplicates. So a suppressed clip has
    a kept duplicate, and clips that are linked only through another one (the first and third of
    three overlapping trims) don't suppress each other.
    """
    swap = rank[edges[:, 0]] > rank[edges[:, 1]]
    better, worse = np.where(swap, edges[:, ::-1].T, edges.T)
    order = np.lexsort((rank[worse], rank[better]))
    kept_duplicate = np.full(len(rank), -1)
    for good, bad in zip(better[order].tolist(), worse[order].tolist(), strict=True):
        if kept_duplicate[good] < 0 and kept_duplicate[bad] < 0:
            kept_duplicate[bad] = good
    return kept_duplicate


def find_duplicates(
    codes: ClipFingerprints, video: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the kept clip that each one duplicates or -1, and all pairs found, (P, 2).

    One search of many copies finds only pairs that are close in their buckets, so the kept clips
    that have duplicates are compared again until no more pairs among them are found.
    """
    edges = find_pairs(codes, video)
    while True:
        kept_duplicate = suppress_duplicates(edges, rank)
        kept = np.flatnonzero(kept_duplicate < 0)
        paired = kept[np.isin(kept, edges)]
        more = paired[find_pairs(_take(codes, paired), video[paired])]
        if not len(more):
            return kept_duplicate, edges
        edges = np.concatenate([edges, more])


def _take(codes: ClipFingerprints, clips: np.ndarray) -> ClipFingerprints:
    """The fingerprints of these clips, in this order."""
    sizes = np.diff(codes.start)[clips]
    start = np.concatenate([[0], np.cumsum(sizes)])
    ticks = np.arange(start[-1]) + np.repeat(codes.start[clips] - start[:-1], sizes)
    return ClipFingerprints(codes.picture[ticks], codes.motion[ticks], start)
