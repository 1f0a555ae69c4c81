"""Clips of WebDataset shards that other tools wrote: an mp4 and a JSON per clip, without a table.

Shards are read from begin to end, so the order is that of a shuffle buffer: it depends on the seed
and on the number of reading processes, and a run can't resume at a sample.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pyarrow as pa
from braceexpand import braceexpand
from webdataset import filters
from webdataset.tariterators import group_by_keys, tar_file_expander

from curation.config import ConfigError
from curation.json_text import parse_object
from curation.objects import check_size, read_range, retry_cut_off
from curation.storage_errors import storage_errors
from curation.urls import file_system, is_remote
from training.clips import Clip, nearest_size, parse_clip
from training.config import Size
from training.frames import BadData, read_shape, sample_frames
from training.sca import segment_starts

BUFFER_BYTES = 8 << 20  # of a shard in an object store; each is a request
SPAN_SLACK_S = 0.1  # by which the last segment may be longer than the mp4
ORDER = (
    "the shards are a stream: the order of the clips depends on data.workers and the number of "
    "processes, and a run that resumes begins its shards again, in another order"
)


class StreamedClips:
    """A source that has its first clip by index, from which samples are made, and all clips in
    endless streams."""

    def __init__(
        self, pattern: str, size: Size, sizes: Sequence[Size] = (), shuffle_clips: int = 0
    ):
        """pattern: a path or URL with `{000..010}` or `{a,b}`. shuffle_clips: of the buffer."""
        try:
            self.urls = list(braceexpand(pattern))
        except ValueError as error:  # unbalanced braces
            raise ConfigError(f"data.webdataset is {pattern!r}: {error}") from None
        self.sizes, self.shuffle_clips = (size, *sizes), shuffle_clips
        self.is_remote = any(map(is_remote, self.urls))
        first = next(_read_samples(self.urls[0]), None)
        if first is None:
            raise BadData(f"shard {self.urls[0]}: no files in it")
        self.first = self._clip_of(first)[1]
        self.clip_ids: Sequence[str] = [self.first.clip_id]

    def __getitem__(self, _index: int, /) -> Clip:
        return self.first

    def read(self, reader: int, readers: int, seed: str) -> Iterator[tuple[int, Clip]]:
        """Clips without end, and the indices of their sizes. Each epoch shuffles all shards and
        divides them among the readers; one with fewer shards than others begins its next epoch."""
        if len(self.urls) < readers:
            raise BadData(
                f"{len(self.urls)} shards of data.webdataset for {readers} processes: each needs "
                "one; write smaller shards"
            )
        for epoch in count():
            shards = random.Random(f"{seed} {epoch}").sample(self.urls, len(self.urls))
            samples = (s for url in shards[reader::readers] for s in _read_samples(url))
            if self.shuffle_clips:
                rng = random.Random(f"{seed} {epoch} {reader}")
                samples = filters.shuffle(self.shuffle_clips, rng=rng)(samples)
            found = False
            for sample in samples:
                found = True
                yield self._clip_of(sample)
            if not found:
                raise BadData(f"shard {shards[reader]}: no files in it")

    def _clip_of(self, sample: dict[str, Any]) -> tuple[int, Clip]:
        """The index of the clip's size, and the clip. BadData names shard and key."""
        key = sample["__key__"]
        try:
            missing = [f".{suffix}" for suffix in ("mp4", "json") if suffix not in sample]
            if missing:
                others = [f".{suffix}" for suffix in sample if not suffix.startswith("__")]
                raise BadData(f"no {' and '.join(missing)}; it has {', '.join(others)}")
            mp4 = sample["mp4"]
            width, height, duration_s = read_shape(mp4)
            metadata = _own_metadata(parse_object(sample["json"]), duration_s)
            index = nearest_size(self.sizes, width, height, duration_s)
            video = sample_frames(mp4, duration_s, 1, self.sizes[index])
            return index, parse_clip(key, metadata, video)
        except (BadData, ValueError, KeyError, TypeError, OverflowError) as error:
            raise BadData(f"shard {sample['__url__']}, key {key}: {error}") from error


def _own_metadata(metadata: dict[str, Any], duration_s: float) -> dict[str, Any]:
    """The JSON as `parse_clip` takes it: `caption`, and `sub_captions` with start_s, end_s and
    text; without these, one segment with the caption. The first and the last segment reach to the
    ends of the video, which training/sca.py divides among the segments."""
    if not isinstance(metadata.get("caption"), str):
        raise BadData(f"its JSON has no text `caption`; its keys: {', '.join(metadata)[:200]}")
    whole = {"start_s": 0.0, "end_s": duration_s, "text": metadata["caption"]}
    parts = metadata.get("sub_captions") or [whole]
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.keys() >= whole.keys() for part in parts
    ):
        raise BadData("its sub_captions are not a list of objects with start_s, end_s and text")
    for part in parts:
        if not 0 <= float(part["start_s"]) < float(part["end_s"]) <= duration_s + SPAN_SLACK_S:
            span = f"{part['start_s']} to {part['end_s']} s"
            raise BadData(f"a sub-caption's span is {span}; the mp4 has {duration_s:.3f} s")
    parts = [dict(part) for part in parts]
    parts[0]["start_s"], parts[-1]["end_s"] = 0.0, duration_s
    spans = [(float(part["start_s"]), float(part["end_s"])) for part in parts]
    segment_starts(spans, 1)  # raises ValueError where they leave a gap or overlap
    return {"caption": metadata["caption"], "duration_s": duration_s, "sub_captions": parts}


def _read_samples(url: str) -> Iterator[dict[str, Any]]:
    """The files of each key of a shard: their bytes by suffix, `__key__` and `__url__`."""
    try:
        with _open(url) as stream:
            yield from group_by_keys(tar_file_expander([{"url": url, "stream": stream}]))
    except FileNotFoundError:
        raise BadData(f"shard {url}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        with storage_errors("read", url):
            raise OSError(_reason(error)) from None
    except (tarfile.TarError, ValueError) as error:
        raise BadData(f"shard {url}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The error's message, without what webdataset adds to its arguments."""
    return getattr(error, "strerror", None) or str(error.args[0]).partition(" @ ")[0]


def _open(url: str) -> io.BufferedReader:
    return io.BufferedReader(_Object(url), BUFFER_BYTES) if is_remote(url) else open(url, "rb")


class _Object(io.RawIOBase):
    """An object of a store, from its start to its end. Each read is a request. Raises CutOff, other
    OSErrors."""

    def __init__(self, url: str) -> None:
        self._fs, self._path = file_system(url)
        self._file = self._fs.open_input_file(self._path)
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = len(buffer)
        data = retry_cut_off(lambda: read_range(self._file, self._at, size))
        if not data:
            check_size(self._fs, self._path, self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
