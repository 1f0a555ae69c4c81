"""All that turns captions into a video: codec, text encoder, network, and how they are bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from training import sca
from training.clips import Clip, Size
from training.codecs import Pixel
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
    mode: sca.Mode = "overlapped"
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
        )
        self.cfg, self.codec = cfg, cfg.codec
        self.text = cfg.text if isinstance(cfg.text, T5) else Bytes(cfg.text)
        self.presto = Presto(model)
        self.presto.reset_parameters()

    def forward(self, latents: Tensor, t: Tensor, scripts: Sequence[Script]) -> Tensor:
        """latents: (B, C, T, H, W).  t: (B,) in 0..1000."""
        schedules = self.schedules(scripts, latents.shape[2])
        return self.presto(latents, t, self.read(scripts), schedules)

    def read(self, scripts: Sequence[Script]) -> Text:
        if not all(script.texts for script in scripts):
            return self.text([script.captions for script in scripts])
        read = [[script.texts[caption] for caption in script.captions] for script in scripts]
        tokens = torch.cat([one for of_sample in read for one in of_sample])
        device = self.presto.proj_out.weight.device
        return Text(tokens.to(device), [[len(one) for one in of_sample] for of_sample in read])

    def schedules(self, scripts: Sequence[Script], frames: int) -> list[Tensor]:
        """frames: of the latents."""
        cfg = self.cfg
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
