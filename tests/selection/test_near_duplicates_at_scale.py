"""A search in slices on disk finds the pairs of a search in memory, and keeps the same clips."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.selection import random_fingerprints
from stages.meters.fingerprint import SIGNS
from stages.selection import near_duplicates
from stages.selection.near_duplicates import (
    ClipFingerprints,
    FingerprintFile,
    find_duplicates,
    find_pairs,
    read_fingerprints,
)
from tests.selection import reference_near_duplicates as reference


def drawn_set(seed: int, n: int = 1600) -> list[bytes]:
    """Fingerprints with copies: shifted, shortened, with flipped bits, many of one clip."""
    rng = np.random.default_rng(seed)
    ticks = random_fingerprints(rng, n)
    found = [ticks[i, : rng.integers(4, 61)] for i in range(n // 2)]
    for i in rng.integers(0, n // 20, n // 2):
        copy = ticks[i].copy()
        copy["motion"] ^= (
            rng.integers(0, 2**64, 60, np.uint64)
            & rng.integers(0, 2**64, 60, np.uint64)
            & rng.integers(0, 2**64, 60, np.uint64)
            & SIGNS
            & rng.integers(0, 2**64, 60, np.uint64)
        )
        found.append(copy[rng.integers(0, 20) : rng.integers(40, 61)])
    found[::97] = [np.empty(0, ticks.dtype)] * len(found[::97])
    order = rng.permutation(len(found))
    return [found[i].tobytes() for i in order]


def on_disk(column: list[bytes]) -> ClipFingerprints:
    file = FingerprintFile()
    for start in range(0, len(column), 700):
        chunk = pa.chunked_array([pa.array(column[start : start + 700], pa.large_binary())])
        file.append(read_fingerprints(chunk))
    return file.read()


def use_small_slices(monkeypatch):
    monkeypatch.setattr(near_duplicates, "TICKS_PER_SLICE", 1 << 11)
    monkeypatch.setattr(near_duplicates, "TICKS_PER_CHUNK", 1 << 13)
    monkeypatch.setattr(near_duplicates, "TICKS_PER_BATCH", 1 << 12)
    monkeypatch.setattr(near_duplicates, "MAX_COLLECTED_ROWS", 1 << 10)


@pytest.mark.parametrize("seed", range(3))
def test_search_on_disk_keeps_the_clips_that_the_search_in_memory_keeps(seed, monkeypatch):
    column = drawn_set(seed)
    rng = np.random.default_rng(seed)
    video, rank = rng.integers(0, 2000, len(column)), rng.permutation(len(column))
    codes = read_fingerprints(pa.chunked_array([pa.array(column, pa.binary())]))
    expected, expected_edges = reference.find_duplicates(codes, video, rank)
    use_small_slices(monkeypatch)
    duplicate_of, edges = find_duplicates(on_disk(column), video, rank.take)
    assert np.count_nonzero(expected >= 0) > 500
    assert duplicate_of.tolist() == expected.tolist()
    assert {tuple(e) for e in edges.tolist()} == {tuple(e) for e in expected_edges.tolist()}


def test_every_pair_found_is_one_that_agrees_at_some_shift(monkeypatch):
    """Compared with every shift of every pair, without buckets."""
    use_small_slices(monkeypatch)
    column = drawn_set(5, 120)
    codes, video = on_disk(column), np.arange(len(column))
    sizes = np.diff(codes.start)
    every = [
        (a, b, shift)
        for a in range(len(column))
        for b in range(a + 1, len(column))
        for shift in range(1 - int(sizes[b]), int(sizes[a]))
    ]
    rows = np.array(every, np.int64)
    agree = rows[near_duplicates._clips_agree(codes, rows)]
    expected = {(a, b) for a, b, _ in agree.tolist()}
    found = {tuple(pair) for pair in find_pairs(codes, video).tolist()}
    assert len(expected) > 30
    assert found <= expected
    assert len(found) >= 0.9 * len(expected)  # the buckets compare only some of many copies
