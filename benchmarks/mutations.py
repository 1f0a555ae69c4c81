"""Mutated real files through whole `curate` runs: each file has one row, no run hangs.

    python -m benchmarks.mutations [--files 1000] [--seed 0] [--first 0] [--structure] [--decode]
    python -m benchmarks.mutations --damage

The first seconds of each labelled video (LONGTAKE_VIDEOS) are copied, not encoded, into mp4, mkv
and TS; each file is one of these with bytes changed, removed, repeated or exchanged. Prints how
many rows ended how. Fails where a file has no row or two, a row has no status, or a run takes
longer than its limit. --structure: the mutations of benchmarks.structure_mutations. --decode: each
file through the decode stage alone, in its child process; fails where our own code raises.
--damage: damaged copies of a drawn file of each of FORMATS; prints how many of the changed frames
lie in a damaged span, in how many files none does, and how many files were refused.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow.parquet as pq

from benchmarks.structure_mutations import MUTATIONS as STRUCTURE
from benchmarks.structure_mutations import TS_PACKET, Mutation
from curation.funnel import normalize_reason
from curation.isolate import Isolated, Unexpected
from curation.stage import BadVideo, OutputError, RunContext
from curation.video.reader import Reader
from stages.decode_pass import DecodePass
from tests.support import video_files
from tests.support.paths import REPOSITORY, VIDEOS
from tests.support.small_input import scene

SPAN_S = 2.0  # of a source
FILES_PER_RUN = 250
MAX_S_PER_FILE = 20.0  # of a run, on two cores; a file that hangs is ended after 120 s
MAX_HEIGHT = 600  # px of a source, so that a file takes half a second
SETTINGS = (
    "score.decode.clip_s=1",
    "score.decode.max_clip_s=1",
    "score.decode.prefilter={duration_s: null, width: null, height: null}",
    "select.policy={duration_s: {min: 1}, width: null, height: null, damaged_share: {max: 0}}",
    "max_failed_share=1",
)
FORMATS = (  # of --damage: encoder, suffix, and an option of the encoder
    # x264's AVX-512 code is not deterministic
    *("libx264 mp4 x264-params=asm=avx2", "libx264 mp4 x264-params=asm=avx2:cabac=0"),
    *("libx264 ts x264-params=asm=avx2", "libx265 mp4 x265-params=log-level=none"),
    "libx265 ts x265-params=log-level=none",
    *("mpeg4 mp4", "mpeg2video mpg", "mpeg2video ts", "wmv2 wmv", "flv flv", "libvpx webm"),
    *("libvpx-vp9 webm cpu-used=5", "libsvtav1 mkv preset=10", "mjpeg mov", "prores_ks mov"),
)
COPIES, CHANGED_BYTES, LOST_SHARE = 24, (3, 10, 40), 0.02  # of a drawn file; of its TS packets
MIN_CHANGE = 2.0  # mean absolute difference of the luma, 0..255, of a changed frame


def copy_spans(folder: Path) -> Iterator[Path]:
    """The first SPAN_S of each small labelled video, in each container that holds its codec."""
    for source in sorted(VIDEOS.glob("*.[mw]*")):
        for suffix in ("mp4", "mkv", "ts"):
            target = folder / f"{source.stem}.{suffix}"
            try:
                with av.open(str(source)) as file, av.open(str(target), "w") as out:
                    stream = file.streams.video[0]
                    if stream.height > MAX_HEIGHT:
                        raise ValueError("too large")
                    track = out.add_stream_from_template(stream)
                    for packet in file.demux(stream):
                        if packet.dts is None or packet.dts * packet.time_base > SPAN_S:
                            break
                        packet.stream = track
                        out.mux(packet)
                yield target
            except (av.FFmpegError, ValueError, IndexError):  # broken, too large, or not storable
                target.unlink(missing_ok=True)


def change_bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 10, 100, len(data) // 50))):
        data[rng.randrange(len(data))] = rng.randrange(256)


def change_header(data: bytearray, rng: random.Random) -> None:
    """The first or the last 2 kB, where containers have their index."""
    start = rng.choice((0, max(0, len(data) - 2000)))
    for _ in range(rng.randrange(1, 20)):
        data[min(len(data) - 1, start + rng.randrange(2000))] = rng.randrange(256)


def cut_off(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def remove_piece(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 20_000)]


def repeat_piece(data: bytearray, rng: random.Random) -> None:
    start, to = rng.randrange(len(data)), rng.randrange(len(data))
    data[to:to] = data[start : start + rng.randrange(1, 20_000)]


def clear_piece(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    length = min(len(data) - start, rng.randrange(1, 20_000))
    data[start : start + length] = bytes(length)


MUTATIONS: tuple[Mutation, ...] = (
    *(change_bytes, change_header, cut_off, remove_piece, repeat_piece, clear_piece),
)


def mutate(
    sources: list[Path], folder: Path, numbers: range, seed: int, mutations: Sequence[Mutation]
) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        rng = random.Random(f"{seed}:{number}")
        source = rng.choice(sources)
        data = bytearray(source.read_bytes())
        for mutation in rng.choices(mutations, k=rng.choice((1, 1, 2))):
            if data:
                mutation(data, rng)
        (folder / f"{number:06d}{source.suffix}").write_bytes(data)


def decode(sources: list[Path], folder: Path, numbers: range, seed: int) -> Counter[str]:
    """How the decode stage ended on each file."""
    stage = DecodePass(clip_s=1, max_clip_s=1)
    outcomes: Counter[str] = Counter()
    setup = partial(stage.setup, RunContext(str(folder / "ledger")))
    with Isolated(stage.process, setup, timeout_s=120, memory_gib=4) as isolated:
        for number in numbers:
            mutate(sources, folder, range(number, number + 1), seed, STRUCTURE)
            [path] = folder.glob(f"{number:06d}.*")
            size = path.stat().st_size
            try:
                [row] = isolated([{"video": str(path), "bytes": size, "version": ""}])
                outcomes["scored" if row.get("error") is None else row["error"]] += 1
            except (Unexpected, OutputError) as error:
                outcomes["ERROR OF OUR CODE"] += 1
                print(f"{path.name}, seed {seed}: {error}", flush=True)
            except BadVideo as error:
                kind = "" if type(error) is BadVideo else f"{type(error).__name__}: "
                outcomes[kind + normalize_reason(str(error))] += 1
            path.unlink()
    return outcomes


def curate(source: Path, out: Path, limit_s: float) -> list[dict[str, str]]:
    """The rows of the videos. Raises where a file has none or the run ends badly."""
    command = [sys.executable, "-m", "pipelines.curate", f"input={source}", f"output={out}"]
    done = subprocess.run(
        [*command, *SETTINGS], cwd=REPOSITORY, capture_output=True, text=True, timeout=limit_s
    )
    if done.returncode:
        raise SystemExit(f"curate ended with {done.returncode}:\n{done.stderr[-3000:]}")
    rows = pq.read_table(out / "videos.parquet", columns=["video", "status", "error"]).to_pylist()
    files = sorted(str(path) for path in source.iterdir())
    assert [row["video"] for row in rows] == files, "a file has no row, or two"
    return rows


def damage_packets(source: Path, target: Path, copy: int) -> None:
    """Changes bytes of packets; every other copy of a TS file lacks packets of TS instead."""
    rng, data = random.Random(f"{source.name}:{copy}"), bytearray(source.read_bytes())
    if source.suffix == ".ts" and copy % 2:
        parts = [data[at : at + TS_PACKET] for at in range(0, len(data), TS_PACKET)]
        target.write_bytes(b"".join(part for part in parts if rng.random() >= LOST_SHARE))
        return
    with av.open(str(source)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size and p.pos is not None]
    count = CHANGED_BYTES[copy % len(CHANGED_BYTES)]
    for start, size in rng.choices(packets, [size for _, size in packets], k=count):
        data[start + rng.randrange(size)] ^= rng.randrange(1, 256)
    target.write_bytes(data)


def read_frames(path: Path) -> tuple[dict[int, np.ndarray], list[tuple[float, float]]]:
    """The luma of each frame by its time stamp, ms; and the damaged spans in time stamps, s."""
    with Reader(str(path)) as reader:
        frames = [(t_s, planes.y) for t_s, planes in reader.frames()]
    start_s = reader.start_s
    spans = [(start_s + a, start_s + b) for a, b in reader.damaged]
    return {round(1000 * (start_s + t_s)): luma for t_s, luma in frames}, spans


def count_found(folder: Path, text: str) -> str:
    """text: one of FORMATS. Returns its line of the table."""
    codec, suffix, *options = text.split()
    source, target = folder / f"intact.{suffix}", folder / f"damaged.{suffix}"
    look: dict[str, Any] = {"frames": 200, "width": 320, "height": 180, "picture": scene(1)}
    look["pix_fmt"] = av.codec.Codec(codec, "w").video_formats[0].name
    look["options"] = {"g": "25"} | dict(option.split("=", 1) for option in options)
    intact, spans = read_frames(video_files.draw(source, codec=codec, **look))
    assert not spans, f"{text}: the intact file has damaged spans"
    counts: Counter[str] = Counter()
    for copy in range(COPIES):
        damage_packets(source, target, copy)
        try:
            frames, spans = read_frames(target)
        except BadVideo:
            counts["refused"] += 1
            continue
        pairs = ((t, luma, intact[t]) for t, luma in frames.items() if t in intact)
        changed = [
            t for t, a, b in pairs if a.shape != b.shape or cv2.absdiff(a, b).mean() > MIN_CHANGE
        ]
        found = sum(any(a <= t / 1000 + 1e-3 < b for a, b in spans) for t in changed)
        counts.update(changed=len(changed), found=found, unnoticed=bool(changed and not found))
    shares = f"{counts['found']:,} of {counts['changed']:,}"
    return f"| {text} | {shares} | {counts['unnoticed']} | {counts['refused']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--structure", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--damage", action="store_true")
    args = parser.parse_args()
    if args.damage:
        with tempfile.TemporaryDirectory() as scratch:
            for text in FORMATS:
                print(count_found(Path(scratch), text), flush=True)
        return
    outcomes: Counter[str] = Counter()
    clips: Counter[str] = Counter()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "spans").mkdir()
        sources = list(copy_spans(folder / "spans"))
        end = args.first + args.files
        if args.decode:
            outcomes = decode(sources, folder, range(args.first, end), args.seed)
        for first in range(args.first, end, FILES_PER_RUN) if not args.decode else ():
            numbers = range(first, min(end, first + FILES_PER_RUN))
            source, out = folder / f"in{first}", folder / f"out{first}"
            mutate(sources, source, numbers, args.seed, STRUCTURE if args.structure else MUTATIONS)
            for row in curate(source, out, 120 + MAX_S_PER_FILE * len(numbers)):
                failed = row["status"] == "failed"
                outcomes[normalize_reason(row["error"]) if failed else row["status"]] += 1
            table = pq.read_table(out / "clips.parquet", columns=["status", "reason"])
            for clip in table.to_pylist():
                reason = clip["reason"] and normalize_reason(clip["reason"])
                clips[f"{clip['status']}: {reason}" if reason else clip["status"]] += 1
            print(f"{outcomes.total()} files, {time.monotonic() - began_s:.0f} s", flush=True)
    print(f"{len(sources)} real spans, {outcomes.total()} mutated files, each with one row")
    for name, counts in (("files", outcomes), ("clips", clips)):
        print(f"\n{name}")
        for outcome, n in counts.most_common():
            print(f"{n:6} {outcome}")
    if outcomes["ERROR OF OUR CODE"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
