"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

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
    return torch.optim.AdamW(groups, cfg.lr, cfg.betas, weight_decay=cfg.weight_decay)


def _is_table(name: str) -> bool:
    """Whether a parameter is added or scales like a bias, though it has several rows."""
    return name.endswith("scale_shift_table")


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Of step 0, 1, …: linear warm-up, then constant, or falling to 0 after the last step."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup_steps))
    left = (cfg.steps - step) / max(1, cfg.steps - cfg.warmup_steps)
    if cfg.lr_decay == "none" or left >= 1:
        return cfg.lr * warm
    if cfg.lr_decay == "linear":
        return cfg.lr * warm * left
    return cfg.lr * warm * (1 - math.cos(math.pi * left)) / 2
