"""What each meter costs, beside decoding the same files in the same run: python -m benchmarks.meters [FILE ...]

CPU milliseconds of one thread (never wall time: the machine may be shared); "answers" is scoring clips of 15 s.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import cv2

from curation.stage import Meter, VideoFacts
from stages.freeze import Freeze
from stages.light import Light
from stages.motion import Motion
from stages.overlay import Overlay
from tests.drawn import decoded

VIDEOS = Path(os.environ.get("LONGTAKE_VIDEOS", Path(__file__).parents[2] / "shared/videos"))
CLIP_S = 15.0


def main(files: list[str]) -> None:
    cv2.setNumThreads(1)
    print(f"{'file':44}{'what':14}{'ms/frame':>9}{'ms/s':>8}{'of decode':>11}{'answers ms/s':>14}")
    for file in files or sorted(map(str, VIDEOS.glob("take_*"))):
        report(file)


def report(file: str) -> None:
    started = time.process_time()
    seen = list(decoded(file))
    decode_ms = (time.process_time() - started) * 1e3
    seconds = seen[-1][0] + 1 / 25
    height, width = seen[0][1].y.shape
    facts = VideoFacts(width, height, len(seen) / seconds, width, height)
    _line(Path(file).name, "decode, reduce", decode_ms, len(seen), seconds, decode_ms, 0.0)
    meters: list[Meter] = [Motion(), Light(), Freeze(), Overlay()]
    for meter in meters:
        started = time.process_time()
        meter.start(facts)
        for t_s, planes in seen:
            meter.see(t_s, planes)
        seeing_ms = (time.process_time() - started) * 1e3
        started = time.process_time()
        for number in range(max(1, int(seconds // CLIP_S))):
            meter.score(number * CLIP_S, (number + 1) * CLIP_S)
        answers_ms = (time.process_time() - started) * 1e3
        _line("", type(meter).__name__, seeing_ms, len(seen), seconds, decode_ms, answers_ms)


def _line(
    file: str,
    what: str,
    ms: float,
    frames: int,
    seconds: float,
    decode_ms: float,
    answers_ms: float,
) -> None:
    share = (ms + answers_ms) / decode_ms
    print(
        f"{file[:42]:44}{what:14}{ms / frames:9.3f}{ms / seconds:8.2f}{share:11.1%}{answers_ms / seconds:14.2f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
