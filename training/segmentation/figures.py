"""The acts experiment's table and figures.

    python -m training.segmentation.figures FOLDER

draws them again from its acts.parquet and strips.npz.

acts.parquet has a row for every test script of every arm, seed and step, and for the true videos
(arm `truth`); strips.npz the first samples.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from curation import config

MEASURES = (
    *("joint", "colour", "shape", "direction", "joint_unseen", "ground_later"),
    *("abruptness", "lost", "teleports", "path_px", "loss_core", "loss_border"),
)
RESAMPLES = 1000
OWN = "own"  # the test whose videos are like training's
TRUTH = "truth"
Rows = list[dict[str, Any]]


def interval(rows: Rows, measure: str) -> tuple[float, float, float] | None:
    """Mean and its 95 % interval: scripts drawn anew with replacement, all seeds of a script
    together."""
    scripts: dict[int, list[float]] = {}
    for r in rows:
        if r.get(measure) is not None:
            scripts.setdefault(r["script"], []).append(r[measure])
    if not scripts:
        return None
    sums = np.array([(sum(v), len(v)) for v in scripts.values()])
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = sums[rng.integers(len(sums), size=(RESAMPLES, len(sums)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    return float(mean), float(low), float(high)


def groups(rows: Rows, key: Callable[[dict[str, Any]], Any]) -> dict[Any, Rows]:
    found: dict[Any, Rows] = {}
    for r in rows:
        found.setdefault(key(r), []).append(r)
    return found


def last(rows: Rows) -> Rows:
    """Of each arm and seed, the longest-trained."""
    of_arm = groups(rows, lambda r: (r["arm"], r["seed"]))
    return [
        r for some in of_arm.values() for r in some if r["step"] == max(s["step"] for s in some)
    ]


def draw_all(out: Path) -> None:
    rows = pq.read_table(out / "acts.parquet").to_pylist()
    write_table(out / "acts.csv", rows)
    truth = [r for r in rows if (r["arm"], r["test"]) == (TRUTH, OWN)]
    rows = [r for r in rows if r["arm"] != TRUTH]
    own = [r for r in rows if r["test"] == OWN]
    accuracy(out / "accuracy.png", own)
    bars(out / "borders.png", last(own), truth)
    bleeding(out / "bleed.png", last(own))
    elsewhere(out / "elsewhere.png", last(rows))
    with np.load(out / "strips.npz") as videos:
        for test in groups(rows, lambda r: r["test"]):
            strips(out, test, {n.split("/")[1]: videos[n] for n in videos if n.startswith(test)})


def write_table(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        head = ("arm", "test", "step", "seeds", "scripts", "measure", "mean", "low", "high")
        table.writerow(head)
        by = groups(rows, lambda r: (r["arm"], r["test"], r["step"]))
        for (arm, test, step), some in by.items():
            seeds, scripts = len({r["seed"] for r in some}), len({r["script"] for r in some})
            for measure in MEASURES:
                if found := interval(some, measure):
                    numbers = [f"{v:.4f}" for v in found]
                    table.writerow((arm, test, step, seeds, scripts, measure, *numbers))


def _axes(width: float, height: float, columns: int = 1, rows: int = 1):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def accuracy(path: Path, rows: Rows) -> None:
    """Joint accuracy over steps, an arm a line; bands are 95 % over scripts."""
    figure, (axes,) = _axes(7, 4)
    for place, (arm, some) in enumerate(groups(rows, lambda r: r["arm"]).items()):
        steps = sorted({r["step"] for r in some})
        found = [interval([r for r in some if r["step"] == s], "joint") for s in steps]
        mean, low, high = np.array(found, float).T
        style = "o-" if place < 10 else "s--"  # ten colours
        (line,) = axes.plot(steps, mean, style, label=arm, markersize=3)
        axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="step", ylabel="acts right in colour, shape and direction", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def bars(path: Path, rows: Rows, truth: Rows) -> None:
    figure, panels = _axes(9, 3.5, 2)
    arms = groups(rows, lambda r: r["arm"])
    for axes, measure in zip(panels, ("abruptness", "teleports"), strict=True):
        for place, some in enumerate(arms.values()):
            if found := interval(some, measure):
                mean, low, high = found
                axes.bar(place, mean, color=f"C{place % 10}")
                axes.plot([place, place], [low, high], color="black")
        if real := interval(truth, measure):
            axes.axhline(real[0], linestyle="--", color="black", label="true videos")
        axes.set_xticks(range(len(arms)), list(arms), rotation=45, ha="right", fontsize=8)
        axes.set(title=f"{measure} at borders")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def bleeding(path: Path, rows: Rows) -> None:
    """How often act i (row) shows caption j's colour and shape (column)."""
    arms = groups(rows, lambda r: r["arm"])
    figure, panels = _axes(2.2 * len(arms), 2.4, len(arms))
    for axes, (arm, some) in zip(panels, arms.items(), strict=True):
        mean = np.mean([r["bleed"] for r in some], 0)
        acts = round(len(mean) ** 0.5)
        axes.imshow(mean.reshape(acts, acts), vmin=0, vmax=1, cmap="Blues")
        axes.set(title=arm, xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def elsewhere(path: Path, rows: Rows) -> None:
    """Joint accuracy where more acts or wider pictures are asked for than training showed."""
    arms = groups(rows, lambda r: r["arm"])
    tests = list(groups([r for r in rows if r["test"] != OWN], lambda r: r["test"]))
    if not tests:
        return
    figure, (axes,) = _axes(7, 4)
    for arm, some in arms.items():
        found = [
            interval([r for r in some if r["test"] == test], "joint") for test in (OWN, *tests)
        ]
        if all(found):
            mean, low, high = np.array(found, float).T
            axes.errorbar(range(len(found)), mean, (mean - low, high - mean), fmt="o-", label=arm)
    axes.set_xticks(range(1 + len(tests)), ["as trained", *tests])
    axes.set(ylabel="acts right in colour, shape and direction", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def strips(out: Path, test: str, videos: dict[str, np.ndarray]) -> None:
    """strips-TEST-N.png: every frame of script N, the true video first, then each arm's sample."""
    for script in range(len(next(iter(videos.values())))):
        frames = next(iter(videos.values())).shape[1]
        figure, lines = _axes(0.5 * frames + 1, 0.56 * len(videos), rows=len(videos))
        for axes, (arm, samples) in zip(lines, videos.items(), strict=True):
            axes.imshow(np.hstack(list(samples[script])), interpolation="nearest", aspect="equal")
            axes.set_ylabel(arm, rotation=0, ha="right", va="center", fontsize=9)
            axes.set(xticks=[], yticks=[])
        figure.savefig(out / f"strips-{test.replace(' ', '_')}-{script}.png", dpi=72)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "acts.parquet").exists():
        config.usage(__doc__, sys.argv)
    draw_all(Path(sys.argv[1]))
