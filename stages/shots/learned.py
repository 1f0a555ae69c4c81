"""Finds cuts and gradual transitions: decisions that are learned from edited films and real videos.

Boosted decision trees find hard cuts (`hard_cuts.py`), a small network gradual transitions
(`gradual_network.py`).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from curation.video.frames import Planes, VideoInfo
from stages.shots.detector import Detector, Transitions
from stages.shots.frame_view import FrameView
from stages.shots.gradual_network import GradualNetwork, load_session
from stages.shots.hard_cuts import HardCuts, load_models

NEAR_CUT_S = 0.2  # a gradual transition that short and that near to a cut is the cut


@dataclass
class LearnedDetector(Detector):
    """Finds hard cuts, jump cuts and gradual transitions of all common kinds."""

    reads_chroma = True
    cut_probability: Annotated[float, Ge(0), Le(1)] = 0.5  # from which a pair of frames is a cut
    gradual_probability: Annotated[float, Ge(0), Le(1)] = 0.8  # of a transition's likeliest frame

    def setup(self) -> None:
        load_models()
        load_session()

    def start(self, video: VideoInfo) -> None:
        self._cuts = HardCuts(self.cut_probability)
        self._gradual = GradualNetwork()

    def process_frame(self, t_s: float, frame: Planes) -> None:
        view = FrameView(t_s, frame)
        self._cuts.add(view)
        self._gradual.add(t_s, view.yuv)

    def transitions(self) -> Transitions:
        return merge(self._cuts.times_s(), self._gradual.spans(self.gradual_probability))


def merge(cuts_s: list[float], gradual: list[tuple[float, float]]) -> Transitions:
    """Cuts within a gradual transition are its own.  gradual: disjoint, in order of time."""
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
