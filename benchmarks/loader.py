"""Samples per second that reach the trainer, decoded from shards or from the latent cache.

    python -m benchmarks.loader [--clips 8] [--workers 0 2] [--store] [--encode]
    python -m benchmarks.loader --readers FILE.mp4 …

Renders clips of 15 s at 1280 x 720, 30 fps, H.264, packs them as `make curate` does, and reads them
as the trainer does: 88 frames at 720 x 1280. The cache holds random latents and texts of Allegro's
shapes (captions of 100 tokens). --store: reads them also from an S3 server on this machine (moto),
and counts its requests. --encode (needs a GPU and diffusers): the time of Allegro's codec, with
random weights, for a clip, which a step would need without a cache. --readers: only compares
`data.reader: pyav` and `decord` (the extra `decord`) on the rendered clip and on files, of which
88 frames are sampled at their own size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save as tensor_bytes

from curation.storage import Folder
from stages.export.extraction import ExtractedClip
from tests.support import drawn_clips
from tests.support.s3_server import create_bucket, url_options
from training import precompute
from training.clips import ShardedClips
from training.config import AllegroConfig, DataConfig, Reader, Size, SystemConfig, T5Config
from training.data import Batch, LocalBatch, stream_batches
from training.frames import check_reader, read_shape, sample_frames
from training.latent_cache import LatentCache, cache_key
from training.pretrained import AllegroCodec

FRAMES, FPS, WIDTH, HEIGHT = 450, 30, 1280, 720
SIZE = Size(88, 720, 1280)
REPEATS = 5  # of the comparison of readers


def draw(_clip: dict, target: Path) -> ExtractedClip:
    target.write_bytes(scene())
    size = target.stat().st_size
    return ExtractedClip("encode", "h264", FRAMES, 0, WIDTH, HEIGHT, float(FPS), size, 0.0)


@lru_cache
def scene() -> bytes:
    """A pan over smooth noise with grain: about as hard to decode as a filmed scene."""
    rng = np.random.default_rng(0)
    small = rng.integers(20, 236, (90, 240, 3), np.uint8)
    wide = cv2.resize(small, (WIDTH + 2 * FRAMES, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 20, (8, HEIGHT, WIDTH, 3), np.uint8)
    file = BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(FRAMES):
            picture = cv2.add(wide[:, 2 * i : 2 * i + WIDTH], grain[i % 8])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def rows(count: int) -> list[dict]:
    def one(i: int) -> dict:
        parts = [{"start_s": 3.0 * s, "end_s": 3.0 * s + 3, "text": f"{i} {s}"} for s in range(5)]
        long = {"start_s": 0.0, "end_s": 15.0, "num_frames": FRAMES, "sub_captions": parts}
        return drawn_clips.row(i) | long

    return [one(i) for i in range(count)]


def write_cache(cfg: SystemConfig, data: DataConfig) -> None:
    """Writes a cache with random values of the real shapes."""
    source = ShardedClips(data.dataset, "train", cfg.size)
    cache = Path(data.cache)
    (cache / "shards").mkdir(parents=True)
    precompute.write_or_check_key(cache, cache_key(cfg))
    by_shard: dict[str, list] = {}
    for location in source.locations.values():
        by_shard.setdefault(location.shard, []).append(location)
    for name, locations in by_shard.items():
        files = []
        for location in locations:
            captions = [f"{location.row['clip_id']} {s}" for s in range(5)]
            spans = [(3.0 * s, 3.0 * s + 3) for s in range(5)]
            metadata = {
                "duration_s": 15.0,
                "caption": "all",
                "sub_captions": [
                    {"start_s": a, "end_s": b, "text": c}
                    for (a, b), c in zip(spans, captions, strict=True)
                ],
            }
            tensors = {"latents": torch.randn(2, 4, 22, 90, 160).half()}
            tensors |= {f"text.{i}": torch.randn(100, 4096).bfloat16() for i in range(7)}
            files.append(cache / location.row["clip_id"])
            files[-1].write_bytes(tensor_bytes(tensors, {"clip": json.dumps(metadata)}))
        precompute.pack(cache, name, locations, files)
    found = [precompute.complete_rows(cache, name, at) or [] for name, at in by_shard.items()]
    table = pa.Table.from_pylist([row for rows in found for row in rows])
    pq.write_table(table, cache / "shards.parquet")


def rate(batches: Iterator[Batch], count: int) -> tuple[float, float]:
    """Samples a second, and CPU seconds of this process a sample, after the first two."""
    list(islice(batches, 2))
    start, cpu = time.perf_counter(), time.process_time()
    list(islice(batches, count))
    return count / (time.perf_counter() - start), (time.process_time() - cpu) / count


def compare_readers(files: Sequence[Path]) -> None:
    """Prints a row per file: the least CPU time of each reader, which take turns."""
    check_reader("decord")
    print("| file | size | frames | MB | PyAV, CPU s | decord, CPU s | ratio | equal frames |")
    print("|---|---|---|---|---|---|---|---|")
    for name, mp4 in [("rendered", scene()), *((f.name, f.read_bytes()) for f in files)]:
        width, height, duration_s = read_shape(mp4)
        with av.open(BytesIO(mp4)) as file:
            count = sum(1 for _ in file.decode(video=0))
        times: dict[Reader, float] = {"pyav": math.inf, "decord": math.inf}
        sampled: dict[Reader, torch.Tensor] = {}
        for _ in range(REPEATS):
            for reader in times:
                start = time.process_time()
                size = Size(SIZE.frames, height, width)
                sampled[reader] = sample_frames(mp4, duration_s, count, size, reader)
                times[reader] = min(times[reader], time.process_time() - start)
        equal = (sampled["pyav"] == sampled["decord"]).flatten(1).all(1).sum()
        print(
            f"| {name} | {width} x {height} | {count} | {len(mp4) / 1e6:.1f} "
            f"| {times['pyav']:.2f} | {times['decord']:.2f} "
            f"| {times['decord'] / times['pyav']:.2f} | {equal} of {SIZE.frames} |",
            flush=True,
        )


@contextmanager
def s3_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """An S3 server in its own process: yields the options of URLs, and its log of requests."""
    log = folder / "requests.txt"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as out, subprocess.Popen(command, stderr=out, stdout=out) as process:
        try:
            while not (port := re.search(r"127\.0\.0\.1:(\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield url_options(f"127.0.0.1:{port[1]}"), log
        finally:
            process.kill()


def upload(folder: Path, url: str) -> None:
    target = Folder(url)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            target.upload(str(file.relative_to(folder)), file)


def measure(
    label: str,
    cfg: SystemConfig,
    data: DataConfig,
    args: argparse.Namespace,
    log: Path | None = None,
) -> None:
    """Prints a row for each source and number of workers. log: of a server's requests."""

    def requests() -> int:
        return log.read_text().count(" HTTP/1.1") if log else 0

    for name in ("shards", "cache"):
        for workers in args.workers:
            before = requests()
            split = ShardedClips(data.dataset, "train", SIZE)
            source = split if name == "shards" else LatentCache(cfg, data, "train")
            opened = requests()
            batches = stream_batches(source, LocalBatch(1), 0, 0, workers)
            per_s, cpu = rate(batches, args.samples)
            cells = [name + label, str(workers), f"{per_s:.2f}", f"{cpu:.3f}"]
            if log and not workers:  # workers request some clips ahead
                each = (requests() - opened) / (args.samples + 2)
                cells += [f"{opened - before} + {each:.2f} a sample"]
            print("|", " | ".join(cells), "|", flush=True)


