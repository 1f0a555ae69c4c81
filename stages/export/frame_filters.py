"""What an encode does to decoded frames before they are scaled: deinterlacing, tone mapping."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import av.error
from av.filter import Graph

HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ, HLG
TimedFrames = Iterator[tuple[av.VideoFrame, int, int]]  # frame, pts and duration in ticks


def deinterlace(frames: TimedFrames) -> TimedFrames:
    """As many frames, at the same times. bwdif does not change progressive frames."""
    for timed in frames:
        if timed[0].interlaced_frame:
            yield from _filter(chain([timed], frames), "bwdif", "mode=send_frame:deint=interlaced")
            return
        yield timed


def tone_map(frames: TimedFrames) -> TimedFrames:
    """HDR frames as SDR: BT.709, 8 bit, limited range. FFmpeg reads the brightest level from the
    mastering display's metadata; without them it is that of the transfer function."""
    colours = "out_color_matrix=bt709:out_primaries=bt709:out_transfer=bt709:out_range=tv"
    return _filter(frames, "scale", f"{colours}:intent=perceptual", "yuv420p")


def _filter(frames: TimedFrames, name: str, options: str, pix_fmt: str = "") -> TimedFrames:
    """For a filter that gives one frame for each, in order."""
    first = next(frames, None)
    if first is None:
        return
    graph, frame = Graph(), first[0]
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    steps = [source, graph.add(name, options)]
    if pix_fmt:
        steps.append(graph.add("format", pix_fmt))
    graph.link_nodes(*steps, graph.add("buffersink")).configure()
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
