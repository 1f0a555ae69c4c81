"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curation.config import ConfigError
from training.config import TrainConfig


def build_optimizer(cfg: TrainConfig, system: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained."""
    named = {name: p for name, p in system.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = [{"params": list(named.values())}]
    if cfg.decayed == "matrices":
        matrices = {name for name, p in named.items() if p.ndim > 1 and not _is_table(name)}
        others = [p for name, p in named.items() if name not in matrices]
        groups = [
            {"params": [named[name] for name in named if name in matrices]},
            {"params": others, "weight_decay": 0.0},
        ]
    kind: Any = _eight_bit() if cfg.optimizer == "adamw8bit" else torch.optim.AdamW
    return kind(groups, cfg.lr, cfg.betas, weight_decay=cfg.weight_decay)


def _eight_bit() -> Any:
    """bitsandbytes' AdamW: moments in 8 bits, in blocks of 256 values with a scale each (arXiv
    2110.02861); of tensors with fewer than 4,096 values in 32 bits."""
    if dist.is_initialized():
        raise ConfigError(
            "optimizer is adamw8bit, which takes no sharded parameters: start one process, "
            "without torchrun"
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "optimizer is adamw8bit, but bitsandbytes can't be imported "
            f"({error}): pip install -e '.[lora]'"
        ) from None
    return AdamW8bit


def optimizer_tensors(optimizer: torch.optim.Optimizer, system: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors by the names of the parameters, which are made where there was no
    step yet."""
    names = {id(weight): name for name, weight in system.named_parameters()}
    found: dict[str, Tensor] = {}
    for i, group in enumerate(optimizer.param_groups):
        for j, weight in enumerate(group["params"]):
            state = optimizer.state[weight]
            if not state and hasattr(optimizer, "init_state"):  # bitsandbytes
                optimizer.init_state(group, weight, i, j)
            elif not state:
                state |= {"step": torch.tensor(0.0)}
                state |= {key: torch.zeros_like(weight) for key in ("exp_avg", "exp_avg_sq")}
            name = names[id(weight)]
            found |= {f"{name}.{k}": t for k, t in state.items() if isinstance(t, Tensor)}
    return found


def set_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Restores the number of steps where the optimizer keeps it as a number."""
    for state in optimizer.state.values():
        if isinstance(state.get("step"), int):
            state["step"] = steps


def _is_table(name: str) -> bool:
    """Whether a parameter is added or scales like a bias, though it has several rows."""
    return name.endswith("scale_shift_table")


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Returns the learning rate of step 0, 1, …: linear warm-up, then constant, or falling to 0
    after the last step."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    left = (cfg.steps - step) / max(1, cfg.steps - cfg.warmup_steps)
    if cfg.lr_decay == "none" or left >= 1:
        return cfg.lr * warm
    if cfg.lr_decay == "linear":
        return cfg.lr * warm * left
    return cfg.lr * warm * (1 - math.cos(math.pi * left)) / 2