def encode_seconds() -> float:
    """Of Allegro's codec for one clip, weights random."""
    with tempfile.TemporaryDirectory() as folder:
        from diffusers import AutoencoderKLAllegro

        AutoencoderKLAllegro().save_pretrained(Path(folder, "vae"))
        video = torch.randint(0, 256, (1, *vars(SIZE).values(), 3), dtype=torch.uint8).cuda()
        codec = AllegroCodec(AllegroConfig(folder))
        codec.encode(video[:, :24, :320, :320])
        torch.cuda.synchronize()
        start = time.perf_counter()
        codec.encode(video)
        torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--encode", action="store_true")
    parser.add_argument("--readers", type=Path, nargs="*", metavar="FILE")
    args = parser.parse_args()
    if args.readers is not None:
        compare_readers(args.readers)
        return
    with tempfile.TemporaryDirectory() as folder:
        dataset = drawn_clips.dataset(Path(folder, "data"), rows(args.clips), 4, draw)
        cfg = SystemConfig(SIZE, (), AllegroConfig("-"), T5Config("-"))
        data = DataConfig(str(dataset), cache=str(Path(folder, "cache")))
        write_cache(cfg, data)
        sizes = [sum(f.stat().st_size for f in Path(d, "shards").glob("*.tar")) for d in
                 (dataset, data.cache)]  # fmt: skip
        print(f"a clip: {sizes[0] / args.clips / 1e6:.1f} MB of mp4, "
              f"{sizes[1] / args.clips / 1e6:.1f} MB in the cache")  # fmt: skip
        print(
            "| source | workers | samples/s | CPU s a sample, in the trainer's process | requests"
        )
        measure("", cfg, data, args)
        if args.store:
            os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
            with s3_server(Path(folder)) as (options, log):
                create_bucket("bucket", options)
                urls = [f"s3://bucket/{name}?{options}" for name in ("data", "cache")]
                for local, url in zip((dataset, data.cache), urls, strict=True):
                    upload(Path(local), url)
                measure(", S3", cfg, DataConfig(urls[0], cache=urls[1]), args, log)
    if args.encode:
        print(f"Allegro's codec, one clip of 88 x 720 x 1280: {encode_seconds():.1f} s")


if __name__ == "__main__":
    main()
