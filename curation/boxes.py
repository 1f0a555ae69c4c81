"""What a file is, told from its first bytes and its boxes: plain errors without any decoder."""

from __future__ import annotations

import os
from dataclasses import dataclass

# Boxes at the top of an MP4 or QuickTime file (ISO 14496-12, QuickTime File Format).
TOP_LEVEL = frozenset(
    b"ftyp styp moov moof mdat free skip wide uuid pnot sidx ssix mfra meta prft emsg udta junk "
    b"pdin imda bloc jP\x20\x20".split(b" ")
) | {b"PICT", b"pict", b"jp2h"}

SIGNATURES = (
    (b"#EXTM3U", "a playlist (m3u8)"),
    (b"ffconcat", "a list of other files (ffconcat)"),
    (b"v=0", "a session description (sdp)"),
    (b"<?xml", "an XML file"),
    (b"<MPD", "a streaming manifest (mpd)"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
)


@dataclass(frozen=True)
class Boxes:
    """The top-level boxes of an MP4 file."""

    kinds: tuple[bytes, ...]
    readable: int  # bytes up to the first that belong to no box
    total: int  # bytes of the file

    @property
    def outside(self) -> int:
        return self.total - self.readable


def what_is(path: str) -> str | None:
    """In plain words what the file is instead of a video, None where its bytes don't say."""
    with open(path, "rb") as file:
        head = file.read(4096)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, name in SIGNATURES:
        if start.startswith(signature):
            return name
    if b"\0" in head:
        return None
    try:
        head.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut off at the end is no sign
            return None
    return "text"


def walk(path: str) -> Boxes:
    """Reads the sizes of the top-level boxes, nothing else of them."""
    kinds: list[bytes] = []
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        at = 0
        while at + 8 <= total and len(kinds) < 1_000_000:
            file.seek(at)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4]), header[4:8]
            if size == 1 and len(header) == 16:
                size, smallest = int.from_bytes(header[8:]), 16
            else:
                smallest = 8
            if size == 0:  # the last box: up to the end of the file
                size = total - at
            known = kind in TOP_LEVEL
            fits = at + size <= total
            if size < smallest or not (known or (fits and kind.isalnum())):
                break
            kinds.append(kind)
            at = min(
                at + size, total
            )  # a box cut off by the end of the file is a matter of its frames
    return Boxes(tuple(kinds), total if total - at < 8 else at, total)
