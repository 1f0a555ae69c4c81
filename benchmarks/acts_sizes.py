"""At which size does the overlapped arm of the acts experiment learn its captions within minutes?

    python benchmarks/acts_sizes.py OUT [minutes=8]

All sizes at once on one GPU, a process each; stops them after the minutes. Each prints its
accuracies after every quarter of its steps; the log of each is OUT/SIZE.log.
"""

import subprocess
import sys
import time
from pathlib import Path

MODEL = "train.system.model."
SIZES = {
    "patch8": [],
    "patch8_lr5e-4": ["train.lr=5e-4"],
    "patch4": ["train.system.codec={frames: 1, side: 4}", "train.steps=1600"],
    "narrow": [MODEL + "num_attention_heads=2", "train.steps=3600", "train.batch=64"],
}


def main(out: Path, minutes: float) -> None:
    running = {}
    for size, changes in SIZES.items():
        folder = out / size
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-u", "-m", "training.acts", "configs/train/acts.yaml"]
        with (out / f"{size}.log").open("w") as log:
            running[size] = subprocess.Popen(
                [*command, str(folder), "overlapped:0", *changes], stdout=log, stderr=log
            )
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end and any(p.poll() is None for p in running.values()):
        time.sleep(1)
    for size, process in running.items():
        process.terminate()
        process.wait()
        lines = (out / f"{size}.log").read_text().splitlines()
        told = [line for line in lines if line.startswith(("overlapped", "step"))]
        print(size, process.returncode, *(told[-12:] or lines[-5:]), sep="\n  ", flush=True)


if __name__ == "__main__":
    settings = dict(a.split("=") for a in sys.argv[2:])
    if len(sys.argv) < 2 or set(settings) - {"minutes"}:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), float(settings.get("minutes", 8)))
