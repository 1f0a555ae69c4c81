"""The order of the clips in a run, a function of seed, epoch and global batch, and the batches.

The samples of a run are numbered from 0. Sample `n` is clip `n % clips` of epoch `n // clips`; an
epoch is a shuffle of all clips. The order depends neither on the reading processes nor on the
number of ranks, and a run resumes at a sample number.

Where clips have several sizes, the samples of a global batch (those of one step, of all ranks) have
one size. Each size has its own endless sequence of shuffles of its clips, which is cut into global
batches; an epoch has as many of them as the clips of the size fill, rounded so that over the epochs
all clips are shown equally often. So a clip is shown again only after all others of its size.
"""

from __future__ import annotations

import hashlib
import pickle
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from curation.errors import UserError
from training.clips import BadData, Clip, ClipSource
from training.config import Size
from training.streamed_clips import StreamedClips

ORDER_OF_SIZES = 2  # the version of the order of clips of several sizes
Tensors = tuple[Tensor, Tensor | None, Tensor]  # see `as_tensors`


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
    """Which samples of a step this process takes: `size` of `size * ranks`, `accumulate` times."""

    size: int
    rank: int = 0
    ranks: int = 1
    accumulate: int = 1

    @property
    def global_batch(self) -> int:
        return self.size * self.ranks * self.accumulate


