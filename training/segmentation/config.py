"""Settings of the segmentation experiment; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import numpy as np
from annotated_types import Ge

from training.config import TrainConfig

SECONDS_PER_FRAME = 15 / 22


@dataclass(frozen=True)
class VideoConfig:
    """What all videos of an experiment share."""

    frames: int = 22
    height: int = 32  # px
    width: int = 32  # px
    radius: float = 7.0  # px, of the object
    speed: float = 1.35  # px per frame
    max_start_offset: float = 1.0  # px from the middle, on each axis
    events: int = 5
    colours: int = 6
    shapes: int = 4
    unseen_share: float = 0.1  # of (colour, shape, direction): in test videos only

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Start and end of each event, s."""
        ends = np.linspace(0, self.frames * SECONDS_PER_FRAME, self.events + 1).tolist()
        return list(pairwise(ends))


@dataclass(frozen=True)
class ExperimentConfig:
    video: VideoConfig = field(default_factory=VideoConfig)
    train: TrainConfig = field(default_factory=TrainConfig)  # size, mode and seed: the variant's
    training_videos: Annotated[int, Ge(1)] = 100_000  # drawn as needed
    tests: Annotated[int, Ge(1)] = 4  # during training, at even distances; the last at its end
    test_videos: Annotated[int, Ge(1)] = 256  # of the last test; a quarter of them in the others
    more_events: tuple[int, ...] = (6, 8, 10)  # of longer videos, sampled at the end by MAIN
    wider_px: Annotated[int, Ge(0)] = 48  # of wider videos, sampled at the end by MAIN; 0: none
    concurrency: Annotated[int, Ge(1)] = 4  # runs at a time, spread over all GPUs
