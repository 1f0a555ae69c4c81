"""Cuts a span out of a video, into an mp4 that shows exactly the span's frames.

Stream copy where that is exact: the pictures stay as they were, and it costs next to nothing. Else
a re-encode with fixed settings. Sound is dropped, and so is the source's metadata (titles, places).

A copy is exact where
- the span's first frame is a key frame from which a decoder starts clean. The leading pictures of
  an open GOP, which follow it in the file and are shown before it, are left out;
- frames past the span's end that others refer to stay in the file, but its edit list ends before
  them.
A copy never starts earlier with its first frames hidden: a reader that knows no edit lists would
show them, and they may belong to another take.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av

from curation.records import in_span
from curation.stage import BadVideo
from curation.video.container import DEFAULT_LIMITS, set_up_decoder
from stages.export.mp4 import Look, starts_clean, whole_file, write_copy, write_encoded
from stages.export.seekable_video import Source

# What an mp4 may hold and browsers and FFmpeg read there without more ado.
COPIED_CODECS = ("h264", "hevc", "vp9", "av1")
# A bare or joined stream is always encoded: see stages/export/seekable_video.py.
PAST_THE_END = 32  # packets in a row past the span's end: none of the span follows, since no codec
# here shows a frame more than 16 places from where it is stored
COARSEST_TICKS, FINEST_TICKS = 1000, 100_000  # per second, as a re-encode keeps them (Matroska: ns)


@dataclass(frozen=True)
class Cut:
    method: str  # copy | encode
    codec: str
    num_frames: int  # shown
    hidden_frames: int  # stored behind the last shown one, for others to refer to
    width: int  # px, as shown (after rotation)
    height: int
    fps: float  # shown frames over the clip's seconds
    bytes: int
    start_error_s: float  # from the span's start to the clip's first frame


def cut(
    source: str, start_s: float, end_s: float, target: Path, num_frames: int | None = None
) -> Cut:
    """Writes the frames with start_s <= t < end_s to `target`; seconds from the source's first one.

    `num_frames`: how many frames scoring saw in the span. A copy must show just as many, and a
    source that gives others is refused.
    """
    with whole_file(target) as out:
        try:
            with closing(Source(source)) as video:
                made = _copy(video, start_s, end_s, num_frames, out)
            if made is None:
                with closing(Source(source)) as video:
                    made = _encode(video, start_s, end_s, out)
        except av.error.PyAVCallbackError:  # of our own file
            raise
        except av.FFmpegError as error:
            raise BadVideo(f"cutting {start_s:.3f} to {end_s:.3f} s: {error}") from error
        if num_frames is not None and abs(made.num_frames - num_frames) > 1:
            raise BadVideo(
                f"{made.num_frames} frames from {start_s:.3f} to {end_s:.3f} s, "
                f"but scoring saw {num_frames}"
            )
    return made


def _copy(
    video: Source, start_s: float, end_s: float, num_frames: int | None, out: BinaryIO
) -> Cut | None:
    """None where a copy can't show exactly the span."""
    codec, head = video.head.codec, video.head
    if not video.indexed or codec not in COPIED_CODECS or video.stream.time_base is None:
        return None
    if codec == "av1" and (head.rotation or head.sample_aspect != 1):
        return None  # write_copy can't keep these
    found = _packets_of_span(video, start_s, end_s)
    if found is None:
        return None
    if num_frames is not None and found.shown != num_frames:
        return None
    write_copy(video.stream, found.packets, found.pts, video.stream.time_base, found.end, out)
    if not _reads_back(out, found.shown, head.rotation):
        out.seek(0)
        out.truncate()
        return None
    return Cut(
        method="copy",
        codec=codec,
        num_frames=found.shown,
        hidden_frames=len(found.packets) - found.shown,
        width=head.width,
        height=head.height,
        fps=found.shown / (found.end * video.tick_s),
        bytes=os.fstat(out.fileno()).st_size,
        start_error_s=found.start_s - start_s,
    )


