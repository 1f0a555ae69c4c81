"""The trainer's step on the GPUs of one host: FSDP2, Ulysses, and the longest videos.

    python -m benchmarks.scaling [--gpus 4] [--out rows.json]

Each row is training.train's `one_step` (forward, backward, AdamW, average) under torchrun, with
random latents and texts: FSDP2 on 1, 2, 4 … GPUs; Ulysses, with one sample over 2, 4 … GPUs; and
Ulysses on all GPUs with the full network on longer videos, for one or two steps. Efficiency is
samples per second and GPU relative to FSDP2 on one GPU. Those rows use 8 of the 32 layers, so that
they fit on one GPU of 80 GB: compute and communication are proportional to the layers. Rows of the
same number of GPUs run in the same processes. A row that fails, or takes longer than `--limit`, is
skipped.
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
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONG = [(184, 32, 1), (360, 32, 0)]  # 46 and 90 latent frames: 31 and 61 s at 5.87 a second


def cases(args: argparse.Namespace) -> list[dict]:
    """What is measured, in the order of the number of processes."""
    frames, *picture = args.size
    common = {"layers": args.layers, "size": args.size, "steps": args.steps}
    found = []
    for ranks in (2**i for i in range(args.gpus.bit_length())):
        found.append({"name": "FSDP2", "ranks": ranks, "sequence": 1, **common})
        if ranks > 1:
            found.append({"name": "Ulysses", "ranks": ranks, "sequence": ranks, **common})
    last = found[-1]
    for frames, layers, steps in args.long or LONG:
        found.append(last | {"layers": layers, "size": [frames, *picture], "steps": steps})
    return found


def run_cases(args: argparse.Namespace) -> None:
    """In each process of a group. Appends a line to `args.rows` for each case."""
    import torch

    from curation import config
    from training.clips import ClipList
    from training.config import Size, TrainConfig
    from training.data import LocalBatch, stream_batches
    from training.dry_run import make_random_clip
    from training.log import peak_memory_gb, synchronize
    from training.parallel import shutdown
    from training.resume import build
    from training.train import one_step

    known = config.load(TrainConfig, ROOT / "configs/train/presto_2b8.yaml")
    known = replace(known, weights="", accumulate=1, compile=not args.eager)
    for case in json.loads(args.cases):
        model = replace(known.system.model, num_layers=case["layers"])
        system = replace(known.system, model=model, size=Size(*case["size"]))
        cfg = replace(known, system=system, sequence_ranks=case["sequence"])
        torch._dynamo.reset()  # else a second length would be compiled for any length
        run = build(cfg)
        device = run.world.device
        local = LocalBatch(1, run.world.replica, run.world.replicas)
        batches = stream_batches(ClipList([make_random_clip(system)]), local, 0)
        times, tokens = [], 0.0
        for step in range(1 + case["steps"]):
            synchronize(device)
            start = time.perf_counter()
            tokens = one_step(run, batches, cfg, step)["tokens"] / run.samples
            synchronize(device)
            times.append(time.perf_counter() - start)
        row = case | {
            "tokens": tokens,
            "first_s": times[0],
            "step_s": statistics.median(times[1:] or times),
            "samples": run.samples,
            "peak_gb": peak_memory_gb(device),
        }
        if run.world.is_first:
            with Path(args.rows).open("a") as file:
                file.write(json.dumps(row) + "\n")
        del run
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    shutdown()


def launched(todo: list[dict], args: argparse.Namespace) -> Iterator[dict]:
    """The rows of cases with one number of processes, as they come, until one fails."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows")
        rows.touch()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(todo[0]["ranks"]), __file__]
        command += ["--rows", str(rows), "--cases", json.dumps(todo)]
        command += ["--eager"] if args.eager else []
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        # flash-attn-4's kernels go to disk, as inductor's do: others needn't compile them again
        settings = {"PYTHONPATH": path, "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}
        process = subprocess.Popen(command, env=os.environ | settings)
        seen, until = 0, time.monotonic() + args.limit
        try:
            while True:
                ended = process.poll() is not None
                lines = rows.read_text().split("\n")[seen:-1]
                for line in lines:
                    yield json.loads(line)
                    seen, until = seen + 1, time.monotonic() + args.limit
                if ended or time.monotonic() > until:
                    return
                time.sleep(0.2)
        finally:
            process.terminate()  # torchrun ends its processes
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=3, default=[88, 720, 1280])
    parser.add_argument("--steps", type=int, default=2, help="timed, after the first")
    parser.add_argument(
        "--long",
        type=int,
        nargs=3,
        action="append",
        metavar=("FRAMES", "LAYERS", "STEPS"),
        help="may be repeated; 0 steps: the first one alone, for memory",
    )
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--limit", type=float, default=150, help="s, of a row")
    parser.add_argument("--out", help="file for the rows as JSON; grows with each")
    parser.add_argument("--cases", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rows:
        run_cases(args)
        return
    print(
        "| | GPUs | layers | tokens | step, s | samples a step | efficiency | peak, GB | first, s |"
    )
    found: list[dict] = []
    base = None  # FSDP2 on one
    for _, group in groupby(cases(args), lambda case: case["ranks"]):
        todo = list(group)
        while todo:
            for row in launched(todo, args):
                todo.pop(0)
                rate = row["samples"] / row["step_s"] / row["ranks"]
                base = rate if row["ranks"] == 1 else base
                alike = (row["layers"], row["size"]) == (args.layers, args.size)
                row["efficiency"] = rate / base if base and alike else None
                show(row)
                found.append(row)
                if args.out:
                    Path(args.out).write_text(json.dumps(found, indent=1))
            if todo:
                print(f"| {todo[0]} failed, or took over {args.limit:.0f} s |", flush=True)
                todo.pop(0)


def show(row: dict) -> None:
    efficiency = f"{row['efficiency']:.2f}" if row["efficiency"] else ""
    step = f"{row['step_s']:.2f}" if row["steps"] else ""
    print(
        f"| {row['name']} | {row['ranks']} | {row['layers']} | {row['tokens']:,.0f} | {step} "
        f"| {row['samples']} | {efficiency} | {row['peak_gb']:.1f} | {row['first_s']:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
