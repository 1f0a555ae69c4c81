"""The acts experiment: its videos, its oracle on true and damaged ones, its arms."""

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from curation import config
from curation.config import ConfigError
from tests.training.test_train import SYSTEM
from training import sca
from training.segmentation import figures as acts_figures
from training.segmentation.experiment import (
    ARMS,
    ORDER,
    ActsConfig,
    TimedSystem,
    Videos,
    gather,
    name_and_seed,
    run_arm,
    told,
)
from training.segmentation.oracle import bleed, compare, see
from training.segmentation.videos import (
    DIRECTIONS,
    Stage,
    clip_of,
    core,
    draw,
    play,
    shares,
    unseen,
)
from training.text_to_video import Script, System

STAGE = Stage()
SMALL = config.load(ActsConfig, "configs/train/acts_small.yaml", [])
PLAYS = [play(STAGE, i, test=True) for i in range(60)]
torch.set_num_threads(1)


def judged(change=lambda script, video: (script, video)) -> dict[str, float]:
    """The oracle's means over true videos, or over what `change` makes of them."""
    found: dict[str, list[float]] = {}
    for script in PLAYS:
        script, video = change(script, draw(STAGE, script))
        seen = see(STAGE, video)
        values = {k: np.mean(v) for k, v in compare(script, seen).items()}
        values |= {"abruptness": np.nanmean([*seen.abruptness, np.nan])}
        values |= {"teleports": np.mean(seen.teleports), "path_px": seen.path_px}
        for name, value in values.items():
            found.setdefault(name, []).append(float(value))
    return {name: float(np.nanmean(values)) for name, values in found.items()}


def noisy(sigma):
    rng = np.random.default_rng(0)

    def change(script, video):
        return script, np.clip(video + rng.normal(0, 255 * sigma, video.shape), 0, 255).astype("u1")

    return change


def test_a_true_video_shows_its_script():
    found = judged()
    for name in ("colour", "shape", "direction", "joint", "ground"):
        assert found[name] == 1, name
    assert found["teleports"] == 0
    assert found["abruptness"] == pytest.approx(1 / 3, abs=0.02)
    assert found["path_px"] == pytest.approx(STAGE.speed * 21, rel=0.1)


def test_noise_and_blur_do_not_confuse_the_oracle():
    def blurred(script, video):
        return script, np.stack([cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in video])

    for change in (noisy(0.05), blurred):
        found = judged(change)
        assert found["joint"] > 0.98
        assert found["ground"] > 0.95
        assert found["abruptness"] == pytest.approx(1 / 3, abs=0.04)
        assert found["teleports"] == 0


def test_captions_of_other_acts_are_mostly_wrong_and_keep_the_ground():
    rng = np.random.default_rng(0)

    def shuffled(script, video):
        order = rng.permutation(STAGE.acts)
        return replace(script, acts=tuple(script.acts[i] for i in order)), video

    found = judged(shuffled)
    assert 0.1 < found["joint"] < 0.35
    assert found["ground"] == 1


def test_videos_glued_from_five_others_jump_and_change_at_once():
    def glued(script, video):
        others = [draw(STAGE, play(STAGE, 1000 + 5 * script.number + i)) for i in range(5)]
        parts = [o[a:b] for o, (a, b) in zip(others, pairwise(STAGE.cuts), strict=True)]
        return script, np.concatenate(parts)

    found = judged(glued)
    assert found["joint"] < 0.05
    assert found["teleports"] > 0.6
    assert found["abruptness"] > 0.55


def test_a_still_and_an_empty_video_have_no_direction_and_no_object():
    still = judged(lambda script, video: (script, video[:1].repeat(len(video), 0)))
    assert still["direction"] == 0
    assert still["path_px"] < 1
    empty = judged(lambda script, video: (script, np.full_like(video, 90)))
    assert empty["colour"] == empty["shape"] == empty["direction"] == 0
    assert empty["teleports"] == 1


def test_the_bleed_matrix_tells_whose_caption_an_act_shows():
    script = PLAYS[0]
    moved = replace(script, acts=script.acts[1:] + script.acts[:1])
    matrix = bleed(moved, see(STAGE, draw(STAGE, script)))
    assert all(matrix[i, i - 1] == 1 for i in range(STAGE.acts))


def test_neighbouring_acts_differ_in_everything_and_the_object_stays_in_the_picture():
    for script in PLAYS:
        for a, b in pairwise(script.acts):
            assert a.colour != b.colour
            assert a.shape != b.shape
            assert a.direction != b.direction
        assert script.centres.min() >= STAGE.radius
        assert script.centres.max() <= STAGE.width - STAGE.radius
        assert np.abs(np.diff(script.centres, axis=0)).sum(1).max() < STAGE.speed + 1e-6
        start = script.centres[0] - np.array(DIRECTIONS[script.acts[0].direction]) * STAGE.speed
        assert np.abs(start - STAGE.width / 2).max() <= STAGE.astray + 1e-6


def test_training_never_shows_the_acts_that_are_held_out_and_the_test_does():
    hidden = unseen(STAGE)
    assert len(hidden) == round(0.1 * 6 * 4 * 4)
    assert not any(hidden.intersection(play(STAGE, i).acts) for i in range(300))
    assert any(hidden.intersection(script.acts) for script in PLAYS)


def test_frames_of_one_act_are_those_that_no_border_touches():
    weights = shares(STAGE)
    assert np.allclose(weights.sum(0), 1)
    for number, frames in enumerate(core(STAGE)):
        assert (weights[number, frames] == 1).all()
    alone = sum(len(frames) for frames in core(STAGE))
    assert alone == (weights.max(0) == 1).sum() == 22 - 8


