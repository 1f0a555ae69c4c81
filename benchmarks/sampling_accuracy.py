"""What fast sampling costs: the oracle's accuracy on a network of the segmentation experiment.

    python -m benchmarks.sampling_accuracy configs/train/segmentation_small.yaml --out FOLDER \\
        [--steps 400] [--videos 64]

Trains the network first. Each row samples the same test videos from the same noise. `difference` is
the root mean square of the grey levels against the full sampler's videos. For flows it is an error,
because both solvers follow the same path; Euler-ancestral sampling adds noise of its own, so there
it is not. `to the second order` is the same against 100 second-order steps. FOLDER gets one JSON
and one Markdown file, named after the objective.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from curation import config
from training.config import SampleConfig
from training.segmentation.config import VARIANTS, ExperimentConfig
from training.segmentation.network import Prompts
from training.segmentation.oracle import judge
from training.segmentation.run import TEST, Run, sample, train
from training.segmentation.videos import make_videos

MEASURES = ("colour", "direction", "joint")


def rows_of(guidance: float) -> list[tuple[str, SampleConfig]]:
    full = SampleConfig(steps=100, guidance=guidance)
    second = replace(full, solver="dpm++")
    fast = replace(second, steps=25)
    found = [
        ("full: 100 Euler steps", full),
        ("50 Euler steps", replace(full, steps=50)),
        ("25 Euler steps", replace(full, steps=25)),
        *((f"{n} dpm++ steps", replace(second, steps=n)) for n in (100, 50, 25, 15, 10)),
    ]
    for low, high in ((0.2, 1), (0.4, 1), (0.6, 1), (0.8, 1), (0, 0.8), (0.2, 0.8)):
        name = f"25 dpm++ steps, guidance in {low:g} to {high:g}"
        found.append((name, replace(fast, guidance_interval=(low, high))))
    return [*found, ("25 dpm++ steps, no guidance", replace(fast, guidance=1.0))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="of the experiment")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--variant", default="overlapped", choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--videos", type=int, default=64)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cfg = replace(config.load(ExperimentConfig, args.config), steps=args.steps)
    cfg = replace(cfg, test_every=cfg.steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ((_, network),) = train(cfg, Run("final", args.variant, cfg.rates[0], 1), device)
    videos = make_videos(args.videos, cfg.events, TEST, 0, cfg.events)
    prompts = Prompts.of(videos, device)
    sampled: dict[str, torch.Tensor] = {}
    seconds: dict[str, float] = {}
    for name, sampling in rows_of(cfg.sample.guidance):
        start = time.perf_counter()
        sampled[name] = sample(network, prompts, replace(cfg, sample=sampling)).cpu()
        seconds[name] = time.perf_counter() - start
        print(name, f"{seconds[name]:.1f} s", flush=True)
    full, second = sampled["full: 100 Euler steps"], sampled["100 dpm++ steps"]
    lines = [
        f"| {cfg.diffusion.objective} | s | difference | to the second order "
        f"| {' | '.join(MEASURES)} |",
        "|---" * (4 + len(MEASURES)) + "|",
    ]
    rows: list[dict[str, Any]] = []
    for name, shown in sampled.items():
        judged = judge(videos, shown)
        row = {m: float(judged[m].mean()) for m in MEASURES}
        row |= {f"rms_{k}": rms(shown, of) for k, of in (("full", full), ("second", second))}
        rows.append({"name": name, "s": seconds[name], **row})
        lines.append(
            f"| {name} | {seconds[name]:.1f} | {row['rms_full']:.2f} | {row['rms_second']:.2f} | "
            + " | ".join(f"{row[m]:.3f}" for m in MEASURES)
            + " |"
        )
    base = args.out / f"sampling_accuracy-{cfg.diffusion.objective}"
    base.with_suffix(".md").write_text("\n".join(lines) + "\n")
    base.with_suffix(".json").write_text(
        json.dumps({"videos": args.videos, "torch": torch.__version__, "rows": rows}, indent=1)
    )
    print("\n".join(lines))


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).square().mean().sqrt())


if __name__ == "__main__":
    main()
