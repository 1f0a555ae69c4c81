"""The system that turns captions into a video: text encoder, network and codec."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from curation.config import ConfigError
from training import sca
from training.clips import Clip
from training.codecs import PixelCodec
from training.config import (
    AllegroConfig,
    BytesConfig,
    PixelConfig,
    RecomputePolicy,
    Size,
    SystemConfig,
    T5Config,
)
from training.model import Presto, Text, activation_bytes, forward_flops
from training.pretrained import AllegroCodec, T5Encoder
from training.text_encoder import ByteEncoder

MAX_SCHEDULE_WARNINGS = 3  # of one process
_warned: set[tuple] = set()

Codec = PixelCodec | AllegroCodec
TextEncoder = ByteEncoder | T5Encoder
_CLASSES: dict[type, Any] = {
    PixelConfig: PixelCodec,
    AllegroConfig: AllegroCodec,
    BytesConfig: ByteEncoder,
    T5Config: T5Encoder,
}


def build_codec(cfg: PixelConfig | AllegroConfig) -> Codec:
    return _CLASSES[type(cfg)](cfg)


def build_text_encoder(cfg: BytesConfig | T5Config) -> TextEncoder:
    return _CLASSES[type(cfg)](cfg)


@lru_cache(maxsize=1024)  # most clips have the same segments
def _schedule(spans: tuple, frames: int, *options: Any) -> Tensor:
    """sca.schedule; warns where a caption has no frame."""
    weights = sca.schedule(spans, frames, *options)
    unused = [str(i + 1) for i, row in enumerate(weights) if not row.any()]
    if unused and len(_warned) < MAX_SCHEDULE_WARNINGS and (spans, frames) not in _warned:
        _warned.add((spans, frames))
        times = ", ".join(f"{a:g} to {b:g}" for a, b in spans)
        print(
            f"warning: no latent frame attends to caption {', '.join(unused)} of {len(weights)}: "
            f"{frames} latent frames, segments from {times} s; use fewer or longer segments",
            file=sys.stderr,
            flush=True,
        )
    return weights


@dataclass(frozen=True)
class Prompt:
    """The captions of a video to be sampled or trained on, with their times."""

    spans: Sequence[tuple[float, float]]  # s
    captions: Sequence[str]  # one per span
    texts: Mapping[str, Tensor] = field(default_factory=dict)  # cached tokens, as in Clip

    @classmethod
    def of(cls, clip: Clip, mode: str) -> Prompt:
        if mode == "single":
            return cls([(0.0, clip.duration_s)], [clip.caption], clip.texts)
        return cls(clip.spans, clip.sub_captions, clip.texts)

    def with_template(self, template: str) -> Prompt:
        """Each caption put in place of the template's {}."""
        captions = [template.replace("{}", text) for text in self.captions]
        texts = self.texts if template in ("{}", "") else {}  # others are not cached
        return replace(self, captions=captions, texts=texts)

    @property
    def duration_s(self) -> float:
        return self.spans[-1][1] - self.spans[0][0]


class System(nn.Module):
    """system(latents, t, prompts) -> the network's prediction, of the latents' shape."""

    def __init__(self, cfg: SystemConfig):
        super().__init__()
        frames, height, width = cfg.latent_size(cfg.size)
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
        self.cfg = cfg
        self.codec = build_codec(cfg.codec)
        self.text = build_text_encoder(cfg.text)
        self.presto = Presto(model)
        self.presto.reset_parameters()

    @property
    def trained_text_encoder(self) -> nn.Module | None:
        return None if self.cfg.text.pretrained else cast(nn.Module, self.text)

    def forward(self, latents: Tensor, t: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """latents: (B, C, T, H, W).  t: (B,) in 0..1000."""
        schedules = self.schedules(prompts, latents.shape[2])
        return self.presto(latents, t, self.encode_text(prompts), schedules)

    def encode_text(self, prompts: Sequence[Prompt]) -> Text:
        if not all(prompt.texts for prompt in prompts):
            return self.text([prompt.captions for prompt in prompts])
        cached = [[prompt.texts[caption] for caption in prompt.captions] for prompt in prompts]
        tokens = torch.cat([part for sample in cached for part in sample])
        weight = self.presto.proj_out.weight  # a GPU's tokens are bf16, also of a cache
        return Text(
            tokens.to(weight.device, weight.dtype),
            [[len(part) for part in sample] for sample in cached],
        )

    def schedules(self, prompts: Sequence[Prompt], frames: int) -> list[Tensor]:
        """Returns for each prompt the weights (segments, latent frames). frames: number of latent
        frames."""
        options = (self.cfg.mode, self.cfg.rounding, self.cfg.widen_frames)
        return [_schedule(tuple(prompt.spans), frames, *options) for prompt in prompts]

    def grid(self, latent_size: Sequence[int]) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        patch, (frames, height, width) = self.presto.cfg.patch_size, latent_size
        return frames, height // patch, width // patch

    def check_memory(
        self, size: Size, batch: int = 1, policy: RecomputePolicy | None = None
    ) -> None:
        """Raises ConfigError where this machine has no memory for the activations of a batch on the
        CPU. policy: None for sampling. On a GPU PyTorch raises where it ends."""
        if self.presto.proj_out.weight.device.type != "cpu":
            return
        grid = self.grid(self.cfg.latent_size(size))
        needed = batch * activation_bytes(self.presto.cfg, grid, policy) / 1e9
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
        if needed > installed:
            keep = "" if policy in (None, "nothing") else ", keep_activations=nothing"
            raise ConfigError(
                f"{batch} x {size.frames} frames of {size.height} x {size.width} px are "
                f"{batch * math.prod(grid):,} tokens and take about {needed:,.0f} GB on a CPU; "
                f"this machine has {installed:.0f} GB: use a smaller size or batch{keep}, or a GPU"
            )

    def training_flops(self, grid: tuple[int, int, int], text_tokens: float) -> float:
        """Returns the FLOPs of one sample's step: three times the network's forward, without
        recomputation and text encoder. text_tokens: that a frame attends to, on average."""
        return 3 * forward_flops(self.presto.cfg, grid, text_tokens)
