"""The segmentation experiment: its videos, its oracle on true and altered videos, its variants."""

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from curation import config
from curation.config import ConfigError
from training import sca
from training.segmentation import run as experiment
from training.segmentation.__main__ import main
from training.segmentation.config import VARIANTS, ExperimentConfig
from training.segmentation.figures import draw_all, tables
from training.segmentation.network import (
    RELAY_SLOPE,
    DenseBlock,
    Network,
    Prompts,
    frame_weights,
    make_plan,
    time_codes,
)
from training.segmentation.oracle import judge
from training.segmentation.run import Results, Run, next_runs, run_test, train
from training.segmentation.videos import COLOURS, STEP, caption_tokens, make_videos, render, tracks

SMALL = config.load(ExperimentConfig, "configs/train/segmentation_small.yaml", [])
TINY = replace(
    SMALL, steps=2, sweep_steps=1, test_every=1, test_videos=2, batch=2, more_events=(4,)
)
TINY = replace(TINY, sample=replace(SMALL.sample, steps=1), rates=(1e-3, 2e-3))
VIDEOS = make_videos(64, 5, 0)
CPU = torch.device("cpu")
torch.set_num_threads(1)


def judged(frames, videos=VIDEOS) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in judge(videos, frames).items()}


@pytest.mark.parametrize("events", [5, 10, 20])
def test_oracle_finds_every_event_of_true_videos(events):
    videos = make_videos(32, events, 1)
    assert set(judged(render(videos), videos).values()) == {1.0}


def test_oracle_withstands_noise():
    noise = 13 * torch.randn(render(VIDEOS).shape, generator=torch.Generator().manual_seed(0))
    found = judged((render(VIDEOS) + noise).clamp(0, 255).to(torch.uint8))
    assert found["joint"] > 0.98


def test_events_of_other_videos_are_counted_as_wrong():
    found = judged(render(VIDEOS).roll(1, 0))
    assert found["joint"] < 0.1
    assert found["colour"] < 0.4
    assert found["order"] < 0.6


def test_reversed_videos_have_the_wrong_order_and_slower_ones_the_right_one():
    frames = render(VIDEOS)
    assert judged(frames.flip(1))["order"] < 0.8
    late = torch.cat([frames[:, :1].expand(-1, 4, -1, -1, -1), frames], 1)
    assert judge(VIDEOS, late)["order"].mean() > 0.97
    assert judged(late[:, : VIDEOS.frames])["joint"] < 0.6


def test_oracle_finds_neither_movement_nor_objects_where_there_are_none():
    frames = render(VIDEOS)
    static = judged(frames[:, :1].expand_as(frames))
    assert static["direction"] == static["joint"] == 0
    assert set(judged(torch.full_like(frames, 90)).values()) == {0.0}


def test_events_have_unequal_lengths_and_all_movements_are_equally_long():
    assert set(VIDEOS.lengths.ravel()) == {3, 4, 5, 6, 7}
    assert (VIDEOS.lengths.sum(1) == 25).all()
    centres, _ = tracks(VIDEOS)
    ends = torch.from_numpy(VIDEOS.starts[:, 1:] - 1)
    at_ends = centres[torch.arange(64)[:, None], ends]
    moved = at_ends.diff(dim=1).abs().sum((2, 3))
    assert torch.allclose(moved, torch.full_like(moved, STEP), atol=1e-4)


def test_captions_refer_to_earlier_events():
    names = list(COLOURS)
    kinds = set()
    for video in range(64):
        colours = [names[c] for c in VIDEOS.colours[video, :, 0]]  # of the disc
        others = [names[c] for c in VIDEOS.colours[video, :, 1]]
        for event, text in enumerate(VIDEOS.captions(video)):
            assert len(caption_tokens(text)) == 14
            if "disc" not in text.split("and moves")[0].split("of the")[0] or not event:
                continue
            kinds |= {word for word in ("turns", "returns", "takes") if word in text.split()}
            if "returns" in text:
                assert colours[event + 1] == colours[0] != colours[event]
            elif "takes" in text:
                assert colours[event + 1] == others[event] != colours[event]
            else:
                assert f"turns {colours[event + 1]}" in text
    assert kinds == {"turns", "returns", "takes"}


