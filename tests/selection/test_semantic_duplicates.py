"""Semantic duplicates by embeddings, compared with a plain loop, in any order."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import records
from curation.policy import Policy, Range
from stages.selection import semantic_duplicates
from stages.selection.clip_selection import select_clips
from stages.selection.semantic_duplicates import find_semantic_duplicates, mean_embeddings
from tests.selection.test_clip_selection import by_id, clip, random_fingerprint, table

EMBEDDING = records.schema(records.EMBEDDING)
POLICY = Policy(width=Range(min=1280))


def clustered_vectors(rng, n: int, dims: int = 12, noise: float = 0.3) -> np.ndarray:
    """(n, dims) of length 1, around a few centres: cosines of all sizes."""
    centres = rng.normal(size=(max(1, n // 8), dims))
    v = centres[rng.integers(0, len(centres), n)] + noise * rng.normal(size=(n, dims))
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def reference(v, rank, limit):
    """The same by a loop: the best first, each compared with every kept one."""
    duplicate_of, links, kept = np.full(len(v), -1), set(), []
    wide = v.astype(np.float64)
    for k in np.argsort(rank).tolist():
        same = [j for j in kept if wide[k] @ wide[j] > limit]
        links |= {(k, j) for j in same}
        if same:
            duplicate_of[k] = same[0]
        else:
            kept.append(k)
    return duplicate_of, links


def as_set(links):
    """Each pair as (clip, kept one)."""
    return set(map(tuple, links.tolist()))


@pytest.fixture(params=[3, 16, 2048])
def clips_per_block(request, monkeypatch):
    monkeypatch.setattr(semantic_duplicates, "CLIPS_PER_BLOCK", request.param)


@pytest.mark.parametrize("limit", [0.5, 0.9, 0.97])
def test_semantic_duplicates_equal_those_of_a_loop_over_all_pairs(clips_per_block, limit):
    rng = np.random.default_rng(1)
    for n in (0, 1, 2, 37, 200):
        v, rank = clustered_vectors(rng, n), rng.permutation(n)
        duplicate_of, links = find_semantic_duplicates(v, rank, limit)
        expected, pairs = reference(v, rank, limit)
        assert duplicate_of.tolist() == expected.tolist()
        assert {tuple(sorted(p)) for p in as_set(links)} == {tuple(sorted(p)) for p in pairs}
    assert 0 < (duplicate_of >= 0).sum() < n


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_order_of_the_clips_changes_no_semantic_duplicate(seed, n):
    rng = np.random.default_rng(seed)
    v, rank, moved = clustered_vectors(rng, n), rng.permutation(n), rng.permutation(n)
    duplicate_of, links = find_semantic_duplicates(v, rank, 0.9)
    duplicate_of_moved, links_moved = find_semantic_duplicates(v[moved], rank[moved], 0.9)
    back = np.append(moved, -1)
    assert back[duplicate_of_moved].tolist() == duplicate_of[moved].tolist()
    assert as_set(moved[links_moved]) == as_set(links)


def test_block_size_changes_no_decision_about_cosines_at_the_limit(monkeypatch):
    rng = np.random.default_rng(2)
    limit, dims, n = 0.9, 768, 60
    axis = np.zeros((n, dims))
    axis[:, 0] = 1
    side = np.linalg.qr(rng.normal(size=(dims - 1, n)))[0].T
    cosine = limit + rng.uniform(-2e-7, 2e-7, n)
    axis[1:, 0], axis[1:, 1:] = cosine[1:], (np.sqrt(1 - cosine**2)[:, None] * side)[1:]
    v, rank = axis.astype(np.float32), np.arange(n)
    expected, _ = reference(v, rank, limit)
    assert 5 < (expected >= 0).sum() < n - 5
    for block_size in (2, 7, 64):
        monkeypatch.setattr(semantic_duplicates, "CLIPS_PER_BLOCK", block_size)
        assert find_semantic_duplicates(v, rank, limit)[0].tolist() == expected.tolist()


def embeddings(rows) -> pa.Table:
    table_rows = [
        {"clip_id": name, "model": "m", "key_frames": list(frames.astype(np.float16))}
        for name, frames in rows
    ]
    return pa.Table.from_pylist(table_rows, schema=EMBEDDING)


def test_clip_embedding_is_the_mean_over_the_key_frames_of_its_last_row(clips_per_block):
    rng = np.random.default_rng(3)
    frames = {f"c{k}": clustered_vectors(rng, 1 + k % 5, 8) for k in range(20)}
    stale = embeddings(
        [("c3", clustered_vectors(rng, 5, 8)), ("unlisted", clustered_vectors(rng, 2, 8))]
    )
    names = [*reversed(frames), "without"]
    ids = pa.chunked_array([names[:7], names[7:]])
    v = mean_embeddings([stale, embeddings(frames.items())], ids)
    assert v.shape == (21, 8)
    for name, found in zip(names[:-1], v, strict=False):
        mean = frames[name].astype(np.float16).astype(np.float64).mean(0)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.isnan(v[-1]).all()
    assert np.isnan(mean_embeddings([], ids)).all()


def test_best_of_semantic_duplicates_is_kept_and_the_reasons_of_the_others_name_it():
    rows = [clip(k, k, width=1280 + 10 * k) for k in range(4)] + [clip("dark", "d", width=640)]
    rows.append(clip("copy", "c", fingerprint=rows[3]["fingerprint"]))
    v = np.array([[1, 0], [0.99, 0.14], [0, 1], [1, 0], [1, 0], [np.nan, 0]], np.float32)
    found = by_id(select_clips(table(rows), POLICY, semantic_similarity=0.95, embeddings=v))
    best = rows[3]["clip_id"]
    assert [found[row["clip_id"]]["reasons"] for row in rows] == [
        [f"shows the same as {best}"],
        [f"shows the same as {best}"],
        *([], []),
        ["width 640 < 1280"],
        [f"duplicate of {best}"],
    ]
    without = by_id(select_clips(table(rows), POLICY))
    assert [without[row["clip_id"]]["status"] for row in rows[:4]] == ["kept"] * 4


def test_clip_without_an_embedding_is_rejected_with_that_reason():
    v = np.array([[1, 0], [np.nan, np.nan]], np.float32)
    rows = [clip(k, k) for k in range(2)]
    found = by_id(select_clips(table(rows), POLICY, semantic_similarity=0.95, embeddings=v))
    assert found[rows[0]["clip_id"]]["status"] == "kept"
    assert found[rows[1]["clip_id"]]["reasons"] == ["embeddings not measured"]


def test_train_and_validation_never_share_semantic_duplicates_in_any_order_of_the_clips():
    rng = np.random.default_rng(4)
    rows = [clip(k, k // 3, fingerprint=random_fingerprint(k)) for k in range(150)]
    v = rng.normal(size=(150, 48))
    v[::3] = np.repeat(rng.normal(size=(10, 48)), 5, 0) + 0.1 * v[::3]  # one of each 5 sources
    v = (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)
    given = {"semantic_similarity": 0.93, "validation_share": 0.4}
    one = select_clips(table(rows), POLICY, embeddings=v, **given)
    moved = rng.permutation(150)
    assert one.equals(
        select_clips(table([rows[k] for k in moved]), POLICY, embeddings=v[moved], **given)
    )
    found = by_id(one)
    source = {row["clip_id"]: row["video"] for row in rows}
    side = {source[i]: row["split"] for i, row in found.items() if row["split"]}
    linked = [
        (source[i], source[row["reason"].removeprefix("shows the same as ")])
        for i, row in found.items()
        if row["reason"]
    ]
    assert len(linked) == 40
    assert all(side[a] == side[b] for a, b in linked)
    assert set(side.values()) == {"train", "validation"}
