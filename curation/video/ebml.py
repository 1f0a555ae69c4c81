"""Reads what PyAV does not expose of the video tracks of a Matroska or WebM file (RFC 9559)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from curation.video.geometry import Crop
from curation.video.index import Claim, StreamIndex
from curation.video.source import Source, opened, size_of

SEGMENT, TRACKS, CLUSTER, TRACK, VIDEO = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xAE, 0xE0
TRACK_TYPE, VIDEO_TYPE = 0x83, 1
SIZE = (0xB0, 0xBA)  # PixelWidth, PixelHeight
INFO, TIMESTAMP_SCALE, TIMESTAMP, DURATION = 0x1549A966, 0x2AD7B1, 0xE7, 0x4489
SIMPLE_BLOCK, BLOCK_GROUP, BLOCK = 0xA3, 0xA0, 0xA1
MAX_CLUSTERS, MAX_BLOCKS = 64, 10_000  # that are read to find the end of a short video
CROP = (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # PixelCrop: left, top, right, bottom
CONTENT_ENCODINGS, CONTENT_ENCODING, CONTENT_ENCRYPTION = 0x6D80, 0x6240, 0x5035
MAX_TRACKS_BYTES = 16 << 20  # they may hold fonts and other private data of codecs


Elements = dict[int, tuple[int, int]]  # id -> start and end of the body


def read_crops(path: Source) -> list[Crop]:
    """The crop of each video track, in order; empty where no tracks lie before the first frames."""
    with opened(path) as file:
        videos = [_children(file, track.get(VIDEO)) for track in _video_tracks(file)]
        return [Crop(*(_number(file, *v.get(part, (0, 0))) for part in CROP)) for v in videos]


def read_claims(path: Source) -> list[Claim]:
    """Of each video track, in order; none where the header states no duration."""
    with opened(path) as file:
        duration_s = _duration_s(file)
        if duration_s is None:
            return []
        return [Claim(*_size(file, track), duration_s, None) for track in _video_tracks(file)]


def read_stream_index(path: Source, number: int, with_end: bool) -> StreamIndex:
    """Of a video track, `number` as in `read_crops`.  with_end: also reads where the last block
    starts, from the headers of all clusters and the blocks of the last one."""
    with opened(path) as file:
        tracks = _video_tracks(file)
        size = _size(file, tracks[number]) if number < len(tracks) else (0, 0)
        end_s = _last_block_s(file) if with_end else None
    return StreamIndex(size, None, end_s)


def _size(file: BinaryIO, track: Elements) -> tuple[int, int]:
    video = _children(file, track.get(VIDEO))
    width, height = (_number(file, *video.get(part, (0, 0))) for part in SIZE)
    return width, height


def _duration_s(file: BinaryIO) -> float | None:
    """As stated in front of the first cluster."""
    for segment, start, stop in _elements(file, 0, size_of(file)):
        if segment != SEGMENT:
            continue
        for element, body, end in _elements(file, start, stop):
            if element == CLUSTER:
                return None
            if element == INFO:
                info = _children(file, (body, end))
                scale = _number(file, *info.get(TIMESTAMP_SCALE, (0, 0))) or 1_000_000
                at, end = info.get(DURATION, (0, 0))
                file.seek(at)
                kind = {4: ">f", 8: ">d"}.get(end - at)
                data = file.read(end - at)
                if kind is None or len(data) != end - at:
                    return None
                return struct.unpack(kind, data)[0] * scale / 1e9
    return None


def _last_block_s(file: BinaryIO) -> float | None:
    """None where it can't be found in MAX_CLUSTERS that are in order of time."""
    for segment, start, stop in _elements(file, 0, size_of(file)):
        if segment != SEGMENT:
            continue
        scale, clusters = 1_000_000, []
        for element, body, end in _elements(file, start, stop):
            if element == INFO:
                info = _children(file, (body, end))
                scale = _number(file, *info.get(TIMESTAMP_SCALE, (0, 0))) or scale
            elif element == CLUSTER:
                clusters.append((_cluster_time(file, body, end), body, end))
            if len(clusters) > MAX_CLUSTERS:
                return None
        times = [time for time, *_ in clusters]
        if not times or times != sorted(times):
            return None
        offsets = _block_offsets(file, *clusters[-1][1:])
        return (times[-1] + max(offsets)) * scale / 1e9 if offsets else None
    return None


def _cluster_time(file: BinaryIO, start: int, end: int) -> int:
    for element, *span in _elements(file, start, end):
        if element == TIMESTAMP:
            return _number(file, *span)
    return 0


def _block_offsets(file: BinaryIO, start: int, end: int) -> list[int]:
    """Of a cluster's blocks: their times from the cluster's. Empty where they can't be read."""
    offsets = []
    for element, body, stop in _elements(file, start, end):
        if element == CLUSTER:  # the one before has no size
            return []
        at: int | None = body if element == SIMPLE_BLOCK else None
        if element == BLOCK_GROUP:
            at = _children(file, (body, stop)).get(BLOCK, (None, 0))[0]
        if at is not None:
            file.seek(at)
            head = file.read(12)
            track_bytes = _length(head, 0)
            offset = head[track_bytes : track_bytes + 2]
            offsets.append(int.from_bytes(offset, signed=True))
        if len(offsets) > MAX_BLOCKS:
            return []
    return offsets


def read_encryption(path: Source) -> list[bool]:
    """Whether each video track is encrypted, in order as `read_crops`."""
    with opened(path) as file:
        found = []
        for track in _video_tracks(file):
            encodings = _children(file, track.get(CONTENT_ENCODINGS))
            encoding = _children(file, encodings.get(CONTENT_ENCODING))
            found.append(CONTENT_ENCRYPTION in encoding)
        return found


def _video_tracks(file: BinaryIO) -> list[Elements]:
    """The elements of each video track; none where no tracks lie before the first frames."""
    end = size_of(file)
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
