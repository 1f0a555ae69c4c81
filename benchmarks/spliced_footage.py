"""Takes spliced to sequences in which time is skipped at known places: most are jump cuts.

The detector's trees are trained with them (benchmarks/train_transitions.py): with decoded frames at
other rates, and with frames that pass through an encoding at a low bit rate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from copy import copy
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import cv2
import numpy as np

from benchmarks.footage import Take, frame_views
from benchmarks.measured_pairs import NONE, PLACE, Pairs, Recorder, as_pairs, some_of
from benchmarks.shots_compressed import Encoding, x264
from curation.video.reader import Reader
from stages.shots.cut_features import CHANGED_LEVELS
from stages.shots.frame_view import FrameView

SPLICES = 4  # sequences of decoded frames from each pair of takes; the last one is grey
SPLICED_S = 15.0  # of each take
MOST_OTHERS = 100  # pairs without a cut that are kept of a sequence
# A skip of time in which fewer than VISIBLE of the blocks changed, or less than VISIBLE_RATIO times
# as many as in the largest step nearby, is not always seen by eye: such pairs are left out.
VISIBLE, VISIBLE_RATIO = 0.015, 2.0

LOW_RATE_SIZE = (480, 272)  # px, of the frames before they are encoded
LOW_RATE_SIZES = ((640, 360), (480, 272), (320, 180))  # those encoded
LOW_RATE_FPS = (10, 15, 24, 25, 30)
LOW_RATE_FPS_SHARES = (0.05, 0.1, 0.25, 0.35, 0.25)
KEY_FRAME_DISTANCES = (12, 30, 48, 60, 120, 250)
ENCODINGS = ("x264", "x264 fixed", "x264 rate", "x265", "mpeg4", "vp9", "twice")
ENCODING_SHARES = (0.3, 0.12, 0.15, 0.08, 0.13, 0.14, 0.08)
LATE_FRAMES = 2.5  # a codec may show the new picture that late: pairs so near a cut are left out

Frame = TypeVar("Frame")


def one_splice(job: tuple[int, Take, Take]) -> tuple[str, Pairs]:
    """Measures sequences of parts of one take, then of the other. Every second frame or fewer of
    some sequences is used: as fast motion, or at a low rate."""
    number, *takes = job
    rng = np.random.default_rng([18, number])
    views = []
    for take in takes:
        with Reader(take.path) as reader:
            end_s = min(take.end_s, take.start_s + SPLICED_S)
            views.append(list(frame_views(reader, take.start_s, end_s)))
    found = []
    for sequence in range(SPLICES):
        step = int(rng.choice([1, 2, 3, 6], p=[0.5, 0.2, 0.2, 0.1]))
        is_faster = bool(rng.random() < 0.5)
        parts = [part for of_take in views for part in cut_parts(of_take[::step], rng)]
        step_s = 0.04 if is_faster else 0.04 * step
        frames = [view for part in parts for view in part]
        is_grey = sequence == SPLICES - 1
        shown = [_at(view, number * step_s, is_grey) for number, view in enumerate(frames)]
        found.append(measure_sequence(shown, starts_of(parts)))
    x, y = zip(*found, strict=True)
    return "spliced|", (np.concatenate(x), np.concatenate(y))


def one_low_rate_splice(job: tuple[int, Take, Take]) -> tuple[str, Pairs]:
    """Measures a sequence of parts of one take, then of the other, at a low bit rate: in another
    size, in changing light, or grey in some sequences."""
    number, *takes = job
    rng = np.random.default_rng([19, number])
    step = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    longest = int(rng.choice([50, 100]))
    parts = [
        part
        for take in takes
        for part in cut_parts(take.frames(*LOW_RATE_SIZE, 300)[::step], rng, longest)
    ]
    frames = [frame for part in parts for frame in part]
    size = LOW_RATE_SIZE
    if rng.random() < 0.6:
        size = LOW_RATE_SIZES[int(rng.integers(len(LOW_RATE_SIZES)))]
    is_lit, is_grey = rng.random() < 0.25, rng.random() < 0.4
    if is_lit:
        gains = 0.85 + 0.15 * np.cos(np.arange(len(frames)) / 25 * rng.uniform(0.5, 1.5))
        frames = [
            cv2.convertScaleAbs(f, alpha=float(a)) for f, a in zip(frames, gains, strict=True)
        ]
    if size != LOW_RATE_SIZE:
        shrinks = size[0] < LOW_RATE_SIZE[0]
        way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        frames = [cv2.resize(f, size, interpolation=way) for f in frames]
    if is_grey:
        frames = [
            cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) for f in frames
        ]
    fps = int(rng.choice(LOW_RATE_FPS, p=LOW_RATE_FPS_SHARES))
    name, encodings = draw_encodings(rng, size[0] * size[1] * fps)
    with tempfile.TemporaryDirectory() as folder:
        for place, encoding in enumerate(encodings):
            path = Path(folder) / f"{place}.mkv"
            encode(frames, fps, encoding, path)
            if place + 1 < len(encodings):
                frames = decoded(path)
        with Reader(str(path)) as reader:
            views = list(frame_views(reader))
    pairs = measure_sequence(views, starts_of(parts), LATE_FRAMES / fps)
    conditions = [name, *["grey"] * is_grey, *["changing light"] * is_lit]
    return f"low rate|{'+'.join(conditions)}", pairs


def cut_parts(
    frames: Sequence[Frame], rng: np.random.Generator, longest: int = 51
) -> list[Sequence[Frame]]:
    """Parts of 8 to `longest` - 1 frames, 5 to 80 frames apart."""
    parts, start = [], 0
    while len(part := frames[start : start + int(rng.integers(8, longest))]) >= 8:
        parts.append(part)
        start += len(part) + int(rng.integers(5, 81))
    return parts


def starts_of(parts: Sequence[Sequence[Frame]]) -> list[int]:
    """The first frames of all parts but the first, in the sequence of all."""
    return np.cumsum([0, *map(len, parts)])[1:-1].tolist()


def measure_sequence(views: list[FrameView], starts: list[int], late_s: float = 0.0) -> Pairs:
    """The pairs of a video, a part of which begins at each of `starts`. These are cuts: PLACE, so
    that the counts of JUMP are those of labelled videos. Pairs within late_s of one are left out.
    """
    recorder = Recorder()
    for view in views:
        recorder.add(view)
    recorder.possible_cuts()
    is_visible: dict[float, bool] = {}  # by the time of each first frame
    for at in starts:
        if at < len(views):  # a codec may lose the last frames
            near = range(max(1, at - 4), min(len(views), at + 5))
            others = [_changed_share(views[i - 1], views[i]) for i in near if i != at]
            limit = max(VISIBLE, VISIBLE_RATIO * max(others))
            is_visible[views[at].t_s] = _changed_share(views[at - 1], views[at]) >= limit
    cuts, none = [], []
    for before_s, after_s, features in recorder.pairs:
        visible = [v for t_s, v in is_visible.items() if before_s < t_s - 1e-4 <= after_s]
        if visible and visible[0]:
            cuts.append((features, PLACE))
        elif not visible and not any(abs(after_s - t_s) < late_s for t_s in is_visible):
            none.append((features, NONE))
    return as_pairs(cuts + some_of(none, MOST_OTHERS))


def _at(view: FrameView, t_s: float, is_grey: bool) -> FrameView:
    """A copy that is shown at t_s, with what was computed of the view."""
    moved, moved.small = copy(view), copy(view.small)
    moved.t_s = moved.small.t_s = t_s
    if is_grey:
        for of_colour in ("hsv", "histogram", "blocks"):
            moved.__dict__.pop(of_colour, None)
        moved.yuv = view.yuv.copy()
        moved.yuv[:, :, 1:] = 128
    return moved


def _changed_share(before: FrameView, after: FrameView) -> float:
    a, b = before.small.means, after.small.means
    if a.shape != b.shape:
        return 1.0  # two takes
    return float((np.abs(a - b) > CHANGED_LEVELS).mean())


# ---------------------------------------------------------------- encodings


def draw_encodings(rng: np.random.Generator, px_per_s: int) -> tuple[str, list[Encoding]]:
    """A name, and the encodings that a sequence passes through."""
    distance = int(rng.choice(KEY_FRAME_DISTANCES))
    name = str(rng.choice(ENCODINGS, p=ENCODING_SHARES))
    crf = int(rng.integers(36, 50))

    def bits_per_s(least: float, most: float) -> int:
        return int(rng.uniform(least, most) * px_per_s)

    if name == "x264":
        return name, [x264(crf=crf, g=distance)]
    if name == "x264 fixed":
        return name, [x264(crf=crf, g=distance, sc_threshold=0, bf=0)]
    if name == "x264 rate":
        return name, [x264(g=distance)._replace(bits_per_s=bits_per_s(0.008, 0.03))]
    if name == "x265":
        options = {"preset": "ultrafast", "crf": str(rng.integers(36, 46))}
        options["x265-params"] = f"log-level=none:keyint={distance}"
        return name, [Encoding("libx265", options)]
    if name == "mpeg4":
        return name, [Encoding("mpeg4", {"g": str(distance)}, bits_per_s(0.015, 0.06))]
    if name == "vp9":
        options = {"deadline": "realtime", "cpu-used": "8", "g": str(distance)}
        return name, [Encoding("libvpx-vp9", options, bits_per_s(0.01, 0.04))]
    return name, [x264(crf=crf, g=distance), x264(crf=int(rng.integers(22, 32)))]


def encode(frames: list[np.ndarray], fps: int, encoding: Encoding, path: Path) -> None:
    """frames: (h, w, 3) BGR uint8."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoding.codec, rate=Fraction(fps))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"threads": "1", **encoding.options}
        if encoding.bits_per_s:
            stream.bit_rate = encoding.bits_per_s
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "bgr24")))
        output.mux(stream.encode())


def decoded(path: Path) -> list[np.ndarray]:
    """(h, w, 3) BGR uint8."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
