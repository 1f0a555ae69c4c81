"""Trains the trees of hard cuts of `stages/shots/learned.py`; prints how they do on other sources.

    python -m benchmarks.train_transitions extract OUT.npz [--films 768] [--workers 2]
    python -m benchmarks.train_transitions fit OUT.npz [--write]

`extract` draws films from the footage of the development half (benchmarks/footage.py) under one
condition or several at once (benchmarks/edits.py), splices the decoded frames of the footage at
other rates with parts left out (jump cuts), and measures both, the footage itself and the labelled
real videos of that half as the detector does. `fit` trains on all folds but one, in turn, and
reports how the examples of the other fold are classified. The repository of a source decides its
fold, and a film has sources of one fold. `--write` then trains on all and replaces the trees of
stages/shots/models.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import edits
from benchmarks.edits import Transition
from benchmarks.footage import Take, single_takes
from benchmarks.labelled_videos import Labels, read_labels
from benchmarks.measured_pairs import JUMP, NONE, PLACE, Pairs, label_pairs, measure
from benchmarks.real_videos import (
    FOLDS,
    RealVideo,
    fold_of,
    half_of,
    present,
    real_videos,
    training_videos,
)
from benchmarks.spliced_footage import one_low_rate_splice, one_splice
from stages.shots import cut_features
from stages.shots.boosted_trees import tree_arrays
from stages.shots.hard_cuts import MIN_COLOUR_PROBABILITY, MIN_HISTOGRAM_PROBABILITY, MODELS
from tests.support.paths import VIDEOS

FILMS_PER_SOURCES = 24  # films in a row that draw from the same edits.SOURCES takes
FILM_NEGATIVES, TAKE_NEGATIVES = 60, 100  # pairs without a cut that are kept of a film and a take
BURST_FILMS, STAGE_FILMS = 72, 48  # further films: with bursts of flashes, under stage lights
LIT_FPS, LIT_FPS_SHARES = (24, 25, 30, 50, 60, 100), (0.15, 0.15, 0.25, 0.15, 0.2, 0.1)
DRAWN, DRAWN_JUMPS, GREY = 0.3, 0.5, 0.1  # shares of the films; of those with jump cuts
FPS = (8, 10, 12, 15, 24, 25, 30, 50, 60, 100)  # frames/s of the films
FPS_SHARES = (0.03, 0.04, 0.04, 0.06, 0.22, 0.24, 0.24, 0.05, 0.05, 0.03)
FITS = {"max_leaf_nodes": 12, "min_samples_leaf": 20, "l2_regularization": 1.0, "random_state": 0}


def sources_of(number: int, takes: list[Take]) -> list[Take]:
    """edits.SOURCES takes for a film; some films in a row share them, so that each is read once."""
    rng = np.random.default_rng([16, number // FILMS_PER_SOURCES])
    return [takes[i] for i in rng.permutation(len(takes))[: edits.SOURCES]]


Draw = Callable[[int, list[Take], Path], tuple[str, list[Transition]]]


def draw_film(number: int, takes: list[Take], path: Path) -> tuple[str, list[Transition]]:
    """Writes a film of a random kind under random conditions; its name and its transitions."""
    rng = np.random.default_rng([17, number])
    kinds, negatives = list(edits.KINDS), list(edits.NEGATIVES)
    drawn = rng.random()
    kind = "cut" if drawn < 0.08 else "quick_cuts" if drawn < 0.16 else ""
    kind = "jump_cut" if 0.16 <= drawn < 0.34 else kind
    if not kind:
        kind = str(rng.choice([*kinds[3:], "fade_plain", "fade_plain"]))
        if drawn >= 0.62:
            kind = str(rng.choice([*negatives, "slow_light", "slow_light", "swing", "graphics"]))
    drawn_share = DRAWN_JUMPS if kind == "jump_cut" else DRAWN
    is_drawn = bool(rng.random() < drawn_share)
    view = str(rng.choice(["static", *edits.VIEWS], p=[0.26, 0.1, 0.16, 0.1, 0.16, 0.15, 0.07]))
    if is_drawn and kind == "jump_cut" and rng.random() < 0.5:
        view = "static"  # only objects move
    is_long = kind in edits.KINDS and edits.KINDS[kind][1] > 3 and rng.random() < 0.6
    transitions, piece = (4, 90) if is_long else (7, 40)
    footage = edits.Footage(sources_of(number, takes), rng, transitions, piece)
    fps = int(rng.choice(FPS, p=FPS_SHARES))
    footage.speed = int(rng.choice([1, 2, 3, 4], p=[0.76, 0.12, 0.06, 0.06]))
    footage.speed = max(footage.speed, round(25 / fps))  # a low rate shows fewer frames of a motion
    footage.drawn = is_drawn
    frames, joins = edits.draw(footage, kind, view, rng)
    conditions = [view, f"{fps} frames/s", *(["drawn"] if footage.drawn else [])]
    if rng.random() < GREY:
        frames = [
            cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) for f in frames
        ]
        conditions.append("grey")
    for name, apply in edits.FILTERS.items():
        if rng.random() < 0.09:
            frames = apply(frames, rng)
            conditions.append(name)
    if rng.random() < 0.3:
        pattern = str(rng.choice(list(edits.REPEATS)))
        frames = edits.repeat(frames, joins, edits.REPEATS[pattern])
        conditions.append(pattern)
    if rng.random() < 0.15:
        frames = edits.lag(frames, joins, rng)
        conditions.append("lag")
    low = rng.random() < 0.2
    conditions += ["low_bit_rate"] if low else []
    edits.encode(path, frames, fps, "low_bit_rate" if low else "", rng)
    return f"{kind}|{'+'.join(conditions)}", joins


def draw_bursts(number: int, takes: list[Take], path: Path) -> tuple[str, list[Transition]]:
    """Writes a film with bursts of flashes; its name and its transitions."""
    return _draw_lit(edits.flash_bursts, np.random.default_rng([20, number]), number, takes, path)


def draw_stage(number: int, takes: list[Take], path: Path) -> tuple[str, list[Transition]]:
    """Writes a film under the lights of a concert; its name and its transitions."""
    return _draw_lit(edits.stage_lights, np.random.default_rng([21, number]), number, takes, path)


def _draw_lit(
    light: Callable[[edits.Frames, int, np.random.Generator], edits.Frames],
    rng: np.random.Generator,
    number: int,
    takes: list[Take],
    path: Path,
) -> tuple[str, list[Transition]]:
    kind = str(rng.choice(["no_transition", "cut", "jump_cut"], p=[0.6, 0.3, 0.1]))
    view = str(rng.choice(["static", "handheld", "fast_camera"], p=[0.5, 0.3, 0.2]))
    footage = edits.Footage(sources_of(number, takes), rng, transitions=7, piece=40)
    fps = int(rng.choice(LIT_FPS, p=LIT_FPS_SHARES))
    footage.speed = int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))
    frames, joins = edits.draw(footage, kind, view, rng)
    frames = light(frames, fps, rng)
    condition = "low_bit_rate" if rng.random() < 0.2 else ""
    edits.encode(path, frames, fps, condition, rng)
    conditions = [view, f"{fps} frames/s", light.__name__, *([condition] if condition else [])]
    return f"{kind}|{'+'.join(conditions)}", joins


def one_film(job: tuple[Draw, int, list[Take]]) -> tuple[str, Pairs]:
    """Draws and measures a film."""
    draw, number, takes = job
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        name, transitions = draw(number, takes, path)
        recorder, times = measure(path)
    hard, unclear = known_times(transitions, times)
    return name, label_pairs(recorder, hard, unclear, most_others=FILM_NEGATIVES)


def known_times(
    transitions: list[Transition], times: np.ndarray
) -> tuple[list[float], list[tuple[float, float]]]:
    """Times of hard cuts; spans of gradual transitions, and of those that are not seen."""
    hard, spans = [], []
    last = len(times) - 1
    for t in transitions:
        before, after = times[max(0, t.first - 1)], times[min(last, t.last + 1)]
        if t.kind != "unseen" and t.first > t.last:
            hard.append(float(after))
        elif t.kind in ("flash_cut", "black_between"):
            hard += [float(times[t.first]), float(after)]
        else:
            spans.append((float(before), float(after)))
    return hard, spans


def one_video(job: tuple[Path, RealVideo]) -> tuple[str, Pairs]:
    """Measures a labelled video."""
    path, video = job
    recorder, times = measure(path)
    end = len(times) - 1

    def time_of(frame: int) -> float:
        return float(times[min(end, frame)])

    place, jump = (
        [time_of(cut["frame"]) for cut in video.cuts if cut["kind"] == kind]
        for kind in ("place", "jump")
    )
    spans = [(span["first"], span["last"]) for span in (*video.gradual, *video.uncertain)]
    # a mixed frame before a cut belongs to it
    spans += [
        (cut["frame"] - cut["between"], cut["frame"]) for cut in video.cuts if "between" in cut
    ]
    unclear = [(time_of(first), time_of(last)) for first, last in spans]
    return f"real|{video.kind}", label_pairs(recorder, place, unclear, jump)


def one_labelled(job: tuple[Path, Labels]) -> tuple[str, Pairs]:
    """Measures a video of LONGTAKE_VIDEOS."""
    path, labels = job
    recorder, times = measure(path)
    hard = [float(times[np.searchsorted(times, t - 0.02)]) for t in labels.cuts]
    # its spans are given to a tenth of a second
    spans = [(a - 0.05, b + 0.05) for a, b in labels.gradual]
    return "real|labelled", label_pairs(recorder, hard, spans)


def one_take(take: Take) -> tuple[str, Pairs]:
    """Measures a take without any transition."""
    recorder, _ = measure(Path(take.path), take.start_s, take.end_s)
    return "take|", label_pairs(recorder, [], [], most_others=TAKE_NEGATIVES)


Job = tuple[int, Callable[[Any], tuple[str, Pairs]], Any]  # fold, function, its argument


def _safely(job: Job) -> tuple[int, tuple[str, Pairs] | None]:
    """The fold, with the result: None after an error, which is printed."""
    fold, measure_one, about = job
    cv2.setNumThreads(1)
    try:
        return fold, measure_one(about)
    except Exception:
        traceback.print_exc()
        return fold, None


def extract(out: Path, films: int, workers: int) -> None:
    """Writes OUT: the features and the classes of all pairs, the number of the file of each pair;
    the name and the fold of each file."""
    takes = [take for take in single_takes() if take.half == "development"]
    videos = present([*real_videos("development"), *training_videos()])
    videos.sort(key=lambda pair: -pair[0].stat().st_size)  # the longest first
    in_videos = {str(path) for path, _ in videos}
    labelled = read_labels(VIDEOS) if (VIDEOS / "labels.csv").is_file() else []
    labelled = [pair for pair in labelled if half_of(pair[1].sha256) == "development"]
    jobs: list[Job] = [(fold_of(pair[1].repository), one_video, pair) for pair in videos]
    jobs += [(fold_of(pair[0].name), one_labelled, pair) for pair in labelled]
    jobs += [
        (fold_of(take.repository), one_take, take) for take in takes if take.path not in in_videos
    ]
    for fold in range(FOLDS):
        own = [take for take in takes if fold_of(take.repository) == fold]
        for n, take in enumerate(own):
            jobs.append((fold, one_splice, (n, take, own[n - 1])))
            jobs.append((fold, one_low_rate_splice, (1000 * fold + n, take, own[n - 1])))
    drawings: list[tuple[Draw, int]] = [(draw_film, number) for number in range(films)]
    drawings += [(draw_bursts, number) for number in range(BURST_FILMS)]
    drawings += [(draw_stage, number) for number in range(STAGE_FILMS)]
    for draw, number in drawings:
        fold = number // FILMS_PER_SOURCES % FOLDS
        sources = [take for take in takes if fold_of(take.repository) == fold]
        jobs.append((fold, one_film, (draw, number, sources)))
    started = time.monotonic()
    names: list[str] = []
    folds: list[int] = []
    features, classes, files = [], [], []
    with multiprocessing.Pool(workers) as pool:
        for done, (fold, found) in enumerate(pool.imap(_safely, jobs)):
            if done % 100 == 99:
                print(f"{done + 1} of {len(jobs)} files, {time.monotonic() - started:.0f} s")
            if found and len(found[1][0]):
                name, (x, y) = found
                features.append(x)
                classes.append(y)
                files.append(np.full(len(y), len(names)))
                names.append(name)
                folds.append(fold)
    np.savez_compressed(
        out,
        names=np.array(names),
        folds=np.array(folds),
        pairs_x=np.concatenate(features),
        pairs_y=np.concatenate(classes),
        pairs_file=np.concatenate(files),
    )


@dataclass(frozen=True)
class Trees:
    """One of the sets of trees. Weights are those of an example, chosen by cross-validation. The
    defaults are those of the sets that only reject pairs."""

    name: str
    columns: tuple[str, ...]
    count: int = 60
    real: tuple[float, float] = (3, 1)  # weights of a cut in a labelled video, and of other pairs
    spliced: tuple[float, float] = (0.1, 0.3)  # the same of spliced footage
    film: tuple[float, float] = (2, 1)  # and of films and takes
    limit: float = 0.0  # pairs with a lower probability go to no later set
    trained_on_all: bool = True  # or on the pairs alone that the sets before leave possible

    @property
    def indices(self) -> list[int]:
        return [cut_features.FEATURES.index(name) for name in self.columns]

    def weights(self, y: np.ndarray, names: np.ndarray) -> np.ndarray:
        found = np.where(y != NONE, *self.film)
        kinds = (("real", self.real), ("spliced", self.spliced), ("low rate", self.spliced))
        for kind, weights in kinds:
            found = np.where(np.char.startswith(names, kind), np.where(y != NONE, *weights), found)
        return found


ALL_TREES = (
    Trees("cut_by_histogram", cut_features.HISTOGRAM_FEATURES, limit=MIN_HISTOGRAM_PROBABILITY),
    Trees("cut_by_colour", cut_features.COLOUR_FEATURES, limit=MIN_COLOUR_PROBABILITY),
    Trees(
        "cut",
        cut_features.FEATURES,
        count=400,
        real=(15, 5),
        spliced=(0.15, 0.5),
        film=(2, 1.5),
        trained_on_all=False,
    ),
)


def fit(data: Path, write: bool) -> None:
    """Trains all trees; prints how they do on sources that they were not trained on.

    As in the detector, a set gets the pairs alone that the sets before leave possible. For each
    pair, sets that were not trained on its fold decide that.
    """
    with np.load(data, allow_pickle=False) as stored:
        arrays = dict(stored)
    y, x = arrays["pairs_y"], arrays["pairs_x"]
    names, folds = (arrays[name][arrays["pairs_file"]] for name in ("names", "folds"))
    is_possible = np.ones(len(y), bool)
    for trees in ALL_TREES:
        is_used = is_possible | trees.trained_on_all
        likely = np.zeros(len(y))
        for fold in range(FOLDS):
            of_fold, others = is_possible & (folds == fold), is_used & (folds != fold)
            classifier = train(trees, x[others], y[others], names[others])
            likely[of_fold] = classifier.predict_proba(x[of_fold][:, trees.indices])[:, 1]
        print(f"\n{trees.name}: {is_possible.sum()} pairs of {len(y)}")
        report(likely, y, names)
        if write:
            classifier = train(trees, x[is_used], y[is_used], names[is_used])
            path = MODELS / f"{trees.name}.npz"
            np.savez_compressed(path, names=np.array(trees.columns), **tree_arrays(classifier))
            print(f"{path}: {path.stat().st_size} bytes")
        is_possible &= likely >= trees.limit


def train(trees: Trees, x: np.ndarray, y: np.ndarray, names: np.ndarray) -> Any:
    """x: (N, FEATURES).  y, names: the class of each pair, and the name of its file."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    classifier = HistGradientBoostingClassifier(
        max_iter=trees.count, learning_rate=0.06, early_stopping=False, **FITS
    )
    return classifier.fit(x[:, trees.indices], y != NONE, trees.weights(y, names))


