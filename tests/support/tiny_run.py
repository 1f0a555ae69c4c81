"""A tiny run of the trainer: its settings, clips and configuration file."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml

from curation import config
from tests.support.drawn_clips import clip
from training.clips import ClipList
from training.config import (
    BytesConfig,
    ModelConfig,
    PixelConfig,
    SampleConfig,
    Size,
    SystemConfig,
    TrainConfig,
)

SYSTEM = SystemConfig(
    size=Size(4, 16, 16),
    codec=PixelConfig(2, 4),
    text=BytesConfig(width=12, heads=2, layers=1, max_bytes=40),
    model=ModelConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        interpolation_scale_t=1.0,
        interpolation_scale_h=1.0,
        interpolation_scale_w=1.0,
    ),
)
torch.set_num_threads(1)  # threads that wait for each other take longest where cores are busy
CLIPS = ClipList([clip(i) for i in range(5)])
HELD_OUT = ClipList([clip(i) for i in range(10, 12)])


def tiny_config(folder, **changes) -> TrainConfig:
    base = TrainConfig(
        run_dir=str(folder),
        steps=6,
        batch=2,
        accumulate=2,
        lr=1e-2,
        warmup_steps=2,
        precision="fp32",
        save_every=3,
        validation_clips=2,
        system=SYSTEM,
        sample=SampleConfig(steps=2),
    )
    return replace(base, data=replace(base.data, workers=0), **changes)


def write_config(tmp_path, cfg) -> str:
    """The path of a YAML file of the settings."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.as_dict(cfg)))
    return str(path)


def children(pid: int) -> list[int]:
    """Of a process's main thread, as the kernel lists them."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
