"""Trains the network of `stages/shots/gradual_network.py`.

    python -m benchmarks.transition_network.train FOOTAGE OUT [--without-folds 1 5] [--minutes 8] \
        [--workers 4] [--from stages/shots/models/gradual.onnx]

FOOTAGE is the folder that `collect.py` wrote. OUT gets the weights every minute, as npz files named
by the minute, and at the end as network.npz. The repository of a source decides its fold.
`--without-folds` trains on the other folds alone, and prints how well transitions of those that
were left out are found, in their labelled videos and in sequences drawn from their shots.
`--from` starts with the weights of such a file, or of an exported network, at half the learning
rate.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.real_videos import FOLDS, fold_of
from benchmarks.transition_network.draw import Planner
from benchmarks.transition_network.network import TransitionNetwork, load_weights, save_weights
from benchmarks.transition_network.render import Renderer, stack_plans
from benchmarks.transition_network.restore import restore_network
from benchmarks.transition_network.sources import (
    Source,
    gather,
    half_size_luma,
    read_source,
)
from benchmarks.transition_network.validate import Validation

Sources = list[tuple[Source, np.ndarray]]
FRAMES = 192  # of a sequence
BATCH = 32  # sequences of a step
STEPS_PER_REPORT = 200  # the mean losses of these steps are printed
SAVE_PERIOD_S = 60.0  # between two files of weights
VALIDATION_PERIOD_S = 300.0
WARM_UP_STEPS = 200  # in which the learning rate rises
MAX_LEARNING_RATE = 2e-3
CUT_WEIGHT = 4.0  # weight in the loss of a frame with a cut before it, since few frames have one
AVERAGE_DECAY = 0.999  # of the moving average of the weights, a step
SEED = 0


class Plans(IterableDataset):
    """Endless batches of plans: the arrays of Plan with a first axis of clips. Workers draw from
    generators of their own."""

    def __init__(self, planner: Planner, seed: int) -> None:
        self.planner, self.seed = planner, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            yield stack_plans([vars(self.planner.plan(rng)) for _ in range(BATCH)])


def loss_of(logits: Tensor, plans: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropies of cuts and of gradual transitions, weighted by `counted`.

    logits: (clips, T, 2).  plans: a batch of Plans, on the same device.
    """
    cut = torch.zeros_like(plans["share"])
    cut[:, 1:] = (plans["cuts"].diff(dim=1) != 0).float()
    gradual = plans["gradual"].float()
    losses = []
    for number, (target, weight) in enumerate(((cut, CUT_WEIGHT), (gradual, 1.0))):
        counted = plans["counted"][..., number] * torch.where(target > 0, weight, 1.0)
        each = F.binary_cross_entropy_with_logits(logits[..., number], target, reduction="none")
        losses.append((each * counted).sum() / counted.sum())
    return losses[0], losses[1]


def train(
    sources: Sources,
    held_out: Sources,
    out: Path,
    minutes: float,
    workers: int,
    start: Path | None = None,
) -> None:
    """Trains for some minutes on drawn sequences, and writes a moving average of the weights to
    `out`. The learning rate rises over WARM_UP_STEPS and falls as a cosine of the elapsed time.
    start: a file of weights or an exported network, whose weights are the first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames, shots, videos = gather(sources)
    print(f"{len(frames)} frames, {len(shots)} shots, {len(videos)} labelled videos", flush=True)
    planner = Planner(shots, videos, half_size_luma(frames), FRAMES)
    loader = DataLoader(Plans(planner, SEED), batch_size=None, num_workers=workers)
    validation = Validation(held_out, device) if held_out else None
    renderer = Renderer(torch.from_numpy(frames).to(device))
    torch.manual_seed(SEED)
    if start:
        if start.suffix == ".npz":
            network = load_weights(start).to(device).train()
        else:
            clips = renderer.render(next(iter(Plans(planner, SEED + 1))))
            network = restore_network(start, clips)
    else:
        network = TransitionNetwork().to(device).train()
    highest_rate = MAX_LEARNING_RATE * (0.5 if start else 1)
    average = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY), use_buffers=True
    )
    forward = torch.compile(network) if device.type == "cuda" else network
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=highest_rate, weight_decay=0.02, fused=True
    )
    started, sums = time.monotonic(), torch.zeros(2, device=device)
    saved_s = validated_s = 0.0
    for step, plans in enumerate(loader):
        elapsed_s = time.monotonic() - started
        if (elapsed := elapsed_s / (60 * minutes)) >= 1:  # share of the whole
            break
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * elapsed))
        rate = highest_rate * min(1, step / WARM_UP_STEPS) * decay
        for group in optimizer.param_groups:
            group["lr"] = rate
        plans = {name: array.to(device, non_blocking=True) for name, array in plans.items()}
        with torch.no_grad():
            clips = renderer.render(plans)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = forward(clips)
        cut, gradual = loss_of(logits.float(), plans)
        optimizer.zero_grad(set_to_none=True)
        (cut + gradual).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(network)
        sums += torch.stack([cut, gradual]).detach()
        if step % STEPS_PER_REPORT == STEPS_PER_REPORT - 1:
            means = ", ".join(f"{loss:.4f}" for loss in (sums / STEPS_PER_REPORT).tolist())
            print(f"{step + 1} steps, {elapsed_s:.0f} s: losses {means}", flush=True)
            sums.zero_()
        if elapsed_s >= saved_s + SAVE_PERIOD_S:
            saved_s = elapsed_s
            save_weights(average.module, out / f"{elapsed_s / 60:04.1f}.npz")
        if validation and elapsed_s >= validated_s + VALIDATION_PERIOD_S:
            validated_s = elapsed_s
            print(f"{elapsed_s:.0f} s: {validation.report(average.module)}", flush=True)
    save_weights(average.module, out / "network.npz")
    if validation:
        print(f"at the end: {validation.report(average.module)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without-folds", type=int, choices=range(FOLDS), nargs="+", default=[])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--workers", type=int, default=4, help="draw sequences")
    parser.add_argument("--from", type=Path, dest="start", help="the first weights")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sources = [read_source(path) for path in sorted(args.footage.glob("*.npz"))]
    if not sources:
        raise SystemExit(
            f"{args.footage}: no footage; benchmarks.transition_network.collect writes it"
        )
    training = [pair for pair in sources if fold_of(pair[0].repository) not in args.without_folds]
    held_out = [pair for pair in sources if fold_of(pair[0].repository) in args.without_folds]
    train(training, held_out, args.out, args.minutes, args.workers, args.start)


if __name__ == "__main__":
    main()
