"""A video whose packets and frames can be read from any time on, with the times of scoring."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
from av.video.frame import PictureType

from curation.heartbeat import report_progress
from curation.records import is_in_span
from curation.stage import BadVideo
from curation.video.container import (
    DEFAULT_LIMITS,
    PixelAspects,
    VideoHeader,
    check_file,
    choose_stream,
    open_container,
    read_header,
    set_up_decoder,
)
from curation.video.reader import Clock
from stages.export.display_tags import read_display_tags

# Containers with an index and one time line: seeking is reliable, and a time stamp belongs to one
# frame only. MPEG-TS gets an index here. All others are read from the start, as in scoring.
INDEXED_CONTAINERS = ("mov", "matroska")
# Decoding starts this long before a span, so that frames are intact again after a keyframe packet
# that is no random access point.
PREROLL_S = 1.0
TS_SYNC = b"\x47"


class KeyframePacket(NamedTuple):
    pts: int
    place: int  # byte of the file at which it begins


def index_keyframes(path: str) -> list[KeyframePacket]:
    """The keyframe packets of a stream of MPEG-TS, which has no index: reads the whole file and
    decodes nothing. Empty of other containers, and where a packet has no time stamp. Raises
    BadVideo."""
    check_file(path)
    with open(path, "rb") as file:
        head = file.read(5)
    if TS_SYNC not in (head[:1], head[4:]):  # M2TS has a time code before each packet
        return []
    with open_container(path, DEFAULT_LIMITS) as container:
        found: list[KeyframePacket] = []
        if container.format.name != "mpegts":
            return found
        try:
            for packet in container.demux(choose_stream(container)):
                report_progress()
                if not packet.size:
                    continue
                if packet.pts is None or packet.pos is None:
                    return []
                if packet.is_keyframe:
                    found.append(KeyframePacket(packet.pts, packet.pos))
        except av.FFmpegError:  # the file breaks off
            pass
        return found if found == sorted(found) else []


class SeekableVideo:
    """An opened video. Times are in seconds from its first frame, as scoring counts them."""

    def __init__(
        self, path: str, times_jump: bool = False, keyframes: Sequence[KeyframePacket] = ()
    ) -> None:
        """times_jump: its time stamps jump ahead or back, so that it is read from the start.
        keyframes: of `index_keyframes`."""
        self.path = path
        self._keyframes = () if times_jump else keyframes
        self._in_order: Iterator[tuple[float, av.VideoFrame]] | None = None
        self._last: tuple[float, av.VideoFrame] | None = None  # that it gave
        check_file(path)
        self._open()
        first = next(self._decoded(self.container.demux(self.stream)), None)
        if first is None:
            raise BadVideo("no frame could be decoded")
        self.header = self.header_of(first)
        self.tags = read_display_tags(self.stream, first)
        self.first_size = first.width, first.height  # px, as decoded
        self.tick_s = float(self.stream.time_base or 0)
        self.start_stamp = self._stamp(first)
        indexed = self.header.container in INDEXED_CONTAINERS and not times_jump
        self.indexed = indexed and self.start_stamp is not None

    def _open(self) -> None:
        self.container = open_container(self.path, DEFAULT_LIMITS)
        self.stream = choose_stream(self.container)
        self.decoder = set_up_decoder(self.stream, DEFAULT_LIMITS)
        self._aspects = PixelAspects(self.container, self.stream)

    def header_of(self, frame: av.VideoFrame) -> VideoHeader:
        """The header with the size and pixel aspect of this frame, one of the last that were
        decoded: a stream may change them."""
        aspect = self._aspects.of(frame)
        return read_header(self.path, self.container, self.stream, frame, aspect)

    def close(self) -> None:
        self.container.close()

    def time_s(self, stamp: int) -> float:
        return stamp * self.tick_s - (self.start_stamp or 0) * self.tick_s

    def packets(self, from_s: float) -> Iterator[av.Packet]:
        """Packets in decoding order, from a keyframe packet at least PREROLL_S before `from_s` on.

        From the first packet where the container has no index or seeking fails.
        """
        if self._can_seek(from_s):
            start = round((from_s - PREROLL_S) / self.tick_s) + (self.start_stamp or 0)
            try:
                key = self._seek(start)
                packets = self.container.demux(self.stream)
                first = next(packets)
                if first.size and self._is_before(first.pts, from_s, key):
                    yield first
                    yield from packets
                    return
            except (av.FFmpegError, StopIteration):
                pass
        yield from self._packets_from_start()

    def _packets_from_start(self) -> Iterator[av.Packet]:
        self.close()
        self._open()
        yield from self.container.demux(self.stream)

    def frames(self, from_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decoded frames with their times, in presentation order, from before `from_s` on."""
        if not self.seekable:
            yield from self._frames_in_order(from_s)
            return
        clock = Clock(1 / self.header.fps, keep_gaps=True)
        if self._can_seek(from_s):
            clock.read(self._seconds(self.start_stamp))
        for frame in self._decoded_from(from_s):
            yield clock.read(self._seconds(self._stamp(frame))), frame

    def _decoded_from(self, from_s: float) -> Iterator[av.VideoFrame]:
        """Decodes from a keyframe before `from_s`; from the first frame if the index is wrong about
        keyframes: a file without a table of them has all packets as keyframes."""
        frames = self._decoded(self.packets(from_s))
        first = next(frames, None)
        if self._can_seek(from_s) and not self._is_decoded_alone(first, from_s):
            frames = self._decoded(self._packets_from_start())
            first = next(frames, None)
        if first is not None:
            yield first
            yield from frames

    def _is_decoded_alone(self, first: av.VideoFrame | None, from_s: float) -> bool:
        """Whether the first frame after seeking is not late, and needs no other. The decoder of
        H.264 skips those that do itself, also where there are no intra frames."""
        stamp = self._stamp(first) if first is not None else None
        if first is None or stamp is None or self.time_s(stamp) > from_s:
            return False
        is_predicted = first.pict_type in (PictureType.P, PictureType.B, PictureType.S)
        return self.header.codec == "h264" or not is_predicted

    def _frames_in_order(self, from_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """All frames, or where the call before ended before `from_s`, those from there on: the
        clips of a video take one pass."""
        if self._in_order is None or self._last is None or from_s < self._last[0]:
            clock = Clock(1 / self.header.fps)
            decoded = self._decoded(self.packets(0.0))
            self._in_order = ((clock.read(self._seconds(self._stamp(f))), f) for f in decoded)
        else:
            yield self._last
        for timed_frame in self._in_order:
            self._last = timed_frame
            yield timed_frame

    def frames_of_span(
        self, start_s: float, end_s: float
    ) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Time, duration (the last frame's ends with the span) and frame, of the span's frames."""
        previous: tuple[float, av.VideoFrame] | None = None
        for t_s, frame in self.frames(start_s):
            if previous is not None:
                yield previous[0], min(t_s, end_s) - previous[0], previous[1]
                previous = None
            if is_in_span(t_s, start_s, end_s):
                previous = t_s, frame
            elif t_s >= end_s:
                return
        if previous is not None:
            t_s, frame = previous
            duration_s = (frame.duration or 0) * self.tick_s or 1 / self.header.fps
            yield t_s, min(duration_s, end_s - t_s), frame

    @property
    def seekable(self) -> bool:
        return self.indexed or (bool(self._keyframes) and self.start_stamp is not None)

    def _can_seek(self, from_s: float) -> bool:
        return self.seekable and from_s > PREROLL_S

    def _seek(self, start: int) -> KeyframePacket | None:
        """Seeks to a keyframe packet at or before the time stamp `start`. Returns it where it is
        known. Raises StopIteration where there is none."""
        if self.indexed:
            self.container.seek(start, stream=self.stream)
            return None
        number = bisect.bisect_right(self._keyframes, start, key=lambda key: key.pts) - 1
        if number < 0:
            raise StopIteration
        key = self._keyframes[number]
        self.container.seek(key.place, any_frame=True, unsupported_byte_offset=True)
        return key

    def _is_before(self, pts: int | None, from_s: float, key: KeyframePacket | None) -> bool:
        """Whether the first packet after seeking is as expected."""
        if key is not None:
            return pts == key.pts
        return pts is not None and self.time_s(pts) <= from_s

    def _decoded(self, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
        """Skips a packet that can't be decoded, as scoring does."""
        for packet in packets:
            report_progress()
            try:
                frames = self.decoder.decode(packet if packet.size else None)
            except av.error.EOFError:
                return
            except MemoryError as error:
                raise BadVideo("decoding needs more memory than the limit") from error
            except av.FFmpegError:
                continue
            self._aspects.add(packet)
            yield from frames

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        """AVI stores no presentation times, see curation/video/reader.py."""
        return frame.dts if self.container.format.name == "avi" else frame.pts

    def _seconds(self, stamp: int | None) -> float | None:
        return None if stamp is None else stamp * self.tick_s
