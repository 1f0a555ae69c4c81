"""The pairs of frames that the detector of hard cuts measures, with their classes, for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.footage import frame_views
from curation.video.reader import Reader
from stages.shots import cut_features
from stages.shots.hard_cuts import HardCuts

NONE, PLACE, JUMP = 0, 1, 2  # classes of pairs: no cut, a cut, a jump cut of a labelled video


class Recorder(HardCuts):
    """Keeps the features of every pair, and gives no probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[float, float, list[float]]] = []  # both times, features

    def _probabilities(self, pairs: list[int]) -> list[tuple[int, float]]:
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
        recorder.possible_cuts()
        return recorder, reader.times_s


Pair = tuple[list[float], int]  # features, class
Pairs = tuple[np.ndarray, np.ndarray]  # (N, features) float32, (N,) int8 classes


def label_pairs(
    recorder: Recorder,
    places_s: list[float],
    unclear: list[tuple[float, float]],
    jumps_s: Sequence[float] = (),
    most_others: int | None = None,
) -> Pairs:
    """The pairs and their classes: PLACE or JUMP where such a cut lies between the two pictures.
    Leaves out unclear pairs. most_others: keeps at most so many of the others, at random."""
    cuts_s = [(t_s, PLACE) for t_s in places_s] + [(t_s, JUMP) for t_s in jumps_s]
    cuts: list[Pair] = []
    others: list[Pair] = []
    for before_s, after_s, features in recorder.pairs:
        kinds = [kind for t_s, kind in cuts_s if before_s < t_s - 1e-4 <= after_s]
        if kinds:
            cuts.append((features, kinds[0]))
        elif not any(after_s >= a - 0.1 and before_s <= b + 0.1 for a, b in unclear):
            others.append((features, NONE))
    return as_pairs(cuts + some_of(others, most_others))


def some_of(pairs: list[Pair], most: int | None) -> list[Pair]:
    """At most so many of the pairs, chosen at random."""
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:most]]


def as_pairs(rows: list[Pair]) -> Pairs:
    x = np.array([x for x, _ in rows], np.float32).reshape(-1, len(cut_features.FEATURES))
    return x, np.array([y for _, y in rows], np.int8)
