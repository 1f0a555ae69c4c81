"""The default detector, trained on labelled videos and on films edited from their takes.

Boosted decision trees find hard cuts (`hard_cuts.py`); a small convolutional network finds gradual
transitions (`gradual_network.py`).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from curation.video.frames import Planes, VideoInfo
from stages.shots.detector import Detector, Transitions
from stages.shots.frame_view import FrameView
from stages.shots.gradual_network import GradualNetwork, load_session
from stages.shots.hard_cuts import HardCuts, load_models

# A mixed frame between two shots makes two pairs of a cut, with a part of the probability each
MAX_CUT_S = 0.09  # from the first to the last pair of a cut
# A gradual transition of at most twice this length that has a cut within this distance is that cut
NEAR_CUT_S = 0.2


@dataclass
class LearnedDetector(Detector):
    """Finds hard cuts, jump cuts and gradual transitions of all common kinds."""

    reads_chroma = True
    writes = ("cut_probability", "gradual_probability")
    cut_probability: Annotated[float, Ge(0), Le(1)] = 0.5  # least of a pair of frames
    gradual_probability: Annotated[float, Ge(0), Le(1)] = 0.8  # least of a transition's peak

    def setup(self) -> None:
        load_models()
        load_session()

    def start(self, video: VideoInfo) -> None:
        self._cuts = HardCuts()
        self._gradual = GradualNetwork()

    def process_frame(self, t_s: float, frame: Planes) -> None:
        view = FrameView(t_s, frame)
        self._cuts.add(view)
        self._gradual.add(t_s, view.yuv)

    def transitions(self) -> Transitions:
        pairs_s, probabilities = np.array(self._cuts.possible_cuts()).reshape(-1, 2).T
        is_cut, probabilities = select_cuts(pairs_s, probabilities, self.cut_probability)
        cuts_s = pairs_s[is_cut]
        found = merge(cuts_s.tolist(), self._gradual.spans(self.gradual_probability))
        self._pairs = _without_cuts(pairs_s[~is_cut], probabilities[~is_cut], cuts_s)
        self._frames = _without_cuts(*self._gradual.other_frames(), cuts_s)
        return found

    def score(self, start_s: float, end_s: float) -> dict[str, float]:
        """The highest probabilities within the clip that are too low for a cut or transition."""
        return {
            "cut_probability": _highest(*self._pairs, start_s, end_s),
            "gradual_probability": _highest(*self._frames, start_s, end_s),
        }


def select_cuts(
    pairs_s: np.ndarray, probabilities: np.ndarray, min_probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs are cuts, and the probability that a cut begins at a pair.

    Pairs within MAX_CUT_S are parts of one cut at most, so that their probabilities add up; the
    most probable one is the cut.

    pairs_s: (N,) times, increasing.  probabilities: (N,), of each pair alone.
    Returns (N,) bool and (N,).
    """
    starts = np.searchsorted(pairs_s, pairs_s - MAX_CUT_S)
    stops = np.searchsorted(pairs_s, pairs_s + MAX_CUT_S, side="right")
    total = np.append(0.0, np.cumsum(probabilities))
    together = np.minimum(total[stops] - total[:-1], 1.0)
    is_cut = probabilities >= min_probability
    for first in np.flatnonzero(together >= min_probability):
        if not is_cut[starts[first] : stops[first]].any():
            is_cut[first + np.argmax(probabilities[first : stops[first]])] = True
    return is_cut, together


def merge(cuts_s: list[float], gradual: list[tuple[float, float]]) -> Transitions:
    """Drops gradual transitions that are cuts (NEAR_CUT_S), then cuts inside gradual transitions.

    cuts_s, gradual: as in Transitions, in order of time; gradual transitions do not overlap.
    """
    gradual = [
        (first_s, last_s)
        for first_s, last_s in gradual
        if last_s - first_s > 2 * NEAR_CUT_S
        or not _any_within(cuts_s, first_s - NEAR_CUT_S, last_s + NEAR_CUT_S)
    ]
    starts_s = [first_s for first_s, _ in gradual]
    # for each cut a list of the last gradual transition that starts no later, or an empty list
    before = (gradual[: bisect.bisect_right(starts_s, t_s)][-1:] for t_s in cuts_s)
    cuts_s = [t_s for t_s, last in zip(cuts_s, before, strict=True) if not last or last[0][1] < t_s]
    return Transitions(cuts_s, gradual)


def _without_cuts(
    times_s: np.ndarray, probabilities: np.ndarray, cuts_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Times and probabilities without those within NEAR_CUT_S of a cut, which belong to the cut.

    times_s, probabilities: (N,).  cuts_s: (C,). The times and the cuts increase.
    """
    first, stop = (np.searchsorted(cuts_s, times_s + by_s) for by_s in (-NEAR_CUT_S, NEAR_CUT_S))
    return times_s[first == stop], probabilities[first == stop]


def _highest(times_s: np.ndarray, probabilities: np.ndarray, start_s: float, end_s: float) -> float:
    """Of the probabilities at times in [start_s, end_s); 0 if there is none."""
    first, stop = np.searchsorted(times_s, [start_s, end_s])
    return float(probabilities[first:stop].max(initial=0))


def _any_within(times_s: list[float], start_s: float, end_s: float) -> bool:
    """Whether one of the times, which increase, is in [start_s, end_s]."""
    index = bisect.bisect_left(times_s, start_s)
    return index < len(times_s) and times_s[index] <= end_s
