"""Train Presto on the clips of a dataset.

    python -m training.train CONFIG [--dry-run] [key=value …]
    torchrun --nproc-per-node N -m training.train CONFIG …   # several GPUs: training/parallel.py

After an interruption the same command resumes from the last checkpoint, and its losses equal those
of an uninterrupted run. --dry-run builds everything, runs two steps, prints memory and time, and
writes nothing; missing weights or clips are replaced by random ones.
"""

from __future__ import annotations

from curation.cli import Arguments, check_command_line, run_command
from training.config import Size, SystemConfig, TrainConfig

if __name__ == "__main__":  # before torch is imported: a mistyped setting is refused at once
    check_command_line(__doc__, TrainConfig, "CONFIG", ["--dry-run"])

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from curation.errors import UserError
from training import checkpoint
from training.clips import ClipSource
from training.codecs import sample_posterior
from training.data import (
    Batch,
    LocalBatch,
    report_rare_sizes,
    seeded_generator,
    stream_batches,
)
from training.diffusion import NUM_TIMESTEPS, denoising_loss, sample_noise, sample_timesteps
from training.dry_run import dry_run
from training.latent_cache import open_source
from training.log import Log, draw_curve
from training.optimizer import learning_rate
from training.parallel import World, local_parts, shutdown
from training.pretrained import check_weights, free_memory
from training.resume import Run, build, restore, save
from training.sample import sample, write_mp4
from training.streamed_clips import ORDER, StreamedClips
from training.text_to_video import Prompt, System
from training.weights import BadWeights

RESUMES = "the same command resumes from the last checkpoint, or starts again if there is none"
VALIDATION_TIMESTEPS = 8  # evenly spaced


class Diverged(UserError):
    """The loss or its gradient is not a finite number."""


class OutOfMemory(UserError):
    """A GPU is too small for the run."""


class WorkerDied(UserError):
    """A process that reads clips has died."""


def train(
    cfg: TrainConfig,
    source: ClipSource,
    held_out: ClipSource | None = None,
) -> list[float]:
    """Returns the losses of the steps that this call makes, without those before a resumption."""
    can_sample = _can_sample(cfg.system, source)
    run = build(cfg, may_resume=True)
    step = restore(cfg, run, source)
    local = LocalBatch(cfg.batch, run.world.replica, run.world.replicas, cfg.accumulate)
    batches = stream_batches(source, local, cfg.seed, step * run.samples, cfg.data.workers)
    losses = []
    with Log(cfg.run_dir, step, cfg.log_every, run.world, cfg.wandb) as log:
        if isinstance(source, StreamedClips):
            log.print(f"warning: {ORDER}")
        for line in report_rare_sizes(source, cfg.system.all_sizes, run.samples):
            log.print(line)
        while step < cfg.steps:
            values = one_step(run, batches, cfg, step)
            step += 1
            losses.append(values["loss"])
            log.step(step, cfg.steps, values)
            if step % cfg.save_every == 0 or step == cfg.steps:
                loss = validation_loss(run.ema, held_out, cfg, run.world)
                if loss is not None:
                    log.print(f"step {step}/{cfg.steps}  validation loss {loss:.4f}")
                    log.record(step, {"validation_loss": loss})
                save(cfg, step, run, source, loss)
            is_sampled = step == cfg.steps or (cfg.sample_every and step % cfg.sample_every == 0)
            if is_sampled and can_sample:
                sample_training_clip(cfg, step, run, source)
            log.resume_timing()
        if cut := run.system.text.cut.summary():
            log.print(cut)
    return losses


def _can_sample(cfg: SystemConfig, source: ClipSource) -> bool:
    """Whether there are the weights that samples need. Raises BadWeights where training needs them
    too: the text encoder's where clips have no tokens, the codec's where they have no latents."""
    first = source[0] if len(source.clip_ids) else None
    if first is None or not first.texts:
        check_weights(cfg.text)
    try:
        check_weights(cfg.codec)
    except BadWeights as error:
        if first is None or first.latents is None:
            raise
        print(f"warning: no samples of this run: {error}", file=sys.stderr, flush=True)
        return False
    return True


