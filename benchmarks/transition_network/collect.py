"""Stores the training footage for `train.py`: 64 x 36 px frames and the labelled transitions.

    python -m benchmarks.transition_network.collect OUT

OUT gets one file for each source. The sources are of the development half: the labelled videos
(benchmarks/labels, files in LONGTAKE_LABELLED), those of LONGTAKE_VIDEOS, and the single takes of
benchmarks/footage.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.footage import Take, frame_views, single_takes
from benchmarks.labelled_videos import Labels, read_labels
from benchmarks.real_videos import RealVideo, half_of, present, real_videos
from benchmarks.transition_network.draw import PLAIN, Shot
from curation.video.reader import Reader
from stages.shots.gradual_network import MIN_FRAME_STEP_S
from tests.support.paths import VIDEOS

EDGE_S = 0.1  # before and after an uncertain span; these frames have no labels either
FOLDS = 2  # of cross-validation


@dataclass(frozen=True)
class Source:
    """A video or a take. A span has the times of the first and the last frame that belong to it."""

    name: str
    repository: str
    labelled: bool  # every transition is known; otherwise it is a single take
    times_s: list[float]  # of its frames
    cuts_s: list[float]  # of the first frame after each hard cut
    gradual: list[tuple[float, float]]  # gradual transitions
    uncertain: list[tuple[float, float]]  # where the labels do not decide


def write_source(path: Path, source: Source, frames: np.ndarray) -> None:
    """frames: (T, 36, 64, 3) uint8, Y, Cb and Cr."""
    np.savez_compressed(path, frames=frames, source=np.array(json.dumps(asdict(source))))


def read_source(path: Path) -> tuple[Source, np.ndarray]:
    """The source and the frames that `write_source` stored."""
    with np.load(path, allow_pickle=False) as file:
        return Source(**json.loads(str(file["source"]))), file["frames"]


def select_frames(times_s: Sequence[float]) -> np.ndarray:
    """Indices of the frames that `GradualNetwork` reads: at least MIN_FRAME_STEP_S apart."""
    found: list[int] = []
    for number, t_s in enumerate(times_s):
        if not found or t_s - times_s[found[-1]] >= MIN_FRAME_STEP_S:
            found.append(number)
    return np.array(found, np.int64)


def label_frames(source: Source, times_s: np.ndarray) -> dict[str, np.ndarray]:
    """The labels of the T frames at times_s.

    `cuts` (T,): number of hard cuts up to the frame. `gradual` (T,) bool: in a gradual transition.
    `counted` (T, 2) float32: weight of the two labels in the loss, 0 where they are uncertain.
    `event` (T,) bool: the first frame after a hard cut, or in a gradual transition.
    """
    tolerance_s = 1e-3
    cuts = np.searchsorted(np.sort(source.cuts_s), times_s + tolerance_s, side="right")
    gradual = np.zeros(len(times_s), bool)
    counted = np.ones((len(times_s), 2), np.float32)
    event = np.diff(cuts, prepend=cuts[:1]) > 0
    for first_s, last_s in source.gradual:
        inside = (times_s >= first_s - tolerance_s) & (times_s <= last_s + tolerance_s)
        gradual |= inside
        event |= inside
        counted[inside, 0] = 0
        for edge in np.flatnonzero(np.diff(inside.astype(int), prepend=0, append=0)):
            counted[max(0, edge - 1) : edge + 1] = 0
    for first_s, last_s in source.uncertain:
        counted[(times_s >= first_s - EDGE_S) & (times_s <= last_s + EDGE_S)] = 0
    return {"cuts": cuts, "gradual": gradual, "counted": counted, "event": event}


def gather(
    sources: Sequence[tuple[Source, np.ndarray]],
) -> tuple[np.ndarray, list[Shot], list[dict[str, np.ndarray]]]:
    """The footage of all sources: what `Renderer` and `Planner` take.

    Returns the selected frames of all sources followed by PLAIN, (N, 36, 64, 3) uint8; the shots,
    whose spans are indices into them; and of each labelled video its `frames` (the same indices)
    and the arrays of `label_frames`.
    """
    frames: list[np.ndarray] = []
    shots: list[Shot] = []
    videos: list[dict[str, np.ndarray]] = []
    offset = 0  # index of the source's first frame
    for number, (source, all_frames) in enumerate(sources):
        selected = select_frames(source.times_s)
        frames.append(all_frames[selected])
        labels = label_frames(source, np.array(source.times_s)[selected])
        spans = _spans_without_transition(labels)
        shots += [Shot(offset + first, offset + end, number) for first, end in spans]
        if source.labelled:
            videos.append({"frames": offset + np.arange(len(selected)), **labels})
        offset += len(selected)
    frames.append(np.broadcast_to(PLAIN[:, None, None], (len(PLAIN), *frames[0].shape[1:])))
    return np.concatenate(frames), shots, videos


def _spans_without_transition(labels: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Spans [first, end) of frames that hold no transition and no uncertain label."""
    is_excluded = labels["gradual"] | (labels["counted"].min(axis=1) == 0)
    is_edge = (np.diff(labels["cuts"]) > 0) | (np.diff(is_excluded.astype(int)) != 0)
    edges = [0, *(np.flatnonzero(is_edge) + 1).tolist(), len(is_excluded)]
    return [
        (first, end) for first, end in pairwise(edges) if end > first and not is_excluded[first]
    ]


# ---------------------------------------------------------------- the sources


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
    cuts_s = [all_s[int(np.searchsorted(all_s, t_s - 0.02))] for t_s in labels.cuts]
    # labelled to a tenth of a second
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
    videos = present(real_videos("development"))
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