def test_each_arm_s_network_hears_what_the_arm_says():
    clip = clip_of(STAGE, PLAYS[0])
    heard = {}
    for name, arm in ARMS.items():
        got = told(clip, arm)
        script = Script.of(got, arm.mode)
        heard[name] = script.captions
    assert heard["overlapped"] == heard["timed"] == clip.sub_captions
    assert heard["single"] == clip.sub_captions[:1]
    assert heard["joined"] == [", then ".join(clip.sub_captions)]
    assert heard["two"] == [
        ", then ".join(clip.sub_captions[:3]),
        ", then ".join(clip.sub_captions[2:]),
    ]
    mixed = Videos(STAGE, ARMS["mixed"], 200)
    plain = Videos(STAGE, ARMS["overlapped"], 200)
    wrong = [mixed[i].sub_captions != plain[i].sub_captions for i in range(200)]
    assert 0.4 < np.mean(wrong) < 0.6


def test_timed_words_are_told_their_segment_s_time_and_heard_by_every_frame():
    torch.manual_seed(0)
    system = TimedSystem(SYSTEM)
    script = Script(replace(STAGE, frames=2, acts=2).spans, ["same", "same"])
    text = system.read([script])
    assert text.lengths == [[10]]
    assert not torch.allclose(text.tokens[:5], text.tokens[5:])
    assert [w.tolist() for w in system.schedules([script], 2)] == [[[1.0, 1.0]]]
    # codes depend on the absolute time: a longer video's first captions have the same ones
    four = Script(replace(STAGE, frames=4, acts=4).spans, ["same"] * 4)
    assert torch.allclose(system.read([four]).tokens[:10], text.tokens)
    slower = Script(replace(STAGE, frames=8, acts=4).spans, ["same"] * 4)
    assert not torch.allclose(system.read([slower]).tokens[:10], text.tokens)
    untimed = System(replace(SYSTEM, mode="isolated"))
    untimed.load_state_dict(system.state_dict())
    tokens = untimed.read([script]).tokens
    assert torch.allclose(tokens[:5], tokens[5:])


def test_tent_weights_go_over_from_one_centre_to_the_next():
    weights = sca.schedule([(0.0, 5.0), (5.0, 10.0)], 10, "tent")
    assert torch.allclose(weights.sum(0), torch.ones(10, dtype=torch.float64))
    assert weights[0].tolist() == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0])


def test_an_interval_holds_all_seeds_of_a_script_together():
    rows = [{"script": i, "joint": float(i % 2), "seed": s} for i in range(40) for s in range(3)]
    mean, low, high = acts_figures.interval(rows, "joint")
    assert mean == 0.5
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 40) ** 0.5, rel=0.2)
    assert acts_figures.interval(rows, "absent") is None


def test_names_of_arms_are_checked():
    assert [name_and_seed(a) for a in ("two", "two:3")] == [("two", 0), ("two", 3)]
    assert all(name_and_seed(arm) for arm in ORDER)
    with pytest.raises(ConfigError, match="'tow' is no arm"):
        name_and_seed("tow")


def test_an_arm_is_trained_tested_and_drawn_and_not_done_twice(tmp_path, capsys):
    small = replace(SMALL.train, steps=4, batch=2, warmup_steps=1)
    cfg = replace(SMALL, tests=5, longer=(3,), train=small)
    for arm in ("isolated", "timed", "two"):
        run_arm(cfg, arm, 0, tmp_path)
    first = capsys.readouterr().out
    run_arm(cfg, "isolated", 0, tmp_path)
    for line in (
        "isolated 0 2 own",
        "isolated 0 4 own",
        "timed 0 4 3 acts",
        "timed 0 4 24 px wide",
    ):
        assert line in first
    assert "two 0 4 3 acts" not in first
    assert not capsys.readouterr().out
    gather(cfg, tmp_path)
    acts_figures.draw_all(tmp_path)
    names = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert names >= {"acts.csv", "accuracy.png", "borders.png", "bleed.png", "elsewhere.png"}
    assert names >= {"strips-own-0.png", "strips-3_acts-0.png", "strips-24_px_wide-0.png"}
    with np.load(tmp_path / "strips.npz") as strips:
        assert strips["3 acts/truth"].shape == strips["3 acts/timed"].shape == (1, 12, 16, 16, 3)
        assert "3 acts/two" not in strips
    table = (tmp_path / "acts.csv").read_text().splitlines()
    assert any(line.startswith("truth,own,4,1,5,joint,1.0") for line in table)
    assert any(line.startswith("timed,own,2,1,1,loss_core,") for line in table)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_with_captions_of_its_own_each_act_shows_its_colour_and_with_one_it_does_not(tmp_path):
    """What the experiment asks, at a size for a CPU: isolated against single."""
    cfg = replace(SMALL, parts=1, train=replace(SMALL.train, steps=200))
    for arm in ("isolated", "single"):
        run_arm(cfg, arm, 0, tmp_path)
    gather(cfg, tmp_path)
    rows = pq.read_table(tmp_path / "acts.parquet").to_pylist()
    found = {
        arm: np.mean([r["colour"] for r in rows if (r["arm"], r["test"]) == (arm, "own")])
        for arm in ("isolated", "single")
    }
    assert found["isolated"] > 0.9
    assert found["single"] < 0.8
