"""At which size does the experiment's overlapped variant learn within minutes?

    python -m benchmarks.segmentation_sizes OUT [minutes=8] [SIZE …]

Runs all sizes at once, each in a process of its own, spread over all GPUs, and stops them after the
minutes. Prints the accuracies of each test; the log of each size is OUT/SIZE.log.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

SIZES = {
    "as_configured": [],
    "small_object": ["video.radius=5.5", "video.speed=1.7"],
    "shift1": ["train.diffusion.flow_shift=1"],
    "shift6": ["train.diffusion.flow_shift=6"],
    "patch8": ["train.system.codec={frames: 1, side: 8}", "train.steps=1920"],
    "batch32": ["train.batch=32", "train.steps=1920"],
    "large": ["train.system.model.num_layers=8", "train.system.model.num_attention_heads=6"],
    "beta.999": ["train.lr=1e-3", "train.betas=[0.9, 0.999]", "train.max_norm=1"],
    "lr2e-3": ["train.lr=2e-3"],
    "any_start": ["video.max_start_offset=100"],
    "eager": ["train.compile=false"],
}


def main(out: Path, minutes: float, names: list[str]) -> None:
    running, gpus = {}, max(1, torch.cuda.device_count())
    experiment = [sys.executable, "-u", "-m", "training.segmentation"]
    for number, name in enumerate(names):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen(
                [
                    *experiment,
                    "configs/train/segmentation.yaml",
                    str(folder),
                    "overlapped:0",
                    *SIZES[name],
                ],
                stdout=log,
                stderr=log,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": str(number % gpus)},
            )
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end and any(p.poll() is None for p in running.values()):
        time.sleep(1)
    for name, process in running.items():
        process.terminate()
        process.wait()
        lines = (out / f"{name}.log").read_text().splitlines()
        accuracies = [line for line in lines if line.startswith(("overlapped", "step"))]
        print(name, process.returncode, *(accuracies[-12:] or lines[-5:]), sep="\n  ", flush=True)


if __name__ == "__main__":
    minutes = [float(a.removeprefix("minutes=")) for a in sys.argv[2:] if a.startswith("minutes=")]
    names = [a for a in sys.argv[2:] if not a.startswith("minutes=")]
    if len(sys.argv) < 2 or set(names) - set(SIZES):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *(minutes or [8.0]), names or list(SIZES))
