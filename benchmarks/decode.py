"""What the reader costs on top of decoding: CPU time per frame, the same files, in one run.

python -m benchmarks.decode FILE...   (default: a few of the labelled videos)
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av

from curation.video import Reader

VIDEOS = Path(os.environ.get("LONGTAKE_VIDEOS") or Path(__file__).parents[2] / "shared/videos")
DEFAULT = (
    "cut_locobot_plaza_2shots_1080p.mp4",
    "take_robot_dog_park_static_1080p.mp4",
    "take_robot_arm_fridge_720p.mp4",
    "edit_bigbuckbunny_opening_30s_720p_vp8.webm",
    "surveillance_room_people_one_by_one_432p_60s.mp4",
)
FRAMES = 400
ROUNDS = 3  # the fastest counts: the others were disturbed


def plain(path: str) -> Iterator[Any]:
    """Nothing but decoding, one thread."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        yield from container.decode(stream)


def reader(path: str) -> Iterator[Any]:
    with Reader(path) as one:
        yield from one.frames()


def cpu_us_per_frame(frames: Callable[[str], Iterator[Any]], path: str) -> float:
    begin, count = time.process_time(), 0
    for _ in itertools.islice(frames(path), FRAMES):
        count += 1
    return (time.process_time() - begin) / count * 1e6


def main() -> None:
    paths = sys.argv[1:] or [str(VIDEOS / name) for name in DEFAULT]
    print(f"{'file':50} {'decode':>9} {'reader':>9}  us per frame, opening the file included")
    for path in paths:
        rounds = [
            (cpu_us_per_frame(plain, path), cpu_us_per_frame(reader, path)) for _ in range(ROUNDS)
        ]
        decode, read = (min(column) for column in zip(*rounds, strict=True))
        print(f"{Path(path).name:50} {decode:9.0f} {read:9.0f}  + {read / decode - 1:.1%}")


if __name__ == "__main__":
    main()
