"""Allegro's video VAE on one GPU: seconds, error and memory of one clip, by precision.

    python -m benchmarks.codec --out FOLDER                       # 88 x 720 x 1280, 75 tiles
    python -m benchmarks.codec --out FOLDER --size 40 520 560     # 8 tiles, times 75 / 8

The network has its full size and random weights. The error is that of fp32 without TF32: norm of
the difference / norm, of the posterior's mean or of the decoded video. A variant's first tile runs
before its time is taken and is a column of its own: it has the compilation. In the variants
"searched", torch.backends.cudnn.benchmark chooses kernels, as the trainer does to decode.
FOLDER gets codec.json and codec.md after each row.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from curation.torchvision_fix import fix_torchvision
from training.config import AllegroConfig, Size
from training.pretrained import prepare_vae

WHOLE = Size(88, 720, 1280)
# name -> precision, TF32, compiled, kernels searched; the first is the reference
VARIANTS: dict[str, tuple[Literal["tf32", "bf16"], bool, bool, bool]] = {
    "fp32": ("tf32", False, False, False),
    "tf32": ("tf32", True, False, False),
    "tf32 compiled": ("tf32", True, True, False),
    "tf32 compiled, searched": ("tf32", True, True, True),
    "bf16": ("bf16", True, False, False),
    "bf16 compiled": ("bf16", True, True, False),
    "bf16 compiled, searched": ("bf16", True, True, True),
}


def count_tiles(size: Size) -> int:
    count = 1
    shape = (size.frames, size.height, size.width)
    for n, tile, step in zip(shape, AllegroConfig.tile, AllegroConfig.stride, strict=True):
        count *= (n - tile) // step + 1
    return count


def stance(compiled: bool) -> AbstractContextManager:
    return torch.compiler.set_stance("default" if compiled else "force_eager")


def build(precision: Literal["tf32", "bf16"]) -> Any:
    fix_torchvision()
    from diffusers import AutoencoderKLAllegro

    torch.manual_seed(0)
    with torch.device("cuda"):
        vae = AutoencoderKLAllegro(scaling_factor=0.13)
    return prepare_vae(vae, AllegroConfig("", precision))


def smooth_noise(shape: Sequence[int], coarse: Sequence[int]) -> Tensor:
    """Noise of low frequencies with a tenth of white noise."""
    rng = torch.Generator("cuda").manual_seed(1)
    low = torch.randn(*shape[:2], *coarse, generator=rng, device="cuda")
    low = torch.nn.functional.interpolate(low, tuple(shape[2:]), mode="trilinear")
    return low + 0.1 * torch.randn(tuple(shape), generator=rng, device="cuda")


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    out = work()
    torch.cuda.synchronize()
    return time.perf_counter() - start, out


@torch.no_grad()
def measure(name: str, size: Size, references: dict[str, Tensor]) -> list[dict[str, Any]]:
    precision, tf32, compiled, searched = VARIANTS[name]
    vae, tiles, rows = build(precision), count_tiles(size), []
    frames, height, width = AllegroConfig("").latent_size(size)
    video = smooth_noise((1, 3, size.frames, size.height, size.width), (6, 9, 16)).clamp(-1, 1)
    latents = smooth_noise((1, 4, frames, height, width), (6, 18, 32)) / 0.13
    works: dict[str, tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] = {
        "encode": (video, video[:, :, :24, :320, :320], lambda x: vae.encode(x).latent_dist.mean),
        "decode": (latents, latents[:, :, :6, :40, :40], lambda x: vae.decode(x).sample),
    }
    for work, (whole, tile, run) in works.items():
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, searched
        with stance(compiled):
            first_s, _ = seconds(lambda run=run, tile=tile: run(tile))
            tile_s = min(seconds(lambda run=run, tile=tile: run(tile))[0] for _ in range(3))
            torch.cuda.reset_peak_memory_stats()
            clip_s, out = seconds(lambda run=run, whole=whole: run(whole))
        peak_gb = torch.cuda.max_memory_allocated() / 1e9
        out = out.float().cpu()
        expected = references.setdefault(work, out)
        rows.append(
            {
                "work": work,
                "variant": name,
                "tiles": tiles,
                "s": clip_s,
                "s_tile": tile_s,
                "s_75_tiles": clip_s * count_tiles(WHOLE) / tiles,
                "first_tile_s": first_s,
                "error": ((out - expected).norm() / expected.norm()).item(),
                "largest_error": ((out - expected).abs().max() / expected.std()).item(),
                "peak_gb": peak_gb,
            }
        )
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table; speeds are relative to TF32 without compilation."""
    base = {row["work"]: row["s"] for row in rows if row["variant"] == "tf32"}
    lines = [
        "| | variant | tiles | clip, s | one tile, s | 75 tiles, s | speed | error "
        "| largest error / deviation | peak, GB | first tile, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = f"{base[row['work']] / row['s']:.2f}" if row["work"] in base else ""
        lines.append(
            f"| {row['work']} | {row['variant']} | {row['tiles']} | {row['s']:.2f} "
            f"| {row['s_tile']:.3f} | {row['s_75_tiles']:.1f} | {speed} "
            f"| {100 * row['error']:.2f} % | {row['largest_error']:.3f} "
            f"| {row['peak_gb']:.1f} | {row['first_tile_s']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--size", type=int, nargs=3, default=(88, 720, 1280))
    parser.add_argument("--variant", action="append", choices=list(VARIANTS), help="repeatable")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    size = Size(*args.size)
    names = list(VARIANTS)[:1] + [v for v in list(VARIANTS)[1:] if v in (args.variant or VARIANTS)]
    head = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(head, flush=True)
    rows: list[dict[str, Any]] = []
    references: dict[str, Tensor] = {}
    for name in names:
        rows += measure(name, size, references)
        (args.out / "codec.json").write_text(json.dumps(head | {"rows": rows}, indent=1))
        (args.out / "codec.md").write_text(markdown(rows))
        print(markdown(rows), flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
