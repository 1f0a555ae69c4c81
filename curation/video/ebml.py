"""Reads what PyAV does not expose of the video tracks of a Matroska or WebM file (RFC 9559)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from curation.video.geometry import Crop

SEGMENT, TRACKS, CLUSTER, TRACK, VIDEO = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xAE, 0xE0
TRACK_TYPE, VIDEO_TYPE = 0x83, 1
CROP = (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # PixelCrop: left, top, right, bottom
CONTENT_ENCODINGS, CONTENT_ENCODING, CONTENT_ENCRYPTION = 0x6D80, 0x6240, 0x5035
MAX_TRACKS_BYTES = 16 << 20  # they may hold fonts and other private data of codecs


Elements = dict[int, tuple[int, int]]  # id -> start and end of the body


def read_crops(path: str) -> list[Crop]:
    """The crop of each video track, in order; empty where no tracks lie before the first frames."""
    with open(path, "rb") as file:
        videos = [_children(file, track.get(VIDEO)) for track in _video_tracks(file)]
        return [Crop(*(_number(file, *v.get(part, (0, 0))) for part in CROP)) for v in videos]


def read_encryption(path: str) -> list[bool]:
    """Whether each video track is encrypted, in order as `read_crops`."""
    with open(path, "rb") as file:
        found = []
        for track in _video_tracks(file):
            encodings = _children(file, track.get(CONTENT_ENCODINGS))
            encoding = _children(file, encodings.get(CONTENT_ENCODING))
            found.append(CONTENT_ENCRYPTION in encoding)
        return found


def _video_tracks(file: BinaryIO) -> list[Elements]:
    """The elements of each video track; none where no tracks lie before the first frames."""
    end = os.fstat(file.fileno()).st_size
    for segment, start, stop in _elements(file, 0, end):
        if segment != SEGMENT:
            continue
        for element, body, body_end in _elements(file, start, stop):
            if element == TRACKS and body_end - body <= MAX_TRACKS_BYTES:
                entries = [e for e in _elements(file, body, body_end) if e[0] == TRACK]
                tracks = [_children(file, entry[1:]) for entry in entries]
                return [
                    t for t in tracks if _number(file, *t.get(TRACK_TYPE, (0, 0))) == VIDEO_TYPE
                ]
            if element == CLUSTER:
                return []
    return []


def _children(file: BinaryIO, span: tuple[int, int] | None) -> Elements:
    return {part: (a, b) for part, a, b in _elements(file, *(span or (0, 0)))}


def _elements(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Id, start and end of the body of each element; one of unknown size reaches to the end."""
    while at < end:
        file.seek(at)
        head = file.read(12)  # an id has at most 4 bytes, a size 8
        id_bytes = _length(head, 0)
        size_bytes = _length(head, id_bytes)
        body = at + id_bytes + size_bytes
        if not id_bytes or not size_bytes or id_bytes > 4 or body > end:
            return
        size = int.from_bytes(head[id_bytes : id_bytes + size_bytes])
        unknown = (1 << 7 * size_bytes) - 1
        size &= unknown
        stop = end if size == unknown else min(end, body + size)
        yield int.from_bytes(head[:id_bytes]), body, stop
        at = stop


def _length(head: bytes, at: int) -> int:
    """How many bytes a number takes that begins with head[at]; 0 of no valid one."""
    return 9 - head[at].bit_length() if at < len(head) and head[at] else 0


def _number(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    return int.from_bytes(file.read(min(end - start, 8)))
