"""One training step (forward and backward, no optimizer) of the 2.8 B model on one GPU.

    python -m benchmarks.step                      # the standard table, as in docs/measurements
    python -m benchmarks.step --diffusers          # and diffusers' Allegro, gradient checkpointing
    python -m benchmarks.step --case flash4 44 5 attention   # may be repeated
    python -m benchmarks.step --compare ../older --layers 8 --steps 8   # this checkout, and another

A case: back end, latent frames, captions, recompute policy (Presto.set_recompute_policy).
MFU = 3 x forward FLOPs / step time / peak: recomputation is not counted. `peak` is that of
a bf16 product 8192^3 in the same run. Weights and latents are random, for zeros run faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.gpu_time import milliseconds, peak_flops
from training import sca
from training.attention import usable_backends
from training.config import ModelConfig, RecomputePolicy
from training.model import Presto, Text, forward_flops

SIZE = (90, 160)  # latent height and width of 720 x 1280
CAPTION_TOKENS = 100  # T5 tokens of one sub-caption: 62 words on average in the released test set


def build(layers: int, eager: bool) -> Presto:
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = Presto(replace(ModelConfig(), num_layers=layers))
        torch.set_default_dtype(torch.float32)
    if not eager:
        model.compile_blocks()
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


def measure(model: Presto, case: list[str], steps: int) -> dict:
    backend, policy = case[0], cast(RecomputePolicy, case[3])
    frames, captions = int(case[1]), int(case[2])
    model.attention = backend
    model.set_recompute_policy(policy)
    inputs = batch(frames, captions)
    start = time.perf_counter()
    step(model, inputs)
    torch.cuda.synchronize()
    first_s = time.perf_counter() - start  # with compilation
    step_s = first_s
    if steps:
        torch.cuda.reset_peak_memory_stats()
        step_s = milliseconds(lambda: step(model, inputs), steps, warm=0) / 1e3
    text_tokens = CAPTION_TOKENS * float((inputs[3][0] > 0).sum()) / frames
    return row(backend, policy, model.cfg, frames, captions, text_tokens, step_s, first_s)


def row(backend, policy, cfg, frames, captions, text_tokens, step_s, first_s) -> dict:
    grid = (frames, SIZE[0] // 2, SIZE[1] // 2)
    return {
        "backend": backend,
        "policy": policy,
        "layers": cfg.num_layers,
        "latent_frames": frames,
        "tokens": grid[0] * grid[1] * grid[2],
        "captions": captions,
        "step_s": step_s,
        "first_s": first_s,
        "flops": 3 * forward_flops(cfg, grid, text_tokens),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def cross_attention(backend: str, captions: int, frames: int = 22) -> float:
    """Segmented cross-attention of 32 blocks, each with two forwards (one for recomputation) and a
    backward, ms."""
    cfg, per_frame = ModelConfig(), SIZE[0] // 2 * SIZE[1] // 2
    _, _, text, schedules = batch(frames, captions)
    plan = sca.make_plan(schedules, text.lengths, per_frame, device="cuda")
    shape = (cfg.num_attention_heads, cfg.attention_head_dim)
    q = torch.randn(frames * per_frame, *shape, device="cuda", dtype=torch.bfloat16)
    kv = torch.randn(2, captions * CAPTION_TOKENS, *shape, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.requires_grad_() for x in (q, kv[0], kv[1]))
    grad = torch.randn_like(q)

    def work() -> None:
        with torch.no_grad():
            sca.segmented_attention(q, k, v, plan, backend)
        torch.autograd.grad(sca.segmented_attention(q, k, v, plan, backend), (q, k, v), grad)

    return milliseconds(work, 10, warm=3) * cfg.num_layers


def diffusers_step(steps: int) -> dict:
    from diffusers import AllegroTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model: Any = AllegroTransformer3DModel()
        torch.set_default_dtype(torch.float32)
    model.enable_gradient_checkpointing()
    model.train()
    latents = torch.randn(1, 4, 22, *SIZE, device="cuda", dtype=torch.bfloat16)
    text = torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16)
    mask, t = torch.ones(1, 512, device="cuda"), torch.tensor([500], device="cuda")
    made: Any = get_3d_rotary_pos_embed_allegro(
        96, ((0, 0), (45, 80)), (45, 80), 22, (2.2, 2.0, 2.0), device=torch.device("cuda")
    )
    *tables, gt, gh, gw = made
    at = torch.cartesian_prod(gt.long(), gh.long(), gw.long()).T.reshape(3, 1, -1).contiguous()

    def one() -> None:
        out = model(latents, text, t, None, mask, (tables, at), return_dict=False)[0]
        (out.float() * latents.float()).sum().backward()
        model.zero_grad(set_to_none=True)

    one()
    torch.cuda.reset_peak_memory_stats()
    step_s = milliseconds(one, max(1, steps), warm=0) / 1e3
    return row("diffusers", "nothing", ModelConfig(), 22, 1, 512, step_s, 0)


def compare(other: Path, cases: list[list[str]], args: argparse.Namespace) -> None:
    """Runs the cases in this checkout and in another, in turn, each time in a new process; prints
    each case's median step and the ratio of the two."""
    times: dict[tuple[str, int], list[float]] = {}
    folders = {"this": Path(__file__).parents[1], "other": other.resolve()}
    order = ("other", "this", "this", "other") * args.rounds
    for name in order:
        with tempfile.TemporaryDirectory() as scratch:
            rows = Path(scratch, "rows.json")
            command = [sys.executable, "-m", "benchmarks.step", "--out", str(rows)]
            command += ["--layers", str(args.layers), "--steps", str(args.steps)]
            command += ["--eager"] if args.eager else []
            command += [word for case in cases for word in ("--case", *case)]
            environment = os.environ | {"PYTHONPATH": str(folders[name])}
            subprocess.run(command, cwd=folders[name], env=environment, check=True)
            for i, one in enumerate(json.loads(rows.read_text())["rows"]):
                times.setdefault((name, i), []).append(one["step_s"])
    print("| case | other, s | this, s | this / other |")
    for i, case in enumerate(cases):
        theirs, ours = (statistics.median(times[name, i]) for name in ("other", "this"))
        print(f"| {' '.join(case)} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.4f} |")


