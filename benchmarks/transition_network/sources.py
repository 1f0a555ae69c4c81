"""The stored training footage: sources with frames of 64 x 36 px, and the labels of each frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.transition_network.plan import PLAIN, Shot
from stages.shots.gradual_network import MIN_FRAME_STEP_S

EDGE_S = 0.1  # frames within this time of an uncertain span are uncertain too


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


def half_size_luma(frames: np.ndarray) -> np.ndarray:
    """(N, 36, 64, 3) uint8 -> (N, 18, 32) uint8: means of 2 x 2 px"""
    parts = [frames[:, y::2, x::2, 0].astype(np.uint16) for y in (0, 1) for x in (0, 1)]
    return (sum(parts) // 4).astype(np.uint8)


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
