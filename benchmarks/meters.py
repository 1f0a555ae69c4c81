"""What each meter costs beside decoding the same files in the same run.

    python -m benchmarks.meters [FILE ...]

CPU time of one thread, never wall time: the machine may be shared. "Answers" is scoring the clips.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path

from curation.stage import Meter
from curation.video import Reader
from stages.fingerprint import Fingerprint
from stages.freeze import Freeze
from stages.light import Light
from stages.motion import Motion
from stages.overlay import Overlay
from stages.shots import Shots
from stages.stills import Stills

VIDEOS = Path(os.environ.get("LONGTAKE_VIDEOS", Path(__file__).parents[2] / "shared/videos"))
CLIP_S = 15.0

clock = time.process_time


def main(files: list[str]) -> None:
    spent: Counter[str] = Counter()
    frames = sum(measure(file, spent) for file in files or sorted(map(str, VIDEOS.glob("take_*"))))
    if not frames:
        sys.exit(f"no videos: name some, or set LONGTAKE_VIDEOS (now {VIDEOS})")
    decoding = spent["decode"]
    print(f"{frames} frames\n{'':16}{'us/frame':>10}{'of decode':>11}")
    for what, seconds in spent.items():
        print(f"{what:16}{seconds / frames * 1e6:10.0f}{seconds / decoding:11.2f}")


def measure(file: str, spent: Counter[str]) -> int:
    """Adds the CPU seconds per thing done; returns the number of frames."""
    meters: list[Meter] = [Shots(), Motion(), Light(), Freeze(), Overlay(), Fingerprint()]
    stills = Stills()
    started = clock()
    with Reader(file) as reader:
        for _ in reader._decoded():
            pass
    spent["decode"] += clock() - started
    with Reader(file) as reader:
        stills.start()
        for meter in meters:
            meter.start(reader.head.facts())
        started = clock()
        for t_s, planes in reader.frames():
            spent["planes"] += clock() - started
            for each in (*meters, stills):
                started = clock()
                each.see(t_s, planes)
                spent[type(each).__name__] += clock() - started
            started = clock()
        end_s, frames = reader.end_s, reader.num_frames
    started = clock()
    for number in range(max(1, int(end_s // CLIP_S))):
        for meter in meters:
            meter.score(number * CLIP_S, (number + 1) * CLIP_S)
    spent["answers"] += clock() - started
    return frames


if __name__ == "__main__":
    main(sys.argv[1:])
