"""The acts experiment's table and figures, from what its arms left in their folders."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

MEASURES = (
    *("joint", "colour", "shape", "direction", "joint_unseen", "ground_later"),
    *("abruptness", "lost", "teleports", "path_px", "loss_core", "loss_border"),
)
RESAMPLES = 1000
OWN = "own"  # the test whose videos are like training's
Rows = list[dict[str, Any]]


def read(out: Path) -> Rows:
    """Every test script of every arm, seed and step."""
    return [
        r for p in sorted(out.glob("*/scripts-*.parquet")) for r in pq.read_table(p).to_pylist()
    ]


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


def draw_all(out: Path, truth: Rows) -> None:
    rows = read(out)
    if rows:
        write_table(out / "acts.csv", [*truth, *rows])
        own = [r for r in rows if r["test"] == OWN]
        accuracy(out / "accuracy.png", own)
        bars(out / "borders.png", last(own), [r for r in truth if r["test"] == OWN])
        bleeding(out / "bleed.png", last(own))
        elsewhere(out / "elsewhere.png", last(rows))
        strips(out)


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


def _axes(width: float, height: float, columns: int = 1):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def accuracy(path: Path, rows: Rows) -> None:
    """Joint accuracy over steps, an arm a line; bands are 95 % over scripts."""
    figure, (axes,) = _axes(7, 4)
    for arm, some in groups(rows, lambda r: r["arm"]).items():
        steps = sorted({r["step"] for r in some})
        found = [interval([r for r in some if r["step"] == s], "joint") for s in steps]
        mean, low, high = np.array(found, float).T
        (line,) = axes.plot(steps, mean, "o-", label=arm, markersize=3)
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


def strips(out: Path, scale: int = 2) -> None:
    """strips-TEST-N.png: script N's sample by every arm, in the order that strips.txt names."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted(out.glob("*/videos-*.npy")):
        test = path.stem.split("-")[2]
        found.setdefault(test, {})[path.parent.name] = np.load(path)  # the last step's stays
    for test, videos in found.items():
        for script in range(4 if test == OWN else 1):
            lines = [np.hstack(list(v[script])) for v in videos.values() if len(v) > script]
            if lines:
                sheet = np.vstack(lines)[..., ::-1].repeat(scale, 0).repeat(scale, 1)
                cv2.imwrite(str(out / f"strips-{test}-{script}.png"), sheet)
    names = "".join(f"{test}: {', '.join(videos)}\n" for test, videos in found.items())
    (out / "strips.txt").write_text(names)
