"""Finds hard cuts: pairs of frames whose measures boosted decision trees call a cut.

Hard-coded tests of many measures fight each other: the one that lets a flash pass loses the cut
next to it. So the measures of `cut_features.py` go to three sets of trees, one after the other;
most pairs end at the first, which reads little. `benchmarks/train_transitions.py` trains them.
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
# A cut stands out from the pairs nearby: others, six in seven, are not measured at all.
MIN_STEP = 0.3  # grey levels, mean
MIN_STEP_RATIO = 1.2  # to the median pair nearby
# Probabilities below which nothing more is measured: in cross-validation none loses a cut.
MAY_BE_CUT = 0.01  # by histograms
MAY_BE_CUT_BY_COLOUR = 0.02
BATCH = 32  # pairs that are decided together


class HardCuts:
    """Those of one video, whose frames come in order."""

    def __init__(self, min_probability: float) -> None:
        self._min_probability = min_probability
        self._features = CutFeatures()
        self._steps: list[float] = []  # from the picture before, of each of `_pictures`
        self._pictures: list[FrameView] = []  # distinct, the last ones
        self._dropped = 0  # pictures before those
        self._next = 1  # place in `_pictures` of the next pair to decide
        self._cuts_s: list[float] = []

    def add(self, view: FrameView) -> None:
        last = self._pictures[-1] if self._pictures else None
        if last is not None and last.small.luma.shape != view.small.luma.shape:
            size = last.small.luma.shape[::-1]  # the stream changes its size midway
            view.small = SmallFrame(view.t_s, cv2.resize(view.small.luma, size))
        step = picture_step(last, view) if last else 1.0
        if step:
            self._pictures.append(view)
            self._steps.append(step)
            if len(self._pictures) - self._next >= BATCH + cut_features.REACH:
                self._decide_pairs(self._next + BATCH)

    def times_s(self) -> list[float]:
        """Of the first frame after each cut. Ends the pass."""
        self._decide_pairs(len(self._pictures))
        return self._cuts_s

    def _decide_pairs(self, stop: int) -> None:
        """Decides the pairs that end at the pictures before `stop`."""
        numbers = [at for at in range(self._next, stop) if self._stands_out(at)]
        if numbers:
            for at in self._cuts_among(numbers):
                self._cuts_s.append(self._pictures[at].t_s)
        self._next = max(stop, 1)
        surplus = self._next - cut_features.REACH - 2
        if surplus > 0:
            del self._pictures[:surplus]
            del self._steps[:surplus]
            self._next -= surplus
            self._dropped += surplus
            self._features.forget_before(self._dropped)

    def _stands_out(self, at: int) -> bool:
        if self._steps[at] < MIN_STEP:
            return False
        start, stop = cut_features.nearby(self._pictures, at)
        near = sorted(self._steps[start + 1 : at] + self._steps[at + 1 : stop])
        return not near or self._steps[at] >= MIN_STEP_RATIO * near[len(near) // 2]

    def _cuts_among(self, numbers: list[int]) -> list[int]:
        models = load_models()
        histograms = [self._features.histograms(self._pictures, at) for at in numbers]
        table = [[of[name] for name in cut_features.HISTOGRAM_FEATURES] for of in histograms]
        likely = models.cut_by_histogram.probability(np.array(table, np.float32))
        numbers = [at for at, p in zip(numbers, likely, strict=True) if p >= MAY_BE_CUT]
        if not numbers:
            return []
        colour = np.array([self.colour_features(at) for at in numbers], np.float32)
        likely = models.cut_by_colour.probability(colour) >= MAY_BE_CUT_BY_COLOUR
        numbers = [at for at, is_likely in zip(numbers, likely, strict=True) if is_likely]
        if not numbers:
            return []
        motion = [self._features.motion(self._pictures, at) for at in numbers]
        features = np.concatenate([colour[likely], np.array(motion, np.float32)], axis=1)
        probabilities = models.cut.probability(features)
        is_cut = probabilities >= self._min_probability
        return [at for at, found in zip(numbers, is_cut, strict=True) if found]

    def features_of_pair(self, at: int) -> list[float]:
        """FEATURES of the pair of pictures that ends at one of `_pictures`."""
        return [*self.colour_features(at), *self._features.motion(self._pictures, at)]

    def colour_features(self, at: int) -> list[float]:
        of = self._features.histograms(self._pictures, at)
        return self._features.colour(self._pictures, at, self._dropped, of)


@dataclass(frozen=True)
class Models:
    """Each may leave a pair to the next, which reads more."""

    cut_by_histogram: BoostedTrees
    cut_by_colour: BoostedTrees
    cut: BoostedTrees


@cache
def load_models() -> Models:
    """The trees, read once per process."""
    names = {
        "cut_by_histogram": cut_features.HISTOGRAM_FEATURES,
        "cut_by_colour": cut_features.COLOUR_FEATURES,
        "cut": cut_features.FEATURES,
    }
    return Models(**{name: BoostedTrees(MODELS / f"{name}.npz", of) for name, of in names.items()})
