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
TITLES = {
    "joint": "correct events",
    "colour": "correct colours",
    "direction": "correct directions",
    "other": "other object unchanged",
    "order": "right order",
    "loss": "loss",
}
MEASURES = tuple(TITLES)
RESAMPLES = 1000
SPREADS = """Mean over all seeds [each seed, where they differ] (95 % interval over test videos).
The intervals do not cover other training runs."""
# Points; lines that coincide all stay visible.
LINE_WIDTHS = dict(zip(VARIANTS, (6, 4.5, 3, 1.5, 1.5, 1.5), strict=True))
JOINT_LABEL = "correct events (share)"
Means = list[dict[str, Any]]  # a row per group: its labels and the mean of each measure
Points = list[tuple[Any, float, float, float]]  # x; mean, lowest and highest over the seeds


def means(rows: pa.Table, *by: str) -> Means:
    """Returns the means for each run, step, test and value of the columns `by`; `videos` and
    `events` are counts."""
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
    """Returns the rows of the last step, without the tests during training."""
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
    """Markdown: the sweep; each test at the end, by measure; correct events by step, kind and
    number of the event; directions by length; mixed training; drawn videos."""
    by_video = [r for r in means(rows, "video") if r["variant"] != TRUTH]
    during, mixed = ([r for r in by_video if r["run"] == kind] for kind in ("final", "mixed"))
    final, mixed = last_step(during), last_step(mixed)
    sweep = last_step([r for r in means(rows) if r["run"] == "sweep"])
    tests = list(dict.fromkeys(r["test"] for r in final))
    unequal = [AS_TRAINED, *_longer(tests)]

    def parts(by: str, test: str) -> Means:
        return last_step(
            _of_test([r for r in means(rows, "video", by) if r["run"] == "final"], test)
        )

    blocks = [
        SPREADS,
        _table("sweep: loss (correct events)", sweep, lambda r: f"{r['rate']:g}", _loss_and_joint),
        *(_table(TITLES[m], final, _test_name, _spread_of(m), tests) for m in MEASURES),
        _table("correct events, step", _of_test(during, AS_TRAINED), lambda r: r["step"]),
        *(_table(f"correct events, {t}", parts("kind", t), lambda r: r["kind"]) for t in unequal),
        *(_table(f"event of {t}", parts("event", t), _event_number, _mean) for t in unequal),
        _table(
            "correct directions, frames of the event",
            parts("frames", AS_TRAINED),
            lambda r: r["frames"],
            _spread_of("direction"),
        ),
        _table("half of the clips with one caption", mixed, _test_name, columns=tests),
    ]
    for row in means(rows):
        if row["variant"] == TRUTH:
            blocks.append(f"{row['test']}: {row['joint']:.4f} of {row['videos']} drawn videos")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _longer(tests: Sequence[str]) -> list[str]:
    """The tests with more events, the shortest first."""
    return sorted((t for t in tests if t.endswith(" events")), key=_events_of)


def _spread(rows: Means, measure: str = "joint") -> str:
    """The cells that SPREADS describes; all seeds of a video are resampled together."""
    of_seeds: dict[int, list[tuple[float, int]]] = {}
    of_videos: dict[int, list[tuple[float, int]]] = {}
    for r in rows:
        pair = (r[measure] * r["events"], r["events"])  # sum over the events, their number
        of_seeds.setdefault(r["seed"], []).append(pair)
        of_videos.setdefault(r["video"], []).append(pair)
    if not rows:
        return ""
    seeds, videos = (np.array([np.sum(p, 0) for p in d.values()]) for d in (of_seeds, of_videos))
    rng = np.random.Generator(np.random.PCG64(0))
    resampled = videos[rng.integers(len(videos), size=(RESAMPLES, len(videos)))].sum(1)
    mean, *of_seed = (_share(n / events) for n, events in (videos.sum(0), *seeds))
    low, high = map(_share, np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975]))
    each = f" [{' '.join(of_seed)}]" if len(of_seed) > 1 and {*of_seed} != {mean} else ""
    return mean + each + (f" ({low} to {high})" if low != high else "")


def _spread_of(measure: str) -> Callable[[Means], str]:
    return lambda rows: _spread(rows, measure)


def _mean(rows: Means) -> str:
    return _share(np.average([r["joint"] for r in rows], weights=[r["events"] for r in rows]))


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _table(
    title: str,
    rows: Means,
    column_of: Callable[[dict[str, Any]], Any],
    cell: Callable[[Means], str] = _spread,
    columns: Sequence[Any] = (),
) -> str:
    columns = columns or sorted({column_of(r) for r in rows})
    if not rows:
        return ""
    names = " | ".join(map(str, columns))
    lines = [f"| {title} | {names} |", "|---" * (1 + len(columns)) + "|"]
    for variant in variants_of(rows):
        own = [r for r in rows if r["variant"] == variant]
        cells = [cell([r for r in own if column_of(r) == c]) for c in columns]
        lines.append(f"| `{variant}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _loss_and_joint(rows: Means) -> str:
    return ", ".join(f"{r['loss']:.4f} ({r['joint']:.2f})" for r in rows)


def _of_test(rows: Means, test: str) -> Means:
    return [r for r in rows if r["test"] == test]


def _events_of(test: str) -> int:
    return int(test.split()[0])


def _test_name(row: dict[str, Any]) -> str:
    return row["test"]


def _event_number(row: dict[str, Any]) -> int:
    return row["event"] + 1


def draw_lines(path: Path, rows: pa.Table) -> None:
    """Six panels with a line per variant; bands are from the lowest to the highest seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def final(*by: str) -> Means:
        return [r for r in means(rows, *by) if r["run"] == "final" and r["variant"] != TRUTH]

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
                (line,) = axes.plot(xs, mean, "-", label=variant, linewidth=LINE_WIDTHS[variant])
                axes.fill_between(xs, low, high, alpha=0.15, color=line.get_color())
                axes.set_xticks(xs[:: max(1, len(xs) // 5)])
        name = JOINT_LABEL if measure == "joint" else "correct directions (share)"
        axes.set(xlabel=label, ylabel=name, ylim=(-0.02, 1.05))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    figure.savefig(path, dpi=90)


def draw_samples(path: Path, samples: dict[str, np.ndarray]) -> None:
    """The frames of one video of five and one of more events: the true one, then each variant's. Of
    the longer one, every second frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tests = list(dict.fromkeys(name.split("/")[0] for name in samples))
    tests = [t for t in tests if f"{t}/{TRUTH}" in samples][:2]
    names = [(t, v) for t in tests for v in (TRUTH, *VARIANTS) if f"{t}/{v}" in samples]
    figure = Figure(figsize=(14, 0.4 * len(names) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (test, variant) in zip(
        figure.subplots(len(names), squeeze=False).ravel(), names, strict=True
    ):
        video = samples[f"{test}/{variant}"]
        frames = video[:: max(1, round(len(video) / 25))]
        bordered = np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)
        axes.imshow(np.hstack(list(bordered)), interpolation="nearest", aspect="equal")
        name = f"{test}, true video" if variant == TRUTH else variant
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


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
