"""The policy: reasons, their order and texts, and which policies are refused."""

import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from curation import records
from curation.config import ConfigError, load
from curation.policy import (
    Policy,
    Range,
    Values,
    check_columns,
    check_prefilter,
    decide,
    decide_table,
)
from curation.stage import PlanError
from tests.support.paths import REPOSITORY


@dataclass
class SettingsWithPolicy:
    policy: Policy = field(default_factory=Policy)


def test_rejected_clip_has_a_reason_with_its_value():
    assert decide({"static_share": 0.9}, Policy(static_share=Range(max=0.5))) == [
        "static_share 0.90 > 0.5"
    ]


def test_score_that_was_not_measured_does_not_pass_a_rule():
    policy = Policy(static_share=Range(max=0.5))
    assert decide({"static_share": None}, policy) == ["static_share not measured"]
    assert decide({}, policy) == ["static_share not measured"]
    assert decide({"static_share": float("nan")}, policy) == ["static_share not measured"]


def test_reason_of_a_score_that_was_not_measured_includes_its_null_reason():
    row = {
        "text_share": None,
        "null_reasons": {"text_share": "below the prefilter", "motion_dis": "x"},
    }
    assert decide(row, Policy(text_share=Range(max=0.1))) == [
        "text_share not measured: below the prefilter"
    ]


def test_reason_of_a_short_take_is_in_seconds():
    policy = Policy(duration_s=Range(min=15))
    assert decide({"duration_s": 9.31}, policy) == ["9.3 s < 15 s"]
    assert decide({"duration_s": 14.99}, policy) == ["14.99 s < 15 s"]
    assert decide({"duration_s": 15.0}, policy) == []
    assert decide({"duration_s": 40.1 - 25.1}, policy) == []  # 14.999999999999996


def test_reasons_follow_the_order_of_the_policy_with_missing_scores_last():
    policy = Policy(
        {
            "text_share": Range(max=0.1),
            "width": Range(min=1280),
            "brightness": Range(min=20, max=180),
        }
    )
    row = {"brightness": 200.0, "width": 640, "text_share": None}
    assert decide(row, policy) == [
        "width 640 < 1280",
        "brightness 200.00 > 180",
        "text_share not measured",
    ]


def test_value_equal_to_a_threshold_passes():
    assert decide({"artifact_share": 0.05}, Policy(artifact_share=Range(max=0.05))) == []
    assert decide({"brightness": 20.0}, Policy(brightness=Range(min=20, max=180))) == []


@given(
    value=st.floats(-1000, 1000, width=32),
    low=st.floats(-1000, 1000, width=32),
    high=st.floats(-1000, 1000, width=32),
)
def test_reason_is_given_exactly_where_a_value_is_outside_and_is_true_as_written(value, low, high):
    low, high = min(low, high), max(low, high)
    reasons = decide({"brightness": value}, Policy(brightness=Range(min=low, max=high)))
    assert len(reasons) == (not low <= value <= high)
    for text in reasons:
        _, shown, sign, bound = text.split()
        assert float(shown) < low if sign == "<" else float(shown) > high
        assert float(bound) == pytest.approx(low if sign == "<" else high, rel=1e-5)


def test_table_and_single_rows_get_the_same_reasons():
    rng = np.random.default_rng(0)
    policy = Policy(
        duration_s=Range(min=15), fps=Range(min=15, max=120), text_share=Range(max=0.08)
    )
    rows = [
        {
            "duration_s": float(d),
            "fps": float(f),
            "text_share": None if t > 0.15 else float(t),
            "null_reasons": [("text_share", "no frames")] if t > 0.18 else [],
        }
        for d, f, t in zip(
            rng.uniform(5, 30, 200), rng.uniform(5, 150, 200), rng.uniform(0, 0.2, 200), strict=True
        )
    ]
    kinds = {c.name: c.type for c in records.CLIP}
    table = pa.Table.from_pylist(rows, schema=pa.schema([(k, kinds[k]) for k in rows[0]]))
    decided = decide_table(table, policy).to_pylist()
    assert decided == [decide(row, policy) for row in rows]
    assert 0 < sum(not reasons for reasons in decided) < 200


def test_missing_column_is_not_measured():
    assert decide_table(
        pa.table({"width": [1280, 640]}), Policy(fps=Range(min=15))
    ).to_pylist() == [
        ["fps not measured"],
        ["fps not measured"],
    ]


def test_empty_table_or_empty_policy_gives_no_reasons():
    assert decide_table(pa.table({"fps": pa.array([], pa.float32())}), Policy()).to_pylist() == []
    assert decide({"fps": 3.0}, Policy()) == []


