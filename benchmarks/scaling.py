"""The trainer's own step on one and two GPUs of a host: FSDP2 and Ulysses.

    python benchmarks/scaling.py [--layers 8] [--size 88 720 1280] [--gpus 2]

Each row is a process group of its own (torchrun) that runs training.train's `one_step` (forward,
backward, AdamW, average) on drawn latents and texts of 88 x 720 x 1280 px: `alone` without torchrun
(autocast), then FSDP2 on one rank and on all, then one sample over all ranks (Ulysses). Efficiency:
samples a second and GPU, over that of FSDP2 on one. Fewer layers than 32 shorten the run; a layer's
computing and its weights' traffic stay in proportion.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent


def one_case(args: argparse.Namespace) -> None:
    """In each process of a group."""
    from curation import config
    from training.clips import Listed, Size
    from training.data import Share, stream
    from training.log import finish, peak_memory_gb
    from training.parallel import leave
    from training.train import TrainConfig, build, made_up, one_step

    cfg = config.load(TrainConfig, ROOT / "configs/train/presto_2b8.yaml")
    model = replace(cfg.system.model, num_layers=args.layers)
    system = replace(cfg.system, model=model, size=Size(*args.size))
    cfg = replace(cfg, weights="", accumulate=1, system=system, sequence_ranks=args.sequence)
    cfg = replace(cfg, compile=not args.eager)
    run = build(cfg)
    share = Share(1, run.world.replica, run.world.replicas)
    batches = stream(Listed([made_up(system)]), share, 0)
    times = []
    for step in range(1 + args.steps):
        finish(run.world.device)
        start = time.perf_counter()
        one_step(run, batches, cfg, step)
        finish(run.world.device)
        times.append(time.perf_counter() - start)
    if run.world.first:
        row = {
            "first_s": times[0],
            "step_s": statistics.median(times[1:]),
            "samples": run.samples,
            "peak_gb": peak_memory_gb(run.world.device),
        }
        Path(args.out).write_text(json.dumps(row))
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=3, default=[88, 720, 1280])
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out:
        one_case(args)
        return
    all_ = args.gpus
    cases = [("alone", 0, 1), ("FSDP2", 1, 1), ("FSDP2", all_, 1), ("Ulysses", all_, all_)]
    print(f"{args.layers} layers, {args.size[0]} frames of {args.size[1]} x {args.size[2]}")
    print("| | GPUs | step, s | samples a step | efficiency | peak, GB | first step, s |")
    base = None
    for name, ranks, sequence in cases:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "row.json")
            launch = [sys.executable]
            if ranks:
                launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
                launch += [str(ranks)]
            same = ["--layers", args.layers, "--size", *args.size, "--steps", args.steps]
            same += ["--eager"] if args.eager else []
            command = [*launch, __file__, *same, "--sequence", sequence, "--out", out]
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run([str(c) for c in command], env=os.environ | {"PYTHONPATH": path})
            if done.returncode or not out.exists():
                print(
                    f"| {name} | {ranks or 1} | failed, exit code {done.returncode} |", flush=True
                )
                continue
            row = json.loads(out.read_text())
        rate = row["samples"] / row["step_s"] / (ranks or 1)
        base = rate if (name, ranks) == ("FSDP2", 1) else base
        efficiency = f"{rate / base:.2f}" if base else ""
        print(
            f"| {name} | {ranks or 1} | {row['step_s']:.2f} | {row['samples']} | {efficiency} "
            f"| {row['peak_gb']:.1f} | {row['first_s']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
