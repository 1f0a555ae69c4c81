"""Finds encrypted video before it is decoded: a decoder may take it for damaged video."""

from __future__ import annotations

import av
import numpy as np

from curation.stage import BadVideo
from curation.video import ebml, mp4_boxes
from curation.video.source import Source, opened, size_of

TS_PACKET_BYTES = (188, 192, 204)  # plain, with a time code (M2TS), with error correction
TS_SYNC = 0x47
MIN_SYNCED_PACKETS = 8  # in a row, so that the sync byte is no chance
SAMPLE_BYTES = 1 << 20  # read at each of SAMPLES places of a file: its beginning may be clear
SAMPLES = 4
MIN_SCRAMBLED_SHARE = 0.5  # of the packets read at one place; damage sets the bits of a few
PES_VIDEO = b"\0\0\1\xe0"  # the start of a packet of an MPEG program stream (DVD)
# The Content Encryption objects in the header of an ASF file
ASF_ENCRYPTION = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
)


def check_not_encrypted(
    path: Source, container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> None:
    """Raises BadVideo where the stream is encrypted, as far as the container states it."""
    name = container.format.name
    if name.startswith("mov"):
        encrypted = stream.id in mp4_boxes.read_encrypted_tracks(path)
    elif name.startswith("matroska"):
        tracks, number = ebml.read_encryption(path), container.streams.video.index(stream)
        encrypted = number < len(tracks) and tracks[number]
    elif name == "mpegts":
        shares = [_scrambled_share_ts(part, stream.id) for part in _samples(path)]
        encrypted = max(shares) > MIN_SCRAMBLED_SHARE
    elif name == "mpeg":
        encrypted = max(map(_scrambled_share_pes, _samples(path))) > MIN_SCRAMBLED_SHARE
    else:
        encrypted = name == "asf" and any(guid in _samples(path)[0] for guid in ASF_ENCRYPTION)
    if encrypted:
        raise BadVideo("encrypted: it can't be decoded without a key")


def _samples(path: Source) -> list[bytes]:
    """Bytes from SAMPLES places of the file, its start first."""
    with opened(path) as file:
        size, parts = size_of(file), []
        for number in range(SAMPLES):
            file.seek(size * number // SAMPLES)
            parts.append(file.read(SAMPLE_BYTES))
    return parts


def _scrambled_share_ts(data: bytes, pid: int) -> float:
    """Of a stream's packets: those with transport_scrambling_control (ISO 13818-1, 2.4.3.2)."""
    for size in TS_PACKET_BYTES:
        sync = np.frombuffer(data, np.uint8)[: size * MIN_SYNCED_PACKETS * 2] == TS_SYNC
        if len(sync) < size * (MIN_SYNCED_PACKETS + 1):
            continue
        starts = [sync[at : at + size * MIN_SYNCED_PACKETS : size] for at in range(size)]
        if not (aligned := [at for at, synced in enumerate(starts) if synced.all()]):
            continue
        whole = np.frombuffer(data, np.uint8)[aligned[0] :]
        packets = whole[: len(whole) // size * size].reshape(-1, size)
        of_stream = (packets[:, 1] & 0x1F).astype(int) << 8 | packets[:, 2]
        chosen = packets[(of_stream == pid) & (packets[:, 0] == TS_SYNC)]
        return float((chosen[:, 3] & 0xC0 != 0).mean()) if len(chosen) else 0.0
    return 0.0


def _scrambled_share_pes(data: bytes) -> float:
    """Of the video packets: those with PES_scrambling_control (ISO 13818-1, 2.4.3.7)."""
    flags = [part[2] for part in data.split(PES_VIDEO)[1:] if len(part) > 2]
    flags = [flag for flag in flags if flag >> 6 == 0b10]  # MPEG-1 has no such field
    return sum(flag & 0x30 != 0 for flag in flags) / len(flags) if flags else 0.0
