"""Writes mp4 files of one video track: copied packets, or frames encoded with fixed settings.

Both give the same bytes for the same input: no date, no library version, one thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType
from av.video.reformatter import Interpolation

from curation.atomic import atomic_path
from curation.orientation import Orientation
from curation.stage import OutputError
from curation.video.container import VideoHeader
from curation.video.geometry import Geometry
from curation.video.planes import BT709, FULL_RANGE, LIMITED_RANGE

# Measured on real 720p takes: `veryfast` takes a third of the time of `medium`, at the same size
# and 1 dB less PSNR (47 dB at crf 18: neither an eye nor a VAE notices the difference).
# asm: x264's AVX-512 code gives different bytes from run to run; its AVX2 and SSE code does not.
X264_OPTIONS = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "asm=avx2"}
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


@contextmanager
def output_file(target: Path, durable: bool = False) -> Iterator[FileIO]:
    """A file to write, renamed to `target` at the end. Raises OutputError where writing fails; the
    errors of FFmpeg about a source pass through."""
    try:
        with atomic_path(target, durable) as part, FileIO(part, "w+") as out:
            yield out
    except av.error.PyAVCallbackError as error:  # closing failed because an earlier write did
        raise OutputError(f"can't write {target}: {error.__context__}") from error
    except av.FFmpegError:  # about a source; some of them are OSErrors
        raise
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}") from error


def write_copy(
    stream: av.VideoStream,
    packets: Sequence[av.Packet],
    pts: Sequence[int],
    time_base: Fraction,
    end: int,
    out: BinaryIO,
) -> None:
    """Writes packets, in decoding order, that are shown at `pts`: distinct ticks from 0.

    Packets with pts >= end are stored as reference frames only and are not shown.
    """
    options = {"fflags": "+bitexact", "movie_timescale": str(time_base.denominator)}
    options["strict"] = "unofficial"  # else tags of spherical and stereoscopic video are left out
    with av.open(out, "w", format="mp4", options=options) as mp4:
        track = _add_copied_track(mp4, stream)
        track.time_base = time_base
        # Some containers have no decoding times, so they are computed: the n-th packet gets the
        # n-th smallest pts, less an offset, so that no frame is shown before it is decoded.
        order = sorted(pts)
        durations = {a: b - a for a, b in pairwise([*order, max(end, order[-1] + 1)])}
        offset = max(nth - shown for nth, shown in zip(order, pts, strict=True))
        for packet, shown, nth in zip(packets, pts, order, strict=True):
            packet.stream = track
            packet.time_base = time_base
            packet.pts, packet.dts = shown, nth - offset
            packet.duration = durations[shown]
            mp4.mux(packet)
    _end_presentation(out, end * time_base.numerator)


def _add_copied_track(mp4: av.container.OutputContainer, stream: av.VideoStream) -> av.VideoStream:
    """Adds a track with the source's decoder configuration and, but for AV1, orientation."""
    codec = stream.codec_context
    if codec.codec.canonical_name == "av1":
        # PyAV has no template for AV1: the decoder that it uses is no encoder.
        track: Any = mp4.add_mux_stream("av1", width=codec.width, height=codec.height)
        return track
    track = mp4.add_stream_from_template(stream)
    if codec.name == "hevc":
        track.codec_context.codec_tag = "hvc1"  # the only tag that Apple's players open
    return track


