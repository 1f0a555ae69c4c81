"""The labelled real videos, and videos edited from their long takes."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from curation.stage import BadVideo
from curation.video.planes import convert
from curation.video.reader import Reader

Span = tuple[float, float]  # s

# It is undefined what a transition in them is: every frame of the first has another plain colour,
# and the grey level of the second rises and falls.
UNDEFINED = ("synthetic_colour_flash_counter_1080p.mp4", "synthetic_grey_fades_320p_mpeg4.mp4")


@dataclass
class Labels:
    name: str
    cuts: dict[float, str] = field(default_factory=dict)  # time of the first frame after it -> kind
    gradual: list[Span] = field(default_factory=list)
    takes: list[Span] = field(default_factory=list)  # without any transition
    sha256: str = ""


def read_labels(folder: Path) -> list[tuple[Path, Labels]]:
    with (folder / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"] not in UNDEFINED]
    return [(folder / row["file"], _labels(row)) for row in rows]


def _labels(row: dict[str, str]) -> Labels:
    times = [float(t) for t in row["cut_times"].split(";") if t]
    takes = [span.split("-") for span in row["long_take_segments"].split(";") if span]
    return Labels(
        row["file"],
        dict(zip(times, row["cut_kinds"].split(";"), strict=False)),
        parse_gradual(row["gradual_transitions"]),
        [(float(start), float(end)) for start, end in takes],
        row["sha256"],
    )


def parse_gradual(text: str) -> list[Span]:
    """'6.4-7.2 fade out (black 7.2-8); title fades 24-26' -> [(6.4, 7.2)].

    Text in brackets is a comment. A title that fades over a continuing shot is not a transition.
    """
    phrases = [p for p in re.sub(r"\([^)]*\)", "", text).split(";") if "title" not in p]
    found = re.findall(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", " ".join(phrases))
    return [(float(start), float(end)) for start, end in found]


def read_luma(
    path: Path, start_s: float, end_s: float, size: tuple[int, int] = (320, 180)
) -> tuple[float, list[np.ndarray]]:
    """Frames per second, and the span's luma resized to `size` (width, height)."""
    kept, times = [], []
    try:
        with Reader(str(path)) as reader:
            for t_s, planes in reader.frames():
                if start_s <= t_s < end_s:
                    luma = planes.y
                    if luma.shape[1] < size[0]:
                        luma = convert(planes.source.frame, *size, "gray").to_ndarray()
                    kept.append(cv2.resize(luma, size, interpolation=cv2.INTER_AREA))
                    times.append(t_s)
    except BadVideo:
        return 0.0, []
    return (len(times) - 1) / (times[-1] - times[0]), kept


def with_jump_cuts(
    name: str, frames: list[np.ndarray], fps: float, speed: int, rng: np.random.Generator
) -> tuple[Labels, list[np.ndarray]]:
    """With three spans removed. Where under 2 % of the pixels change by 12 grey levels, the jump
    cut's kind is `unseen`."""
    kept: list[np.ndarray] = []
    cuts, third, resume = {}, len(frames) // 3, 0
    for part in range(3):
        at = int(third * (part + rng.uniform(0.25, 0.5)))
        removed = int(min(rng.uniform(1, 4) * fps, 0.4 * third))
        kept += frames[resume:at]
        before, after = (cv2.blur(frames[i], (5, 5)) for i in (at - 1, at + removed))
        visible = np.mean(cv2.absdiff(before, after) > 12) > 0.02
        cuts[len(kept) / fps] = f"jump x{speed}" if visible else "unseen"
        resume = at + removed
    kept += frames[resume:]
    return Labels(f"jumps x{speed} {name}", cuts), kept


def concatenated(
    name: str, pieces: list[list[np.ndarray]], rng: np.random.Generator
) -> tuple[Labels, list[np.ndarray]]:
    """At 25 frames a second."""
    frames: list[np.ndarray] = []
    cuts = {}
    for piece in pieces:
        if frames:
            cuts[len(frames) / 25] = "place"
        frames += piece[: int(rng.uniform(12, 80))]
    return Labels(name, cuts), frames
