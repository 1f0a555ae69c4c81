"""The bytes of clips and key frames, by ranges: from shards, or from the source of other clips."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from curation.objects import read_range, retry_cut_off
from curation.urls import InputError, file_system, is_remote, local_path
from pipelines.browse.output import Output

MAX_PART_BYTES = 2 << 20  # of one answer; a player asks for the next part
TYPES = {  # of sources, by suffix; browsers recognize other containers by their bytes
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".mov": "video/quicktime",
    ".avi": "video/x-msvideo",
    ".mpg": "video/mpeg",
    ".ts": "video/mp2t",
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Unplayable(Exception):
    """The clip's bytes can't be read. The message states why, in one line."""


class BadRange(ValueError):
    """The header Range names bytes that the file does not have."""


@dataclass(frozen=True)
class Media:
    """A clip as a file that a browser can play from any byte."""

    size: int
    type: str
    read: Callable[[int, int], bytes]  # offset, size
    start_s: float  # of the clip in the file


def open_clip(output: Output, clip_id: str) -> Media:
    """The mp4 of the shard; of a clip in no shard, its source. Raises QueryError, Unplayable."""
    row = output.row(clip_id)
    if (packed := output.shards.get(clip_id)) is not None:
        shard, offset, size = packed
        shards = output.folder / "shards"

        def read(start: int, count: int) -> bytes:
            return shards.read_part(shard, offset + start, count)

        return Media(size, "video/mp4", read, 0.0)
    video = output.clips["video"][row].as_py()
    start_s = output.clips["start_s"][row].as_py()
    return _open_source(video, start_s)


def _open_source(video: str, start_s: float) -> Media:
    try:
        if is_remote(video):
            fs, path = file_system(video)
        else:
            fs, path = pa.fs.LocalFileSystem(), local_path(video)
        with fs.open_input_file(path) as file:
            size = file.size()
    except (InputError, OSError, ValueError, pa.ArrowException):
        raise Unplayable("its source video can't be read, and it is in no shard") from None

    def read(start: int, count: int) -> bytes:
        try:
            with fs.open_input_file(path) as file:
                data = bytes(retry_cut_off(lambda: read_range(file, start, count)))
        except (OSError, pa.ArrowException):
            data = b""
        if len(data) < count:
            raise Unplayable("its source video can't be read")
        return data

    return Media(size, TYPES.get(Path(path).suffix.lower(), "video/mp4"), read, start_s)


def parse_range(header: str, size: int) -> tuple[int, int]:
    """First and last byte, at most MAX_PART_BYTES of them, of a header with one range. Raises
    BadRange."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        raise BadRange(header)
    if match[1]:
        first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    else:
        first, last = max(0, size - int(match[2])), size - 1
    last = min(last, size - 1)
    if first > last:
        raise BadRange(header)
    return first, min(last, first + MAX_PART_BYTES - 1)