def test_unknown_column_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="brightnes is not a score; did you mean brightness"):
        Policy(brightnes=Range(min=20))


@pytest.mark.parametrize("ends", [{}, {"min": 2, "max": 1}, {"min": float("nan")}])
def test_invalid_range_is_refused(ends):
    with pytest.raises(ConfigError, match="expected min, max or both"):
        Range(**ends)


def test_policy_is_read_from_yaml_and_null_removes_a_rule():
    read = TypeAdapter(Policy).validate_python(
        {"width": {"min": 1280}, "text_share": None, "fps": {"min": 15, "max": 120}}
    )
    assert read == Policy(width=Range(min=1280), fps=Range(min=15, max=120))


def test_error_of_a_rule_that_is_not_a_range_lists_the_settings_of_one(tmp_path):
    (tmp_path / "c.yaml").write_text("policy: {fps: {min: 15, maks: 120}}")
    with pytest.raises(ConfigError, match=r"policy\.fps\.maks is 120: no such.*known: min, max$"):
        load(SettingsWithPolicy, tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"policy\.text_share is 0\.02: expected .*: min, max$"):
        load(SettingsWithPolicy, None, ["policy.text_share=0.02"])


def test_policy_that_needs_scores_without_a_scorer_is_refused_with_their_names():
    policy = Policy(
        width=Range(min=1280),
        motion_raft=Range(min=40),
        motion_dis=Range(min=1),
        key_lpips=Range(min=0.4),
    )
    with pytest.raises(PlanError, match=r"2 scores .*: motion_raft, key_lpips\n") as refused:
        check_columns(policy, ["motion_dis"])
    assert "motion_raft: needs RAFT optical flow" in str(refused.value)
    check_columns(policy, ["motion_dis", "motion_raft", "key_lpips"])


def policy_of(name: str) -> Policy:
    read = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    return TypeAdapter(Policy).validate_python(read["select"]["policy"])


COSTLY = ["text_share"]
PREFILTER = Policy(brightness=Range(min=20, max=235), motion_dis=Range(min=0.5))


@pytest.mark.parametrize(
    "rules",
    [
        {"brightness": Range(min=10, max=235), "motion_dis": Range(min=1)},
        {"brightness": Range(min=30), "motion_dis": Range(min=1)},
        {"motion_dis": Range(min=1)},
    ],
)
def test_policy_looser_than_the_prefilter_is_refused_with_what_to_run(rules):
    with pytest.raises(
        PlanError, match=r"looser than the prefilter .* in brightness; .*text_share"
    ) as e:
        check_prefilter(Policy(rules, text_share=Range(max=0.1)), PREFILTER, COSTLY)
    assert "clips that fail the prefilter are scored only in part" in str(e.value)
    assert "keep select.policy.brightness='{min: 20, max: 235}'" in str(e.value)
    assert (
        "into another output: python -m pipelines.score CONFIG input=INPUT output=OTHER_OUT "
        "score.decode.prefilter.brightness=null"
    ) in str(e.value)


def test_policy_within_the_prefilter_or_without_costly_scores_is_accepted():
    tight = {"brightness": Range(min=20, max=180), "motion_dis": Range(min=0.5)}
    check_prefilter(Policy(tight, text_share=Range(max=0.1)), PREFILTER, COSTLY)
    check_prefilter(Policy(width=Range(min=10)), PREFILTER, COSTLY)
    check_prefilter(Policy(width=Range(min=10), text_share=Range(max=0.1)), Policy(), COSTLY)


def test_hundred_thousand_clips_are_decided_in_less_than_two_cpu_seconds():
    rng = np.random.default_rng(0)
    names = ("brightness", "motion_dis", "static_share", "text_share")
    table = pa.table({n: rng.uniform(0, 1, 100_000).astype(np.float32) for n in names})
    start = time.process_time()
    reasons = decide_table(table, Policy({n: Range(min=0.3) for n in names}))
    assert time.process_time() - start < 2.0  # it takes 0.1 to 0.2: a loop over rows takes longer
    assert len(reasons) == 100_000


@pytest.mark.parametrize("name", ["longtake_hd_pretrain", "longtake_hd_finetune"])
def test_table_4_policy_without_weights_is_refused_with_the_three_scores_that_need_a_model(name):
    have = [c.name for c in records.SCORES if not c.model]
    named = ": aesthetic_laion_l14, motion_raft, key_lpips\n"
    with pytest.raises(PlanError, match=named):
        check_columns(policy_of(name), have)


def test_local_policy_needs_no_model():
    check_columns(policy_of("local"), [c.name for c in records.SCORES if not c.model])


