"""Whether the packets of a video stream keep one picture size: from their first bytes, without a
decoder.

A container states one size for a stream, but codecs may change it midway, as live recordings do:
H.264, HEVC, VP8 and AV1 with a keyframe packet, VP9 with any. Other codecs are not read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

SIZE = tuple[int, int]  # width and height, px
SPS_KIND = {"h264": (0, 31, 7), "hevc": (1, 63, 33)}  # shift and mask of a NAL unit's type; SPS
VP9_SYNC = 0x498342
VP9_SRGB = 7  # a color_space
MAX_HEADER_BYTES = 64  # of a frame of VP9 or a sequence header of AV1, in front of the size
OBU_SEQUENCE_HEADER = 1


class BadPacket(Exception):
    """It can't be read."""


def read_size_changes(codec: str, extradata: bytes, size: SIZE) -> Callable[[bytes], bool] | None:
    """Whether a packet states another size than `size`, the first frame's, or can't be read. Of
    AV1: a larger one; a frame may be smaller without stating it.

    None where the codec is unknown, or its header has several sizes or none. extradata: of the
    stream: avcC or hvcC (ISO 14496-15).
    """
    if codec in SPS_KIND:
        if _num_parameter_sets(codec, extradata) != 1:
            return None
        return lambda data: any(s not in extradata for s in _parameter_sets(codec, extradata, data))
    read_sizes = {"vp8": _vp8_sizes, "vp9": _vp9_sizes, "av1": _av1_sizes}.get(codec)
    if read_sizes is None:
        return None

    def changes(data: bytes) -> bool:
        try:
            return any(found != size for found in read_sizes(data))
        except BadPacket:
            return True

    return changes


def _num_parameter_sets(codec: str, extradata: bytes) -> int:
    """Sequence parameter sets in an avcC or hvcC; 0 of other data."""
    if len(extradata) < 23 or extradata[0] != 1:
        return 0
    if codec == "h264":
        return extradata[5] & 31
    number, at = 0, 23
    for _ in range(extradata[22]):
        kind, count = extradata[at : at + 1], int.from_bytes(extradata[at + 1 : at + 3])
        number += count * (kind != b"" and kind[0] & 63 == SPS_KIND["hevc"][2])
        at += 3
        for _ in range(count):
            at += 2 + int.from_bytes(extradata[at : at + 2])
    return number


def _parameter_sets(codec: str, extradata: bytes, data: bytes) -> Iterator[bytes]:
    """The sequence parameter sets in a packet."""
    shift, mask, sps = SPS_KIND[codec]
    length_bytes = (extradata[4 if codec == "h264" else 21] & 3) + 1
    at = 0
    while at + length_bytes < len(data):
        start = at + length_bytes
        at = start + int.from_bytes(data[at:start])
        if data[start] >> shift & mask == sps:
            yield bytes(data[start:at])


def _vp8_sizes(data: bytes) -> Iterator[SIZE]:
    """RFC 6386, 9.1: of a key frame."""
    if data[0] & 1:
        return
    if bytes(data[3:6]) != b"\x9d\x01\x2a":
        raise BadPacket
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    yield width, height


class _Bits:
    """Reads big-endian numbers of so many bits. Raises BadPacket after the end."""

    def __init__(self, data: bytes) -> None:
        head = bytes(data[:MAX_HEADER_BYTES])
        self._value, self._left = int.from_bytes(head), 8 * len(head)

    def __call__(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise BadPacket
        return self._value >> self._left & (1 << count) - 1


def _vp9_sizes(data: bytes) -> Iterator[SIZE]:
    """Of each frame that states it; the others have that of a reference."""
    for frame in _split_superframe(data):
        size = _vp9_size(_Bits(frame))
        if size:
            yield size


def _split_superframe(data: bytes) -> Iterator[bytes]:
    """VP9 bitstream specification, annex B: the frames of a packet."""
    marker = data[-1]
    count, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = data[-(2 + count * size_bytes) :]
    if marker >> 5 != 0b110 or index[0] != marker:
        yield data
        return
    at = 0
    for number in range(count):
        first = 1 + number * size_bytes
        size = int.from_bytes(index[first : first + size_bytes], "little")
        if size:
            yield data[at : at + size]
        at += size


def _vp9_size(bits: _Bits) -> SIZE | None:
    """VP9 bitstream specification, 6.2: of a frame that does not take a reference's size."""
    if bits(2) != 2:
        raise BadPacket
    profile = bits(1) | bits(1) << 1
    if profile == 3:
        bits(1)
    if bits(1):  # shows a frame that exists
        return None
    is_inter, is_shown, is_error_resilient = bits(1), bits(1), bits(1)
    if is_inter:
        is_intra_only = 0 if is_shown else bits(1)
        if not is_error_resilient:
            bits(2)
        if not is_intra_only:
            bits(8 + 3 * 4)  # frames to refresh; three references
            return None if bits(1) or bits(1) or bits(1) else (bits(16) + 1, bits(16) + 1)
    if bits(24) != VP9_SYNC:
        raise BadPacket
    if not is_inter or profile > 0:
        _skip_vp9_colors(bits, profile)
    if is_inter:
        bits(8)
    return bits(16) + 1, bits(16) + 1


def _skip_vp9_colors(bits: _Bits, profile: int) -> None:
    if profile >= 2:
        bits(1)
    is_srgb = bits(3) == VP9_SRGB
    if not is_srgb:
        bits(1)
    if profile & 1:
        bits(1 if is_srgb else 3)


def _av1_sizes(data: bytes) -> Iterator[SIZE]:
    """AV1 bitstream specification, 5.3 and 5.5: the largest size, of each sequence header."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 1 + (head >> 2 & 1)
        size, shift = len(data) - at, 0
        if head >> 1 & 1:
            size = 0
            while at < len(data):
                byte = data[at]
                at, size, shift = at + 1, size | (byte & 127) << shift, shift + 7
                if not byte >> 7:
                    break
        if head >> 3 & 15 == OBU_SEQUENCE_HEADER:
            yield _av1_size(_Bits(data[at : at + size]))
        at += size


def _av1_size(bits: _Bits) -> SIZE:
    bits(4)  # profile, still_picture
    has_decoder_model, delay_bits = 0, 0
    if bits(1):  # reduced_still_picture_header
        bits(5)
    else:
        if bits(1):  # timing_info
            bits(64)
            if bits(1):
                _skip_uvlc(bits)
            has_decoder_model = bits(1)
            if has_decoder_model:
                delay_bits = bits(5) + 1
                bits(42)
        has_display_delay = bits(1)
        for _ in range(bits(5) + 1):  # operating points
            bits(12)
            if bits(5) > 7:
                bits(1)
            if has_decoder_model and bits(1):
                bits(2 * delay_bits + 1)
            if has_display_delay and bits(1):
                bits(4)
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    return bits(width_bits) + 1, bits(height_bits) + 1


def _skip_uvlc(bits: _Bits) -> None:
    zeros = 0
    while not bits(1):
        zeros += 1
    bits(zeros)
