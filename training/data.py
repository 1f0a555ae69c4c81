"""The order of the clips in a run, a function of the seed alone, and the batches.

The samples of a run are numbered from 0. Sample `n` is clip `n % clips` of epoch `n // clips`; an
epoch is a shuffle of all clips. The order depends neither on the reading processes nor on the
number of ranks, and a run resumes at a sample number.

Where clips have several sizes, the samples of a global batch (that of all ranks) have one size. In
each epoch the last batch of a size is filled up with clips of that size from the same epoch.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training.clips import BadData, Clip, ClipSource


@dataclass(frozen=True)
class Batch:
    """Collated in the reading process: receiving many small tensors would take the trainer time."""

    numbers: list[int]  # of its samples in the run
    clips: list[Clip]  # without frames and latents
    video: Tensor  # (B, frames, height, width, 3) uint8
    latents: Tensor | None  # (B, …) from the latent cache

    @classmethod
    def of(cls, numbers: Sequence[int], clips: Sequence[Clip]) -> Batch:
        video = torch.stack([clip.video for clip in clips])
        latents = [clip.latents for clip in clips if clip.latents is not None]
        captions = [replace(clip, video=torch.empty(0), latents=None) for clip in clips]
        return cls(list(numbers), captions, video, torch.stack(latents) if latents else None)


@dataclass(frozen=True)
class LocalBatch:
    """Which samples of each global batch this process takes: `size` of `size * ranks`."""

    size: int
    rank: int = 0
    ranks: int = 1


class SampleOrder:
    """Sample number -> index of the clip, for any number."""

    def __init__(self, source: ClipSource, seed: int, global_batch: int):
        """global_batch: samples that are processed at the same time, on all ranks."""
        clips = len(source.clip_ids)
        self.sizes = np.asarray(getattr(source, "size_indices", np.zeros(clips)))
        self.seed, self.batch = seed, global_batch if len(set(self.sizes)) > 1 else 1
        counts = np.unique(self.sizes, return_counts=True)[1]
        self.epoch_length = int((-(-counts // self.batch) * self.batch).sum())  # samples
        self._shuffled = lru_cache(maxsize=2)(self._shuffle)

    def __getitem__(self, number: int, /) -> int:
        epoch, position = divmod(number, self.epoch_length)
        return int(self._shuffled(epoch)[position])

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        shuffled = rng.permutation(len(self.sizes))
        if self.batch == 1:
            return shuffled
        batches = []
        for size in np.unique(self.sizes):
            of_size = shuffled[self.sizes[shuffled] == size]
            length = -(-len(of_size) // self.batch) * self.batch
            batches.append(np.resize(of_size, length).reshape(-1, self.batch))
        return rng.permutation(np.concatenate(batches)).ravel()


def seeded_generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on the key and the kind of device alone. A sample's noise,
    for example, depends on the run's seed and the sample's number."""
    value = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(value) >> 1)


def clip_ids_digest(source: ClipSource) -> str:
    """Identifies the clips and their indices: a run resumes on the clips that it began with."""
    return hashlib.sha256("\n".join(source.clip_ids).encode()).hexdigest()[:16]


class _Numbers(Sampler[int]):
    """The numbers of this process's samples, from `first` on, without end."""

    def __init__(self, first: int, local: LocalBatch):
        self.first, self.local = first, local

    def __iter__(self) -> Iterator[int]:
        start = self.first + self.local.rank * self.local.size
        while True:
            yield from range(start, start + self.local.size)
            start += self.local.ranks * self.local.size


class _Samples(Dataset[tuple[int, Clip]]):
    def __init__(self, source: ClipSource, order: SampleOrder):
        self.source, self.order = source, order

    def __getitem__(self, number: int) -> tuple[int, Clip]:
        return number, self.source[self.order[number]]


def _collate(samples: list[tuple[int, Clip]]) -> Batch:
    numbers, clips = zip(*samples, strict=True)
    return Batch.of(numbers, clips)


def reraise_bad_data(loaded: Iterable[Any]) -> Iterator[Any]:
    """The items of a DataLoader. Where a worker raises BadData, so does this, without the traceback
    that PyTorch adds to the message."""
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loaded)
    if threading.current_thread() is threading.main_thread():
        # PyTorch's handler raises when a worker dies, between any two lines, also while an error is
        # printed. Without it the next item raises the same error.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    try:
        yield from items
    except BadData as error:
        raise BadData(str(error).strip().rpartition("BadData: ")[2]) from error


def stream_batches(
    source: ClipSource, local: LocalBatch, seed: int, first: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Batches without end, from sample number `first` of the run. workers: processes that read."""
    if not len(source.clip_ids):
        raise BadData("there is no clip to train on; see the report of `make curate` for why")
    loader = DataLoader(
        _Samples(source, SampleOrder(source, seed, local.size * local.ranks)),
        batch_size=local.size,
        sampler=_Numbers(first, local),
        num_workers=workers,
        collate_fn=_collate,
    )
    return reraise_bad_data(loader)
