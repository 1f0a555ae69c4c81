"""What the decode pass costs after the last frame: how it grows with the length of the video.

    python -m benchmarks.after_decode [HOURS…]

The measurements of each frame are synthetic, so that no frame is decoded: random luma, motion and
images at the rates of the meters, and a cut every two seconds. The clips fail the prefilter by
their length. Prints CPU seconds per take, which stay equal where the cost is linear.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from curation.policy import Policy, Range
from curation.stage import RunContext
from curation.video.reader import Reader
from stages.decode_pass import DecodePass
from stages.meters.fingerprint import SIDE, TICKS_PER_S
from stages.meters.motion import _FIELDS
from tests.support.video_files import draw

FPS, CUT_INTERVAL_S = 30.0, 2.0
HOURS = (0.5, 1.0, 2.0, 4.0)
# docs/measurements/cost.md: one pass over the labelled set, CPU-s for a second of video
PASS_CPU_S_PER_S = 0.046


def fill(decode: DecodePass, reader: Reader, seconds: float) -> None:
    """Gives the reader and the meters what a pass over so much video would leave in them."""
    rng = np.random.default_rng(0)
    frames = int(seconds * FPS)
    ticks = round(1 / FPS / reader._tick_s)
    decode.key_frames.start()
    for processor in (decode._detector, *decode.meters, decode.fingerprint):
        processor.start(reader.header.info())
    for _ in reader.frames():
        pass
    first = reader.num_frames
    for number in range(first, frames):
        reader._times.append(number / FPS)
        reader.interlaced.append(0)
        reader._stamps.append(number * ticks)
        reader._packet_bytes.append(5000)
        reader._is_key.append(number % 60 == 0)
    reader.end_s = frames / FPS
    decode.freeze._times_s.extend(reader._times)
    decode.freeze._change.extend(rng.choice([0.0, 3.0, 30.0], frames, p=[0.1, 0.3, 0.6]))
    decode.freeze._share.extend(rng.uniform(0, 1, frames))
    rows, columns = rng.integers(0, 255, (2, 2, 180), np.uint8)
    for t_s in np.arange(0, seconds, 1 / decode.light.samples_per_s):
        decode.light._times_s.append(float(t_s))
        decode.light._levels.append((100.0, 300.0))
        decode.light._rows.append(rows)
        decode.light._columns.append(columns)
    for t_s in np.arange(0, seconds, 1 / decode.motion.samples_per_s):
        sample = rng.uniform(0, 5, len(_FIELDS)).astype(np.float32)
        sample[0] = t_s
        decode.motion._samples.append(sample)
    image = rng.integers(0, 65535, (SIDE, SIDE), np.uint16)
    decode.fingerprint._ticks.extend(range(int(seconds * TICKS_PER_S)))
    for _ in range(int(seconds * TICKS_PER_S)):
        decode.fingerprint._images.append(image)
    decode.fingerprint._tick = int(seconds * TICKS_PER_S)
    decode.fingerprint._last = np.zeros((SIDE, SIDE), np.float32)
    decode.fingerprint._rows, decode.fingerprint._columns = rng.uniform(50, 200, (2, 180))
    decode.fingerprint._sampled = 1
    decode._detector._cuts_s += np.arange(CUT_INTERVAL_S, seconds, CUT_INTERVAL_S).tolist()


def measure(hours: float, scratch: Path) -> tuple[float, int]:
    """CPU seconds after the last frame, and the number of takes."""
    video = draw(scratch / "video.mp4", width=1280, height=720, frames=30, fps=FPS)
    decode = DecodePass(prefilter=Policy(duration_s=Range(min=15)))
    decode.setup(RunContext(str(scratch / "ledger"), thumbnail_share=0.0))
    with Reader(str(video)) as reader:
        fill(decode, reader, hours * 3600)
    start = time.process_time()
    row = decode.score_frames(reader, "0" * 64)
    return time.process_time() - start, len(row["clips"])


def main() -> None:
    print(f"{'hours':>6}{'takes':>8}{'CPU-s':>9}{'ms/take':>9}{'of the pass':>13}")
    with tempfile.TemporaryDirectory() as scratch:
        for hours in tuple(map(float, sys.argv[1:])) or HOURS:
            cpu_s, takes = measure(hours, Path(scratch))
            share = cpu_s / (hours * 3600 * PASS_CPU_S_PER_S)
            print(f"{hours:6g}{takes:8}{cpu_s:9.1f}{cpu_s / takes * 1e3:9.2f}{share:13.1%}")


if __name__ == "__main__":
    main()
