"""What a video's header, index and first frame state, for deciding before its decode."""

from __future__ import annotations

import contextlib

import av

from curation.stage import BadVideo
from curation.video import ebml, mp4_boxes
from curation.video.coded_size import make_size_check
from curation.video.index import Claim, StreamIndex
from curation.video.reader import Reader
from curation.video.source import Source, is_matroska

SLICE_TYPES = (1, 5)  # NAL units of H.264 with a part of a picture
KEPT_SLICE_BYTES = 2048  # of the first one, which are decoded
IN_BAND_TAGS = ("avc3", "hev1")  # of MP4: sample entries whose parameter sets may be in packets


def read_claims(path: Source) -> list[Claim]:
    """Of the video tracks of an MP4 or Matroska file, without opening a decoder; none of other
    files."""
    return ebml.read_claims(path) if is_matroska(path) else mp4_boxes.read_claims(path)


class FirstFrameReader(Reader):
    """Opens a video and decodes its first packet alone, in half the time of a Reader.

    Raises BadVideo also where that packet gives no frame. It gives no further frames.
    """

    header_only = True

    def _decode_until_first_frame(self) -> list[av.VideoFrame]:
        # Nobody sees the frame: no loop filter, and no concealment of what is left out
        self._decoder.options |= {"skip_loop_filter": "all", "ec": "0"}
        packet = next(self._demux(), None)
        if packet is None:
            raise BadVideo("it has no packet")
        self._first_packet = bytes(packet)
        is_h264 = self._decoder.name == "h264"
        frames = self._decode(_shorten(packet, self._decoder) if is_h264 else packet)
        if not frames:  # it waits for its order
            with contextlib.suppress(av.FFmpegError):
                frames = self._decoder.decode(None)
        if not frames:
            raise BadVideo("its first packet gives no frame")
        return frames

    def index(self, with_end: bool) -> StreamIndex:
        """What the container's index states about all frames.

        with_end: also where the video ends, for which parts of a Matroska file are read.
        """
        name, found = self.header.container, None
        if name == "mov":
            found = mp4_boxes.read_stream_index(self.path, self._stream.id)
        elif name == "matroska":
            number = self._container.streams.video.index(self._stream)
            found = ebml.read_stream_index(self.path, number, with_end)
        return found or StreamIndex(None, None, None)

    def has_one_size(self, stated: tuple[int, int] | None) -> bool:
        """Whether all frames are of the size that the container states and the first frame has.
        Of AV1: whether none is larger.

        Reads the packets of a local file; of an object in a store only H.264 and HEVC are known,
        whose parameter sets are in the header.
        """
        first, decoder = self._pending[0], self._stream.codec_context
        size, codec = (first.width, first.height), self.header.codec
        changes = make_size_check(codec, decoder.extradata or b"", size)
        if stated != size or changes is None:
            return False
        if not isinstance(self.path, str):
            return codec in ("h264", "hevc") and decoder.codec_tag not in IN_BAND_TAGS
        for stream in self._container.streams:
            stream.discard = av.stream.Discard.all
        self._stream.discard = getattr(av.stream.Discard, "default" if codec == "vp9" else "nonkey")
        try:
            packets = self._container.demux(self._stream)
            changed = any(changes(bytes(packet)) for packet in packets if packet.size)
        except av.FFmpegError:
            return False
        return not changed and not changes(self._first_packet)


def _shorten(packet: av.Packet, decoder: av.video.codeccontext.VideoCodecContext) -> av.Packet:
    """Of H.264 in MP4 and Matroska: up to the first KEPT_SLICE_BYTES of the picture. Its size is
    that of the parameter sets, and the rest of a keyframe takes 3 to 20 ms. Else the same packet.
    """
    data, head = bytes(packet), decoder.extradata or b""
    if len(head) < 5 or head[0] != 1 or head[4] & 3 != 3:  # lengths of four bytes (avcC)
        return packet
    kept, at = b"", 0
    while at + 5 <= len(data):
        unit = data[at + 4 : at + 4 + int.from_bytes(data[at : at + 4])]
        at += 4 + len(unit)
        is_slice = bool(unit) and unit[0] & 31 in SLICE_TYPES
        unit = unit[:KEPT_SLICE_BYTES] if is_slice else unit
        kept += len(unit).to_bytes(4) + unit
        if is_slice:
            shortened = av.Packet(kept)
            shortened.pts, shortened.dts = packet.pts, packet.dts
            shortened.time_base, shortened.is_keyframe = packet.time_base, packet.is_keyframe
            return shortened
    return packet
