"""One video opened for cutting: packets and frames near a time, with scoring's times of them."""

from __future__ import annotations

from collections.abc import Iterator

import av

from curation.records import in_span
from curation.stage import BadVideo
from curation.video.container import (
    DEFAULT_LIMITS,
    check_file,
    choose_stream,
    open_container,
    read_head,
    set_up_decoder,
)
from curation.video.reader import Clock

# Containers with an index and one time line: a seek arrives, and a stamp means one frame only. In
# all others frames are counted from the start of the file, as in scoring.
INDEXED = ("mov", "matroska")
RUN_UP_S = (
    1.0  # decoding starts this long before a span: a key frame that is no clean entry can heal
)


class Source:
    """One opened video, with the times that scoring gave its frames."""

    def __init__(self, path: str) -> None:
        self.path = path
        size = check_file(path)
        self._open()
        first = next(self._decoded(self.container.demux(self.stream)), None)
        if first is None:
            raise BadVideo("no frame could be decoded")
        self.head = read_head(self.container, self.stream, first, size)
        self.tick_s = float(self.stream.time_base or 0)
        self.start_stamp = self._stamp(first)
        self.indexed = self.head.container in INDEXED and self.start_stamp is not None

    def _open(self) -> None:
        self.container = open_container(self.path, DEFAULT_LIMITS)
        self.stream = choose_stream(self.container)
        self.decoder = set_up_decoder(self.stream, DEFAULT_LIMITS)

    def close(self) -> None:
        self.container.close()

    def time_s(self, stamp: int) -> float:
        return stamp * self.tick_s - (self.start_stamp or 0) * self.tick_s

    def packets(self, from_s: float) -> Iterator[av.Packet]:
        """Packets in order of decoding, from a key frame a while before `from_s` on.

        From the first one where there is no index, or where it doesn't lead there.
        """
        if self._seeks(from_s):
            start = round((from_s - RUN_UP_S) / self.tick_s) + (self.start_stamp or 0)
            try:
                self.container.seek(start, stream=self.stream)
                packets = self.container.demux(self.stream)
                first = next(packets)
                if first.size and first.pts is not None and self.time_s(first.pts) <= from_s:
                    yield first
                    yield from packets
                    return
            except (av.FFmpegError, StopIteration):
                pass
        self.close()
        self._open()
        yield from self.container.demux(self.stream)

    def frames(self, from_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decoded frames with their times, in order of showing, from before `from_s` on."""
        clock = Clock(1 / self.head.fps)
        if self._seeks(from_s):
            clock.read(self._seconds(self.start_stamp))
        for frame in self._decoded(self.packets(from_s)):
            yield clock.read(self._seconds(self._stamp(frame))), frame

    def span(self, start_s: float, end_s: float) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """The span's frames: when each is shown, for how long (the last until the end), itself."""
        held: tuple[float, av.VideoFrame] | None = None
        for t_s, frame in self.frames(start_s):
            if held is not None:
                yield held[0], min(t_s, end_s) - held[0], held[1]
                held = None
            if in_span(t_s, start_s, end_s):
                held = t_s, frame
            elif t_s >= end_s:
                return
        if held is not None:
            t_s, frame = held
            duration_s = (frame.duration or 0) * self.tick_s or 1 / self.head.fps
            yield t_s, min(duration_s, end_s - t_s), frame

    def _seeks(self, from_s: float) -> bool:
        return self.indexed and from_s > RUN_UP_S

    def _decoded(self, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
        """A packet that can't be decoded is passed over, as in scoring."""
        for packet in packets:
            try:
                yield from self.decoder.decode(packet if packet.size else None)
            except av.error.EOFError:
                return
            except MemoryError as error:
                raise BadVideo("decoding needs more memory than the limit") from error
            except av.FFmpegError:
                continue

    def _stamp(self, frame: av.VideoFrame) -> int | None:
        """AVI stores no times of showing, see curation/video/reader.py."""
        return frame.dts if self.container.format.name == "avi" else frame.pts

    def _seconds(self, stamp: int | None) -> float | None:
        return None if stamp is None else stamp * self.tick_s
