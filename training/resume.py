"""The state of a run: built, written to checkpoints, read from them."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from curation import config
from curation.config import ConfigError
from training import checkpoint
from training.clips import ClipSource
from training.config import TrainConfig
from training.data import ORDER_OF_SIZES, clip_ids_digest
from training.log import report_recompile_limit
from training.lora import add_adapters
from training.optimizer import build_optimizer, optimizer_tensors, set_steps
from training.parallel import World, init_distributed, shard_model
from training.text_to_video import System
from training.weights import load_weights


@dataclass
class Run:
    """What a training step changes."""

    system: System
    ema: System  # with averaged weights
    optimizer: torch.optim.Optimizer
    world: World
    samples: int  # per step, of all processes
    best: float = float("inf")  # validation loss
    skipped: int = 0  # steps


def build(cfg: TrainConfig, may_resume: bool = False) -> Run:
    """A new run. may_resume: where it has a checkpoint, its weights will be read from there."""
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    world = init_distributed(cfg.sequence_ranks)
    torch.manual_seed(cfg.seed)
    resumed = may_resume and checkpoint.last_checkpoint(cfg.run_dir) is not None
    system = initial_system(cfg, world.device, resumed)
    if cfg.lora_rank:
        system.requires_grad_(False)
        add_adapters(system.presto, cfg.lora_rank)
    for size in cfg.system.all_sizes:
        system.check_memory(size, cfg.batch, cfg.keep_activations)
    # weights that are not trained have no average: both systems have the same tensors
    frozen = {id(p): p for p in system.parameters() if not p.requires_grad}
    ema = copy.deepcopy(system, frozen).requires_grad_(False).eval()
    system.presto.set_recompute_policy(cfg.keep_activations)
    if cfg.compile:
        report_recompile_limit()
        system.presto.compile_blocks()
    for one in (system, ema):
        bf16 = cfg.uses_bf16(world.device.type)
        shard_model(one.presto, one.trained_text_encoder, world, bf16, cfg.shard_ranks)
    if world.is_distributed:  # FSDP has copied the shards of each system
        shards = {n: p.detach() for n, p in system.named_parameters() if not p.requires_grad}
        ema.load_state_dict(shards, strict=False, assign=True)
    samples = cfg.batch * cfg.accumulate * world.replicas
    return Run(system, ema, build_optimizer(cfg, system), world, samples)


def initial_system(cfg: TrainConfig, device: torch.device, resumed: bool) -> System:
    """Random weights, or those that `cfg.weights` names; a resumed run needs none of them."""
    if not cfg.weights:
        with device:
            return System(cfg.system)
    with torch.device("meta"):
        system = System(cfg.system)
    system.to_empty(device=device)
    if not resumed:
        load_weights(system.presto, cfg.weights)
    return system


def save(cfg: TrainConfig, step: int, run: Run, source: ClipSource, loss: float | None) -> None:
    """Writes a checkpoint. loss: of the validation, None where there was none."""
    is_best = loss is not None and loss < run.best
    if loss is not None:
        run.best = min(run.best, loss)  # NaN is no minimum
    state = {
        "step": step,
        "samples": run.samples,
        "best": run.best,
        "skipped": run.skipped,
        "clips": clip_ids_digest(source),
        "order_of_sizes": ORDER_OF_SIZES,
        "settings": config.as_dict(cfg),
    }
    checkpoint.save(cfg.run_dir, step, run_tensors(run), state, cfg.keep_checkpoints, is_best)


def restore(cfg: TrainConfig, run: Run, source: ClipSource) -> int:
    """Loads the run's last checkpoint and returns its step; 0 for a new run. ConfigError where it
    belongs to a run with other settings, clips or samples per step."""
    found = checkpoint.last_checkpoint(cfg.run_dir)
    if found is None:
        return 0
    state = checkpoint.read_state(found)
    # settings that an older version did not have get their defaults
    before = config.build(TrainConfig, state["settings"], str(found))
    changed = config.differences(config.as_dict(before), config.as_dict(cfg))
    fixed = ("system.", "diffusion.", "seed:", "lora_rank:", "optimizer:")
    refused = [line for line in changed if line.startswith(fixed)]
    if state["samples"] != run.samples:
        refused.append(f"samples a step, of all processes: {state['samples']} -> {run.samples}")
    if state["clips"] != clip_ids_digest(source):
        refused.append(f"other clips in {cfg.data.webdataset or cfg.data.dataset}")
    if len(cfg.system.all_sizes) > 1 and state.get("order_of_sizes") != ORDER_OF_SIZES:
        refused.append("an older version's order of clips of several sizes")
    if refused:
        raise ConfigError(
            f"{found} belongs to another run ({'; '.join(refused)}); "
            "undo that, or give a new run_dir"
        )
    checkpoint.load_tensors(found, run_tensors(run))
    run.best, run.skipped = state["best"], state.get("skipped", 0)
    set_steps(run.optimizer, state["step"] - run.skipped)
    if run.world.is_first:
        if state["step"] >= cfg.steps:
            changed.append(f"nothing is left to train: steps is {cfg.steps}")
        print(f"resumes from {found}", *changed, sep="\n  ", flush=True)
    return state["step"]


def run_tensors(run: Run) -> dict[str, Tensor]:
    """The system's tensors, the averages of those that are trained, and the optimizer's, by their
    names in a checkpoint."""
    frozen = {name for name, p in run.system.named_parameters() if not p.requires_grad}
    found = {f"system.{name}": t for name, t in run.system.state_dict().items()}
    averages = run.ema.state_dict().items()
    found |= {f"ema.{name}": t for name, t in averages if name not in frozen}
    optimizer = optimizer_tensors(run.optimizer, run.system)
    return found | {f"optimizer.{name}": t for name, t in optimizer.items()}
