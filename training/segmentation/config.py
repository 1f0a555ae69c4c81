"""Settings of the segmentation experiment; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from training.config import Count, CountOrZero, Positive, PositiveOrZero, Share01, TrainConfig

SECONDS_PER_FRAME = 15 / 22


@dataclass(frozen=True)
class VideoConfig:
    """What all videos of an experiment share."""

    frames: Count = 22
    height: Count = 32  # px
    width: Count = 32  # px
    radius: Positive = 7.0  # px, of the object
    speed: Positive = 1.35  # px per frame
    max_start_offset: PositiveOrZero = 1.0  # px from the middle, on each axis
    events: Count = 5
    colours: Annotated[int, Ge(2), Le(6)] = 6
    shapes: Annotated[int, Ge(1), Le(4)] = 4
    unseen_share: Share01 = 0.1  # of (colour, shape, direction): in test videos only

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Start and end of each event, s."""
        ends = np.linspace(0, self.frames * SECONDS_PER_FRAME, self.events + 1).tolist()
        return list(pairwise(ends))


@dataclass(frozen=True)
class ExperimentConfig:
    video: VideoConfig = field(default_factory=VideoConfig)
    train: TrainConfig = field(default_factory=TrainConfig)  # size, mode and seed: the variant's
    training_videos: Count = 100_000  # drawn as needed
    tests: Count = 4  # during training, at even distances; the last at its end
    test_videos: Count = 256  # of the last test; a quarter of them in the others
    more_events: tuple[Count, ...] = (6, 8, 10)  # of longer videos, sampled at the end by MAIN
    wider_px: CountOrZero = 48  # of wider videos, sampled at the end by MAIN; 0: none
    concurrency: Count = 4  # runs at a time, spread over all GPUs