def one_step(run: Run, batches: Iterator[Batch], cfg: TrainConfig, step: int) -> dict[str, float]:
    """Accumulates gradients, updates the weights and their average. A step whose loss is not finite
    is skipped or raises Diverged."""
    values = dict.fromkeys(("loss", "wait_s", "tokens", "flops"), 0.0)
    start = time.perf_counter()
    for batch in islice(batches, cfg.accumulate):
        values["wait_s"] += time.perf_counter() - start
        loss, work = batch_loss(run.system, batch, cfg)
        (loss / cfg.accumulate).backward()
        values["loss"] += loss.item() / cfg.accumulate
        values["tokens"] += work["tokens"]
        values["flops"] += work["flops"]
        start = time.perf_counter()
    norm = torch.nn.utils.clip_grad_norm_(run.system.parameters(), cfg.max_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    values["loss"] = run.world.mean(values["loss"])
    values["tokens"] *= run.world.replicas
    values["flops"] *= run.world.replicas
    values["lr"], values["norm"] = learning_rate(cfg, step), norm.item()
    if not norm.isfinite() or not np.isfinite(values["loss"]):
        _skip_or_stop(run, cfg, step, values)
        return values
    for group in run.optimizer.param_groups:
        group["lr"] = values["lr"]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    decay = min(cfg.ema_decay, (1 + step) / (10 + step))
    with torch.no_grad():
        pairs = zip(run.ema.parameters(), run.system.parameters(), strict=True)
        averages, weights = zip(*(p for p in pairs if p[1].requires_grad), strict=True)
        torch._foreach_lerp_(local_parts(averages), local_parts(weights), 1 - decay)
    return values


def _skip_or_stop(run: Run, cfg: TrainConfig, step: int, values: dict[str, float]) -> None:
    """Leaves the step out and counts it, up to `skip_steps`; then raises Diverged."""
    text = (
        f"step {step + 1}: loss {values['loss']}, gradient norm {values['norm']}; samples "
        f"{step * run.samples} to {(step + 1) * run.samples - 1}"
    )
    if run.skipped == cfg.skip_steps:
        after = f" after {run.skipped} skipped steps" if run.skipped else ""
        last = checkpoint.last_checkpoint(cfg.run_dir)
        begin = f"resume from {last}" if last else "start again"
        raise Diverged(
            f"{text}{after}; {begin} with a lower lr, or with skip_steps={cfg.skip_steps + 3} to "
            "leave such steps out"
        )
    run.skipped += 1
    run.optimizer.zero_grad(set_to_none=True)
    if run.world.is_first:
        print(f"{text}: skipped, {run.skipped} of at most {cfg.skip_steps}", flush=True)


def batch_loss(system: System, batch: Batch, cfg: TrainConfig) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of a batch, and its tokens and FLOPs. Random numbers depend on the seed and the
    samples' numbers only."""
    latents = encode_batch(system, batch, cfg.seed)
    rngs = [seeded_generator(cfg.seed, "sample", number) for number in batch.numbers]
    t = torch.cat([sample_timesteps(1, cfg.diffusion, rng) for rng in rngs])
    noise = torch.cat(
        [
            sample_noise(x, cfg.diffusion, seeded_generator(cfg.seed, "noise", n, device=x.device))
            for x, n in zip(latents.split(1), batch.numbers, strict=True)
        ]
    )
    prompts = [
        drop_captions(Prompt.of(clip, system.cfg.mode), cfg.drop_all, cfg.drop_one, rng)
        for clip, rng in zip(batch.clips, rngs, strict=True)
    ]
    text_tokens = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        text, schedules = system.encode_text(prompts), system.schedules(prompts, latents.shape[2])
        for weights, lengths in zip(schedules, text.lengths, strict=True):
            text_tokens.append(float((weights.numpy() > 0).mean(1) @ lengths))
        return system.presto(noisy, t, text, schedules)

    with autocast(cfg, latents.device):
        loss = denoising_loss(predict, latents, noise, t, cfg.diffusion).mean()
    grid = system.grid(latents.shape[2:])
    flops = sum(system.training_flops(grid, n) for n in text_tokens)
    return loss, {"tokens": len(t) * math.prod(grid), "flops": flops}


def encode_batch(system: System, batch: Batch, seed: int | None) -> Tensor:
    """Latents (B, C, t, h, w), from the cache or the codec. seed: of the sample from the posterior;
    None: the posterior's mean."""
    encoded = batch.latents
    if encoded is None:
        encoded = system.codec.encode(batch.video.to(device_of(system)))
    rngs = None if seed is None else [seeded_generator(seed, "posterior", n) for n in batch.numbers]
    return sample_posterior(encoded.to(device_of(system)), rngs)


def drop_captions(prompt: Prompt, drop_all: float, drop_one: float, rng: torch.Generator) -> Prompt:
    """The prompt with some of its captions replaced by the empty one. drop_all, drop_one: the
    probabilities for all captions together and for each of the others."""
    draws = torch.rand(1 + len(prompt.captions), generator=rng).tolist()
    dropped = [draws[0] < drop_all or draw < drop_one for draw in draws[1:]]
    captions = ["" if d else text for d, text in zip(dropped, prompt.captions, strict=True)]
    return replace(prompt, captions=captions)


@torch.no_grad()
def validation_loss(
    system: System, source: ClipSource | None, cfg: TrainConfig, world: World
) -> float | None:
    """The training loss at fixed timesteps with fixed noise; None without clips."""
    clips = min(cfg.validation_clips, len(source.clip_ids)) if source else 0
    if source is None or not clips:
        return None
    device, loss_sum = device_of(system), 0.0
    for first in range(0, clips, world.replicas):
        # all ranks run the network equally often, because each run gathers its sharded weights
        number = first + world.replica
        index = min(number, clips - 1)
        clip = source[index]
        predict = partial(system, prompts=[Prompt.of(clip, system.cfg.mode)])
        latents = encode_batch(system, Batch.of([index], [clip]), None)
        for i in range(VALIDATION_TIMESTEPS):
            rng = seeded_generator(cfg.seed, "validation", index, i)
            noise = sample_noise(latents, cfg.diffusion, rng)
            t = torch.tensor([float(int(NUM_TIMESTEPS * (i + 0.5) / VALIDATION_TIMESTEPS))])
            with autocast(cfg, device):
                loss = denoising_loss(predict, latents, noise, t, cfg.diffusion)
            loss_sum += loss.item() if number < clips else 0.0
    return world.sum(loss_sum) / world.sequence_ranks / (clips * VALIDATION_TIMESTEPS)


def sample_training_clip(cfg: TrainConfig, step: int, run: Run, source: ClipSource) -> None:
    """Samples a video from a training clip's captions, another one on each replica. Writes it as
    mp4, and a picture of the clip's frames above the sample's."""
    # where there are more replicas than clips, those with the same clip have other seeds
    repeat, index = divmod(run.world.replica, len(source.clip_ids))
    clip, sampling = source[index], replace(cfg.sample, seed=cfg.sample.seed + repeat)
    prompt, original = Prompt.of(clip, cfg.system.mode), clip.video
    if clip.latents is not None:  # decoded latents are the best that a sample can be
        encoded = clip.latents[None].to(run.world.device)
        original = run.ema.codec.decode(sample_posterior(encoded, None))[0].cpu()
    with autocast(cfg, device_of(run.ema)):
        video = sample(run.ema, prompt, cfg.diffusion, sampling, Size(*original.shape[:3]))
    if clip.latents is not None:  # codec and text encoder are not needed until the next sample
        free_memory()
    if not run.world.is_first_of_replica:
        return
    suffix = f"-{run.world.replica}" if run.world.replica else ""
    base = Path(cfg.run_dir, "samples", f"step-{step:08d}{suffix}")
    write_mp4(video, base.with_suffix(".mp4"), clip.duration_s)
    times = [(a + b) / 2 / clip.duration_s for a, b in clip.spans]
    rows = [[v[int(t * len(v))].numpy() for t in times] for v in (original, video)]
    picture = np.vstack([np.hstack(row) for row in rows])
    base.with_suffix(".png").write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    if run.world.is_first:
        print(f"{draw_curve(cfg.run_dir)}  {base}.mp4  {base}.png", flush=True)


def device_of(system: System) -> torch.device:
    return next(system.parameters()).device


def autocast(cfg: TrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=cfg.uses_bf16(device.type))


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        run,
        argv,
        settings=TrainConfig,
        arguments="CONFIG",
        options=["--dry-run"],
        stopped=RESUMES,
        prefix=f"rank {os.environ['RANK']}: " if "RANK" in os.environ else "",
        user_errors=(OSError, ValueError),
    )


def run(arguments: Arguments[TrainConfig]) -> None:
    cfg = arguments.settings
    try:
        if arguments.options:
            dry_run(cfg, one_step)
        else:
            source = open_source(cfg.system, cfg.data, "train")
            train(cfg, source, open_source(cfg.system, cfg.data, "validation"))
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{error}\nA GPU needs less with keep_activations=products, attention or nothing, "
            "batch=1, more GPUs, sequence_ranks for long videos, a smaller system.size; " + RESUMES
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # PyTorch has no type of its own for it
            raise
        raise WorkerDied(
            f"{str(error).rstrip('.')}. A process that reads clips died, perhaps for lack of "
            "memory: lower data.workers or data.memory_mb; " + RESUMES
        ) from error
    shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
