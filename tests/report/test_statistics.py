"""stats.parquet: the distribution of each score, by status of the clips."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.records import NULL_REASONS
from stages.report.statistics import STATUSES, bin_edges, score_statistics


def clips_of(status: list[str], null_reasons: list[list[tuple[str, str]]] | None = None, **scores):
    columns = {name: pa.array(v, pa.float32()) for name, v in scores.items()}
    null_reasons = null_reasons if null_reasons is not None else [[] for _ in status]
    return pa.table(
        {"status": status, **columns, "null_reasons": pa.array(null_reasons, NULL_REASONS)}
    )


def row(table: pa.Table, score: str, status: str) -> dict:
    (found,) = [r for r in table.to_pylist() if (r["score"], r["status"]) == (score, status)]
    return found


def test_each_score_has_a_row_for_each_status_and_one_for_all_clips():
    clips = clips_of(["kept", "rejected"], brightness=[1, 2], sharpness=[3, 4])
    found = [(r["score"], r["status"]) for r in score_statistics(clips).to_pylist()]
    assert found == [(s, g) for s in ("brightness", "sharpness") for g in STATUSES]


def test_percentiles_and_means_are_of_the_clips_of_that_status():
    rng = np.random.default_rng(0)
    kept, rejected = rng.normal(100, 10, 4000), rng.normal(50, 5, 1000)
    table = score_statistics(
        clips_of(["kept"] * 4000 + ["rejected"] * 1000, brightness=np.concatenate([kept, rejected]))
    )
    for status, values in (("kept", kept), ("rejected", rejected)):
        found = row(table, "brightness", status)
        assert found["count"] == len(values)
        assert found["mean"] == pytest.approx(values.mean(), rel=1e-6)
        assert found["p50"] == pytest.approx(np.median(values), rel=1e-6)
        assert found["p01"] == pytest.approx(np.percentile(values, 1), rel=1e-6)
        assert (found["min"], found["max"]) == pytest.approx((values.min(), values.max()))


def test_every_measured_clip_is_in_one_bin_and_all_statuses_share_the_edges():
    values = [*np.random.default_rng(1).gamma(2, 5, 997), 1e6, -40, 0]
    status = ["kept", "rejected", "failed", "kept"] * 250
    table = score_statistics(clips_of(status, motion_dis=values))
    rows = {g: row(table, "motion_dis", g) for g in STATUSES}
    assert len({tuple(r["edges"]) for r in rows.values()}) == 1
    assert {g: sum(r["counts"]) for g, r in rows.items()} == {
        "kept": 500,
        "rejected": 250,
        "failed": 250,
        "all": 1000,
    }
    parts = np.array([rows[g]["counts"] for g in STATUSES])
    assert (parts[:3].sum(0) == parts[3]).all()


def test_nulls_are_counted_by_reason_and_the_counts_add_up():
    clips = clips_of(
        ["kept", "kept", "rejected", "rejected", "rejected"],
        null_reasons=[
            [],
            [("text_share", "no weights")],
            [("text_share", "prefilter"), ("key_psnr", "prefilter")],
            [("text_share", "prefilter")],
            [],
        ],
        text_share=[0.5, None, None, None, None],
        key_psnr=[1, 2, None, float("inf"), 3],
    )
    table = score_statistics(clips)
    assert dict(row(table, "text_share", "kept")["null_reasons"]) == {"no weights": 1}
    rejected = row(table, "text_share", "rejected")
    assert rejected["nulls"] == 3
    assert dict(rejected["null_reasons"]) == {"prefilter": 2, "no cause recorded": 1}
    assert rejected["mean"] is None
    assert sum(rejected["counts"]) == 0
    assert dict(row(table, "key_psnr", "all")["null_reasons"]) == {"prefilter": 1, "not finite": 1}


def test_clips_that_fail_the_same_rule_of_the_prefilter_have_one_null_reason():
    reasons = ["0.9 s < 15 s", "0.3 s < 15 s", "height 480 < 720"]
    null_reasons = [[("text_share", f"failed the prefilter: {reason}")] for reason in reasons]
    clips = clips_of(["rejected"] * 3, null_reasons, text_share=[None] * 3)
    assert dict(row(score_statistics(clips), "text_share", "all")["null_reasons"]) == {
        "failed the prefilter: duration_s < 15 s": 2,
        "failed the prefilter: height < 720": 1,
    }


def test_null_reason_of_a_measured_score_is_not_counted():
    clips = clips_of(["kept"], null_reasons=[[("ken_burns_share", "stale")]], ken_burns_share=[0.1])
    assert row(score_statistics(clips), "ken_burns_share", "all")["null_reasons"] == []


def test_rare_null_reasons_are_counted_together():
    n = 3000
    null_reasons = [[("text_share", f"error {i}")] for i in range(n)]
    found = row(
        score_statistics(clips_of(["kept"] * n, null_reasons, text_share=[None] * n)),
        "text_share",
        "all",
    )
    assert len(found["null_reasons"]) == 51
    assert sum(n for _, n in found["null_reasons"]) == n == found["nulls"]


def test_scores_without_values_have_rows_without_a_histogram():
    for clips in (clips_of([], brightness=[]), clips_of(["kept"], brightness=[None])):
        found = row(score_statistics(clips), "brightness", "kept")
        assert (found["edges"], found["counts"], found["p50"]) == ([], [], None)


def test_chunked_tables_and_parquet_give_the_same_statistics(tmp_path):
    clips = clips_of(
        ["kept", "rejected", "kept"],
        [[("fps", "x")], [("brightness", "dark")], [("brightness", "dark")]],
        brightness=[1, None, None],
    )
    pieces = pa.concat_tables([clips.slice(i, 1) for i in range(3)])
    assert score_statistics(pieces).equals(score_statistics(clips))
    pq.write_table(clips, tmp_path / "clips.parquet")
    pq.write_table(score_statistics(clips), tmp_path / "stats.parquet")
    again = pq.read_table(tmp_path / "stats.parquet")
    assert again.equals(score_statistics(pq.read_table(tmp_path / "clips.parquet")))


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 1, 1000, dtype=np.float32),
        np.full(9, 0.1, np.float32),
        np.zeros(5),
        np.full(5, -3.7),
        np.array([1e-9, 2e-9]),
        np.array([1e12, 1e12 + 1]),
        np.concatenate([np.random.default_rng(2).normal(0, 1, 1000), [1e9, -1e9]]),
        np.array([0.0] * 999 + [1.0]),
    ],
)
def test_edges_ascend_contain_every_value_and_are_few(values):
    edges = bin_edges(values)
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= values.min()
    assert values.max() <= edges[-1]
    assert 2 <= len(edges) <= 70
    assert np.histogram(values, edges)[0].sum() == len(values)


def test_edges_are_round_numbers_as_thresholds_are():
    edges = bin_edges(np.linspace(0, 1, 5000))
    assert {0.0, 0.5, 0.05} <= {round(e, 12) for e in edges.tolist()}
    assert 0.5 in edges  # exactly


def test_clip_of_the_minimum_length_is_not_in_the_bin_below_it():
    values = np.array([3.0, 9.0, 15.0, 15.0])
    edges = bin_edges(values)
    counts = np.histogram(values, edges)[0]
    assert counts[np.searchsorted(edges, 15.0)] == 2
