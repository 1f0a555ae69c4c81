"""The log of a run: lines on the terminal, metrics.csv, TensorBoard, a plot of the losses.

MFU (model FLOPs utilization) is 3 x the network's forward FLOPs x samples / time / peak, without
recomputation. The peak is that of a matrix product on the same device at the start of the run,
times the number of devices.
"""

from __future__ import annotations

import csv
import logging
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from curation.atomic import atomic_path
from curation.config import ConfigError
from training.parallel import World

Metric = tuple[int, str, str]  # step, name, value


def peak_flops(device: torch.device) -> float:
    """FLOP/s of a large square matrix product, the best of four: bf16 on a GPU, fp32 on a CPU."""
    cuda = device.type == "cuda"
    n, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def peak_memory_gb(device: torch.device) -> float:
    """Returns the peak memory of the GPU, or of this process if there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def free_memory_gb(device: torch.device) -> float:
    """Returns the free memory of the GPU, or of the machine if there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 1e9
    # SC_AVPHYS_PAGES lacks the memory that the kernel's page cache gives back
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) * 1024 / 1e9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report_recompile_limit() -> None:
    """Replaces torch.compile's warning of several lines, that it compiles a function for no more
    shapes, by one that names the settings. Batches of new shapes then run uncompiled."""
    logging.getLogger("torch._dynamo.convert_frame").addFilter(_print_recompile_limit)


def _print_recompile_limit(record: logging.LogRecord) -> bool:
    lines = record.getMessage().splitlines()
    if "hit config." not in lines[0]:
        return True
    print(
        f"warning: {lines[0]}: batches of new shapes run uncompiled from now on, slower;"
        + ";".join(line.replace("   ", " ") for line in lines[1:3])
        + ". Start again with fewer system.sizes, or with compile=false",
        file=sys.stderr,
        flush=True,
    )
    return False


class Log:
    """Writes metrics.csv, TensorBoard's files and a line per `every` steps, on the first rank only;
    with a project also to Weights & Biases.

    A run that resumes from a checkpoint removes the log of later steps. The end of a `with` block
    closes TensorBoard's files and the run at Weights & Biases, as failed where the block raises.
    """

    def __init__(self, run_dir: str | Path, step: int, every: int, world: World, project: str = ""):
        folder = Path(run_dir)
        self.path, self.every, self.device = folder / "metrics.csv", every, world.device
        self.is_first, self._peak = world.is_first, peak_flops(world.device) * world.size
        self._wandb: Any = None
        self._opened = ExitStack()
        self._restart()
        if not self.is_first:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir: can't make {folder}: {error.strerror}") from None
        self._write(row for row in read_metrics(self.path) if row[0] <= step)
        with ExitStack() as stack:  # closes the first where opening the second raises
            board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
            self._board = stack.enter_context(board)
            if project:
                run = self._wandb = _start_wandb(project, folder)
                stack.push(lambda error, *_: run.finish(exit_code=int(error is not None)))
            self._opened = stack.pop_all()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def _restart(self) -> None:
        self._since, self._steps, self._skipped = time.perf_counter(), 0, 0
        self._sums = dict.fromkeys(("loss", "wait_s", "tokens", "flops"), 0.0)

    def step(self, step: int, steps: int, values: dict[str, float]) -> None:
        """values: loss, gradient norm, lr, wait_s, tokens and flops of one step."""
        self._steps += 1
        self._skipped += not math.isfinite(values["loss"])
        for name in self._sums:
            self._sums[name] += values[name] if math.isfinite(values[name]) else 0.0
        shown = {name: values[name] for name in ("loss", "norm", "lr")}
        if step % self.every == 0 or step == steps:
            synchronize(self.device)
            shown |= self._rates()
            loss = self._sums["loss"] / max(1, self._steps - self._skipped)
            self.print(
                f"step {step}/{steps}  loss {loss:.4f}"
                f"  {shown['step_s']:.2f} s/step  {shown['tokens_per_s']:,.0f} tokens/s"
                f"  MFU {shown['mfu']:.0%}  data wait {shown['data_wait']:.0%}"
                f"  peak {shown['memory_gb']:.1f} GB"
            )
            self._restart()
        self.record(step, shown)

    def _rates(self) -> dict[str, float]:
        took = time.perf_counter() - self._since
        return {
            "step_s": took / self._steps,
            "tokens_per_s": self._sums["tokens"] / took,
            "mfu": self._sums["flops"] / took / self._peak,
            "data_wait": self._sums["wait_s"] / took,
            "memory_gb": peak_memory_gb(self.device),
        }

    def print(self, line: str) -> None:
        if self.is_first:
            print(line, flush=True)

    def record(self, step: int, values: dict[str, float]) -> None:
        if not self.is_first:
            return
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows((step, name, repr(v)) for name, v in values.items())

    def resume_timing(self) -> None:
        """Excludes the time since the last printed line, for example a validation's, from the next
        step's time."""
        if not self._steps:
            self._since = time.perf_counter()

    def _write(self, rows: Iterable[Metric]) -> None:
        with atomic_path(self.path) as part, part.open("w", newline="") as file:
            csv.writer(file).writerows(chain([("step", "name", "value")], rows))


def _start_wandb(project: str, folder: Path) -> Any:
    """A run at Weights & Biases, of the same name after a resumption."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"wandb is {project!r}, but the package is not installed: pip install wandb"
        ) from None
    name = "-".join(folder.resolve().parts[-2:])
    return wandb.init(project=project, id=name, resume="allow", dir=str(folder))


def read_metrics(path: Path) -> Iterator[Metric]:
    """The rows of metrics.csv, without its header and an incomplete last line."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        for row in csv.reader(file):
            if len(row) == 3 and row[0].isdecimal() and row[2]:
                yield int(row[0]), row[1], row[2]


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """(n,) the mean of each value and those before it, `window` in all. Values that are not finite,
    as of skipped steps, are left out; nan where no other is in the window."""
    is_finite = np.isfinite(values)
    total = np.cumsum(np.append(0.0, np.where(is_finite, values, 0.0)))
    count = np.cumsum(np.append(0, is_finite))
    first = np.maximum(np.arange(len(values)) + 1 - window, 0)
    total, count = total[1:] - total[first], count[1:] - count[first]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def draw_curve(run_dir: str | Path) -> Path:
    """Writes loss.png: the loss of every step, its moving mean, and the validation loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {"loss": [], "validation_loss": []}
    for step, name, value in read_metrics(Path(run_dir, "metrics.csv")):
        if name in lines:
            lines[name].append((step, float(value)))
    (steps, losses), validation = (np.array(x, float).reshape(-1, 2).T for x in lines.values())
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    window = 1 + max(1, len(losses) // 20)
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="loss of a step")
    axes.plot(steps, moving_mean(losses, window), color="C0", label=f"mean of {window} steps")
    if validation.size:
        axes.plot(*validation, "o-", color="C1", label="validation, fixed timesteps, EMA")
    axes.set(xlabel="step", ylabel="loss")
    if (losses > 0).any() and not (losses <= 0).any():
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path = Path(run_dir, "loss.png")
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=120)
    return path
