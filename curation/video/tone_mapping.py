"""HDR frames (PQ, HLG) as SDR, by FFmpeg's `scale` filter."""

from __future__ import annotations

from fractions import Fraction

import av
from av.filter import Graph

HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}  # PQ and HLG, by FFmpeg's numbers


class ToneMapper:
    """Converts the frames of one video: to BT.709, 8-bit 4:2:0, limited range.

    FFmpeg reads the brightest level from the mastering display's metadata; without them it is that
    of the transfer function. The first frame takes 4 s, in which a table is computed.
    """

    def __init__(self) -> None:
        self._graph = Graph()
        self._input: tuple[int, int, str] | None = None  # what the graph is built for

    def convert(self, frame: av.VideoFrame) -> av.VideoFrame:
        given = frame.width, frame.height, frame.format.name
        if given != self._input:
            self._input, self._graph = given, _build_graph(frame)
        self._graph.push(frame)
        return self._graph.vpull()


def _build_graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    colours = "out_color_matrix=bt709:out_primaries=bt709:out_transfer=bt709:out_range=tv"
    scale = graph.add("scale", f"{colours}:intent=perceptual")
    steps = [scale, graph.add("format", "yuv420p"), graph.add("buffersink")]
    graph.link_nodes(source, *steps).configure()
    return graph
