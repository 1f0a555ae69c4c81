"""Near-duplicates among all clips of an input, from their fingerprints: numpy, no loop over pairs.

Fingerprints may lie in a file, which is mapped. A search sorts the ticks slice by slice in a
scratch file, so that its memory does not grow with them, and its time does almost linearly.

Candidates: two ticks (quarters of a second) of different clips that agree in 32 of their 128 bits.
There are four choices of the 32 bits (bands, as in locality-sensitive hashing), so that a few
flipped bits don't hide a pair. Verification: the two clips are aligned so that the two ticks
coincide, and must then agree over all of the time that they share (`fingerprint_distance`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import FileIO

import numpy as np

from curation.scratch import driver_scratch_errors, scratch_file, write_all
from stages.meters.fingerprint import SIGNS
from stages.selection.clip_fingerprints import ClipFingerprints
from stages.selection.fingerprint_distance import (
    MAX_MOTION_DISTANCE,
    MAX_MOTION_DISTANCE_IN_VIDEO,
    MAX_PICTURE_DISTANCE,
    clips_agree,
)

BANDS = 4
MAX_COMPARISONS_PER_TICK = 6  # with the next ones in its bucket: large buckets cost linear time
# To limit memory:
TICKS_PER_SLICE = 1 << 19  # sorted in one step, on average
MAX_COLLECTED_ROWS = 1 << 19  # candidates, before equal ones are removed
EDGES_PER_BATCH = 1 << 20  # turned into Python's numbers in one step

_ENTRY = np.dtype([("picture", "<u8"), ("motion", "<u8"), ("clip", "<u4"), ("position", "<u4")])


def find_pairs(codes: ClipFingerprints, video: np.ndarray) -> np.ndarray:
    """(P, 2) clips that are near-duplicates of each other, the lower number first.

    video: (n,) a number per clip. Clips of one video never overlap; they are pairs where it repeats
    a part.

    A bucket with many equal keys (one camera, ten thousand clips) is not searched exhaustively: it
    is sorted by the remaining bits, and each tick is compared with the next
    MAX_COMPARISONS_PER_TICK only.
    """
    return _find_aligned_pairs(codes, video)[:, :2]


def _find_aligned_pairs(codes: ClipFingerprints, video: np.ndarray) -> np.ndarray:
    """(P, 3) the pairs of `find_pairs`, and of the shifts found at which a pair agrees the
    smallest."""
    candidates = np.empty((0, 3), np.int64)
    with driver_scratch_errors():
        file = scratch_file()
    with file as scratch:
        for band in range(BANDS):
            found: list[np.ndarray] = []
            for entries in _slices(codes, band, scratch):
                found += map(_unique_rows, _candidates(entries, band, video))
                if sum(map(len, found)) > MAX_COLLECTED_ROWS + len(candidates):
                    candidates = _unique_rows(np.concatenate([candidates, *found]))
                    found = []
            candidates = _unique_rows(np.concatenate([candidates, *found]))
    return _unique_pairs(candidates[clips_agree(codes, candidates, video)])


def _slices(codes: ClipFingerprints, band: int, scratch: FileIO) -> Iterator[np.ndarray]:
    """The ticks in which something moves, (T,) _ENTRY in order of clip and position, in slices by
    the lowest bits of the band's 16 bits of motion. So a bucket is in one slice."""
    bits = min(16, int(codes.start[-1] // TICKS_PER_SLICE).bit_length())
    if not bits:
        yield _entries(codes, 0, len(codes.start) - 1)
        return
    ends: list[np.ndarray] = []  # of the slices of each chunk, in entries from the file's start
    scratch.seek(0)
    written = 0
    for first, last in codes.chunks():
        entries = _entries(codes, first, last)
        part = (entries["motion"] >> np.uint64(16 * band)).astype(np.uint16)
        part &= np.uint16((1 << bits) - 1)
        with driver_scratch_errors():
            write_all(scratch, entries[np.argsort(part, kind="stable")].view(np.uint8))
        sizes = np.bincount(part, minlength=1 << bits)
        ends.append(written + np.concatenate([[0], np.cumsum(sizes)]))
        written += len(entries)
        codes.release()
    for number in range(1 << bits):
        entries = np.empty(sum(int(end[number + 1] - end[number]) for end in ends), _ENTRY)
        filled = 0
        for end in ends:
            count = int(end[number + 1] - end[number])
            view = memoryview(entries[filled : filled + count].view(np.uint8))  # type: ignore
            read = os.preadv(scratch.fileno(), [view], int(end[number]) * _ENTRY.itemsize)
            assert read == len(view), "the scratch file is shorter than what was written"
            filled += count
        yield entries


def _entries(codes: ClipFingerprints, first: int, last: int) -> np.ndarray:
    """(T,) _ENTRY of the ticks of clips `first` to `last` in which something moves."""
    start = codes.start[first : last + 1]
    ticks = codes.ticks[start[0] : start[-1]]
    moving = np.flatnonzero(ticks["motion"] > SIGNS)
    clip = np.repeat(np.arange(first, last, dtype=np.uint32), np.diff(start))[moving]
    entries = np.empty(len(moving), _ENTRY)
    entries["picture"], entries["motion"] = ticks["picture"][moving], ticks["motion"][moving]
    entries["clip"], entries["position"] = clip, moving + start[0] - codes.start[clip]
    return entries


def _candidates(entries: np.ndarray, band: int, video: np.ndarray) -> Iterator[np.ndarray]:
    """(C, 3) clips a < b and the tick of a less that of b, of pairs of ticks whose 16 bits of
    picture and 16 bits of motion agree, and which are near in all bits."""
    offset = np.uint64(16 * band)
    motion = entries["motion"]
    if band:  # rotate, so that the band's bits come first
        motion = (motion >> offset) | (motion << (np.uint64(64) - offset))
    # The band's bits of motion, then the other bits: the most similar ticks are adjacent.
    key = (
        (entries["picture"] >> offset) << np.uint64(48)
        | ((motion & np.uint64(0xFFFF)) << np.uint64(32))
        | (motion >> np.uint64(16) & np.uint64(0xFFFFFFFF))
    )
    order = _sorted_order(key)
    entries, bucket = entries[order], (key[order] >> np.uint64(32)).astype(np.uint32)
    del key, order, motion
    for step in range(1, MAX_COMPARISONS_PER_TICK + 1):
        same = np.flatnonzero(bucket[step:] == bucket[:-step])
        if not len(same):  # a bucket's ticks are adjacent
            return
        one, two = entries[same], entries[same + step]
        distance = np.bitwise_count((one["motion"] ^ two["motion"]) & SIGNS)
        is_one_video = video[one["clip"]] == video[two["clip"]]
        near = distance <= np.where(is_one_video, MAX_MOTION_DISTANCE_IN_VIDEO, MAX_MOTION_DISTANCE)
        near &= np.bitwise_count(one["picture"] ^ two["picture"]) <= MAX_PICTURE_DISTANCE
        near &= one["clip"] != two["clip"]
        one, two = one[near], two[near]
        shift = one["position"].astype(np.int64) - two["position"]
        swap = one["clip"] > two["clip"]
        low, high = np.where(swap, two["clip"], one["clip"]), np.maximum(one["clip"], two["clip"])
        yield np.stack([low, high, np.where(swap, -shift, shift)], 1).astype(np.int64)


def _sorted_order(key: np.ndarray) -> np.ndarray:
    """(n,) as a stable argsort, but faster: equal keys are rare, and are sorted afterwards."""
    order = np.argsort(key)
    ordered = key[order]
    equal = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.concatenate([[False], equal]) | np.concatenate([equal, [False]]))
    if len(tied):
        order[tied] = order[tied[np.lexsort((order[tied], ordered[tied]))]]
    return order


def _unique_rows(rows: np.ndarray) -> np.ndarray:
    """The distinct rows of an integer matrix, in order."""
    rows = rows[np.lexsort(rows.T[::-1])]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(1)
    return rows[is_new]


def _unique_pairs(rows: np.ndarray) -> np.ndarray:
    """The distinct pairs of clips among rows (a, b, shift), in order, each with its smallest
    shift."""
    rows = rows[np.lexsort((np.abs(rows[:, 2]), rows[:, 1], rows[:, 0]))]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:, :2] != rows[:-1, :2]).any(1)
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
    for start in range(0, len(order), EDGES_PER_BATCH):
        batch = order[start : start + EDGES_PER_BATCH]
        for good, bad in zip(better[batch].tolist(), worse[batch].tolist(), strict=True):
            if kept_duplicate[good] < 0 and kept_duplicate[bad] < 0:
                kept_duplicate[bad] = good
    return kept_duplicate


