"""What `score` costs, compared with decoding the same files once and with other tools.

    python -m benchmarks.score [--quick] [--passes] [--mix]

Reads the labelled videos at LONGTAKE_VIDEOS (default ../shared/videos); --quick takes every fourth.
On a shared machine CPU seconds vary by a third within minutes. So passes that are compared take
turns: all passes over one file, then all over the next. For `score` as a whole, which runs as users
run it, decoding is measured before, between and after two runs: over the files once, and over three
copies of them. Half the difference of the two is the cost of one pass without start-up. --passes
skips `score` as a whole, which takes longest.

--mix measures header rules alone: CPU seconds per kept minute with them and without, on as many
videos that their headers rule out (under 1280 x 720 or under 15 s) as others.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import av
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import other_tools  # before cv2: it sets the log level of OpenCV's FFmpeg
from benchmarks.cpu_time import Cost, measure_command
from curation import config
from curation.ledger import flatten_clips
from curation.records import VIDEO, schema
from curation.stage import BadVideo, Row, RunContext
from curation.storage import Folder
from curation.video.planes import with_chroma
from curation.video.reader import Reader
from curation.video_list import list_videos
from pipelines.score import build
from pipelines.settings import DEFAULT_CONFIG, Settings
from pipelines.tables import videos_ledger
from stages import decode_pass
from stages.decode_pass import DecodePass
from stages.header_rules import header_rejection
from stages.meters.meter import Meter
from stages.scorers.ocr import OcrStage, evenly_spaced
from stages.selection.clip_selection import select_clips
from tests.support.paths import REPOSITORY, VIDEOS

CONFIG = str(REPOSITORY / DEFAULT_CONFIG)
PADDING_STEP_BYTES = 16
# columns that differ between copies of a video
COPY_COLUMNS = {"video", "bytes", "version", "sha256", "cpu_s", "clip_id", "key_frame", "file"}
DECODE, READ = "decoding, PyAV, one thread", "decoding and reading"
WITH_RULES, WITHOUT_RULES = "score, header rules first", "score, every video decoded"
SCORE = "the two stages of `score`, in one process"
FLOW, SAMPLE = "flow pass (OpenCV, DIS)", "frame-sampling pass (OpenCV, seek, JPEG)"
DETECTORS = {
    "detect-content": other_tools.detect_content,
    "detect-adaptive": other_tools.detect_adaptive,
}


def pad_container(video: bytes, suffix: str, number: int) -> bytes:
    """The video with a box at its end that readers of its container skip.

    Each number gives another length, because `score` compares the bytes of files of equal length.
    """
    padding = bytes(PADDING_STEP_BYTES * number)
    if suffix in (".mp4", ".mov", ".m4v"):  # ISO 14496-12: a `free` box
        return video + struct.pack(">I4s", 8 + len(padding), b"free") + padding
    if suffix in (".mkv", ".webm"):  # RFC 8794: a Void element, its size in 8 bytes
        return video + b"\xec" + struct.pack(">Q", 1 << 56 | len(padding)) + padding
    raise ValueError(f"{suffix}: no padding known for this container; known: mp4 mov m4v mkv webm")


def write_copies(videos: Sequence[Path], folder: Path, copies: int) -> Path:
    """Writes the videos to folder/set0, and padded copies of them to set1 and so on."""
    for number in range(copies):
        (folder / f"set{number}").mkdir(parents=True)
        for video in videos:
            data = video.read_bytes()
            if number:
                data = pad_container(data, video.suffix, number)
            (folder / f"set{number}" / video.name).write_bytes(data)
    return folder


def run_score(folder: Path, output: Path) -> Cost:
    """The cost of `score` with the default configuration and of every process that it starts."""
    command = [sys.executable, "-m", "pipelines.score", CONFIG]
    return measure_command([*command, f"input={folder}", f"output={output}"])


def differently_scored(rows: Sequence[Row]) -> list[str]:
    """Names of the files whose copies did not get the same scores."""
    found = defaultdict(set)
    for row in rows:
        found[Path(row["video"]).name].add(json.dumps(_without_copy(row), default=bytes.hex))
    return sorted(name for name, versions in found.items() if len(versions) > 1)


def _without_copy(value: Any) -> Any:
    """A row without the values that may differ between copies."""
    if isinstance(value, dict):
        kept = {n: _without_copy(v) for n, v in sorted(value.items()) if n not in COPY_COLUMNS}
        if kept.get("error"):  # copies of a damaged file differ in the position of the damage
            kept["error"] = re.sub(r"\d+", "#", kept["error"])
        return kept
    return [_without_copy(v) for v in value] if isinstance(value, list) else value


def decode_frames(video: str) -> Iterator[Any]:
    """PyAV, one thread, without any processing."""
    with av.open(video) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        yield from container.decode(stream)


def read_frames(video: str) -> Iterator[Any]:
    """As `score` reads a video: the planes at reduced size, and chroma for the detector."""
    with Reader(video) as reader:
        for _, planes in with_chroma(reader.frames()):
            yield planes.chroma


def count_frames(frames: Iterator[Any]) -> int:
    """How many frames can be read; of a damaged file, those before the damage."""
    number = 0
    with suppress(av.FFmpegError, BadVideo, IndexError):  # IndexError: the file has no video
        for _ in frames:
            number += 1
    return number


def measure_decoding(videos: Sequence[Path]) -> tuple[float, int]:
    """CPU seconds and frames of one pass over all files."""
    start = time.process_time()
    frames = sum(count_frames(decode_frames(str(video))) for video in videos)
    return time.process_time() - start, frames


def clock_methods(target: object, clock: Counter[str], name: str) -> None:
    """Adds the CPU time of each call of the target's public methods to clock[name]."""
    running = False

    def clocked(method: Callable) -> Callable:
        def call(*args: Any) -> Any:
            nonlocal running
            if running:  # a method that another one calls is counted there
                return method(*args)
            start, running = time.process_time(), True
            try:
                return method(*args)
            finally:
                clock[name] += time.process_time() - start
                running = False

        return call

    for attribute in dir(type(target)):
        if not attribute.startswith("_") and callable(getattr(type(target), attribute)):
            setattr(target, attribute, clocked(getattr(target, attribute)))


