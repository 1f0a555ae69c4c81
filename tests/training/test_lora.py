"""Training with less memory: adapters, and an optimizer with 8-bit moments."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")

from safetensors.torch import load_file

from curation.torchvision_fix import fix_torchvision
from tests.support.ranks import on_ranks
from tests.support.tiny_run import CLIPS, SYSTEM, tiny_config
from training import checkpoint, resume
from training.clips import ClipList
from training.config import T5Config
from training.export import load_averaged_system
from training.export import main as export_main
from training.lora import ADAPTER_FILE
from training.resume import build, restore
from training.text_to_video import System
from training.train import train, validation_loss
from training.weights import export_presto, load_presto

# large enough for moments in 8 bits
WIDE = replace(SYSTEM, model=replace(SYSTEM.model, num_attention_heads=6))


class StartedSystem(System):
    """Its output depends on all weights from the first step on, as after a training."""

    def __init__(self, cfg):
        super().__init__(cfg)
        for block in (self.presto, *(b.attn2.to_out[0] for b in self.presto.blocks)):
            layer = getattr(block, "proj_out", block)
            torch.nn.init.normal_(layer.weight, std=0.1)


@pytest.fixture(autouse=True)
def started(monkeypatch):
    monkeypatch.setattr(resume, "System", StartedSystem)


def config(folder, kind, **changes):
    fix_torchvision()
    pytest.importorskip({"lora": "peft", "8 bit": "bitsandbytes"}[kind])
    chosen = {"lora": {"lora_rank": 2}, "8 bit": {"optimizer": "adamw8bit"}}[kind]
    return tiny_config(folder, system=WIDE, validation_clips=0, **chosen, **changes)


@pytest.mark.parametrize("kind", ["lora", "8 bit"])
def test_a_run_with_less_memory_resumes_to_the_last_bit(tmp_path, kind):
    whole = train(config(tmp_path / "whole", kind), CLIPS)
    first = train(config(tmp_path / "parts", kind, steps=3), CLIPS)
    assert first + train(config(tmp_path / "parts", kind), CLIPS) == whole
    assert len(set(whole)) == len(whole)
    one, two = (
        checkpoint.read_tensors(checkpoint.folder_of_step(tmp_path / name, 6))
        for name in ("whole", "parts")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_frozen_weights_are_in_memory_and_in_a_checkpoint_once(tmp_path):
    cfg = config(tmp_path, "lora", steps=1)
    run = build(cfg)
    averages = dict(run.ema.named_parameters())
    for name, weight in run.system.named_parameters():
        assert (averages[name].data_ptr() == weight.data_ptr()) == (not weight.requires_grad)
    train(cfg, CLIPS)
    tensors = checkpoint.read_tensors(checkpoint.folder_of_step(tmp_path, 1))
    trained = {n for n, p in run.system.named_parameters() if p.requires_grad}
    assert {n.removeprefix("ema.") for n in tensors if n.startswith("ema.")} == trained
    assert {f"system.{name}" for name in averages} <= tensors.keys()


def trained_with_adapters(folder):
    resume.System = StartedSystem
    return train(config(folder, "lora", steps=3, batch=1), CLIPS)


def test_adapters_are_trained_on_two_ranks_as_on_one(tmp_path):
    alone = config(tmp_path / "alone", "lora", steps=3)
    losses = train(alone, CLIPS)
    ranks = on_ranks(2, trained_with_adapters, tmp_path / "ranks")
    assert ranks[0] == ranks[1] == pytest.approx(losses, rel=1e-4)


def resumed_weights(folder):
    """Of a rank that resumes a run: which frozen weights both systems have in the same memory, and
    the values in both."""
    cfg = config(folder / "run", "lora", steps=1, batch=1)
    system = replace(WIDE, text=T5Config("nowhere", 24))
    cfg = replace(cfg, system=system, weights=str(folder / "weights"))
    texts = [{text: torch.ones(3, 24) for text in ("", c.caption, *c.sub_captions)} for c in CLIPS]
    clips = ClipList([replace(c, texts=t) for c, t in zip(CLIPS, texts, strict=True)])
    train(cfg, clips)
    run = build(cfg, may_resume=True)
    restore(cfg, run, clips)
    validation_loss(run.ema, clips, replace(cfg, validation_clips=1), run.world)
    frozen = [name for name, weight in run.system.named_parameters() if not weight.requires_grad]
    systems = run.system.state_dict(), run.ema.state_dict()
    shared, values = {}, {}
    for name in frozen:
        pair = [tensors[name] for tensors in systems]
        shared[name] = len({one.to_local().data_ptr() for one in pair}) == 1
        values[name] = [one.full_tensor().numpy() for one in pair]
    return shared, values


def test_ranks_have_frozen_weights_once_also_after_a_resumption(tmp_path):
    pytest.importorskip("peft")
    start = System(replace(WIDE, text=T5Config("nowhere", 24))).presto
    export_presto(start, tmp_path / "weights", torch.float32)
    for shared, values in on_ranks(2, resumed_weights, tmp_path):
        assert all(shared[name] for name in values if len(values[name][0]) % 2 == 0)
        for name, found in values.items():
            name = name.removeprefix("presto.").replace(".base_layer.", ".")
            for one in found:
                assert torch.equal(torch.from_numpy(one), start.get_parameter(name)), name


def test_8_bit_moments_take_a_quarter_of_the_memory(tmp_path):
    train(config(tmp_path, "8 bit", steps=1), CLIPS)
    tensors = checkpoint.read_tensors(checkpoint.folder_of_step(tmp_path, 1), "optimizer.")
    name = "optimizer.presto.transformer_blocks.0.ff.net.2.weight."
    assert tensors[name + "state1"].dtype == tensors[name + "state2"].dtype == torch.uint8


def test_adapters_alone_are_trained_and_export_as_files_of_diffusers_and_merged(tmp_path):
    cfg = config(tmp_path / "run", "lora", lr=0.1)
    start = {n: p.clone() for n, p in build(cfg).system.presto.named_parameters()}
    train(cfg, CLIPS)
    saved = checkpoint.folder_of_step(cfg.run_dir, 6)
    tensors = checkpoint.read_tensors(saved)
    changed = {n for n, p in start.items() if not torch.equal(p, tensors[f"system.presto.{n}"])}
    assert changed
    assert all(".lora_" in name for name in changed)
    export_main([str(saved), str(tmp_path / "out")])
    adapters = load_file(tmp_path / "out" / "lora" / ADAPTER_FILE)
    assert len(adapters) == 2 * 2 * 4 * 2  # blocks, attentions, layers, matrices
    merged = load_averaged_system(saved).presto.state_dict()
    layer = "transformer_blocks.1.attn2.to_out.0"
    down, up = (adapters[f"transformer.{layer}.lora_{m}.weight"] for m in "AB")
    assert up.abs().max() > 0
    expected = start[f"{layer}.base_layer.weight"] + up @ down
    assert torch.allclose(merged[f"{layer}.weight"], expected, atol=1e-6)
    exported = load_presto(tmp_path / "out").state_dict()
    assert exported.keys() == merged.keys()
    assert torch.allclose(exported[f"{layer}.weight"].float(), expected, atol=0.02)
