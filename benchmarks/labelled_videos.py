"""Videos with known transitions: the labelled real ones, and ones edited from their long takes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from curation.stage import BadVideo
from curation.video.frames import Planes
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


@dataclass
class LabelledVideo:
    labels: Labels
    times_s: np.ndarray  # (T,)
    planes: list[Planes]
    decode_cpu_s: float = 0.0


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


def edited_videos(folder: Path, seed: int = 0) -> Iterator[LabelledVideo]:
    """Videos edited from the labelled long takes.

    Per take: jump cuts that skip 1 to 4 s, at normal, double and triple speed, and a conversion
    from 24 to 30 fps that repeats frames. From all takes: concatenations, dissolves and fades.
    """
    rng = np.random.default_rng(seed)
    pieces: list[list[np.ndarray]] = []
    for path, labels in read_labels(folder):
        for start_s, end_s in labels.takes:
            if "text" in path.name or end_s - start_s < 14:
                continue
            fps, frames = read_luma(path, start_s, end_s)
            for speed in (1, 2, 3):
                yield with_jump_cuts(path.name, frames[::speed], fps, speed, rng)
            repeated = [
                f for i, f in enumerate(frames[:200]) for f in [f] * (2 if i % 4 == 3 else 1)
            ]
            yield _labelled_video(f"repeated {path.name}", repeated, 30.0)
            pieces += [frames[a : a + 110] for a in (0, len(frames) // 2)]
    for number in range(3):
        order = [pieces[i] for i in rng.permutation(len(pieces))[:14]]
        yield concatenated(f"places {number}", order, rng)
        yield with_dissolves(f"dissolves {number}", order, rng)
        yield with_fades(f"fades {number}", order, level=(0, 255, 0)[number], rng=rng)


def _labelled_video(
    name: str, frames: list[np.ndarray], fps: float, **labels: object
) -> LabelledVideo:
    planes = [Planes(np.clip(f, 0, 255).astype(np.uint8)) for f in frames]
    times_s = np.arange(len(frames)) / fps
    return LabelledVideo(Labels(name, **labels), times_s, planes)  # type: ignore[arg-type]


def with_jump_cuts(
    name: str, frames: list[np.ndarray], fps: float, speed: int, rng: np.random.Generator
) -> LabelledVideo:
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
    return _labelled_video(f"jumps x{speed} {name}", kept, fps, cuts=cuts)


def concatenated(
    name: str, pieces: list[list[np.ndarray]], rng: np.random.Generator
) -> LabelledVideo:
    frames: list[np.ndarray] = []
    cuts = {}
    for piece in pieces:
        if frames:
            cuts[len(frames) / 25] = "place"
        frames += piece[: int(rng.uniform(12, 80))]
    return _labelled_video(name, frames, 25.0, cuts=cuts)


def with_dissolves(
    name: str, pieces: list[list[np.ndarray]], rng: np.random.Generator
) -> LabelledVideo:
    frames = [f.astype(np.float32) for f in pieces[0]]
    spans = []
    for piece in pieces[1:]:
        length = int(rng.uniform(8, 50))
        start = len(frames) - length
        for i, share in enumerate((np.arange(length) + 1) / (length + 1)):
            frames[start + i] = (1 - share) * frames[start + i] + share * piece[i]
        spans.append((start / 25, len(frames) / 25))
        frames += [f.astype(np.float32) for f in piece[length:]]
    return _labelled_video(name, frames, 25.0, gradual=spans)


def with_fades(
    name: str, pieces: list[list[np.ndarray]], level: int, rng: np.random.Generator
) -> LabelledVideo:
    """level: the grey level that pieces fade from and to."""
    frames: list[np.ndarray] = []
    spans = []
    for piece in pieces[:8]:
        length = int(rng.uniform(10, 35))
        light = np.clip(
            np.minimum(np.arange(len(piece)), np.arange(len(piece))[::-1]) / length, 0, 1
        )
        start, stop = len(frames), len(frames) + len(piece)
        spans += [(start / 25, (start + length) / 25), ((stop - length) / 25, stop / 25)]
        frames += [level + (f - float(level)) * s for f, s in zip(piece, light, strict=True)]
        frames += [np.full((180, 320), float(level))] * int(rng.integers(0, 10))
    return _labelled_video(name, frames, 25.0, gradual=spans)
