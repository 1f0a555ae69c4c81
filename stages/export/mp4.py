"""Writes mp4 files of one video track: packets as they are, or frames encoded with fixed settings.

Both give the same bytes for the same input: no date, no library version, one thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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

from curation.stage import OutputError
from curation.video.container import VideoHead

# Measured on real 720p takes: `veryfast` costs a third of `medium`, at the same size and 1 dB less
# PSNR (47 dB at crf 18, far beyond what an eye or a VAE can tell).
# asm: x264's AVX-512 code gives other bytes from run to run; AVX2's are always the same, and SSE's.
X264 = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "asm=avx2"}
LIMITED, FULL = 1, 2  # colour ranges, as ffmpeg counts them
BT709 = SWS_BT709 = 1  # a colour matrix, in the file's count and in swscale's
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


@contextmanager
def whole_file(target: Path, durable: bool = False) -> Iterator[FileIO]:
    """A file to write that gets its name when it is whole. Its own OSErrors become OutputError."""
    beside = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileIO(beside, "w+") as out:
            yield out
            if durable:
                os.fsync(out.fileno())
        os.replace(beside, target)
    except av.error.PyAVCallbackError as error:  # closing failed because writing did before
        raise OutputError(f"can't write {target}: {error.__context__}") from error
    except av.FFmpegError:  # of a source, though some are OSErrors too
        raise
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()


def write_copy(
    stream: av.VideoStream,
    packets: Sequence[av.Packet],
    pts: Sequence[int],
    time_base: Fraction,
    end: int,
    out: BinaryIO,
) -> None:
    """Writes packets, in order of decoding, to be shown at `pts`: ticks from 0, each once.

    Those with pts >= end are there for others to refer to and are not shown.
    """
    options = {"fflags": "+bitexact", "movie_timescale": str(time_base.denominator)}
    with av.open(out, "w", format="mp4", options=options) as mp4:
        track = _track_like(mp4, stream)
        track.time_base = time_base
        # Times of decoding are made anew, since some containers have none: the n-th smallest pts,
        # moved ahead far enough that no frame is shown before it is decoded.
        order = sorted(pts)
        lasts = {a: b - a for a, b in pairwise([*order, max(end, order[-1] + 1)])}
        ahead = max(rank - shown for rank, shown in zip(order, pts, strict=True))
        for packet, shown, rank in zip(packets, pts, order, strict=True):
            packet.stream = track
            packet.time_base = time_base
            packet.pts, packet.dts = shown, rank - ahead
            packet.duration = lasts[shown]
            mp4.mux(packet)
    _show_until(out, end * time_base.numerator)


def _track_like(mp4: av.container.OutputContainer, stream: av.VideoStream) -> av.VideoStream:
    """With the decoder's configuration, the rotation and the pixels' aspect of the source."""
    codec = stream.codec_context
    if (
        codec.codec.canonical_name == "av1"
    ):  # PyAV finds no template, for its decoder doesn't encode
        track: Any = mp4.add_mux_stream("av1", width=codec.width, height=codec.height)
        return track
    track = mp4.add_stream_from_template(stream)
    if codec.name == "hevc":
        track.codec_context.codec_tag = "hvc1"  # the only one that Apple's players open
    return track


@dataclass(frozen=True)
class Look:
    """How decoded frames become the pictures to encode."""

    stored_width: (
        int  # px, that every frame is brought to: a stream's size may change in the middle
    )
    stored_height: int
    rotation: int  # degrees clockwise that the stored picture is turned by for showing
    aspect: Fraction  # width over height of a pixel as shown
    rate: Fraction  # frames per second, nominal

    @classmethod
    def of(
        cls, head: VideoHead, rate: Fraction | None = None, cover: tuple[int, int] | None = None
    ) -> Look:
        """A video's own look; scaled down, never up, to the smallest size that covers `cover`."""
        width, height = head.width, head.height
        scale = max(cover[0] / width, cover[1] / height) if cover else 1.0
        if scale < 1:
            width, height = (round(side * scale / 2) * 2 for side in (width, height))
        if head.rotation in (90, 270):
            width, height = height, width
        return cls(
            width,
            height,
            head.rotation,
            Fraction(head.sample_aspect).limit_denominator(1000),
            rate or Fraction(head.fps).limit_denominator(1001),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown, px; 4:2:0 has no odd ones, so the last row or column goes."""
        width, height = self.stored_width // 2 * 2, self.stored_height // 2 * 2
        return (height, width) if self.rotation in (90, 270) else (width, height)

    def picture(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Upright, 8-bit 4:2:0, in the frame's own range and matrix (of RGB: BT.709, limited)."""
        is_rgb = frame.format.is_rgb
        full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
        if is_rgb or frame.format.name != "yuv420p" or self._stored != (frame.width, frame.height):
            frame = frame.reformat(
                *self._stored,
                "yuv420p",
                dst_colorspace=SWS_BT709 if is_rgb else None,
                src_color_range=FULL if full or is_rgb else LIMITED,
                dst_color_range=FULL if full and not is_rgb else LIMITED,
                interpolation=SCALING,
                threads=1,
            )
        if self.rotation == 0 and self.size == (frame.width, frame.height):
            return frame
        turns = -self.rotation // 90  # numpy counts counter-clockwise
        width, height = self.stored_width // 2, self.stored_height // 2
        luma, *chroma = (_pixels(plane) for plane in frame.planes)
        planes = [luma[: height * 2, : width * 2], *(c[:height, :width] for c in chroma)]
        flat = np.concatenate([np.rot90(plane, turns).ravel() for plane in planes])
        return av.VideoFrame.from_ndarray(flat.reshape(-1, self.size[0]), "yuv420p")

    @property
    def _stored(self) -> tuple[int, int]:
        return self.stored_width, self.stored_height


def write_encoded(
    frames: Iterable[tuple[av.VideoFrame, int, int]],
    time_base: Fraction,
    look: Look,
    out: BinaryIO,
) -> None:
    """Encodes frames, each with its pts (growing, from 0) and duration in ticks, as H.264."""
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as mp4:
        track = mp4.add_stream("libx264", rate=look.rate, options=X264)
        encoder = track.codec_context
        encoder.width, encoder.height = look.size
        encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuv420p", time_base, 1
        encoder.flags |= Flags.bitexact
        encoder.sample_aspect_ratio = look.aspect
        for frame, pts, duration in frames:
            if not encoder.is_open:
                _tag_colours(encoder, frame)
            picture = look.picture(frame)
            picture.pts, picture.time_base, picture.duration = pts, time_base, duration
            picture.pict_type = PictureType.NONE  # the encoder's choice, not the source's
            mp4.mux(track.encode(picture))
        mp4.mux(track.encode())


def _tag_colours(encoder: av.VideoCodecContext, frame: av.VideoFrame) -> None:
    """What the numbers mean, as the source says it."""
    if frame.format.is_rgb:
        encoder.color_range, encoder.colorspace = LIMITED, BT709
    else:
        full = frame.format.name.startswith("yuvj")
        encoder.color_range = FULL if full else frame.color_range
        encoder.colorspace = frame.colorspace
    encoder.color_primaries, encoder.color_trc = frame.color_primaries, frame.color_trc


def _pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """(H, W) uint8, the padding at the end of each line left out."""
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]


