"""The tables and the figures of the segmentation experiment.

    python -m training.segmentation.figures FOLDER

draws them from the folder's results.parquet and samples.npz, which training.segmentation writes.
results.parquet has a row per event of every test video, of each run and of the true videos (variant
`truth`); samples.npz holds the first sample of each test.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.cli import run_command

AS_TRAINED = "as trained"  # the test whose videos are like training's
ONE_CAPTION = "one caption"
TRUTH = "truth"  # the variant of the true videos' rows
LABELS = ("run", "variant", "rate", "seed", "step", "test")
MEASURES = ("joint", "colour", "direction", "other", "order", "loss")
JOINT_LABEL = "correct events (share)"
Means = list[dict[str, Any]]  # a row per group: its labels and the mean of each measure
Points = list[tuple[Any, float, float, float]]  # x; mean, lowest and highest over the seeds


def means(rows: pa.Table, *by: str) -> Means:
    """Of each run, step, test and value of the columns `by`."""
    found = rows.group_by([*LABELS, *by], use_threads=False)
    table = found.aggregate([(m, "mean") for m in MEASURES] + [("video", "count_distinct")])
    names = {f"{m}_mean": m for m in MEASURES} | {"video_count_distinct": "videos"}
    return table.rename_columns([names.get(c, c) for c in table.column_names]).to_pylist()


def over_seeds(rows: Means, x: Callable[[dict[str, Any]], Any], measure: str = "joint") -> Points:
    values: dict[Any, list[float]] = {}
    for row in rows:
        values.setdefault(x(row), []).append(row[measure])
    return [(k, float(np.mean(v)), min(v), max(v)) for k, v in sorted(values.items())]


def last_step(rows: Means) -> Means:
    """Without the tests during training."""
    last = max((r["step"] for r in rows), default=0)
    return [r for r in rows if r["step"] == last]


def draw_all(out: Path) -> None:
    rows = pq.read_table(out / "results.parquet")
    write_csv(out / "results.csv", rows)
    (out / "tables.md").write_text(tables(rows))
    draw_lines(out / "accuracy.png", rows)
    with np.load(out / "samples.npz") as samples:
        draw_samples(out / "samples.png", dict(samples))


def write_csv(path: Path, rows: pa.Table) -> None:
    """The means of each run and test, over all events and over those of a kind or of a length."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow((*LABELS, "events", "videos", *MEASURES))
        for by in (None, "kind", "frames"):
            for row in means(rows, *([by] if by else [])):
                events = "all" if by is None else row[by] if by == "kind" else f"{row[by]} frames"
                numbers = ("" if row[m] is None else f"{row[m]:.4f}" for m in MEASURES)
                labels = (row[name] for name in LABELS)
                table.writerow((*labels, events, row["videos"], *numbers))


def variants_of(rows: Means) -> list[str]:
    """In their order in the results, which is that of VARIANTS after a whole run."""
    return list(dict.fromkeys(r["variant"] for r in rows if r["variant"] != TRUTH))


def tables(rows: pa.Table) -> str:
    """Markdown: the sweep; each test at the end; kinds of events; mixed training."""
    every, kinds = means(rows), means(rows, "kind")
    final = [r for r in last_step([r for r in every if r["run"] == "final"])]
    kinds = last_step([r for r in kinds if r["run"] == "final"])
    mixed = last_step([r for r in every if r["run"] == "mixed"])
    sweep = last_step([r for r in every if r["run"] == "sweep"])
    true = [r for r in every if r["variant"] == TRUTH]
    tests = list(dict.fromkeys(r["test"] for r in final))
    longest = max((t for t in tests if t.endswith(" events")), key=_events_of, default=AS_TRAINED)
    blocks = [
        _table("sweep: loss (correct events)", sweep, lambda r: f"{r['rate']:g}", _loss_and_joint),
        _table("correct events", final, lambda r: r["test"], _mean_and_range, tests),
        _table("right order", final, lambda r: r["test"], _mean_of("order"), tests),
        *(
            _table(f"correct events, {t}", _of_test(kinds, t), lambda r: r["kind"], _mean_and_range)
            for t in (AS_TRAINED, longest)
        ),
        _table("half of the clips with one caption", mixed, lambda r: r["test"], _mean_and_range),
    ]
    lines = [f"{r['test']}: {r['joint']:.4f} of {r['videos']} true videos" for r in true]
    return "\n\n".join(filter(None, [*blocks, "\n".join(lines)])) + "\n"


