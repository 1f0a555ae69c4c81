"""Reads the picture size from the first bytes of a video packet, without a decoder.

A container states one size for a stream, but the stream may change it midway, as in live
recordings: H.264, HEVC, VP8 and AV1 at a keyframe packet, VP9 at any packet. Other codecs are not
supported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

SIZE = tuple[int, int]  # width and height, px
# Shift and mask that give the type from a NAL unit's first byte, and the type of a sequence
# parameter set
SPS_TYPE = {"h264": (0, 31, 7), "hevc": (1, 63, 33)}
VP9_SYNC_CODE = 0x498342
VP9_SRGB = 7  # a value of color_space
MAX_HEADER_BYTES = 64  # up to the end of the size, in a VP9 frame or an AV1 sequence header
OBU_SEQUENCE_HEADER = 1  # a value of obu_type


class BadPacket(Exception):
    """A packet's header can't be read."""


def make_size_check(codec: str, extradata: bytes, size: SIZE) -> Callable[[bytes], bool] | None:
    """Returns a function: whether a packet may change the size, or can't be read.

    size: of the stream's first frame.  extradata: of the stream; of H.264 and HEVC the avcC or hvcC
    record (ISO 14496-15). A packet of H.264 or HEVC may change the size if it has a sequence
    parameter set that extradata has not; of other codecs, if it states another size. A frame of AV1
    may be smaller than the stated size.

    None where the codec is not supported or, of H.264 and HEVC, extradata does not have exactly one
    sequence parameter set.
    """
    if codec in SPS_TYPE:
        if _num_parameter_sets(codec, extradata) != 1:
            return None
        return lambda data: any(
            sps not in extradata for sps in _parameter_sets(codec, extradata, data)
        )
    read_sizes = {"vp8": _vp8_sizes, "vp9": _vp9_sizes, "av1": _av1_sizes}.get(codec)
    if read_sizes is None:
        return None

    def changes(data: bytes) -> bool:
        try:
            return any(stated != size for stated in read_sizes(data))
        except BadPacket:
            return True

    return changes


def _num_parameter_sets(codec: str, extradata: bytes) -> int:
    """The number of sequence parameter sets in an avcC or hvcC record; 0 for other data."""
    if len(extradata) < 23 or extradata[0] != 1:
        return 0
    if codec == "h264":
        return extradata[5] & 31
    number, at = 0, 23
    for _ in range(extradata[22]):  # arrays of NAL units of one type
        head, count = extradata[at : at + 1], int.from_bytes(extradata[at + 1 : at + 3])
        number += count * (head != b"" and head[0] & 63 == SPS_TYPE["hevc"][2])
        at += 3
        for _ in range(count):
            at += 2 + int.from_bytes(extradata[at : at + 2])
    return number


def _parameter_sets(codec: str, extradata: bytes, data: bytes) -> Iterator[bytes]:
    """The sequence parameter sets in a packet, whose NAL units follow their lengths."""
    shift, mask, sps_type = SPS_TYPE[codec]
    length_bytes = (extradata[4 if codec == "h264" else 21] & 3) + 1
    at = 0
    while at + length_bytes < len(data):
        start = at + length_bytes
        at = start + int.from_bytes(data[at:start])
        if data[start] >> shift & mask == sps_type:
            yield bytes(data[start:at])


def _vp8_sizes(data: bytes) -> Iterator[SIZE]:
    """The size, if it is a keyframe packet (RFC 6386, section 9.1)."""
    if data[0] & 1:  # an inter frame
        return
    if bytes(data[3:6]) != b"\x9d\x01\x2a":
        raise BadPacket
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    yield width, height


class _Bits:
    """Reads unsigned numbers of a given number of bits, the most significant bit first. Raises
    BadPacket after the end of the data or of its first MAX_HEADER_BYTES."""

    def __init__(self, data: bytes) -> None:
        head = bytes(data[:MAX_HEADER_BYTES])
        self._value, self._left = int.from_bytes(head), 8 * len(head)  # bits not yet read

    def __call__(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise BadPacket
        return self._value >> self._left & (1 << count) - 1


def _vp9_sizes(data: bytes) -> Iterator[SIZE]:
    """The size of each frame that states one; other frames have the size of a reference frame."""
    for frame in _split_superframe(data):
        size = _vp9_size(_Bits(frame))
        if size:
            yield size


def _split_superframe(data: bytes) -> Iterator[bytes]:
    """The frames of a packet (VP9 bitstream specification, annex B)."""
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
    """The size in a frame's uncompressed header (VP9 bitstream specification, 6.2); None where the
    frame has the size of a reference frame."""
    if bits(2) != 2:  # frame_marker
        raise BadPacket
    profile = bits(1) | bits(1) << 1
    if profile == 3:
        bits(1)  # reserved_zero
    if bits(1):  # show_existing_frame
        return None
    is_non_key, is_shown, is_error_resilient = bits(1), bits(1), bits(1)
    if is_non_key:
        is_intra_only = 0 if is_shown else bits(1)
        if not is_error_resilient:
            bits(2)  # reset_frame_context
        if not is_intra_only:
            bits(8 + 3 * 4)  # refresh_frame_flags; three references
            # found_ref of each reference
            return None if bits(1) or bits(1) or bits(1) else (bits(16) + 1, bits(16) + 1)
    if bits(24) != VP9_SYNC_CODE:
        raise BadPacket
    if not is_non_key or profile > 0:
        _skip_vp9_color_config(bits, profile)
    if is_non_key:
        bits(8)  # refresh_frame_flags
    return bits(16) + 1, bits(16) + 1


def _skip_vp9_color_config(bits: _Bits, profile: int) -> None:
    if profile >= 2:
        bits(1)  # ten_or_twelve_bit
    is_srgb = bits(3) == VP9_SRGB
    if not is_srgb:
        bits(1)  # color_range
    if profile & 1:
        bits(1 if is_srgb else 3)  # subsampling_x and _y, unless sRGB; reserved_zero


def _av1_sizes(data: bytes) -> Iterator[SIZE]:
    """The maximum frame size in each sequence header (AV1 bitstream specification, 5.3)."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 1 + (head >> 2 & 1)  # obu_extension_flag
        obu_bytes, shift = len(data) - at, 0
        if head >> 1 & 1:  # obu_has_size_field: a number in LEB128
            obu_bytes = 0
            while at < len(data):
                byte = data[at]
                at, obu_bytes, shift = at + 1, obu_bytes | (byte & 127) << shift, shift + 7
                if not byte >> 7:
                    break
        if head >> 3 & 15 == OBU_SEQUENCE_HEADER:
            yield _av1_size(_Bits(data[at : at + obu_bytes]))
        at += obu_bytes


