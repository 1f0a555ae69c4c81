"""Whether two clips, aligned at a given shift, show the same: distances of their fingerprints.

Clips of one video must agree more closely, and less closely where one of them is 1 s to 3 s later:
a static camera shows the same image at any time, steady motion agrees at any alignment, and motion
to and fro at all that are a multiple of its period apart. Regular motion with a period of more than
3 s is not distinguished from a repeated part.
"""

from __future__ import annotations

import numpy as np

from stages.meters.fingerprint import SIGNS
from stages.selection.clip_fingerprints import ClipFingerprints

TICKS_PER_BATCH = 1 << 19  # compared in one step, to limit memory

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
# At other alignments, 1 s to 3 s from the one that is verified, their motion differs by more.
OTHER_ALIGNMENTS_TICKS = range(4, 13)
MIN_OTHER_TICKS = 4  # that the clips share at such an alignment, if it counts
MIN_DISTANCE_GAIN_IN_VIDEO = 0.10 * 64


def clips_agree(codes: ClipFingerprints, candidates: np.ndarray, video: np.ndarray) -> np.ndarray:
    """(C,) bool: whether clips a and b of each row (a, b, shift) agree over their shared time.

    Tick t of b coincides with tick t + shift of a. video: (n,) of all clips.
    """
    a, b, shift = candidates.T
    first_a = codes.start[a] + np.maximum(shift, 0)
    first_b = codes.start[b] + np.maximum(-shift, 0)
    shared = np.minimum(codes.start[a + 1] - first_a, codes.start[b + 1] - first_b)
    agree = np.zeros(len(candidates), bool)
    sizes = np.diff(codes.start)
    required = _min_shared_ticks(np.minimum(sizes[a], sizes[b]))
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


def _min_shared_ticks(shorter: np.ndarray) -> np.ndarray:
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
    moves, distance = _motion_bits(one["motion"], two["motion"])
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
    closely, and less closely at all other alignments, at which one of them is later."""
    distance = _motion_distance(codes, a, b, ticks)
    is_repeat = distance <= MAX_MOTION_DISTANCE_IN_VIDEO
    for later in OTHER_ALIGNMENTS_TICKS:
        rows = np.flatnonzero(is_repeat & (ticks - later >= MIN_OTHER_TICKS))
        shared = ticks[rows] - later
        other = np.minimum(
            _motion_distance(codes, a[rows] + later, b[rows], shared),
            _motion_distance(codes, a[rows], b[rows] + later, shared),
        )
        is_repeat[rows] = other >= distance[rows] + MIN_DISTANCE_GAIN_IN_VIDEO
    return is_repeat


def _motion_distance(
    codes: ClipFingerprints, a: np.ndarray, b: np.ndarray, ticks: np.ndarray
) -> np.ndarray:
    """(S,) bits in which the motion differs, the mean over the ticks in which something moves in
    either span; 0 where there is none. No span is empty."""
    first = np.cumsum(ticks) - ticks
    position = np.arange(ticks.sum()) - np.repeat(first, ticks)
    one = codes.ticks["motion"][np.repeat(a, ticks) + position]
    two = codes.ticks["motion"][np.repeat(b, ticks) + position]
    moves, distance = _motion_bits(one, two)
    total = np.add.reduceat(distance, first, dtype=np.int64)
    return total / np.maximum(np.add.reduceat(moves, first, dtype=np.int64), 1)


def _motion_bits(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair of ticks: whether something moves in either, and the bits of motion that differ,
    0 where nothing moves."""
    moves = (one | two) > SIGNS
    return moves, np.where(moves, np.bitwise_count((one ^ two) & SIGNS), 0)
