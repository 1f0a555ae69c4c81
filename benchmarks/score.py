"""What `score` costs as users run it, beside decoding the same files once, and beside other tools.

    python benchmarks/score.py [--quick] [--passes]

Reads the labelled videos at LONGTAKE_VIDEOS (default ../shared/videos); --quick takes every fourth.
Everything is CPU seconds of one run on one machine: compare the ratios, not the seconds. The files
are scored once and three times over; half the difference is what one pass costs without start-up.
--passes leaves `score` as a whole out (it costs the most) and shows the meters and the other tools.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose modules are benchmarks, not libraries

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import struct  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter, defaultdict  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import av  # noqa: E402

from benchmarks import peers  # noqa: E402  (before cv2: it quietens OpenCV)
from benchmarks.cpu_time import Spent, spent  # noqa: E402
from curation import config  # noqa: E402
from curation.stage import BadVideo, Row  # noqa: E402
from curation.storage import Folder, list_videos  # noqa: E402
from curation.video import Reader  # noqa: E402
from pipelines.score import build  # noqa: E402
from pipelines.settings import DEFAULT_CONFIG, Settings  # noqa: E402
from pipelines.tables import videos_ledger  # noqa: E402
from stages.text import Text  # noqa: E402
from stages.watch import Watch  # noqa: E402

CONFIG = str(ROOT / DEFAULT_CONFIG)
PADDING_STEP = 16  # bytes
# What differs between files of the same pictures: names, ids, clocks.
OWN = {"video", "bytes", "version", "sha256", "cpu_s", "clip_id", "key_frame", "file"}
METERS = ("shots", "motion", "light", "freeze", "overlay", "fingerprint", "stills")


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
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pipelines.score", CONFIG]
    env = os.environ | {"PYTHONPATH": path}
    return spent([*command, f"input={folder}", f"output={output}"], env)


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


def go_through(
    videos: Sequence[Path], frames_of: Callable[[str], Iterator[Any]]
) -> tuple[float, int]:
    """CPU seconds and frames; a broken file counts as far as it goes."""
    began, frames = time.process_time(), 0
    for video in videos:
        try:
            for _ in frames_of(str(video)):
                frames += 1
        except (av.FFmpegError, BadVideo, IndexError):  # IndexError: no video in it
            continue
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


def meters(videos: Sequence[Path], ledger: str) -> Counter[str]:
    """CPU seconds of each part of the two stages, in this process: no Ray, no isolation."""
    settings = config.load(Settings, CONFIG, [])
    watch, text = build(settings.score, ledger, len(videos))
    assert isinstance(watch, Watch)
    assert isinstance(text, Text)
    clock: Counter[str] = Counter()
    for name in METERS:
        setattr(watch, name, Clocked(getattr(watch, name), clock, name))
    text.setup()  # start-up
    began = time.process_time()
    for video in videos:
        try:
            [row] = watch.process([{"video": str(video), "bytes": video.stat().st_size}])
        except BadVideo:
            continue
        before = time.process_time()
        text.process([row])
        clock["text"] += time.process_time() - before
    rest = time.process_time() - began - clock.total()
    clock["reading"], _ = go_through(videos, read)
    clock["rest"] = rest - clock["reading"]
    return clock


def show(title: str, lines: Sequence[tuple[str, float]], decode_s: float, frames: int) -> None:
    print(f"\n{title}\n{'':44}{'CPU-s':>9}{'x decode':>10}{'us/frame':>10}")
    for name, cpu_s in lines:
        print(f"{name:44}{cpu_s:9.1f}{cpu_s / decode_s:10.2f}{cpu_s / frames * 1e6:10.0f}")


def whole(videos: Sequence[Path], scratch: Path) -> tuple[float, float, list[str]]:
    """CPU seconds of one pass and of start-up; names of copies that were not scored alike."""
    print("scoring once …", file=sys.stderr)
    once = score(lay_out(videos, scratch / "once", 1), scratch / "out-once")
    print("scoring three times over …", file=sys.stderr)
    thrice = score(lay_out(videos, scratch / "thrice", 3), scratch / "out-thrice")
    rows = videos_ledger(Folder(str(scratch / "out-thrice"))).read().to_pylist()
    if len(rows) != 3 * len(videos) or any(row["status"] == "duplicate" for row in rows):
        raise RuntimeError(f"{len(rows)} rows for {3 * len(videos)} files, or copies not scored")
    one_pass = (thrice.cpu_s - once.cpu_s) / 2
    return one_pass, once.cpu_s - one_pass, unlike(rows)


def other_tools(videos: Sequence[Path], scratch: Path) -> dict[str, float]:
    """CPU seconds of each pass that other pipelines make, all threads counted."""
    passes: dict[str, Callable[[str], object]] = {
        "PySceneDetect detect-content": peers.content,
        "PySceneDetect detect-adaptive": peers.adaptive,
        "flow pass (OpenCV, DIS)": peers.flow,
        "frame-sampling pass (OpenCV, seek, JPEG)": lambda video: peers.sample(video, scratch),
    }
    found = {}
    for name, make in passes.items():
        print(f"{name} …", file=sys.stderr)
        began = time.process_time()
        for video in videos:
            make(str(video))
        found[name] = time.process_time() - began
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="every fourth file")
    options.add_argument("--passes", action="store_true", help="leave `score` as a whole out")
    args = options.parse_args()
    folder = os.environ.get("LONGTAKE_VIDEOS") or str(ROOT.parent / "shared" / "videos")
    if not Path(folder).is_dir():
        sys.exit(f"{folder}: no such folder; set LONGTAKE_VIDEOS to a folder of videos")
    videos = sorted(Path(v.video) for v in list_videos(folder))[:: 4 if args.quick else 1]
    with tempfile.TemporaryDirectory() as name:
        report(videos, Path(name), not args.passes)


def report(videos: Sequence[Path], scratch: Path, with_whole: bool) -> None:
    before_s, frames = go_through(videos, decode)
    measured = whole(videos, scratch) if with_whole else None
    clock = meters(videos, str(scratch / "ledger"))
    tools = other_tools(videos, scratch)
    after_s, _ = go_through(videos, decode)
    decode_s = (before_s + after_s) / 2
    print(
        f"{len(videos)} videos, {frames} frames; decoding once, first and last in this run: ",
        end="",
    )
    print(f"{before_s:.1f} and {after_s:.1f} CPU-s")

    parts = [("decoding and reading (a pass of its own)", clock["reading"])]
    parts += [(part, clock[part]) for part in (*METERS, "text")]
    parts += [("the rest: hashes, key frames' scores, files", clock["rest"])]
    parts += [("together, in one process", clock.total())]
    show("What each part costs", parts, decode_s, frames)

    lines = [("decoding, PyAV, one thread", decode_s), *tools.items()]
    both = tools["flow pass (OpenCV, DIS)"] + tools["frame-sampling pass (OpenCV, seek, JPEG)"]
    for detector in ("detect-content", "detect-adaptive"):
        lines += [(f"{detector} + flow + sampling", tools[f"PySceneDetect {detector}"] + both)]
    if measured:
        one_pass, start_up, others = measured
        lines += [("score, one pass, everything counted", one_pass)]
        lines += [("score, start-up", start_up)]
        alike = len({v.name for v in videos}) - len(others)
        print(f"\ncopies scored alike: {alike} of {len(videos)} files, three of each", *others)
    show("Beside other tools", lines, decode_s, frames)


if __name__ == "__main__":
    main()
