"""What a file states of how its pictures are shown, some of it only in the container.

A stream copy keeps what the codec's own data state. The muxer carries over a part of what only the
container states; the other boxes are added here, as are those of an encode: PyAV gives an encoder
no side data.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av

from curation.orientation import Orientation, read_orientation
from curation.video.container import DEFAULT_LIMITS, set_up_decoder
from curation.video.geometry import Crop, Geometry
from curation.video.mp4_boxes import SAMPLE_ENTRY_BYTES, child_boxes, top_level_boxes
from curation.video.planes import FULL_RANGE

# Side data of a frame that may come from the container and change how it is shown.
SIDE_DATA = (
    *("SPHERICAL", "STEREO3D", "ICC_PROFILE", "AMBIENT_VIEWING_ENVIRONMENT"),
    *("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"),
)
STEREO_MODES = {1: 2, 2: 1}  # of `st3d`, by FFmpeg's number: side by side, top and bottom


class DisplayTags(NamedTuple):
    orientation: Orientation
    pixel_aspect: Fraction  # width of a decoded pixel over its height
    primaries: int  # these are the numbers of ISO 23091-2, which FFmpeg uses too
    transfer: int
    matrix: int
    is_full_range: bool
    other: dict[str, bytes]  # by the names of SIDE_DATA


def read_display_tags(stream: av.VideoStream, frame: av.VideoFrame) -> DisplayTags:
    """frame: a decoded one of the stream."""
    all_side_data: Any = frame.side_data  # PyAV's types take it for a mapping
    side_data = {data.type.name: bytes(data) for data in list(all_side_data)}
    return DisplayTags(
        read_orientation(frame),
        stream.sample_aspect_ratio or Fraction(1),
        frame.color_primaries,
        frame.color_trc,
        frame.colorspace,
        frame.color_range == FULL_RANGE,
        {name: side_data[name] for name in SIDE_DATA if name in side_data},
    )


def carry_over(tags: DisplayTags, out: BinaryIO) -> bool:
    """Adds to a copy what its muxer left out. Returns whether it then has all tags."""
    if _read_tags(out) == tags:
        return True
    aspect = struct.pack(">II", tags.pixel_aspect.numerator, tags.pixel_aspect.denominator)
    colours = struct.pack(
        ">4sHHHB", b"nclx", tags.primaries, tags.transfer, tags.matrix, tags.is_full_range << 7
    )
    _set_sample_entry_boxes(out, {b"pasp": aspect, b"colr": colours})
    return _read_tags(out) == tags


def carry_over_to_encode(
    tags: DisplayTags, geometry: Geometry, is_tone_mapped: bool, out: BinaryIO
) -> None:
    """Adds to an encoded mp4 the levels of an HDR master, and how spherical and stereoscopic
    pictures are stored. That is no longer so in cropped, turned or mirrored pictures."""
    new = {} if is_tone_mapped else _hdr_boxes(tags.other)
    if geometry.crop == Crop() and geometry.orientation == Orientation():
        new |= _packing_boxes(tags.other)
    if new:
        _set_sample_entry_boxes(out, new)


def _hdr_boxes(side_data: dict[str, bytes]) -> dict[bytes, bytes]:
    """`mdcv` and `clli` of ISO 14496-12, from FFmpeg's structs."""
    boxes = {}
    master = side_data.get("MASTERING_DISPLAY_METADATA", b"")
    if len(master) == 88 and struct.unpack("22i", master)[20:] == (1, 1):  # it has both parts
        numbers = struct.unpack("22i", master)
        rationals = [n / max(d, 1) for n, d in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
        red, green, blue, white = (rationals[i : i + 2] for i in (0, 2, 4, 6))
        places = [round(50_000 * c) for c in (*green, *blue, *red, *white)]
        lowest, highest = (round(10_000 * nits) for nits in rationals[8:])
        with suppress(struct.error):  # a number is too large for its field
            boxes[b"mdcv"] = struct.pack(">8H2I", *places, highest, lowest)
    if len(light := side_data.get("CONTENT_LIGHT_LEVEL", b"")) == 8:
        with suppress(struct.error):
            boxes[b"clli"] = struct.pack(">2H", *struct.unpack("2I", light))
    return boxes


def _packing_boxes(side_data: dict[str, bytes]) -> dict[bytes, bytes]:
    """`st3d` and `sv3d` of Google's Spherical Video V2, from the beginnings of FFmpeg's structs."""
    boxes = {}
    if len(stereo := side_data.get("STEREO3D", b"")) >= 8:
        packing, flags = struct.unpack_from("2i", stereo)
        if packing in STEREO_MODES and not flags:
            boxes[b"st3d"] = bytes([0, 0, 0, 0, STEREO_MODES[packing]])
    if len(sphere := side_data.get("SPHERICAL", b"")) >= 36:
        kind, yaw, pitch, roll, left, top, right, bottom, padding = struct.unpack_from(
            "4i5I", sphere
        )
        pose = _box(b"prhd", struct.pack(">4i", 0, yaw, pitch, roll))
        projections = {
            0: _box(b"equi", bytes(20)),
            1: _box(b"cbmp", struct.pack(">3I", 0, 0, padding)),
            2: _box(b"equi", struct.pack(">5I", 0, top, bottom, left, right)),
        }
        if kind in projections:
            body = _box(b"svhd", bytes(5)) + _box(b"proj", pose + projections[kind])
            boxes[b"sv3d"] = body
    return boxes


def _read_tags(mp4_file: BinaryIO) -> DisplayTags | None:
    """Of the first frame; None where it can't be decoded."""
    mp4_file.seek(0)
    with av.open(mp4_file, "r", format="mp4") as mp4:
        stream = mp4.streams.video[0]
        set_up_decoder(stream, DEFAULT_LIMITS)
        first = next(mp4.decode(stream), None)
        return None if first is None else read_display_tags(stream, first)


def _set_sample_entry_boxes(file: BinaryIO, new: dict[bytes, bytes]) -> None:
    """new: bodies by type. The index (moov) lies last in the file, so that no frame moves."""
    *_, (kind, start, end) = top_level_boxes(file)
    if kind != b"moov" or end != os.fstat(file.fileno()).st_size:
        return
    file.seek(start)
    index = _with_boxes(file.read(end - start), new)
    file.seek(start - 8)
    file.write(_box(b"moov", index))


def _with_boxes(parent: bytes, new: dict[bytes, bytes]) -> bytes:
    """The body of a box in which the sample entries have these boxes."""
    boxes = []
    for kind, body in child_boxes(parent):
        if kind in (b"trak", b"mdia", b"minf", b"stbl"):
            body = _with_boxes(body, new)
        elif kind == b"stsd":
            entries = [_box(codec, _entry(entry, new)) for codec, entry in child_boxes(body[8:])]
            body = body[:8] + b"".join(entries)
        boxes.append(_box(kind, body))
    return b"".join(boxes)


def _entry(entry: bytes, new: dict[bytes, bytes]) -> bytes:
    boxes = dict(child_boxes(entry[SAMPLE_ENTRY_BYTES:])) | new
    fields = entry[:SAMPLE_ENTRY_BYTES]
    return fields + b"".join(_box(kind, body) for kind, body in boxes.items())


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body
