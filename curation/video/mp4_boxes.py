"""Reads the first bytes and the boxes of a file without a decoder: for plain errors, and for what
PyAV does not expose."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from curation.orientation import orientation_of_matrix
from curation.video.geometry import Crop
from curation.video.index import Claim, StreamIndex
from curation.video.source import Source, opened, size_of

# Boxes at the top level of an MP4 or QuickTime file (ISO 14496-12, QuickTime File Format).
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

SAMPLE_ENTRY_BYTES = 78  # the fields of a visual sample entry, before its boxes
MAX_INDEX_BYTES = 256 << 20  # of a moov box that is read; that of a day of video has 100 MB


@dataclass(frozen=True)
class Boxes:
    """The top-level boxes of an MP4 file."""

    kinds: tuple[bytes, ...]
    readable: int  # bytes before the first that belongs to no box
    total: int  # bytes of the file

    @property
    def outside(self) -> int:
        return self.total - self.readable


def identify_other_file(path: Source) -> str | None:
    """Names in plain words a file that is no video. None where its first bytes do not show it."""
    with opened(path) as file:
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
        if error.start < len(head) - 4:  # the last character may be cut off
            return None
    return "text"


def read_top_level(path: Source) -> Boxes:
    """Reads the kinds and sizes of the top-level boxes, not their contents."""
    with opened(path) as file:
        total = size_of(file)
        found = list(top_level_boxes(file))
    readable = found[-1][2] if found else 0
    return Boxes(tuple(kind for kind, _, _ in found), readable, total)


def top_level_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the body of each box, up to bytes that are no box."""
    total = size_of(file)
    at = 0
    while at + 8 <= total:
        file.seek(at)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4]), header[4:8]
        header_size = 8
        if size == 1 and len(header) == 16:
            size, header_size = int.from_bytes(header[8:]), 16
        elif size == 0:  # the last box: up to the end of the file
            size = total - at
        fits = at + size <= total
        if size < header_size or not (kind in TOP_LEVEL or (fits and kind.isalnum())):
            return
        end = min(at + size, total)  # a box may be cut off: its missing frames are found later
        yield kind, at + header_size, end
        at = end


def header_and_index_durations(path: Source) -> tuple[float, float] | None:
    """The longest duration in an MP4's headers, and the longest in its sample tables, s.

    FFmpeg trusts the tables without a warning. None without an index, or if the frames are in
    fragments.
    """
    index = _read_index(path)
    if index is None or any(kind == b"mvex" for kind, _ in child_boxes(index)):
        return None
    header_s, table_s, movie_scale = [0.0], [0.0], 0
    for kind, body in child_boxes(index):
        if kind == b"mvhd":
            movie_scale, duration = _scale_and_duration(body)
            header_s.append(duration / max(1, movie_scale))
    for kind, body in child_boxes(index):
        if kind == b"trak":
            track = dict(child_boxes(body, opened=(b"mdia", b"minf", b"stbl", b"edts")))
            if b"mdhd" not in track or b"stts" not in track:
                return None
            scale, duration = _scale_and_duration(track[b"mdhd"])
            delay_s = _empty_edit(track.get(b"elst", b"")) / max(1, movie_scale)
            header_s.append(duration / max(1, scale))
            table_s.append(delay_s + _sample_table_duration(track[b"stts"]) / max(1, scale))
    return max(header_s), max(table_s)


def read_claims(path: Source) -> list[Claim]:
    """Of each video track whose frames are in one sample table and have one size."""
    durations_s = header_and_index_durations(path)
    if durations_s is None:
        return []
    claims = []
    for kind, body in child_boxes(_read_index(path) or b""):
        if kind != b"trak":
            continue
        track = dict(child_boxes(body, opened=(b"mdia", b"minf", b"stbl")))
        size = _only_size(track.get(b"stsd", b""))
        if b"vmhd" in track and size:
            scale, _ = _scale_and_duration(track[b"mdhd"])
            width, height = reversed(size) if _is_turned(track.get(b"tkhd", b"")) else size
            rates = _frame_rates(track[b"stts"], scale)
            claims.append(Claim(width, height, max(durations_s), rates))
    return claims


def _is_turned(header: bytes) -> bool:
    """Whether the matrix of tkhd, version 0 or 1, turns the picture by 90 degrees."""
    at = 52 if header[:1] == b"\1" else 40
    a, b, _, c, d = struct.unpack(">5i", header[at : at + 20].ljust(20, b"\0"))
    return orientation_of_matrix(a, b, c, d).swaps_sides


def read_stream_index(path: Source, track_id: int) -> StreamIndex | None:
    """Of a track; None where its frames are not all in one sample table."""
    durations_s = header_and_index_durations(path)
    if durations_s is None or b"moof" in read_top_level(path).kinds:
        return None
    for kind, body in child_boxes(_read_index(path) or b""):
        if kind != b"trak":
            continue
        track = dict(child_boxes(body, opened=(b"mdia", b"minf", b"stbl", b"edts")))
        if _track_id(track.get(b"tkhd", b"")) != track_id:
            continue
        scale, _ = _scale_and_duration(track[b"mdhd"])
        return StreamIndex(
            _only_size(track.get(b"stsd", b"")),
            _frame_rates(track[b"stts"], scale),
            max(durations_s) if _num_edits(track.get(b"elst", b"")) <= 1 else None,
        )
    return None


