"""One training step (forward and backward, no optimizer) of the 2.8 B model on one GPU.

    python benchmarks/step.py                          # the standard table, as in docs/training.md
    python benchmarks/step.py --case flash4 44 5       # back end, latent frames, captions; more than one may be given
    python benchmarks/step.py --diffusers              # diffusers' Allegro with gradient checkpointing, for comparison

MFU = 3 x forward FLOPs / step time / peak: recomputation is not counted. `peak` is a bf16 product 8192^3 measured
in the same run. Weights and latents are random (never zeros: those run faster).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from training import sca
from training.attention import usable_backends
from training.model import ModelConfig, Presto, Text, forward_flops

SIZE = (90, 160)  # latent height and width of 720 x 1280
CAPTION_TOKENS = 100  # T5 tokens of one sub-caption: 62 words on average in the released test set


def milliseconds(work: Callable[[], object], repeats: int, warm: int = 1) -> float:
    """Median over `repeats` by CUDA events, after `warm` runs."""
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def peak_flops() -> float:
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / milliseconds(lambda: a @ b, 20, warm=5) * 1e3


def build(layers: int) -> Presto:
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = Presto(replace(ModelConfig(), num_layers=layers))
        torch.set_default_dtype(torch.float32)
    model.keep("attention")
    return model


def batch(frames: int, captions: int) -> tuple:
    latents = torch.randn(1, 4, frames, *SIZE, device="cuda", dtype=torch.bfloat16)
    text = torch.randn(captions * CAPTION_TOKENS, 4096, device="cuda", dtype=torch.bfloat16)
    spans = [(15.0 * i / captions, 15.0 * (i + 1) / captions) for i in range(captions)]
    t = torch.tensor([500.0], device="cuda")
    return latents, t, Text(text, [[CAPTION_TOKENS] * captions]), [sca.schedule(spans, frames)]


def step(model: Presto, inputs: tuple) -> None:
    out = model(*inputs)
    (out.float() * inputs[0].float()).sum().backward()
    for p in model.parameters():
        p.grad = None


def measure(model: Presto, backend: str, frames: int, captions: int, steps: int) -> dict:
    model.attention = backend
    inputs = batch(frames, captions)
    start = time.perf_counter()
    step(model, inputs)
    torch.cuda.synchronize()
    first_s = time.perf_counter() - start  # with compilation
    torch.cuda.reset_peak_memory_stats()
    step_s = milliseconds(lambda: step(model, inputs), steps, warm=0) / 1e3
    grid = (frames, SIZE[0] // 2, SIZE[1] // 2)
    heard = CAPTION_TOKENS * float((inputs[3][0] > 0).sum()) / frames
    flops = 3 * forward_flops(model.cfg, grid, heard)
    return {
        "backend": backend, "layers": model.cfg.num_layers, "latent_frames": frames, "captions": captions,
        "tokens": grid[0] * grid[1] * grid[2], "step_s": step_s, "first_s": first_s, "flops": flops,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }  # fmt: skip


def cross_attention(backend: str, captions: int, frames: int = 22) -> float:
    """Segmented cross-attention alone, 32 blocks' worth of two forwards (one is recomputed) and a backward, ms."""
    cfg, per_frame = ModelConfig(), SIZE[0] // 2 * SIZE[1] // 2
    _, _, text, schedules = batch(frames, captions)
    how = sca.plan(schedules, text.lengths, per_frame, device="cuda")
    shape = (cfg.num_attention_heads, cfg.attention_head_dim)
    q = torch.randn(frames * per_frame, *shape, device="cuda", dtype=torch.bfloat16)
    kv = torch.randn(2, captions * CAPTION_TOKENS, *shape, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.requires_grad_() for x in (q, kv[0], kv[1]))
    grad = torch.randn_like(q)

    def work() -> None:
        with torch.no_grad():
            sca.segmented_attention(q, k, v, how, backend)
        torch.autograd.grad(sca.segmented_attention(q, k, v, how, backend), (q, k, v), grad)

    return milliseconds(work, 10, warm=3) * cfg.num_layers