def find_duplicates(
    codes: ClipFingerprints, video: np.ndarray, rank_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int32: the kept clip that each one duplicates or -1; and all pairs found, (P, 2).

    rank_of: clips, in ascending order -> their ranks, as `suppress_duplicates` takes them.

    One search of many copies finds only pairs that are close in their buckets, so the kept clips
    that have duplicates are compared again until no more pairs among them are found. The duplicates
    of a clip that is then rejected are compared with the clip that is kept instead of it: otherwise
    most would be kept again, and the number of searches would grow with that of the copies.
    """
    pairs = _find_aligned_pairs(codes, video)
    paired = np.unique(pairs[:, :2])  # no later search adds a clip
    pairs[:, :2] = np.searchsorted(paired, pairs[:, :2])
    rank = rank_of(paired)
    kept_duplicate = suppress_duplicates(pairs[:, :2], rank)
    while True:
        kept = np.flatnonzero(kept_duplicate < 0)
        more = _find_aligned_pairs(codes.take(paired[kept]), video[paired[kept]])
        if not len(more):
            duplicate_of = np.full(len(video), -1, np.int32)
            is_duplicate = kept_duplicate >= 0
            duplicate_of[paired[is_duplicate]] = paired[kept_duplicate[is_duplicate]]
            return duplicate_of, paired[pairs[:, :2]]
        more[:, :2] = kept[more[:, :2]]
        while len(more):
            pairs = _unique_pairs(np.concatenate([pairs, more]))
            before, kept_duplicate = kept_duplicate, suppress_duplicates(pairs[:, :2], rank)
            more = _replaced_pairs(pairs, before, kept_duplicate)
            candidates = np.column_stack([paired[more[:, :2]], more[:, 2]])
            more = more[clips_agree(codes, candidates, video)]


def _replaced_pairs(pairs: np.ndarray, before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """(C, 3) candidates: each clip that duplicated a kept clip which is rejected now, and the kept
    clip that this one duplicates.

    pairs: (P, 3) as `_unique_pairs` returns them.  before, now: (n,) the kept clip that each one
    duplicates or -1.
    """
    clip = np.flatnonzero(before >= 0)
    clip = clip[now[before[clip]] >= 0]
    rejected = before[clip]
    kept = now[rejected]
    shift = _shifts(pairs, kept, rejected) + _shifts(pairs, rejected, clip)
    rows = np.column_stack([kept, clip, shift])
    swap = kept > clip
    rows[swap] = rows[swap][:, [1, 0, 2]] * [1, 1, -1]
    return rows


def _shifts(pairs: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(C,) the shifts of clips a and b, whose pairs are all in `pairs`."""
    key = pairs[:, 0] << 32 | pairs[:, 1]
    at = np.searchsorted(key, np.minimum(a, b) << 32 | np.maximum(a, b))
    return np.where(a < b, pairs[at, 2], -pairs[at, 2])
