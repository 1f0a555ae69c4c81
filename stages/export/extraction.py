"""Extracts a span of a video into an mp4 that shows exactly the span's frames.

Stream copy where that is exact: it leaves the pictures unchanged and takes next to no time. Else a
re-encode with fixed settings. The mp4 has no sound and none of the source's metadata (titles,
places).

A copy is exact where
- the span's first frame is a random access point. The leading pictures of an open GOP, which are
  stored after it and shown before it, are dropped;
- frames past the span's end that others refer to stay in the file, but its edit list ends before
  them.
A copy never starts earlier with its first frames hidden: a reader that ignores edit lists would
show them, and they may belong to another take.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av

from curation.records import is_in_span
from curation.stage import BadVideo
from curation.video.container import DEFAULT_LIMITS, set_up_decoder
from curation.video.geometry import Crop
from curation.video.tone_mapping import HDR_TRANSFERS
from stages.export.display_tags import carry_over, carry_over_to_encode
from stages.export.frame_filters import deinterlace, tone_map
from stages.export.mp4 import (
    EncodeFormat,
    is_random_access_point,
    output_file,
    write_copy,
    write_encoded,
)
from stages.export.seekable_video import KeyframePacket, SeekableVideo, index_keyframes

# Codecs that may be stored in an mp4 and that browsers and FFmpeg play from it.
COPIED_CODECS = ("h264", "hevc", "vp9", "av1")
# After so many consecutive packets past the span's end none of the span follows: no codec here
# shows a frame more than 16 places from where it is stored.
MAX_PACKETS_PAST_END = 32
# Ticks per second that a re-encode takes over from the source (Matroska may have nanoseconds).
MIN_TICKS_PER_S, MAX_TICKS_PER_S = 1000, 100_000


@dataclass(frozen=True)
class ExtractedClip:
    method: str  # copy | encode
    codec: str
    num_frames: int  # shown
    hidden_frames: int  # stored after the last shown one, for others to refer to
    width: int  # px, as shown
    height: int
    fps: float  # shown frames over the clip's seconds
    bytes: int
    start_error_s: float  # from the span's start to the clip's first frame


class ClipSource:
    """A video whose clips are extracted. A clip's bytes do not depend on the clips before it; in
    order of time, the clips of a video without an index take one pass over it."""

    def __init__(self, path: str, times_jump: bool = False) -> None:
        """times_jump: whether its time stamps jump."""
        self._path, self._times_jump = path, times_jump
        self._in_order: SeekableVideo | None = None  # that is read from its start

    @cached_property
    def _keyframes(self) -> list[KeyframePacket]:
        return [] if self._times_jump else index_keyframes(self._path)

    @contextmanager
    def opened(self) -> Iterator[SeekableVideo]:
        if self._in_order is not None:
            yield self._in_order
            return
        video = SeekableVideo(self._path, self._times_jump, self._keyframes)
        if not video.seekable:
            self._in_order = video
            yield video
            return
        with closing(video):
            yield video

    def close(self) -> None:
        if self._in_order is not None:
            self._in_order.close()


def extract_clip(
    source: ClipSource,
    start_s: float,
    end_s: float,
    target: Path,
    num_frames: int | None = None,
    interlaced: bool = False,
    to_sdr: bool = False,
) -> ExtractedClip:
    """Writes the frames with start_s <= t < end_s to `target`; seconds from the source's first one.

    num_frames: how many frames scoring found in the span. A copy has exactly as many.
    interlaced: whether scoring found interlaced frames in the span: it is deinterlaced.
    to_sdr: tone-map HDR. Raises BadVideo where an encode differs by more than one frame, or where
    the source can't be read; OutputError where `target` can't be written.
    """
    with output_file(target, durable=True) as out:
        try:
            with source.opened() as video:
                is_tone_mapped = to_sdr and video.header.transfer in HDR_TRANSFERS.values()
                may_copy = not (interlaced or is_tone_mapped)
                clip = _copy(video, start_s, end_s, num_frames, out) if may_copy else None
            if clip is None:
                with source.opened() as video:
                    clip = _encode(video, start_s, end_s, is_tone_mapped, out)
        except av.error.PyAVCallbackError:  # from writing `target`
            raise
        except av.FFmpegError as error:
            raise BadVideo(f"extracting {start_s:.3f} to {end_s:.3f} s: {error}") from error
        if num_frames is not None and abs(clip.num_frames - num_frames) > 1:
            raise BadVideo(
                f"{clip.num_frames} frames from {start_s:.3f} to {end_s:.3f} s, "
                f"but scoring found {num_frames}"
            )
    return clip


def _copy(
    video: SeekableVideo, start_s: float, end_s: float, num_frames: int | None, out: BinaryIO
) -> ExtractedClip | None:
    """Writes the clip as a stream copy. Returns None if a copy can't show exactly the span."""
    codec, head = video.header.codec, video.header
    if not video.indexed or codec not in COPIED_CODECS or video.stream.time_base is None:
        return None  # a bare or concatenated stream has no index
    if head.geometry.crop != Crop() or head.interlaced:
        return None  # many readers ignore a clean aperture, and do not deinterlace
    span = _packets_of_span(video, start_s, end_s)
    if span is None:
        return None
    if num_frames is not None and span.shown != num_frames:
        return None
    write_copy(video.stream, span.packets, span.pts, video.stream.time_base, span.end, out)
    if not (_reads_back(out, span.shown, video.first_size) and carry_over(video.tags, out)):
        out.seek(0)
        out.truncate()
        return None
    return ExtractedClip(
        method="copy",
        codec=codec,
        num_frames=span.shown,
        hidden_frames=len(span.packets) - span.shown,
        width=head.width,
        height=head.height,
        fps=span.shown / (span.end * video.tick_s),
        bytes=os.fstat(out.fileno()).st_size,
        start_error_s=span.start_s - start_s,
    )


