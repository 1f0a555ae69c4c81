"""The local page on a synthetic output: seconds of each request, and peak memory.

    python -m benchmarks.browse [number of clips, default 100,000] [folder, which is kept]

The output has ten clips a video, every column of clips.parquet, key-frame names without files,
random fingerprints of 15 s, and captions of the kept clips. Requests are sent over HTTP, as the
page sends them, five times each; the median is printed.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from curation import config, records
from curation.cli import find_config
from curation.ledger import flatten_clips, with_schema
from curation.parquet import parquet_bytes
from curation.records import with_schema_version
from curation.storage import Folder
from pipelines import select
from pipelines.publish import write_tables
from pipelines.settings import Settings
from pipelines.tables import CLIPS, INPUT
from tests.support.local_page import local_page

CLIPS_PER_VIDEO, VIDEOS_PER_PART = 10, 2000
FINGERPRINT_BYTES = 960
SEGMENTS, CLIP_S = 5, 15.0
REPEATS = 5
TEXT = "A street with trees at both sides in daylight. The camera moves forward past parked cars. "


def synthetic_videos(rng: np.random.Generator, first: int, n: int) -> pa.Table:
    """n videos of records.VIDEO with their clips; first: number of the first video."""
    count = n * CLIPS_PER_VIDEO
    number = first * CLIPS_PER_VIDEO + np.arange(count)
    ids = [f"{(int(i) * 0x9E3779B97F4A7C15) % 2**64:016x}00000000" for i in number]  # as a hash
    known: dict[str, Any] = {
        "clip_id": ids,
        "take": np.zeros(count, np.int32),
        "start_s": CLIP_S * (number % CLIPS_PER_VIDEO),
        "end_s": CLIP_S * (number % CLIPS_PER_VIDEO + 1),
        "duration_s": rng.uniform(14.5, 30, count),
        "num_frames": np.full(count, 450, np.int32),
        "width": rng.choice(np.array([640, 1280, 1920], np.int32), count, p=[0.1, 0.6, 0.3]),
        "height": np.full(count, 720, np.int32),
        "fps": np.full(count, 30, np.float32),
        "interlaced": np.zeros(count, bool),
        "packet_bytes": rng.integers(10**5, 10**7, count),
        "segments": segments(ids),
        "fingerprint": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(FINGERPRINT_BYTES), count, [None, pa.py_buffer(rng.bytes(count * 960))]
        ).cast(pa.binary()),
    }
    for score in records.SCORES:
        if not score.model and score.name not in records.CAPTION_SCORES:
            high = {"brightness": 260, "sharpness": 500, "motion_dis": 60}.get(score.name)
            is_zero = rng.random(count) < (0.9 if high is None else 0)  # of shares
            values = np.where(is_zero, 0, (high or 1) * rng.beta(2, 3, count))
            known[score.name] = values.astype(np.float32)
    clips = pa.table(known).to_struct_array().combine_chunks()
    offsets = pa.array(np.arange(0, count + 1, CLIPS_PER_VIDEO), pa.int32())
    names = [f"/videos/{first + i:07d}.mp4" for i in range(n)]
    table = pa.table(
        {
            "video": names,
            "bytes": np.full(n, 10**8),
            "version": ["1"] * n,
            "sha256": [f"{first + i:064x}" for i in range(n)],
            "status": ["ok"] * n,
            "duration_s": np.full(n, CLIP_S * CLIPS_PER_VIDEO),
            "codec": ["h264"] * n,
            "clips": pa.ListArray.from_arrays(offsets, clips),
        }
    )
    return with_schema(table, with_schema_version(records.schema(records.VIDEO)))


def segments(ids: list[str]) -> pa.Array:
    n = len(ids) * SEGMENTS
    step = CLIP_S / SEGMENTS
    starts = np.tile(step * np.arange(SEGMENTS), len(ids))
    names = [f"key_frames/{i[:2]}/{i}_{k}.jpg" for i in ids for k in range(SEGMENTS)]
    known = {
        "start_s": starts,
        "end_s": starts + step,
        "key_frame_s": starts + step / 2,
        "key_frame": names,
        "key_frame_sha256": [f"{k:064x}" for k in range(n)],
        "brightness": np.full(n, 100, np.float32),
    }
    offsets = pa.array(np.arange(0, n + 1, SEGMENTS), pa.int32())
    rows = pa.table(known).to_struct_array().combine_chunks()
    return pa.ListArray.from_arrays(offsets, rows)


def synthetic_captions(clips: pa.Table) -> pa.Table:
    n = clips.num_rows
    step = CLIP_S / SEGMENTS
    ids = clips["clip_id"].to_pylist()
    spans = [(k, {"start_s": step * k, "end_s": step * (k + 1)}) for k in range(SEGMENTS)]
    parts = [[span | {"text": f"{TEXT}Part {k} of {i}."} for k, span in spans] for i in ids]
    texts = pa.array([f"{TEXT * 2}It is clip {i}." for i in ids])
    table = pa.table(
        {
            "clip_id": clips["clip_id"],
            "captioner": ["measured"] * n,
            "caption": texts,
            "sub_captions": pa.array(parts, pa.list_(records.SUB_CAPTION)),
            "frames_sha256": ["0" * 64] * n,
        }
    )
    return with_schema(table, with_schema_version(records.schema(records.CAPTION)))


def write_output(out: Folder, n: int) -> None:
    """An output of n clips that was selected and captioned, and has its table of clips."""
    rng = np.random.default_rng(0)
    ledger = out / "ledger"
    names: list[str] = []
    for part, first in enumerate(range(0, n // CLIPS_PER_VIDEO, VIDEOS_PER_PART)):
        videos = synthetic_videos(rng, first, min(VIDEOS_PER_PART, n // CLIPS_PER_VIDEO - first))
        names += videos["video"].to_pylist()
        ledger.write(f"videos/part-{part:08d}.parquet", parquet_bytes(videos))
        kept = synthetic_captions(flatten_clips(videos))
        ledger.write(f"captions/measured/part-{part:08d}.parquet", parquet_bytes(kept))
    ledger.write_table(INPUT, pa.table({"video": names}))
    rules = ("policy.sharpness={min: 50}", "policy.damaged_share=null", "policy.key_psnr=null")
    given = [f"output={out.url}", *(f"select.{rule}" for rule in rules)]
    settings = config.load(Settings, find_config("configs/local.yaml"), given)
    settings.score.decode.prefilter = settings.select.policy
    select.run(settings, out)
    write_tables(settings, out)


def seconds_of(request: Callable[[], Any]) -> float:
    """Median of REPEATS."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        answer = request()
        found.append(time.perf_counter() - start)
        assert answer.status == 200, answer.body[:500]
    return statistics.median(found)


