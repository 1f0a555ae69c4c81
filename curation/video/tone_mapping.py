"""HDR frames (PQ, HLG) as SDR, by FFmpeg's `scale` filter."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import av
from av.filter import Graph

HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}  # PQ and HLG, by FFmpeg's numbers


def to_sdr(frame: av.VideoFrame) -> av.VideoFrame:
    """Converts a frame to BT.709, 8-bit 4:2:0, limited range.

    FFmpeg reads the brightest level from the mastering display's metadata; without them it is that
    of the transfer function. The first frame of each kind takes 4 s, in which a table is computed;
    FFmpeg computes another one where the metadata change.
    """
    graph = _graph(frame.width, frame.height, frame.format.name, frame.color_trc)
    try:
        graph.push(frame)
        return graph.vpull()
    except BaseException:
        _graph.cache_clear()  # a frame that was left in it would be taken for the next one
        raise


@lru_cache(maxsize=2)  # of this process, because videos of the same kind follow each other
def _graph(width: int, height: int, pix_fmt: str, transfer: int) -> Graph:
    """transfer: so that each kind of HDR has a graph, and its table, of its own."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat(pix_fmt), time_base=Fraction(1)
    )
    colours = "out_color_matrix=bt709:out_primaries=bt709:out_transfer=bt709:out_range=tv"
    scale = graph.add("scale", f"{colours}:intent=perceptual")
    steps = [scale, graph.add("format", "yuv420p"), graph.add("buffersink")]
    graph.link_nodes(source, *steps).configure()
    return graph