def parts_of(decode: DecodePass) -> dict[str, object]:
    """All that the decode pass gives frames to."""
    detector = {decode.detector: decode.detectors[decode.detector]}
    others = {"fingerprint": decode.fingerprint, "key frames": decode.key_frames}
    return {**detector, **config.fields_of(decode, Meter), **others}


def set_up_stages(scratch: Path) -> tuple[DecodePass, OcrStage]:
    """The two stages of `score` with the default configuration."""
    decode, text = build(config.load(Settings, CONFIG, []).score)
    assert isinstance(decode, DecodePass)
    assert isinstance(text, OcrStage)
    for stage in (decode, text):
        stage.setup(RunContext(str(scratch / "ledger")))
    return decode, text


def without_header_rejections(videos: Sequence[Path], decode: DecodePass) -> list[Path]:
    return [v for v in videos if not header_rejection(str(v), decode.limits, decode.prefilter)]


def measure_parts(
    videos: Sequence[Path], decode: DecodePass, text: OcrStage
) -> tuple[Counter[str], Counter[str]]:
    """CPU seconds of DECODE, READ and SCORE over all files, in turns; and of each part of SCORE,
    which runs the two stages of `score` in this process, without Ray or isolation."""
    with suppress(BadVideo):  # modules that are imported at the first use belong to start-up
        decode.process([{"video": str(videos[0]), "bytes": os.stat(videos[0]).st_size}])
    parts: Counter[str] = Counter()
    parts_by_name: dict[str, object] = {**parts_of(decode), "text": text}
    for name, part in parts_by_name.items():
        clock_methods(part, parts, name)

    def score_video(video: str) -> None:
        with suppress(BadVideo):
            text.process(decode.process([{"video": video, "bytes": os.stat(video).st_size}]))

    passes: dict[str, Callable[[str], object]] = {
        DECODE: lambda video: count_frames(decode_frames(video)),
        READ: lambda video: count_frames(read_frames(video)),
        SCORE: score_video,
    }
    return run_in_turns(videos, passes), parts


def measure_other_tools(videos: Sequence[Path], scratch: Path) -> Counter[str]:
    """CPU seconds of DECODE and of each tool over all files, in turns."""
    passes: dict[str, Callable[[str], object]] = {
        DECODE: lambda video: count_frames(decode_frames(video)),
        **{f"PySceneDetect {name}": detect for name, detect in DETECTORS.items()},
        FLOW: other_tools.compute_flow,
        SAMPLE: lambda video: other_tools.sample_frames(video, scratch),
    }
    return run_in_turns(videos, passes)


def run_in_turns(
    videos: Sequence[Path], passes: dict[str, Callable[[str], object]]
) -> Counter[str]:
    """CPU seconds of each pass over all files: all passes over one file, then over the next."""
    cpu_s: Counter[str] = Counter()
    for number, video in enumerate(videos, 1):
        print(f"each pass over one file: {number} of {len(videos)}", file=sys.stderr)
        for name, run_pass in passes.items():
            start = time.process_time()
            run_pass(str(video))
            cpu_s[name] += time.process_time() - start
    return cpu_s