def measure(out: Folder) -> None:
    start = time.perf_counter()
    with local_page(out.url) as page:
        print(f"start, tables read: {time.perf_counter() - start:.2f} s")
        start = time.perf_counter()
        info = page.get("/api/output").json
        rows = page.post("/api/clips", {"limit": 50}).json
        first_s = time.perf_counter() - start
        print(f"{rows['total']} clips, {info['statuses']}")
        print(f"first page, tables read again: {first_s:.2f} s")
        policy = info["policy"]
        looser = policy | {"brightness": {"min": 30, "max": 200}}
        clip_id = rows["rows"][0]["clip_id"]
        requests: dict[str, Callable[[], Any]] = {
            "next page": lambda: page.post("/api/clips", {"offset": 50_000}),
            "sorted by a score": lambda: page.post("/api/clips", {"sort": "motion_dis"}),
            "filtered by a rule": lambda: page.post("/api/clips", {"rule": "sharpness"}),
            "filtered by a score": lambda: page.post(
                "/api/clips", {"ranges": {"motion_dis": [5, 9]}, "status": ["kept"]}
            ),
            "search": lambda: page.post("/api/clips", {"text": clip_id}),
            "histogram": lambda: page.get("/api/histogram/motion_dis"),
            "one clip": lambda: page.get(f"/api/clips/{clip_id}"),
            "threshold, by rules": lambda: page.post("/api/preview", {"policy": looser}),
        }
        for name, request in requests.items():
            print(f"{name}: {seconds_of(request):.3f} s")
        for name in ("the first time", "again"):
            start = time.perf_counter()
            answer = page.post("/api/preview", {"policy": looser, "exact": True})
            assert answer.status == 200, answer.body[:500]
            print(f"threshold, exact, {name}: {time.perf_counter() - start:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the server: {peak:.2f} GiB")


def main(n: int, folder: str | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        out = Folder(folder or scratch)
        if not out.exists(CLIPS):
            write = f"from benchmarks.browse import *; write_output(Folder({out.url!r}), {n})"
            subprocess.run([sys.executable, "-c", write], check=True)
        measure(out)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, (sys.argv[2:] or [None])[0])
