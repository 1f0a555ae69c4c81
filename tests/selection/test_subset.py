"""Subsets of the kept clips: by a condition, at most so many, in equal numbers of each group."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from curation.funnel import normalize_reason, rule_of
from curation.partitions import as_bytes
from stages.selection.caption_rules import clips_to_caption
from stages.selection.selection_table import OUTSIDE_BY_CAPTION, OVER_LIMIT, SCHEMA, reject_clips
from stages.selection.subset import clips_over_limit, column_groups, embedding_groups
from tests.selection.test_clip_selection import POLICY, by_id, clip, select_clips, table


def limit_clips(selection: pa.Table, limit: int, seed: int, groups) -> pa.Table:
    kept = np.flatnonzero(pc.equal(selection["status"], "kept").to_numpy())
    clip_id = as_bytes(selection["clip_id"].take(pa.array(kept)))
    held_out = pc.equal(selection["split"], "validation").take(pa.array(kept)).to_numpy()
    group = None if groups is None else groups[kept]
    over = clips_over_limit(clip_id, held_out, limit, seed, group)
    return reject_clips(selection, kept[over], OVER_LIMIT)


def selection(n: int, rejected: int = 0, validation: int = 0) -> pa.Table:
    rows = [
        {
            "clip_id": f"{i:04d}",
            "status": "rejected" if i < rejected else "kept",
            "reason": "width 640 < 1280" if i < rejected else None,
            "reasons": ["width 640 < 1280"] if i < rejected else [],
            "split": None
            if i < rejected
            else "validation"
            if i < rejected + validation
            else "train",
        }
        for i in range(n)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def kept(chosen: pa.Table) -> list[str]:
    return [row["clip_id"] for row in chosen.to_pylist() if row["status"] == "kept"]


def test_clips_outside_the_condition_are_rejected_and_hide_no_duplicate():
    same = {"fingerprint": clip("a", "a")["fingerprint"]}
    rows = [clip("large", "s", width=1920, height=1080, **same), clip("small", "t", **same)]
    inside = pa.chunked_array([[False, True]])
    found = by_id(select_clips(table(rows), POLICY, inside=inside))
    assert found[rows[0]["clip_id"]]["reasons"] == ["outside where"]
    assert found[rows[1]["clip_id"]]["status"] == "kept"
    unknown = by_id(select_clips(table(rows), POLICY, inside=pa.chunked_array([[None, True]])))
    assert unknown == found


def test_reasons_of_subsets_have_rules():
    assert rule_of("outside where") == rule_of(OUTSIDE_BY_CAPTION) == "where"
    chosen = limit_clips(selection(3), 2, 0, None).to_pylist()
    [reason] = {row["reason"] for row in chosen} - {None}
    assert (rule_of(reason), normalize_reason(reason)) == ("limit", "limit")


def test_clip_outside_by_its_caption_is_captioned_by_another_captioner():
    rows = selection(2).to_pylist()
    rows[0] |= {"status": "rejected", "reasons": [OUTSIDE_BY_CAPTION]}
    rows[1] |= {"status": "rejected", "reasons": ["outside where"]}
    assert clips_to_caption(pa.Table.from_pylist(rows, SCHEMA)).to_pylist() == ["0000"]


def test_limit_draws_by_the_seed_and_not_by_the_order():
    everything = selection(100, rejected=20)
    drawn = limit_clips(everything, 10, 0, None)
    assert len(kept(drawn)) == 10
    assert drawn.schema == SCHEMA
    assert all(row["split"] is None for row in drawn.to_pylist() if row["status"] == "rejected")
    order = np.random.default_rng(0).permutation(100)
    assert sorted(kept(limit_clips(everything.take(order), 10, 0, None))) == kept(drawn)
    assert kept(limit_clips(everything, 10, 1, None)) != kept(drawn)
    assert set(kept(drawn)) < set(kept(limit_clips(everything, 20, 0, None)))
    assert limit_clips(everything, 80, 0, None).equals(everything)


def test_drawn_clips_are_in_both_splits():
    for seed in range(5):
        chosen = limit_clips(selection(500, validation=2), 5, seed, None).to_pylist()
        assert Counter(row["split"] for row in chosen if row["split"])["validation"] >= 1
    assert len(kept(limit_clips(selection(500, validation=2), 1, 0, None))) == 1


def test_balanced_draw_has_equal_numbers_of_each_group():
    groups = np.repeat([0, 1, 2, 3], [60, 30, 8, 2])
    for limit, expected in ((8, [2, 2, 2, 2]), (32, [11, 11, 8, 2]), (41, [16, 15, 8, 2])):
        drawn = {int(name) for name in kept(limit_clips(selection(100), limit, 3, groups))}
        counts = np.bincount(groups[sorted(drawn)], minlength=4)
        assert sorted(counts) == sorted(expected)


def test_groups_of_a_column_are_its_values_or_ranges():
    texts = column_groups(pa.chunked_array([["b", "a", None, "b"]]))
    assert texts.tolist() == [1, 0, 2, 1]
    many = column_groups(pa.chunked_array([[*np.linspace(0, 1, 1000), 1e9, None]]))
    counts = np.bincount(many[:-1])
    assert many[-1] == -1
    assert len(counts) == 10
    assert counts.min() >= 95
    names = column_groups(pa.chunked_array([[f"{i}.mp4" for i in range(200)]]))
    assert len(set(names)) == 200
    assert column_groups(pa.chunked_array([], pa.float32())).tolist() == []


def test_groups_of_embeddings_are_clips_that_look_alike():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 32))
    which = np.repeat(np.arange(5), [400, 40, 20, 10, 10])
    v = centres[which] + 0.05 * rng.normal(size=(480, 32))
    v = (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)
    v[-1] = np.nan
    groups = embedding_groups(v, 0)
    assert groups[-1] == -1
    for group in set(groups[:-1]):
        assert len(set(which[groups == group])) == 1  # no group mixes two kinds
    assert np.array_equal(groups, embedding_groups(v, 0))
    assert embedding_groups(np.full((2, 1), np.nan, np.float32), 0).tolist() == [-1, -1]


@pytest.mark.parametrize("n", [0, 1])
def test_limit_of_few_clips_keeps_them(n):
    assert limit_clips(selection(n), 1, 0, None).num_rows == n