@dataclass(frozen=True)
class SpanPackets:
    packets: list[av.Packet]  # in order of decoding
    pts: list[int]  # of each, in ticks from the first shown frame
    shown: int  # how many of them are frames of the span
    end: int  # of the last shown frame, in ticks from the first
    start_s: float  # when the first is shown in the source


def _packets_of_span(video: Source, start_s: float, end_s: float) -> SpanPackets | None:
    """What a copy of the span holds, or None where no packets show exactly its frames."""
    packets: list[av.Packet] = []
    stamps: list[int] = []
    past = 0
    for packet in video.packets(start_s):
        if not packet.size:
            continue
        if packet.pts is None:
            return None
        packets.append(packet)
        stamps.append(packet.pts)
        past = past + 1 if video.time_s(packet.pts) >= end_s else 0
        if past == PAST_THE_END:
            break
    places = [i for i, pts in enumerate(stamps) if in_span(video.time_s(pts), start_s, end_s)]
    if not places:
        return None
    shown = sorted(stamps[i] for i in places)
    first = stamps.index(shown[0])
    kept = [i for i in range(first, places[-1] + 1) if stamps[i] >= shown[0]]
    if places[0] < first or len({stamps[i] for i in kept}) < len(kept):
        return None
    if any(_is_odd(packets[i]) for i in kept) or not starts_clean(packets[first], video.stream):
        return None
    lasts = max(packets[places[-1]].duration or 0, 1)
    following = min((pts for pts in stamps if pts > shown[-1]), default=shown[-1] + lasts)
    border = round(end_s / video.tick_s) + (video.start_stamp or 0)
    return SpanPackets(
        packets=[packets[i] for i in kept],
        pts=[stamps[i] - shown[0] for i in kept],
        shown=len(shown),
        end=max(shown[-1] + 1, min(following, border)) - shown[0],
        start_s=video.time_s(shown[0]),
    )


def _is_odd(packet: av.Packet) -> bool:
    """Cut off by the source's own edit list, damaged, or with other settings for the decoder."""
    return packet.is_discard or packet.is_corrupt or packet.has_sidedata("new_extradata")


def _reads_back(out: BinaryIO, num_frames: int, rotation: int) -> bool:
    """Whether the written copy opens, shows that many frames, and its first one is whole."""
    out.seek(0)
    with av.open(out, "r", format="mp4") as mp4:
        stream = mp4.streams.video[0]
        set_up_decoder(stream, DEFAULT_LIMITS)
        shown = sum(1 for p in mp4.demux(stream) if p.size and not p.is_discard)
        mp4.seek(0)
        first = next(mp4.decode(stream), None)
    if first is None or shown != num_frames or first.is_corrupt:
        return False
    return first.pts == 0 and -90 * round(first.rotation / 90) % 360 == rotation


def _encode(video: Source, start_s: float, end_s: float, out: BinaryIO) -> Cut:
    times_s: list[float] = []
    base = video.stream.time_base or Fraction(1)
    if not COARSEST_TICKS <= 1 / base <= FINEST_TICKS:
        base = Fraction(1, 90_000)

    def pictures() -> Iterator[tuple[av.VideoFrame, int, int]]:
        for t_s, duration_s, frame in video.span(start_s, end_s):
            times_s.append(t_s)
            pts = round((t_s - times_s[0]) / base)
            yield frame, pts, max(1, round((t_s + duration_s - times_s[0]) / base) - pts)
            ends_s[0] = t_s + duration_s
        if not times_s:
            raise BadVideo(f"no frame from {start_s:.3f} to {end_s:.3f} s")

    ends_s = [0.0]
    look = Look.of(video.head)
    write_encoded(pictures(), base, look, out)
    return Cut(
        method="encode",
        codec="h264",
        num_frames=len(times_s),
        hidden_frames=0,
        width=look.size[0],
        height=look.size[1],
        fps=len(times_s) / (ends_s[0] - times_s[0]),
        bytes=os.fstat(out.fileno()).st_size,
        start_error_s=times_s[0] - start_s,
    )
