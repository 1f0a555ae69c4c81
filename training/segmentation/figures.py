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
from training.segmentation.config import VARIANTS

AS_TRAINED = "as trained"  # the test whose videos are like training's
ONE_CAPTION = "one caption"
TRUTH = "truth"  # the variant of the true videos' rows
LABELS = ("run", "variant", "rate", "seed", "step", "test")
MEASURES = ("joint", "colour", "direction", "other", "order", "loss")
RESAMPLES = 1000
JOINT_LABEL = "correct events (share)"
Means = list[dict[str, Any]]  # a row per group: its labels and the mean of each measure
Points = list[tuple[Any, float, float, float]]  # x; mean, lowest and highest over the seeds


def means(rows: pa.Table, *by: str) -> Means:
    """Of each run, step, test and value of the columns `by`; `videos` and `events` are counts."""
    found = rows.group_by([*LABELS, *by], use_threads=False)
    counts = [("video", "count_distinct"), ("event", "count")]
    table = found.aggregate([(m, "mean") for m in MEASURES] + counts)
    names = {f"{m}_mean": m for m in MEASURES}
    names |= {"video_count_distinct": "videos", "event_count": "events"}
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
    found = {r["variant"] for r in rows}
    return [name for name in VARIANTS if name in found]


def tables(rows: pa.Table) -> str:
    """Markdown: the sweep; each test at the end; kinds of events; mixed training; drawn videos."""
    every = means(rows, "video")
    final, mixed = (last_step([r for r in every if r["run"] == k]) for k in ("final", "mixed"))
    sweep = last_step([r for r in means(rows) if r["run"] == "sweep"])
    kinds = last_step([r for r in means(rows, "video", "kind") if r["run"] == "final"])
    tests = list(dict.fromkeys(r["test"] for r in final))
    interval = _mean_and_interval
    blocks = [
        _table("sweep: loss (correct events)", sweep, lambda r: f"{r['rate']:g}", _loss_and_joint),
        _table("correct events", final, lambda r: r["test"], interval, tests),
        _table("right order", final, lambda r: r["test"], _mean_of("order"), tests),
        *(
            _table(f"correct events, {t}", _of_test(kinds, t), lambda r: r["kind"], interval)
            for t in (AS_TRAINED, *_longer(tests))
        ),
        _table("half of the clips with one caption", mixed, lambda r: r["test"], interval),
        *(f"{v}: {len({r['seed'] for r in final if r['variant'] == v})} seeds" for v in VARIANTS),
    ]
    for row in means(rows):
        if row["variant"] == TRUTH:
            blocks.append(f"{row['test']}: {row['joint']:.4f} of {row['videos']} drawn videos")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _longer(tests: Sequence[str]) -> list[str]:
    """The tests with more events, the shortest first."""
    return sorted((t for t in tests if t.endswith(" events")), key=_events_of)


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


def _mean_and_interval(rows: Means, measure: str = "joint") -> str:
    """The mean over all seeds and its 95 % interval over resampled videos; all seeds of a video are
    resampled together."""
    videos: dict[int, list[tuple[float, int]]] = {}
    for r in rows:
        videos.setdefault(r["video"], []).append((r[measure] * r["events"], r["events"]))
    if not videos:
        return ""
    sums = np.array([np.sum(pairs, 0) for pairs in videos.values()])  # correct events, events
    rng = np.random.Generator(np.random.PCG64(0))
    resampled = sums[rng.integers(len(sums), size=(RESAMPLES, len(sums)))].sum(1)
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975])
    numbers = (sums[:, 0].sum() / sums[:, 1].sum(), low, high)
    mean, low, high = (f"{v:.2f}".removeprefix("0") for v in numbers)
    return mean if low == high else f"{mean} ({low} to {high})"


def _mean_of(measure: str) -> Callable[[Means], str]:
    return lambda rows: _mean_and_interval(rows, measure)


def _loss_and_joint(rows: Means) -> str:
    return ", ".join(f"{r['loss']:.4f} ({r['joint']:.2f})" for r in rows)


def _of_test(rows: Means, test: str) -> Means:
    return [r for r in rows if r["test"] == test]


def _events_of(test: str) -> int:
    return int(test.split()[0])


def _event_number(row: dict[str, Any]) -> int:
    return row["event"] + 1


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
    longer = _longer(list({r["test"] for r in ends}))
    trained_events = 1 + max((r["event"] for r in _of_test(places, AS_TRAINED)), default=0)
    panels: list[tuple[str, Means, Callable[[dict[str, Any]], Any], str]] = [
        ("training step", _of_test(every, AS_TRAINED), lambda r: r["step"], "joint"),
        (
            "events in the test video",
            [r for r in ends if r["test"] in (AS_TRAINED, *longer)],
            lambda r: trained_events if r["test"] == AS_TRAINED else _events_of(r["test"]),
            "joint",
        ),
        (
            "frames by which the given borders are off",
            [r for r in ends if r["test"] == AS_TRAINED or r["test"].startswith("borders")],
            lambda r: 0 if r["test"] == AS_TRAINED else int(r["test"].split()[-1]),
            "joint",
        ),
        ("frames of an event", _of_test(frames, AS_TRAINED), lambda r: r["frames"], "direction"),
        *(
            (f"number of the event, of {test}", _of_test(places, test), _event_number, "joint")
            for test in (longer or [AS_TRAINED])[:2]
        ),
    ]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, some, x, measure) in zip(figure.subplots(2, 3).ravel(), panels, strict=False):
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