def test_test_videos_are_not_those_of_training():
    sizes = (8, 5)
    training = make_videos(*sizes, experiment.TRAINING, 0, 0)
    test = make_videos(*sizes, experiment.TEST, 0, 5)
    assert not np.array_equal(training.colours, test.colours)
    assert np.array_equal(training.colours, make_videos(*sizes, experiment.TRAINING, 0, 0).colours)


@pytest.mark.parametrize("widen_frames", [0, 1])
def test_frames_attend_to_captions_as_in_the_trainer(widen_frames):
    prompts = Prompts.of(VIDEOS)
    found = frame_weights(prompts.spans, VIDEOS.frames, widen_frames)
    for weights, spans in zip(found, prompts.spans.tolist(), strict=True):
        mode = "overlapped" if widen_frames else "isolated"
        expected = sca.schedule([(a, b) for a, b in spans], VIDEOS.frames, mode)
        assert torch.equal(weights.double(), expected)


@pytest.mark.parametrize("attends", ["own", "widened", "all"])
def test_dense_cross_attention_equals_the_trainers_formula(attends):
    """On words without padding, whose lengths the reference gets."""
    torch.manual_seed(0)
    videos = make_videos(3, 3, 2)
    prompts = Prompts.of(videos)
    model = replace(SMALL.model, cross_attention_dim=SMALL.model.width)
    block = DenseBlock(model)
    x = torch.randn(3, 15 * 2, model.width)
    text = torch.randn(3, prompts.tokens[0].numel(), model.width)
    plan = make_plan(prompts, 15, attends)
    with torch.no_grad():
        found = block.cross_attention(x, text, plan, "cpu")
        words = (prompts.tokens != 0).flatten(1)
        lengths = (prompts.tokens != 0).sum(2)
        if attends == "all":
            lengths = lengths.sum(1, keepdim=True)
            schedules = [torch.ones(1, 15)] * 3
        else:
            schedules = list(frame_weights(prompts.spans, 15, int(attends == "widened")))
        k, v = block.attn2.keys_values(text[words])
        q = block.attn2.split(block.attn2.to_q(x))
        expected = sca.reference(q, k, v, schedules, lengths.tolist(), 2).flatten(2)
    assert torch.allclose(found, expected, atol=1e-5)


def test_relative_variant_lowers_the_logits_outside_a_captions_span():
    prompts = Prompts.of(VIDEOS)
    plan = make_plan(prompts, VIDEOS.frames, "near")
    start, end = prompts.spans[0, 1].tolist()
    of_caption = plan.distance[0, :, 14]  # the second caption's first word
    assert of_caption[int(start) : int(end)].eq(0).all()
    assert of_caption[int(end)] == 0.25
    assert np.exp(-RELAY_SLOPE * 2**2) == pytest.approx(1e-3)


def test_captions_are_encoded_alone_or_together():
    torch.manual_seed(0)
    prompts = Prompts.of(VIDEOS)
    changed = replace(prompts, tokens=prompts.tokens.clone())
    changed.tokens[:, 0] = prompts.tokens.roll(1, 0)[:, 0]
    for name, variant in VARIANTS.items():
        network = Network(variant, SMALL.model, SMALL.text).eval()
        with torch.no_grad():
            second = [
                network.text(p.tokens.flatten(1), p.caption_of_token(), variant.separate)[:, 14:]
                for p in (prompts, changed)
            ]
        assert torch.allclose(*second, atol=1e-6) == (name in ("isolated", "overlapped"))


