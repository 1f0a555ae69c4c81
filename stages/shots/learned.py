"""Finds cuts and gradual transitions: measured evidence, and a decision learned from edited films.

Hard-coded tests of many measures fight each other: the one that lets a flash pass loses the cut
beside it. So the measures of `cut_features.py` and `window_features.py` go to boosted decision
trees, trained by `benchmarks/train_transitions.py` on films edited from real footage and on the
development half of `benchmarks/labels`. The trees are small, and most pairs of frames end at the
first of them, which reads colours only.
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
# A cut stands out from the pairs nearby: others, nine in ten, are not measured at all.
MIN_STEP = 0.3  # grey levels, mean
MIN_STEP_RATIO = 1.2  # to the median pair nearby
MAY_BE_CUT = 0.004  # probability by colour alone, below which no motion is computed
MAY_BE_GRADUAL = 0.02  # probability by blocks alone, below which no details are measured
BATCH = 16  # pairs or frames that are decided together
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
        self._undecided: list[tuple[int, int]] = []  # windows: first sample, length
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
            self._add_windows()

    def transitions(self) -> Transitions:
        self._decide_pairs(len(self._pictures))
        self._decide_windows(len(self._samples) + CONTEXT)
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
        start, stop = cut_features.nearby(self._pictures, at)
        nearby = self._steps[start + 1 : at] + self._steps[at + 1 : stop]
        least = MIN_STEP_RATIO * sorted(nearby)[len(nearby) // 2] if nearby else 0.0
        return self._steps[at] >= max(least, MIN_STEP)

    def _cuts_among(self, numbers: list[int]) -> list[int]:
        colour = np.array([self.colour_features(at) for at in numbers], np.float32)
        likely = load_models().candidate.probability(colour) >= MAY_BE_CUT
        found = []
        for at, row in zip(np.array(numbers)[likely], colour[likely], strict=True):
            features = np.array([*row, *self.motion_features(at)], np.float32)[None]
            if load_models().cut.probability(features)[0] >= self.cut_probability:
                found.append(int(at))
        return found

    def colour_features(self, at: int) -> list[float]:
        """COLOUR_FEATURES of the pair that ends at a picture; the last one its density in time."""
        found = self._features.colour(self._pictures, at, self._dropped)
        near = self._pictures[max(0, at - 6) : at + 7]
        span_s = near[-1].t_s - near[0].t_s
        return [*found, (len(near) - 1) / (30 * span_s) if span_s else 1.0]

    def motion_features(self, at: int) -> list[float]:
        return self._features.motion(self._pictures, at, self._dropped)

    # ------------------------------------------------------------ gradual transitions

    def _add_windows(self) -> None:
        last = len(self._samples) - 1 + self._forgotten
        for length in window_features.LENGTHS:
            first = last - length
            if first < 0 or last % max(1, length // 4):
                continue
            ends = self._samples[first - self._forgotten], self._samples[-1]
            if window_features.may_hold_transition(*ends):
                self._undecided.append((first, length))
        if last % BATCH == 0:
            self._decide_windows(last)

    def _decide_windows(self, last: int) -> None:
        """Decides the windows whose context has come, and drops samples that none reads."""
        ready = [w for w in self._undecided if w[0] + w[1] + w[1] // 2 + 1 <= last]
        self._undecided = [w for w in self._undecided if w[0] + w[1] + w[1] // 2 + 1 > last]
        windows = [self._frames_of(*window) for window in ready]
        windows = [w for w in windows if window_features.stands_out(w)]
        if windows:
            self._windows += self._transitions_among(windows)
        longest = window_features.LENGTHS[-1]
        surplus = len(self._samples) - 2 * longest - 2 * CONTEXT - BATCH
        if surplus > 0:
            del self._samples[:surplus]
            self._forgotten += surplus

    def _frames_of(self, first: int, length: int) -> list[FrameView]:
        """The sample half a length before a window, those that stand for it, and one after it."""
        start = first - self._forgotten
        inside = np.round(np.linspace(start, start + length, window_features.SAMPLES))
        before = max(0, start - length // 2 - 1)
        after = min(len(self._samples) - 1, start + length + length // 2 + 1)
        return [self._samples[int(place)] for place in (before, *inside, after)]

    def _transitions_among(self, windows: list[list[FrameView]]) -> list[Window]:
        features = window_features.window_features(windows)
        likely = load_models().window.probability(features) >= MAY_BE_GRADUAL
        found = []
        for number in np.flatnonzero(likely):
            frames = windows[number]
            row = np.array([*features[number], *self._details.features(frames)], np.float32)
            probability = float(load_models().gradual.probability(row[None])[0])
            if probability >= self.gradual_probability:
                start_s, end_s = self._bounds(frames[1].t_s, frames[-2].t_s)
                found.append(Window(start_s, end_s, probability))
        return found

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
    candidate: BoostedTrees  # by colour alone: may the pair be a cut?
    cut: BoostedTrees
    window: BoostedTrees  # by blocks alone: may the window be a gradual transition?
    gradual: BoostedTrees


@cache
def load_models() -> Models:
    """The trees, read once per process."""
    return Models(
        BoostedTrees(MODELS / "candidate.npz", cut_features.COLOUR_FEATURES),
        BoostedTrees(MODELS / "cut.npz", cut_features.FEATURES),
        BoostedTrees(MODELS / "window.npz", window_features.FEATURES),
        BoostedTrees(MODELS / "gradual.npz", window_features.FEATURES + window_details.FEATURES),
    )
