"""Sampling a video of 15 s at 720p with the 2.8 B network on one GPU, by solver and guidance.

    python -m benchmarks.sampling --out FOLDER [--layers 32] [--forwards 3]

Random weights. Measured: the time of one forward (median of --forwards) with eager and with
compiled blocks, captions' K and V cached; and the decoding of the video by the compiled codec in
TF32 and bf16. A row's time is forwards x time of one + decoding in TF32; the sampling itself does
not run. FOLDER gets sampling.json and sampling.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from benchmarks.codec import build as build_codec
from benchmarks.codec import seconds
from benchmarks.gpu_time import milliseconds
from benchmarks.step import batch, build
from training.config import DiffusionConfig, SampleConfig
from training.diffusion import guided, sample_latents

FRAMES = 22  # latent ones, of 15 s
FULL = SampleConfig(steps=100, guidance=7.0)
SECOND_ORDER = replace(FULL, steps=25, solver="dpm++")
# name, compiled blocks, settings
ROWS: tuple[tuple[str, bool, SampleConfig], ...] = (
    ("100 Euler-ancestral steps", False, FULL),
    ("compiled blocks", True, FULL),
    ("25 dpm++ steps", True, SECOND_ORDER),
    ("guidance above 0.2", True, replace(SECOND_ORDER, guidance_interval=(0.2, 1.0))),
    ("guidance in 0.2 to 0.8", True, replace(SECOND_ORDER, guidance_interval=(0.2, 0.8))),
    ("20 dpm++ steps, guidance above 0.2", True,
     replace(SECOND_ORDER, steps=20, guidance_interval=(0.2, 1.0))),
)  # fmt: skip


def count_forwards(cfg: SampleConfig) -> int:
    count = 0

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return x

    guide = guided(predict, predict, cfg.guidance, cfg.guidance_interval)
    sample_latents(guide, torch.zeros(1, 4, 2, 2, 2), cfg, DiffusionConfig(), torch.Generator())
    return count


@torch.no_grad()
def forward_seconds(layers: int, eager: bool, repeats: int) -> dict[str, float]:
    model = build(layers, eager)
    latents, t, text, schedules = batch(FRAMES, 5)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    cached = model.cache_text(text)
    model(latents, t, cached, schedules)
    torch.cuda.synchronize()
    first_s = time.perf_counter() - start
    one_s = milliseconds(lambda: model(latents, t, cached, schedules), repeats, warm=0) / 1e3
    return {
        "forward_s": one_s,
        "first_s": first_s,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


@torch.no_grad()
def decode_seconds(precision: str) -> dict[str, float]:
    vae = build_codec(cast(Literal["tf32", "bf16"], precision))
    latents = torch.randn(1, 4, FRAMES, 90, 160, device="cuda") / 0.13
    first_s, _ = seconds(lambda: vae.decode(latents[:, :, :6, :40, :40]).sample)
    decode_s, _ = seconds(lambda: vae.decode(latents).sample)
    return {"decode_s": decode_s, "first_tile_s": first_s}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--forwards", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": args.layers,
    }

    def add(name: str, values: Any) -> None:
        found[name] = values
        print(name, values, flush=True)
        (args.out / "sampling.json").write_text(json.dumps(found, indent=1))

    for name in ("eager", "compiled"):
        add(name, forward_seconds(args.layers, name == "eager", args.forwards))
        torch.cuda.empty_cache()
    for precision in ("tf32", "bf16"):
        add(precision, decode_seconds(precision))
        torch.cuda.empty_cache()
    lines = [
        "| | forwards | one forward, s | decoding, s | a video, s | speed |",
        "|---|---|---|---|---|---|",
    ]
    base, decode_s = 0.0, found["tf32"]["decode_s"]
    for name, compiled, cfg in ROWS:
        forward_s = found["compiled" if compiled else "eager"]["forward_s"]
        forwards = count_forwards(cfg)
        video_s = forwards * forward_s + decode_s
        base = base or video_s
        lines.append(
            f"| {name} | {forwards} | {forward_s:.2f} | {decode_s:.1f} | {video_s:.0f} "
            f"| {base / video_s:.2f} |"
        )
    (args.out / "sampling.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
