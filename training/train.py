"""Train Presto on the clips of a dataset.

    python -m training.train CONFIG [--dry-run] [key=value …]
    torchrun --nproc-per-node N -m training.train CONFIG …   # several GPUs: training/parallel.py

Interrupted anywhere, the same command goes on from the last checkpoint, and every loss is the one
that an uninterrupted run would have had. --dry-run builds everything, runs two steps, prints memory
and time, and writes nothing; where weights or data are missing it draws some.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from curation import config
from curation.config import ConfigError
from training import checkpoint
from training.checkpoint import CheckpointError
from training.clips import BadData, Clip, Listed, Shards, Size, Source
from training.codecs import drawn
from training.data import Batch, DataConfig, Share, fingerprint, generator, stream
from training.diffusion import DiffusionConfig, denoising_loss, draw_noise, draw_t
from training.log import Log, draw_curve, memory_gb, peak_memory_gb
from training.model import Keep
from training.parallel import World, join, leave, local, spread
from training.precompute import Ahead
from training.pretrained import T5, Allegro, release
from training.sample import SampleConfig, sample, write_mp4
from training.text_to_video import Script, System, SystemConfig
from training.weights import BadWeights, load_into

Share01 = Annotated[float, Ge(0), Le(1)]
VALIDATION_TIMES = 8  # fixed: (i + 0.5) / 8 of the way from clean to noise


@dataclass(frozen=True)
class TrainConfig:
    run_dir: str = "out/train"
    weights: str = ""  # folder of Allegro's, Presto's or an export's, to start from; "": random
    steps: Annotated[int, Ge(1)] = 1000
    batch: Annotated[int, Ge(1)] = 1  # samples at a time, of each process (or its group)
    accumulate: Annotated[int, Ge(1)] = 1  # batches per step
    sequence_ranks: Annotated[int, Ge(1)] = 1  # processes that share the tokens of one sample
    seed: int = 0
    lr: Annotated[float, Gt(0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Ge(0)] = 1e-2
    warmup_steps: Annotated[int, Ge(0)] = 100  # the rate grows to `lr` and stays there
    max_norm: Annotated[float, Gt(0)] = 1.0  # of the gradient
    ema_decay: Share01 = 0.9999  # less in the first steps: (1 + step) / (10 + step)
    drop_all: Share01 = 0.1  # of the samples: no caption at all, which guidance samples from
    drop_one: Share01 = 0.02  # of the captions of the others
    precision: Literal["bf16", "fp32"] = "bf16"  # of the products; weights are fp32
    keep_activations: Keep = "all"  # see Presto.keep
    compile: bool = False
    deterministic: bool = False  # on a GPU: resuming gives equal losses to the last bit, slower
    save_every: Annotated[int, Ge(1)] = 500  # steps; a validation goes before each
    keep_checkpoints: Annotated[int, Ge(1)] = 2
    validation_clips: Annotated[int, Ge(0)] = 16  # at most
    sample_every: Annotated[int, Ge(0)] = 0  # steps; 0: at the end alone
    log_every: Annotated[int, Ge(1)] = 10
    data: DataConfig = field(default_factory=DataConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


class Diverged(Exception):
    """The loss or its gradient is no number any more."""


@dataclass
class Run:
    """What training changes."""

    system: System
    ema: System
    optimizer: torch.optim.AdamW
    world: World
    samples: int  # per step, of all processes
    best: float = float("inf")  # validation loss


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
    return drawn(encoded.to(device_of(system)), rngs)


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
        own = run.ema.codec.decode(drawn(encoded, None))[0].cpu()
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


# ---- starting, going on, stopping


def build(cfg: TrainConfig, resumed: bool = False, system_class: type[System] = System) -> Run:
    """resumed: weights come from a checkpoint."""
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    world = join(cfg.sequence_ranks)
    torch.manual_seed(cfg.seed)
    system = initial(cfg, world.device, resumed, system_class)
    ema = copy.deepcopy(system).requires_grad_(False).eval()
    system.presto.keep(cfg.keep_activations)
    if cfg.compile:
        system.presto.compile_blocks()
    for one in (system, ema):
        text = one.text if isinstance(one.text, nn.Module) else None
        spread(one.presto, text, world, cfg.precision == "bf16")
    optimizer = torch.optim.AdamW(
        system.parameters(), cfg.lr, cfg.betas, weight_decay=cfg.weight_decay
    )
    samples = cfg.batch * cfg.accumulate * world.replicas
    return Run(system, ema, optimizer, world, samples)


def initial(
    cfg: TrainConfig, device: torch.device, resumed: bool, system_class: type[System]
) -> System:
    """Random, or with the weights that the run starts from; what is resumed needs none of them."""
    if not cfg.weights:
        with device:
            return system_class(cfg.system)
    with torch.device("meta"):
        system = system_class(cfg.system)
    if isinstance(system.text, nn.Module):
        raise ConfigError(
            "weights: such a network reads T5, but system.text is trained along; set system.text.t5"
        )
    system.to_empty(device=device)
    if not resumed:
        load_into(system.presto, cfg.weights)
    return system


def device_of(system: System) -> torch.device:
    return next(system.parameters()).device


def autocast(cfg: TrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16")


def save(cfg: TrainConfig, step: int, run: Run, source: Source, loss: float | None) -> None:
    best = loss is not None and loss < run.best
    run.best = loss if best and loss is not None else run.best
    told = {
        "step": step,
        "samples": run.samples,
        "best": run.best,
        "clips": fingerprint(source),
        "settings": config.as_dict(cfg),
    }
    checkpoint.save(cfg.run_dir, step, tensors(run), told, cfg.keep_checkpoints, best)


def tensors(run: Run) -> dict[str, Tensor]:
    """All that training changes, under the names it has in a checkpoint."""
    found = {f"system.{name}": t for name, t in run.system.state_dict().items()}
    found |= {f"ema.{name}": t for name, t in run.ema.state_dict().items()}
    for name, weight in run.system.named_parameters():
        of_weight = run.optimizer.state[weight]
        if not of_weight:  # before the first step: what AdamW will start from
            of_weight |= {"step": torch.tensor(0.0)}
            of_weight |= {key: torch.zeros_like(weight) for key in ("exp_avg", "exp_avg_sq")}
        found |= {f"optimizer.{name}.{key}": t for key, t in of_weight.items()}
    return found


def restore(cfg: TrainConfig, run: Run, source: Source) -> int:
    """The step of the run's last checkpoint, loaded; 0 for a new run."""
    found = checkpoint.saved(cfg.run_dir)
    if not found:
        return 0
    told = checkpoint.told(found[-1])
    changed = config.differences(told["settings"], config.as_dict(cfg))
    fixed = ("system.", "diffusion.", "seed:")
    refused = [line for line in changed if line.startswith(fixed)]
    if told["samples"] != run.samples:
        refused.append(f"samples a step, of all processes: {told['samples']} -> {run.samples}")
    if told["clips"] != fingerprint(source):
        refused.append(f"other clips in {cfg.data.dataset}")
    if refused:
        raise ConfigError(
            f"{found[-1]} is of another run ({'; '.join(refused)}); "
            "undo that, or give a new run_dir"
        )
    checkpoint.load_into(found[-1], tensors(run))
    run.best = told["best"]
    if run.world.first:
        print(f"goes on from {found[-1]}", *changed, sep="\n  ", flush=True)
    return told["step"]


