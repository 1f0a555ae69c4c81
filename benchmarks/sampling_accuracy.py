"""What fast sampling costs: the oracle's accuracy on a network of the segmentation experiment.

    python -m benchmarks.sampling_accuracy configs/train/segmentation.yaml --out FOLDER \\
        [--events 5 10] [--videos 64 32] [--only ROW …] [--network FILE] [key=value …]

Trains a network first, at the last of the configuration's rates. --network loads FILE instead, or
writes the trained weights to it if it does not exist. --only measures the named rows, and the full
sampler's. Each row samples the same test videos from the same noise. `difference` is the root mean
square of the grey levels against the full sampler's videos. For flows it is an error, because both
solvers follow the same path; Euler-ancestral sampling adds noise of its own, so there it is not.
`to the second order` is the same against 100 second-order steps. FOLDER gets one JSON and one
Markdown file, named after the objective, which are written after each row.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curation import config
from training.config import DiffusionConfig, SampleConfig
from training.segmentation.config import VARIANTS, ExperimentConfig
from training.segmentation.network import Network, Prompts
from training.segmentation.oracle import judge
from training.segmentation.run import TEST, Run, sample, train
from training.segmentation.videos import make_videos

MEASURES = ("colour", "direction", "joint")
SECOND_ORDER = "100 dpm++ steps"
COMPILED = "25 dpm++ steps, compiled blocks"


def list_samplings(guidance: float, diffusion: DiffusionConfig) -> list[tuple[str, SampleConfig]]:
    """The full sampler first, the 100 second-order steps next, compiled blocks last."""
    first_order = "Euler" if diffusion.flows else "Euler-ancestral"
    full = SampleConfig(steps=100, guidance=guidance)
    second = replace(full, solver="dpm++")
    fast = replace(second, steps=25)
    found = [
        (f"100 {first_order} steps (full)", full),
        (SECOND_ORDER, second),
        (f"25 {first_order} steps", replace(full, steps=25)),
        *((f"{n} dpm++ steps", replace(second, steps=n)) for n in (25, 20, 10)),
    ]
    for n, low, high in ((25, 0.2, 1), (25, 0.4, 1), (25, 0, 0.8), (25, 0.2, 0.8), (20, 0.2, 1)):
        name = f"{n} dpm++ steps, guidance in {low:g} to {high:g}"
        found.append((name, replace(second, steps=n, guidance_interval=(low, high))))
    return [
        *found,
        ("25 dpm++ steps, no guidance", replace(fast, guidance=1.0)),
        (COMPILED, fast),
    ]


def trained_network(
    cfg: ExperimentConfig, variant: str, path: Path | None, device: torch.device
) -> Network:
    if path and path.exists():
        network = Network(VARIANTS[variant], cfg.model, cfg.text)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.to(device).requires_grad_(False).eval()
    cfg = replace(cfg, test_every=cfg.steps)
    ((_, network),) = train(cfg, Run("final", variant, cfg.rates[-1], 1), device)
    if path:
        torch.save(network.state_dict(), path)
    return network


def rms(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).square().mean().sqrt())


def table(objective: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {objective} | events | s | difference | to the second order | {' | '.join(MEASURES)} |",
        "|---" * (5 + len(MEASURES)) + "|",
    ]
    for row in rows:
        second = row.get("rms_second")  # the full sampler's comes with the next row
        cells = [row["name"], str(row["events"]), f"{row['s']:.1f}", f"{row['rms_full']:.2f}"]
        cells += ["" if second is None else f"{second:.2f}", *(f"{row[m]:.3f}" for m in MEASURES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="of the experiment")
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--variant", default="overlapped", choices=list(VARIANTS))
    parser.add_argument("--network", type=Path, help="file of weights")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="by their names")
    parser.add_argument("--events", type=int, nargs="+", help="of a video; default: training's")
    parser.add_argument("--videos", type=int, nargs="+", default=[64], help="for each of --events")
    args = parser.parse_intermixed_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cfg = config.load(ExperimentConfig, args.config, args.settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    network = trained_network(cfg, args.variant, args.network, device)
    print(f"trained or loaded in {time.perf_counter() - start:.0f} s", flush=True)
    tests = list(zip(args.events or [cfg.events], args.videos, strict=True))
    base = args.out / f"sampling_accuracy-{cfg.diffusion.objective}"
    head = {"config": args.config, "settings": args.settings, "tests": tests}
    head |= {"device": device.type, "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    sampled: dict[tuple[str, int], Tensor] = {}
    for name, sampling in list_samplings(cfg.sample.guidance, cfg.diffusion):
        if rows and args.only and name not in args.only:
            continue
        if name == COMPILED:
            network.presto.compile_blocks()
        for events, count in tests:
            videos = make_videos(count, events, TEST, 0, events)
            prompts = Prompts.of(videos, device)
            start = time.perf_counter()
            shown = sample(network, prompts, replace(cfg, sample=sampling)).cpu()
            row = {"name": name, "events": events, "s": time.perf_counter() - start}
            row |= {m: float(v.mean()) for m, v in judge(videos, shown).items() if m in MEASURES}
            sampled[name, events] = shown
            row["rms_full"] = rms(shown, sampled[rows[0]["name"] if rows else name, events])
            rows.append(row)
        for row in rows:
            if (SECOND_ORDER, row["events"]) in sampled:
                key = row["events"]
                row["rms_second"] = rms(sampled[row["name"], key], sampled[SECOND_ORDER, key])
        base.with_suffix(".json").write_text(json.dumps(head | {"rows": rows}, indent=1))
        base.with_suffix(".md").write_text(table(cfg.diffusion.objective, rows))
        print(table(cfg.diffusion.objective, rows[-len(tests) :]), flush=True)
    print(table(cfg.diffusion.objective, rows))


if __name__ == "__main__":
    main()
