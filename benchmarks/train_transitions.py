"""Trains the trees of hard cuts of `stages/shots/learned.py`; prints how they do on other sources.

    python -m benchmarks.train_transitions extract OUT.npz [--films 2000] [--workers 2]
    python -m benchmarks.train_transitions fit OUT.npz [OUT.npz …] [--write]

`extract` draws films from the footage of the development half (benchmarks/footage.py) under one
condition or several at once (benchmarks/edits.py), and measures them, the footage itself and the
labelled real videos of that half as the detector does. `fit` trains on five sixths of the sources
and reports on the last sixth; `--write` then trains on all and replaces stages/shots/models.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import edits
from benchmarks.edits import Transition
from benchmarks.footage import Take, frame_views, single_takes
from benchmarks.labelled_videos import Labels, read_labels
from benchmarks.real_videos import RealVideo, half_of, present, real_videos
from curation.video.reader import Reader
from stages.shots import cut_features
from stages.shots.boosted_trees import tree_arrays
from stages.shots.hard_cuts import MODELS, HardCuts
from tests.support.paths import VIDEOS

HELD_OUT = 6  # one in so many sources is for the report of `fit`
FILMS_PER_SOURCES = 24  # films in a row that draw from the same edits.SOURCES takes
# Pairs without a cut: of a film, of a take, of a labelled video
FILM_NEGATIVES, TAKE_NEGATIVES, VIDEO_NEGATIVES = 60, 100, 3000
DRAWN, GREY = 0.3, 0.1  # shares of the films
FITS = {"max_leaf_nodes": 12, "min_samples_leaf": 20, "l2_regularization": 1.0, "random_state": 0}


class Recorder(HardCuts):
    """Measures every pair, and decides nothing."""

    def __init__(self) -> None:
        super().__init__(min_probability=1.0)
        self.pairs: list[tuple[float, float, list[float]]] = []  # both times, features

    def _select_cuts(self, pairs: list[int]) -> list[int]:
        for at in pairs:
            times_s = self._pictures[at - 1].t_s, self._pictures[at].t_s
            self.pairs.append((*times_s, self.features_of_pair(at)))
        return []


def measure(
    path: Path, start_s: float = 0.0, end_s: float = float("inf")
) -> tuple[Recorder, np.ndarray]:
    """The measured pairs of a file or of a span of it, and its frames' times."""
    recorder = Recorder()
    with Reader(str(path)) as reader:
        for view in frame_views(reader, start_s, end_s):
            recorder.add(view)
        recorder.times_s()
        return recorder, reader.times_s


Labelled = tuple[list[int], list[int]]  # numbers of pairs, and their classes


def label_pairs(
    recorder: Recorder, hard_s: list[float], unclear: list[tuple[float, float]]
) -> Labelled:
    """1 for a pair between whose pictures a hard cut lies, 0 for others; unclear ones are left."""
    numbers, classes = [], []
    for number, (before_s, after_s, _) in enumerate(recorder.pairs):
        is_cut = any(before_s < t - 1e-4 <= after_s for t in hard_s)
        if not is_cut and any(after_s >= a - 0.1 and before_s <= b + 0.1 for a, b in unclear):
            continue
        numbers.append(number)
        classes.append(int(is_cut))
    return numbers, classes


