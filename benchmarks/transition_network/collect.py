"""Stores the training footage for `train.py`: 64 x 36 px frames and the labelled transitions.

    python -m benchmarks.transition_network.collect OUT [--workers 2]

OUT gets one file for each source. The sources are of the development half: the labelled videos
(benchmarks/labels, files in LONGTAKE_LABELLED), those of LONGTAKE_VIDEOS, and the single takes of
benchmarks/footage.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path

import numpy as np

from benchmarks.footage import Take, frame_views, single_takes
from benchmarks.labelled_videos import Labels, read_labels
from benchmarks.real_videos import RealVideo, half_of, present, real_videos, training_videos
from benchmarks.transition_network.sources import Source, write_source
from curation.video.reader import Reader
from tests.support.paths import VIDEOS


def read_frames(
    path: Path, start_s: float = 0.0, end_s: float = float("inf")
) -> tuple[list[float], np.ndarray, list[float]]:
    """Times of the T frames in [start_s, end_s), the frames (T, 36, 64, 3) uint8, and the times of
    all frames that were decoded. A file that can't be decoded to its end gives those before."""
    times_s, frames = [], []
    with Reader(str(path)) as reader:
        for view in frame_views(reader, start_s, end_s):
            times_s.append(view.t_s)
            frames.append(view.yuv)
        return times_s, np.array(frames), list(reader.times_s)


def read_video(path: Path, video: RealVideo) -> tuple[Source, np.ndarray]:
    """A video of benchmarks/labels, whose labels are frame numbers."""
    times_s, frames, all_s = read_frames(path)
    last = len(all_s) - 1
    cuts_s = [all_s[min(last, cut["frame"])] for cut in video.cuts]
    gradual, uncertain = (
        [(all_s[min(last, span["first"])], all_s[min(last, span["last"])]) for span in spans]
        for spans in (video.gradual, video.uncertain)
    )
    name = f"video-{video.sha256[:12]}"
    return Source(name, video.repository, True, times_s, cuts_s, gradual, uncertain), frames


def read_labelled(path: Path, labels: Labels) -> tuple[Source, np.ndarray]:
    """A video of LONGTAKE_VIDEOS, whose labels are times."""
    times_s, frames, all_s = read_frames(path)
    # cuts are labelled to a hundredth of a second, so the frame may be a little earlier
    cuts_s = [all_s[int(np.searchsorted(all_s, t_s - 0.02))] for t_s in labels.cuts]
    # gradual transitions are labelled to a tenth of a second
    gradual = [(start_s - 0.05, end_s + 0.05) for start_s, end_s in labels.gradual]
    name = f"labelled-{path.stem}"
    return Source(name, name, True, times_s, cuts_s, gradual, []), frames


def read_take(take: Take) -> tuple[Source, np.ndarray]:
    """A single take, without labels."""
    times_s, frames, _ = read_frames(Path(take.path), take.start_s, take.end_s)
    name = f"take-{Path(take.path).stem[:30]}-{take.start_s:.0f}"
    return Source(name, take.repository, False, times_s, [], [], []), frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    videos = present([*real_videos("development"), *training_videos()])
    labelled = read_labels(VIDEOS) if (VIDEOS / "labels.csv").is_file() else []
    labelled = [pair for pair in labelled if half_of(pair[1].sha256) == "development"]
    whole = {str(path) for path, _ in (*videos, *labelled)}  # stored with all their takes
    takes = [take for take in single_takes() if take.half == "development"]
    with multiprocessing.Pool(args.workers) as pool:
        jobs = [pool.apply_async(read_video, pair) for pair in videos]
        jobs += [pool.apply_async(read_labelled, pair) for pair in labelled]
        jobs += [pool.apply_async(read_take, (take,)) for take in takes if take.path not in whole]
        for job in jobs:
            source, frames = job.get()
            if len(frames):
                write_source(args.out / f"{source.name}.npz", source, frames)


if __name__ == "__main__":
    main()
