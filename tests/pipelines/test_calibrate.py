"""Calibration finds known relations between scores, with ranges that contain the truth."""

import re
from functools import partial

import numpy as np
import pyarrow as pa
import pytest

from curation import config
from curation.policy import Range
from curation.stage import PlanError
from curation.storage import Folder
from pipelines import calibrate, score
from pipelines.settings import DEFAULT_CONFIG, Settings
from pipelines.tables import read_clips
from tests.selection.test_clip_selection import clip, random_fingerprint, table
from tests.support.small_input import SETTINGS, scene, write_video


def scored(known: np.ndarray, other: np.ndarray, clips_a_video: int = 4) -> pa.Table:
    sha256 = [f"{number // clips_a_video:03}" for number in range(len(known))]
    columns = {"motion_dis": known, "motion_raft": other, "sha256": sha256}
    return pa.table(columns)


def speeds(rng: np.random.Generator, clips: int) -> np.ndarray:
    return np.exp(rng.normal(2.0, 1.0, clips))


@pytest.mark.parametrize(("end", "at"), [("min", 6.0), ("max", 20.0)])
def test_rule_on_a_monotonic_function_of_a_score_is_that_function_of_the_threshold(end, at):
    known = speeds(np.random.default_rng(0), 400)
    clips = scored(known, 3 * known**0.8)
    about, line, rule = calibrate.match_rule("motion_dis", Range(**{end: at}), "motion_raft", clips)
    assert "400 clips of 100 videos; rank correlation 1.000" in about
    assert "both agree on 100.0%" in line
    found = float(re.search(rf"{end}: ([\d.]+)", rule)[1])
    assert found == pytest.approx(3 * at**0.8, rel=0.02)


def test_range_contains_the_true_threshold_about_19_times_in_20():
    rng, at, held = np.random.default_rng(1), 6.0, 0

    def drawn(videos: int) -> tuple[np.ndarray, np.ndarray]:
        known = np.repeat(speeds(rng, videos), 4)  # the clips of a video have similar motion
        return known, 0.5 * known * np.exp(np.repeat(rng.normal(0, 0.3, videos), 4))

    truth = calibrate.matching_threshold(*drawn(100_000), at, lowest=True)
    for _ in range(60):
        known, other = drawn(50)

        def statistic(rows, k=known, o=other):
            return calibrate.matching_threshold(k[rows], o[rows], at, lowest=True)

        low, high = calibrate.bootstrap_range(statistic, np.repeat(np.arange(50), 4))
        held += low <= truth <= high
    assert held >= 52


@pytest.mark.parametrize(
    ("rule", "other", "message"),
    [
        ("motion_diss: {min: 1}", "motion_raft", "motion_diss is not a score; did you mean motion"),
        ("motion_dis: {min: 1}", "motion_rafft", "motion_rafft is not a score; did you mean"),
        ("motion_dis: {}", "motion_raft", "min None, max None is no range"),
        ("7: {min: 1}", "motion_raft", "7 is not a score; known: "),
        ("motion_dis 1", "motion_raft", "motion_dis 1: expected a rule, 'motion_dis: {min: 13}'"),
        (
            "motion_dis: {min: 1}",
            "text_similarity_tfidf",
            "is a score of captions; expected one of",
        ),
    ],
)
def test_rule_or_score_that_no_output_has_is_refused(rule, other, message):
    with pytest.raises(SystemExit, match=f"ConfigError: .*{re.escape(message)}"):
        calibrate.main(["no output", rule, other])


def test_rule_that_all_clips_pass_is_refused():
    clips = scored(np.array([5.0, 6.0]), np.array([1.0, 2.0]))
    with pytest.raises(PlanError, match=r"2 of 2 clips pass motion_dis min 3: .*5 to 6"):
        calibrate.match_rule("motion_dis", Range(min=3), "motion_raft", clips)


def test_similarity_limit_lies_between_unrelated_clips_and_copies():
    rng = np.random.default_rng(2)
    rows, v = [], []
    for number in range(40):  # each source twice, re-encoded: its fingerprint and embedding differ
        shown = rng.normal(size=64)
        for copy in range(2):
            name = f"{number:02}{copy}"
            rows.append(clip(name, name, fingerprint=random_fingerprint(number)))
            v.append(shown + 0.1 * rng.normal(size=64))
    rows.append(clip("none", "none"))
    vectors = np.array([*v, np.full(64, np.nan)], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    about, unrelated, copies, _, *limits = calibrate.compare_embeddings(table(rows), vectors)
    assert about.startswith("80 of 80 clips with embeddings, of 80 videos; 40 pairs of copies")
    below, above = (
        float(re.search(r"(?:below|above) ([\d.]+)", s)[1]) for s in (unrelated, copies)
    )
    assert 0.3 < below < 0.7 < 0.95 < above
    assert [line.split()[1:4:2] for line in limits[:3]] == [["100.00%", "0.00%"]] * 3
    assert limits[0].endswith("50.0%")


def at_speed(picture, speed: int, index: int, width: int, height: int) -> np.ndarray:
    return picture(speed * index, width, height)


def test_part_that_a_video_repeats_counts_as_a_copy_of_the_same_footage():
    rows = [clip(f"{k}", "one", fingerprint=random_fingerprint(k % 3)) for k in range(4)]
    vectors = np.eye(4, dtype=np.float32)
    about, *_ = calibrate.compare_embeddings(table(rows), vectors)
    assert "1 pairs of copies of the same footage, 5 pairs of other clips of one video" in about


@pytest.mark.slow
def test_raft_threshold_is_calibrated_by_dis_on_a_scored_output(cluster, tmp_path, capsys):
    from tests.support.tiny_models import save_random_raft

    for number in range(3):
        film = partial(at_speed, scene(number), number + 1)
        write_video(tmp_path / "in" / f"{number}.mp4", film, width=160, height=128)
    _, weights = save_random_raft(tmp_path)
    out = str(tmp_path / "out")
    given = [f"input={tmp_path / 'in'}", f"output={out}", "score.models.gpus=0"]
    given += ["score.decode.key_frames.pair_gap_s=0.1", f"score.models.raft.weights={weights}"]
    score.run(config.load(Settings, DEFAULT_CONFIG, [*SETTINGS, *given]), Folder(out), cluster)
    motion = read_clips(Folder(out), ["motion_dis"])["motion_dis"].to_numpy()
    calibrate.main([out, f"motion_dis: {{min: {np.median(motion)}}}", "motion_raft"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{len(motion)} clips of 3 videos; rank correlation")
    assert "select.policy.motion_raft='{min: " in printed
