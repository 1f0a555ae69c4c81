"""The search for candidates, all in memory: a reference for tests.

Which candidates agree, and which clips are suppressed, is left to the present code; `clips_agree`
decides the first for one candidate, tick by tick.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.meters.fingerprint import SIGNS
from stages.selection import fingerprint_distance
from stages.selection.clip_fingerprints import ClipFingerprints
from stages.selection.fingerprint_distance import (
    MAX_MOTION_DISTANCE,
    MAX_MOTION_DISTANCE_IN_VIDEO,
    MAX_PICTURE_DISTANCE,
)
from stages.selection.near_duplicates import (
    BANDS,
    MAX_COMPARISONS_PER_TICK,
    suppress_duplicates,
)

SORT_SLICES = 8  # the keys are sorted in this many slices, to limit memory


def find_pairs(codes: ClipFingerprints, video: np.ndarray) -> np.ndarray:
    """(P, 2) clips that are near-duplicates of each other, the lower number first."""
    clip = np.repeat(np.arange(len(codes.start) - 1, dtype=np.int32), np.diff(codes.start))
    picture, motion = codes.ticks["picture"], codes.ticks["motion"]
    found = [np.empty((0, 3), np.int64)]
    for one, two in _candidate_ticks(picture, motion):
        a, b = clip[one], clip[two]
        distance = np.bitwise_count((motion[one] ^ motion[two]) & SIGNS)
        near = (video[a] != video[b]) & (distance <= MAX_MOTION_DISTANCE)
        near |= (video[a] == video[b]) & (a != b) & (distance <= MAX_MOTION_DISTANCE_IN_VIDEO)
        near &= np.bitwise_count(picture[one] ^ picture[two]) <= MAX_PICTURE_DISTANCE
        one, two, a, b = one[near], two[near], a[near], b[near]
        shift = (one - codes.start[a]) - (two - codes.start[b])
        swap = a > b
        low, high = np.where(swap, b, a), np.where(swap, a, b)
        found.append(np.stack([low, high, np.where(swap, -shift, shift)], 1))
    candidates = np.unique(np.concatenate(found), axis=0)
    agree = fingerprint_distance.clips_agree(codes, candidates, video)
    return np.unique(candidates[agree][:, :2], axis=0)


def _candidate_ticks(
    all_pictures: np.ndarray, all_motions: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of ticks whose 16 bits of picture and 16 bits of motion agree, band by band."""
    moving = np.flatnonzero(all_motions > SIGNS).astype(np.uint32)
    for band in range(BANDS):
        offset = np.uint64(16 * band)
        for part in range(SORT_SLICES):
            ticks = moving[((all_motions[moving] >> offset) & np.uint64(SORT_SLICES - 1)) == part]
            picture = (all_pictures[ticks] >> offset) << np.uint64(48)
            motion = all_motions[ticks]
            if band:  # rotate, so that the band's bits come first
                motion = (motion >> offset) | (motion << (np.uint64(64) - offset))
            # The band's bits of motion, then the other bits: the most similar ticks are adjacent.
            key = (
                picture
                | ((motion & np.uint64(0xFFFF)) << np.uint64(32))
                | (motion >> np.uint64(16) & np.uint64(0xFFFFFFFF))
            )
            order = np.argsort(key, kind="stable")  # changed: equal keys in order of the ticks
            ticks, bucket = ticks[order], (key[order] >> np.uint64(32)).astype(np.uint32)
            for step in range(1, MAX_COMPARISONS_PER_TICK + 1):
                same = np.flatnonzero(bucket[step:] == bucket[:-step])
                yield ticks[same], ticks[same + step]


def clips_agree(a: np.ndarray, b: np.ndarray, shift: int, *, one_video: bool) -> bool:
    """Whether the clips with these ticks, (T,) CODE, agree where tick t of b is tick t + shift of
    a. The limits are written out."""
    first_a, first_b = max(shift, 0), max(-shift, 0)
    shared = min(len(a) - first_a, len(b) - first_b)
    required = min(max(-(-3 * min(len(a), len(b)) // 4), 1), 17)
    if one_video:
        required = max(required, 12)
    if shared < required:
        return False
    motion = motion_distances(a, b, first_a, first_b, shared)
    moving = [d for d in motion if d is not None]
    if len(moving) < 0.7 * required or sum(moving) > 0.28 * 64 * len(moving):
        return False
    pictures = zip(a["picture"][first_a:].tolist(), b["picture"][first_b:].tolist(), strict=False)
    if sum((p ^ q).bit_count() for p, q in pictures) > 0.20 * 64 * shared:
        return False
    pieces = max(shared // 8, 1)
    for piece in range(pieces):
        inside = [d for k, d in enumerate(motion) if k * pieces // shared == piece]
        inside = [d for d in inside if d is not None]
        if len(inside) >= 3.2 and sum(inside) > 0.40 * 64 * len(inside):
            return False
    if not one_video:
        return True
    mean = sum(moving) / len(moving)
    for later in range(4, 13):
        if shared - later >= 4:
            for at_a, at_b in ((later, 0), (0, later)):
                other = motion_distances(a, b, first_a + at_a, first_b + at_b, shared - later)
                known = [d for d in other if d is not None]
                if sum(known) < (mean + 0.10 * 64) * max(len(known), 1):
                    return False
    return mean <= 0.14 * 64


def motion_distances(
    a: np.ndarray, b: np.ndarray, first_a: int, first_b: int, ticks: int
) -> list[int | None]:
    """Of each pair of ticks, the bits of motion that differ; None where nothing moves in either."""
    found: list[int | None] = []
    for k in range(ticks):
        one, two = int(a["motion"][first_a + k]), int(b["motion"][first_b + k])
        differing = ((one ^ two) & int(SIGNS)).bit_count()
        found.append(differing if (one | two) >> 63 else None)
    return found


def find_duplicates(
    codes: ClipFingerprints, video: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the kept clip that each one duplicates or -1, and all pairs found, (P, 2)."""
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
    return ClipFingerprints(codes.ticks[ticks], start)
