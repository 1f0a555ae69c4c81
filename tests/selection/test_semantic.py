"""Clips that show the same by their embeddings: against a plain loop, in any order."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import records
from curation.policy import Policy, Range
from stages.selection import semantic
from stages.selection.selection import select
from stages.selection.semantic import alike, vectors
from tests.selection.test_selection import by_id, clip, moving_print, table

EMBEDDING = records.schema(records.EMBEDDING)
POLICY = Policy(width=Range(min=1280))


def drawn(rng, n: int, dims: int = 12, spread: float = 0.3) -> np.ndarray:
    """(n, dims) of length 1, about a handful of centres: cosines of all sizes."""
    centres = rng.normal(size=(max(1, n // 8), dims))
    v = centres[rng.integers(0, len(centres), n)] + spread * rng.normal(size=(n, dims))
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def one_by_one(v, rank, limit):
    """What `alike` says, by a loop: the best first, each compared with every kept one."""
    twin, links, kept = np.full(len(v), -1), set(), []
    wide = v.astype(np.float64)
    for k in np.argsort(rank).tolist():
        same = [j for j in kept if wide[k] @ wide[j] > limit]
        links |= {(k, j) for j in same}
        if same:
            twin[k] = same[0]
        else:
            kept.append(k)
    return twin, links


def as_set(links):
    """Each pair as (clip that is out, kept one)."""
    return set(map(tuple, links.tolist()))


@pytest.fixture(params=[3, 16, 2048])
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(semantic, "ROWS", request.param)


@pytest.mark.parametrize("limit", [0.5, 0.9, 0.97])
def test_clips_that_agree_are_those_of_a_loop_over_all_pairs(rows_at_once, limit):
    rng = np.random.default_rng(1)
    for n in (0, 1, 2, 37, 200):
        v, rank = drawn(rng, n), rng.permutation(n)
        twin, links = alike(v, rank, limit)
        expected, pairs = one_by_one(v, rank, limit)
        assert twin.tolist() == expected.tolist()
        assert {tuple(sorted(p)) for p in as_set(links)} == {tuple(sorted(p)) for p in pairs}
    assert 0 < (twin >= 0).sum() < n


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60))
def test_the_order_of_the_rows_changes_nothing(seed, n):
    rng = np.random.default_rng(seed)
    v, rank, moved = drawn(rng, n), rng.permutation(n), rng.permutation(n)
    twin, links = alike(v, rank, 0.9)
    twin_moved, links_moved = alike(v[moved], rank[moved], 0.9)
    back = np.append(moved, -1)
    assert back[twin_moved].tolist() == twin[moved].tolist()
    assert as_set(moved[links_moved]) == as_set(links)


def test_what_lies_at_the_limit_is_told_alike_whatever_is_compared_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    limit, dims, n = 0.9, 768, 60
    axis = np.zeros((n, dims))
    axis[:, 0] = 1
    side = np.linalg.qr(rng.normal(size=(dims - 1, n)))[0].T
    cosine = limit + rng.uniform(-2e-7, 2e-7, n)
    axis[1:, 0], axis[1:, 1:] = cosine[1:], (np.sqrt(1 - cosine**2)[:, None] * side)[1:]
    v, rank = axis.astype(np.float32), np.arange(n)
    expected, _ = one_by_one(v, rank, limit)
    assert 5 < (expected >= 0).sum() < n - 5
    for max_concurrency in (2, 7, 64):
        monkeypatch.setattr(semantic, "ROWS", max_concurrency)
        assert alike(v, rank, limit)[0].tolist() == expected.tolist()


def embeddings(rows) -> pa.Table:
    made = [
        {"clip_id": name, "model": "m", "key_frames": list(frames.astype(np.float16))}
        for name, frames in rows
    ]
    return pa.Table.from_pylist(made, schema=EMBEDDING)


def test_what_a_clip_shows_is_the_mean_of_its_key_frames_and_its_later_row_counts(rows_at_once):
    rng = np.random.default_rng(3)
    frames = {f"c{k}": drawn(rng, 1 + k % 5, 8) for k in range(20)}
    stale = embeddings([("c3", drawn(rng, 5, 8)), ("unlisted", drawn(rng, 2, 8))])
    names = [*reversed(frames), "without"]
    ids = pa.chunked_array([names[:7], names[7:]])
    v = vectors([stale, embeddings(frames.items())], ids)
    assert v.shape == (21, 8)
    for name, found in zip(names[:-1], v, strict=False):
        mean = frames[name].astype(np.float16).astype(np.float64).mean(0)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.isnan(v[-1]).all()
    assert np.isnan(vectors([], ids)).all()


def test_of_clips_that_show_the_same_the_best_is_kept_and_the_others_name_it():
    rows = [clip(k, k, width=1280 + 10 * k) for k in range(4)] + [clip("dark", "d", width=640)]
    rows.append(clip("copy", "c", fingerprint=rows[3]["fingerprint"]))
    v = np.array([[1, 0], [0.99, 0.14], [0, 1], [1, 0], [1, 0], [np.nan, 0]], np.float32)
    found = by_id(select(table(rows), POLICY, semantic_similarity=0.95, vectors=v))
    best = rows[3]["clip_id"]
    assert [found[row["clip_id"]]["reasons"] for row in rows] == [
        [f"shows the same as {best}"],
        [f"shows the same as {best}"],
        *([], []),
        ["width 640 < 1280"],
        [f"duplicate of {best}"],
    ]
    without = by_id(select(table(rows), POLICY))
    assert [without[row["clip_id"]]["status"] for row in rows[:4]] == ["kept"] * 4


def test_a_clip_without_embeddings_is_rejected_and_says_so():
    v = np.array([[1, 0], [np.nan, np.nan]], np.float32)
    rows = [clip(k, k) for k in range(2)]
    found = by_id(select(table(rows), POLICY, semantic_similarity=0.95, vectors=v))
    assert found[rows[0]["clip_id"]]["status"] == "kept"
    assert found[rows[1]["clip_id"]]["reasons"] == ["embeddings not measured"]


def test_train_and_validation_never_share_what_is_shown_and_the_order_changes_nothing():
    rng = np.random.default_rng(4)
    rows = [clip(k, k // 3, fingerprint=moving_print(k)) for k in range(150)]
    v = rng.normal(size=(150, 48))
    v[::3] = np.repeat(rng.normal(size=(10, 48)), 5, 0) + 0.1 * v[::3]  # one of each 5 sources
    v = (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)
    given = {"semantic_similarity": 0.93, "validation_share": 0.4}
    one = select(table(rows), POLICY, vectors=v, **given)
    moved = rng.permutation(150)
    assert one.equals(select(table([rows[k] for k in moved]), POLICY, vectors=v[moved], **given))
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
