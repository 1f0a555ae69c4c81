"""What `score` costs as users run it, beside decoding the same files once, and beside other tools.

    python -m benchmarks.score [--quick] [--passes]

Reads the labelled videos at LONGTAKE_VIDEOS (default ../shared/videos); --quick takes every fourth.
CPU seconds wander by a third within minutes on a shared machine, so what is compared is measured in
turns: all passes over one file, then over the next; and as a whole, decoding before, between and
after the two runs of `score`. The files are scored once and three times over; half the difference
is what one pass costs without start-up. --passes leaves `score` as a whole out (it costs the most).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import av

from benchmarks import peers  # before cv2: sets its log level
from benchmarks.cpu_time import Spent, spent
from curation import config
from curation.stage import BadVideo, Row, RunContext
from curation.storage import Folder, list_videos
from curation.video.reader import Reader
from pipelines.score import build
from pipelines.settings import DEFAULT_CONFIG, Settings
from pipelines.tables import videos_ledger
from tests.support.paths import REPOSITORY, VIDEOS

CONFIG = str(REPOSITORY / DEFAULT_CONFIG)
PADDING_STEP = 16  # bytes
# What differs between files of the same pictures: names, ids, clocks.
OWN = {"video", "bytes", "version", "sha256", "cpu_s", "clip_id", "key_frame", "file"}
METERS = ("shots", "motion", "light", "freeze", "overlay", "fingerprint", "stills")
DECODE, READ = "decoding, PyAV, one thread", "decoding and reading"
SCORE = "the two stages of `score`, in one process"
FLOW, SAMPLE = "flow pass (OpenCV, DIS)", "frame-sampling pass (OpenCV, seek, JPEG)"
DETECTORS = {"detect-content": peers.content, "detect-adaptive": peers.adaptive}


def padded(video: bytes, suffix: str, number: int) -> bytes:
    """The same video in other bytes: a box at the end that every reader of its container skips.

    Each number gives another length: files of equal length would be read to compare their bytes.
    """
    empty = bytes(PADDING_STEP * number)
    if suffix in (".mp4", ".mov", ".m4v"):  # ISO 14496-12: a `free` box
        return video + struct.pack(">I4s", 8 + len(empty), b"free") + empty
    if suffix in (".mkv", ".webm"):  # RFC 8794: a Void element, its size in 8 bytes
        return video + b"\xec" + struct.pack(">Q", 1 << 56 | len(empty)) + empty
    raise ValueError(f"{suffix}: no padding known for this container; known: mp4 mov m4v mkv webm")


def lay_out(videos: Sequence[Path], folder: Path, copies: int) -> Path:
    """folder/set0 holds the videos as they are, set1 and so on the same in other bytes."""
    for number in range(copies):
        (folder / f"set{number}").mkdir(parents=True)
        for video in videos:
            data = video.read_bytes()
            if number:
                data = padded(data, video.suffix, number)
            (folder / f"set{number}" / video.name).write_bytes(data)
    return folder


def score(folder: Path, output: Path) -> Spent:
    """`score` in the default configuration, as its users start it, with all that it starts."""
    command = [sys.executable, "-m", "pipelines.score", CONFIG]
    return spent([*command, f"input={folder}", f"output={output}"])


def unlike(rows: Sequence[Row]) -> list[str]:
    """Names of files whose copies in other sets were not scored the same."""
    found = defaultdict(set)
    for row in rows:
        found[Path(row["video"]).name].add(json.dumps(_measured(row), default=bytes.hex))
    return sorted(name for name, versions in found.items() if len(versions) > 1)


def _measured(value: Any) -> Any:
    """A row without what may differ between copies."""
    if isinstance(value, dict):
        kept = {name: _measured(v) for name, v in sorted(value.items()) if name not in OWN}
        if kept.get("error"):  # what is wrong with a broken file is the same, not at which byte
            kept["error"] = re.sub(r"\d+", "#", kept["error"])
        return kept
    return [_measured(v) for v in value] if isinstance(value, list) else value


def decode(video: str) -> Iterator[Any]:
    """PyAV, one thread: nothing but the decoder."""
    with av.open(video) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        yield from container.decode(stream)


def read(video: str) -> Iterator[Any]:
    """What `score` reads a video with: the planes at reduced size."""
    with Reader(video) as reader:
        yield from reader.frames()


def count(frames: Iterator[Any]) -> int:
    """How many there are; a broken file counts as far as it goes."""
    number = 0
    with suppress(av.FFmpegError, BadVideo, IndexError):  # IndexError: no video in it
        for _ in frames:
            number += 1
    return number


def decoding(videos: Sequence[Path]) -> tuple[float, int]:
    """CPU seconds and frames of one pass over all files."""
    began = time.process_time()
    frames = sum(count(decode(str(video))) for video in videos)
    return time.process_time() - began, frames


class Clocked:
    """Stands for an object and adds the CPU time of its methods to a clock."""

    def __init__(self, inner: Any, clock: dict[str, float], name: str) -> None:
        self._inner, self._clock, self._name = inner, clock, name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._inner, attribute)
        if not callable(value):
            return value

        def clocked(*args: Any) -> Any:
            began = time.process_time()
            try:
                return value(*args)
            finally:
                self._clock[self._name] += time.process_time() - began

        setattr(self, attribute, clocked)
        return clocked


def one_by_one(videos: Sequence[Path], scratch: Path) -> tuple[Counter[str], Counter[str]]:
    """CPU seconds of each pass over the files, taking turns; and of each part of the pass SCORE.

    That is the two stages of `score` in this process: no Ray, no isolation.
    """
    settings = config.load(Settings, CONFIG, [])
    decode, text = build(settings.score)
    for stage in (decode, text):
        stage.setup(RunContext(str(scratch / "ledger")))
    with suppress(BadVideo):  # what is imported at the first use is start-up as well
        decode.process([{"video": str(videos[0]), "bytes": os.stat(videos[0]).st_size}])
    parts: Counter[str] = Counter()
    for name in METERS:
        setattr(decode, name, Clocked(getattr(decode, name), parts, name))
    clocked_text = Clocked(text, parts, "text")

    def score_alone(video: str) -> None:
        with suppress(BadVideo):
            clocked_text.process(
                decode.process([{"video": video, "bytes": os.stat(video).st_size}])
            )

    passes: dict[str, Callable[[str], object]] = {
        DECODE: lambda video: count(decode(video)),
        READ: lambda video: count(read(video)),
        SCORE: score_alone,
        **{f"PySceneDetect {name}": detect for name, detect in DETECTORS.items()},
        FLOW: peers.flow,
        SAMPLE: lambda video: peers.sample(video, scratch),
    }
    spent_s: Counter[str] = Counter()
    for number, video in enumerate(videos, 1):
        print(f"each pass over one file: {number} of {len(videos)}", file=sys.stderr)
        for name, make in passes.items():
            began = time.process_time()
            make(str(video))
            spent_s[name] += time.process_time() - began
    return spent_s, parts


@dataclass(frozen=True)
class Whole:
    """CPU seconds."""

    decode: list[float]  # before, between and after
    one_pass: float
    start_up: float
    unlike: list[str]  # names of files whose copies were not scored alike


def whole(videos: Sequence[Path], scratch: Path) -> Whole:
    decoded = [decoding(videos)[0]]
    print("scoring once …", file=sys.stderr)
    once = score(lay_out(videos, scratch / "once", 1), scratch / "out-once")
    decoded.append(decoding(videos)[0])
    print("scoring three times over …", file=sys.stderr)
    thrice = score(lay_out(videos, scratch / "thrice", 3), scratch / "out-thrice")
    decoded.append(decoding(videos)[0])
    rows = videos_ledger(Folder(str(scratch / "out-thrice"))).read().to_pylist()
    if len(rows) != 3 * len(videos) or any(row["status"] == "duplicate" for row in rows):
        raise RuntimeError(f"{len(rows)} rows for {3 * len(videos)} files, or copies not scored")
    one_pass = (thrice.cpu_s - once.cpu_s) / 2
    return Whole(decoded, one_pass, once.cpu_s - one_pass, unlike(rows))


def show(title: str, cpu_s: dict[str, float], frames: int) -> None:
    """A line for each of `cpu_s`, beside decoding."""
    print(f"\n{title}\n{'':44}{'CPU-s':>9}{'x decode':>10}{'us/frame':>10}")
    for name, value in cpu_s.items():
        print(f"{name:44}{value:9.1f}{value / cpu_s[DECODE]:10.2f}{value / frames * 1e6:10.0f}")


def report_whole(videos: Sequence[Path], scratch: Path, frames: int) -> None:
    found = whole(videos, scratch)
    lines = {
        DECODE: fmean(found.decode),
        "score, one pass, everything counted": found.one_pass,
        "score, start-up": found.start_up,
    }
    show("What `score` costs", lines, frames)
    print("decoding before, between, after:", *(f"{cpu_s:.1f}" for cpu_s in found.decode))
    alike = len({v.name for v in videos}) - len(found.unlike)
    print(f"copies scored alike: {alike} of {len(videos)} files, three of each", *found.unlike)


def report_passes(videos: Sequence[Path], scratch: Path, frames: int) -> None:
    spent_s, parts = one_by_one(videos, scratch)
    rest = "the rest: hashes, key frames' scores, files"
    lines = {name: spent_s[name] for name in (DECODE, READ)}
    lines |= {part: parts[part] for part in (*METERS, "text")}
    lines |= {rest: spent_s[SCORE] - spent_s[READ] - parts.total(), SCORE: spent_s[SCORE]}
    show("What each part costs", lines, frames)

    lines = {name: spent_s[name] for name in spent_s if name not in (READ, SCORE)}
    both = spent_s[FLOW] + spent_s[SAMPLE]
    for name in DETECTORS:
        lines[f"{name} + flow + sampling"] = spent_s[f"PySceneDetect {name}"] + both
    show("Beside other tools", lines, frames)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="every fourth file")
    options.add_argument("--passes", action="store_true", help="leave `score` as a whole out")
    args = options.parse_args()
    if not VIDEOS.is_dir():
        sys.exit(f"{VIDEOS}: no such folder; set LONGTAKE_VIDEOS to a folder of videos")
    videos = sorted(Path(v.video) for v in list_videos(str(VIDEOS)))[:: 4 if args.quick else 1]
    _, frames = decoding(videos)  # and the files are in memory
    print(f"{len(videos)} videos, {frames} frames")
    with tempfile.TemporaryDirectory() as name:
        if not args.passes:
            report_whole(videos, Path(name), frames)
        report_passes(videos, Path(name), frames)


if __name__ == "__main__":
    main()
