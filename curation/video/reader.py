"""Reads a video in one pass: correct frame times, planes at reduced size, and its packets.

`probe` and `Reader` open hostile files safely (curation/video/container.py) and raise BadVideo, and
no other error, for anything that is wrong with one.
"""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import av
import cv2
import numpy as np

from curation.stage import BadVideo
from curation.video.container import (
    DEFAULT_LIMITS,
    Limits,
    PixelAspects,
    VideoHeader,
    check_boxes,
    check_end,
    check_file,
    check_pixels,
    choose_stream,
    open_container,
    raise_without_frames,
    read_header,
    set_up_decoder,
)
from curation.video.encryption import check_not_encrypted
from curation.video.frames import Planes
from curation.video.planes import SourceFrame, bgr_image, convert, reduce_frame
from curation.video.source import Source

__all__ = ["Limits", "Packets", "Reader", "VideoHeader", "bgr_image", "probe"]

cv2.setNumThreads(1)  # a worker has one core

MAX_PACKETS_BEFORE_FRAME = 1000  # a decoder delays a few dozen frames at most
NO_STAMP = -(2**63)  # FFmpeg's AV_NOPTS_VALUE
MIN_STEP_S = 0.001  # between two frames whose time stamps do not increase
MAX_STEP_BACK_S = 1.0  # a time stamp further back begins another recording
# So does one further ahead than both: no camera or screen recorder shows a frame that long.
MAX_GAP_S, MAX_GAP_FRAMES = 3.0, 10
GAP = "Frame num gap"  # H.264's missing reference frames, of which the decoder makes up pictures
MPEG_CLOCK_S = 2**33 / 90_000  # after which its time stamps begin at 0 again


@dataclass(frozen=True)
class Packets:
    """The stream's packets in order of time, for placing clips and for stream copy."""

    times_s: np.ndarray  # (N,) float64, s from the first frame; negative before an edit's start
    bytes: np.ndarray  # (N,) int64
    is_key: np.ndarray  # (N,) bool

    @cached_property
    def key_times_s(self) -> np.ndarray:
        """(K,) of the keyframe packets."""
        return self.times_s[self.is_key]


def probe(path: str) -> VideoHeader:
    """Opens the file and decodes its first frame. Raises BadVideo in plain words."""
    with Reader(path) as reader:
        return reader.header


def read_timeout_s(size: int) -> float:
    """Limit on the time that it takes to decode a file of so many bytes. Its header may be wrong;
    10 kB of video per second is slow."""
    return 120.0 + max(size, 0) / 1e4


