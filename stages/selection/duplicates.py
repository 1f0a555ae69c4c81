"""Near-duplicates among all clips of an input, from their fingerprints: numpy, no loop over pairs.

Candidates: moments (ticks) of two clips that agree in 32 of their 128 bits; four choices of the 32,
so that a few flipped bits don't hide a pair. Verification: the two clips, laid over each other so
that the moments meet, must agree all along the time that they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stages.meters.fingerprint import CODE, SIGNS

BANDS = 4
NEIGHBOURS = 6  # how many of the next in its bucket a moment is compared with: keeps buckets linear
SLICES = 8  # the keys are sorted in this many slices, for the memory's sake
AT_ONCE = 4_000_000  # moments verified at once, for the memory's sake

MIN_TICKS = 17  # 4.25 s that two clips must share: 5 s, less a tick at either end and a rounding
MIN_MOVING = 12  # ticks in which something moves in either: less is no evidence
# Of 64 bits. Unrelated signals differ in 32; a share of 0.28 is an angle of 50 degrees between two
# signals: what is common outweighs what differs (re-encoded real videos: 0.01..0.13, faint motion
# in front of moving leaves: 0.28).
MOTION = 0.28 * 64  # mean over the shared time
MOTION_PIECE = 0.40 * 64  # mean over any 2 s of it: where speeds part, the pieces do
PIECE_TICKS = 8
PICTURE = 0.20 * 64  # mean over the shared time (re-encoded: 0.00..0.05)


@dataclass(frozen=True)
class Prints:
    """The fingerprints of n clips, one after the other (views of the column's own bytes)."""

    picture: np.ndarray  # (ticks,) uint64
    motion: np.ndarray  # (ticks,) uint64
    start: np.ndarray  # (n + 1,) int64: clip i has the ticks start[i] to start[i + 1]


def prints(fingerprints: pa.ChunkedArray) -> Prints:
    """From the ledger's column; null and empty ones have no ticks."""
    chunks = [c.cast(pa.large_binary()) for c in fingerprints.chunks]
    column = pa.concat_arrays([pa.array([], pa.large_binary()), *chunks]).fill_null(b"")
    sizes = np.diff(np.frombuffer(column.buffers()[1], np.int64)[: len(column) + 1])
    if (sizes % CODE.itemsize).any():
        raise ValueError(f"a fingerprint is not a whole number of {CODE.itemsize}-byte codes")
    start = np.concatenate([[0], np.cumsum(sizes // CODE.itemsize)]).astype(np.int64)
    data = column.buffers()[2]
    ticks = np.frombuffer(data, CODE, count=start[-1]) if start[-1] else np.empty(0, CODE)
    return Prints(ticks["picture"], ticks["motion"], start)


def pairs(p: Prints, video: np.ndarray) -> np.ndarray:
    """(P, 2) clips that are near-duplicates of each other, the lower number first.

    video: (n,) a number per clip; clips of the same video never overlap, so they are no pairs.
    A bucket of more than NEIGHBOURS moments alike (one camera, ten thousand clips) is not searched
    whole: its moments are in the order of their further bits, and each meets the next few only.
    """
    clip = np.repeat(np.arange(len(p.start) - 1, dtype=np.int32), np.diff(p.start))
    found = [np.empty((0, 3), np.int64)]
    for one, two in _meetings(p):
        a, b = clip[one], clip[two]
        near = np.bitwise_count((p.motion[one] ^ p.motion[two]) & SIGNS) <= MOTION
        near &= np.bitwise_count(p.picture[one] ^ p.picture[two]) <= PICTURE
        near &= video[a] != video[b]
        one, two, a, b = one[near], two[near], a[near], b[near]
        shift = (one - p.start[a]) - (two - p.start[b])
        swap = a > b
        low, high = np.where(swap, b, a), np.where(swap, a, b)
        found.append(np.stack([low, high, np.where(swap, -shift, shift)], 1))
    candidates = _distinct(np.concatenate(found))
    return _distinct(candidates[_agree(p, candidates)][:, :2])


def _meetings(p: Prints) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of ticks whose 16 bits of picture and 16 bits of motion agree, band by band."""
    assert len(p.motion) < 2**32, "4 billion ticks, 70 million clips: sort them in two passes"
    moving = np.flatnonzero(p.motion > SIGNS).astype(np.uint32)
    for band in range(BANDS):
        turn = np.uint64(16 * band)
        for part in range(SLICES):
            ticks = moving[((p.motion[moving] >> turn) & np.uint64(SLICES - 1)) == part]
            picture = (p.picture[ticks] >> turn) << np.uint64(48)
            motion = p.motion[ticks]
            motion = (motion >> turn) | (motion << (np.uint64(64) - turn)) if band else motion
            # The band's bits of motion next, then the other bits: neighbours are the most alike.
            key = (
                picture
                | ((motion & np.uint64(0xFFFF)) << np.uint64(32))
                | (motion >> np.uint64(16) & np.uint64(0xFFFFFFFF))
            )
            del picture, motion
            order = np.argsort(key)
            ticks, bucket = ticks[order], (key[order] >> np.uint64(32)).astype(np.uint32)
            del key, order
            for step in range(1, NEIGHBOURS + 1):
                same = np.flatnonzero(bucket[step:] == bucket[:-step])
                yield ticks[same], ticks[same + step]


def _agree(p: Prints, candidates: np.ndarray) -> np.ndarray:
    """(C,) bool: whether clips a, b of each row (a, b, shift) agree all along.

    Tick t of b meets tick t + shift of a.
    """
    a, b, shift = candidates.T
    first_a, first_b = p.start[a] + np.maximum(shift, 0), p.start[b] + np.maximum(-shift, 0)
    shared = np.minimum(p.start[a + 1] - first_a, p.start[b + 1] - first_b)
    out = np.zeros(len(candidates), bool)
    long = np.flatnonzero(shared >= MIN_TICKS)
    batch = np.cumsum(shared[long]) // AT_ONCE
    for some in np.split(long, np.flatnonzero(np.diff(batch)) + 1):
        out[some] = _agree_along(p, first_a[some], first_b[some], shared[some])
    return out


def _agree_along(p: Prints, a: np.ndarray, b: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """The same for spans of `ticks` ticks that start at tick a and at tick b; none is empty."""
    first = np.cumsum(ticks) - ticks
    of = np.repeat(np.arange(len(ticks)), ticks)
    along = np.arange(len(of)) - first[of]
    one, two = a[of] + along, b[of] + along
    moves = (p.motion[one] | p.motion[two]) > SIGNS
    differ = np.where(moves, np.bitwise_count((p.motion[one] ^ p.motion[two]) & SIGNS), 0)
    pieces = ticks // PIECE_TICKS
    piece = (np.cumsum(pieces) - pieces)[of] + along * pieces[of] // ticks[of]
    in_piece = np.bincount(piece, moves, minlength=pieces.sum())
    piece_differs = np.bincount(piece, differ, minlength=pieces.sum())
    parted = (in_piece >= PIECE_TICKS * 0.4) & (piece_differs > MOTION_PIECE * in_piece)
    moving = np.add.reduceat(moves, first, dtype=np.int64)
    picture = np.add.reduceat(
        np.bitwise_count(p.picture[one] ^ p.picture[two]), first, dtype=np.int64
    )
    return (
        (moving >= MIN_MOVING)
        & (np.add.reduceat(differ, first, dtype=np.int64) <= MOTION * moving)
        & (picture <= PICTURE * ticks)
        & (np.bincount(np.repeat(np.arange(len(ticks)), pieces), parted, len(ticks)) == 0)
    )


def _distinct(rows: np.ndarray) -> np.ndarray:
    """The distinct rows of an integer matrix, in order."""
    rows = rows[np.lexsort(rows.T[::-1])]
    fresh = np.ones(len(rows), bool)
    fresh[1:] = (rows[1:] != rows[:-1]).any(1)
    return rows[fresh]


def groups(edges: np.ndarray, n: int) -> np.ndarray:
    """(n,) the number of the lowest member of each one's connected group. edges: (P, 2)."""
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


def better_of(edges: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(n,) the kept clip that each one duplicates, -1 where it is kept itself.

    rank: (n,) distinct, the lowest is the best. Best first, each clip that is not yet out puts out
    its direct duplicates: what is out has a kept twin, and clips that are linked only through
    another (1st and 3rd of three overlapping trims) are not taken for each other.
    """
    swap = rank[edges[:, 0]] > rank[edges[:, 1]]
    better, worse = np.where(swap, edges[:, ::-1].T, edges.T)
    order = np.lexsort((rank[worse], rank[better]))
    out = np.full(len(rank), -1)
    for good, bad in zip(better[order].tolist(), worse[order].tolist(), strict=True):
        if out[good] < 0 and out[bad] < 0:
            out[bad] = good
    return out


def duplicates(p: Prints, video: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the kept clip that each duplicates or -1, and all pairs found, (P, 2).

    Of many copies, a round finds only neighbours in their buckets; so the clips that won something
    meet again until they find no more of each other.
    """
    edges = pairs(p, video)
    while True:
        out = better_of(edges, rank)
        kept = np.flatnonzero(out < 0)
        winners = kept[np.isin(kept, edges)]
        more = winners[pairs(_only(p, winners), video[winners])]
        if not len(more):
            return out, edges
        edges = np.concatenate([edges, more])


def _only(p: Prints, clips: np.ndarray) -> Prints:
    sizes = np.diff(p.start)[clips]
    start = np.concatenate([[0], np.cumsum(sizes)])
    ticks = np.arange(start[-1]) + np.repeat(p.start[clips] - start[:-1], sizes)
    return Prints(p.picture[ticks], p.motion[ticks], start)