class SampleOrder:
    """Sample number -> index of the clip, for any number."""

    def __init__(self, source: ClipSource, seed: int, global_batch: int):
        """global_batch: samples of one step, of all ranks."""
        sizes = np.asarray(getattr(source, "size_indices", np.zeros(len(source.clip_ids))))
        self.by_size = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
        self.seed, self.batch = seed, global_batch if len(self.by_size) > 1 else 1
        # the steps of an epoch, in their mixed order, read two shuffles of a size, rarely three
        self._shuffled = lru_cache(maxsize=3 * len(self.by_size))(self._shuffle)
        self._epoch = lru_cache(maxsize=2)(self._batches_of_epoch)

    def __getitem__(self, number: int, /) -> int:
        if len(self.by_size) == 1:
            epoch, position = divmod(number, len(self.by_size[0]))
            return int(self._shuffled(0, epoch)[position])
        step, position = divmod(number, self.batch)
        epoch = self.epoch_of(step)
        size, batch = self._epoch(epoch)[step - self.steps_before(epoch)]
        shuffle, position = divmod(batch * self.batch + position, len(self.by_size[size]))
        return int(self._shuffled(size, shuffle)[position])

    def steps_before(self, epoch: int) -> int:
        """Global batches of the epochs before this one."""
        return sum(self._batches_before(size, epoch) for size in range(len(self.by_size)))

    def epoch_of(self, step: int) -> int:
        """The epoch of a global batch."""
        clips = sum(map(len, self.by_size))
        epoch = max(0, (step - len(self.by_size)) * self.batch // clips)
        while self.steps_before(epoch + 1) <= step:
            epoch += 1
        return epoch

    def _batches_before(self, size: int, epoch: int) -> int:
        # rounded to the nearest, half up: a size that fills half a batch is in the first epoch
        return (2 * epoch * len(self.by_size[size]) + self.batch) // (2 * self.batch)

    def _batches_of_epoch(self, epoch: int) -> list[tuple[int, int]]:
        """(size, number of the batch in the size's sequence), shuffled."""
        batches = [
            (size, batch)
            for size in range(len(self.by_size))
            for batch in range(
                self._batches_before(size, epoch), self._batches_before(size, epoch + 1)
            )
        ]
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        return [batches[i] for i in rng.permutation(len(batches))]

    def _shuffle(self, size: int, number: int) -> np.ndarray:
        """The clips of a size, in the order of the size's shuffle of this number."""
        key = [self.seed, number] if len(self.by_size) == 1 else [self.seed, number, size]
        return np.random.Generator(np.random.PCG64(key)).permutation(self.by_size[size])


def report_rare_sizes(source: ClipSource, sizes: Sequence[Size], global_batch: int) -> list[str]:
    """A line for each size that has fewer clips than a step has samples."""
    counts = Counter(getattr(source, "size_indices", ()))
    return [
        f"size {size.frames} x {size.height} x {size.width}: {counts[i]} clips, fewer than the "
        f"{global_batch} samples of a step; one epoch in {global_batch / counts[i]:.3g} has such a "
        f"step, which shows each of them {global_batch / counts[i]:.3g} times"
        for i, size in enumerate(sizes)
        if len(counts) > 1 and 0 < counts[i] < global_batch
    ]


def seeded_generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on the key and the kind of device alone. A sample's noise,
    for example, depends on the run's seed and the sample's number."""
    value = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(value) >> 1)


def clip_ids_digest(source: ClipSource) -> str:
    """Identifies the clips and their indices: a run resumes on the clips that it began with."""
    return hashlib.sha256("\n".join(source.clip_ids).encode()).hexdigest()[:16]


class _Samples(Sampler[tuple[int, int]]):
    """Number and clip index of this process's samples, from number `first` on, without end."""

    def __init__(self, order: SampleOrder, first: int, local: LocalBatch):
        self.order, self.first, self.local = order, first, local

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.first + self.local.rank * self.local.size
        while True:
            for number in range(start, start + self.local.size):
                yield number, self.order[number]
            start += self.local.ranks * self.local.size


class _NumberedClips(Dataset[tuple[int, Clip]]):
    def __init__(self, source: ClipSource):
        self.source = source

    def __getitem__(self, sample: tuple[int, int]) -> tuple[int, Clip]:
        number, index = sample
        return number, self.source[index]


def _collate(samples: list[tuple[int, Clip]]) -> Tensors:
    numbers, clips = zip(*samples, strict=True)
    return as_tensors(Batch.of(numbers, clips))


def as_tensors(item: Batch | Clip) -> Tensors:
    """The item as at most three tensors, for a DataLoader's `collate_fn`. Tensors are sent in
    shared memory, so that the message is shorter than PIPE_BUF: a pipe takes it whole or not at
    all. A process that is killed while it writes a longer one leaves a part of it, and the trainer
    waits for the other part for ever."""
    others = pickle.dumps(replace(item, video=torch.empty(0), latents=None))
    return item.video, item.latents, torch.frombuffer(bytearray(others), dtype=torch.uint8)


def _from_tensors(packed: Tensors) -> Any:
    video, latents, others = packed
    return replace(pickle.loads(others.numpy().tobytes()), video=video, latents=latents)


def start_method(source: ClipSource, workers: int) -> str | None:
    """How a DataLoader starts its workers; None: PyTorch's default. The clients of object stores
    have threads, which a forked process lacks: its first request would wait for ever."""
    return "forkserver" if workers and getattr(source, "is_remote", False) else None


def reraise_user_errors(loaded: Iterable[Any]) -> Iterator[Any]:
    """The items of a DataLoader that collates them by `as_tensors`. Where a worker raises a
    UserError, so does this, without the traceback that PyTorch adds to the message. Raises
    PyTorch's RuntimeError where one died."""
    before = signal.getsignal(signal.SIGCHLD)
    items = iter(loaded)
    if threading.current_thread() is threading.main_thread():
        # PyTorch's handler raises when a worker dies, between any two lines, also while an error is
        # printed. Without it the next item raises the same error.
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    try:
        yield from map(_from_tensors, items)
    except UserError as error:
        kind = type(error)
        raise kind(str(error).strip().rpartition(f"{kind.__name__}: ")[2]) from error
    except (ConnectionError, EOFError) as error:  # it died while it sent an item
        raise RuntimeError("DataLoader worker exited unexpectedly.") from error


def stream_batches(
    source: ClipSource, local: LocalBatch, seed: int, first: int = 0, workers: int = 0
) -> Iterator[Batch]:
    """Batches without end, from sample number `first` of the run. workers: processes that read."""
    if isinstance(source, StreamedClips):
        return _with_numbers(_load_stream(source, local, seed, first, workers), local, first)
    if not len(source.clip_ids):
        raise BadData("the source has no clip to train on")
    loader = DataLoader(
        _NumberedClips(source),
        batch_size=local.size,
        sampler=_Samples(SampleOrder(source, seed, local.global_batch), first, local),
        num_workers=workers,
        collate_fn=_collate,
        multiprocessing_context=start_method(source, workers),
    )
    return reraise_user_errors(loader)


class _StreamedBatches(IterableDataset[Batch]):
    """Batches of a process, without the samples' numbers; each has clips of one size."""

    def __init__(self, source: StreamedClips, local: LocalBatch, seed: str):
        self.source, self.local, self.seed = source, local, seed

    def __iter__(self) -> Iterator[Batch]:
        info, local = get_worker_info(), self.local
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reader, readers = local.rank * workers + worker, local.ranks * workers
        by_size: dict[int, list[Clip]] = {}
        for size, clip in self.source.read(reader, readers, self.seed):
            clips = by_size.setdefault(size, [])
            clips.append(clip)
            if len(clips) == local.size:
                yield Batch.of([], by_size.pop(size))


def _load_stream(
    source: StreamedClips, local: LocalBatch, seed: int, first: int, workers: int
) -> Iterator[Batch]:
    workers = min(workers, len(source.urls) // local.ranks)  # each reads shards of its own
    loader = DataLoader(
        _StreamedBatches(source, local, f"{seed} {first}"),
        batch_size=None,
        num_workers=workers,
        collate_fn=as_tensors,  # type: ignore[arg-type]  # gets an item where batch_size is None
        multiprocessing_context=start_method(source, workers),
    )
    return reraise_user_errors(loader)


def _with_numbers(batches: Iterable[Batch], local: LocalBatch, first: int) -> Iterator[Batch]:
    """The batches with the numbers of this process's samples from `first` on."""
    start = first + local.rank * local.size
    for batch in batches:
        yield replace(batch, numbers=list(range(start, start + local.size)))
        start += local.ranks * local.size