@dataclass(frozen=True)
class EncodeFormat:
    """What decoded frames are encoded as: the picture as shown, in square pixels."""

    geometry: Geometry  # from the decoded to the shown picture
    width: int  # px before it is oriented; frames are scaled to it: a stream's size may change
    height: int
    fps: Fraction  # nominal

    @classmethod
    def from_head(
        cls, head: VideoHeader, fps: Fraction | None = None, cover: tuple[int, int] | None = None
    ) -> EncodeFormat:
        """The video's own format; a larger size is reduced to the smallest that covers `cover`."""
        width, height = head.width, head.height
        scale = max(cover[0] / width, cover[1] / height) if cover else 1.0
        if scale < 1:
            width, height = (round(side * scale / 2) * 2 for side in (width, height))
        elif head.geometry.pixel_aspect != 1:  # it is scaled anyway
            width, height = (side // 2 * 2 for side in (width, height))
        if head.geometry.orientation.swaps_sides:
            width, height = height, width
        fps = fps or Fraction(head.fps).limit_denominator(1001)
        return cls(head.geometry, max(2, width), max(2, height), fps)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height in px; the last row or column of an odd size is cropped (4:2:0)."""
        width, height = self.width // 2 * 2, self.height // 2 * 2
        return (height, width) if self.geometry.orientation.swaps_sides else (width, height)

    def convert(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame as shown, in 8-bit 4:2:0, with its own colour range and matrix (RGB: limited
        BT.709)."""
        is_rgb = frame.format.is_rgb
        full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
        size = (self.width, self.height)
        decoded_size = (frame.width, frame.height)
        is_cropped = self.geometry.cropped_size(*decoded_size) != decoded_size
        if is_cropped or is_rgb or frame.format.name != "yuv420p" or size != decoded_size:
            how: dict[str, Any] = {
                "src_color_range": FULL_RANGE if full or is_rgb else LIMITED_RANGE,
                "dst_color_range": FULL_RANGE if full and not is_rgb else LIMITED_RANGE,
                "dst_colorspace": BT709 if is_rgb else None,
                "interpolation": SCALING,
                "threads": 1,
            }
            if is_cropped:  # with chroma of full size, so that any pixel may be the first
                frame = frame.reformat(*decoded_size, "yuv444p", **how)
                planes = [self.geometry.cut(_plane_pixels(p), *decoded_size) for p in frame.planes]
                frame = av.VideoFrame.from_ndarray(np.stack(planes), "yuv444p")
                how |= {"src_color_range": how["dst_color_range"], "dst_colorspace": None}
            frame = frame.reformat(*size, "yuv420p", **how)
        orientation = self.geometry.orientation
        if orientation == Orientation() and self.shown_size == size:
            return frame
        width, height = self.width // 2, self.height // 2
        luma, *chroma = (_plane_pixels(plane) for plane in frame.planes)
        planes = [luma[: height * 2, : width * 2], *(c[:height, :width] for c in chroma)]
        flat = np.concatenate([orientation.apply(plane).ravel() for plane in planes])
        return av.VideoFrame.from_ndarray(flat.reshape(-1, self.shown_size[0]), "yuv420p")


def write_encoded(
    frames: Iterable[tuple[av.VideoFrame, int, int]],
    time_base: Fraction,
    encode_format: EncodeFormat,
    out: BinaryIO,
) -> None:
    """Encodes as H.264. frames: each with its pts (ascending from 0) and its duration, in ticks."""
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as mp4:
        track = mp4.add_stream("libx264", rate=encode_format.fps, options=X264_OPTIONS)
        encoder = track.codec_context
        encoder.width, encoder.height = encode_format.shown_size
        encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuv420p", time_base, 1
        encoder.flags |= Flags.bitexact
        encoder.sample_aspect_ratio = Fraction(1)
        for frame, pts, duration in frames:
            if not encoder.is_open:
                _tag_colours(encoder, frame)
            picture = encode_format.convert(frame)
            picture.pts, picture.time_base, picture.duration = pts, time_base, duration
            picture.pict_type = PictureType.NONE  # the encoder's choice, not the source's
            mp4.mux(track.encode(picture))
        mp4.mux(track.encode())


def _tag_colours(encoder: av.VideoCodecContext, frame: av.VideoFrame) -> None:
    """Copies the source's colour range, matrix, primaries and transfer function."""
    if frame.format.is_rgb:
        encoder.color_range, encoder.colorspace = LIMITED_RANGE, BT709
    else:
        full = frame.format.name.startswith("yuvj")
        encoder.color_range = FULL_RANGE if full else frame.color_range
        encoder.colorspace = frame.colorspace
    encoder.color_primaries, encoder.color_trc = frame.color_primaries, frame.color_trc


def _plane_pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """(H, W) uint8, without the padding at the end of each line."""
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]


def is_random_access_point(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Whether a decoder that starts at this packet decodes every frame shown after it correctly.

    An H.264 keyframe packet may be only a recovery point (open GOP, intra refresh): later frames
    may refer to earlier ones unless it is an IDR picture. HEVC's IDR, CRA and BLA pictures are
    random access points once their leading pictures are dropped; so are all of VP9 and AV1.
    """
    codec = stream.codec_context.codec.canonical_name
    if not packet.is_keyframe:
        return False
    if codec in ("h264", "hevc"):
        extradata = stream.codec_context.extradata or b""
        headers = [nal[0] for nal in _nal_headers(bytes(packet), extradata, codec) if nal]
        if codec == "h264":
            return any(header & 0x1F == 5 for header in headers)
        return any(16 <= header >> 1 & 0x3F <= 21 for header in headers)
    return True


def _nal_headers(data: bytes, extradata: bytes, codec: str) -> Iterator[bytes]:
    """The first byte of each NAL unit (ISO 14496-15; Annex B where there is no avcC or hvcC)."""
    offset = 4 if codec == "h264" else 21  # of the byte with lengthSizeMinusOne
    if len(extradata) <= offset or extradata[0] != 1:
        for unit in data.split(b"\0\0\1")[1:]:
            yield unit[:1]
        return
    length = (extradata[offset] & 3) + 1
    start = 0
    while start + length < len(data):
        size = int.from_bytes(data[start : start + length])
        yield data[start + length : start + length + 1]
        start += length + size


# ISO 14496-12: offset of the duration in a box of version 0 (32 bits) and of version 1 (64 bits)
DURATION_OFFSETS = {b"mvhd": (16, 24), b"tkhd": (20, 28), b"elst": (8, 8)}


def _end_presentation(file: BinaryIO, ticks: int) -> None:
    """Sets the duration of the edit list, track and movie, in the movie's ticks, so that players
    don't show later frames."""
    for kind, body in list(_boxes(file, 0, os.fstat(file.fileno()).st_size)):
        if kind in DURATION_OFFSETS:
            version = _read_at(file, body, 1)[0]
            file.seek(body + DURATION_OFFSETS[kind][version])
            file.write(struct.pack(">Q" if version else ">I", ticks))


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Type and offset of the body of each box, also of those inside moov, trak and edts."""
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", _read_at(file, start, 8))
        body = start + 8
        if size == 1:
            size, body = struct.unpack(">Q", _read_at(file, body, 8))[0], start + 16
        if kind in (b"moov", b"trak", b"edts"):
            yield from _boxes(file, body, start + size)
        else:
            yield kind, body
        start += size


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