def diffusers_step(steps: int) -> dict:
    from diffusers import AllegroTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = AllegroTransformer3DModel()
        torch.set_default_dtype(torch.float32)
    model.enable_gradient_checkpointing()
    model.train()
    latents = torch.randn(1, 4, 22, *SIZE, device="cuda", dtype=torch.bfloat16)
    text = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    mask, t = torch.ones(1, 512, device="cuda"), torch.tensor([500], device="cuda")
    *tables, gt, gh, gw = get_3d_rotary_pos_embed_allegro(
        96, ((0, 0), (45, 80)), (45, 80), 22, (2.2, 2.0, 2.0), device="cuda"
    )
    at = torch.cartesian_prod(gt.long(), gh.long(), gw.long()).T.reshape(3, 1, -1).contiguous()

    def one() -> None:
        out = model(latents, text, t, None, mask, (tables, at), return_dict=False)[0]
        (out.float() * latents.float()).sum().backward()
        model.zero_grad(set_to_none=True)

    one()
    torch.cuda.reset_peak_memory_stats()
    step_s = milliseconds(one, steps, warm=0) / 1e3
    flops = 3 * forward_flops(ModelConfig(), (22, 45, 80), 512)
    return {
        "backend": "diffusers", "layers": 32, "latent_frames": 22, "captions": 1, "tokens": 79200,
        "step_s": step_s, "first_s": None, "flops": flops, "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }  # fmt: skip


def show(row: dict, peak: float) -> None:
    mfu = row["flops"] / row["step_s"] / peak
    print(
        f"| {row['backend']} | {row['layers']} | {row['latent_frames']} | {row['tokens']:,} | {row['captions']} "
        f"| {row['step_s']:.2f} | {100 * mfu:.0f} % | {row['peak_gb']:.1f} | {row['first_s'] or 0:.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--case", nargs=3, action="append", metavar=("BACKEND", "FRAMES", "CAPTIONS"))  # fmt: skip
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--diffusers", action="store_true")
    parser.add_argument("--profile", help="write the kernels of one more step of the last case here")  # fmt: skip
    parser.add_argument("--out", help="write the rows here as JSON, growing with each case")
    args = parser.parse_args()
    found = usable_backends(torch.device("cuda"))
    cases = args.case or [(found[0], 22, 5), (found[0], 22, 1), *([("cudnn", 22, 5)] if "cudnn" in found[1:] else [])]  # fmt: skip
    peak = peak_flops()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peak {peak / 1e12:.0f} TFLOP/s, {found}")  # fmt: skip
    print("| back end | layers | latent frames | tokens | captions | step, s | MFU | peak, GB | first step, s |")  # fmt: skip
    rows: list[dict] = []
    model = build(args.layers)
    if not args.eager:
        model.compile_blocks()
    for backend, frames, captions in cases:
        rows.append(measure(model, backend, int(frames), int(captions), args.steps))
        show(rows[-1], peak)
        if args.out:
            with open(args.out, "w") as file:
                json.dump({"peak": peak, "rows": rows}, file, indent=1)
    if args.profile:
        inputs = batch(int(cases[-1][1]), int(cases[-1][2]))
        with torch.profiler.profile() as profile:
            step(model, inputs)
            torch.cuda.synchronize()
        with open(args.profile, "w") as file:
            file.write(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90))  # fmt: skip
    del model
    gc.collect()
    torch.cuda.empty_cache()
    one, five = (cross_attention(found[0], n) for n in (1, 5))
    print(
        f"cross-attention in 32 blocks, {found[0]}: 1 caption {one:.0f} ms, 5 captions {five:.0f} ms a step"
    )
    if args.diffusers:
        show(diffusers_step(1), peak)


if __name__ == "__main__":
    main()
