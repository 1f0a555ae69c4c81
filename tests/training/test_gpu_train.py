"""What only a GPU can show of training."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")

from tests.support.ranks import on_ranks
from tests.training.test_train import CLIPS, HELD_OUT, SYSTEM, settings, written
from training import checkpoint
from training.config import AllegroConfig, Size, T5Config
from training.dry_run import random_clip
from training.resume import build
from training.sample import main
from training.train import main as command
from training.train import show, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# a head of 96 numbers, as Allegro's: the GPU's kernels take no smaller parts
GPU = replace(SYSTEM, model=replace(SYSTEM.model, attention_head_dim=96), text=replace(SYSTEM.text, width=64, heads=1))  # fmt: skip  # noqa: E501


def trained(folder, steps, **changes):
    cfg = settings(folder, system=GPU, precision="bf16", steps=steps, **changes)
    return train(cfg, CLIPS, HELD_OUT)


def exact(folder):
    whole = trained(folder / "whole", 6, deterministic=True)
    parts = [trained(folder / "parts", n, deterministic=True) for n in (2, 6)]
    return whole, parts[0] + parts[1]


def test_a_deterministic_run_goes_on_to_the_bit(tmp_path):
    (found,) = on_ranks(1, exact, tmp_path)  # the setting stays in its own process
    assert found[0] == found[1]


def several_ways(folder):
    ways = {"keep_activations": "attention", "compile": True}
    return [trained(folder / "plain", 3), trained(folder / "compiled", 3, **ways)]


def test_sharded_and_compiled_steps_are_those_of_autocast_up_to_bf16(tmp_path):
    alone = trained(tmp_path / "alone", 3)
    (found,) = on_ranks(1, several_ways, tmp_path)
    for losses in found:
        assert losses == pytest.approx(alone, rel=0.03)


def test_a_checkpoint_is_sampled_from_by_command(tmp_path):
    trained(tmp_path / "run", 1)
    path = str(checkpoint.saved(tmp_path / "run")[-1])
    main([path, str(tmp_path / "out.mp4"), "one", "two", "steps=2"])
    assert (tmp_path / "out.mp4").stat().st_size > 0


@pytest.mark.parametrize("parts", ["trained along", "frozen"])
def test_sampling_leaves_no_memory_behind(tmp_path, parts):
    cfg, clip = settings(tmp_path, system=GPU, precision="bf16"), CLIPS[0]
    if parts == "frozen":  # computed ahead: codec and T5Config are loaded for a sample alone
        for library in ("diffusers", "transformers", "tokenizers"):
            pytest.importorskip(library)
        from tests.support import tiny_allegro

        folder = str(tiny_allegro.save(tmp_path / "weights"))
        frozen = {
            "codec": AllegroConfig(folder),
            "text": T5Config(folder, tiny_allegro.TEXT_DIM),
        }
        cfg = replace(cfg, system=replace(GPU, size=Size(24, 320, 320), **frozen))
        clip = random_clip(cfg.system)
    run = build(cfg)
    show(cfg, 1, run, clip)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for step in range(2, 5):
        show(cfg, step, run, clip)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert not checkpoint.saved(tmp_path)


def too_large(path):
    """What a run says that needs more than a fiftieth of the GPU."""
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        command(
            [path, "--dry-run", "batch=64", "system.size={frames: 64, height: 256, width: 256}"]
        )
    except SystemExit as error:
        return str(error)


def test_a_run_that_a_gpu_cannot_hold_ends_with_what_lowers_its_need(tmp_path):
    path = written(tmp_path, settings(tmp_path / "run", system=GPU, precision="bf16"))
    (said,) = on_ranks(1, too_large, path)  # the limit stays in its own process
    assert said.startswith("rank 0: OutOfMemory: CUDA out of memory")
    assert "keep_activations=products" in said
