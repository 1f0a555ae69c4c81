"""Captions to tokens, trained along with the network: for runs that have no text encoder's
weights."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attention import choose_backend, packed_attention
from training.config import BytesConfig
from training.model import Text

END = 256  # after the last byte; all that an empty caption consists of
WORDS = 4096  # rows that words share


class ByteEncoder(nn.Module):
    """A caption's UTF-8 bytes through a small transformer: as many tokens as bytes, and an end.

    Each byte also carries its whole word (a hash of it picks a row): a network that has to learn to
    read first takes several times as long to tell captions apart.
    """

    def __init__(self, cfg: BytesConfig):
        super().__init__()
        self.cfg = cfg
        self.byte = nn.Embedding(END + 1, cfg.width)
        self.word = nn.Embedding(WORDS, cfg.width)
        self.position = nn.Embedding(cfg.max_bytes + 1, cfg.width)
        self.layers = nn.ModuleList(_Layer(cfg) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width)

    def forward(self, captions: Sequence[Sequence[str]]) -> Text:
        """captions: of each sample, of each segment."""
        read = [[spelled(text, self.cfg.max_bytes) for text in texts] for texts in captions]
        lengths = [[one.shape[1] for one in sample] for sample in read]
        tokens = np.concatenate([one for sample in read for one in sample], 1)
        values, words, places = torch.from_numpy(tokens).to(self.byte.weight.device)
        ends = np.cumsum([0, *chain.from_iterable(lengths)], dtype=np.int32)
        starts, longest = (
            torch.from_numpy(ends).to(values.device),
            torch.tensor([np.diff(ends).max()] * 2),
        )
        x = self.byte(values) + self.word(words) + self.position(places)
        for layer in self.layers:
            x = layer(x, starts, longest)
        return Text(self.norm(x), lengths)


@lru_cache(maxsize=4096)
def spelled(text: str, most: int) -> np.ndarray:
    """(3, bytes + 1): each byte, the row of its word, and its place; at most `most` bytes, and the
    end."""
    found: list[tuple[int, int]] = []
    for word in re.findall(r"\w+|\W", text):
        row = zlib.crc32(word.lower().encode("utf-8", "replace")) % WORDS
        found += [(byte, row) for byte in word.encode("utf-8", "replace")]
    found = [*found[:most], (END, 0)]
    return np.array([*zip(*found, strict=True), range(len(found))])


class _Layer(nn.Module):
    def __init__(self, cfg: BytesConfig):
        super().__init__()
        self.heads = cfg.heads
        self.norms = nn.ModuleList([nn.LayerNorm(cfg.width), nn.LayerNorm(cfg.width)])
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.out = nn.Linear(cfg.width, cfg.width)
        self.up = nn.Linear(cfg.width, 4 * cfg.width)
        self.down = nn.Linear(4 * cfg.width, cfg.width)

    def forward(self, x: Tensor, starts: Tensor, longest: Tensor) -> Tensor:
        """x: (L, width), captions end to end.  starts: where each begins."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        backend = choose_backend("auto", q.device, q.dtype)
        q, k, v = (part.contiguous() for part in (q, k, v))
        heard = packed_attention(q, k, v, starts, starts, longest, backend)[0]
        x = x + self.out(cast(Tensor, heard).flatten(1))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))
