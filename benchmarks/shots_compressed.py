"""Long takes, and videos edited from them, at bit rates so low that only keyframe packets have
detail.

Luma, 640 x 360. Only takes of the half for figures: the detector is trained on the other half.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import av
import cv2
import numpy as np

from benchmarks.labelled_videos import (
    Labels,
    concatenated,
    read_labels,
    read_luma,
    with_jump_cuts,
)
from benchmarks.real_videos import half_of

SIZE = (640, 360)
MIN_TAKE_S, MAX_TAKE_S = 9.0, 15.0
PIECE_FRAMES = 80


class Encoding(NamedTuple):
    codec: str
    options: dict[str, str]
    bits_per_s: int | None = None


def x264(**options: object) -> Encoding:
    return Encoding("libx264", {"preset": "veryfast", **{k: str(v) for k, v in options.items()}})


FAST_VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "120"}
# name -> the encodings that a video passes through
ENCODINGS: dict[str, list[Encoding]] = {
    "x264 crf 38, key 30": [x264(crf=38, g=30)],
    "x264 crf 44": [x264(crf=44)],
    "x264 crf 44, key 30": [x264(crf=44, g=30)],
    "x264 crf 44, fixed 48": [x264(crf=44, g=48, sc_threshold=0, bf=0)],
    "x264 crf 48": [x264(crf=48)],
    "x264 60 kbit/s, key 60": [x264(g=60)._replace(bits_per_s=60_000)],
    "x264 crf 44, then 26": [x264(crf=44, g=60), x264(crf=26)],
    "x265 crf 42": [
        Encoding("libx265", {"preset": "ultrafast", "crf": "42", "x265-params": "log-level=none"})
    ],
    "mpeg4 150 kbit/s": [Encoding("mpeg4", {"g": "12"}, 150_000)],
    "VP9 80 kbit/s": [Encoding("libvpx-vp9", FAST_VP9, 80_000)],
}


def compressed_videos(folder: Path) -> Iterator[tuple[str, Path, Labels]]:
    """(name of the encoding, file, labels). A file is there until the next one is asked for."""
    with TemporaryDirectory() as scratch:
        for labels, fps, frames in uncompressed_videos(folder):
            for name, encodings in ENCODINGS.items():
                encoded = frames
                for number, encoding in enumerate(encodings):
                    path = Path(scratch) / f"{number}.mkv"
                    encode(encoded, fps, encoding, path)
                    if number + 1 < len(encodings):
                        encoded = read_luma(path, 0.0, np.inf, SIZE)[1]
                yield name, path, labels


def uncompressed_videos(folder: Path) -> Iterator[tuple[Labels, float, list[np.ndarray]]]:
    """(labels, frames per second, luma): takes, the same in changing light, and videos edited
    from them."""
    rng = np.random.default_rng(0)
    pieces: list[list[np.ndarray]] = []
    for number, (name, fps, frames) in enumerate(single_takes(folder)):
        yield Labels(name), fps, frames
        light = 0.85 + 0.15 * np.cos(np.arange(len(frames)) / fps / 2 * (1 + number % 3))
        lit = [cv2.convertScaleAbs(f, alpha=float(a)) for f, a in zip(frames, light, strict=True)]
        yield Labels(f"lit {name}"), fps, lit
        for speed in (1, 2):
            labels, edited = with_jump_cuts(name, frames[::speed], fps, speed, rng)
            yield labels, fps, edited
        third = len(frames) // 3
        pieces += [frames[a : a + PIECE_FRAMES].copy() for a in (0, third, 2 * third)]
    for number in range(2):
        order = [pieces[i] for i in rng.permutation(len(pieces))[:16]]
        labels, edited = concatenated(f"places {number}", order, rng)
        yield labels, 25.0, edited


def single_takes(folder: Path) -> Iterator[tuple[str, float, list[np.ndarray]]]:
    """The labelled videos' single takes: name, frames per second, luma."""
    for path, labels in read_labels(folder):
        if "text" in path.name or "vfr" in path.name:  # vfr: a copy of another's frames
            continue
        if half_of(labels.sha256) != "figures":
            continue
        whole = [] if labels.cuts or labels.gradual else [(0.0, np.inf)]
        for start_s, end_s in labels.takes or whole:
            fps, frames = read_luma(path, start_s, min(end_s, start_s + MAX_TAKE_S), SIZE)
            if len(frames) > MIN_TAKE_S * fps:
                yield f"{path.name} from {start_s:g}", fps, frames


def encode(frames: list[np.ndarray], fps: float, encoding: Encoding, path: Path) -> None:
    grey = np.full((SIZE[1] // 2, SIZE[0]), 128, np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoding.codec, rate=round(fps))
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.options = "yuv420p", {"threads": "1", **encoding.options}
        if encoding.bits_per_s:
            stream.bit_rate = encoding.bits_per_s
        for luma in frames:
            frame = av.VideoFrame.from_ndarray(np.vstack([luma, grey]), format="yuv420p")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
