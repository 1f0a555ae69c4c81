"""What only a GPU can show of training."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")

from curation import config
from tests.support.paths import REPOSITORY
from tests.support.ranks import on_ranks
from tests.support.tiny_run import CLIPS, HELD_OUT, SYSTEM, tiny_config, write_config
from training import checkpoint
from training.clips import ClipList
from training.config import AllegroConfig, Size, T5Config, TrainConfig
from training.dry_run import make_random_clip
from training.resume import build
from training.sample import main
from training.train import main as command
from training.train import sample_training_clip, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# a head of 96 numbers, as Allegro's: the GPU's kernels take no smaller parts
GPU = replace(SYSTEM, model=replace(SYSTEM.model, attention_head_dim=96), text=replace(SYSTEM.text, width=64, heads=1))  # fmt: skip  # noqa: E501


def trained(folder, steps, **changes):
    cfg = tiny_config(folder, system=GPU, precision="bf16", steps=steps, **changes)
    return train(cfg, CLIPS, HELD_OUT)


def exact(folder):
    uninterrupted = trained(folder / "uninterrupted", 6, deterministic=True)
    parts = [trained(folder / "parts", n, deterministic=True) for n in (2, 6)]
    return uninterrupted, parts[0] + parts[1]


def test_a_deterministic_run_resumes_with_equal_losses(tmp_path):
    (found,) = on_ranks(1, exact, tmp_path)  # the setting stays in its own process
    assert found[0] == found[1]


def test_the_smoke_configuration_trains_on_a_gpu(tmp_path):
    less = [f"run_dir={tmp_path}", "steps=2", "batch=1"]
    cfg = config.load(TrainConfig, REPOSITORY / "configs/train/smoke.yaml", less)
    assert len(train(cfg, ClipList([make_random_clip(cfg.system)]))) == 2


def several_ways(folder):
    ways = {"keep_activations": "attention", "compile": True}
    return [trained(folder / "plain", 3), trained(folder / "compiled", 3, **ways)]


def test_sharded_and_compiled_steps_equal_plain_ones_up_to_bf16(tmp_path):
    alone = trained(tmp_path / "alone", 3)
    (found,) = on_ranks(1, several_ways, tmp_path)
    for losses in found:
        assert losses == pytest.approx(alone, rel=0.03)


def test_the_sample_command_writes_a_video_of_a_checkpoint(tmp_path):
    trained(tmp_path / "run", 1)
    path = str(checkpoint.list_checkpoints(tmp_path / "run")[-1])
    main([path, str(tmp_path / "out.mp4"), "one", "two", "steps=2"])
    assert (tmp_path / "out.mp4").stat().st_size > 0


@pytest.mark.parametrize("parts", ["trained along", "pretrained"])
def test_sampling_frees_its_memory(tmp_path, parts):
    cfg, clips = tiny_config(tmp_path, system=GPU, precision="bf16"), CLIPS
    if parts == "pretrained":  # cached: codec and T5 are loaded for sampling only
        for library in ("diffusers", "transformers", "tokenizers"):
            pytest.importorskip(library)
        from tests.support import tiny_allegro

        folder = str(tiny_allegro.save(tmp_path / "weights"))
        pretrained = {
            "codec": AllegroConfig(folder),
            "text": T5Config(folder, tiny_allegro.TEXT_DIM),
        }
        cfg = replace(cfg, system=replace(GPU, size=Size(24, 320, 320), **pretrained))
        clips = ClipList([make_random_clip(cfg.system)])
    run = build(cfg)
    sample_training_clip(cfg, 1, run, clips)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for step in range(2, 5):
        sample_training_clip(cfg, step, run, clips)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert not checkpoint.list_checkpoints(tmp_path)


def too_large(path):
    """The error of a run that needs more than a fiftieth of the GPU."""
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        command(
            [path, "--dry-run", "batch=64", "system.size={frames: 64, height: 256, width: 256}"]
        )
    except SystemExit as error:
        return str(error)


def test_a_run_that_exceeds_gpu_memory_ends_with_settings_that_need_less(tmp_path):
    path = write_config(tmp_path, tiny_config(tmp_path / "run", system=GPU, precision="bf16"))
    (message,) = on_ranks(1, too_large, path)  # the limit stays in its own process
    assert message.startswith("rank 0: OutOfMemory: CUDA out of memory")
    assert "keep_activations=products" in message