def show(one: dict, peak: float) -> None:
    mfu = one["flops"] / one["step_s"] / peak
    print(
        f"| {one['backend']} | {one['policy']} | {one['layers']} | {one['latent_frames']} "
        f"| {one['tokens']:,} | {one['captions']} | {one['step_s']:.2f} | {100 * mfu:.0f} % "
        f"| {one['peak_gb']:.1f} | {one['first_s']:.0f} |",
        flush=True,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs=4, action="append")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="0: the first one alone, for memory")
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--diffusers", action="store_true")
    parser.add_argument("--compare", type=Path, help="another checkout, to run in turn with this")
    parser.add_argument("--rounds", type=int, default=1, help="of --compare: four processes each")
    parser.add_argument("--profile", help="file for the kernels of one more step of the last case")
    parser.add_argument("--out", help="file for the rows as JSON; grows with each case")
    return parser.parse_args()


def main() -> None:
    args, found = arguments(), usable_backends(torch.device("cuda"))
    cases = args.case or [
        [found[0], "22", "5", "products"],
        [found[0], "22", "5", "attention"],
        [found[0], "22", "1", "attention"],
        *([["cudnn", "22", "5", "attention"]] if "cudnn" in found[1:] else []),
    ]
    if args.compare:
        compare(args.compare, cases, args)
        return
    peak = peak_flops()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"peak {peak / 1e12:.0f} TFLOP/s, {found}"
    )
    print(
        "| back end | kept | layers | latent frames | tokens | captions | step, s | MFU "
        "| peak, GB | first step, s |"
    )
    rows: list[dict] = []

    def add(one: dict) -> None:
        rows.append(one)
        show(one, peak)
        if args.out:
            Path(args.out).write_text(json.dumps({"peak": peak, "rows": rows}, indent=1))

    model = build(args.layers, args.eager)
    for case in cases:
        add(measure(model, case, args.steps))
    if args.profile:
        inputs = batch(int(cases[-1][1]), int(cases[-1][2]))
        with torch.profiler.profile() as profile:
            step(model, inputs)
            torch.cuda.synchronize()
        kernels = profile.key_averages()
        Path(args.profile).write_text(
            kernels.table("self_cuda_time_total", row_limit=60, max_name_column_width=90)
        )
    del model
    gc.collect()
    torch.cuda.empty_cache()
    one, five = (cross_attention(found[0], n) for n in (1, 5))
    print(
        f"cross-attention in 32 blocks, {found[0]}: "
        f"1 caption {one:.0f} ms, 5 captions {five:.0f} ms a step"
    )
    if args.diffusers:
        add(diffusers_step(args.steps))


if __name__ == "__main__":
    main()
