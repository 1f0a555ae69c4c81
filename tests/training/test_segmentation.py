"""The segmentation experiment: its videos, its oracle on true and altered videos, its variants."""

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
from tests.support.tiny_run import SYSTEM
from training import sca
from training.segmentation.config import ExperimentConfig, VideoConfig
from training.segmentation.figures import bootstrap_interval, draw_all
from training.segmentation.oracle import compare, confusion, observe
from training.segmentation.run import collect_results, run_variant
from training.segmentation.variants import (
    RUNS,
    VARIANTS,
    TimedSystem,
    TrainingVideos,
    parse_run,
    with_segments,
)
from training.segmentation.videos import (
    DIRECTIONS,
    boundaries,
    event_weights,
    make_video,
    render,
    single_event_frames,
    to_clip,
    unseen_events,
)
from training.text_to_video import Prompt, System

CONFIG = VideoConfig()
SMALL = config.load(ExperimentConfig, "configs/train/segmentation_small.yaml", [])
VIDEOS = [make_video(CONFIG, i, test=True) for i in range(60)]
torch.set_num_threads(1)


def measured(change=lambda video, frames: (video, frames)) -> dict[str, float]:
    """The oracle's means over the test videos, each after `change`; nan where nothing was found."""
    found: dict[str, list[float]] = {}
    for video in VIDEOS:
        video, frames = change(video, render(CONFIG, video))
        seen = observe(CONFIG, frames)
        values = compare(video, seen)
        values |= {"abruptness": [a for a in seen.abruptness if np.isfinite(a)]}
        values |= {"jumps": seen.jumps, "path_px": [seen.path_px]}
        for name, some in values.items():
            found.setdefault(name, []).extend(some)
    return {name: float(np.mean(some)) if some else np.nan for name, some in found.items()}


def with_noise(video, frames):
    rng = np.random.default_rng(video.number)
    noisy = frames + rng.normal(0, 0.05 * 255, frames.shape)
    return video, np.clip(noisy, 0, 255).astype(np.uint8)


def blurred(video, frames):
    return video, np.stack([cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in frames])


def test_oracle_finds_every_event_of_true_videos():
    found = measured()
    for name in ("colour", "shape", "direction", "joint", "background"):
        assert found[name] == 1, name
    assert found["jumps"] == 0
    assert found["abruptness"] == pytest.approx(1 / 3, abs=0.02)
    assert found["path_px"] == pytest.approx(CONFIG.speed * 21, rel=0.1)


@pytest.mark.parametrize("change", [with_noise, blurred])
def test_oracle_withstands_noise_and_blur(change):
    found = measured(change)
    assert found["joint"] > 0.98
    assert found["background"] > 0.95
    assert found["abruptness"] == pytest.approx(1 / 3, abs=0.04)
    assert found["jumps"] == 0


def test_events_in_another_order_are_counted_as_wrong():
    rng = np.random.default_rng(0)

    def shuffled(video, frames):
        order = rng.permutation(CONFIG.events)
        return replace(video, events=tuple(video.events[i] for i in order)), frames

    found = measured(shuffled)
    assert 0.1 < found["joint"] < 0.35
    assert found["background"] == 1


def test_concatenated_videos_have_jumps_and_abrupt_transitions():
    def concatenated(video, frames):
        others = [render(CONFIG, make_video(CONFIG, 1000 + 5 * video.number + i)) for i in range(5)]
        parts = [o[a:b] for o, (a, b) in zip(others, pairwise(boundaries(CONFIG)), strict=True)]
        return video, np.concatenate(parts)

    found = measured(concatenated)
    assert found["joint"] < 0.05
    assert found["jumps"] > 0.6
    assert found["abruptness"] > 0.55


def test_oracle_finds_no_direction_in_static_videos():
    found = measured(lambda video, frames: (video, frames[:1].repeat(len(frames), 0)))
    assert found["direction"] == 0
    assert found["path_px"] < 1


def test_oracle_finds_no_object_in_empty_videos():
    found = measured(lambda video, frames: (video, np.full_like(frames, 90)))
    assert found["colour"] == found["shape"] == found["direction"] == 0
    assert found["jumps"] == 1
    assert np.isnan(found["abruptness"])


def test_confusion_matrix_names_the_caption_that_each_event_shows():
    video = VIDEOS[0]
    rotated = replace(video, events=video.events[1:] + video.events[:1])
    matrix = confusion(rotated, observe(CONFIG, render(CONFIG, video)))
    assert all(matrix[i, i - 1] == 1 for i in range(CONFIG.events))


def test_consecutive_events_differ_and_the_object_stays_in_the_frame():
    for video in VIDEOS:
        for a, b in pairwise(video.events):
            assert a.colour != b.colour
            assert a.shape != b.shape
            assert a.direction != b.direction
        assert video.centres.min() >= CONFIG.radius
        assert video.centres.max() <= CONFIG.width - CONFIG.radius
        assert np.abs(np.diff(video.centres, axis=0)).sum(1).max() < CONFIG.speed + 1e-6
        first_step = np.array(DIRECTIONS[video.events[0].direction]) * CONFIG.speed
        offset = np.abs(video.centres[0] - first_step - CONFIG.width / 2)
        assert offset.max() <= CONFIG.max_start_offset + 1e-6


def test_unseen_events_occur_in_test_videos_only():
    unseen = unseen_events(CONFIG)
    assert len(unseen) == round(0.1 * 6 * 4 * 4)
    assert not any(unseen.intersection(make_video(CONFIG, i).events) for i in range(300))
    assert any(unseen.intersection(video.events) for video in VIDEOS)