def _table(
    title: str,
    rows: Means,
    column_of: Callable[[dict[str, Any]], str],
    cell: Callable[[Means], str],
    columns: Sequence[str] = (),
) -> str:
    columns = columns or sorted(dict.fromkeys(map(column_of, rows)))
    if not columns:
        return ""
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for variant in variants_of(rows):
        own = [r for r in rows if r["variant"] == variant]
        cells = [cell([r for r in own if column_of(r) == c]) for c in columns]
        lines.append(f"| `{variant}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_and_range(rows: Means, measure: str = "joint") -> str:
    values = [r[measure] for r in rows]
    if not values:
        return ""
    mean, low, high = (f"{v:.2f}".removeprefix("0") for v in (np.mean(values), *_range(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _mean_of(measure: str) -> Callable[[Means], str]:
    return lambda rows: _mean_and_range(rows, measure)


def _loss_and_joint(rows: Means) -> str:
    return ", ".join(f"{r['loss']:.4f} ({r['joint']:.2f})" for r in rows)


def _of_test(rows: Means, test: str) -> Means:
    return [r for r in rows if r["test"] == test]


def _events_of(test: str) -> int:
    return int(test.split()[0])


def draw_lines(path: Path, rows: pa.Table) -> None:
    """Six panels with a line per variant; bands are from the lowest to the highest seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def final(*by: str) -> Means:
        own = [r for r in means(rows, *by) if r["run"] == "final" and r["variant"] != TRUTH]
        return own

    every = final()
    ends = last_step(every)
    frames, places = (last_step(final(name)) for name in ("frames", "event"))
    kinds = last_step(final("kind"))
    tests = {r["test"] for r in ends}
    longer = sorted((t for t in tests if t.endswith(" events")), key=_events_of)
    longest = longer[-1] if longer else AS_TRAINED
    events_as_trained = 1 + max((r["event"] for r in _of_test(places, AS_TRAINED)), default=0)
    panels: list[tuple[str, Means, Callable[[dict[str, Any]], Any], str]] = [
        ("training step", _of_test(every, AS_TRAINED), lambda r: r["step"], "joint"),
        (
            "events in the test video",
            [r for r in ends if r["test"] in (AS_TRAINED, *longer)],
            lambda r: events_as_trained if r["test"] == AS_TRAINED else _events_of(r["test"]),
            "joint",
        ),
        (f"event of {longest}", _of_test(places, longest), lambda r: r["event"] + 1, "joint"),
        (
            "frames by which the given borders are off",
            [r for r in ends if r["test"] == AS_TRAINED or r["test"].startswith("borders")],
            lambda r: 0 if r["test"] == AS_TRAINED else int(r["test"].split()[-1]),
            "joint",
        ),
        (
            "frames of an event",
            _of_test(frames, AS_TRAINED),
            lambda r: r["frames"],
            "direction",
        ),
        (f"kind of event, {longest}", _of_test(kinds, longest), lambda r: r["kind"], "joint"),
    ]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, some, x, measure) in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
        for variant in variants_of(every):
            points = over_seeds([r for r in some if r["variant"] == variant], x, measure)
            if points:
                xs, mean, low, high = zip(*points, strict=True)
                (line,) = axes.plot(xs, mean, "o-", label=variant, markersize=3)
                axes.fill_between(xs, low, high, alpha=0.15, color=line.get_color())
        name = JOINT_LABEL if measure == "joint" else "correct directions (share)"
        axes.set(xlabel=label, ylabel=name, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    figure.savefig(path, dpi=90)


def draw_samples(path: Path, samples: dict[str, np.ndarray]) -> None:
    """The frames of one video of five and one of more events: the true one, then each variant's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tests = list(dict.fromkeys(name.split("/")[0] for name in samples))
    tests = [t for t in tests if f"{t}/{TRUTH}" in samples][:2]
    shown = [
        (t, n.split("/")[1], samples[n]) for t in tests for n in samples if n.split("/")[0] == t
    ]
    shown.sort(key=lambda row: (tests.index(row[0]), row[1] != TRUTH))
    figure = Figure(figsize=(14, 0.42 * len(shown) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (test, variant, video) in zip(
        figure.subplots(len(shown), squeeze=False).ravel(), shown, strict=True
    ):
        frames = video[:: max(1, round(len(video) / 25))]
        axes.imshow(np.hstack(list(frames)), interpolation="nearest", aspect="equal")
        name = f"{test}, true video" if variant == TRUTH else variant
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=80)


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
