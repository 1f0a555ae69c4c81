"""All that turns captions into a video: codec, text encoder, network, and how they are bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from training import sca
from training.clips import Clip, Size
from training.codecs import Pixel
from training.layers import sinusoids
from training.model import ModelConfig, Presto, Text, forward_flops
from training.pretrained import T5, Allegro
from training.text_encoder import Bytes, BytesConfig

_schedule = lru_cache(maxsize=1024)(sca.schedule)  # most clips of a dataset are cut alike


@dataclass(frozen=True)
class SystemConfig:
    size: Size = field(default_factory=Size)
    sizes: tuple[Size, ...] = ()  # others: a clip is brought to the one most like it
    codec: Pixel | Allegro = field(default_factory=Pixel)
    text: BytesConfig | T5 = field(default_factory=BytesConfig)
    # channels and text width follow from codec and text, whatever is written here
    model: ModelConfig = field(default_factory=ModelConfig)
    # timed: every frame hears all captions at once, and both are told their time
    mode: sca.Mode | Literal["timed"] = "overlapped"
    widen_frames: Annotated[int, Ge(0)] = 1  # overlapped: each segment, on both sides
    rounding: sca.Rounding = "nearest"


@dataclass(frozen=True)
class Script:
    """What a video is to show, and when."""

    spans: Sequence[tuple[float, float]]  # s
    captions: Sequence[str]  # one per span
    texts: Mapping[str, Tensor] = field(default_factory=dict)  # as in Clip: what is read already

    @classmethod
    def of(cls, clip: Clip, mode: str) -> Script:
        if mode == "single":
            return cls([(0.0, clip.duration_s)], [clip.caption], clip.texts)
        return cls(clip.spans, clip.sub_captions, clip.texts)

    @property
    def duration_s(self) -> float:
        return self.spans[-1][1] - self.spans[0][0]


class System(nn.Module):
    """system(latents, t, scripts) -> what the objective predicts."""

    def __init__(self, cfg: SystemConfig):
        super().__init__()
        frames, height, width = self.latent_size = cfg.codec.latent_size(cfg.size)
        for size in cfg.sizes:
            cfg.codec.latent_size(size)  # refuses what it can't encode
        model = replace(
            cfg.model,
            in_channels=cfg.codec.channels,
            out_channels=cfg.codec.channels,
            caption_channels=cfg.text.width,
            cross_attention_dim=cfg.model.width,
            sample_frames=frames,
            sample_height=height,
            sample_width=width,
            positions="space_time" if cfg.mode == "timed" else cfg.model.positions,
        )
        self.cfg, self.codec = cfg, cfg.codec
        self.text = cfg.text if isinstance(cfg.text, T5) else Bytes(cfg.text)
        self.presto = Presto(model)
        self.presto.reset_parameters()

    def forward(self, latents: Tensor, t: Tensor, scripts: Sequence[Script]) -> Tensor:
        """latents: (B, C, T, H, W).  t: (B,) in 0..1000."""
        frames = latents.shape[2]
        schedules = self.schedules(scripts, frames)
        return self.presto(latents, t, self.read(scripts, frames), schedules)

    def read(self, scripts: Sequence[Script], frames: int) -> Text:
        """frames: of the latents."""
        text = self._tokens(scripts)
        if self.cfg.mode != "timed":
            return text
        centres = [c for script in scripts for c in _centres(script, frames)]
        codes = sinusoids(torch.tensor(centres), text.tokens.shape[1]).to(text.tokens)
        each = torch.tensor([n for of_sample in text.lengths for n in of_sample])
        tokens = text.tokens + codes.repeat_interleave(each.to(codes.device), 0)
        return Text(tokens, [[sum(of_sample)] for of_sample in text.lengths])

    def _tokens(self, scripts: Sequence[Script]) -> Text:
        if not all(script.texts for script in scripts):
            return self.text([script.captions for script in scripts])
        read = [[script.texts[caption] for caption in script.captions] for script in scripts]
        tokens = torch.cat([one for of_sample in read for one in of_sample])
        device = self.presto.proj_out.weight.device
        return Text(tokens.to(device), [[len(one) for one in of_sample] for of_sample in read])

    def schedules(self, scripts: Sequence[Script], frames: int) -> list[Tensor]:
        """frames: of the latents."""
        cfg = self.cfg
        if cfg.mode == "timed":
            return [torch.ones(1, frames, dtype=torch.float64) for _ in scripts]
        how = (cfg.mode, cfg.rounding, cfg.widen_frames)
        return [_schedule(tuple(script.spans), frames, *how) for script in scripts]

    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        patch, (frames, height, width) = self.presto.cfg.patch_size, latents.shape[2:]
        return frames, height // patch, width // patch

    def training_flops(self, grid: tuple[int, int, int], text_tokens: float) -> float:
        """Of one sample's step: three times the network's forward, recomputation and text encoder
        not counted. text_tokens: of the captions that an average frame hears."""
        return 3 * forward_flops(self.presto.cfg, grid, text_tokens)


def _centres(script: Script, frames: int) -> list[float]:
    """Of each segment, in latent frames."""
    start, scale = script.spans[0][0], frames / script.duration_s
    return [((a + b) / 2 - start) * scale - 0.5 for a, b in script.spans]