def _only_size(body: bytes) -> tuple[int, int] | None:
    """body: of stsd. None where the track has several sample entries, or one without a size."""
    entries = list(child_boxes(body[8:]))
    if len(entries) != 1 or int.from_bytes(body[4:8]) != 1:
        return None
    entry = entries[0][1]
    return int.from_bytes(entry[24:26]), int.from_bytes(entry[26:28])


def _frame_rates(body: bytes, scale: int) -> tuple[float, float] | None:
    """The lowest and the highest rate between two frames. body: of stts, whose last sample may
    have any duration. None where it has less than two samples or one of no duration."""
    pairs = np.frombuffer(body[8 : 8 + (len(body) - 8) // 8 * 8], ">u4").reshape(-1, 2)
    counts, ticks = pairs[:, 0].astype(np.int64), pairs[:, 1]
    if not len(counts) or not scale:
        return None
    counts[-1] -= 1
    ticks = ticks[counts > 0]
    if not len(ticks) or not ticks.all():
        return None
    return scale / int(ticks.max()), scale / int(ticks.min())


def _num_edits(body: bytes) -> int:
    """How many entries of an edit list (elst) show a part of the media."""
    size = 8 if body[:1] == b"\1" else 4
    entry = 2 * size + 4
    entries = [body[at : at + entry] for at in range(8, len(body) - entry + 1, entry)]
    return sum(e[size : 2 * size] != b"\xff" * size for e in entries)


def read_encrypted_tracks(path: Source) -> set[int]:
    """The ids of the tracks with encrypted samples: those of a protected sample entry (ISO
    14496-12, 8.12; QuickTime's FairPlay)."""
    found = set()
    for kind, body in child_boxes(_read_index(path) or b""):
        if kind != b"trak":
            continue
        track = dict(child_boxes(body, opened=(b"mdia", b"minf", b"stbl")))
        entries = child_boxes(track.get(b"stsd", b"")[8:])
        if any(entry in (b"encv", b"drmi") for entry, _ in entries):
            found.add(_track_id(track.get(b"tkhd", b"")))
    return found


def read_crop(path: Source, track_id: int, width: int, height: int) -> Crop:
    """The pixels outside of a track's clean aperture (clap); a fraction of a pixel is outside.

    width, height: of its decoded picture, px."""
    for kind, body in child_boxes(_read_index(path) or b""):
        if kind != b"trak":
            continue
        track = dict(child_boxes(body, opened=(b"mdia", b"minf", b"stbl")))
        if _track_id(track.get(b"tkhd", b"")) != track_id:
            continue
        for _, entry in child_boxes(track.get(b"stsd", b"")[8:]):
            aperture = dict(child_boxes(entry[SAMPLE_ENTRY_BYTES:])).get(b"clap", b"")
            return _crop_of_aperture(aperture, width, height)
    return Crop()


def _track_id(header: bytes) -> int:
    """Of tkhd, version 0 or 1."""
    at = 20 if header[:1] == b"\1" else 12
    return int.from_bytes(header[at : at + 4])


def _crop_of_aperture(body: bytes, width: int, height: int) -> Crop:
    """body: of clap: width, height, and how far its centre is right of and below the picture's,
    each a fraction of two numbers."""
    if len(body) < 32:
        return Crop()
    numbers = np.frombuffer(body[:32], ">i4").tolist()
    if min(numbers[1::2]) <= 0:
        return Crop()
    wide, high, right, down = (a / b for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    edges = (width - wide) / 2 + right, (height - high) / 2 + down
    left, top = (math.ceil(edge - 1e-6) for edge in edges)
    crop = Crop(left, top, width - left - int(wide), height - top - int(high))
    return crop if min(crop) >= 0 and wide >= 1 and high >= 1 else Crop()


def _read_index(path: Source) -> bytes | None:
    """The body of the first moov box."""
    with opened(path) as file:
        for kind, start, end in top_level_boxes(file):
            if kind == b"moov":
                if end - start > MAX_INDEX_BYTES:
                    return None
                file.seek(start)
                return file.read(end - start)
    return None


def child_boxes(body: bytes, opened: tuple[bytes, ...] = ()) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of the boxes in a box; of the kinds in `opened`, those of their children."""
    at = 0
    while at + 8 <= len(body):
        size, kind = int.from_bytes(body[at : at + 4]), body[at + 4 : at + 8]
        if size < 8:
            return
        child = body[at + 8 : at + size]
        if kind in opened:
            yield from child_boxes(child, opened)
        else:
            yield kind, child
        at += size


def _scale_and_duration(body: bytes) -> tuple[int, int]:
    """Of mvhd or mdhd, version 0 (32 bit) or 1 (64 bit). An unknown duration (all ones) is 0."""
    is_wide = body[:1] == b"\1"
    at, size = (20, 8) if is_wide else (12, 4)
    duration = int.from_bytes(body[at + 4 : at + 4 + size])
    unknown = (1 << 8 * size) - 1
    return int.from_bytes(body[at : at + 4]), 0 if duration == unknown else duration


def _sample_table_duration(body: bytes) -> int:
    """The sum of a time-to-sample table (stts): pairs of count and duration."""
    pairs = np.frombuffer(body[8 : 8 + (len(body) - 8) // 8 * 8], ">u4").astype(np.float64)
    return int(pairs[0::2] @ pairs[1::2])


def _empty_edit(body: bytes) -> int:
    """Length of the empty edit at the start of an edit list (elst), in the movie's ticks."""
    is_wide = body[:1] == b"\1"
    size = 8 if is_wide else 4
    is_empty = body[8 + size : 8 + 2 * size] == b"\xff" * size
    return int.from_bytes(body[8 : 8 + size]) if is_empty else 0