class Reader:
    """One pass over one video.

        with Reader(path) as reader:
            for t_s, planes in reader.frames(): ...
            reader.times_s, reader.end_s, reader.packets, reader.damaged, reader.breaks_s

    Times are seconds from the first shown frame and strictly increase. A time stamp that is equal
    to the one before or up to a second earlier is set 1 ms after it. One that is further back (a
    joined recording) or more than MAX_GAP_S ahead (an interrupted one) is set one frame after it,
    and all later ones are shifted by as much. `repaired` counts those that did not increase.
    """

    header_only = False

    def __init__(self, path: Source, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = path
        self.limits = limits
        self.errors = 0  # packets that can't be decoded
        self._damaged_packets: set[int] = set()
        self._corrupt_s: list[float] = []  # times of the frames that the decoder marks so
        self.end_s = 0.0  # the last frame's time plus its duration
        self.start_s = 0.0  # the first frame's time stamp in the container
        self.sizes: list[tuple[float, int, int]] = []  # from when on: width and height, as shown
        self._clock: Clock | None = None
        self._times = array("d")
        self._times_array: np.ndarray | None = None
        self.interlaced = bytearray()  # of each frame: 1 or 0
        # Of each packet, in decoding order: time stamp or NO_STAMP; bytes; whether a keyframe.
        self._stamps, self._packet_bytes, self._is_key = array("q"), array("q"), bytearray()
        self._other_streams_end_s = 0.0
        if isinstance(path, str):
            check_file(path)
        self._container = open_container(path, limits, header_only=self.header_only)
        try:
            self._stream = choose_stream(self._container)
            check_not_encrypted(path, self._container, self._stream)
            # AVI stores no presentation times: its demuxer's pts are wrong where there are B-frames
            self._uses_dts = self._container.format.name == "avi"
            self._tick_s = float(self._stream.time_base or 0)
            self._decoder = set_up_decoder(self._stream, limits, skip_loop_filter=True)
            if self._stream.codec_context.name == "h264":
                av.logging.set_level(av.logging.DEBUG)  # as GAP; never lowered: threads share it
            self._aspects = PixelAspects(self._container, self._stream)
            self._pending = self._decode_until_first_frame()
            first, aspect = self._pending[0], self._aspects.of(self._pending[0])
            self.header = read_header(path, self._container, self._stream, first, aspect)
            self._mp4_durations_s = check_boxes(path) if self.header.container == "mov" else None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def num_frames(self) -> int:
        return len(self._times)

    @property
    def times_s(self) -> np.ndarray:
        """(T,) float64: when each frame is shown. After the pass, the same array each time."""
        if self._times_array is None or len(self._times_array) < len(self._times):
            self._times_array = np.array(self._times)
        return self._times_array

    @property
    def repaired(self) -> int:
        return self._clock.repaired if self._clock else 0

    @property
    def time_jumps(self) -> list[tuple[float, float]]:
        """Time of the first frame after each jump of the time stamps, and by how much, s."""
        return self._clock.jumps if self._clock else []

    @property
    def breaks_s(self) -> list[float]:
        """Times at which a take ends without a cut: the shown size changes, or another recording
        begins, as far as time stamps show it. Where MPEG's clock wraps, the same one goes on."""
        resized = [t_s for t_s, _, _ in self.sizes[1:]]
        joined = [t_s for t_s, by_s in self.time_jumps if abs(by_s + MPEG_CLOCK_S) > MAX_GAP_S]
        return sorted({*resized, *joined})

    def size_at(self, t_s: float) -> tuple[int, int]:
        """Width and height as shown, of the frame at or before t_s."""
        after = bisect.bisect_right(self.sizes, t_s, key=lambda size: size[0])
        _, width, height = self.sizes[max(0, after - 1)]
        return width, height

    @cached_property
    def packets(self) -> Packets:
        """All packets, after the pass."""
        times = self._packet_times_s
        order = np.argsort(times, kind="stable")
        return Packets(
            times[order],
            np.array(self._packet_bytes, np.int64)[order],
            np.frombuffer(self._is_key, bool)[order],
        )

    @cached_property
    def damaged(self) -> list[tuple[float, float]]:
        """Spans, s, after the pass: each from the first damaged packet or frame to the next
        keyframe packet without damage. docs/dataset.md has what isn't noticed."""
        is_key = np.frombuffer(self._is_key, bool)
        return damaged_spans(
            self._packet_times_s, is_key, sorted(self._damaged_packets), self._corrupt_s
        )

    @cached_property
    def _packet_times_s(self) -> np.ndarray:
        """(N,) in decoding order."""
        stamps = np.array(self._stamps, np.int64)
        if (stamps == NO_STAMP).any():  # a stream without a container: evenly spaced
            return np.arange(len(stamps)) / self.header.fps
        # AVI's stamps are of decoding: the first packet is the first frame
        start_s = int(stamps[0]) * self._tick_s if self._uses_dts else self.start_s
        times_s = stamps.astype(np.float64) * self._tick_s - start_s
        return remove_gaps(join_recordings(times_s, 1 / self.header.fps), self.time_jumps)

    def frames(self) -> Iterator[tuple[float, Planes]]:
        """Each frame once: its time, and its planes at reduced size."""
        header = self.header
        self._clock = clock = Clock(1 / header.fps)
        by, geometry = header.reduction, header.geometry
        first = self._pending[0]
        decoded_size = first.width, first.height
        last_shape = None
        for frame in self._decoded():
            t_s = clock.read(self._stamp_s(frame))
            self._check_limits(t_s, frame)
            self._times.append(t_s)
            self.interlaced.append(frame.interlaced_frame)
            if frame.is_corrupt:
                self._corrupt_s.append(t_s)
            shape = self._aspects.of(frame), frame.width, frame.height
            if shape != last_shape:
                own_geometry = geometry._replace(pixel_aspect=shape[0])
                size, last_shape = own_geometry.shown_size(*shape[1:]), shape
                if not self.sizes or size != self.sizes[-1][1:]:
                    self.sizes.append((t_s, *size))
                is_resized = size != self.sizes[0][1:] or shape[1:] != decoded_size
            if not is_resized:
                yield t_s, reduce_frame(frame, by, geometry)
            else:  # meters get planes of one size, colour images have the frame's own
                resized = convert(frame, *decoded_size, "yuvj420p")
                planes = reduce_frame(resized, by, geometry)
                yield t_s, replace(planes, source=SourceFrame(frame, own_geometry))
            self.end_s = t_s + self._duration_s(frame)
        self.start_s = clock.start_s or 0.0
        # A header's duration counts from zero or from the first time stamp, or is that of the
        # longest stream.
        skipped_s = sum(by_s for _, by_s in clock.jumps)
        last_s = self.end_s + max(0.0, skipped_s)
        ends_s = (last_s, self.start_s + last_s, self._other_streams_end_s)
        if header.header_duration_s is not None:
            check_end(header.header_duration_s, *ends_s)
        if self._mp4_durations_s is not None:
            header_s, index_s = self._mp4_durations_s
            check_end(header_s, *ends_s, index_s)

    def _stamp_s(self, frame: av.VideoFrame) -> float | None:
        stamp = frame.dts if self._uses_dts else frame.pts
        return None if stamp is None else stamp * self._tick_s

    def _duration_s(self, frame: av.VideoFrame) -> float:
        """Of the last frame."""
        if self._uses_dts and len(self._times) > 1:  # AVI's frames have the duration of a tick
            return self._times[-1] - self._times[-2]
        if frame.duration and frame.pts is not None:
            return frame.duration * self._tick_s
        return 1 / self.header.fps

    def _decode_until_first_frame(self) -> list[av.VideoFrame]:
        self._demuxed = self._demux()
        for packet in self._demuxed:
            frames = self._decode(packet)
            if frames:
                return frames
            if len(self._stamps) > MAX_PACKETS_BEFORE_FRAME:
                break
        raise_without_frames(self.path, self.limits, self.errors)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        yield from self._pending
        self._pending = []
        for packet in self._demuxed:
            yield from self._decode(packet)

    def _demux(self) -> Iterator[av.Packet]:
        """The video's packets. Those of other streams show only where the file ends."""
        has_duration = self._stream.duration is not None
        timed = [s for s in self._container.streams if s.time_base]
        streams = [self._stream] if has_duration else timed
        wanted = self._stream.index
        try:
            for packet in self._container.demux(streams):
                if packet.stream_index != wanted:
                    if packet.pts is not None:
                        end = (packet.pts + (packet.duration or 0)) * packet.time_base
                        self._other_streams_end_s = max(self._other_streams_end_s, float(end))
                    continue
                if packet.size:  # the last, empty one flushes the decoder
                    stamp = packet.dts if packet.pts is None or self._uses_dts else packet.pts
                    self._stamps.append(NO_STAMP if stamp is None else stamp)
                    self._packet_bytes.append(packet.size)
                    self._is_key.append(packet.is_keyframe)
                yield packet
        except av.FFmpegError:  # the file breaks off: what was read counts, check_end decides
            self.errors += 1
            self._damaged_packets.add(len(self._stamps) - 1)
        except IndexError:  # PyAV 18 raises it at the end of a file whose streams appeared late
            pass

    def _decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        number = len(self._stamps) - 1
        if packet.is_corrupt:
            self._damaged_packets.add(number)
        try:
            with av.logging.Capture() as log:
                frames = self._decoder.decode(packet if packet.size else None)
        except av.error.EOFError:
            return []
        except (MemoryError, av.error.MemoryError) as error:
            raise BadVideo("decoding needs more memory than the limit") from error
        except av.FFmpegError:
            self.errors += 1
            self._damaged_packets.add(number)
            return []
        self._aspects.add(packet)
        if any(level <= av.logging.ERROR or text.startswith(GAP) for level, _, text in log):
            self._damaged_packets.add(number)
        return frames

    def _check_limits(self, t_s: float, frame: av.VideoFrame) -> None:
        check_pixels(frame.width, frame.height, self.limits)
        if t_s > self.limits.max_duration_s:
            raise BadVideo(f"longer than the limit of {self.limits.max_duration_s:g} s")
        if len(self._times) >= self.limits.max_frames:
            raise BadVideo(f"more than {self.limits.max_frames} frames, the limit")


class Clock:
    """Turns the container's time stamps into times that start at 0 and strictly increase."""

    def __init__(self, step_s: float, keep_gaps: bool = False) -> None:
        """step_s: nominal, for frames without a time stamp.  keep_gaps: times never jump ahead."""
        self.step_s = step_s
        self.start_s: float | None = None  # the first time stamp
        self.repaired = 0
        self.jumps: list[tuple[float, float]] = []  # time of the first frame after it, by how much
        self._max_gap_s = math.inf if keep_gaps else max(MAX_GAP_S, MAX_GAP_FRAMES * step_s)
        self._shift_s = 0.0  # of this recording against the first
        self._last_s = 0.0
        self._last_step_s = step_s  # nominal steps are too long where gaps lower the mean rate

    def read(self, stamp_s: float | None) -> float:
        """The time of the next frame in presentation order."""
        if self.start_s is None:
            self.start_s = stamp_s or 0.0
            return 0.0
        next_s = self._last_s + self.step_s
        t_s = next_s if stamp_s is None else stamp_s - self.start_s + self._shift_s
        if t_s < self._last_s - MAX_STEP_BACK_S or t_s > self._last_s + self._max_gap_s:
            self.repaired += t_s < self._last_s
            next_s = self._last_s + min(self.step_s, self._last_step_s)
            self.jumps.append((next_s, t_s - next_s))
            self._shift_s += next_s - t_s
            t_s = next_s
        elif t_s <= self._last_s:
            self.repaired += 1
            t_s = self._last_s + MIN_STEP_S
        else:
            self._last_step_s = t_s - self._last_s
        self._last_s = t_s
        return t_s


def join_recordings(times_s: np.ndarray, step_s: float) -> np.ndarray:
    """times_s: of packets in decoding order. A recording that begins again at an earlier time is
    shifted to begin `step_s` after the one before."""
    behind = np.maximum.accumulate(times_s) - times_s
    for at in np.flatnonzero(np.diff(behind, prepend=0) > MAX_STEP_BACK_S):
        times_s[at:] += times_s[:at].max() + step_s - times_s[at]
    return times_s


def remove_gaps(times_s: np.ndarray, jumps: list[tuple[float, float]]) -> np.ndarray:
    """times_s: of packets, joined.  jumps: `Clock.jumps`, of which those ahead are left out."""
    ahead = np.array([jump for jump in jumps if jump[1] > 0]).reshape(-1, 2)
    skipped_s = np.cumsum(ahead[:, 1])
    passed = np.searchsorted(ahead[:, 0] + skipped_s - MIN_STEP_S / 2, times_s, side="right")
    return times_s - np.append(0.0, skipped_s)[passed]


def damaged_spans(
    times_s: np.ndarray, is_key: np.ndarray, damaged: Sequence[int], corrupt_s: Sequence[float]
) -> list[tuple[float, float]]:
    """Start and end of each damaged span, s; in order, not overlapping.

    times_s, is_key: (N,) of packets in decoding order.  damaged: numbers of packets, ascending.
    corrupt_s: times of damaged frames.  Frames that are decoded after a damaged one may be shown
    before it.
    """
    clean = np.setdiff1d(np.flatnonzero(is_key), damaged)  # numbers of keyframe packets
    bounds, keys_s = [*clean.tolist(), len(times_s)], [*np.sort(times_s[clean]), math.inf]
    spans, done = [], -1
    for number in damaged:
        if number > done:
            done = bounds[bisect.bisect_right(bounds, number)]
            end_s = times_s[done] if done < len(times_s) else math.inf
            spans.append((float(times_s[number:done].min()), float(end_s)))
    spans += [(t_s, float(keys_s[bisect.bisect_right(keys_s, t_s)])) for t_s in corrupt_s]
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            start_s, end_s = merged[-1][0], max(end_s, merged.pop()[1])
        merged.append((start_s, end_s))
    return merged
