"""Mutations that know a container's structure: boxes, EBML elements, TS packets, wrong headers.

Each changes a file's bytes in place. A file of another container is left to benchmarks.mutations.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

Mutation = Callable[[bytearray, random.Random], None]
Span = tuple[int, int, int]  # start of the header, of the body, end

PARENT_BOXES = (
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"),
    *(b"moof", b"traf", b"mvex"),
)
# with counts, offsets, sizes or durations
BOXES_WITH_NUMBERS = (
    *(b"mvhd", b"tkhd", b"mdhd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"co64", b"stss"),
    *(b"elst", b"stsd", b"hdlr", b"trun", b"tfhd", b"sidx"),
)
PARENT_ELEMENTS = (
    *(0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0xA0, 0x1549A966, 0x1C53BB6B, 0xBB),
    *(0x114D9B74, 0x6D80, 0x6240),
)
EXTREMES = (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
TS_PACKET = 188


def boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, Span]]:
    """Kind and place of each box, also of those inside others."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1 and start + 16 <= end:
            size, body = struct.unpack_from(">Q", data, start + 8)[0], start + 16
        stop = min(end, start + size) if size else end
        if stop < body:
            return
        yield bytes(kind), (start, body, stop)
        if kind in PARENT_BOXES:
            yield from boxes(data, body, stop)
        start = stop


def elements(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[int, Span]]:
    """Id and place of each EBML element, also of those inside others."""
    while start < end:
        id_bytes = 9 - data[start].bit_length() if data[start] else 9
        at = start + id_bytes
        if id_bytes > 4 or at >= end or not data[at]:
            return
        size_bytes = 9 - data[at].bit_length()
        body = at + size_bytes
        if body > end:
            return
        unknown = (1 << 7 * size_bytes) - 1
        size = int.from_bytes(data[at:body]) & unknown
        stop = end if size == unknown else min(end, body + size)
        element = int.from_bytes(data[start:at])
        yield element, (start, body, stop)
        if element in PARENT_ELEMENTS:
            yield from elements(data, body, stop)
        start = stop


def is_mp4(data: bytearray) -> bool:
    return data[4:8] in (b"ftyp", b"moov", b"wide", b"mdat", b"free")


def is_matroska(data: bytearray) -> bool:
    return data[:4] == b"\x1a\x45\xdf\xa3"


def is_ts(data: bytearray) -> bool:
    return len(data) > 3 * TS_PACKET and data[0] == data[TS_PACKET] == data[2 * TS_PACKET] == 0x47


def _choose(data: bytearray, rng: random.Random) -> Span | None:
    """A box or element of the container."""
    if is_mp4(data):
        found = [span for _, span in boxes(data, 0, len(data))]
    elif is_matroska(data):
        found = [span for _, span in elements(data, 0, len(data))]
    elif is_ts(data):
        start = rng.randrange(len(data) // TS_PACKET) * TS_PACKET
        found = [(start, start + 4, start + TS_PACKET)]
    else:
        found = []
    return rng.choice(found) if found else None


def lie_about_size(data: bytearray, rng: random.Random) -> None:
    """Of a box or element; of a TS packet, its adaptation field's length."""
    if (span := _choose(data, rng)) is None:
        return
    start, body, stop = span
    if is_mp4(data):
        near = (stop - start + rng.randrange(-9, 10)) & 0xFFFFFFFF
        struct.pack_into(">I", data, start, rng.choice((*EXTREMES, near, 7, 8, len(data) * 2)))
    elif is_matroska(data):
        at = start + (9 - data[start].bit_length())
        marker = 1 << 8 * (body - at) - (body - at)
        value = rng.choice((0, 1, marker - 1, marker - 2, stop - body + 1, len(data)))
        data[at:body] = (marker | value % marker).to_bytes(body - at)
    else:
        data[start + 3] |= 0x20
        data[start + 4] = rng.choice((0, 183, 184, 255))


def lie_in_numbers(data: bytearray, rng: random.Random) -> None:
    """A count, size, offset, duration or dimension in a header becomes an extreme one."""
    if is_mp4(data):
        found = [s for kind, s in boxes(data, 0, len(data)) if kind in BOXES_WITH_NUMBERS]
    elif is_matroska(data):
        found = [s for _, s in elements(data, 0, len(data)) if 0 < s[2] - s[1] <= 8]
    else:
        found = [span] if (span := _choose(data, rng)) else []
    if not found:
        return
    _, body, stop = rng.choice(found)
    if is_matroska(data):
        data[body:stop] = rng.choice((bytes(stop - body), b"\xff" * (stop - body)))
    elif stop - body >= 8:
        at = body + 4 * rng.randrange(min(40, (stop - body) // 4))
        struct.pack_into(">I", data, at, rng.choice((*EXTREMES, rng.getrandbits(32))))


def change_kind(data: bytearray, rng: random.Random) -> None:
    """A box, element or packet gets the kind of another."""
    first, second = _choose(data, rng), _choose(data, rng)
    if first is None or second is None:
        return
    if is_mp4(data):
        data[first[0] + 4 : first[0] + 8] = data[second[0] + 4 : second[0] + 8]
    elif is_matroska(data):
        sizes = [9 - data[s[0]].bit_length() for s in (first, second)]
        if sizes[0] == sizes[1]:
            data[first[0] : first[0] + sizes[0]] = data[second[0] : second[0] + sizes[1]]
    else:  # the PID, and the flags before it
        data[first[0] + 1 : first[0] + 3] = data[second[0] + 1 : second[0] + 3]


def remove_part(data: bytearray, rng: random.Random) -> None:
    if span := _choose(data, rng):
        del data[span[0] : span[2]]


def repeat_part(data: bytearray, rng: random.Random) -> None:
    """Up to 64 times, also inside itself: nesting."""
    if span := _choose(data, rng):
        part = bytes(data[span[0] : span[2]][:100_000])
        data[rng.choice(span) : span[2]] = part * rng.choice((1, 2, 64))


def exchange_parts(data: bytearray, rng: random.Random) -> None:
    first, second = _choose(data, rng), _choose(data, rng)
    if first is None or second is None or first[2] > second[0]:
        return
    a, b = bytes(data[first[0] : first[2]]), bytes(data[second[0] : second[2]])
    data[second[0] : second[2]] = a
    data[first[0] : first[2]] = b


def change_body(data: bytearray, rng: random.Random) -> None:
    """Random bytes in the body of one part alone."""
    if (span := _choose(data, rng)) and span[2] > span[1]:
        for _ in range(rng.choice((1, 4, 16))):
            data[rng.randrange(span[1], span[2])] = rng.randrange(256)


MUTATIONS: tuple[Mutation, ...] = (
    *(lie_about_size, lie_in_numbers, lie_in_numbers, change_kind),
    *(remove_part, repeat_part, exchange_parts, change_body),
)