def report(likely: np.ndarray, y: np.ndarray, names: np.ndarray) -> None:
    """Prints what is found from several probabilities on, in labelled videos, spliced footage, and
    films and takes; and at 0.5 by kind and condition."""
    kinds = {"videos": "real", "spliced": "spliced", "at low bit rates": "low rate"}
    groups = {group: np.char.startswith(names, kind) for group, kind in kinds.items()}
    groups["films and takes"] = ~np.any(list(groups.values()), axis=0)
    for limit in (0.004, 0.01, 0.05, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8):
        parts = []
        for group, member in groups.items():
            counts = [(likely[member & (y == kind)] >= limit) for kind in (PLACE, JUMP, NONE)]
            place, jump, false = (int(found.sum()) for found in counts)
            totals = [len(found) for found in counts]
            parts.append(f"{group} {place}/{totals[0]}, jump {jump}/{totals[1]}, false {false}")
        print(f"  from {limit}: {'; '.join(parts)}")
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for probability, truth, name in zip(likely, y, names, strict=True):
        kind, _, conditions = str(name).partition("|")
        for key in (kind, *conditions.split("+")):
            row = rows[key]
            row[0 if truth else 2] += 1
            row[1 if truth else 3] += probability >= 0.5
    for kind, (positives, hits, negatives, false) in sorted(rows.items()):
        print(f"    {kind:22} found {hits} of {positives}, false {false} of {negatives}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("extract")
    task.add_argument("out", type=Path)
    task.add_argument("--films", type=int, default=768)
    task.add_argument("--workers", type=int, default=2)
    task = tasks.add_parser("fit")
    task.add_argument("data", type=Path)
    task.add_argument("--write", action="store_true", help="replaces the shipped trees")
    args = parser.parse_args()
    if args.task == "extract":
        extract(args.out, args.films, args.workers)
    else:
        fit(args.data, args.write)


if __name__ == "__main__":
    main()