def test_joint_encoding_depends_on_distances_between_words_alone():
    torch.manual_seed(0)
    network = Network(VARIANTS["joined"], SMALL.model, SMALL.text).eval()
    tokens = Prompts.of(VIDEOS).tokens.flatten(1)
    later = torch.nn.functional.pad(tokens, (14, 0))
    with torch.no_grad():
        encoded = network.text(tokens, tokens * 0, False)
        shifted = network.text(later, later * 0, False)[:, 14:]
    assert torch.allclose(encoded, shifted, atol=1e-5)


def test_one_caption_is_attended_to_by_all_frames():
    prompts = Prompts.of(VIDEOS)
    one = replace(prompts, one_caption=torch.ones(64, dtype=torch.bool))
    for attends in ("own", "widened", "near", "all"):
        plan = make_plan(one, VIDEOS.frames, attends)
        allowed = (plan.bias == 0) & (plan.weight[..., None] > 0)
        assert torch.equal(
            allowed.any(0), (prompts.tokens.flatten(1) != 0)[:, None].expand(-1, 25, -1)
        )


def test_time_codes_depend_on_absolute_times():
    prompts = Prompts.of(VIDEOS)
    frames, captions = time_codes(prompts, 25, 64, 48)
    later = replace(prompts, offset=prompts.offset + 7)
    assert torch.allclose(time_codes(later, 25, 64, 48)[0][:, :-7], frames[:, 7:], atol=1e-5)
    assert not torch.allclose(time_codes(later, 25, 64, 48)[1], captions)


def test_shifted_borders_stay_in_the_video_and_leave_every_caption_a_frame():
    prompts = Prompts.of(VIDEOS)
    for shift in (-3.0, 3.0):
        spans = prompts.with_shifted_borders(torch.full((64,), shift)).spans
        assert (spans[:, :, 1] - spans[:, :, 0] >= 1).all()
        assert torch.equal(spans[:, 1:, 0], spans[:, :-1, 1])
        assert (spans[:, 2, 0] - prompts.spans[:, 2, 0] == shift).all()


