"""Trains the trees of `stages/shots/learned.py`, and says how well they do on other sources.

    python -m benchmarks.train_transitions extract OUT.npz [--films 2000] [--workers 2]
    python -m benchmarks.train_transitions fit OUT.npz [--write]

`extract` draws films from the footage of the development half (benchmarks/footage.py) under one
condition or several at once (benchmarks/edits.py), and measures them and the labelled real videos
of that half as the detector does. `fit` trains on five sixths of the sources and reports on the
last sixth; `--write` then trains on all and replaces stages/shots/models.
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
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import edits
from benchmarks.edits import Transition
from benchmarks.footage import Take, single_takes
from benchmarks.real_videos import RealVideo, present, real_videos
from curation.stage import BadVideo
from curation.video.frames import Planes
from curation.video.planes import chroma_image
from curation.video.reader import Reader
from stages.shots import cut_features, window_features
from stages.shots.boosted_trees import tree_arrays
from stages.shots.learned import MODELS, LearnedDetector

HELD_OUT = 6  # one in so many sources is for the report of `fit`
NEGATIVES = 24  # pairs, and windows, of a film without a transition
DRAWN, GREY = 0.2, 0.1  # shares of the films
COVERED = 0.5  # share of a window that a transition fills at least, to count as found by it
FITS = {"max_leaf_nodes": 12, "min_samples_leaf": 20, "l2_regularization": 1.0, "random_state": 0}


class Recorder(LearnedDetector):
    """Measures every pair and window, and decides nothing."""

    def setup(self) -> None:
        self.pairs: list[tuple[float, float, list[float]]] = []  # both times, features
        self.spans: list[tuple[float, float, list[float]]] = []

    def _cuts_among(self, numbers: list[int]) -> list[int]:
        for at in numbers:
            colour = self.colour_features(at)
            if colour[0] < 0.4 and colour[4] < 0.7:
                continue  # nothing but noise changed
            features = [*colour, *self.motion_features(at)]
            self.pairs.append((self._pictures[at - 1].t_s, self._pictures[at].t_s, features))
        return []

    def _transitions_among(self, windows: list[tuple[int, int]]) -> list[Any]:
        for (first, length), row in zip(windows, self.window_features(windows), strict=True):
            start, end = first - self._forgotten, first + length - self._forgotten
            self.spans.append((self._samples[start].t_s, self._samples[end].t_s, list(row)))
        return []


def measure(path: Path) -> tuple[Recorder, np.ndarray]:
    """The measured pairs and windows of a file, and its frames' times."""
    recorder = Recorder()
    recorder.setup()
    with Reader(str(path)) as reader:
        recorder.start(reader.header.info())
        try:
            for t_s, planes in reader.frames():
                recorder.process_frame(t_s, Planes(planes.y, chroma=chroma_image(planes)))
        except BadVideo:
            pass  # labelled up to there
        recorder.transitions()
        return recorder, reader.times_s


Labelled = tuple[list[int], list[int]]  # numbers of pairs or windows, and their classes


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


def label_windows(
    recorder: Recorder,
    hard_s: list[float],
    gradual: list[tuple[float, float]],
    unclear: list[tuple[float, float]],
) -> Labelled:
    """1 for a window that one gradual transition fills, 0 for one that none touches."""
    numbers, classes = [], []
    for number, (start_s, end_s, _) in enumerate(recorder.spans):
        if any(start_s <= b and end_s >= a for a, b in unclear):
            continue
        inside = [(a, b) for a, b in gradual if a <= end_s and b >= start_s]
        cut = any(start_s < t <= end_s for t in hard_s)
        if not inside:
            numbers.append(number)
            classes.append(0)
        elif len(inside) == 1 and not cut:
            first_s, last_s = inside[0]
            covered = last_s - first_s >= COVERED * (end_s - start_s) - 0.05
            if start_s <= first_s and last_s <= end_s and covered:
                numbers.append(number)
                classes.append(1)
    return numbers, classes


def draw_film(number: int, takes: list[Take], path: Path) -> tuple[str, list[Transition]]:
    """Writes a film of a random kind under random conditions; its name and its transitions."""
    rng = np.random.default_rng([17, number])
    kinds, negatives = list(edits.KINDS), list(edits.NEGATIVES)
    drawn = rng.random()
    kind = "cut" if drawn < 0.14 else "jump_cut" if drawn < 0.34 else ""
    if not kind:
        kind = str(rng.choice(kinds[2:] if drawn < 0.7 else negatives))
    view = str(rng.choice(["static", *edits.VIEWS], p=[0.42, 0.2, 0.12, 0.18, 0.08]))
    footage = edits.Footage(takes, rng)
    footage.drawn = bool(rng.random() < DRAWN)
    frames, transitions = edits.draw(footage, kind, view, rng)
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
        frames = edits.repeat(frames, transitions, edits.REPEATS[pattern])
        conditions.append(pattern)
    low = rng.random() < 0.2
    conditions += ["low_bit_rate"] if low else []
    edits.encode(path, frames, int(rng.choice([24, 25, 30])), "low_bit_rate" if low else "")
    return f"{kind}|{'+'.join(conditions)}", transitions


def one_film(job: tuple[int, list[Take]]) -> dict[str, Any]:
    """Draws and measures a film."""
    number, takes = job
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        name, transitions = draw_film(number, takes, path)
        recorder, times = measure(path)
    hard, gradual, unclear = known_times(transitions, times)
    rng = np.random.default_rng([18, number])
    return {
        "name": name,
        "pairs": _choose(recorder.pairs, *label_pairs(recorder, hard, [*gradual, *unclear]), rng),
        "windows": _choose(recorder.spans, *label_windows(recorder, hard, gradual, unclear), rng),
    }


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


