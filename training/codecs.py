"""Video to latents and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from training.clips import Size


def drawn(encoded: Tensor, rngs: Sequence[torch.Generator] | None) -> Tensor:
    """Latents (B, C, t, h, w) from what a codec's `encode` gives: they themselves, or mean and
    log-variance (B, 2, C, t, h, w), from which each sample draws with its own generator. Without
    generators: the mean."""
    if encoded.ndim == 5:
        return encoded
    mean, log_variance = encoded.float().unbind(1)
    if rngs is None:
        return mean
    noise = torch.stack(
        [torch.randn(x.shape, generator=r) for x, r in zip(mean, rngs, strict=True)]
    )
    return mean + (log_variance / 2).exp() * noise.to(mean)


@dataclass(frozen=True)
class Pixel:
    """Space-time patches of `frames` x `side` x `side` pixels, values -1..1. No weights, no loss:
    what is decoded is what was encoded."""

    frames: Annotated[int, Ge(1)] = 2
    side: Annotated[int, Ge(1)] = 4  # px

    @property
    def channels(self) -> int:
        return 3 * self.frames * self.side**2

    def latent_size(self, size: Size) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        if size.frames % self.frames or size.height % self.side or size.width % self.side:
            raise ValueError(
                f"{size.frames} frames of {size.height} x {size.width} px: expected multiples of "
                f"the codec's patch, {self.frames} frames of {self.side} x {self.side} px"
            )
        return size.frames // self.frames, size.height // self.side, size.width // self.side

    def encode(self, video: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B, channels, t, h, w) fp32."""
        x = video.float() / 127.5 - 1
        x = x.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))
        x = x.unflatten(1, (-1, self.frames))  # b t ft h fh w fw 3
        return x.permute(0, 2, 4, 6, 7, 1, 3, 5).flatten(1, 4)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, channels, t, h, w) -> (B, T, H, W, 3) uint8."""
        x = latents.unflatten(1, (self.frames, self.side, self.side, 3))  # b ft fh fw 3 t h w
        x = x.permute(0, 5, 1, 6, 2, 7, 3, 4).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
