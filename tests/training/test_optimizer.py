"""Learning rate, weight decay, and steps that are skipped."""

import math
import sys
import threading
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")

from curation.config import ConfigError
from tests.support.tiny_run import CLIPS, SYSTEM, tiny_config
from training import checkpoint
from training.optimizer import build_optimizer, learning_rate
from training.text_to_video import System
from training.train import Diverged, train


def test_the_learning_rate_warms_up_and_decays_to_zero(tmp_path):
    def rates(decay):
        cfg = tiny_config(tmp_path, steps=10, lr=1.0, warmup_steps=2, lr_decay=decay)
        return [learning_rate(cfg, step) for step in range(10)]

    assert rates("none") == [0.5] + [1.0] * 9
    assert rates("linear") == pytest.approx([0.5, 1, *(i / 8 for i in range(8, 0, -1))])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0), 8
    )
    expected = [0.5, 1.0]
    for _ in range(8):
        expected += schedule.get_last_lr()
        schedule.optimizer.step()
        schedule.step()
    assert rates("cosine") == pytest.approx(expected)


def test_matrices_alone_decay_where_that_is_asked_for(tmp_path):
    system = System(SYSTEM)
    decayed, others = build_optimizer(
        tiny_config(tmp_path, decayed="matrices"), system
    ).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (1e-2, 0.0)
    names = {id(p): name for name, p in system.named_parameters()}
    kept = {names[id(p)] for p in others["params"]}
    assert len(kept) + len(decayed["params"]) == len(names)
    assert {"presto.scale_shift_table", "presto.proj_out.bias", "text.norm.weight"} <= kept
    assert not any(name.endswith("to_q.weight") for name in kept)
    (group,) = build_optimizer(tiny_config(tmp_path), system).param_groups
    assert len(group["params"]) == len(names)


class BrokenClips:
    """Cached clips, of which one has latents that are no numbers."""

    clip_ids = CLIPS.clip_ids

    def __getitem__(self, index):
        value = float("nan") if index == 2 else 0.1 * index
        return replace(CLIPS[index], latents=torch.full((96, 2, 4, 4), value))


def test_steps_whose_loss_is_no_number_are_skipped_up_to_the_limit(tmp_path, capsys):
    cfg = tiny_config(tmp_path, batch=1, accumulate=1, validation_clips=0, save_every=2)
    with pytest.raises(Diverged, match=r"with skip_steps=3 to leave such steps out"):
        train(cfg, BrokenClips())
    cfg = replace(cfg, run_dir=str(tmp_path / "skips"), skip_steps=2)
    losses = train(cfg, BrokenClips())
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert lines[0].endswith("skipped, 1 of at most 2")
    assert len(lines) == sum(map(math.isnan, losses)) >= 1
    last = checkpoint.list_checkpoints(cfg.run_dir)[-1]
    assert checkpoint.read_state(last)["skipped"] == len(lines)
    assert all(tensor.isfinite().all() for tensor in checkpoint.read_tensors(last).values())
    with pytest.raises(Diverged, match=r"after 2 skipped steps.*skip_steps=5"):
        train(replace(cfg, steps=30), BrokenClips())


def test_weights_and_biases_is_asked_for_but_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = threading.enumerate()
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(tiny_config(tmp_path, steps=1, wandb="presto"), CLIPS)
    assert set(threading.enumerate()) <= set(before)  # the log is closed: its writer is a thread
