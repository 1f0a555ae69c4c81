"""Draws video files, unusual, damaged and hostile ones among them: the repository holds none."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from stages.export.extraction import ClipSource, ExtractedClip, extract_clip

TICK = Fraction(1, 90000)  # s; fine enough for every stamp drawn here
Picture = Callable[[int, int, int], np.ndarray]  # (index, width, height) -> RGB (h, w, 3)


def moving_box(index: int, width: int, height: int) -> np.ndarray:
    """A white box that moves over a coloured ramp."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(40, 200, width).astype(np.uint8)
    picture[..., 1] = np.linspace(60, 180, height).astype(np.uint8)[:, None]
    picture[..., 2] = 90
    side = max(1, min(width, height) // 4)
    left = (index * 3) % max(1, width - side)
    picture[height // 3 : height // 3 + side, left : left + side] = 255
    return picture


def quadrants(index: int, width: int, height: int) -> np.ndarray:
    """Red, green over blue, grey: every corner shows the orientation."""
    picture = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    picture[:top, :left], picture[:top, left:] = (220, 30, 30), (30, 200, 30)
    picture[top:, :left], picture[top:, left:] = (30, 30, 220), (128, 128, 128)
    return picture


def draw(
    path: Path,
    *,
    times_s: Sequence[float] | None = None,  # of the frames; None: evenly spaced
    frames: int = 12,
    fps: float = 25.0,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    picture: Picture = moving_box,
    rotation: int = 0,  # degrees clockwise from the stored to the shown frame
    options: dict[str, str] | None = None,  # of the encoder
    muxer: dict[str, str] | None = None,
    format: str | None = None,
    audio_s: float = 0.0,  # length of a silent audio stream
    also: tuple[int, int] | None = None,  # size of a second video stream
) -> Path:
    """Draws one video file, whose last frame lasts 1 / fps. Returns its path."""
    tick = TICK if times_s is not None else 1 / Fraction(fps).limit_denominator(1001)
    times_s = [i / fps for i in range(frames)] if times_s is None else times_s
    with av.open(str(path), "w", format=format, options=muxer or {}) as out:
        sizes = [(width, height), *([also] if also else [])]
        streams = []
        for size in sizes:
            stream: Any = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height = size
            stream.pix_fmt = pix_fmt
            stream.codec_context.time_base = tick
            stream.codec_context.thread_count = 1
            stream.codec_context.options = options or {}
            if rotation:
                stream.set_display_rotation(-rotation)
            streams.append(stream)
        if audio_s:
            _add_silence(out, audio_s)
        for index, t_s in enumerate(times_s):
            for stream in streams:
                rgb = picture(index, stream.width, stream.height)
                frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
                    format=pix_fmt, dst_colorspace="ITU601"
                )
                frame.time_base = stream.codec_context.time_base
                frame.pts = round(t_s / frame.time_base)
                frame.duration = round(1 / fps / frame.time_base)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    return path


def _add_silence(out: av.container.OutputContainer, seconds: float) -> None:
    stream = out.add_stream("aac" if out.format.name != "matroska" else "flac", rate=8000)
    stream.layout = "mono"
    resampler = av.AudioResampler(format=stream.format, layout="mono", rate=8000)
    for block in range(int(seconds * 8000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8000, block * 1024
        for piece in resampler.resample(frame):
            out.mux(stream.encode(piece))
    out.mux(stream.encode(None))


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        _add_silence(out, 1.0)
    return path


def audio_with_cover(path: Path) -> Path:
    """Audio with a cover image, which FFmpeg lists as a video stream."""
    with av.open(str(path), "w", format="mp4") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        _add_silence(out, 1.0)
        frame = av.VideoFrame.from_ndarray(moving_box(0, 64, 64), "rgb24")
        out.mux(cover.encode(frame.reformat(format="yuvj420p")))
        out.mux(cover.encode(None))
    return path


def joined(path: Path, *parts: Path) -> Path:
    """Concatenates the bytes, as is valid for raw H.264 and MPEG-TS."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def truncated(path: Path, source: Path, share: float) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def with_header_duration(path: Path, source: Path, seconds: int) -> Path:
    """An MP4 whose header has this duration in all four places: movie, track, edit and media."""
    data = bytearray(source.read_bytes())
    movie = data.index(b"mvhd")
    (movie_scale,) = struct.unpack_from(">I", data, movie + 16)
    struct.pack_into(">I", data, movie + 20, seconds * movie_scale)
    struct.pack_into(">I", data, data.index(b"tkhd") + 24, seconds * movie_scale)
    if b"elst" in data:
        struct.pack_into(">I", data, data.index(b"elst") + 12, seconds * movie_scale)
    media = data.index(b"mdhd")
    (media_scale,) = struct.unpack_from(">I", data, media + 16)
    struct.pack_into(">I", data, media + 20, seconds * media_scale)
    path.write_bytes(data)
    return path


def with_unknown_codec(path: Path, source: Path) -> Path:
    """An MP4 whose frames are in an unknown codec."""
    data = source.read_bytes()
    at = data.index(b"stsd")
    path.write_bytes(
        data[:at] + data[at:].replace(b"avc1", b"zzzz", 1).replace(b"avcC", b"zzzC", 1)
    )
    return path


def decompression_bomb(path: Path, source: Path, side: int) -> Path:
    """A PNG-in-MOV whose frames claim `side` x `side` pixels in a few hundred bytes."""
    data = bytearray(source.read_bytes())
    at = data.index(b"IHDR")
    while at > 0:
        struct.pack_into(">II", data, at + 4, side, side)
        at = data.find(b"IHDR", at + 4)
    path.write_bytes(data)
    return path


def huge(path: Path, side: int) -> Path:
    """One real frame of `side` x `side` pixels, one bit each: a few kilobytes on the disk."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("png", rate=25)
        stream.width = stream.height = side
        stream.pix_fmt = "monob"
        frame = av.VideoFrame(side, side, "monob")
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", 8 + len(payload)) + kind + payload


NUMBER_BITS = 8


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """The moving box, and below it the index modulo 256 as a row of black and white blocks."""
    picture = moving_box(index, width, height)
    blocks = [255 if index >> bit & 1 else 0 for bit in range(NUMBER_BITS)]
    row = np.repeat(blocks, width // NUMBER_BITS)
    picture[-height // 4 :, : len(row)] = row[:, None]
    return picture


def number_of(picture: np.ndarray) -> int:
    """The number in a decoded picture of `numbered`; picture: (H, W, 3)."""
    height, width = picture.shape[:2]
    blocks = picture[-height // 8, : width // NUMBER_BITS * NUMBER_BITS].mean(-1)
    bits = blocks.reshape(NUMBER_BITS, -1)[:, 2:-2].mean(-1) > 128
    return sum(1 << bit for bit in range(NUMBER_BITS) if bits[bit])


def spliced(path: Path, *parts: Path, gap_s: float = 0.0, format: str | None = None) -> Path:
    """The packets of several files in one track: each begins `gap_s` after the one before ends."""
    with av.open(str(path), "w", format=format) as out:
        track: Any = None
        start_s = 0.0
        for part in parts:
            with av.open(str(part)) as file:
                stream = file.streams.video[0]
                if track is None:
                    track = out.add_stream_from_template(stream)
                    track.time_base = Fraction(1, 1000)
                packets = [p for p in file.demux(stream) if p.size]
                tick = float(stream.time_base)
                first_s = min(p.pts for p in packets) * tick
                end_s = 0.0
                for packet in packets:
                    shown_s = packet.pts * tick - first_s + start_s
                    decoded_s = packet.dts * tick - first_s + start_s
                    end_s = max(end_s, shown_s + (packet.duration or 0) * tick)
                    packet.time_base = Fraction(1, 1000)
                    packet.pts, packet.dts = round(shown_s * 1000), round(decoded_s * 1000)
                    packet.duration = round((packet.duration or 0) * tick * 1000)
                    packet.stream = track
                    out.mux(packet)
                start_s = end_s + gap_s
    return path


def extract(
    path: Path,
    start_s: float,
    end_s: float,
    target: Path,
    num_frames: int | None = None,
    times_jump: bool = False,
    **how: bool,
) -> ExtractedClip:
    """One clip of a video, as export extracts it."""
    with closing(ClipSource(str(path), times_jump)) as source:
        return extract_clip(source, start_s, end_s, target, num_frames, **how)
