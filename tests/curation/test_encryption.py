"""Encrypted files, and files that must not be read: each is refused at once with its reason."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from curation.stage import BadVideo
from curation.video import ebml, encryption
from curation.video.reader import Reader, probe
from stages.decode_pass import DecodePass
from tests.support import video_files

CENC = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


def assert_encrypted(path: Path) -> None:
    with pytest.raises(BadVideo, match="encrypted: it can't be decoded"):
        probe(str(path))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("scheme", [b"cenc", b"cbcs", b"cens"])
@pytest.mark.parametrize("layout", [{}, FRAGMENTED], ids=["plain", "fragmented"])
def test_encrypted_mp4_is_refused(tmp_path, codec, scheme, layout):
    path = video_files.draw(tmp_path / "a.mp4", codec=codec, frames=30, muxer=CENC | layout)
    path.write_bytes(path.read_bytes().replace(b"schm\0\0\0\0cenc", b"schm\0\0\0\0" + scheme))
    assert_encrypted(path)


def test_encryption_of_another_track_does_not_count(tmp_path):
    path = video_files.draw(tmp_path / "a.mp4", frames=30, also=(64, 48))
    data = path.read_bytes()
    second = data.rindex(b"avc1")  # the first track is chosen
    path.write_bytes(data[:second] + b"encv" + data[second + 4 :])
    with Reader(str(path)) as reader:
        assert reader.header.codec == "h264"


@pytest.mark.parametrize("prefix", [0, 4], ids=["ts", "m2ts"])
@pytest.mark.parametrize("clear_share", [0.0, 0.6], ids=["whole", "end"])
def test_scrambled_transport_stream_is_refused(tmp_path, prefix, clear_share, monkeypatch):
    monkeypatch.setattr(encryption, "SAMPLE_BYTES", 20_000)
    muxer = {"mpegts_m2ts_mode": "1"} if prefix else {}
    options = {"crf": "1", "preset": "ultrafast"}
    path = tmp_path / "a.ts"
    video_files.draw(path, frames=60, width=320, height=180, options=options, muxer=muxer)
    with Reader(str(path)) as reader:
        pid = reader._stream.id
    data = bytearray(path.read_bytes())
    size = 188 + prefix
    for at in range(int(len(data) * clear_share) // size * size + prefix, len(data), size):
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] == pid:
            data[at + 3] |= 0x80
    path.write_bytes(data)
    assert_encrypted(path)


def test_single_damaged_packets_of_a_transport_stream_are_not_taken_for_scrambled(tmp_path):
    path = video_files.draw(tmp_path / "a.ts", frames=60, options={"crf": "1"})
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 20 * 188):
        data[at + 3] |= 0xC0
    path.write_bytes(data)
    assert probe(str(path)).codec == "h264"


def test_scrambled_program_stream_is_refused(tmp_path):
    path = tmp_path / "a.mpg"
    video_files.draw(path, frames=60, codec="mpeg2video", format="vob")
    probe(str(path))
    first, *parts = path.read_bytes().split(b"\0\0\1\xe0")
    scrambled = [part[:2] + bytes([part[2] | 0x10]) + part[3:] for part in parts]
    path.write_bytes(b"\0\0\1\xe0".join([first, *scrambled]))
    assert_encrypted(path)


@pytest.mark.parametrize("guid", encryption.ASF_ENCRYPTION)
def test_encrypted_asf_is_refused(tmp_path, guid):
    path = video_files.draw(tmp_path / "a.wmv", codec="wmv2", frames=30)
    probe(str(path))
    data = path.read_bytes()
    header_bytes, objects = struct.unpack_from("<QI", data, 16)
    added = guid + struct.pack("<Q", 40) + bytes(16)
    header = struct.pack("<QI", header_bytes + len(added), objects + 1)
    path.write_bytes(data[:16] + header + data[28:30] + added + data[30:])
    assert_encrypted(path)


def element(identity: int, body: bytes) -> bytes:
    """EBML, with a size of 8 bytes."""
    name = identity.to_bytes((identity.bit_length() + 7) // 8)
    return name + (len(body) | 1 << 56).to_bytes(8) + body


@pytest.mark.parametrize("key", [b"", element(0x47E2, b"0123456789abcdef")], ids=["plain", "key"])
@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_encrypted_matroska_is_refused(tmp_path, suffix, codec, key):
    path = video_files.draw(tmp_path / f"a.{suffix}", codec=codec, muxer={"live": "1"})
    with path.open("rb") as file:
        [track] = ebml._video_tracks(file)
        first, last = min(a for a, _ in track.values()), max(b for _, b in track.values())
    data = path.read_bytes()
    tracks = data.rindex(ebml.TRACKS.to_bytes(4), 0, first)
    encryption = element(ebml.CONTENT_ENCRYPTION, element(0x47E1, b"\5") + key)
    encoding = element(ebml.CONTENT_ENCODING, element(0x5033, b"\1") + encryption)
    start = first - 2  # the id and the size of the first element
    body = data[start:last] + element(ebml.CONTENT_ENCODINGS, encoding)
    new = element(ebml.TRACKS, element(ebml.TRACK, body))
    path.write_bytes(data[:tracks] + new + data[data.index(ebml.CLUSTER.to_bytes(4)) :])
    assert_encrypted(path)


# ---- files that must not be read


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device_behind_a_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def kernel_file_behind_a_link(path: Path) -> None:
    path.symlink_to("/proc/self/status")


def file_of_sysfs(path: Path) -> None:
    path.symlink_to("/sys/kernel/mm/transparent_hugepage/enabled")


def sparse_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def unfinished_download(path: Path) -> None:
    """Its first part is a valid video; the space of the other parts is reserved."""
    video_files.draw(path, frames=60)
    os.truncate(path, 1 << 38)


def test_zeros_that_were_copied_as_holes_are_no_missing_part(tmp_path):
    path = video_files.draw(tmp_path / "a.mp4", frames=60)
    end = path.stat().st_size
    with path.open("ab") as file:
        file.write(struct.pack(">I4s", 10_000_000, b"free"))
    os.truncate(path, end + 10_000_000)
    assert probe(str(path)).codec == "h264"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (fifo, "not a plain file"),
        (unix_socket, "not a plain file"),
        (device_behind_a_link, "not a plain file"),
        (kernel_file_behind_a_link, "empty file"),
        (file_of_sysfs, "a file of the operating system's kernel"),
        (sparse_file, "not complete: 1099511627776 of 1099511627776 bytes were never written"),
        (unfinished_download, "not complete: "),
    ],
)
def test_file_that_must_not_be_read_is_refused_before_it_is_hashed(tmp_path, make, why):
    path = tmp_path / "a.mp4"
    make(path)
    if path.is_symlink() and not path.exists():
        pytest.skip(f"no {path.readlink()} on this machine")
    with pytest.raises(BadVideo, match=why):
        DecodePass().process([{"video": str(path), "bytes": 1}])
