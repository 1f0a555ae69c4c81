"""A search in slices on disk finds the pairs of a search in memory, and keeps the same clips."""

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.selection import random_fingerprints
from stages.meters.fingerprint import SIGNS, codes
from stages.selection import clip_fingerprints, fingerprint_distance, near_duplicates
from stages.selection.clip_fingerprints import (
    ClipFingerprints,
    FingerprintFile,
    read_fingerprints,
)
from stages.selection.near_duplicates import (
    find_duplicates,
    find_pairs,
    suppress_duplicates,
)
from tests.selection import reference_near_duplicates as reference
from tests.selection.test_near_duplicates import scene


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
    monkeypatch.setattr(clip_fingerprints, "TICKS_PER_CHUNK", 1 << 13)
    monkeypatch.setattr(fingerprint_distance, "TICKS_PER_BATCH", 1 << 12)
    monkeypatch.setattr(near_duplicates, "MAX_COLLECTED_ROWS", 1 << 10)


@pytest.mark.parametrize(("seed", "videos"), [(0, 2000), (1, 2000), (2, 20), (3, 1)])
def test_search_on_disk_keeps_the_clips_that_the_search_in_memory_keeps(seed, videos, monkeypatch):
    column = drawn_set(seed)
    rng = np.random.default_rng(seed)
    video, rank = rng.integers(0, videos, len(column)), rng.permutation(len(column))
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
    agree = rows[fingerprint_distance.clips_agree(codes, rows, video)]
    expected = {(a, b) for a, b, _ in agree.tolist()}
    found = {tuple(pair) for pair in find_pairs(codes, video).tolist()}
    assert len(expected) > 30
    assert found <= expected
    assert len(found) >= 0.9 * len(expected)  # the buckets compare only some of many copies


@pytest.mark.parametrize("videos", [1, 3, 10**6])
def test_clips_agree_as_in_a_plain_loop(videos):
    column = drawn_set(6, 100)
    codes = on_disk(column)
    rng = np.random.default_rng(videos)
    video = rng.integers(0, videos, len(column))
    clip = [codes.ticks[codes.start[i] : codes.start[i + 1]] for i in range(len(column))]
    found = find_pairs(codes, np.arange(len(column))).tolist()
    pairs = found + rng.integers(0, len(column), (len(found), 2)).tolist()
    rows = [(a, b, shift) for a, b in pairs if a != b for shift in range(-25, 26)]
    agree = fingerprint_distance.clips_agree(codes, np.array(rows), video).tolist()
    expected = [
        reference.clips_agree(clip[a], clip[b], shift, one_video=video[a] == video[b])
        for a, b, shift in rows
    ]
    assert sum(expected) > 30
    assert agree == expected


def test_order_of_clips_does_not_change_which_clips_of_one_video_are_kept():
    column = drawn_set(7, 400)
    rng = np.random.default_rng(0)
    video, rank = rng.integers(0, 8, len(column)), rng.permutation(len(column))
    kept = []
    for order in (np.arange(len(column)), rng.permutation(len(column))):
        codes = on_disk([column[i] for i in order])
        duplicate_of, _ = find_duplicates(codes, video[order], rank[order].take)
        kept.append(set(order[duplicate_of < 0].tolist()))
    assert len(kept[0]) < 0.7 * len(column)
    assert kept[0] == kept[1]


def looped_film(clips: int, clip_ticks: int, period_ticks: int, flipped: float) -> ClipFingerprints:
    """Clips laid one after the other into a film that repeats a scene without end.

    flipped: share of the motion's bits that differ from one round to the next.
    """
    rounds = codes(np.tile(scene(0, period_ticks), (3, 1, 1)))
    repeats = clips * clip_ticks // period_ticks + 1
    ticks = np.tile(rounds[period_ticks : 2 * period_ticks], repeats)[: clips * clip_ticks]
    bits = np.random.default_rng(0).random((len(ticks), 63)) < flipped
    ticks["motion"] ^= (bits << np.arange(63, dtype=np.uint64)).sum(1, dtype=np.uint64)
    return ClipFingerprints(ticks, np.arange(clips + 1) * clip_ticks)


@pytest.mark.parametrize("flipped", [0, 0.02])
@pytest.mark.parametrize("ticks", [(60, 60), (60, 20), (60, 144), (16, 44), (20, 33), (24, 150)])
def test_clips_kept_of_a_looped_film_are_those_of_a_comparison_at_every_shift(ticks, flipped):
    film = looped_film(60, *ticks, flipped)
    video, rank = np.zeros(60, int), np.random.default_rng(0).permutation(60)
    pairs = np.stack(np.triu_indices(60, 1), 1)
    every = np.zeros(len(pairs), bool)
    for shift in range(1 - ticks[0], ticks[0]):
        rows = np.column_stack([pairs, np.full(len(pairs), shift)])
        every |= fingerprint_distance.clips_agree(film, rows, video)
    duplicate_of, _ = find_duplicates(film, video, rank.take)
    expected = suppress_duplicates(pairs[every], rank)
    assert ((duplicate_of < 0) == (expected < 0)).all()
    agreeing = {frozenset(pair) for pair in pairs[every].tolist()}
    assert all(of < 0 or {clip, of} in agreeing for clip, of in enumerate(duplicate_of.tolist()))


@pytest.mark.parametrize("flipped", [0, 0.02])
def test_number_of_searches_does_not_grow_with_the_copies_of_one_clip(flipped, monkeypatch):
    searches = []

    def search(codes, video):
        searches.append(len(video))
        return find(codes, video)

    find = near_duplicates._find_aligned_pairs
    monkeypatch.setattr(near_duplicates, "_find_aligned_pairs", search)
    rank = np.random.default_rng(0).permutation(500)
    duplicate_of, _ = find_duplicates(
        looped_film(500, 60, 60, flipped), np.zeros(500, int), rank.take
    )
    assert np.flatnonzero(duplicate_of < 0).tolist() == [np.argmin(rank)]
    assert len(searches) < 10
