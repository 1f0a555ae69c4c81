"""`training.train --dry-run`: builds everything, runs two steps, prints memory and time, and writes
nothing. Missing weights and clips are replaced by random ones: cost does not depend on values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from curation.config import ConfigError
from training.clips import BadData, Clip, Listed, Source
from training.config import SystemConfig, TrainConfig
from training.data import Batch, Share, stream
from training.latent_cache import open_source
from training.log import memory_gb, peak_memory_gb
from training.parallel import join
from training.resume import Run, build
from training.text_to_video import System
from training.weights import BadWeights

Step = Callable[[Run, Iterator[Batch], TrainConfig, int], dict[str, float]]


def dry_run(cfg: TrainConfig, one_step: Step) -> None:
    """one_step: that of training.train, which imports this module."""
    world = join(cfg.sequence_ranks)
    device, cfg = world.device, replace(cfg, accumulate=1)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in System(cfg.system).parameters())
    # masters, gradients, two moments, average: fp32; weights and average are whole at the start
    need, room = 1e-9 * parameters * max(20 / world.size, 8), memory_gb(device)
    if need > room:
        raise ConfigError(
            f"{parameters:,} parameters take {need:.0f} GB of one {device.type} process; "
            f"{room:.0f} GB are there"
        )
    try:
        source: Source = open_source(cfg.system, cfg.data, "train")
        epoch = f"{len(source.clip_ids)} clips"
    except BadData as error:
        source, epoch = Listed([random_clip(cfg.system)]), f"one random clip ({error})"
    try:
        run = build(cfg)
    except BadWeights as error:
        run = build(replace(cfg, weights=""))
        epoch += f", random weights ({error})"
    share = Share(cfg.batch, run.world.replica, run.world.replicas)
    batches = stream(source, share, cfg.seed, 0, 0)
    took, values = [], {}
    for step in range(2):  # compilers work in the first
        start = time.perf_counter()
        values = one_step(run, batches, cfg, step)
        took.append(time.perf_counter() - start)
    clips = len(source.clip_ids)
    if not run.world.first:
        return
    print(
        f"{parameters:,} parameters, {epoch}, {values['tokens'] / run.samples:,.0f} tokens a "
        f"sample, {run.samples} at a time on {run.world.size} processes\n"
        f"first batch {took[0]:.1f} s, second {took[1]:.1f} s ({values['wait_s']:.1f} s of it for "
        f"data), loss {values['loss']:.4f}, peak {peak_memory_gb(device):.1f} GB\n"
        f"an epoch: {clips / run.samples:.1f} such batches, "
        f"about {took[1] * clips / run.samples:.0f} s"
    )


def random_clip(cfg: SystemConfig) -> Clip:
    """A clip of the right size: noise, and five captions, of 100 tokens each where the text encoder
    is pretrained."""
    spans = [(3.0 * i, 3.0 * (i + 1)) for i in range(5)]
    captions = [f"part {i}" for i in range(5)]
    clip = Clip("0" * 24, torch.empty(0), 15.0, spans, captions, "all")
    if cfg.text.pretrained:
        texts = {text: torch.randn(100, cfg.text.width) for text in ("", "all", *captions)}
        clip = replace(clip, texts=texts)
    if cfg.codec.pretrained:
        shape = (cfg.codec.channels, *cfg.codec.latent_size(cfg.size))
        return replace(clip, latents=torch.randn(shape))
    shape = (cfg.size.frames, cfg.size.height, cfg.size.width, 3)
    return replace(clip, video=torch.randint(0, 256, shape, dtype=torch.uint8))
