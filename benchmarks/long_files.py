"""What one long file costs in a whole run: CPU seconds of all processes and peak memory.

    python -m benchmarks.long_files [film] [camera] [--hours H] [--folder FOLDER]

*film*: the labelled videos of at least 720 lines (LONGTAKE_VIDEOS), one after the other, as one
film of 1920 x 1080 px at 24 frames/s, 2 hours. *camera*: a labelled video of a static camera,
forwards and backwards so that it has no cut, at 640 x 360 px and 10 frames/s, 8 hours; it runs
without the rules on the size, by which its header would rule it out.

Each is encoded once and its packets are repeated, so that the clips of all rounds but one are
rejected as duplicates, and are not exported. Decoding is PyAV with one thread.
FOLDER keeps inputs and outputs; a run that is finished there is not done again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq

from benchmarks.cpu_time import Cost, measure_command
from benchmarks.labelled_videos import read_labels
from curation.stage import BadVideo
from curation.video.planes import convert
from curation.video.reader import Reader
from pipelines.settings import DEFAULT_CONFIG
from tests.support.paths import VIDEOS

CAMERA = "take_highway_traffic_static_720p.mp4"
NO_SIZE_RULES = [
    *("score.decode.prefilter.width=null", "score.decode.prefilter.height=null"),
    *("select.policy.width=null", "select.policy.height=null"),
]
DECODE = """
import av, sys
with av.open(sys.argv[1]) as file:
    file.streams.video[0].codec_context.thread_count = 1
    for frame in file.decode(video=0):
        pass
"""


@dataclass(frozen=True)
class LongFile:
    """How a long file is made of shorter ones, and the settings of the run that reads it."""

    sources: list[Path]
    width: int
    height: int
    fps: int
    hours: float
    settings: list[str]
    and_backwards: bool = False

    def frames(self) -> Iterator[np.ndarray]:
        """(height, width, 3) BGR uint8 frames of the sources, at most `fps` a second."""
        for source in self.sources:
            due_s = 0.0
            with Reader(str(source)) as reader, suppress(BadVideo):  # frames before damage count
                for t_s, planes in reader.frames():
                    if t_s >= due_s:
                        due_s += 1 / self.fps
                        picture = convert(planes.source.frame, self.width, self.height, "bgr24")
                        yield picture.to_ndarray()

    def write(self, path: Path) -> None:
        """Encodes the frames once, and repeats the packets for `hours`."""
        once = path.with_name(f"once-{path.name}")
        with av.open(str(once), "w") as out:
            stream = out.add_stream("libx264", rate=self.fps, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            images = self.frames()
            if self.and_backwards:
                forwards = list(images)
                images = iter([*forwards, *reversed(forwards)])
            for number, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, "bgr24")
                frame.pts, frame.time_base = number, Fraction(1, self.fps)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        unfinished = path.with_name(f"unfinished-{path.name}")
        self._repeat(once, unfinished)
        once.unlink()
        unfinished.rename(path)

    def _repeat(self, once: Path, path: Path) -> None:
        """Copies the packets until the file is long enough."""
        with av.open(str(once)) as source, av.open(str(path), "w") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            time_base = source.streams.video[0].time_base
            duration = source.streams.video[0].duration
            assert duration is not None
            assert time_base is not None
            for number in range(round(self.hours * 3600 / float(duration * time_base))):
                source.seek(0)
                for packet in source.demux(video=0):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.dts += number * duration
                    packet.pts += number * duration
                    packet.stream = stream
                    out.mux(packet)


def long_files(hours: float | None) -> dict[str, LongFile]:
    high = [path for path, _ in read_labels(VIDEOS) if _height(path) >= 720]
    return {
        "film": LongFile(high, 1920, 1080, 24, hours or 2.0, []),
        "camera": LongFile([VIDEOS / CAMERA], 640, 360, 10, hours or 8.0, NO_SIZE_RULES, True),
    }


def _height(path: Path) -> int:
    """Of a video, px; 0 where it can't be read."""
    try:
        with Reader(str(path)) as reader:
            return reader.header.info().height
    except BadVideo:
        return 0


def measure(name: str, file: LongFile, folder: Path) -> None:
    """Writes the file where it is missing; prints what a whole run and decoding alone cost."""
    source, output = folder / name, folder / f"{name}-out"
    path = source / f"{name}.mp4"
    if not path.exists():
        source.mkdir(parents=True, exist_ok=True)
        file.write(path)
    paths = [f"input={source}", f"output={output}"]
    command = [sys.executable, "-m", "pipelines.curate", DEFAULT_CONFIG, *paths, *file.settings]
    show(name, "whole run", measure_command(command))
    show(name, "decoding", measure_command([sys.executable, "-c", DECODE, str(path)]))
    clips = pq.read_table(output / "clips.parquet", columns=["status"])["status"].to_pylist()
    print(f"{name}: {len(clips)} clips, {clips.count('kept')} kept", flush=True)


def show(name: str, what: str, cost: Cost) -> None:
    peak = f"{cost.peak_bytes / 2**20:.0f} MiB in the largest process"
    print(f"{name}: {what:10} {cost.cpu_s:8.1f} CPU-s, {peak}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="film|camera")
    parser.add_argument("--hours", type=float)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        known = long_files(args.hours)
        for name in args.names or known:
            measure(name, known[name], args.folder or Path(scratch))


if __name__ == "__main__":
    main()
