"""What an encode does to decoded frames before they are scaled: deinterlacing, tone mapping."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import av.error
from av.filter import Graph

from curation.video.tone_mapping import to_sdr

TimedFrames = Iterator[tuple[av.VideoFrame, int, int]]  # frame, pts and duration in ticks


def deinterlace(frames: TimedFrames) -> TimedFrames:
    """Yields deinterlaced frames, as many and at the same times. bwdif does not change progressive
    frames."""
    for timed in frames:
        if timed[0].interlaced_frame:
            yield from _filter(chain([timed], frames), "bwdif", "mode=send_frame:deint=interlaced")
            return
        yield timed


def tone_map(frames: TimedFrames) -> TimedFrames:
    """HDR frames as SDR."""
    for frame, pts, duration in frames:
        yield to_sdr(frame), pts, duration


def _filter(frames: TimedFrames, name: str, options: str) -> TimedFrames:
    """Applies a filter of FFmpeg that returns one frame for each, in order."""
    first = next(frames, None)
    if first is None:
        return
    graph, frame = Graph(), first[0]
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    graph.link_nodes(source, graph.add(name, options), graph.add("buffersink")).configure()
    times: deque[tuple[int, int]] = deque()
    for number, (frame, pts, duration) in enumerate(chain([first], frames)):
        frame.pts, frame.time_base = number, Fraction(1)
        times.append((pts, duration))
        graph.push(frame)
        yield from _ready(graph, times)
    graph.push(None)
    yield from _ready(graph, times)


def _ready(graph: Graph, times: deque[tuple[int, int]]) -> TimedFrames:
    while times:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield frame, *times.popleft()