def test_frames_of_a_single_event_exclude_transitions():
    weights = event_weights(CONFIG)
    assert np.allclose(weights.sum(0), 1)
    for number, frames in enumerate(single_event_frames(CONFIG)):
        assert (weights[number, frames] == 1).all()
    single = sum(len(frames) for frames in single_event_frames(CONFIG))
    assert single == (weights.max(0) == 1).sum() == 22 - 8


def test_each_variant_trains_on_its_own_captions():
    clip = to_clip(CONFIG, VIDEOS[0])
    captions = {
        name: Prompt.of(with_segments(clip, variant), variant.mode).captions
        for name, variant in VARIANTS.items()
    }
    assert captions["overlapped"] == captions["timed"] == clip.sub_captions
    assert captions["first_caption"] == clip.sub_captions[:1]
    assert captions["joined"] == [", then ".join(clip.sub_captions)]
    assert captions["two_segments"] == [
        ", then ".join(clip.sub_captions[:3]),
        ", then ".join(clip.sub_captions[2:]),
    ]


def test_half_of_the_captions_are_shuffled_in_half_shuffled():
    shuffled = TrainingVideos(CONFIG, VARIANTS["half_shuffled"], 200)
    ordered = TrainingVideos(CONFIG, VARIANTS["overlapped"], 200)
    differs = [shuffled[i].sub_captions != ordered[i].sub_captions for i in range(200)]
    assert 0.4 < np.mean(differs) < 0.6


def test_timed_variant_adds_time_codes_and_attends_to_all_captions():
    torch.manual_seed(0)
    system = TimedSystem(SYSTEM)
    two = Prompt(replace(CONFIG, frames=2, events=2).spans, ["same", "same"])
    text = system.encode_text([two])
    assert text.lengths == [[10]]
    assert not torch.allclose(text.tokens[:5], text.tokens[5:])
    assert [w.tolist() for w in system.schedules([two], 2)] == [[[1.0, 1.0]]]
    # codes depend on the absolute time: a longer video's first captions have the same ones
    four = Prompt(replace(CONFIG, frames=4, events=4).spans, ["same"] * 4)
    assert torch.allclose(system.encode_text([four]).tokens[:10], text.tokens)
    slower = Prompt(replace(CONFIG, frames=8, events=4).spans, ["same"] * 4)
    assert not torch.allclose(system.encode_text([slower]).tokens[:10], text.tokens)
    untimed = System(replace(SYSTEM, mode="isolated"))
    untimed.load_state_dict(system.state_dict())
    tokens = untimed.encode_text([two]).tokens
    assert torch.allclose(tokens[:5], tokens[5:])


def test_tent_weights_change_linearly_between_centres():
    weights = sca.schedule([(0.0, 5.0), (5.0, 10.0)], 10, "tent")
    assert torch.allclose(weights.sum(0), torch.ones(10, dtype=torch.float64))
    assert weights[0].tolist() == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0])


def test_intervals_resample_all_seeds_of_a_video_together():
    rows = [{"video": i, "joint": float(i % 2), "seed": s} for i in range(40) for s in range(3)]
    mean, low, high = bootstrap_interval(rows, "joint")
    assert mean == 0.5
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 40) ** 0.5, rel=0.2)
    assert bootstrap_interval(rows, "absent") is None


def test_mistyped_variant_is_refused():
    names = ("two_segments", "two_segments:3")
    assert [parse_run(name) for name in names] == [("two_segments", 0), ("two_segments", 3)]
    assert all(parse_run(run) for run in RUNS)
    with pytest.raises(ConfigError, match="'tow' is not a run"):
        parse_run("tow")


def test_variants_are_trained_tested_and_drawn_once(tmp_path, capsys):
    short = replace(SMALL.train, steps=4, batch=2, warmup_steps=1)
    cfg = replace(SMALL, test_videos=5, more_events=(3,), train=short)
    for name in ("isolated", "timed", "two_segments"):
        run_variant(cfg, name, 0, tmp_path)
    first = capsys.readouterr().out
    run_variant(cfg, "isolated", 0, tmp_path)
    for line in (
        "isolated 0 2 as trained",
        "isolated 0 4 as trained",
        "timed 0 4 3 events",
        "timed 0 4 24 px wide",
    ):
        assert line in first
    assert "two_segments 0 4 3 events" not in first
    assert not capsys.readouterr().out
    collect_results(cfg, tmp_path)
    draw_all(tmp_path)
    names = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert names >= {"results.csv", "accuracy.png", "transitions.png", "confusion.png"}
    assert names >= {"generalization.png", "samples-as_trained-0.png", "samples-3_events-0.png"}
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["3 events/truth"].shape == (1, 12, 16, 16, 3)
        assert samples["3 events/timed"].shape == (1, 12, 16, 16, 3)
        assert "3 events/two_segments" not in samples
    table = (tmp_path / "results.csv").read_text().splitlines()
    assert any(line.startswith("truth,as trained,4,1,5,joint,1.0") for line in table)
    assert any(line.startswith("timed,as trained,2,1,1,loss_single_event,") for line in table)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_isolated_captions_set_colours_that_the_first_caption_alone_does_not(tmp_path):
    """The experiment's question, at a size for a CPU."""
    cfg = replace(SMALL, tests=1, train=replace(SMALL.train, steps=200))
    for name in ("isolated", "first_caption"):
        run_variant(cfg, name, 0, tmp_path)
    collect_results(cfg, tmp_path)
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    found = {
        name: np.mean(
            [r["colour"] for r in rows if (r["variant"], r["test"]) == (name, "as trained")]
        )
        for name in ("isolated", "first_caption")
    }
    assert found["isolated"] > 0.9
    assert found["first_caption"] < 0.8
