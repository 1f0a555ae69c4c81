"""The order in which clips are seen: a function of the seed alone.

Every sample of a run has a number, from 0. Sample `n` is place `n % clips` of epoch `n // clips`,
and an epoch is a shuffle of all clips: each comes exactly once. Which worker decodes it, how many
ranks there are and where a run was interrupted change nothing: to resume is to go on at a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training.clips import BadData, Clip, Source


@dataclass(frozen=True)
class DataConfig:
    dataset: str = "out/samples-dataset"  # what `make curate` wrote
    workers: Annotated[int, Ge(0)] = 2  # processes that decode ahead; 0: in the training process
    memory_mb: Annotated[float, Ge(0)] = 0.0  # of decoded clips that a worker keeps


@dataclass(frozen=True)
class Batch:
    numbers: list[int]  # of its samples in the run
    clips: list[Clip]

    @property
    def video(self) -> Tensor:
        """(B, frames, height, width, 3) uint8."""
        return torch.stack([clip.video for clip in self.clips])


@dataclass(frozen=True)
class Share:
    """Which part of every micro-batch this process takes: `batch` samples of `ranks * batch`."""

    batch: int
    rank: int = 0
    ranks: int = 1


def place(number: int, clips: int, seed: int) -> int:
    """The index of the clip that is sample `number` of a run."""
    epoch, at = divmod(number, clips)
    return int(_shuffle(clips, seed, epoch)[at])


@lru_cache(maxsize=2)
def _shuffle(clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(clips)


def generator(*key: object) -> torch.Generator:
    """Random numbers that hang on the key alone: a sample's noise, say, on the seed and its
    number."""
    value = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(value) >> 1)


def fingerprint(source: Source) -> str:
    """Which clips, in which order of index: a run goes on only on the clips that it began with."""
    return hashlib.sha256("\n".join(source.clip_ids).encode()).hexdigest()[:16]


class _Numbers(Sampler[int]):
    """The numbers of this process's samples, from `first` on and without end."""

    def __init__(self, first: int, share: Share):
        self.first, self.share = first, share

    def __iter__(self) -> Iterator[int]:
        start = self.first + self.share.rank * self.share.batch
        while True:
            yield from range(start, start + self.share.batch)
            start += self.share.ranks * self.share.batch


class _Samples(Dataset[tuple[int, Clip]]):
    def __init__(self, source: Source, seed: int):
        self.source, self.seed = source, seed

    def __getitem__(self, number: int) -> tuple[int, Clip]:
        return number, self.source[place(number, len(self.source.clip_ids), self.seed)]


def _together(samples: list[tuple[int, Clip]]) -> Batch:
    numbers, clips = zip(*samples, strict=True)
    return Batch(list(numbers), list(clips))


def stream(
    source: Source, share: Share, seed: int, first: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Batches without end, from sample number `first` of the run. Workers decode two ahead each."""
    if not len(source.clip_ids):
        raise BadData("there is no clip to train on; see the report of `make curate` for why")
    loader = DataLoader(
        _Samples(source, seed),
        batch_size=share.batch,
        sampler=_Numbers(first, share),
        num_workers=workers,
        collate_fn=_together,
    )
    return iter(loader)
