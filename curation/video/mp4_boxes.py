"""What a file is, told from its first bytes and its boxes: plain errors without any decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

# Boxes at the top of an MP4 or QuickTime file (ISO 14496-12, QuickTime File Format).
TOP_LEVEL = frozenset(
    b"ftyp styp moov moof mdat free skip wide uuid pnot sidx ssix mfra meta prft emsg udta junk "
    b"pdin imda bloc jP\x20\x20".split(b" ")
) | {b"PICT", b"pict", b"jp2h"}

SIGNATURES = (
    (b"#EXTM3U", "a playlist (m3u8)"),
    (b"ffconcat", "a list of other files (ffconcat)"),
    (b"v=0", "a session description (sdp)"),
    (b"<?xml", "an XML file"),
    (b"<MPD", "a streaming manifest (mpd)"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
)


MAX_INDEX = 256 << 20  # bytes of an index (moov) that is looked into; a day of video has 100 MB


@dataclass(frozen=True)
class Boxes:
    """The top-level boxes of an MP4 file."""

    kinds: tuple[bytes, ...]
    readable: int  # bytes up to the first that belong to no box
    total: int  # bytes of the file

    @property
    def outside(self) -> int:
        return self.total - self.readable


def what_is(path: str) -> str | None:
    """In plain words what the file is instead of a video, None where its bytes don't say."""
    with open(path, "rb") as file:
        head = file.read(4096)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, name in SIGNATURES:
        if start.startswith(signature):
            return name
    if b"\0" in head:
        return None
    try:
        head.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut off at the end is no sign
            return None
    return "text"


def walk(path: str) -> Boxes:
    """Reads the sizes of the top-level boxes, nothing else of them."""
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        found = list(_positions(file))
    readable = found[-1][2] if found else 0
    return Boxes(tuple(kind for kind, _, _ in found), readable, total)


def _positions(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the body of each top-level box, up to bytes that are none."""
    total = os.fstat(file.fileno()).st_size
    at = 0
    while at + 8 <= total:
        file.seek(at)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4]), header[4:8]
        smallest = 8
        if size == 1 and len(header) == 16:
            size, smallest = int.from_bytes(header[8:]), 16
        elif size == 0:  # the last box: up to the end of the file
            size = total - at
        fits = at + size <= total
        if size < smallest or not (kind in TOP_LEVEL or (fits and kind.isalnum())):
            return
        end = min(at + size, total)  # a box that the end of the file cuts: its frames will tell
        yield kind, at + smallest, end
        at = end


def claimed_and_indexed_s(path: str) -> tuple[float, float] | None:
    """The longest duration that an MP4's headers claim, and the longest that its tables hold, s.

    FFmpeg silently believes the tables. None without an index, or where fragments hold the frames.
    """
    index = _read_index(path)
    if index is None or any(kind == b"mvex" for kind, _ in _inside(index)):
        return None
    claimed, indexed, movie_scale = [0.0], [0.0], 0
    for kind, body in _inside(index):
        if kind == b"mvhd":
            movie_scale, duration = _scale_and_duration(body)
            claimed.append(duration / max(1, movie_scale))
    for kind, body in _inside(index):
        if kind == b"trak":
            track = dict(_inside(body, into=(b"mdia", b"minf", b"stbl", b"edts")))
            if b"mdhd" not in track or b"stts" not in track:
                return None
            scale, duration = _scale_and_duration(track[b"mdhd"])
            delay_s = _delay(track.get(b"elst", b"")) / max(1, movie_scale)
            claimed.append(duration / max(1, scale))
            indexed.append(delay_s + _table_sum(track[b"stts"]) / max(1, scale))
    return max(claimed), max(indexed)


def _read_index(path: str) -> bytes | None:
    """The body of the first moov box."""
    with open(path, "rb") as file:
        for kind, start, end in _positions(file):
            if kind == b"moov":
                if end - start > MAX_INDEX:
                    return None
                file.seek(start)
                return file.read(end - start)
    return None


def _inside(body: bytes, into: tuple[bytes, ...] = ()) -> Iterator[tuple[bytes, bytes]]:
    """The boxes in a box; those named in `into` are opened, not given."""
    at = 0
    while at + 8 <= len(body):
        size, kind = int.from_bytes(body[at : at + 4]), body[at + 4 : at + 8]
        if size < 8:
            return
        part = body[at + 8 : at + size]
        if kind in into:
            yield from _inside(part, into)
        else:
            yield kind, part
        at += size


def _scale_and_duration(body: bytes) -> tuple[int, int]:
    """Of mvhd or mdhd, version 0 (32 bit) or 1 (64 bit). Unknown (all ones) counts as 0."""
    wide = body[:1] == b"\1"
    at, size = (20, 8) if wide else (12, 4)
    duration = int.from_bytes(body[at + 4 : at + 4 + size])
    unknown = (1 << 8 * size) - 1
    return int.from_bytes(body[at : at + 4]), 0 if duration == unknown else duration


def _table_sum(body: bytes) -> int:
    """Of a time-to-sample table (stts): pairs of count and duration."""
    pairs = np.frombuffer(body[8 : 8 + (len(body) - 8) // 8 * 8], ">u4").astype(np.float64)
    return int(pairs[0::2] @ pairs[1::2])


def _delay(body: bytes) -> int:
    """Of an edit list (elst): how long nothing is shown at first, in the movie's ticks."""
    wide = body[:1] == b"\1"
    size = 8 if wide else 4
    empty = body[8 + size : 8 + 2 * size] == b"\xff" * size
    return int.from_bytes(body[8 : 8 + size]) if empty else 0
