"""The scores that a detector gives, and runs whose detector does not give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation import config
from curation.stage import PlanError, RunContext
from curation.storage import Folder
from pipelines import select
from pipelines.settings import DEFAULT_CONFIG, Settings
from stages.decode_pass import DecodePass
from tests.support.small_input import scene, write_video

SCORES = ("cut_probability", "gradual_probability")


def first_clip(tmp_path: Path, detector: str) -> dict[str, Any]:
    source = write_video(tmp_path / "take.mp4", scene(1), 16)
    decode = DecodePass(detector=detector)
    decode.setup(RunContext(str(tmp_path / "ledger")))
    [row] = decode.process([{"video": str(source), "bytes": source.stat().st_size}])
    return row["clips"][0]


def test_clip_of_one_take_has_low_probabilities_of_a_cut_and_of_a_gradual_transition(tmp_path):
    clip = first_clip(tmp_path, "learned")
    assert 0 <= clip["cut_probability"] < 0.3
    assert 0 <= clip["gradual_probability"] < 0.5


def test_clip_of_a_detector_without_probabilities_has_nulls_with_a_reason(tmp_path):
    clip = first_clip(tmp_path, "content")
    for name in SCORES:
        assert clip[name] is None
        assert clip["null_reasons"][name] == "the detector content does not give it"


def test_policy_on_the_scores_of_another_detector_is_refused_before_the_run(tmp_path):
    def check(*overrides: str) -> None:
        given = ["input=x", f"output={tmp_path}", *overrides]
        settings = config.load(Settings, DEFAULT_CONFIG, given)
        select.check(settings, Folder(str(tmp_path)), will_score=True)

    check()
    with pytest.raises(PlanError, match=r"2 scores .*: cut_probability, gradual_probability\n"):
        check("score.decode.detector=content")
    check("score.decode.detector=content", *(f"select.policy.{name}=null" for name in SCORES))
