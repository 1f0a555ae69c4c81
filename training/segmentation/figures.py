"""The table and the figures of the segmentation experiment.

    python -m training.segmentation.figures FOLDER

draws them from the folder's results.parquet and samples.npz. results.parquet has a row per test
video of every variant, seed and step, and of the true videos (variant `truth`); samples.npz holds
the first sample of each test.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from curation.cli import run_command

MEASURES = (
    *("joint", "colour", "shape", "direction", "joint_unseen", "background_later"),
    *("abruptness", "no_object", "jumps", "path_px", "loss_single_event", "loss_transition"),
)
RESAMPLES = 1000
AS_TRAINED = "as trained"  # the test whose videos are like training's
TRUTH = "truth"
JOINT_LABEL = "events with correct colour,\nshape and direction (share)"
CONFUSION_COLUMNS = 7  # panels in a row
Rows = list[dict[str, Any]]


def bootstrap_interval(rows: Rows, measure: str) -> tuple[float, float, float] | None:
    """Mean and its 95 % interval over resampled videos; all seeds of a video are resampled
    together. None where no row has the measure."""
    videos: dict[int, list[float]] = {}
    for r in rows:
        if r.get(measure) is not None:
            videos.setdefault(r["video"], []).append(r[measure])
    if not videos:
        return None
    sums = np.array([(sum(v), len(v)) for v in videos.values()])
    rng = np.random.Generator(np.random.PCG64(0))
    resampled = sums[rng.integers(len(sums), size=(RESAMPLES, len(sums)))].sum(1)
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975])
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    return float(mean), float(low), float(high)


def group_by(rows: Rows, key: Callable[[dict[str, Any]], Any]) -> dict[Any, Rows]:
    found: dict[Any, Rows] = {}
    for r in rows:
        found.setdefault(key(r), []).append(r)
    return found


def last_step(rows: Rows) -> Rows:
    """The rows of each variant's and seed's last step."""
    runs = group_by(rows, lambda r: (r["variant"], r["seed"]))
    return [r for run in runs.values() for r in run if r["step"] == max(s["step"] for s in run)]


def draw_all(out: Path) -> None:
    rows = pq.read_table(out / "results.parquet").to_pylist()
    write_table(out / "results.csv", rows)
    truth = [r for r in rows if (r["variant"], r["test"]) == (TRUTH, AS_TRAINED)]
    rows = [r for r in rows if r["variant"] != TRUTH]
    as_trained = [r for r in rows if r["test"] == AS_TRAINED]
    draw_accuracy(out / "accuracy.png", as_trained)
    draw_transitions(out / "transitions.png", last_step(as_trained), truth)
    draw_confusion(out / "confusion.png", last_step(as_trained))
    draw_generalization(out / "generalization.png", last_step(rows))
    with np.load(out / "samples.npz") as samples:
        for test in group_by(rows, lambda r: r["test"]):
            of_test = {n.split("/")[1]: samples[n] for n in samples if n.startswith(f"{test}/")}
            draw_samples(out, test, {TRUTH: of_test.pop(TRUTH), **of_test})


def write_table(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        head = ("variant", "test", "step", "seeds", "videos", "measure", "mean", "low", "high")
        table.writerow(head)
        tests = group_by(rows, lambda r: (r["variant"], r["test"], r["step"]))
        for (variant, test, step), some in tests.items():
            seeds, videos = len({r["seed"] for r in some}), len({r["video"] for r in some})
            for measure in MEASURES:
                if found := bootstrap_interval(some, measure):
                    numbers = [f"{v:.4f}" for v in found]
                    table.writerow((variant, test, step, seeds, videos, measure, *numbers))


def _axes(width: float, height: float, columns: int = 1, rows: int = 1):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _label(variant: str) -> str:
    return variant.replace("_", " ")


def draw_accuracy(path: Path, rows: Rows) -> None:
    """Joint accuracy over steps, a line per variant; bands are 95 % intervals over videos."""
    figure, (axes,) = _axes(9, 4)
    for number, (variant, some) in enumerate(group_by(rows, lambda r: r["variant"]).items()):
        steps = sorted({r["step"] for r in some})
        found = [bootstrap_interval([r for r in some if r["step"] == s], "joint") for s in steps]
        mean, low, high = np.array(found, float).T
        style = "o-" if number < 10 else "s--"  # matplotlib has ten colours
        (line,) = axes.plot(steps, mean, style, label=_label(variant), markersize=3)
        axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
    axes.set(xlabel="training step", ylabel=JOINT_LABEL, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def draw_transitions(path: Path, rows: Rows, truth: Rows) -> None:
    figure, panels = _axes(9, 3.8, 2)
    variants = group_by(rows, lambda r: r["variant"])
    titles = {
        "abruptness": "largest step of the colour / its total change",
        "jumps": "transitions at which the object jumps (share)",
    }
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for place, some in enumerate(variants.values()):
            if found := bootstrap_interval(some, measure):
                mean, low, high = found
                axes.bar(place, mean, color="C0")
                axes.plot([place, place], [low, high], color="black")
        if true := bootstrap_interval(truth, measure):
            axes.axhline(true[0], linestyle="--", color="black", label="true videos")
        names = [_label(v) for v in variants]
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8, loc="lower right" if measure == "abruptness" else "upper right")
    figure.savefig(path, dpi=110)


def draw_confusion(path: Path, rows: Rows) -> None:
    """How often event i (row) shows the colour and shape of caption j (column)."""
    variants = group_by(rows, lambda r: r["variant"])
    columns = min(CONFUSION_COLUMNS, len(variants))
    lines = -(-len(variants) // columns)
    figure, panels = _axes(1.6 * columns, 1.75 * lines, columns, lines)
    for axes in panels[len(variants) :]:
        axes.set_axis_off()
    for axes, (variant, some) in zip(panels, variants.items(), strict=False):
        mean = np.mean([r["confusion"] for r in some], 0)
        events = round(len(mean) ** 0.5)
        axes.imshow(mean.reshape(events, events), vmin=0, vmax=1, cmap="Blues")
        axes.set(xticks=[], yticks=[])
        axes.set_title(_label(variant), fontsize=9)
    figure.supxlabel("colour and shape of caption 1, 2, …", fontsize=9)
    figure.supylabel("shown in event 1, 2, …", fontsize=9)
    figure.savefig(path, dpi=110)


def draw_generalization(path: Path, rows: Rows) -> None:
    """Joint accuracy on videos with more events or wider frames than in training."""
    variants = group_by(rows, lambda r: r["variant"])
    tests = list(group_by([r for r in rows if r["test"] != AS_TRAINED], lambda r: r["test"]))
    if not tests:
        return
    tests.insert(0, AS_TRAINED)
    figure, (axes,) = _axes(7, 4)
    for place, (variant, some) in enumerate(variants.items()):
        by_test = group_by(some, lambda r: r["test"])
        found = [bootstrap_interval(by_test.get(test, []), "joint") for test in tests]
        if all(found):
            mean, low, high = np.array(found, float).T
            x = np.arange(len(tests)) + 0.05 * (place - 1.5)  # equal values stay visible
            errors = mean - low, high - mean
            axes.errorbar(x, mean, errors, fmt="o", label=_label(variant), capsize=3)
    axes.set_xticks(range(len(tests)), tests)
    axes.set(ylabel=JOINT_LABEL, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_samples(out: Path, test: str, samples: dict[str, np.ndarray]) -> None:
    """samples-TEST-N.png: every frame of test video N, the true video first, then a sample of each
    variant."""
    for number in range(len(samples[TRUTH])):
        frames = samples[TRUTH].shape[1]
        figure, lines = _axes(0.5 * frames + 1.6, 0.56 * len(samples), rows=len(samples))
        for axes, (variant, videos) in zip(lines, samples.items(), strict=True):
            axes.imshow(np.hstack(list(videos[number])), interpolation="nearest", aspect="equal")
            name = "true video" if variant == TRUTH else _label(variant)
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
            axes.set(xticks=[], yticks=[])
        figure.savefig(out / f"samples-{test.replace(' ', '_')}-{number}.png", dpi=72)


def main(argv: Sequence[str]) -> None:
    run_command(
        __doc__,
        lambda arguments: draw_all(Path(arguments.values[0])),
        argv,
        arguments="FOLDER",
        user_errors=(OSError,),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
