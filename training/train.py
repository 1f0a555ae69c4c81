"""Train Presto on the clips of a dataset.

    python -m training.train CONFIG [--dry-run] [key=value …]
    torchrun --nproc-per-node N -m training.train CONFIG …   # several GPUs: training/parallel.py

Interrupted anywhere, the same command goes on from the last checkpoint, and every loss is the one
that an uninterrupted run would have had. --dry-run builds everything, runs two steps, prints memory
and time, and writes nothing; where weights or data are missing it draws some.
"""

from __future__ import annotations

from curation.cli import Arguments, check_command_line, run_command
from training.config import Size, TrainConfig

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
from training.clips import Clip, Source
from training.codecs import sample_posterior
from training.data import Batch, Share, generator, stream
from training.diffusion import denoising_loss, draw_noise, draw_t
from training.dry_run import dry_run
from training.latent_cache import open_source
from training.log import Log, draw_curve
from training.parallel import World, leave, local
from training.pretrained import release
from training.resume import Run, build, restore, save
from training.sample import sample, write_mp4
from training.text_to_video import Script, System

RESUMES = "the same command resumes from the last checkpoint"
VALIDATION_TIMES = 8  # fixed: (i + 0.5) / 8 of the way from clean to noise


class Diverged(UserError):
    """The loss or its gradient is not a finite number."""


class OutOfMemory(UserError):
    """A GPU is too small for the run."""


class WorkerDied(UserError):
    """A process that reads clips has died."""


def train(
    cfg: TrainConfig,
    source: Source,
    held_out: Source | None = None,
    system_class: type[System] = System,
) -> list[float]:
    """The losses of the steps that this call made, those before a resumed one not included."""
    run = build(cfg, bool(checkpoint.saved(cfg.run_dir)), system_class)
    step = restore(cfg, run, source)
    share = Share(cfg.batch, run.world.replica, run.world.replicas)
    batches = stream(source, share, cfg.seed, step * run.samples, cfg.data.workers)
    log = Log(cfg.run_dir, step, cfg.log_every, run.world)
    losses = []
    while step < cfg.steps:
        values = one_step(run, batches, cfg, step)
        step += 1
        losses.append(values["loss"])
        log.step(step, cfg.steps, values)
        if step % cfg.save_every == 0 or step == cfg.steps:
            loss = validation_loss(run.ema, held_out, cfg, run.world)
            if loss is not None:
                log.say(f"step {step}/{cfg.steps}  validation loss {loss:.4f}")
                log.add(step, {"validation_loss": loss})
            save(cfg, step, run, source, loss)
        if step == cfg.steps or (cfg.sample_every and step % cfg.sample_every == 0):
            show(cfg, step, run, source[0])
        log.pause()
    log.close()
    return losses


