"""Finds hard cuts: boosted decision trees classify pairs of consecutive distinct frames.

Fixed thresholds on many measures contradict each other: one that ignores a flash also misses the
cut next to it. So the features of `cut_features.py` go to three sets of trees in turn, the cheapest
features first; the first set rejects most pairs. `benchmarks/train_transitions.py` trains them.

As in `cut_features.py`, a picture is a distinct frame, and the pair `at` is that of the pictures
at - 1 and at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from stages.shots import cut_features
from stages.shots.boosted_trees import BoostedTrees
from stages.shots.change import SmallFrame
from stages.shots.cut_features import CutFeatures
from stages.shots.frame_view import FrameView, picture_step

MODELS = Path(__file__).parent / "models"
# The step is the mean difference of a pair (`picture_step`). Pairs with less than these, six in
# seven, are no cuts, and no features are computed of them.
MIN_STEP = 0.3  # grey levels
MIN_STEP_RATIO = 1.2  # of the pair's step to the median step nearby
# Pairs of which trees give less are no cuts; in cross-validation this loses none.
MIN_HISTOGRAM_PROBABILITY = 0.01  # of `cut_by_histogram`
MIN_COLOUR_PROBABILITY = 0.02  # of `cut_by_colour`
PAIRS_PER_BATCH = 32


class HardCuts:
    """Gives the probability of a hard cut at each pair of one video's frames. `add` takes its
    frames in order."""

    def __init__(self) -> None:
        self._features = CutFeatures()
        self._steps: list[float] = []  # of the pairs that end at `_pictures`, grey levels
        self._pictures: list[FrameView] = []  # the last ones; earlier ones are dropped
        self._dropped = 0  # how many
        self._next = 1  # the next pair to measure, an index into `_pictures`
        self._possible: list[tuple[float, float]] = []  # as `possible_cuts` returns them

    def add(self, view: FrameView) -> None:
        last = self._pictures[-1] if self._pictures else None
        if last is not None and last.small.luma.shape != view.small.luma.shape:
            size = last.small.luma.shape[::-1]  # the stream changes its size midway
            view.small = SmallFrame(view.t_s, cv2.resize(view.small.luma, size))
        step = picture_step(last, view) if last else 1.0
        if step:
            self._pictures.append(view)
            self._steps.append(step)
            if len(self._pictures) - self._next >= PAIRS_PER_BATCH + cut_features.REACH:
                self._measure_pairs(self._next + PAIRS_PER_BATCH)

    def possible_cuts(self) -> list[tuple[float, float]]:
        """Time of the second frame of each pair that may be a cut, in order, and the probability
        that it is one; that of all other pairs is about 0. Called once, after the last frame."""
        self._measure_pairs(len(self._pictures))
        return self._possible

    def _measure_pairs(self, stop: int) -> None:
        """Measures the pairs [_next, stop), and drops the pictures that no later pair needs."""
        pairs = [at for at in range(self._next, stop) if self._stands_out(at)]
        if pairs:
            for at, probability in self._probabilities(pairs):
                self._possible.append((self._pictures[at].t_s, probability))
        self._next = max(stop, 1)
        surplus = self._next - cut_features.REACH - 2
        if surplus > 0:
            del self._pictures[:surplus]
            del self._steps[:surplus]
            self._next -= surplus
            self._dropped += surplus
            self._features.forget_before(self._dropped)

    def _stands_out(self, at: int) -> bool:
        """Whether the pair differs enough (MIN_STEP, MIN_STEP_RATIO) to be a cut."""
        if self._steps[at] < MIN_STEP:
            return False
        start, stop = cut_features.nearby(self._pictures, at)
        near = sorted(self._steps[start + 1 : at] + self._steps[at + 1 : stop])
        return not near or self._steps[at] >= MIN_STEP_RATIO * near[len(near) // 2]

    def _probabilities(self, pairs: list[int]) -> list[tuple[int, float]]:
        """Those of the pairs that may be cuts, each with its probability."""
        models = load_models()
        histograms = cut_features.histogram_features(self._pictures, pairs)
        probabilities = models.cut_by_histogram.probability(histograms.astype(np.float32))
        is_possible = probabilities >= MIN_HISTOGRAM_PROBABILITY
        pairs = [at for at, possible in zip(pairs, is_possible, strict=True) if possible]
        if not pairs:
            return []
        colour = np.array(self._colour_features(pairs, histograms[is_possible]), np.float32)
        is_possible = models.cut_by_colour.probability(colour) >= MIN_COLOUR_PROBABILITY
        pairs = [at for at, possible in zip(pairs, is_possible, strict=True) if possible]
        if not pairs:
            return []
        detail = [self._detail_features(at) for at in pairs]
        features = np.concatenate([colour[is_possible], np.array(detail, np.float32)], axis=1)
        return list(zip(pairs, models.cut.probability(features).tolist(), strict=True))

    def features_of_pair(self, at: int) -> list[float]:
        """The pair's FEATURES, in their order."""
        histograms = cut_features.histogram_features(self._pictures, [at])
        [colour] = self._colour_features([at], histograms)
        return [*colour, *self._detail_features(at)]

    def _colour_features(self, pairs: list[int], histograms: np.ndarray) -> list[list[float]]:
        """COLOUR_FEATURES of each pair, in their order.  histograms: their HISTOGRAM_FEATURES."""
        return [
            self._features.colour(self._pictures, at, self._dropped, of_pair)
            for at, of_pair in zip(pairs, histograms, strict=True)
        ]

    def _detail_features(self, at: int) -> list[float]:
        """The pair's MOTION_FEATURES and BLOCK_FEATURES, in their order."""
        pictures = self._pictures
        return [*self._features.motion(pictures, at), *self._features.blocks(pictures, at)]


@dataclass(frozen=True)
class Models:
    """The sets of trees in the order of use. Each gets the pairs that the one before left
    possible, with features that cost more to compute."""

    cut_by_histogram: BoostedTrees
    cut_by_colour: BoostedTrees
    cut: BoostedTrees


@cache
def load_models() -> Models:
    """The trees in MODELS, read once per process. Raises ValueError where they were trained on
    other features."""
    features = {
        "cut_by_histogram": cut_features.HISTOGRAM_FEATURES,
        "cut_by_colour": cut_features.COLOUR_FEATURES,
        "cut": cut_features.FEATURES,
    }
    return Models(**{k: BoostedTrees(MODELS / f"{k}.npz", names) for k, names in features.items()})