def _choose(
    measured: list[tuple[float, float, list[float]]],
    numbers: list[int],
    classes: list[int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes: all positives, half of the negatives those that change most."""
    found = [(measured[n][2], c) for n, c in zip(numbers, classes, strict=True)]
    positives = [pair for pair in found if pair[1]]
    others = sorted((p for p in found if not p[1]), key=lambda p: -p[0][1])
    chosen = others[: NEGATIVES // 2]
    left = others[NEGATIVES // 2 :]
    chosen += [left[i] for i in rng.permutation(len(left))[: NEGATIVES // 2]]
    if len(positives) > 2 * NEGATIVES:
        positives = [positives[i] for i in rng.permutation(len(positives))[: 2 * NEGATIVES]]
    both = positives + chosen
    return (
        np.array([p[0] for p in both], np.float32),
        np.array([p[1] for p in both], np.int8),
    )


def one_video(job: tuple[Path, RealVideo]) -> dict[str, Any]:
    """Measures a labelled video: all positives, and every negative."""
    path, video = job
    recorder, times = measure(path)
    end = len(times) - 1
    hard = [float(times[min(end, c["frame"])]) for c in video.cuts]
    spans = {
        name: [(float(times[min(end, s["first"])]), float(times[min(end, s["last"])])) for s in of]
        for name, of in (("gradual", video.gradual), ("uncertain", video.uncertain))
    }
    unclear = spans["uncertain"]
    pairs = label_pairs(recorder, hard, [*spans["gradual"], *unclear])
    windows = label_windows(recorder, hard, spans["gradual"], unclear)
    found: dict[str, Any] = {"name": f"real|{video.kind}"}
    for name, measured, (numbers, classes) in (
        ("pairs", recorder.pairs, pairs),
        ("windows", recorder.spans, windows),
    ):
        rows = np.array([measured[n][2] for n in numbers], np.float32)
        found[name] = rows, np.array(classes, np.int8)
    return found


def _safely(job: tuple[Callable[[Any], dict[str, Any]], Any]) -> dict[str, Any] | str:
    cv2.setNumThreads(1)
    try:
        return job[0](job[1])
    except Exception:
        return traceback.format_exc()


def extract(args: argparse.Namespace) -> None:
    """Writes OUT: features and classes of pairs and windows, the source of each, its group."""
    takes = [take for take in single_takes() if take.half == "development"]
    paths = sorted({take.path for take in takes})
    groups = [
        [take for take in takes if paths.index(take.path) % HELD_OUT == 0],
        [take for take in takes if paths.index(take.path) % HELD_OUT != 0],
    ]
    videos = [] if args.no_real else present(real_videos("development"))
    videos.sort(key=lambda pair: -pair[0].stat().st_size)  # the longest first
    jobs: list[Any] = [(one_video, pair) for pair in videos]
    jobs += [
        (one_film, (n, groups[0 if n % HELD_OUT == 0 else 1]))
        for n in range(args.first, args.first + args.films)
    ]
    names: list[str] = []
    columns: dict[str, list[Any]] = defaultdict(list)
    started = time.monotonic()
    with multiprocessing.Pool(args.workers) as pool:
        for number, found in enumerate(pool.imap(_safely, jobs)):
            if isinstance(found, str):
                print(found, flush=True)
                continue
            is_real = found["name"].startswith("real")
            held_out = number % HELD_OUT == 0 if is_real else jobs[number][1][0] % HELD_OUT == 0
            for name in ("pairs", "windows"):
                rows, classes = found[name]
                if len(rows):
                    columns[f"{name}_x"].append(rows)
                    columns[f"{name}_y"].append(classes)
                    columns[f"{name}_film"].append(np.full(len(rows), len(names)))
                    columns[f"{name}_held_out"].append(np.full(len(rows), held_out))
            names.append(found["name"])
            if len(names) % 100 == 0:
                print(f"{len(names)} films, {time.monotonic() - started:.0f} s", flush=True)
            if time.monotonic() - started > args.limit_s:
                pool.terminate()
                break
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    np.savez_compressed(args.data, names=np.array(names), **arrays)


def fit(data: Path, write: bool) -> None:
    """Trains the three sets of trees; prints how they do on held-out sources, by kind."""
    with np.load(data, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    names = arrays["names"]
    colour = cut_features.COLOUR_FEATURES
    for model, part, columns, trees in (
        ("candidate", "pairs", colour, 60),
        ("cut", "pairs", cut_features.FEATURES, 200),
        ("gradual", "windows", window_features.FEATURES, 250),
    ):
        x = arrays[f"{part}_x"][:, : len(columns)]
        y, held = arrays[f"{part}_y"], arrays[f"{part}_held_out"]
        films = names[arrays[f"{part}_film"]]
        classifier = train(x[~held], y[~held], films[~held], trees)
        print(f"\n{model}: {len(y)} examples, {int(y.sum())} positive")
        report(classifier.predict_proba(x[held])[:, 1], y[held], films[held])
        if write:
            classifier = train(x, y, films, trees)
            MODELS.mkdir(exist_ok=True)
            path = MODELS / f"{model}.npz"
            np.savez_compressed(path, names=np.array(columns), **tree_arrays(classifier))
            print(f"{path}: {os.path.getsize(path)} bytes")


def train(x: np.ndarray, y: np.ndarray, films: np.ndarray, trees: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    classifier = HistGradientBoostingClassifier(
        max_iter=trees, learning_rate=0.06, early_stopping=False, **FITS
    )
    return classifier.fit(x, y)


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
    parser.add_argument("data", type=Path)
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