@dataclass(frozen=True)
class WholeRun:
    """CPU seconds."""

    decode: list[float]  # before, between and after
    one_pass: float
    start_up: float
    differently_scored: list[str]  # file names


def measure_whole_run(videos: Sequence[Path], scratch: Path) -> WholeRun:
    decoded = [measure_decoding(videos)[0]]
    print("scoring the videos once …", file=sys.stderr)
    once = run_score(write_copies(videos, scratch / "once", 1), scratch / "out-once")
    decoded.append(measure_decoding(videos)[0])
    print("scoring three copies …", file=sys.stderr)
    thrice = run_score(write_copies(videos, scratch / "thrice", 3), scratch / "out-thrice")
    decoded.append(measure_decoding(videos)[0])
    rows = videos_ledger(Folder(str(scratch / "out-thrice"))).read().to_pylist()
    if len(rows) != 3 * len(videos) or any(row["status"] == "duplicate" for row in rows):
        raise RuntimeError(f"{len(rows)} rows for {3 * len(videos)} files, or copies not scored")
    one_pass = (thrice.cpu_s - once.cpu_s) / 2
    return WholeRun(decoded, one_pass, once.cpu_s - one_pass, differently_scored(rows))


def divide_by_header(videos: Sequence[Path], decode: DecodePass) -> tuple[list[Path], list[Path]]:
    """Videos that fail a header rule, and others; of those that can be opened."""
    failing: list[Path] = []
    others: list[Path] = []
    for video in videos:
        with suppress(BadVideo), Reader(str(video)):
            found = header_rejection(str(video), decode.limits, decode.prefilter)
            (failing if found else others).append(video)
    return failing, others


def report_header_checks(videos: Sequence[Path], decode: DecodePass) -> None:
    """Of videos that fail a header rule: the share of its decode that each costs, in ten checks."""
    costs = []  # of the decode and of a check of each video
    for video in videos:
        start = time.process_time()
        count_frames(decode_frames(str(video)))
        decoded = time.process_time()
        for _ in range(10):
            size = os.stat(video).st_size
            decode.process([{"video": str(video), "bytes": size, "version": "", "error": None}])
        costs.append((decoded - start, (time.process_time() - decoded) / 10))
    for least_s in (0.2, 0.1, 0.0):
        decodes, checks = zip(*(cost for cost in costs if cost[0] >= least_s), strict=True)
        shares = [check / whole for whole, check in zip(decodes, checks, strict=True)]
        print(
            f"ruled out, decode takes {least_s} CPU-s or more: {len(shares)} videos, "
            f"{sum(checks) / sum(decodes):.1%} of their decode, {median(shares):.1%} in median"
        )


def report_mix(videos: Sequence[Path], scratch: Path) -> None:
    """The two stages of `score` in this process, the versions in turns over each file."""
    settings = config.load(Settings, CONFIG, [])
    decode, text = set_up_stages(scratch)
    failing, others = divide_by_header(videos, decode)
    report_header_checks(failing, decode)
    count = min(len(failing), len(others))
    failing, others = evenly_spaced(failing, count), evenly_spaced(others, count)
    cpu_s: Counter[tuple[str, bool]] = Counter()
    shares = []  # of the decode of each video that is ruled out
    rows: dict[str, list[Row]] = {name: [] for name in (WITH_RULES, WITHOUT_RULES)}
    for number, video in enumerate([failing[0], *failing, *others]):
        listed = {
            "video": str(video),
            "bytes": os.stat(video).st_size,
            "version": "",
            "error": None,
        }
        of_video = {}
        for name in (DECODE, *rows):
            rules = header_rejection if name == WITH_RULES else lambda *_: None
            decode_pass.header_rejection = rules  # there is no setting for it
            start = time.process_time()
            if name == DECODE:
                count_frames(decode_frames(str(video)))
                done = None
            else:
                [done] = text.process(decode.process([dict(listed)]))
            if not number:  # modules that are imported at the first use
                continue
            of_video[name] = time.process_time() - start
            cpu_s[name, video in failing] += of_video[name]
            if done:
                rows[name].append({"status": "ok"} | done)
        if number and video in failing:
            shares.append(of_video[WITH_RULES] / of_video[DECODE])
    kept = {name: kept_minutes(of_pass, settings) for name, of_pass in rows.items()}
    ruled_s, all_s = (
        sum(row["duration_s"] for row in rows[WITH_RULES][a:b])
        for a, b in ((0, len(failing)), (0, None))
    )
    print(
        f"mix: {len(failing)} videos of {ruled_s / 60:.1f} min that their headers rule out, "
        f"{len(others)} others of {(all_s - ruled_s) / 60:.1f} min; "
        f"kept: {kept[WITH_RULES]:.2f} min"
    )
    if kept[WITH_RULES] != kept[WITHOUT_RULES]:
        raise RuntimeError(f"header rules change what is kept: {kept}")
    print(f"{'CPU-s':36}{'ruled out':>11}{'others':>9}{'all':>9}{'per kept min':>14}")
    for name in (DECODE, *rows):
        ruled, other = cpu_s[name, True], cpu_s[name, False]
        per_minute = (ruled + other) / kept[WITH_RULES]
        print(f"{name:36}{ruled:11.2f}{other:9.1f}{ruled + other:9.1f}{per_minute:14.1f}")
    share = cpu_s[WITH_RULES, True] / cpu_s[DECODE, True]
    print(f"ruled out: {share:.1%} of the decode of all, {median(shares):.1%} of its own in median")


