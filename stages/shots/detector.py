"""The contract of a detector: it finds cuts and gradual transitions in the decode pass.

To add one: a subclass in a file of its own, and a field of `DecodePass` that holds it, whose name
is then a value of `score.decode.detector` (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from curation.video.frames import FrameProcessor


@dataclass(frozen=True)
class Transitions:
    cuts_s: list[float]  # hard cuts: time of the first frame after each
    gradual: list[tuple[float, float]]  # times of the first and the last frame of each


class Detector(FrameProcessor):
    gpus: float = 0.0  # share of a GPU that one worker takes
    writes: ClassVar[tuple[str, ...]] = ()  # columns of a clip, declared in curation/records.py

    def check(self) -> None:
        """Raises PlanError where a package is missing. Called before any worker starts."""

    def setup(self) -> None:
        """Loads models: once per worker."""

    def transitions(self) -> Transitions:
        """Those of the whole video, in order of time. Called once, after the last frame."""
        raise NotImplementedError

    def score(self, start_s: float, end_s: float) -> dict[str, Any]:
        """The columns `writes` of a clip [start_s, end_s). Called after `transitions`."""
        return {}