@dataclass(frozen=True)
class SpanPackets:
    packets: list[av.Packet]  # in decoding order
    pts: list[int]  # of each, in ticks from the first shown frame
    shown: int  # how many of them are frames of the span
    end: int  # of the last shown frame, in ticks from the first
    start_s: float  # when the first is shown in the source


def _packets_of_span(video: SeekableVideo, start_s: float, end_s: float) -> SpanPackets | None:
    """What a copy of the span consists of, or None where no packets show exactly its frames."""
    packets: list[av.Packet] = []
    stamps: list[int] = []
    past_end = 0
    for packet in video.packets(start_s):
        if not packet.size:
            continue
        if packet.pts is None:
            return None
        packets.append(packet)
        stamps.append(packet.pts)
        past_end = past_end + 1 if video.time_s(packet.pts) >= end_s else 0
        if past_end == MAX_PACKETS_PAST_END:
            break
    span_indices = [
        i for i, pts in enumerate(stamps) if is_in_span(video.time_s(pts), start_s, end_s)
    ]
    if not span_indices:
        return None
    shown = sorted(stamps[i] for i in span_indices)
    first = stamps.index(shown[0])
    copied = [i for i in range(first, span_indices[-1] + 1) if stamps[i] >= shown[0]]
    if span_indices[0] < first or len({stamps[i] for i in copied}) < len(copied):
        return None
    if any(_is_irregular(packets[i]) for i in copied):
        return None
    if not is_random_access_point(packets[first], video.stream):
        return None
    duration = max(packets[span_indices[-1]].duration or 0, 1)
    next_frame = min((pts for pts in stamps if pts > shown[-1]), default=shown[-1] + duration)
    span_end = round(end_s / video.tick_s) + (video.start_stamp or 0)
    return SpanPackets(
        packets=[packets[i] for i in copied],
        pts=[stamps[i] - shown[0] for i in copied],
        shown=len(shown),
        end=max(shown[-1] + 1, min(next_frame, span_end)) - shown[0],
        start_s=video.time_s(shown[0]),
    )


def _is_irregular(packet: av.Packet) -> bool:
    """Hidden by the source's own edit list, damaged, or with new decoder settings."""
    return packet.is_discard or packet.is_corrupt or packet.has_sidedata("new_extradata")


def _reads_back(out: BinaryIO, num_frames: int, size: tuple[int, int]) -> bool:
    """Whether the written copy opens, shows that many frames, and its first one is intact and has
    the size in the header, which is that of the source's first frame."""
    out.seek(0)
    with av.open(out, "r", format="mp4") as mp4:
        stream = mp4.streams.video[0]
        set_up_decoder(stream, DEFAULT_LIMITS)
        shown = sum(1 for p in mp4.demux(stream) if p.size and not p.is_discard)
        mp4.seek(0)
        first = next(mp4.decode(stream), None)
    if first is None or shown != num_frames or first.is_corrupt or first.interlaced_frame:
        return False
    return first.pts == 0 and (first.width, first.height) == size


def _encode(
    video: SeekableVideo, start_s: float, end_s: float, to_sdr: bool, out: BinaryIO
) -> ExtractedClip:
    times_s: list[float] = []
    last_end_s = 0.0
    time_base = video.stream.time_base or Fraction(1)
    if not MIN_TICKS_PER_S <= 1 / time_base <= MAX_TICKS_PER_S:
        time_base = Fraction(1, 90_000)

    frames = video.frames_of_span(start_s, end_s)
    first = next(frames, None)
    if first is None:
        raise BadVideo(f"no frame from {start_s:.3f} to {end_s:.3f} s")

    def timed_frames() -> Iterator[tuple[av.VideoFrame, int, int]]:
        nonlocal last_end_s
        for t_s, duration_s, frame in chain([first], frames):
            times_s.append(t_s)
            pts = round((t_s - times_s[0]) / time_base)
            end = round((t_s + duration_s - times_s[0]) / time_base)
            yield frame, pts, max(1, end - pts)
            last_end_s = t_s + duration_s

    encode_format = EncodeFormat.from_head(video.header_of(first[2]))
    timed = timed_frames()
    filtered = timed if encode_format.geometry.is_single_field else deinterlace(timed)
    filtered = tone_map(filtered) if to_sdr else filtered
    write_encoded(filtered, time_base, encode_format, out)
    carry_over_to_encode(video.tags, encode_format.geometry, to_sdr, out)
    width, height = encode_format.shown_size
    return ExtractedClip(
        method="encode",
        codec="h264",
        num_frames=len(times_s),
        hidden_frames=0,
        width=width,
        height=height,
        fps=len(times_s) / (last_end_s - times_s[0]),
        bytes=os.fstat(out.fileno()).st_size,
        start_error_s=times_s[0] - start_s,
    )