def sources_of(number: int, takes: list[Take]) -> list[Take]:
    """edits.SOURCES takes for a film; some films in a row share them, so that each is read once."""
    rng = np.random.default_rng([16, number // FILMS_PER_SOURCES])
    return [takes[i] for i in rng.permutation(len(takes))[: edits.SOURCES]]


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
            kind = str(rng.choice([*negatives, "slow_light", "slow_light", "swing"]))
    view = str(rng.choice(["static", *edits.VIEWS], p=[0.26, 0.1, 0.16, 0.1, 0.16, 0.15, 0.07]))
    is_long = kind in edits.KINDS and edits.KINDS[kind][1] > 3 and rng.random() < 0.6
    transitions, piece = (4, 90) if is_long else (7, 40)
    footage = edits.Footage(sources_of(number, takes), rng, transitions, piece)
    footage.speed = int(rng.choice([1, 2, 3, 4], p=[0.76, 0.12, 0.06, 0.06]))
    footage.drawn = bool(rng.random() < DRAWN)
    frames, joins = edits.draw(footage, kind, view, rng)
    conditions = [view, *(["drawn"] if footage.drawn else [])]
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
    fps = int(rng.choice([24, 25, 30]))
    edits.encode(path, frames, fps, "low_bit_rate" if low else "", rng)
    return f"{kind}|{'+'.join(conditions)}", joins


def one_film(job: tuple[int, list[Take]]) -> dict[str, Any]:
    """Draws and measures a film."""
    number, takes = job
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        name, transitions = draw_film(number, takes, path)
        recorder, times = measure(path)
    hard, gradual, unclear = known_times(transitions, times)
    rng = np.random.default_rng([18, number])
    rows = _chosen(recorder, hard, [*gradual, *unclear], rng, FILM_NEGATIVES)
    return {"name": name, "pairs": rows}


def _chosen(
    recorder: Recorder,
    hard: list[float],
    unclear: list[tuple[float, float]],
    rng: np.random.Generator,
    negatives: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes: all positives, and a random choice of the negatives."""
    numbers, classes = label_pairs(recorder, hard, unclear)
    positive = [n for n, c in zip(numbers, classes, strict=True) if c]
    others = [n for n, c in zip(numbers, classes, strict=True) if not c]
    chosen = positive + [others[i] for i in rng.permutation(len(others))[:negatives]]
    rows = np.array([recorder.pairs[n][2] for n in chosen], np.float32)
    return rows, np.arange(len(chosen)) < len(positive)


def known_times(
    transitions: list[Transition], times: np.ndarray
) -> tuple[list[float], list[tuple[float, float]], list[tuple[float, float]]]:
    """Times of hard cuts; spans of gradual transitions; spans where nothing is decided."""
    hard, gradual, unclear = [], [], []
    last = len(times) - 1
    for t in transitions:
        before, after = times[max(0, t.first - 1)], times[min(last, t.last + 1)]
        if t.kind == "unseen":
            unclear.append((float(before), float(after)))
        elif t.first > t.last:
            hard.append(float(after))
        elif t.kind in ("flash_cut", "black_between"):
            hard += [float(times[t.first]), float(after)]
        else:
            gradual.append((float(before), float(after)))
    return hard, gradual, unclear


def one_video(job: tuple[Path, RealVideo]) -> dict[str, Any]:
    """Measures a labelled video."""
    path, video = job
    recorder, times = measure(path)
    end = len(times) - 1
    hard = [float(times[min(end, c["frame"])]) for c in video.cuts]
    unclear = [
        (float(times[min(end, span["first"])]), float(times[min(end, span["last"])]))
        for span in (*video.gradual, *video.uncertain)
    ]
    rng = np.random.default_rng(int(video.sha256[:8], 16))
    rows = _chosen(recorder, hard, unclear, rng, VIDEO_NEGATIVES)
    return {"name": f"real|{video.kind}", "pairs": rows}


def one_labelled(job: tuple[Path, Labels]) -> dict[str, Any]:
    """Measures a video of LONGTAKE_VIDEOS."""
    path, labels = job
    recorder, times = measure(path)
    hard = [float(times[np.searchsorted(times, t - 0.02)]) for t in labels.cuts]
    rng = np.random.default_rng(int(labels.sha256[:8], 16))
    # its spans are given to a tenth of a second
    spans = [(a - 0.05, b + 0.05) for a, b in labels.gradual]
    rows = _chosen(recorder, hard, spans, rng, VIDEO_NEGATIVES)
    return {"name": "real|labelled", "pairs": rows}


def one_take(take: Take) -> dict[str, Any]:
    """Measures a take without any transition."""
    recorder, _ = measure(Path(take.path), take.start_s, take.end_s)
    rows = _chosen(recorder, [], [], np.random.default_rng(0), TAKE_NEGATIVES)
    return {"name": "take|", "pairs": rows}


def _safely(job: tuple[int, Callable[[Any], dict[str, Any]], Any]) -> tuple[int, Any]:
    """Returns the job's number with its result, or with the text of its error."""
    number, measure_one, about = job
    cv2.setNumThreads(1)
    try:
        return number, measure_one(about)
    except Exception:
        return number, traceback.format_exc()


def extract(args: argparse.Namespace) -> None:
    """Writes OUT: features and classes of pairs, the source of each, its group."""
    takes = [take for take in single_takes() if take.half == "development"]
    paths = sorted({take.path for take in takes})
    groups = [
        [take for take in takes if paths.index(take.path) % HELD_OUT == 0],
        [take for take in takes if paths.index(take.path) % HELD_OUT != 0],
    ]
    videos = [] if args.no_real else present(real_videos("development"))
    videos.sort(key=lambda pair: -pair[0].stat().st_size)  # the longest first
    labelled = {str(path) for path, _ in videos}
    jobs: list[Any] = [(one_video, pair) for pair in videos]
    if not args.no_real:
        pairs = [pair for pair in read_labels(VIDEOS) if half_of(pair[1].sha256) == "development"]
        jobs += [(one_labelled, pair) for pair in pairs]
    if not args.no_real:
        jobs += [(one_take, take) for take in takes if take.path not in labelled]
    jobs += [
        (one_film, (n, groups[0 if n % HELD_OUT == 0 else 1]))
        for n in range(args.first, args.first + args.films)
    ]
    jobs = [(number, *job) for number, job in enumerate(jobs)]
    films = next(i for i, job in enumerate([*jobs, (0, one_film)]) if job[1] is one_film)
    results: dict[int, dict[str, Any]] = {}
    started = time.monotonic()
    with multiprocessing.Pool(args.workers) as pool:
        # the films of a block share their takes, which a process reads once
        real = pool.imap_unordered(_safely, jobs[:films])
        drawn = pool.imap_unordered(_safely, jobs[films:], FILMS_PER_SOURCES)
        for number, found in chain(real, drawn):
            if isinstance(found, str):
                print(found, flush=True)
                continue
            results[number] = found
            if len(results) % 100 == 0:
                print(f"{len(results)} files, {time.monotonic() - started:.0f} s", flush=True)
            if time.monotonic() - started > args.limit_s:
                pool.terminate()
                break
    names: list[str] = []
    columns: dict[str, list[Any]] = defaultdict(list)
    for number, found in sorted(results.items()):
        held_out = (jobs[number][2][0] if number >= films else number) % HELD_OUT == 0
        rows, classes = found["pairs"]
        if len(rows):
            columns["pairs_x"].append(rows)
            columns["pairs_y"].append(classes)
            columns["pairs_film"].append(np.full(len(rows), len(names)))
            columns["pairs_held_out"].append(np.full(len(rows), held_out))
        names.append(found["name"])
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    np.savez_compressed(args.data[0], names=np.array(names), **arrays)


def read_examples(files: list[Path]) -> dict[str, np.ndarray]:
    """The arrays of some files of `extract`, joined."""
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    films = 0
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            for name in stored.files:
                parts[name].append(stored[name] + films if name.endswith("_film") else stored[name])
            films += len(stored["names"])
    return {name: np.concatenate(part) for name, part in parts.items()}


@dataclass(frozen=True)
class Trees:
    """One of the sets of trees. Weights are those of an example, chosen by cross-validation."""

    name: str
    columns: tuple[str, ...]
    count: int
    real: tuple[float, float]  # weights of a cut in a labelled video, and of what is none there

    def weights(self, y: np.ndarray, names: np.ndarray) -> np.ndarray:
        return np.where(np.char.startswith(names, "real"), np.where(y, *self.real), 1.0)


ALL_TREES = (
    Trees("cut_by_histogram", cut_features.HISTOGRAM_FEATURES, 60, real=(3, 1)),
    Trees("cut_by_colour", cut_features.COLOUR_FEATURES, 60, real=(3, 1)),
    Trees("cut", cut_features.FEATURES, 200, real=(9, 3)),
)


def fit(files: list[Path], write: bool) -> None:
    """Trains all trees; prints how they do on held-out sources, by kind."""
    arrays = read_examples(files)
    y, held = arrays["pairs_y"], arrays["pairs_held_out"]
    names = arrays["names"][arrays["pairs_film"]]
    for trees in ALL_TREES:
        columns = [cut_features.FEATURES.index(name) for name in trees.columns]
        x, weights = arrays["pairs_x"][:, columns], trees.weights(y, names)
        classifier = train(x[~held], y[~held], weights[~held], trees.count)
        print(f"\n{trees.name}: {len(y)} examples, {int(y.sum())} positive")
        report(classifier.predict_proba(x[held])[:, 1], y[held], names[held])
        if write:
            classifier = train(x, y, weights, trees.count)
            MODELS.mkdir(exist_ok=True)
            path = MODELS / f"{trees.name}.npz"
            np.savez_compressed(path, names=np.array(trees.columns), **tree_arrays(classifier))
            print(f"{path}: {os.path.getsize(path)} bytes")


def train(x: np.ndarray, y: np.ndarray, weights: np.ndarray, count: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    classifier = HistGradientBoostingClassifier(
        max_iter=count, learning_rate=0.06, early_stopping=False, **FITS
    )
    return classifier.fit(x, y, weights)


def report(likely: np.ndarray, y: np.ndarray, films: np.ndarray) -> None:
    for limit in (0.004, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95):
        hit, false = likely[y == 1] >= limit, likely[y == 0] >= limit
        print(f"  from {limit}: recall {hit.mean():.3f}, false {false.sum()} of {false.size}")
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for probability, truth, film in zip(likely, y, films, strict=True):
        kind, _, conditions = str(film).partition("|")
        for key in (kind, *conditions.split("+")):
            row = kinds[key]
            row[0 if truth else 2] += 1
            row[1 if truth else 3] += probability >= 0.5
    for kind, (positives, hits, negatives, false) in sorted(kinds.items()):
        print(f"    {kind:22} found {hits} of {positives}, false {false} of {negatives}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("extract", "fit"))
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--films", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first film")
    parser.add_argument("--no-real", action="store_true", help="films alone")
    parser.add_argument("--limit-s", type=float, default=float("inf"))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.task == "extract":
        extract(args)
    else:
        fit(args.data, args.write)


if __name__ == "__main__":
    main()
