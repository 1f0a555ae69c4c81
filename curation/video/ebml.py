"""Reads the crop of the video tracks of a Matroska or WebM file (RFC 9559), without a decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from curation.video.geometry import Crop

SEGMENT, TRACKS, CLUSTER, TRACK, VIDEO = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xAE, 0xE0
TRACK_TYPE, VIDEO_TYPE = 0x83, 1
CROP = (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # PixelCrop: left, top, right, bottom
MAX_TRACKS_BYTES = 16 << 20  # they may hold fonts and other private data of codecs


def read_crops(path: str) -> list[Crop]:
    """The crop of each video track, in order; empty where no tracks lie before the first frames."""
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        for segment, start, stop in _elements(file, 0, end):
            if segment != SEGMENT:
                continue
            for element, body, body_end in _elements(file, start, stop):
                if element == TRACKS and body_end - body <= MAX_TRACKS_BYTES:
                    return _track_crops(file, body, body_end)
                if element == CLUSTER:
                    return []
    return []


def _track_crops(file: BinaryIO, start: int, end: int) -> list[Crop]:
    crops = []
    for element, body, body_end in _elements(file, start, end):
        if element != TRACK:
            continue
        parts = {part: (a, b) for part, a, b in _elements(file, body, body_end)}
        if TRACK_TYPE in parts and _number(file, *parts[TRACK_TYPE]) == VIDEO_TYPE:
            video = {part: (a, b) for part, a, b in _elements(file, *parts.get(VIDEO, (0, 0)))}
            crops.append(Crop(*(_number(file, *video.get(part, (0, 0))) for part in CROP)))
    return crops


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
