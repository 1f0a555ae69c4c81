"""The order in which clips are seen: a function of the seed alone.

Every sample of a run has a number, from 0. Sample `n` is place `n % clips` of epoch `n // clips`,
and an epoch is a shuffle of all clips: each comes exactly once. Which worker decodes it, how many
ranks there are and where a run was interrupted change nothing: to resume is to go on at a number.

Where clips are of several sizes, those that are worked on at the same time, the samples of a batch
on all ranks, are of one size. Each size's last batch of an epoch is then filled up with clips of
this size that came already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training.clips import BadData, Clip, Source


@dataclass(frozen=True)
class Batch:
    """Made by the worker: each tensor that comes from another process costs the training one."""

    numbers: list[int]  # of its samples in the run
    clips: list[Clip]  # their frames and latents are below, not here
    video: Tensor  # (B, frames, height, width, 3) uint8
    latents: Tensor | None  # what the codec gave ahead of time, one row per clip

    @classmethod
    def of(cls, numbers: Sequence[int], clips: Sequence[Clip]) -> Batch:
        video = torch.stack([clip.video for clip in clips])
        ahead = [clip.latents for clip in clips if clip.latents is not None]
        told = [replace(clip, video=torch.empty(0), latents=None) for clip in clips]
        return cls(list(numbers), told, video, torch.stack(ahead) if ahead else None)


@dataclass(frozen=True)
class Share:
    """Which part of every micro-batch this process takes: `batch` samples of `ranks * batch`."""

    batch: int
    rank: int = 0
    ranks: int = 1


class Order:
    """The clips of a source in the order in which a run sees them, without end."""

    def __init__(self, source: Source, seed: int, together: int):
        """together: samples that are worked on at the same time."""
        clips = len(source.clip_ids)
        self.groups = np.asarray(getattr(source, "groups", np.zeros(clips)))
        self.seed, self.together = seed, together if len(set(self.groups)) > 1 else 1
        counts = np.unique(self.groups, return_counts=True)[1]
        self.epoch = int((-(-counts // self.together) * self.together).sum())  # samples
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def __getitem__(self, number: int, /) -> int:
        """The index of the clip that is sample `number` of a run."""
        epoch, at = divmod(number, self.epoch)
        return int(self._shuffled(epoch)[at])

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        shuffled = rng.permutation(len(self.groups))
        if self.together == 1:
            return shuffled
        rows = []
        for group in np.unique(self.groups):
            of_group = shuffled[self.groups[shuffled] == group]
            whole = -(-len(of_group) // self.together) * self.together
            rows.append(np.resize(of_group, whole).reshape(-1, self.together))
        return rng.permutation(np.concatenate(rows)).ravel()


def generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that hang on the key (and the kind of device) alone: a sample's noise, say, on
    the seed and its number."""
    value = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(value) >> 1)


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
    def __init__(self, source: Source, order: Order):
        self.source, self.order = source, order

    def __getitem__(self, number: int) -> tuple[int, Clip]:
        return number, self.source[self.order[number]]


def _together(samples: list[tuple[int, Clip]]) -> Batch:
    numbers, clips = zip(*samples, strict=True)
    return Batch.of(numbers, clips)


def plainly(loaded: Iterable[Any]) -> Iterator[Any]:
    """What a DataLoader gives; of a clip that a worker can't read, BadData with its own words and
    without the traceback that PyTorch puts around them."""
    try:
        yield from loaded
    except BadData as error:
        raise BadData(str(error).strip().rpartition("BadData: ")[2]) from error


def stream(
    source: Source, share: Share, seed: int, first: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Batches without end, from sample number `first` of the run. Workers decode two ahead each."""
    if not len(source.clip_ids):
        raise BadData("there is no clip to train on; see the report of `make curate` for why")
    loader = DataLoader(
        _Samples(source, Order(source, seed, share.batch * share.ranks)),
        batch_size=share.batch,
        sampler=_Numbers(first, share),
        num_workers=workers,
        collate_fn=_together,
    )
    return plainly(loader)
