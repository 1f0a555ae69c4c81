"""Near-duplicates among all clips of an input, from their fingerprints: numpy, no loop over pairs.

Fingerprints may lie in a file, which is mapped. A search sorts the ticks slice by slice in a
scratch file, so that its memory does not grow with them, and its time does almost linearly.

Candidates: two ticks (quarters of a second) of different clips that agree in 32 of their 128 bits.
There are four choices of the 32 bits (bands, as in locality-sensitive hashing), so that a few
flipped bits don't hide a pair. Verification: the two clips are aligned so that the two ticks
coincide, and must then agree over all of the time that they share.

Clips of one video must agree more closely, and only at this alignment: a static camera shows the
same image at any time, and where something moves steadily or to and fro (a tree in the wind), its
motion also agrees at other alignments. A part that the video repeats agrees at its own alone.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from stages.meters.fingerprint import CODE, SIGNS

BANDS = 4
MAX_COMPARISONS_PER_TICK = 6  # with the next ones in its bucket: large buckets cost linear time
# To limit memory:
TICKS_PER_SLICE = 1 << 19  # sorted in one step, on average
TICKS_PER_CHUNK = 1 << 19  # distributed to slices in one step
TICKS_PER_BATCH = 1 << 19  # verified in one step
MAX_COLLECTED_ROWS = 1 << 19  # candidates, before equal ones are removed
EDGES_PER_BATCH = 1 << 20  # turned into Python's numbers in one step

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
# Of clips of one video, in addition (chosen on real videos: docs/measurements/duplicates.md):
MIN_SHARED_TICKS_IN_VIDEO = 12
MAX_MOTION_DISTANCE_IN_VIDEO = 0.14 * 64  # mean over the shared time
OTHER_ALIGNMENT_TICKS = 8  # one clip is so much later than at the alignment that is verified
MIN_DISTANCE_GAIN_IN_VIDEO = 0.10 * 64  # the motion differs by so much more at other alignments


_ENTRY = np.dtype([("picture", "<u8"), ("motion", "<u8"), ("clip", "<u4"), ("position", "<u4")])


@dataclass(frozen=True)
class ClipFingerprints:
    """The fingerprints of n clips, one after the other, in memory or in a mapped file."""

    ticks: np.ndarray  # (ticks,) CODE
    start: np.ndarray  # (n + 1,) int64: clip i has the ticks start[i] to start[i + 1]
    file: mmap.mmap | None = None  # that holds the ticks

    def release(self) -> None:
        """Removes the pages that were read from this process's memory."""
        if self.file is not None:
            self.file.madvise(mmap.MADV_DONTNEED)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 of consecutive clips with about TICKS_PER_CHUNK ticks."""
        first, n = 0, len(self.start) - 1
        while first < n:
            end = self.start[first] + TICKS_PER_CHUNK
            last = max(first + 1, int(np.searchsorted(self.start, end, "right")) - 1)
            yield first, last
            first = last


class FingerprintFile:
    """Fingerprints that are appended to a scratch file."""

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
        self._sizes: list[np.ndarray] = [np.zeros(1, np.int64)]

    def append(self, codes: ClipFingerprints) -> None:
        codes.ticks.tofile(self._file)
        self._sizes.append(np.diff(codes.start).astype(np.uint32))

    def read(self) -> ClipFingerprints:
        """All of them; the file is closed, and deleted when they are no longer used."""
        start = np.cumsum(np.concatenate(self._sizes), dtype=np.int64)
        self._sizes = []
        with self._file as file:
            file.flush()
            if not start[-1]:
                return ClipFingerprints(np.empty(0, CODE), start)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return ClipFingerprints(np.frombuffer(mapped, CODE), start, mapped)


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
    return ClipFingerprints(ticks, start)


def find_pairs(codes: ClipFingerprints, video: np.ndarray) -> np.ndarray:
    """(P, 2) clips that are near-duplicates of each other, the lower number first.

    video: (n,) a number per clip. Clips of one video never overlap; they are pairs where it repeats
    a part.
    A bucket with many equal keys (one camera, ten thousand clips) is not searched exhaustively: it
    is sorted by the remaining bits, and each tick is compared with the next
    MAX_COMPARISONS_PER_TICK only.
    """
    candidates = np.empty((0, 3), np.int64)
    with tempfile.TemporaryFile() as scratch:
        for band in range(BANDS):
            found: list[np.ndarray] = []
            for entries in _slices(codes, band, scratch):
                found += map(_unique_rows, _candidates(entries, band, video))
                if sum(map(len, found)) > MAX_COLLECTED_ROWS + len(candidates):
                    candidates = _unique_rows(np.concatenate([candidates, *found]))
                    found = []
            candidates = _unique_rows(np.concatenate([candidates, *found]))
    return _unique_rows(candidates[_clips_agree(codes, candidates, video)][:, :2])


def _slices(codes: ClipFingerprints, band: int, scratch: BinaryIO) -> Iterator[np.ndarray]:
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
        entries[np.argsort(part, kind="stable")].tofile(scratch)
        sizes = np.bincount(part, minlength=1 << bits)
        ends.append(written + np.concatenate([[0], np.cumsum(sizes)]))
        written += len(entries)
        codes.release()
    scratch.flush()
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


def _clips_agree(codes: ClipFingerprints, candidates: np.ndarray, video: np.ndarray) -> np.ndarray:
    """(C,) bool: whether clips a and b of each row (a, b, shift) agree over their shared time.

    Tick t of b coincides with tick t + shift of a. video: (n,) of all clips.
    """
    a, b, shift = candidates.T
    first_a = codes.start[a] + np.maximum(shift, 0)
    first_b = codes.start[b] + np.maximum(-shift, 0)
    shared = np.minimum(codes.start[a + 1] - first_a, codes.start[b + 1] - first_b)
    agree = np.zeros(len(candidates), bool)
    sizes = np.diff(codes.start)
    required = min_shared_ticks(np.minimum(sizes[a], sizes[b]))
    is_one_video = video[a] == video[b]
    required[is_one_video] = np.maximum(required[is_one_video], MIN_SHARED_TICKS_IN_VIDEO)
    long = np.flatnonzero(shared >= required)
    batch = np.cumsum(shared[long]) // TICKS_PER_BATCH
    for rows in np.split(long, np.flatnonzero(np.diff(batch)) + 1):
        spans = first_a[rows], first_b[rows], shared[rows]
        agree[rows] = _spans_agree(codes, *spans, MIN_MOVING_SHARE * required[rows])
        repeats = rows[agree[rows] & is_one_video[rows]]
        agree[repeats] = _are_repeats(codes, first_a[repeats], first_b[repeats], shared[repeats])
        codes.release()
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
    one, two = codes.ticks[a[span] + position], codes.ticks[b[span] + position]
    moves = (one["motion"] | two["motion"]) > SIGNS
    distance = np.where(moves, np.bitwise_count((one["motion"] ^ two["motion"]) & SIGNS), 0)
    pieces = np.maximum(ticks // PIECE_TICKS, 1)
    piece = (np.cumsum(pieces) - pieces)[span] + position * pieces[span] // ticks[span]
    piece_moving = np.bincount(piece, moves, minlength=pieces.sum())
    piece_distance = np.bincount(piece, distance, minlength=pieces.sum())
    differs = (piece_moving >= PIECE_TICKS * 0.4) & (
        piece_distance > MAX_PIECE_MOTION_DISTANCE * piece_moving
    )
    moving = np.add.reduceat(moves, first, dtype=np.int64)
    picture = np.bitwise_count(one["picture"] ^ two["picture"])
    return (
        (moving >= min_moving)
        & (np.add.reduceat(distance, first, dtype=np.int64) <= MAX_MOTION_DISTANCE * moving)
        & (np.add.reduceat(picture, first, dtype=np.int64) <= MAX_PICTURE_DISTANCE * ticks)
        & (np.bincount(np.repeat(np.arange(len(ticks)), pieces), differs, len(ticks)) == 0)
    )


def _are_repeats(
    codes: ClipFingerprints, a: np.ndarray, b: np.ndarray, ticks: np.ndarray
) -> np.ndarray:
    """(S,) bool: whether the motion in the spans of `ticks` ticks from ticks a and b agrees
    closely, and less closely where one of them is OTHER_ALIGNMENT_TICKS later."""
    distance = _motion_distance(codes, a, b, ticks)
    later, fewer = OTHER_ALIGNMENT_TICKS, ticks - OTHER_ALIGNMENT_TICKS
    other = np.minimum(
        _motion_distance(codes, a + later, b, fewer), _motion_distance(codes, a, b + later, fewer)
    )
    return (distance <= MAX_MOTION_DISTANCE_IN_VIDEO) & (
        other >= distance + MIN_DISTANCE_GAIN_IN_VIDEO
    )


def _motion_distance(
    codes: ClipFingerprints, a: np.ndarray, b: np.ndarray, ticks: np.ndarray
) -> np.ndarray:
    """(S,) bits in which the motion differs, the mean over the ticks in which something moves in
    either span; 0 where there is none. No span is empty."""
    first = np.cumsum(ticks) - ticks
    position = np.arange(ticks.sum()) - np.repeat(first, ticks)
    one = codes.ticks["motion"][np.repeat(a, ticks) + position]
    two = codes.ticks["motion"][np.repeat(b, ticks) + position]
    moves = (one | two) > SIGNS
    distance = np.where(moves, np.bitwise_count((one ^ two) & SIGNS), 0)
    total = np.add.reduceat(distance, first, dtype=np.int64)
    return total / np.maximum(np.add.reduceat(moves, first, dtype=np.int64), 1)


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
    that have duplicates are compared again until no more pairs among them are found.
    """
    edges = find_pairs(codes, video)
    paired = np.unique(edges)  # no later search adds a clip
    rank = rank_of(paired)
    while True:
        kept_duplicate = suppress_duplicates(np.searchsorted(paired, edges), rank)
        kept = paired[kept_duplicate < 0]
        more = kept[find_pairs(_take(codes, kept), video[kept])]
        if not len(more):
            duplicate_of = np.full(len(video), -1, np.int32)
            is_duplicate = kept_duplicate >= 0
            duplicate_of[paired[is_duplicate]] = paired[kept_duplicate[is_duplicate]]
            return duplicate_of, edges
        edges = np.concatenate([edges, more])


def _take(codes: ClipFingerprints, clips: np.ndarray) -> ClipFingerprints:
    """The fingerprints of these clips, in this order, in a scratch file."""
    file = FingerprintFile()
    sizes = codes.start[clips + 1] - codes.start[clips]
    batch = np.cumsum(sizes) // TICKS_PER_BATCH
    for rows in np.split(np.arange(len(clips)), np.flatnonzero(np.diff(batch)) + 1):
        start = np.concatenate([[0], np.cumsum(sizes[rows])])
        ticks = np.arange(start[-1]) + np.repeat(codes.start[clips[rows]] - start[:-1], sizes[rows])
        file.append(ClipFingerprints(codes.ticks[ticks], start))
        codes.release()
    return file.read()
