"""The overhead of Ray: the same work by `Cluster.stream` and by a process pool.

    python -m benchmarks.ray_overhead [number of videos, default 200]

Draws short videos (2 s of 640 x 360, few images, the bytes of every file different) and runs
`DecodePass` over them on two workers: as the pipelines do (driver, Ray, two workers with
an isolated child each), and in a `concurrent.futures` pool of two processes that call the stage
directly. Each side runs over all videos and over one video per worker, which is start-up; the
difference is the work. CPU seconds include every process; wall time is meaningful only
on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.cpu_time import Cost, measure_command
from benchmarks.score import pad_container
from curation.runner.cluster import Cluster
from curation.runner.settings import ClusterSettings
from curation.stage import Row, RunContext
from stages.decode_pass import DecodePass
from tests.support.drawn import encoded, noisy, textured_image, times, view

WORKERS = 2
SECONDS = 2.0
IMAGES = 8
ROUNDS = 2  # the cheaper one counts, because other processes disturb a round
SIDES = ("pool", "ray")

_decode_pass: DecodePass  # of a process of the pool


def draw_videos(folder: Path, count: int) -> None:
    """Writes `count` videos of a camera that moves over an image."""
    for number in range(min(IMAGES, count)):
        image = textured_image(number)
        frames = (view(image, (500 + 60 * t, 400, 1.0, 0.0)) for t in times(SECONDS))
        data = encoded(noisy(frames, 2.0, number))
        for copy in range(number, count, IMAGES):
            (folder / f"{copy:04d}.mp4").write_bytes(pad_container(data, ".mp4", copy // IMAGES))


def list_rows(folder: Path, count: int) -> list[Row]:
    found = sorted(folder.glob("*.mp4"))[:count]
    return [{"video": str(v), "bytes": v.stat().st_size, "error": None} for v in found]


def run_in_ray(work: list[Row], scratch: str) -> list[Row]:
    with Cluster(ClusterSettings(workers=WORKERS), scratch) as cluster:
        return list(cluster.stream([DecodePass()], work, context=RunContext(scratch)))


def run_in_pool(work: list[Row], scratch: str) -> list[Row]:
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), _set_up, (scratch,)) as pool:
        return list(pool.map(_process, work))


def _set_up(scratch: str) -> None:
    global _decode_pass
    _decode_pass = DecodePass()
    _decode_pass.setup(RunContext(scratch))


def _process(row: Row) -> Row:
    [row] = _decode_pass.process([row])
    return row


def check(done: Iterable[Row], count: int) -> None:
    """Raises RuntimeError if rows are missing or failed: they would make a side appear cheap."""
    done = list(done)
    failed = [row["error"] for row in done if row["error"] is not None]
    if failed or len(done) != count or any(row["num_frames"] < 1 for row in done):
        raise RuntimeError(f"{len(done)} rows for {count} videos; failed: {failed[:3]}")


def run_side(side: str, folder: Path, count: int) -> Cost:
    module = [sys.executable, "-m", "benchmarks.ray_overhead"]
    return measure_command([*module, str(count), "--side", side, "--folder", str(folder)])


def compare(folder: Path, count: int) -> None:
    start_up: dict[str, list[Cost]] = {side: [] for side in SIDES}
    whole: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            start_up[side].append(run_side(side, folder, WORKERS))
            whole[side].append(run_side(side, folder, count))
    print(f"{count} videos of {SECONDS:g} s, {WORKERS} workers; the cheaper of {ROUNDS} rounds\n")
    print(f"{'':24}{'pool':>9}{'Ray':>9}{'ratio':>8}")
    for unit in ("cpu_s", "wall_s"):
        name = {"cpu_s": "CPU-s", "wall_s": "wall s"}[unit]
        first = [min(getattr(one, unit) for one in start_up[side]) for side in SIDES]
        all_ = [min(getattr(one, unit) for one in whole[side]) for side in SIDES]
        work = [a - f for a, f in zip(all_, first, strict=True)]
        print(f"{'start-up, ' + name:24}{first[0]:9.1f}{first[1]:9.1f}")
        print(f"{'work, ' + name:24}{work[0]:9.1f}{work[1]:9.1f}{work[1] / work[0]:8.3f}")
        print(f"{'total, ' + name:24}{all_[0]:9.1f}{all_[1]:9.1f}{all_[1] / all_[0]:8.3f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("count", type=int, nargs="?", default=200)
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # one run of one side
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if not args.side and args.count <= WORKERS:
        sys.exit(f"expected more than {WORKERS} videos: {WORKERS} are start-up")
    with tempfile.TemporaryDirectory() as scratch:
        if args.side:
            run = run_in_ray if args.side == "ray" else run_in_pool
            check(run(list_rows(args.folder, args.count), scratch), args.count)
            return
        draw_videos(Path(scratch), args.count)
        compare(Path(scratch), args.count)


if __name__ == "__main__":
    main()
