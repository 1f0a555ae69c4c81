"""The sample of an audit, and precision and recall from marks of it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.storage import Folder
from pipelines.browse import audit as audit_command
from pipelines.browse.audit_marks import AuditSample, AuditSettings
from pipelines.browse.output import Output
from pipelines.reviews import MARK, Review, write_review
from stages.report.audit import (
    KEPT,
    agreement,
    allocate,
    audit,
    draw_sample,
    estimate_share,
    wilson_interval,
)
from tests.support.local_page import local_page


def population(rng: np.random.Generator, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """(n,) strata and whether each clip is good; the rules differ in size and in precision."""
    shares = {KEPT: 0.3, "duration_s": 0.5, "text_share": 0.15, "motion_dis": 0.05}
    good = {KEPT: 0.9, "duration_s": 0.05, "text_share": 0.3, "motion_dis": 0.5}
    strata = rng.choice(np.array(list(shares), object), n, p=list(shares.values()))
    return strata, rng.random(n) < np.vectorize(good.get)(strata)


def test_sample_is_half_kept_and_has_clips_of_every_rule():
    sizes = {KEPT: 5000, "a": 10_000, "b": 100, "c": 1}
    found = allocate(sizes, 100)
    assert sum(found.values()) == 100
    assert found[KEPT] == 50
    assert found["c"] == 1
    assert found["a"] > found["b"] >= 4
    assert allocate({KEPT: 3, "a": 2}, 100) == {KEPT: 3, "a": 2}
    assert allocate({KEPT: 80, "a": 2}, 60) == {KEPT: 58, "a": 2}
    assert allocate({"a": 7}, 4) == {"a": 4}


def test_sample_is_a_function_of_the_seed_and_a_larger_one_has_the_same_clips():
    rng = np.random.default_rng(0)
    strata, _ = population(rng)
    uniform = rng.random(len(strata))
    small, large = (set(draw_sample(strata.tolist(), uniform, n).tolist()) for n in (50, 200))
    assert len(small) == 50
    assert small < large
    assert list(draw_sample(strata.tolist(), uniform, 50)) == list(
        draw_sample(strata.tolist(), uniform, 50)
    )
    failed = [None if i % 2 else s for i, s in enumerate(strata.tolist())]
    assert not any(row % 2 for row in draw_sample(failed, uniform, 50))


def test_intervals_hold_the_true_shares_in_95_of_100_samples():
    rng = np.random.default_rng(1)
    strata, good = population(rng)
    kept = strata == KEPT
    sizes = {str(name): int((strata == name).sum()) for name in set(strata)}
    true = {"precision": good[kept].mean(), "recall": kept[good].mean()}
    for rule in set(strata) - {KEPT}:
        hit = strata == rule
        true[f"precision {rule}"] = (~good)[hit].mean()
        true[f"recall {rule}"] = hit[~good].mean()
    held = dict.fromkeys(true, 0)
    errors: dict[str, list[float]] = {name: [] for name in true}
    trials = 400
    for _ in range(trials):
        rows = draw_sample(strata.tolist(), rng.random(len(strata)), 200)
        rules = [frozenset() if strata[i] == KEPT else frozenset([strata[i]]) for i in rows]
        found = audit(sizes, strata[rows].tolist(), good[rows].tolist(), rules)
        shares = {"precision": found.precision, "recall": found.recall}
        for of_rule in found.rules:
            shares[f"precision {of_rule.rule}"] = of_rule.precision
            shares[f"recall {of_rule.rule}"] = of_rule.recall
        for name, share in shares.items():
            held[name] += share.low <= true[name] <= share.high
            errors[name].append(share.value - true[name])
    for name in true:
        assert held[name] / trials > 0.92, (name, held[name])
        assert abs(np.mean(errors[name])) < 0.02, (name, np.mean(errors[name]))


def test_weights_undo_the_unequal_shares_of_the_strata():
    # 10 of 1,000 kept clips and 10 of 100 rejected ones are marked
    strata = np.array([KEPT] * 10 + ["a"] * 10, object)
    good = np.array([True] * 9 + [False] + [True] * 2 + [False] * 8)
    sizes = {KEPT: 1000, "a": 100}
    rules = [frozenset()] * 10 + [frozenset(["a"])] * 10
    found = audit(sizes, strata.tolist(), good.tolist(), rules)
    assert found.precision.value == pytest.approx(0.9)
    assert found.recall.value == pytest.approx(900 / 920)
    [rule] = found.rules
    assert rule.precision.value == pytest.approx(0.8)
    assert rule.recall.value == pytest.approx(80 / 180)


def test_marks_of_all_clips_leave_no_interval_and_no_marks_no_number():
    strata, good = ["kept", "kept", "a"], [True, False, True]
    rules = [frozenset(), frozenset(), frozenset(["a"])]
    found = audit({KEPT: 2, "a": 1}, strata, good, rules)
    assert (found.precision.low, found.precision.value, found.precision.high) == (0.5, 0.5, 0.5)
    assert (found.recall.low, found.recall.value, found.recall.high) == (0.5, 0.5, 0.5)
    none = audit({KEPT: 2, "a": 1}, [], [], [])
    assert none.precision.value is None
    assert none.unmarked_strata == ["a", KEPT]
    x = np.ones(4, bool)
    all_good = estimate_share(x, x, np.array([KEPT] * 4, object), {KEPT: 100})
    assert all_good.value == 1
    assert all_good.low == pytest.approx(wilson_interval(1.0, 4)[0])


def test_wilson_interval_has_the_published_values():
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        found = wilson_interval(hits / n, n)
        assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_kappa_has_the_value_of_its_definition():
    # 20 both good, 5 and 10 one of the two, 15 both bad: observed 0.7, expected 0.5
    a = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    b = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement(a, b)
    assert (found.clips, found.equal) == (50, 35)
    assert found.kappa == pytest.approx(0.4)
    half = 1.959964 * math.sqrt(0.7 * 0.3 / 50) / 0.5
    assert (found.low, found.high) == (pytest.approx(0.4 - half), pytest.approx(0.4 + half))
    assert agreement([True] * 3, [True] * 3).kappa is None
    assert agreement([], []).clips == 0


@pytest.fixture
def out(dataset, tmp_path) -> Path:
    return Path(shutil.copytree(dataset.out, tmp_path / "out"))


def test_marks_of_two_people_are_reported_and_an_audit_continues(out, capsys):
    folder = Folder(str(out))
    with local_page(str(out), audit=AuditSettings(0, 100)) as page:
        sample = [clip["clip_id"] for clip in page.get("/api/audit").json["clips"]]
        rows = {row["clip_id"]: row for row in pq.read_table(out / "clips.parquet").to_pylist()}
        assert sorted(sample) == sorted(rows)
        for clip_id in sample[:-1]:
            value = "good" if rows[clip_id]["status"] == "kept" else "bad"
            mark = {"kind": "mark", "clip_id": clip_id, "reviewer": "Ada", "value": value}
            assert page.post("/api/reviews", mark).status == 200
    write_review(folder, Review(sample[0], MARK, "Bo", "good"), print)
    write_review(folder, Review(sample[1], MARK, "Bo", "bad"), print)
    with local_page(str(out), audit=AuditSettings(0, 100)) as page:  # another process
        marks = page.get("/api/audit?reviewer=Ada").json["clips"]
        assert [clip["clip_id"] for clip in marks] == sample
        assert [clip["mark"] is None for clip in marks] == [False] * 5 + [True]
        results = page.get("/api/audit/results").json
        assert results["reviewers"]["Ada"]["marked"] == 5
        assert results["reviewers"]["Ada"]["precision"]["value"] == 1.0
        assert results["pairs"][0]["clips"] == 2
    audit_command.main([str(out), "--report"])
    printed = capsys.readouterr().out
    assert "Ada: 5 clips marked" in printed
    assert "policy: precision 100.0% (" in printed
    assert "Ada and Bo: 2 clips marked by both" in printed
    audit_command.main([str(out), "--report", "--size", "4"])
    assert "sample of 4 clips" in capsys.readouterr().out


def test_audit_shows_no_decision_score_or_caption(out):
    with local_page(str(out), audit=AuditSettings(0, 100)) as page:
        info = page.get("/api/output").json
        assert "policy" not in info
        assert "rules" not in info
        for one in page.get("/api/audit").json["clips"]:
            clip = page.get(f"/api/clips/{one['clip_id']}").json
            assert not {"status", "reasons", "rule", "scores", "caption", "captions"} & clip.keys()
        assert page.post("/api/clips", {}).status == 400
        assert page.post("/api/preview", {"policy": {}}).status == 400
        assert page.get("/api/histogram/motion_dis").status == 400


def test_sample_of_another_seed_has_other_clips(out):
    output = Output.read(Folder(str(out)))
    drawn = {tuple(AuditSample.draw(output, AuditSettings(seed, 2)).clip_ids) for seed in range(9)}
    assert len(drawn) > 1
