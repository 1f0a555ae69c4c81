"""`training.train --dry-run`: builds everything, runs two steps, prints memory and time, and writes
nothing. Missing weights and clips are replaced by random ones: cost does not depend on values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from curation.config import ConfigError
from training.clips import BadData, Clip, ClipList, ClipSource
from training.config import SystemConfig, TrainConfig
from training.data import Batch, LocalBatch, stream_batches
from training.latent_cache import open_source
from training.log import free_memory_gb, peak_memory_gb
from training.parallel import init_distributed
from training.resume import Run, build
from training.streamed_clips import StreamedClips
from training.text_to_video import System
from training.weights import BadWeights

Step = Callable[[Run, Iterator[Batch], TrainConfig, int], dict[str, float]]


def dry_run(cfg: TrainConfig, one_step: Step) -> None:
    """one_step: that of training.train, which imports this module."""
    world = init_distributed(cfg.sequence_ranks)
    device, cfg = world.device, replace(cfg, accumulate=1)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in System(cfg.system).parameters())
    # bytes of fp32 weights, gradients, two moments, average; weights and average, which are the
    # same where they are frozen, are unsharded at the start
    shards = cfg.shard_ranks or world.size
    start_bytes = 4 if cfg.lora_rank else 8
    each = 4 if cfg.lora_rank else 14 if cfg.optimizer == "adamw8bit" else 20
    needed, free = 1e-9 * parameters * max(each / shards, start_bytes), free_memory_gb(device)
    if needed > free:
        raise ConfigError(
            f"{parameters:,} parameters take {needed:.0f} GB of one {device.type} process; "
            f"{free:.0f} GB are free"
        )
    try:
        source: ClipSource = open_source(cfg.system, cfg.data, "train")
        epoch = f"{len(source.clip_ids)} clips"
        if isinstance(source, StreamedClips):
            epoch = f"a stream of {len(source.urls)} shards, its first clip {source.clip_ids[0]}"
    except BadData as error:
        source, epoch = ClipList([make_random_clip(cfg.system)]), f"one random clip ({error})"
    run = None
    try:
        run = build(cfg)
    except BadWeights as error:
        epoch += f", random weights ({error})"
    # not above, where the error still holds the first network
    run = run or build(replace(cfg, weights=""))
    local = LocalBatch(cfg.batch, run.world.replica, run.world.replicas)
    batches = stream_batches(source, local, cfg.seed, 0, 0)
    seconds, values = [], {}
    for step in range(2):  # the first includes compilation
        start = time.perf_counter()
        values = one_step(run, batches, cfg, step)
        seconds.append(time.perf_counter() - start)
    clips = len(source.clip_ids)
    if not run.world.is_first:
        return
    print(
        f"{parameters:,} parameters, {epoch}, {values['tokens'] / run.samples:,.0f} tokens a "
        f"sample, {run.samples} at a time on {run.world.size} processes\n"
        f"first batch {seconds[0]:.1f} s, second {seconds[1]:.1f} s ({values['wait_s']:.1f} s of "
        f"it for data), loss {values['loss']:.4f}, peak {peak_memory_gb(device):.1f} GB"
    )
    if not isinstance(source, StreamedClips):
        print(
            f"an epoch: {clips / run.samples:.1f} such batches, "
            f"about {seconds[1] * clips / run.samples:.0f} s"
        )


def make_random_clip(cfg: SystemConfig) -> Clip:
    """A clip of the right size: noise, and five captions, of 100 tokens each where the text encoder
    is pretrained."""
    spans = [(3.0 * i, 3.0 * (i + 1)) for i in range(5)]
    captions = [f"part {i}" for i in range(5)]
    clip = Clip("0" * 24, torch.empty(0), 15.0, spans, captions, "all")
    if cfg.text.pretrained:
        texts = {text: torch.randn(100, cfg.text.width) for text in ("", "all", *captions)}
        clip = replace(clip, texts=texts)
    if cfg.codec.pretrained:
        shape = (cfg.codec.channels, *cfg.latent_size(cfg.size))
        return replace(clip, latents=torch.randn(shape))
    shape = (cfg.size.frames, cfg.size.height, cfg.size.width, 3)
    return replace(clip, video=torch.randint(0, 256, shape, dtype=torch.uint8))
