"""Stores the small frames of the footage with its transitions, for `train.py`.

    python -m benchmarks.transition_network.collect OUT

OUT gets a file for each source: the labelled videos of the development half (benchmarks/labels,
files in LONGTAKE_LABELLED), those of LONGTAKE_VIDEOS, and the single takes of benchmarks/footage.
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

from benchmarks.footage import Take, single_takes
from benchmarks.labelled_videos import Labels, read_labels
from benchmarks.real_videos import RealVideo, half_of, present, real_videos
from benchmarks.transition_network.draw import PLAIN, Shot
from curation.stage import BadVideo
from curation.video.frames import Planes
from curation.video.planes import chroma_image
from curation.video.reader import Reader
from stages.shots.frame_view import FrameView
from stages.shots.gradual_network import SAMPLE_S
from tests.support.paths import VIDEOS

EDGE_S = 0.1  # around an uncertain span: nothing is decided there
FOLDS = 2


@dataclass(frozen=True)
class Source:
    """times_s: of the frames. The spans name the first and the last frame that belong to one."""

    name: str
    repository: str
    labelled: bool  # every transition is known; otherwise it is a single take
    times_s: list[float]
    cuts_s: list[float]  # of the first frame after each
    gradual: list[tuple[float, float]]
    uncertain: list[tuple[float, float]]


def write(path: Path, source: Source, frames: np.ndarray) -> None:
    """frames: (T, 36, 64, 3) uint8"""
    np.savez_compressed(path, frames=frames, source=np.array(json.dumps(asdict(source))))


def read(path: Path) -> tuple[Source, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return Source(**json.loads(str(file["source"]))), file["frames"]


def sampled(times_s: Sequence[float]) -> np.ndarray:
    """Numbers of the frames that are at least SAMPLE_S apart."""
    found: list[int] = []
    for number, t_s in enumerate(times_s):
        if not found or t_s - times_s[found[-1]] >= SAMPLE_S:
            found.append(number)
    return np.array(found, np.int64)


def labels(source: Source, times_s: np.ndarray) -> dict[str, np.ndarray]:
    """`cuts` (hard cuts up to each frame), `gradual`, `counted` and `event` of each frame."""
    near = 1e-3
    cuts = np.searchsorted(np.sort(source.cuts_s), times_s + near, side="right")
    gradual = np.zeros(len(times_s), bool)
    counted = np.ones((len(times_s), 2), np.float32)
    event = np.diff(cuts, prepend=cuts[:1]) > 0
    for first_s, last_s in source.gradual:
        inside = (times_s >= first_s - near) & (times_s <= last_s + near)
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
    """All frames and the plain pictures behind them; the shots among them; the labelled videos."""
    frames: list[np.ndarray] = []
    shots: list[Shot] = []
    videos: list[dict[str, np.ndarray]] = []
    done = 0
    for number, (source, pictures) in enumerate(sources):
        chosen = sampled(source.times_s)
        frames.append(pictures[chosen])
        of = labels(source, np.array(source.times_s)[chosen])
        shots += [Shot(done + a, done + b, number) for a, b in _quiet_spans(of)]
        if source.labelled:
            videos.append({"frames": done + np.arange(len(chosen)), **of})
        done += len(chosen)
    frames.append(np.broadcast_to(PLAIN[:, None, None], (len(PLAIN), *frames[0].shape[1:])))
    return np.concatenate(frames), shots, videos


def _quiet_spans(of: dict[str, np.ndarray]) -> list[tuple[int, int]]:
    """Spans of frames without any transition or doubt, [first, end)."""
    busy = of["gradual"] | (of["counted"].min(axis=1) == 0)
    breaks = np.flatnonzero((np.diff(of["cuts"]) > 0) | (np.diff(busy.astype(int)) != 0)) + 1
    edges = [0, *breaks.tolist(), len(busy)]
    return [(a, b) for a, b in pairwise(edges) if b > a and not busy[a]]


# ---------------------------------------------------------------- the sources


def measure(
    path: Path, start_s: float = 0.0, end_s: float = float("inf")
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Times of the frames of a span, the frames (T, 36, 64, 3), and the times of all frames."""
    times_s, frames = [], []
    with Reader(str(path)) as reader:
        try:
            for t_s, planes in reader.frames():
                if t_s >= end_s:
                    break
                if t_s >= start_s:
                    view = FrameView(t_s, Planes(planes.y, chroma=chroma_image(planes)))
                    times_s.append(t_s)
                    frames.append(view.yuv)
        except BadVideo:
            pass  # labelled up to there
        return np.array(times_s), np.array(frames), list(reader.times_s)


def of_video(path: Path, video: RealVideo) -> tuple[Source, np.ndarray]:
    times_s, frames, every_s = measure(path)
    last = len(every_s) - 1
    cuts_s = [every_s[min(last, cut["frame"])] for cut in video.cuts]
    gradual, uncertain = (
        [(every_s[min(last, span["first"])], every_s[min(last, span["last"])]) for span in of]
        for of in (video.gradual, video.uncertain)
    )
    name = f"video-{video.sha256[:12]}"
    times = times_s.tolist()
    return Source(name, video.repository, True, times, cuts_s, gradual, uncertain), frames


def of_labelled(path: Path, labels_: Labels) -> tuple[Source, np.ndarray]:
    times_s, frames, every_s = measure(path)
    cuts_s = [every_s[int(np.searchsorted(every_s, t - 0.02))] for t in labels_.cuts]
    gradual = [(a - 0.05, b + 0.05) for a, b in labels_.gradual]  # given to a tenth of a second
    name = f"labelled-{path.stem}"
    return Source(name, name, True, times_s.tolist(), cuts_s, gradual, []), frames


def of_take(take: Take) -> tuple[Source, np.ndarray]:
    times_s, frames, _ = measure(Path(take.path), take.start_s, take.end_s)
    name = f"take-{Path(take.path).stem[:30]}-{take.start_s:.0f}"
    return Source(name, take.repository, False, times_s.tolist(), [], [], []), frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    videos = present(real_videos("development"))
    present_labels = read_labels(VIDEOS) if (VIDEOS / "labels.csv").is_file() else []
    labelled = [pair for pair in present_labels if half_of(pair[1].sha256) == "development"]
    known = {str(path) for path, _ in (*videos, *labelled)}
    takes = [take for take in single_takes() if take.half == "development"]
    with multiprocessing.Pool(args.workers) as pool:
        jobs = [pool.apply_async(of_video, pair) for pair in videos]
        jobs += [pool.apply_async(of_labelled, pair) for pair in labelled]
        jobs += [pool.apply_async(of_take, (take,)) for take in takes if take.path not in known]
        for job in jobs:
            source, frames = job.get()
            if len(frames):
                write(args.out / f"{source.name}.npz", source, frames)


if __name__ == "__main__":
    main()
