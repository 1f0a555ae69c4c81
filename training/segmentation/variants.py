"""The variants that the experiment compares: which frames attend to which captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from curation.config import ConfigError
from training import sca
from training.clips import Clip
from training.config import SystemConfig
from training.layers import position_sinusoids
from training.model import Text
from training.segmentation.config import SECONDS_PER_FRAME, VideoConfig
from training.segmentation.videos import make_video, to_clip
from training.text_to_video import Prompt, System


class TimedSystem(System):
    """Every frame attends to all captions; a caption's tokens carry a code of the caption's time,
    and tokens of the video one of their frame."""

    def __init__(self, cfg: SystemConfig):
        super().__init__(replace(cfg, model=replace(cfg.model, positions="space_time")))

    def encode_text(self, prompts: Sequence[Prompt]) -> Text:
        text = super().encode_text(prompts)
        centres = [_frame_at((a + b) / 2) for prompt in prompts for a, b in prompt.spans]
        codes = position_sinusoids(torch.tensor(centres), text.tokens.shape[1]).to(text.tokens)
        lengths = torch.tensor([n for of_video in text.lengths for n in of_video])
        tokens = text.tokens + codes.repeat_interleave(lengths.to(codes.device), 0)
        return Text(tokens, [[sum(of_video)] for of_video in text.lengths])

    def schedules(self, prompts: Sequence[Prompt], frames: int) -> list[Tensor]:
        return [torch.ones(1, frames, dtype=torch.float64) for _ in prompts]


def _frame_at(time_s: float) -> float:
    """Frame 0 covers the first SECONDS_PER_FRAME; its centre is 0."""
    return time_s / SECONDS_PER_FRAME - 0.5


@dataclass(frozen=True)
class Variant:
    mode: sca.Mode = "overlapped"
    segments: int | None = None  # None: one per event; 0: the first event's caption alone
    widen_frames: int = 1
    progressive: bool = False
    shuffled_share: float = 0.0  # of the training videos: their captions are in a random order
    speed: float | None = None  # px per frame; None: as in the settings
    system_class: type[System] = System


VARIANTS = {
    "joined": Variant("single", 1),  # all captions as one text, which every frame attends to
    "timed": Variant(system_class=TimedSystem),  # the same, with codes of time
    "isolated": Variant("isolated"),
    "overlapped": Variant("overlapped"),
    "first_caption": Variant("single", 0),
    "two_segments": Variant("overlapped", 2),
    "three_segments": Variant("overlapped", 3),
    "progressive": Variant("overlapped", progressive=True),
    "sequential": Variant("sequential"),
    "overlap_2": Variant("overlapped", widen_frames=2),
    "overlap_3": Variant("overlapped", widen_frames=3),
    "tent": Variant("tent"),
    "half_shuffled": Variant("overlapped", shuffled_share=0.5),
    "half_speed": Variant("overlapped", speed=0.675),
}
MAIN = ("joined", "timed", "isolated", "overlapped")  # with three seeds and further tests
RUNS = (
    *(f"{name}:{seed}" for seed in range(3) for name in MAIN),
    *(f"{name}:0" for name in VARIANTS if name not in MAIN),
)


def parse_run(text: str) -> tuple[str, int]:
    """NAME or NAME:SEED as a variant's name and a seed."""
    name, _, seed = text.partition(":")
    if name not in VARIANTS or not (seed or "0").isdecimal():
        raise ConfigError(f"{text!r} is not a run; expected NAME[:SEED], NAME of {list(VARIANTS)}")
    return name, int(seed or 0)


class TrainingVideos:
    """The trainer's source of clips: video `index` is drawn when it is read."""

    def __init__(self, cfg: VideoConfig, variant: Variant, count: int):
        self.cfg, self.variant = cfg, variant
        self.clip_ids: Sequence[str] = [f"video-{i:08d}" for i in range(count)]

    def __getitem__(self, index: int, /) -> Clip:
        clip = to_clip(self.cfg, make_video(self.cfg, index), self.variant.progressive)
        rng = np.random.Generator(np.random.PCG64([index, 2]))
        if rng.random() < self.variant.shuffled_share:
            order = rng.permutation(len(clip.sub_captions))
            clip = replace(clip, sub_captions=[clip.sub_captions[i] for i in order])
        return with_segments(clip, self.variant)


def with_segments(clip: Clip, variant: Variant) -> Clip:
    """The clip with the variant's number of segments. A segment's caption joins those of all events
    that it overlaps."""
    if variant.segments is None:
        return clip
    if variant.segments == 0:
        return replace(clip, caption=clip.sub_captions[0])
    ends = np.linspace(0, clip.duration_s, variant.segments + 1).tolist()
    spans = list(pairwise(ends))
    captions = [
        ", then ".join(
            text
            for text, (a, b) in zip(clip.sub_captions, clip.spans, strict=True)
            if min(b, end) - max(a, start) > 1e-6
        )
        for start, end in spans
    ]
    return replace(clip, spans=spans, sub_captions=captions, caption=", then ".join(captions))
