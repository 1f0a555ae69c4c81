"""Variants and settings of the segmentation experiment; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.config import (
    Count,
    CountOrZero,
    DiffusionConfig,
    ModelConfig,
    Positive,
    SampleConfig,
    Share01,
)

MEAN_FRAMES = 5  # of an event; a video of n events has 5 n frames


@dataclass(frozen=True)
class Variant:
    separate: bool  # each caption is encoded alone; else all as one text
    attends: Literal["own", "widened", "all", "near"]  # a frame, to captions
    time_codes: bool = False  # on words and frames

    @property
    def has_times(self) -> bool:
        return self.time_codes or self.attends != "all"


VARIANTS = {
    "isolated": Variant(True, "own"),
    "overlapped": Variant(True, "widened"),
    "masked": Variant(False, "own"),
    "relative": Variant(False, "near"),
    "offsets": Variant(False, "all", time_codes=True),
    "joined": Variant(False, "all"),
}


@dataclass(frozen=True)
class TextConfig:
    """The text encoder of the experiment: rotary positions, trained along."""

    width: Count = 128
    heads: Count = 4
    layers: Count = 2


@dataclass(frozen=True)
class ExperimentConfig:
    events: Count = 5  # of a training video
    more_events: tuple[Count, ...] = (10, 20)  # of longer test videos
    shifted_frames: tuple[Count, ...] = (1, 2, 3)  # of the borders that are given wrongly
    timeline_events: Count = 20  # offsets' time codes are drawn from a time line of this length
    test_videos: Count = 128  # at the end, like training's; a quarter of them in other tests
    sweep_steps: Count = 320
    steps: Count = 800
    test_every: Count = 160  # steps
    rates: tuple[Positive, ...] = (4e-4, 8e-4, 1.6e-3)  # learning rates of the sweep
    seeds: CountOrZero = 3  # of each variant, at its best rate
    mixed_seeds: CountOrZero = 1  # of those with times, half of the clips with one caption
    batch: Count = 64
    warmup_steps: CountOrZero = 40
    max_norm: Positive = 0.2  # of the gradient
    ema_decay: Share01 = 0.998
    drop_captions: Share01 = 0.1  # share of samples without captions, for guidance
    compile: bool = False
    concurrency: Count = 4  # runs at a time, all on one GPU
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
