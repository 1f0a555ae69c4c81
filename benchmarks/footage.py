"""Single takes of real footage: of the labelled videos and of those of benchmarks/labels.

    python -m benchmarks.footage OUT

packs the takes of the development half: OUT gets a small file for each source, and takes.jsonl.
Films are drawn faster from it, and it can be copied to a machine that has no other footage:
`single_takes` reads it alone where LONGTAKE_PACKED names it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.real_videos import LABELS, half_of, present, real_videos
from curation.stage import BadVideo
from curation.video.frames import Planes
from curation.video.planes import chroma_image, convert
from curation.video.reader import Reader
from stages.shots.frame_view import FrameView

FOOTAGE = LABELS.with_name("footage.jsonl")
WIDE, HIGH, MOST = 400, 226, 250  # px and frames of a take that films show
LEAST_S = 4.0  # of a take that is edited from
UNNATURAL = ("screen recording", "game", "animation", "game trailer")


@dataclass(frozen=True)
class Take:
    """A span of a file that holds no transition."""

    path: str
    start_s: float
    end_s: float
    half: str  # development or figures: by the parity of the file's sha256
    repository: str = ""

    def frames(self, width: int, height: int, most: int) -> list[np.ndarray]:
        """At most `most` frames from the start, (height, width, 3) BGR uint8."""
        found: list[np.ndarray] = []
        try:
            with Reader(self.path) as reader:
                for t_s, planes in reader.frames():
                    if t_s >= self.end_s or len(found) == most:
                        break
                    if t_s >= self.start_s:
                        picture = convert(planes.source.frame, width, height, "bgr24")
                        found.append(picture.to_ndarray())
        except BadVideo:
            pass  # what was read until then counts
        return found


def frame_views(
    reader: Reader, start_s: float = 0.0, end_s: float = float("inf")
) -> Iterator[FrameView]:
    """The frames in [start_s, end_s). A file that can't be decoded to its end gives those before:
    the labels end there too."""
    try:
        for t_s, planes in reader.frames():
            if t_s >= end_s:
                return
            if t_s >= start_s:
                yield FrameView(t_s, Planes(planes.y, chroma=chroma_image(planes)))
    except BadVideo:
        pass


def single_takes() -> list[Take]:
    """Takes of natural footage of at least LEAST_S seconds, in a fixed order."""
    if packed := os.environ.get("LONGTAKE_PACKED"):
        lines = Path(packed, "takes.jsonl").read_text().splitlines()
        found = [Take(**json.loads(line)) for line in lines]
        return [replace(take, path=str(Path(packed, take.path))) for take in found]
    takes = (*_labelled(), *_development_set(), *_further_footage())
    return [take for take in takes if take.end_s - take.start_s >= LEAST_S]


def _labelled() -> Iterator[Take]:
    default = Path(__file__).resolve().parents[2] / "shared/videos"
    folder = Path(os.environ.get("LONGTAKE_VIDEOS") or default)
    if not (folder / "labels.csv").exists():
        return
    with (folder / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["file"].startswith(("text", "edit", "codec", "synthetic", "pillarbox")):
                continue
            for span in filter(None, row["long_take_segments"].split(";")):
                start, end = map(float, span.split("-"))
                yield Take(
                    str(folder / row["file"]), start, end, half_of(row["sha256"]), row["file"]
                )


def _development_set() -> Iterator[Take]:
    for path, video in present(real_videos()):
        if video.kind not in UNNATURAL:
            for first, end in video.one_view_takes:
                start_s, end_s = first / video.fps + 0.1, end / video.fps - 0.1
                yield Take(str(path), start_s, end_s, video.half, video.repository)


def _further_footage() -> Iterator[Take]:
    """Files without labels, for training alone: the first 12 s of the single takes of
    labels/footage.jsonl that lie as SHA256.* in LONGTAKE_FOOTAGE."""
    folder = os.environ.get("LONGTAKE_FOOTAGE")
    if not folder:
        return
    for line in FOOTAGE.read_text().splitlines():
        of = json.loads(line)
        for path in Path(folder).glob(f"{of['sha256']}.*"):
            if of.get("single_take", True):
                yield Take(str(path), 0.0, 12.0, "development", of["repository"])


def pack(out: Path) -> None:
    """Writes the first MOST frames of each take of the development half, WIDE x HIGH, 25 a second:
    one file for each source."""
    out.mkdir(parents=True, exist_ok=True)
    takes = [take for take in single_takes() if take.half == "development"]
    with (out / "takes.jsonl").open("w") as lines:
        for number, path in enumerate(sorted({take.path for take in takes})):
            name, done = f"{number:03d}.mp4", 0
            with av.open(str(out / name), "w") as container:
                stream = container.add_stream("libx264", rate=Fraction(25))
                stream.width, stream.height, stream.pix_fmt = WIDE, HIGH, "yuv420p"
                stream.options = {"crf": "17", "g": "250", "preset": "medium"}
                for take in (take for take in takes if take.path == path):
                    frames = take.frames(WIDE, HIGH, MOST)
                    for frame in frames:
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
                    start_s, done = done / 25, done + len(frames)
                    packed = Take(name, start_s, done / 25 - 0.02, "development", take.repository)
                    if frames:
                        lines.write(json.dumps(asdict(packed)) + "\n")
                container.mux(stream.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    pack(parser.parse_args().out)
