"""Near-duplicates among the clips of one video: of labelled videos, and of these shown twice.

    python -m benchmarks.repeated_parts [development] [figures]

The clips lie in the labelled takes (LONGTAKE_VIDEOS, LONGTAKE_LABELLED). Pairs that are found among
the clips of a video are printed with their times, to be judged by eye; most videos repeat nothing.
The first 40 s of each, at 16 frames/s at most, are then shown twice: as they are, and encoded by
x264 as one file. The second round does not begin on a quarter of a second. Of the clips that have
motion, those whose repetition is found are counted. It takes 15 minutes of CPU time.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa

from benchmarks.labelled_videos import Span, read_labels
from benchmarks.real_videos import HALVES, half_of, present, real_videos
from curation.stage import BadVideo
from curation.video.frames import Planes, VideoInfo
from curation.video.reader import Reader
from stages.meters.fingerprint import CODE, SIGNS, Fingerprint
from stages.selection.clip_fingerprints import read_fingerprints
from stages.selection.fingerprint_distance import MIN_MOVING_SHARE
from stages.selection.near_duplicates import find_pairs
from tests.support.paths import VIDEOS

CLIP_S = (4, 5, 8, 15)
LOOPED_S, FRAME_GAP_S = 40.0, 1 / 16
PAUSE_S = 0.06  # between the rounds
QUALITIES = (None, 23, 34)  # x264's crf; None: not encoded
Frames = list[tuple[float, np.ndarray]]  # s, luma


@dataclass
class Video:
    path: Path
    takes: list[Span]
    meter: Fingerprint = field(default_factory=Fingerprint)
    frames: Frames = field(default_factory=list)  # the first LOOPED_S seconds, fewer per second

    def decode(self) -> None:
        """What is read until the file is damaged counts."""
        try:
            with Reader(str(self.path)) as reader:
                for t_s, planes in reader.frames():
                    if not self.frames:
                        start(self.meter, planes.y)
                    self.meter.process_frame(t_s, planes)
                    is_due = not self.frames or t_s >= self.frames[-1][0] + FRAME_GAP_S
                    if is_due and t_s < LOOPED_S and planes.y.shape == self.shape(planes.y):
                        self.frames.append((t_s, planes.y.copy()))
        except BadVideo:
            pass

    def shape(self, luma: np.ndarray) -> tuple[int, ...]:
        return self.frames[0][1].shape if self.frames else luma.shape

    def clips(self, clip_s: float) -> list[Span]:
        """As many clips as fit in each take."""
        return [
            (
                start_s + k * (end_s - start_s) / count,
                start_s + k * (end_s - start_s) / count + clip_s,
            )
            for start_s, end_s in self.takes
            if (count := int((end_s - start_s) / clip_s))
            for k in range(count)
        ]


def start(meter: Fingerprint, luma: np.ndarray) -> None:
    height, width = luma.shape
    meter.start(VideoInfo(width, height, 0, width, height))


def videos(half: str) -> Iterator[Video]:
    for path, labels in read_labels(VIDEOS):
        if half_of(labels.sha256) == half:
            yield Video(path, labels.takes)
    for path, video in present(real_videos(half)):
        takes = [(a / video.fps + 0.1, b / video.fps - 0.1) for a, b in video.one_view_takes]
        yield Video(path, takes)


def repeated(
    meter: Fingerprint, spans: list[Span], by_rule_between_videos: bool = False
) -> list[tuple[int, int]]:
    """The pairs among the spans of one video."""
    column = pa.array([meter.encode(*span) for span in spans], pa.binary())
    codes = read_fingerprints(pa.chunked_array([column]))
    video = np.arange(len(spans)) if by_rule_between_videos else np.zeros(len(spans), int)
    return [(a, b) for a, b in find_pairs(codes, video).tolist()]


def moves(meter: Fingerprint, span: Span) -> bool:
    """Whether so much of the span has motion that a repetition of it could be found."""
    motion = np.frombuffer(meter.encode(*span), CODE)["motion"]
    return len(motion) > 0 and bool(np.mean(motion > SIGNS) >= MIN_MOVING_SHARE)


def shown_twice(frames: Frames, crf: int | None) -> tuple[Fingerprint, float]:
    """The fingerprint of two rounds, and when the second one begins."""
    times = np.array([t_s for t_s, _ in frames])
    period_s = float(times[-1] + np.median(np.diff(times)) + PAUSE_S)
    twice = [(t_s + k * period_s, luma) for k in (0, 1) for t_s, luma in frames]
    meter = Fingerprint()
    start(meter, frames[0][1])
    for t_s, luma in twice if crf is None else encoded(twice, crf):
        meter.process_frame(t_s, Planes(luma))
    return meter, period_s


def encoded(frames: Frames, crf: int) -> Iterator[tuple[float, np.ndarray]]:
    """The frames as one x264 file shows them."""
    file, base = io.BytesIO(), Fraction(1, 90000)
    height, width = (n - n % 2 for n in frames[0][1].shape)
    with av.open(file, "w", format="mp4") as out:
        # x264's AVX-512 code is not deterministic
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "asm=avx2"}
        stream = out.add_stream("libx264", rate=16, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = base
        for t_s, luma in frames:
            image = np.full((height * 3 // 2, width), 128, np.uint8)
            image[:height] = luma[:height, :width] * (219 / 255) + 16.5
            frame = av.VideoFrame.from_ndarray(image, "yuv420p")
            frame.pts, frame.time_base = round(t_s * 90000), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as source:
        for frame in source.decode(video=0):
            luma = np.frombuffer(frame.planes[0], np.uint8).reshape(height, -1)[:, :width]
            full = np.clip((luma.astype(np.float32) - 16) * (255 / 219), 0, 255)
            yield float(frame.time or 0), full.astype(np.uint8)


def measure(half: str) -> None:
    count: Counter[tuple] = Counter()
    for video in videos(half):
        video.decode()
        if not video.frames:
            continue
        for clip_s in CLIP_S:
            spans = video.clips(clip_s)
            count[clip_s, "clips"] += len(spans)
            count[clip_s, "videos"] += bool(spans)
            for a, b in repeated(video.meter, spans):
                count[clip_s, "pairs"] += 1
                times = f"{spans[a][0]:.1f} s and {spans[b][0]:.1f} s"
                print(f"{half}, clips of {clip_s} s: {video.path.name}: {times}", flush=True)
            between = repeated(video.meter, spans, by_rule_between_videos=True)
            count[clip_s, "pairs by the rule between videos"] += len(between)
        if len(video.frames) < 2:
            continue
        for crf in QUALITIES:
            meter, later_s = shown_twice(video.frames, crf)
            for clip_s in CLIP_S:
                first = [s for s in video.clips(clip_s) if s[1] < later_s - PAUSE_S]
                second = [(a + later_s, b + later_s) for a, b in first]
                pairs = set(repeated(meter, first + second))
                moving = [k for k, span in enumerate(first) if moves(meter, span)]
                count[clip_s, crf, "moving"] += len(moving)
                count[clip_s, crf, "found"] += sum((k, k + len(first)) in pairs for k in moving)
    for clip_s in CLIP_S:
        counted = ("videos", "clips", "pairs by the rule between videos", "pairs")
        parts = [f"{count[clip_s, what]} {what}" for what in counted]
        for crf in QUALITIES:
            found, of = count[clip_s, crf, "found"], count[clip_s, crf, "moving"]
            parts.append(f"{'shown twice' if crf is None else f'crf {crf}'}: {found} of {of}")
        print(f"{half}, clips of {clip_s} s: {', '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("halves", nargs="*", metavar="|".join(HALVES))
    for half in parser.parse_args().halves or HALVES:
        measure(half)


if __name__ == "__main__":
    main()
