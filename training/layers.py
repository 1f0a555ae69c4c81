"""The layers of Allegro's transformer, under Allegro's parameter names, and a text encoder's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(context, width)
        self.to_v = nn.Linear(context, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.to_k(context)), self.split(self.to_v(context))


class Projection(nn.Module):
    """A linear layer named `proj`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList(
            [Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second = cast(Projection, self.net[0]), self.net[2]
        return second(F.gelu(first.proj(x), approximate="tanh"))


class TwoLayers(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)


class CaptionProjection(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.timestep_embedder = TwoLayers(256, width)


class TimeEmbedding(nn.Module):
    """adaln_single: t (B,) -> embedding (B, D) and the modulations of all blocks (B, 6 D)."""

    def __init__(self, width: int):
        super().__init__()
        self.emb = TimestepEmbedder(width)
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        mlp = self.emb.timestep_embedder
        wave = timestep_sinusoids(t).to(self.linear.weight.dtype)
        embedded = mlp.linear_2(F.silu(mlp.linear_1(wave)))
        return embedded, self.linear(F.silu(embedded))


class PatchEmbedding(nn.Module):
    """Turns patch x patch squares of a frame into tokens."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)


class TextLayer(nn.Module):
    """A layer of the small text encoders, whose attention is the caller's."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """x: (..., L, width).  attend: of q, k and v, (..., L, heads, head_dim) as its result."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        x = x + self.out(attend(q, k, v).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without weights, then scale and shift, in fp32 or wider. Returns x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (F.layer_norm(wide, wide.shape[-1:], eps=1e-6) * (1 + scale) + shift).to(x.dtype)


def timestep_sinusoids(t: Tensor) -> Tensor:
    """(B,) -> (B, 256) fp32: cosines, then sines, of frequencies 1 down to 1/10000 (exclusive)."""
    frequencies = torch.exp(-math.log(10000) / 128 * torch.arange(128, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def rope_table(
    head_dim: int,
    grid: tuple[int, int, int],
    scales: tuple[float, float, float],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines for `rotate`, (tokens, 3, 2, head_dim / 6): axes t, h, w, then the
    two parts of a pair.

    angle = index / interpolation scale * 10000^(-2 i / (head_dim / 3)). With dtype bfloat16 the
    angle is rounded before the cosine, as in Allegro's code, with which its weights were trained:
    up to 0.06 rad off.
    """
    pairs = head_dim // 6
    speed = 1.0 / 10000 ** (torch.arange(pairs, device=device).float() / pairs)
    angles = []
    for axis, (size, scale) in enumerate(zip(grid, scales, strict=True)):
        angle = torch.outer(torch.arange(size, device=device).float() / scale, speed).to(dtype)
        shape = [1, 1, 1, pairs]
        shape[axis] = size
        angles.append(angle.view(shape).expand(*grid, pairs))
    table = torch.stack(angles, 3).flatten(0, 2)
    cos, sin = table.cos(), table.sin()
    return torch.stack([cos, cos], 2), torch.stack([-sin, sin], 2)


def position_table(width: int, grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """(tokens, width) fp32: sinusoids of each token's row, then of its column, in equal parts."""
    share, parts = width // 4 * 2, []
    for axis in (1, 2):
        shape = [1, 1, 1, share]
        shape[axis] = grid[axis]
        indices = torch.arange(grid[axis], device=device)
        parts.append(position_sinusoids(indices, share).view(shape).expand(*grid, -1))
    table = torch.cat(parts, -1).flatten(0, 2)
    return F.pad(table, (0, width - table.shape[1]))


def position_sinusoids(positions: Tensor, width: int) -> Tensor:
    """(N,) -> (N, width) fp32: sines, then cosines, with periods from 2 pi to 200 pi."""
    waves = width // 2
    speed = 100 ** -(torch.arange(waves, device=positions.device) / waves)
    angle = torch.outer(positions.float(), speed)
    return F.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, width % 2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on three axes: each third of a head belongs to one axis, and its halves are
    the two parts of the pairs.  x: (B, N, H, D).

    (a, b) -> (a cos - b sin, b cos + a sin), in a form that compiles to one kernel.
    """
    parts = x.unflatten(-1, (3, 2, -1)).to(torch.promote_types(x.dtype, cos.dtype))
    rotated = parts * cos[:, None] + parts.flip(-2) * sin[:, None]  # the same for all heads
    return rotated.flatten(-3).to(x.dtype)