def starts_clean(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Whether a decoder that starts at this packet shows every later frame right.

    An H.264 key frame may be a mere recovery point (open GOP, intra refresh): only an IDR picture
    forgets what was before it. HEVC says so of IDR, CRA and BLA, once the leading pictures are
    gone. VP9 and AV1 key frames always do.
    """
    codec = stream.codec_context.codec.canonical_name
    if not packet.is_keyframe:
        return False
    if codec in ("h264", "hevc"):
        extradata = stream.codec_context.extradata or b""
        kinds = [nal[0] for nal in _nals(bytes(packet), extradata, codec) if nal]
        if codec == "h264":
            return any(kind & 0x1F == 5 for kind in kinds)
        return any(16 <= kind >> 1 & 0x3F <= 21 for kind in kinds)
    return True


def _nals(data: bytes, extradata: bytes, codec: str) -> Iterator[bytes]:
    """The first byte of each NAL unit (ISO 14496-15; Annex B where there is no avcC or hvcC)."""
    at = 4 if codec == "h264" else 21  # where the record tells the size of a unit's length
    if len(extradata) <= at or extradata[0] != 1:
        for unit in data.split(b"\0\0\1")[1:]:
            yield unit[:1]
        return
    length = (extradata[at] & 3) + 1
    place = 0
    while place + length < len(data):
        size = int.from_bytes(data[place : place + length])
        yield data[place + length : place + length + 1]
        place += length + size


# ISO 14496-12: where a box keeps its duration, by version 0 (32 bits) and 1 (64 bits)
DURATIONS = {b"mvhd": (16, 24), b"tkhd": (20, 28), b"elst": (8, 8)}


def _show_until(file: BinaryIO, ticks: int) -> None:
    """Ends the edit list, track and movie there, in the movie's ticks: later frames stay hidden."""
    for kind, at in list(_boxes(file, 0, os.fstat(file.fileno()).st_size)):
        if kind in DURATIONS:
            version = _read(file, at, 1)[0]
            file.seek(at + DURATIONS[kind][version])
            file.write(struct.pack(">Q" if version else ">I", ticks))


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Kind and body of each box that holds a duration, or holds boxes that do."""
    while at + 8 <= end:
        size, kind = struct.unpack(">I4s", _read(file, at, 8))
        body = at + 8
        if size == 1:
            size, body = struct.unpack(">Q", _read(file, body, 8))[0], at + 16
        if kind in (b"moov", b"trak", b"edts"):
            yield from _boxes(file, body, at + size)
        else:
            yield kind, body
        at += size


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)
