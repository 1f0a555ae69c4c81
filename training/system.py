"""All that turns captions into a video: codec, text encoder, network, and how they are bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from training import sca
from training.clips import Clip, Size
from training.codecs import Pixel
from training.model import ModelConfig, Presto, Text, forward_flops
from training.text import Bytes, BytesConfig


@dataclass(frozen=True)
class SystemConfig:
    size: Size = field(default_factory=Size)
    codec: Pixel = field(default_factory=Pixel)
    text: BytesConfig = field(default_factory=BytesConfig)
    # channels and text width follow from codec and text, whatever is written here
    model: ModelConfig = field(default_factory=ModelConfig)
    mode: sca.Mode = "overlapped"
    rounding: sca.Rounding = "nearest"


@dataclass(frozen=True)
class Script:
    """What a video is to show, and when."""

    spans: Sequence[tuple[float, float]]  # s
    captions: Sequence[str]  # one per span

    @classmethod
    def of(cls, clip: Clip, mode: sca.Mode) -> Script:
        if mode == "single":
            return cls([(0.0, clip.duration_s)], [clip.caption])
        return cls(clip.spans, clip.sub_captions)

    @property
    def duration_s(self) -> float:
        return self.spans[-1][1] - self.spans[0][0]


class System(nn.Module):
    """system(latents, t, scripts) -> what the objective predicts."""

    def __init__(self, cfg: SystemConfig):
        super().__init__()
        frames, height, width = self.latent_size = cfg.codec.latent_size(cfg.size)
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
        self.text = Bytes(cfg.text)
        self.presto = Presto(model)
        self.presto.reset_parameters()

    def forward(self, latents: Tensor, t: Tensor, scripts: Sequence[Script]) -> Tensor:
        """latents: (B, C, T, H, W).  t: (B,) in 0..1000."""
        return self.presto(latents, t, self.read(scripts), self.schedules(scripts))

    def read(self, scripts: Sequence[Script]) -> Text:
        return self.text([script.captions for script in scripts])

    def schedules(self, scripts: Sequence[Script]) -> list[Tensor]:
        frames, how = self.latent_size[0], (self.cfg.mode, self.cfg.rounding)
        return [sca.schedule(script.spans, frames, *how) for script in scripts]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        patch = self.presto.cfg.patch_size
        return self.latent_size[0], self.latent_size[1] // patch, self.latent_size[2] // patch

    def training_flops(self, text_tokens: float) -> float:
        """Of one sample's step: three times the network's forward, recomputation and text encoder
        not counted. text_tokens: of the captions that an average frame hears."""
        return 3 * forward_flops(self.presto.cfg, self.grid, text_tokens)