def dry_run(cfg: TrainConfig) -> None:
    """Two steps of a batch each, without a trace on disk. What is missing, weights or data, is
    drawn: neither time nor memory hangs on values."""
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
        source: Source = open_source(cfg, "train")
        epoch = f"{len(source.clip_ids)} clips"
    except BadData as error:
        source, epoch = Listed([made_up(cfg.system)]), f"one drawn clip ({error})"
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


def made_up(cfg: SystemConfig) -> Clip:
    """A clip of the right size: noise, and five captions of 100 tokens."""
    spans = [(3.0 * i, 3.0 * (i + 1)) for i in range(5)]
    captions = [f"part {i}" for i in range(5)]
    clip = Clip("0" * 24, torch.empty(0), 15.0, spans, captions, "all")
    if isinstance(cfg.text, T5):
        texts = {text: torch.randn(100, cfg.text.width) for text in ("", "all", *captions)}
        clip = replace(clip, texts=texts)
    if isinstance(cfg.codec, Allegro):
        return replace(clip, latents=torch.randn(4, *cfg.codec.latent_size(cfg.size)))
    shape = (cfg.size.frames, cfg.size.height, cfg.size.width, 3)
    return replace(clip, video=torch.randint(0, 256, shape, dtype=torch.uint8))


def open_source(cfg: TrainConfig, split: str) -> Source:
    """Clips computed ahead where `data.cache` is given, else straight from the shards."""
    system, data = cfg.system, cfg.data
    if data.cache:
        return Ahead(system, data, split)
    return Shards(data.dataset, split, system.size, data.memory_mb, system.sizes)


def main(argv: Sequence[str]) -> None:
    names = [a for a in argv if not a.startswith("--") and "=" not in a]
    if len(names) != 1 or set(argv) & {"-h", "--help"}:
        config.usage(__doc__, argv)
    overrides = [a for a in argv if a not in (*names, "--dry-run")]
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    try:
        cfg = config.load(TrainConfig, names[0], overrides)
        if "--dry-run" in argv:
            dry_run(cfg)
        else:
            train(cfg, open_source(cfg, "train"), open_source(cfg, "validation"))
    except (
        ConfigError,
        BadData,
        BadWeights,
        CheckpointError,
        Diverged,
        OSError,
        ValueError,
    ) as error:
        sys.exit(f"{rank}{type(error).__name__}: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(
            f"{rank}{error}\nA GPU needs less with keep_activations=products, attention or "
            "nothing, batch=1, more GPUs, sequence_ranks for long videos, a smaller system.size. "
            "The same command goes on from the last checkpoint"
        )
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # PyTorch has no type of its own for it
            raise
        sys.exit(
            f"{rank}{error} A process that reads clips died, of too little memory maybe: lower "
            "data.workers or data.memory_mb. The same command goes on from the last checkpoint"
        )
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint")
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
