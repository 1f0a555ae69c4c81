"""Captions to tokens, trained along with the network: for runs that have no text encoder's
weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from training.attention import choose_backend, packed_attention
from training.model import Text

END = 256  # after the last byte; all that an empty caption consists of


@dataclass(frozen=True)
class BytesConfig:
    width: Annotated[int, Ge(1)] = 96
    heads: Annotated[int, Ge(1)] = 4
    layers: Annotated[int, Ge(0)] = 2
    max_bytes: Annotated[int, Ge(1)] = 320  # of a caption; the rest is not read


class Bytes(nn.Module):
    """A caption's UTF-8 bytes through a small transformer: as many tokens as bytes, and an end."""

    def __init__(self, cfg: BytesConfig):
        super().__init__()
        if cfg.width % cfg.heads:
            raise ValueError(f"text.width {cfg.width}: expected a multiple of {cfg.heads} heads")
        self.cfg = cfg
        self.byte = nn.Embedding(END + 1, cfg.width)
        self.position = nn.Embedding(cfg.max_bytes + 1, cfg.width)
        self.layers = nn.ModuleList(_Layer(cfg) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width)

    def forward(self, captions: Sequence[Sequence[str]]) -> Text:
        """Of each sample, of each segment."""
        most = self.cfg.max_bytes
        read = [
            [[*text.encode("utf-8", "replace")[:most], END] for text in texts] for texts in captions
        ]
        lengths = [[len(one) for one in sample] for sample in read]
        flat = [n for sample in lengths for n in sample]
        device = self.byte.weight.device
        values = torch.tensor([b for sample in read for one in sample for b in one], device=device)
        places = torch.tensor([*chain.from_iterable(range(n) for n in flat)], device=device)
        starts = torch.tensor([0, *accumulate(flat)], dtype=torch.int32, device=device)
        x = self.byte(values) + self.position(places)
        for layer in self.layers:
            x = layer(x, starts, max(flat))
        return Text(self.norm(x), lengths)


class _Layer(nn.Module):
    def __init__(self, cfg: BytesConfig):
        super().__init__()
        self.heads = cfg.heads
        self.norms = nn.ModuleList([nn.LayerNorm(cfg.width), nn.LayerNorm(cfg.width)])
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.out = nn.Linear(cfg.width, cfg.width)
        self.up = nn.Linear(cfg.width, 4 * cfg.width)
        self.down = nn.Linear(4 * cfg.width, cfg.width)

    def forward(self, x: Tensor, starts: Tensor, longest: int) -> Tensor:
        """x: (L, width), captions end to end.  starts: where each begins."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        backend = choose_backend("auto", q.device, q.dtype)
        q, k, v = (part.contiguous() for part in (q, k, v))
        heard = packed_attention(q, k, v, starts, starts, longest, longest, backend)[0]
        x = x + self.out(cast(Tensor, heard).flatten(1))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))
