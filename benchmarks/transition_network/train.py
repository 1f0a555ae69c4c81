"""Trains the network of `stages/shots/gradual_network.py`.

    python -m benchmarks.transition_network.train FOOTAGE OUT [--without-fold 0|1] [--minutes 8]

FOOTAGE is the folder that `collect.py` wrote. OUT gets the weights, network.pt. The repository of a
source decides its fold, of two. `--without-fold` trains on the other fold alone, and OUT also gets
the logits of each source of the fold that was left out; thresholds are chosen with them.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.transition_network.collect import FOLDS, Source, gather, read_source, select_frames
from benchmarks.transition_network.draw import PLAIN, Planner, Renderer
from benchmarks.transition_network.network import TransitionNetwork

FRAMES = 192  # of a sequence
STEPS_PER_REPORT = 100  # the mean losses of these steps are printed
MAX_LEARNING_RATE = 2e-3
CUT_WEIGHT = 4.0  # in the loss, of a frame with a cut before it: one in thirty is


class Plans(IterableDataset):
    """Endless batches of plans: the arrays of Plan with a first axis of clips. Workers draw from
    generators of their own."""

    def __init__(self, planner: Planner, batch: int, seed: int) -> None:
        self.planner, self.batch, self.seed = planner, batch, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            plans = [vars(self.planner.plan(rng)) for _ in range(self.batch)]
            yield {
                name: torch.from_numpy(np.stack([plan[name] for plan in plans])).float()
                if plans[0][name].dtype != np.int64
                else torch.from_numpy(np.stack([plan[name] for plan in plans]))
                for name in plans[0]
            }


def fold_of(source: Source) -> int:
    """0 or 1, the same for all sources of a repository."""
    return int(hashlib.sha256(source.repository.encode()).hexdigest(), 16) % FOLDS


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
    sources: list[tuple[Source, np.ndarray]], out: Path, minutes: float, batch: int, workers: int
) -> TransitionNetwork:
    """Trains for some minutes on drawn sequences, and writes the weights to `out`. The learning
    rate rises over 100 steps and falls as a cosine of the elapsed time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frames, shots, videos = gather(sources)
    print(f"{len(frames)} frames, {len(shots)} shots, {len(videos)} labelled videos", flush=True)
    renderer = Renderer(torch.from_numpy(frames).to(device))
    planner = Planner(shots, videos, len(frames) - len(PLAIN), FRAMES)
    loader = DataLoader(Plans(planner, batch, seed=1), batch_size=None, num_workers=workers)
    torch.manual_seed(0)
    network = TransitionNetwork().to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=MAX_LEARNING_RATE, weight_decay=0.02)
    started, sums = time.monotonic(), np.zeros(2)
    for step, plans in enumerate(loader):
        elapsed = (time.monotonic() - started) / (60 * minutes)  # share of the whole
        if elapsed >= 1:
            break
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * elapsed))
        rate = MAX_LEARNING_RATE * min(1, step / 100) * decay
        for group in optimizer.param_groups:
            group["lr"] = rate
        plans = {name: array.to(device, non_blocking=True) for name, array in plans.items()}
        with torch.no_grad():
            clips = renderer.render(plans)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(clips)
        cut, gradual = loss_of(logits.float(), plans)
        optimizer.zero_grad(set_to_none=True)
        (cut + gradual).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        sums += cut.item(), gradual.item()
        if step % STEPS_PER_REPORT == STEPS_PER_REPORT - 1:
            means = ", ".join(f"{loss:.4f}" for loss in sums / STEPS_PER_REPORT)
            print(
                f"{step + 1} steps, {time.monotonic() - started:.0f} s: losses {means}", flush=True
            )
            sums[:] = 0
            torch.save(network.state_dict(), out)
    torch.save(network.state_dict(), out)
    return network.eval()


@torch.inference_mode()
def logits_of(network: TransitionNetwork, frames: np.ndarray) -> np.ndarray:
    """The logits of one video.  frames: (T, 36, 64, 3) uint8 -> (T, 2) float32"""
    device = next(network.parameters()).device
    return network(torch.from_numpy(frames)[None].to(device))[0].float().cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without-fold", type=int, choices=range(FOLDS))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sources = [read_source(path) for path in sorted(args.footage.glob("*.npz"))]
    if not sources:
        raise SystemExit(
            f"{args.footage}: no footage; benchmarks.transition_network.collect writes it"
        )
    training = [pair for pair in sources if fold_of(pair[0]) != args.without_fold]
    weights = args.out / "network.pt"
    network = train(training, weights, args.minutes, args.batch, args.workers)
    for source, frames in sources:
        if fold_of(source) == args.without_fold:
            at = select_frames(source.times_s)
            np.savez(args.out / f"{source.name}.npz", logits=logits_of(network, frames[at]), at=at)


if __name__ == "__main__":
    main()