def kept_minutes(rows: list[Row], settings: Settings) -> float:
    clips = flatten_clips(pa.Table.from_pylist(rows, schema(VIDEO))).sort_by("clip_id")
    selection = select_clips(clips, settings.select.policy)
    is_kept = pc.equal(selection["status"], "kept")
    return (pc.sum(clips["duration_s"].filter(is_kept)).as_py() or 0.0) / 60


def print_table(title: str, cpu_s: Mapping[str, float], frames: int) -> None:
    """A line for each entry of `cpu_s`, with its ratio to decoding."""
    print(f"\n{title}\n{'':44}{'CPU-s':>9}{'x decode':>10}{'us/frame':>10}")
    for name, value in cpu_s.items():
        print(f"{name:44}{value:9.1f}{value / cpu_s[DECODE]:10.2f}{value / frames * 1e6:10.0f}")


def report_whole_run(videos: Sequence[Path], scratch: Path, frames: int) -> None:
    found = measure_whole_run(videos, scratch)
    lines = {
        DECODE: fmean(found.decode),
        "score, one pass, all processes": found.one_pass,
        "score, start-up": found.start_up,
    }
    print_table("What `score` costs", lines, frames)
    print("decoding before, between, after:", *(f"{cpu_s:.1f}" for cpu_s in found.decode))
    equal = len({v.name for v in videos}) - len(found.differently_scored)
    print(f"copies with equal scores: {equal} of {len(videos)} files", *found.differently_scored)


def report_parts(videos: Sequence[Path], scratch: Path) -> None:
    """Of the videos that no header rule rejects."""
    decode, text = set_up_stages(scratch)
    decoded = without_header_rejections(videos, decode)
    _, frames = measure_decoding(decoded)
    cpu_s, parts = measure_parts(decoded, decode, text)
    lines: dict[str, float] = {name: cpu_s[name] for name in (DECODE, READ)} | parts
    others = cpu_s[SCORE] - cpu_s[READ] - parts.total()
    lines |= {"hashes, key frames' scores, files": others, SCORE: cpu_s[SCORE]}
    title = f"What each part costs, of the {len(decoded)} videos that no header rule rejects"
    print_table(title, lines, frames)


def report_other_tools(videos: Sequence[Path], scratch: Path, frames: int) -> None:
    lines: dict[str, float] = dict(measure_other_tools(videos, scratch))
    both = lines[FLOW] + lines[SAMPLE]
    for name in DETECTORS:
        lines[f"{name} + flow + sampling"] = lines[f"PySceneDetect {name}"] + both
    print_table("Other tools", lines, frames)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="every fourth file")
    options.add_argument("--mix", action="store_true", help="header rules alone")
    options.add_argument("--passes", action="store_true", help="skip `score` as a whole")
    args = options.parse_args()
    if not VIDEOS.is_dir():
        sys.exit(f"{VIDEOS}: no such folder; set LONGTAKE_VIDEOS to a folder of videos")
    videos = sorted(Path(v.video) for v in list_videos(str(VIDEOS)))[:: 4 if args.quick else 1]
    if args.mix:
        with tempfile.TemporaryDirectory() as name:
            report_mix(videos, Path(name))
        return
    _, frames = measure_decoding(videos)  # brings the files into memory
    print(f"{len(videos)} videos, {frames} frames")
    with tempfile.TemporaryDirectory() as name:
        if not args.passes:
            report_whole_run(videos, Path(name), frames)
        report_parts(videos, Path(name))
        report_other_tools(videos, Path(name), frames)


if __name__ == "__main__":
    main()