def _av1_size(bits: _Bits) -> SIZE:
    """The maximum frame size in a sequence header (AV1 bitstream specification, 5.5.1)."""
    bits(4)  # seq_profile, still_picture
    has_decoder_model, delay_bits = 0, 0
    if bits(1):  # reduced_still_picture_header
        bits(5)  # seq_level_idx
    else:
        if bits(1):  # timing_info_present_flag
            bits(64)  # num_units_in_display_tick, time_scale
            if bits(1):  # equal_picture_interval
                _skip_uvlc(bits)
            has_decoder_model = bits(1)
            if has_decoder_model:
                delay_bits = bits(5) + 1
                bits(42)  # num_units_in_decoding_tick, lengths of two other fields
        has_display_delay = bits(1)
        for _ in range(bits(5) + 1):  # operating points
            bits(12)  # operating_point_idc
            if bits(5) > 7:  # seq_level_idx
                bits(1)  # seq_tier
            if has_decoder_model and bits(1):
                bits(2 * delay_bits + 1)  # two delays, low_delay_mode_flag
            if has_display_delay and bits(1):
                bits(4)  # initial_display_delay_minus_1
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    return bits(width_bits) + 1, bits(height_bits) + 1


def _skip_uvlc(bits: _Bits) -> None:
    """Skips a variable-length number (AV1 bitstream specification, 4.10.3)."""
    zeros = 0
    while not bits(1):
        zeros += 1
    bits(zeros)