def one_step(run: Run, batches: Iterator[Batch], cfg: TrainConfig, step: int) -> dict[str, float]:
    """Accumulates gradients, checks them, moves the weights and their average."""
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
    if not norm.isfinite() or not np.isfinite(values["loss"]):
        raise Diverged(
            f"step {step + 1}: loss {values['loss']}, gradient norm {norm.item()}; samples "
            f"{step * run.samples} to {(step + 1) * run.samples - 1}. The last checkpoint in "
            f"{cfg.run_dir} is sound: go on from it with a lower lr or another seed"
        )
    values["lr"] = cfg.lr * min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    values["norm"] = norm.item()
    for group in run.optimizer.param_groups:
        group["lr"] = values["lr"]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    decay = min(cfg.ema_decay, (1 + step) / (10 + step))
    with torch.no_grad():
        averages, weights = local(run.ema.parameters()), local(run.system.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
    return values


def batch_loss(system: System, batch: Batch, cfg: TrainConfig) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of a batch, and its tokens and FLOPs. All chance hangs on the samples' numbers."""
    latents = latents_of(system, batch, cfg.seed)
    rngs = [generator(cfg.seed, "sample", number) for number in batch.numbers]
    t = torch.cat([draw_t(1, cfg.diffusion, rng) for rng in rngs])
    noise = torch.cat(
        [
            draw_noise(x, cfg.diffusion, generator(cfg.seed, "noise", n, device=x.device))
            for x, n in zip(latents.split(1), batch.numbers, strict=True)
        ]
    )
    scripts = [
        dropped(Script.of(clip, system.cfg.mode), cfg.drop_all, cfg.drop_one, rng)
        for clip, rng in zip(batch.clips, rngs, strict=True)
    ]
    text_tokens = []

    def predict(noisy: Tensor, t: Tensor) -> Tensor:
        text, schedules = system.read(scripts), system.schedules(scripts, latents.shape[2])
        for weights, lengths in zip(schedules, text.lengths, strict=True):
            text_tokens.append(float((weights.numpy() > 0).mean(1) @ lengths))
        return system.presto(noisy, t, text, schedules)

    with autocast(cfg, latents.device):
        loss = denoising_loss(predict, latents, noise, t, cfg.diffusion).mean()
    grid = system.grid(latents)
    flops = sum(system.training_flops(grid, n) for n in text_tokens)
    return loss, {"tokens": len(t) * math.prod(grid), "flops": flops}


def latents_of(system: System, batch: Batch, seed: int | None) -> Tensor:
    """(B, C, t, h, w): from the codec, or computed ahead. seed: of the draw from its posterior;
    None takes the mean."""
    encoded = batch.latents
    if encoded is None:
        encoded = system.codec.encode(batch.video.to(device_of(system)))
    rngs = None if seed is None else [generator(seed, "posterior", n) for n in batch.numbers]
    return sample_posterior(encoded.to(device_of(system)), rngs)


def dropped(script: Script, drop_all: float, drop_one: float, rng: torch.Generator) -> Script:
    """The script without some of its captions: an empty text is what stands for none."""
    chances = torch.rand(1 + len(script.captions), generator=rng).tolist()
    silent = [chances[0] < drop_all or chance < drop_one for chance in chances[1:]]
    texts = ["" if s else text for s, text in zip(silent, script.captions, strict=True)]
    return replace(script, captions=texts)


@torch.no_grad()
def validation_loss(
    system: System, source: Source | None, cfg: TrainConfig, world: World
) -> float | None:
    """The objective at fixed times with fixed noise: comparable from step to step. None where there
    are no clips."""
    clips = min(cfg.validation_clips, len(source.clip_ids)) if source else 0
    if source is None or not clips:
        return None
    device, loss_sum = device_of(system), 0.0
    for turn in range(-(-clips // world.replicas)):
        # all ranks run the network equally often, for they gather its weights together
        mine = turn * world.replicas + world.replica
        index = min(mine, clips - 1)
        clip = source[index]
        predict = partial(system, scripts=[Script.of(clip, system.cfg.mode)])
        latents = latents_of(system, Batch.of([index], [clip]), None)
        for i in range(VALIDATION_TIMES):
            noise = draw_noise(latents, cfg.diffusion, generator(cfg.seed, "validation", index, i))
            t = torch.tensor([float(int(1000 * (i + 0.5) / VALIDATION_TIMES))])
            with autocast(cfg, device):
                loss = denoising_loss(predict, latents, noise, t, cfg.diffusion)
            loss_sum += loss.item() if mine < clips else 0.0
    return world.total(loss_sum) / world.sequence / (clips * VALIDATION_TIMES)


def show(cfg: TrainConfig, step: int, run: Run, clip: Clip) -> None:
    """Samples a training clip's captions: the mp4, and a picture with the clip's own frames above
    the sample's."""
    script, own = Script.of(clip, cfg.system.mode), clip.video
    if clip.latents is not None:  # what the codec leaves of it is what a sample can reach at best
        encoded = clip.latents[None].to(run.world.device)
        own = run.ema.codec.decode(sample_posterior(encoded, None))[0].cpu()
    with autocast(cfg, device_of(run.ema)):
        video = sample(run.ema, script, cfg.diffusion, cfg.sample, Size(*own.shape[:3]))
    if clip.latents is not None:  # the codec is not needed until the next sample
        release()
    if not run.world.first:
        return
    base = Path(cfg.run_dir, "samples", f"step-{step:08d}")
    write_mp4(video, base.with_suffix(".mp4"), clip.duration_s)
    times = [(a + b) / 2 / clip.duration_s for a, b in clip.spans]
    rows = [[v[int(t * len(v))].numpy() for t in times] for v in (own, video)]
    sheet = np.vstack([np.hstack(row) for row in rows])
    base.with_suffix(".png").write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    print(f"{draw_curve(cfg.run_dir)}  {base}.mp4  {base}.png", flush=True)


def device_of(system: System) -> torch.device:
    return next(system.parameters()).device


def autocast(cfg: TrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16")


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
            f"{error} A process that reads clips died, perhaps for lack of memory: lower "
            "data.workers or data.memory_mb; " + RESUMES
        ) from error
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