def test_cluster_policy_is_the_local_one_with_a_rule_on_aesthetics():
    cluster = policy_of("cluster")
    assert cluster.pop("aesthetic_laion_l14") == Range(min=4.8)
    assert cluster == policy_of("local")


def test_default_policy_keeps_an_unmoved_cameras_take_with_little_motion():
    """Overlays can't be measured in it: overlay_share is null."""
    row = {"duration_s": 15.0, "width": 1280, "height": 720, "fps": 15.0, "brightness": 90.0}
    row |= dict.fromkeys(
        (
            "damaged_share",
            "frozen_share",
            "ken_burns_share",
            "border_share",
            "text_share",
            "cut_probability",
            "gradual_probability",
            "seam_share",
            "screen_share",
        ),
        0.0,
    )
    row |= {"static_share": 0.85, "artifact_share": 0.0, "overlay_share": None}
    assert decide(row, policy_of("local")) == []


def test_rules_of_listed_values_are_read_from_yaml_and_recorded_as_given():
    rules = {"interlaced": {"is": False}, "transfer": {"in": ["bt709", "unknown"]}}
    policy = TypeAdapter(Policy).validate_python(rules)
    assert policy == Policy(interlaced=Values(False), transfer=Values("bt709", "unknown"))
    assert {name: rule.as_setting() for name, rule in policy.items()} == rules


def test_value_that_is_not_listed_is_a_reason():
    policy = Policy(interlaced=Values(False), transfer=Values("bt709", "unknown"), fps=Range(min=9))
    passing = {"interlaced": False, "transfer": "unknown", "fps": 25.0}
    assert decide(passing, policy) == []
    assert decide(passing | {"interlaced": True, "transfer": "smpte2084"}, policy) == [
        "interlaced is true",
        "transfer is smpte2084",
    ]
    older = {"interlaced": None, "null_reasons": {"interlaced": "scored by an older version"}}
    assert decide(passing | older, policy) == [
        "interlaced not measured: scored by an older version"
    ]


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ({"interlaced": {"is": "no"}}, "expected true or false"),
        ({"interlaced": {"max": 0}}, "interlaced has no range"),
        ({"transfer": {"in": [1]}}, "expected texts"),
        ({"transfer": {"is": "\ud800"}}, "expected texts"),
        ({"width": {"is": 1920.5}}, "expected whole numbers"),
        ({"width": {"in": [1920, 3_000_000_000]}}, "expected whole numbers"),
        ({"fps": {"is": 10**400}}, "expected numbers"),
        ({"fps": {"is": float("nan")}}, "expected numbers"),
        ({"fps": {"is": None}}, "expected numbers"),
        ({"fps": {"in": [True]}}, "expected numbers"),
        ({"transfer": {"in": []}}, "is no rule"),
        ({"transfer": {"in": "bt709"}}, "is no rule"),
        ({"transfer": {"is": "bt709", "in": ["bt709"]}}, "is no rule"),
    ],
)
def test_values_that_a_column_can_not_have_are_refused(rules, error):
    with pytest.raises(ConfigError, match=error):
        TypeAdapter(Policy).validate_python(rules)


def test_listed_values_within_those_of_the_prefilter_are_no_looser():
    prefilter = Policy(transfer=Values("bt709", "unknown"), fps=Range(min=20))
    costly = ["text_share"]
    tight = Policy(transfer=Values("bt709"), fps=Values(25, 30), text_share=Range(max=0.1))
    check_prefilter(tight, prefilter, costly)
    loose = Policy(transfer=Values("smpte2084"), fps=Values(25), text_share=Range(max=0.1))
    with pytest.raises(
        PlanError, match="scored for bt709 or unknown, the policy asks for smpte"
    ) as e:
        check_prefilter(loose, prefilter, costly)
    assert """keep select.policy.transfer='{"in": ["bt709", "unknown"]}'""" in str(e.value)


@pytest.mark.parametrize(
    "null_reason", [records.NOT_DECODED, f"{records.FAILED_PREFILTER}height 480 < 720"]
)
def test_scores_that_were_not_computed_are_no_reasons_next_to_the_rule_that_is_why(null_reason):
    policy = Policy(height=Range(min=720), text_share=Range(max=0.1))
    clip = {"height": 480, "null_reasons": {"text_share": null_reason}}
    assert decide(clip, policy) == ["height 480 < 720"]
    assert decide({**clip, "height": 720}, policy) == [f"text_share not measured: {null_reason}"]
    unread = {"height": 480, "null_reasons": {"text_share": "no key frame was stored"}}
    assert len(decide(unread, policy)) == 2
