"""A small text encoder, trained along with the network, for runs without T5's weights."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from training.attention import choose_backend, packed_attention
from training.config import BytesConfig
from training.layers import TextLayer
from training.model import Text

END = 256  # the token after the last byte; an empty caption has no other
WORD_ROWS = 4096  # of the table that words are hashed to


class CutCaptions:
    """The captions that are longer than an encoder reads. Warns of the first."""

    def __init__(self, limit: int, unit: str, setting: str):
        self.limit, self.unit, self.setting = limit, unit, setting
        self.captions: set[str] = set()

    def check(self, caption: str, length: int) -> None:
        if length <= self.limit or caption in self.captions:
            return
        self.captions.add(caption)
        if len(self.captions) == 1:
            print(
                f"warning: a caption has {length} {self.unit}, of which {self.limit} are read "
                f"({self.setting}): {caption[:60]!r}; more of them are counted",
                file=sys.stderr,
                flush=True,
            )

    def summary(self) -> str:
        """One line; "" where no caption was cut."""
        count = len(self.captions)
        if not count:
            return ""
        return f"{count} captions are cut off after {self.limit} {self.unit} ({self.setting})"


class ByteEncoder(nn.Module):
    """A transformer over a caption's UTF-8 bytes, whose output has a token per byte and END.

    To each byte's embedding it adds one of the byte's word, a row that a hash of the word selects:
    from bytes alone the network takes several times as long to learn to distinguish captions.
    """

    def __init__(self, cfg: BytesConfig):
        super().__init__()
        self.cfg = cfg
        self.cut = CutCaptions(cfg.max_bytes, "bytes", "system.text.max_bytes")
        self.byte = nn.Embedding(END + 1, cfg.width)
        self.word = nn.Embedding(WORD_ROWS, cfg.width)
        self.position = nn.Embedding(cfg.max_bytes + 1, cfg.width)
        self.layers = nn.ModuleList(TextLayer(cfg.width, cfg.heads) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width)

    def forward(self, captions: Sequence[Sequence[str]]) -> Text:
        """captions: per sample, per segment."""
        for text in chain.from_iterable(captions):
            self.cut.check(text, len(text.encode("utf-8", "replace")))
        read = [[byte_tokens(text, self.cfg.max_bytes) for text in texts] for texts in captions]
        lengths = [[tokens.shape[1] for tokens in sample] for sample in read]
        joined = np.concatenate([tokens for sample in read for tokens in sample], 1)
        values, words, positions = torch.from_numpy(joined).to(self.byte.weight.device)
        ends = np.cumsum([0, *chain.from_iterable(lengths)], dtype=np.int32)
        starts = torch.from_numpy(ends).to(values.device)
        longest = torch.tensor([np.diff(ends).max()] * 2)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            backend = choose_backend("auto", q.device, q.dtype)
            q, k, v = (part.contiguous() for part in (q, k, v))
            return cast(Tensor, packed_attention(q, k, v, starts, starts, longest, backend)[0])

        x = self.byte(values) + self.word(words) + self.position(positions)
        for layer in self.layers:
            x = layer(x, attend)
        return Text(self.norm(x), lengths)


@lru_cache(maxsize=4096)
def byte_tokens(text: str, max_bytes: int) -> np.ndarray:
    """(3, bytes + 1): each byte, the row of its word, and its position. END comes last."""
    found: list[tuple[int, int]] = []
    for word in re.findall(r"\w+|\W", text):
        row = zlib.crc32(word.lower().encode("utf-8", "replace")) % WORD_ROWS
        found += [(byte, row) for byte in word.encode("utf-8", "replace")]
    found = [*found[:max_bytes], (END, 0)]
    return np.array([*zip(*found, strict=True), range(len(found))])
