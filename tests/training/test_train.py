"""Runs of the trainer: resuming, stopping, losses."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from curation import config
from curation.config import ConfigError
from tests.support.drawn_clips import dataset, row
from tests.support.tiny_run import (
    CLIPS,
    HELD_OUT,
    SYSTEM,
    children,
    tiny_config,
    write_config,
)
from training import checkpoint
from training.clips import ClipList
from training.config import (
    DiffusionConfig,
    T5Config,
    TrainConfig,
)
from training.data import Batch, as_tensors, reraise_user_errors, seeded_generator
from training.export import main as export_main
from training.parallel import World
from training.resume import build
from training.text_to_video import Prompt, System
from training.train import Diverged, batch_loss, drop_captions, main, train, validation_loss
from training.weights import BadWeights, export_presto, load_presto

ALONE = World(torch.device("cpu"))


def state(folder, step=6) -> tuple[dict, dict]:
    """state.json without the settings, and the tensors as numbers."""
    path = checkpoint.folder_of_step(folder, step)
    values = {k: v for k, v in checkpoint.read_state(path).items() if k != "settings"}
    return values, {name: t.tolist() for name, t in checkpoint.read_tensors(path).items()}


# ---- resuming


@pytest.mark.parametrize("first", [2, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, finished_run, first):
    folder, losses = finished_run
    before = train(tiny_config(tmp_path, steps=first), CLIPS, HELD_OUT)
    after = train(tiny_config(tmp_path), CLIPS, HELD_OUT)
    assert len(before) == first
    assert before + after == losses
    assert state(folder) == state(tmp_path)


def test_a_run_killed_between_checkpoints_resumes_from_the_last(tmp_path, finished_run):
    _, losses = finished_run
    stopped = []

    class Cut(ClipList):
        def __getitem__(self, index):
            stopped.append(index)
            if len(stopped) > 18:  # in step 5
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(tmp_path), Cut(CLIPS.clips), HELD_OUT)
    assert train(tiny_config(tmp_path), CLIPS, HELD_OUT) == losses[3:]
    logged = (tmp_path / "metrics.csv").read_text()
    assert [line for line in logged.splitlines() if ",loss," in line] == [
        f"{step},loss,{loss!r}" for step, loss in enumerate(losses, 1)
    ]


def test_the_number_of_workers_changes_no_loss(tmp_path, finished_run):
    two = tiny_config(tmp_path, steps=3)
    two = replace(two, data=replace(two.data, workers=2))
    assert train(two, CLIPS, HELD_OUT) == finished_run[1][:3]


def test_gradient_accumulation_changes_the_loss_by_rounding_only(tmp_path, finished_run):
    one_by_one = train(tiny_config(tmp_path, batch=1, accumulate=4, steps=3), CLIPS, HELD_OUT)
    assert one_by_one == pytest.approx(finished_run[1][:3], rel=1e-4)


def test_a_finished_run_makes_no_more_steps_and_says_so(finished_run, capsys):
    folder, _ = finished_run
    assert train(tiny_config(folder), CLIPS, HELD_OUT) == []
    assert "nothing is left to train: steps is 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed: 0 -> 1"),
        ({"batch": 4}, r"samples a step, of all processes: 4 -> 8"),
        ({"system": replace(SYSTEM, mode="isolated")}, r"system.mode: 'overlapped' -> 'isolated'"),
        ({"diffusion": DiffusionConfig("v")}, r"diffusion.objective: 'epsilon' -> 'v'"),
    ],
)
def test_a_run_with_other_settings_does_not_resume(finished_run, change, message):
    with pytest.raises(ConfigError, match=message + r".*undo that, or give a new run_dir"):
        train(tiny_config(finished_run[0], **change), CLIPS, HELD_OUT)


def test_a_run_with_other_clips_does_not_resume(finished_run):
    with pytest.raises(ConfigError, match=r"other clips in"):
        train(tiny_config(finished_run[0]), HELD_OUT)


# ---- stopping


def test_a_non_finite_loss_stops_the_run_and_leaves_its_checkpoint(tmp_path):
    cfg = tiny_config(tmp_path, lr=1e30, warmup_steps=0)
    with pytest.raises(Diverged, match=r"step \d+: loss .*; start again with a lower lr"):
        train(cfg, CLIPS)
    with pytest.raises(Diverged, match=r"; resume from .*step-0000000\d with a lower lr"):
        train(replace(cfg, save_every=1), CLIPS)
    assert checkpoint.read_state(checkpoint.list_checkpoints(tmp_path)[-1])["step"] >= 1


def test_the_log_is_closed_where_a_run_stops(tmp_path):
    before = threading.enumerate()
    with pytest.raises(Diverged):
        train(tiny_config(tmp_path, lr=1e30, warmup_steps=0), CLIPS)
    assert set(threading.enumerate()) <= set(before)  # TensorBoard's writer is a thread


def test_a_clip_that_can_not_be_read_stops_the_run_with_its_id(tmp_path):
    folder = dataset(tmp_path / "data", [row(i) for i in range(3)])
    (folder / "shards" / "train-000000.tar").unlink()
    command = [write_config(tmp_path, tiny_config(tmp_path / "run")), f"data.dataset={folder}"]
    for workers in (0, 1):
        with pytest.raises(
            SystemExit, match=r"^BadData: clip [0-9a-f]{24} in .*pack the dataset.*$"
        ):
            main([*command, f"data.workers={workers}"])


def test_a_killed_worker_stops_the_run_in_one_line_and_leaves_its_checkpoint(tmp_path):
    folder = dataset(tmp_path / "data", [row(i) for i in range(3)])
    path = write_config(tmp_path, tiny_config(tmp_path / "run", steps=100_000, save_every=2))
    command = [sys.executable, "-m", "training.train", path, f"data.dataset={folder}"]
    running = subprocess.Popen([*command, "data.workers=1"], stderr=subprocess.PIPE, text=True)
    try:
        while not checkpoint.list_checkpoints(tmp_path / "run"):
            assert running.poll() is None
            time.sleep(0.1)
        (worker,) = children(running.pid)
        os.kill(worker, signal.SIGKILL)
        _, message = running.communicate()
    finally:
        running.kill()
    assert running.returncode == 1
    assert "Traceback" not in message
    assert "resumes from the last checkpoint" in message
    checkpoint.read_tensors(checkpoint.list_checkpoints(tmp_path / "run")[-1])


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_worker_that_dies_while_it_sends_a_batch_is_reported_as_a_dead_worker(error):
    def loader():
        yield as_tensors(CLIPS[0])
        raise error

    batches = reraise_user_errors(loader())
    assert next(batches).clip_id == CLIPS[0].clip_id
    with pytest.raises(RuntimeError, match="DataLoader worker exited unexpectedly"):
        next(batches)


def test_a_wrong_setting_and_a_missing_dataset_are_reported_in_one_line(tmp_path):
    path = write_config(tmp_path, tiny_config(tmp_path / "run"))
    with pytest.raises(SystemExit, match=r"ConfigError: .*leraning_rate is not a setting"):
        main([path, "leraning_rate=1"])
    with pytest.raises(SystemExit, match=r"BadData: .*shards.parquet: no such file"):
        main([path, f"data.dataset={tmp_path}"])
    held_out = dataset(tmp_path / "held out", [row(0, "validation")])
    with pytest.raises(SystemExit, match=r"held out: no clip to train on\n  fix: .*report.html"):
        main([path, f"data.dataset={held_out}"])
    folder = dataset(tmp_path / "data", [row(0)])
    with pytest.raises(SystemExit, match=r"system\.size\.frames is 4: the nearest .* 3 and 6"):
        main([path, f"data.dataset={folder}", "system.codec.frames=3"])


def test_an_unwritable_run_dir_is_reported_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^run_dir: can't make .*: Not a directory"):
        train(tiny_config(tmp_path / "file" / "run"), CLIPS)


def test_the_full_size_configuration_has_allegro_s_shape():
    cfg = config.load(TrainConfig, "configs/train/presto_2b8.yaml")
    with torch.device("meta"):
        system = System(cfg.system)
    assert sum(p.numel() for p in system.parameters()) == 2_771_907_856
    assert cfg.system.codec.latent_size(cfg.system.size) == (22, 90, 160)


def test_a_run_starts_from_weights_and_its_average_is_exported(tmp_path):
    torch.manual_seed(3)
    t5 = T5Config("nowhere", 24)
    clips = [replace(c, texts={t: torch.randn(3, 24) for t in ("", c.caption, *c.sub_captions)})
             for c in CLIPS.clips]  # fmt: skip
    cfg = tiny_config(tmp_path / "run", system=replace(SYSTEM, text=t5), steps=1, save_every=1)
    start = build(cfg).system.presto
    torch.nn.init.normal_(start.proj_out.weight)
    export_presto(start, tmp_path / "start", torch.float32)
    tuned = replace(cfg, weights=str(tmp_path / "start"), ema_decay=1.0, warmup_steps=1000)
    train(tuned, ClipList(clips))
    export_main([str(checkpoint.list_checkpoints(tmp_path / "run")[-1]), str(tmp_path / "out")])
    one, two = load_presto(tmp_path / "start"), load_presto(tmp_path / "out")
    changes = [(a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters())]  # noqa: B905
    assert max(changes) < 0.02  # a step at a thousandth of the rate, and bf16
    assert len(train(replace(tuned, steps=2, weights="gone"), ClipList(clips))) == 1
    with pytest.raises(BadWeights, match="gone: no transformer"):
        train(replace(tuned, weights="gone", run_dir=str(tmp_path / "new")), ClipList(clips))
    with pytest.raises(ConfigError, match=r"to T5.*set system\.text\.t5"):
        train(replace(tuned, system=SYSTEM, run_dir=str(tmp_path / "new")), CLIPS)


# ---- losses


def test_captions_are_dropped_at_the_given_rates():
    prompt = Prompt([(0, 1), (1, 2), (2, 3)], ["a", "b", "c"])
    drawn = [drop_captions(prompt, 0.1, 0.05, seeded_generator(0, i)).captions for i in range(4000)]
    none = sum(texts == ["", "", ""] for texts in drawn) / 4000
    some = sum(texts.count("") in (1, 2) for texts in drawn) / 4000
    assert none == pytest.approx(0.1, abs=0.015)
    assert some == pytest.approx(0.9 * (1 - 0.95**3), abs=0.02)
    assert drop_captions(prompt, 0, 0, seeded_generator(0)) == prompt


def test_a_sample_s_loss_does_not_depend_on_its_batch():
    cfg = tiny_config("unused")
    system = build(cfg).system
    torch.nn.init.normal_(system.presto.proj_out.weight)  # zero at the start: all would be equal
    clips = CLIPS.clips
    alone = [batch_loss(system, Batch.of([i], [clips[i]]), cfg)[0].item() for i in range(3)]
    together = batch_loss(system, Batch.of([0, 1, 2], clips[:3]), cfg)[0].item()
    assert together == pytest.approx(sum(alone) / 3, rel=1e-4)
    assert len(set(alone)) == 3
    other = batch_loss(system, Batch.of([7], [clips[0]]), cfg)[0].item()
    assert other != alone[0]  # another number, another noise


def test_the_validation_loss_repeats_and_is_none_without_clips():
    cfg = tiny_config("unused")
    system = build(cfg).system
    first = validation_loss(system, HELD_OUT, cfg, ALONE)
    assert first is not None
    assert math.isfinite(first)
    assert validation_loss(system, HELD_OUT, cfg, ALONE) == first
    assert validation_loss(system, None, cfg, ALONE) is None
    assert validation_loss(system, ClipList([]), cfg, ALONE) is None
