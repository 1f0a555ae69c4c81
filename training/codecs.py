"""Video to latents and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.config import PixelConfig


def sample_posterior(encoded: Tensor, rngs: Sequence[torch.Generator] | None) -> Tensor:
    """Latents (B, C, t, h, w) from the output of a codec's `encode`: latents, returned as they are,
    or mean and log-variance (B, 2, C, t, h, w). Each sample has its own generator; rngs None:
    returns the mean."""
    if encoded.ndim == 5:
        return encoded
    mean, log_variance = encoded.float().unbind(1)
    if rngs is None:
        return mean
    noise = torch.stack(
        [torch.randn(x.shape, generator=r) for x, r in zip(mean, rngs, strict=True)]
    )
    return mean + (log_variance / 2).exp() * noise.to(mean)


class PixelCodec:
    """Patches of pixels, values -1..1; lossless."""

    def __init__(self, cfg: PixelConfig):
        self.cfg = cfg

    def encode(self, video: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B, channels, t, h, w) fp32."""
        side = self.cfg.side
        x = video.float() / 127.5 - 1
        x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        x = x.unflatten(1, (-1, self.cfg.frames))  # b t ft h fh w fw 3
        return x.permute(0, 2, 4, 6, 7, 1, 3, 5).flatten(1, 4)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, channels, t, h, w) -> (B, T, H, W, 3) uint8."""
        frames, side = self.cfg.frames, self.cfg.side
        x = latents.unflatten(1, (frames, side, side, 3))  # b ft fh fw 3 t h w
        x = x.permute(0, 5, 1, 6, 2, 7, 3, 4).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
