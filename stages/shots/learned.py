"""Finds cuts and gradual transitions: measured evidence, and a decision learned from edited films.

Hard-coded tests of many measures fight each other: the one that lets a flash pass loses the cut
beside it. So the measures of `cut_features.py` and `window_features.py` go to boosted decision
trees, trained by `benchmarks/train_transitions.py` on films edited from real footage and on the
development half of `benchmarks/labels`. Three sets of trees decide one after the other; most pairs
and windows end at the first, which reads little.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Le

from curation.video.frames import Planes, VideoInfo
from stages.shots import cut_features, window_details, window_features
from stages.shots.boosted_trees import BoostedTrees
from stages.shots.change import SmallFrame
from stages.shots.cut_features import CutFeatures
from stages.shots.detector import Detector, Transitions
from stages.shots.frame_view import FrameView, picture_step
from stages.shots.window_details import WindowDetails

MODELS = Path(__file__).parent / "models"
# A cut stands out from the pairs nearby: others, six in seven, are not measured at all.
MIN_STEP = 0.3  # grey levels, mean
MIN_STEP_RATIO = 1.2  # to the median pair nearby
# Probabilities below which nothing more is measured: in cross-validation none loses a transition.
MAY_BE_CUT = 0.01  # by histograms
MAY_BE_CUT_BY_COLOUR = 0.02
MAY_BE_GRADUAL = 0.02  # by the outline of a window
MAY_BE_GRADUAL_BY_BLOCKS = 0.05
BATCH = 32  # pairs that are decided together
SAMPLE_BATCH = 64  # samples after which windows are decided
STILL_OLD = 0.05  # of the way from the old picture to the new one: nothing has changed yet
SAMPLE_S = 0.03  # between frames of a window: every frame up to 33 a second
CONTEXT = window_features.LENGTHS[-1] // 2 + 1  # samples before and after the longest window
NEAR_CUT_S = 0.2  # a gradual transition that short and that near to a cut is the cut


@dataclass(frozen=True)
class Window:
    """A span that may be a gradual transition."""

    start_s: float
    end_s: float
    probability: float


@dataclass
class LearnedDetector(Detector):
    """Finds hard cuts, jump cuts and gradual transitions of all common kinds."""

    reads_chroma = True
    cut_probability: Annotated[float, Ge(0), Le(1)] = 0.5  # from which a pair of frames is a cut
    gradual_probability: Annotated[float, Ge(0), Le(1)] = (
        0.75  # from which a window is a transition
    )

    def setup(self) -> None:
        load_models()

    def start(self, video: VideoInfo) -> None:
        self._features, self._details = CutFeatures(), WindowDetails()
        self._steps: list[float] = []  # from the picture before, of each of `_pictures`
        self._pictures: list[FrameView] = []  # distinct, the last ones
        self._dropped = 0  # pictures before those
        self._next = 1  # place in `_pictures` of the next pair to decide
        self._samples: list[FrameView] = []
        self._forgotten = 0  # samples before those
        self._next_ends = dict.fromkeys(window_features.LENGTHS, 0)  # of the windows to decide
        self._cuts_s: list[float] = []
        self._windows: list[Window] = []

    def process_frame(self, t_s: float, frame: Planes) -> None:
        self.add(FrameView(t_s, frame))

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
        if not self._samples or view.t_s - self._samples[-1].t_s >= SAMPLE_S:
            self._samples.append(view)
            if (self._forgotten + len(self._samples)) % SAMPLE_BATCH == 0:
                self._decide_windows(self._forgotten + len(self._samples))

    def transitions(self) -> Transitions:
        self._decide_pairs(len(self._pictures))
        self._decide_windows(self._forgotten + len(self._samples) + CONTEXT)
        return merge(self._cuts_s, self._windows)

    # ------------------------------------------------------------ hard cuts

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
        is_cut = probabilities >= self.cut_probability
        return [at for at, found in zip(numbers, is_cut, strict=True) if found]

    def features_of_pair(self, at: int) -> list[float]:
        """FEATURES of the pair of pictures that ends at one of `_pictures`."""
        return [*self.colour_features(at), *self._features.motion(self._pictures, at)]

    def colour_features(self, at: int) -> list[float]:
        of = self._features.histograms(self._pictures, at)
        return self._features.colour(self._pictures, at, self._dropped, of)

    # ------------------------------------------------------------ gradual transitions

    def _decide_windows(self, stop: int) -> None:
        """Decides the windows whose context ends before the sample `stop`, and drops samples that
        no later window needs.
        """
        windows = self._undecided(stop)
        if len(windows):
            blocks = np.array([view.blocks for view in self._samples])
            windows = windows[window_features.standing_out(blocks[windows])]
        if len(windows):
            self._windows += self._transitions_among(windows, blocks[windows])
        surplus = len(self._samples) - 2 * window_features.LENGTHS[-1] - 2 * CONTEXT
        if surplus > 0:
            del self._samples[:surplus]
            self._forgotten += surplus

    def _undecided(self, stop: int) -> np.ndarray:
        """(N, 11): for each window, the places in `_samples` of the one half its length before it,
        of those that stand for it, and of the one half its length after it. Counts the windows as
        decided.
        """
        found = [np.empty((0, window_features.SAMPLES + 2), np.int64)]
        for length, next_end in self._next_ends.items():
            every, half = max(1, length // 4), length // 2 + 1
            first_end = -(-max(next_end, length) // every) * every
            last = min(stop - 1 - half, self._forgotten + len(self._samples) - 1)
            ends = np.arange(first_end, last + 1, every)
            inside = np.linspace(-length, 0, window_features.SAMPLES)
            offsets = np.array([-length - half, *inside, half])
            found.append(np.round(ends[:, None] + offsets).astype(np.int64))
            self._next_ends[length] = max(next_end, last + 1)
        places = np.concatenate(found) - self._forgotten
        return places.clip(0, len(self._samples) - 1)

    def _transitions_among(self, windows: np.ndarray, blocks: np.ndarray) -> list[Window]:
        """windows: (N, 11), places in `_samples`.  blocks: (N, 11, B), theirs."""
        models = load_models()
        outline = window_features.outline(blocks, self._lengths_s(windows))
        columns = [outline[name] for name in window_features.OUTLINE_FEATURES]
        table = np.stack(columns, axis=1).astype(np.float32)
        windows = windows[models.gradual_by_outline.probability(table) >= MAY_BE_GRADUAL]
        if not len(windows):
            return []
        frames = [[self._samples[place] for place in window] for window in windows]
        features = window_features.window_features(frames)
        likely = np.flatnonzero(
            models.gradual_by_blocks.probability(features) >= MAY_BE_GRADUAL_BY_BLOCKS
        )
        if not len(likely):
            return []
        details = [self._details.features(frames[number]) for number in likely]
        table = np.concatenate([features[likely], np.array(details, np.float32)], axis=1)
        found = []
        for number, probability in zip(likely, models.gradual.probability(table), strict=True):
            if probability >= self.gradual_probability:
                start_s, end_s = self._bounds(frames[number][1].t_s, frames[number][-2].t_s)
                found.append(Window(start_s, end_s, float(probability)))
        return found

    def _lengths_s(self, windows: np.ndarray) -> np.ndarray:
        """(N,) float32."""
        times_s = np.array([view.t_s for view in self._samples])
        return (times_s[windows[:, -2]] - times_s[windows[:, 1]]).astype(np.float32)

    def _bounds(self, start_s: float, end_s: float) -> tuple[float, float]:
        """A window, less its ends in which the picture does not go from the old one to the new."""
        views = [view for view in self._samples if start_s <= view.t_s <= end_s]
        blocks = np.array([view.blocks for view in views])
        step = blocks[-1] - blocks[0]
        way = (blocks - blocks[0]) @ step / (float(step @ step) + 1e-6)  # 0 at the start, 1 after
        middle = int(np.argmax(way >= 0.5))
        first = int(np.flatnonzero(way[: middle + 1] <= STILL_OLD)[-1])
        last = middle + int(np.flatnonzero(way[middle:] >= 1 - STILL_OLD)[0])
        return views[first].t_s, views[last].t_s


def merge(cuts_s: list[float], windows: list[Window]) -> Transitions:
    """Of windows that overlap, the most probable stands for all; cuts within one are its own."""
    gradual: list[tuple[float, float]] = []  # increasing
    for window in sorted(windows, key=lambda w: -w.probability):
        span = window.start_s, window.end_s
        at = bisect.bisect_left(gradual, span)
        near = gradual[max(0, at - 1) : at + 1]
        if all(window.end_s <= start_s or window.start_s >= end_s for start_s, end_s in near):
            gradual.insert(at, span)
    gradual = [
        (a, b)
        for a, b in gradual
        if b - a > 2 * NEAR_CUT_S or not _any_within(cuts_s, a - NEAR_CUT_S, b + NEAR_CUT_S)
    ]
    starts_s = [a for a, _ in gradual]
    before = (gradual[: bisect.bisect_right(starts_s, t)][-1:] for t in cuts_s)
    cuts_s = [t for t, span in zip(cuts_s, before, strict=True) if not span or span[0][1] < t]
    return Transitions(cuts_s, gradual)


def _any_within(times_s: list[float], start_s: float, end_s: float) -> bool:
    """times_s: increasing."""
    at = bisect.bisect_left(times_s, start_s)
    return at < len(times_s) and times_s[at] <= end_s


@dataclass(frozen=True)
class Models:
    """Each may leave a pair or a window to the next, which reads more."""

    cut_by_histogram: BoostedTrees
    cut_by_colour: BoostedTrees
    cut: BoostedTrees
    gradual_by_outline: BoostedTrees
    gradual_by_blocks: BoostedTrees
    gradual: BoostedTrees


@cache
def load_models() -> Models:
    """The trees, read once per process."""
    names = {
        "cut_by_histogram": cut_features.HISTOGRAM_FEATURES,
        "cut_by_colour": cut_features.COLOUR_FEATURES,
        "cut": cut_features.FEATURES,
        "gradual_by_outline": window_features.OUTLINE_FEATURES,
        "gradual_by_blocks": window_features.FEATURES,
        "gradual": window_features.FEATURES + window_details.FEATURES,
    }
    return Models(**{name: BoostedTrees(MODELS / f"{name}.npz", of) for name, of in names.items()})
