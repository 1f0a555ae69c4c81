"""The real videos whose transitions were labelled by eye; labels/README.md describes the fields.

    python -m benchmarks.real_videos

prints how much each half holds, and which of the files are in the folder LONGTAKE_LABELLED.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from curation.video.reader import Reader

LABELS = Path(__file__).parent / "labels" / "videos.jsonl"
TRAINING_LABELS = LABELS.with_name("training.jsonl")
UNSEEN_LABELS = LABELS.with_name("unseen.jsonl")
HALVES = ("development", "figures")
FOLDS = 6  # of cross-validation
HIDDEN_FRAMES = 3  # at most so many frames at the end are hidden by a file's edit list
MIN_TAKE_S = 3.0  # a shorter span between two transitions is counted as a shot, not as a take


@dataclass(frozen=True)
class RealVideo:
    sha256: str
    half: str
    repository: str
    commit: str
    path: str
    bytes: int
    licence: str
    width: int
    height: int
    frames: int
    fps: float
    kind: str
    views: list[dict]
    repeated_frames: bool
    cuts: list[dict]
    gradual: list[dict]
    uncertain: list[dict]
    notes: str

    @property
    def file_name(self) -> str:
        return self.sha256 + Path(self.path).suffix.lower()

    @property
    def takes(self) -> list[tuple[int, int]]:
        """Spans of frames, [first, end), outside every transition and every uncertain span."""
        gaps = [(cut["frame"] - cut.get("between", 0), cut["frame"]) for cut in self.cuts]
        gaps += [(span["first"], span["last"] + 1) for span in self.gradual + self.uncertain]
        takes, start = [], 0
        for first, end in sorted(gaps):
            if first > start:
                takes.append((start, first))
            start = max(start, end)
        return [*takes, (start, self.frames)] if start < self.frames else takes

    @property
    def one_view_takes(self) -> list[tuple[int, int]]:
        """The takes that no split screen, collage or user interface touches."""
        return [
            (first, end)
            for first, end in self.takes
            if all(end <= view["first"] or view["last"] < first for view in self.views)
        ]


def half_of(sha256: str) -> str:
    return HALVES[int(sha256, 16) % 2]


def fold_of(repository: str) -> int:
    """The fold of cross-validation, 0 to FOLDS - 1: the same for all videos of a repository."""
    return int(hashlib.sha256(repository.encode()).hexdigest(), 16) % FOLDS


def real_videos(half: str | None = None) -> list[RealVideo]:
    return [video for video in _read(LABELS) if half in (None, video.half)]


def training_videos() -> list[RealVideo]:
    """Videos whose labels are good enough for training, and appear in no figure."""
    return _read(TRAINING_LABELS)


def unseen_videos() -> list[RealVideo]:
    """Videos of repositories that no other file of labels names; none was used for training."""
    return _read(UNSEEN_LABELS)


def _read(labels: Path) -> list[RealVideo]:
    return [RealVideo(**json.loads(line)) for line in labels.read_text().splitlines()]


def present(videos: Iterable[RealVideo]) -> list[tuple[Path, RealVideo]]:
    """The videos whose file is in the folder LONGTAKE_LABELLED; none where it is not set."""
    folder = Path(os.environ.get("LONGTAKE_LABELLED", ""))
    paths = [(folder / video.file_name, video) for video in videos]
    return [(path, video) for path, video in paths if path.is_file()]


def decoded_frames(path: Path) -> int:
    with Reader(str(path)) as reader:
        return sum(1 for _ in reader.frames())


def main() -> None:
    print("half         videos  repositories  place cuts  jump cuts  gradual  minutes  in takes")
    groups = {half: real_videos(half) for half in HALVES} | {"unseen": unseen_videos()}
    for half, videos in groups.items():
        kinds = [cut["kind"] for video in videos for cut in video.cuts]
        takes_s = [
            (end - first) / video.fps for video in videos for first, end in video.one_view_takes
        ]
        print(
            f"{half:12} {len(videos):6} {len({video.repository for video in videos}):13}"
            f" {kinds.count('place'):11} {kinds.count('jump'):10}"
            f" {sum(len(video.gradual) for video in videos):8}"
            f" {sum(video.frames / video.fps for video in videos) / 60:8.1f}"
            f" {sum(s for s in takes_s if s >= MIN_TAKE_S) / 60:9.1f}"
        )
    videos = real_videos() + training_videos() + unseen_videos()
    files = present(videos)
    print(f"{len(files)} of {len(videos)} files are in LONGTAKE_LABELLED")
    for path, video in files:
        if hashlib.sha256(path.read_bytes()).hexdigest() != video.sha256:
            print(f"{path}: not the file that was labelled")
        elif not 0 <= video.frames - (frames := decoded_frames(path)) <= HIDDEN_FRAMES:
            print(f"{path}: {frames} frames decoded, {video.frames} labelled")


if __name__ == "__main__":
    main()