def test_runs_are_made_tested_and_drawn_once(tmp_path):
    results = Results(TINY, tmp_path)
    assert next_runs(TINY, results, ["isolated"]) == [
        Run("sweep", "isolated", 1e-3, 0),
        Run("sweep", "isolated", 2e-3, 0),
    ]
    for rate in TINY.rates:
        run = Run("sweep", "isolated", rate, 0)
        results.add(*experiment.execute(TINY, run)[:2])
    (final,) = next_runs(TINY, results, ["isolated"])
    assert (final.kind, final.seed) == ("final", 1)
    results.add(*experiment.execute(TINY, final)[:2])
    stored = Results(TINY, tmp_path)
    assert stored.rows.to_pylist() == results.rows.to_pylist()
    assert next_runs(TINY, stored, ["isolated"]) == []
    experiment.run_all(TINY, ["isolated"], tmp_path)  # nothing is missing
    for cfg in (replace(TINY, seeds=1, concurrency=2), replace(TINY, rates=TINY.rates[:1])):
        experiment.check_settings(cfg, tmp_path)
    other = replace(TINY, batch=3, model=replace(TINY.model, num_layers=7))
    with pytest.raises(ConfigError, match=r"has runs of other settings \(batch: .*; model\.num_l"):
        experiment.run_all(other, ["isolated"], tmp_path)
    draw_all(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names >= {"results.csv", "tables.md", "accuracy.png", "samples.png"}
    text = tables(pq.read_table(tmp_path / "results.parquet"))
    assert "| correct events | as trained | 4 events | borders off by 2 | one caption |" in text
    assert "as trained: 1.0000 of 2 drawn videos" in text


def test_run_whose_process_dies_is_named_in_one_line_and_the_others_go_on(tmp_path, capsys):
    def kill_first_child() -> None:
        while not (found := spawned_children()):
            time.sleep(0.01)
        os.kill(found[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_first_child)
    killer.start()
    cfg = replace(TINY, concurrency=1, seeds=0, mixed_seeds=0)
    with pytest.raises(experiment.RunsFailed, match=r"^sweep:isolated:0\.001:0 failed; the same"):
        experiment.run_all(cfg, ["isolated"], tmp_path)
    killer.join()
    printed = capsys.readouterr().out
    assert "sweep:isolated:0.001:0 failed: its process died, perhaps for lack of mem" in printed
    assert "Traceback" not in printed
    assert Results(cfg, tmp_path).finished() >= {Run("sweep", "isolated", 2e-3, 0)}


def spawned_children() -> list[int]:
    """Process ids of the children of this process that multiprocessing spawned."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_spawned = b"spawn_main" in (folder / "cmdline").read_bytes()
            found += [int(folder.name)] if parent == os.getpid() and is_spawned else []
    return found


def test_tables_state_the_mean_and_each_seed_where_seeds_differ():
    parts = []
    for seed, test in ((1, "as trained"), (2, "borders off by 2")):
        (found,) = (t for t in experiment.list_tests(SMALL) if t.name == test)
        rows, _ = run_test(SMALL, found._replace(videos=8), None, CPU)
        rows = rows.set_column(2, "loss", [[0.1] * len(rows)])
        run = Run("final", "masked", 1e-3, seed)
        parts.append(experiment.labelled(rows, run, SMALL.steps, "as trained"))
    first, second = (np.mean(p["joint"].to_pylist()) for p in parts)
    assert first == 1 > second
    mean = f"{(1 + second) / 2:.2f}".removeprefix("0")
    text = tables(pa.concat_tables(parts))
    start = f"| `masked` | {mean} [1.00 {second:.2f}] (".replace("[1.00 0", "[1.00 ")
    assert f"| correct events | as trained |\n|---|---|\n{start}" in text
    assert "| `masked` | .10 |" in text


def test_the_rate_with_the_lowest_loss_is_chosen(tmp_path):
    results = Results(TINY, tmp_path)
    for rate, loss in zip(TINY.rates, (0.2, float("nan")), strict=True):
        rows, _ = run_test(TINY, experiment.list_tests(TINY)[0], None, CPU)
        rows = rows.set_column(2, "loss", [[loss] * len(rows)])
        run = Run("sweep", "masked", rate, 0)
        results.add(experiment.labelled(rows, run, TINY.sweep_steps, "as trained"), {})
    assert results.best_rate(TINY, "masked") == TINY.rates[0]
    assert results.best_rate(TINY, "isolated") is None


def test_variants_of_a_seed_train_on_the_same_videos_and_half_of_mixed_clips_have_one_caption():
    networks = {n: Network(v, TINY.model, TINY.text) for n, v in VARIANTS.items()}
    cfg = replace(TINY, batch=64)
    batches = {
        n: experiment.training_batch(cfg, Run("final", n, 1e-3, 1), 0, network)
        for n, network in networks.items()
    }
    for latents, prompts in batches.values():
        assert torch.equal(latents, batches["joined"][0])
        assert torch.equal(prompts.tokens, batches["joined"][1].tokens)
        assert not prompts.one_caption.any()
    mixed = Run("mixed", "isolated", 1e-3, 1)
    _, prompts = experiment.training_batch(cfg, mixed, 0, networks["isolated"])
    assert 16 < prompts.one_caption.sum() < 48


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_trains_on_both_kinds_of_clips(name):
    steps = list(train(TINY, Run("mixed", name, 1e-3, 1), CPU))
    assert [step for step, _ in steps] == [1, 2]
    assert all(p.isfinite().all() for p in steps[-1][1].parameters())


def test_mistyped_variant_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="ConfigError: VARIANT is 'tow': expected one of isolated"):
        main(["configs/train/segmentation_small.yaml", str(tmp_path), "tow"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_isolated_captions_set_colours():
    """The experiment at a size for a CPU: above chance, one in six."""
    for _step, network in train(SMALL, Run("final", "isolated", 2e-3, 1), CPU):
        rows, _ = run_test(SMALL, experiment.list_tests(SMALL)[0], network, CPU)
    assert np.mean(rows["colour"].to_pylist()) > 0.35
